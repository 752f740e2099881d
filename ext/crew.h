/* SPDX-License-Identifier: Apache-2.0
 *
 * Many pumps that copy regular files at once: one thread does it for several.
 *
 * A pump that hashes its blocks through the engine's queue has them read by one processor and hashed by another, and its
 * owner wakes up for each.  When more files are on their way than there are processors, their owners join a crew instead:
 * as many of them as there are processors drive, the others sleep.  Who drives reads a piece of each of its streams, hashes
 * all of them in lanes while they are in the processor's own cache, writes the blocks that are full, and goes on; streams
 * join and leave between rounds.  A driver whose own stream is done hands over to another owner.
 *
 * Only what is in the page cache is read, and a stream that has nothing there goes on by itself for a while.  Streams of
 * different devices have different crews, so that a device that is slow or hangs holds up nobody who has no business with it.
 */
#ifndef FASTFS_CREW_H
#define FASTFS_CREW_H

#include "pump.h"

/* The calling thread is about to call crew_read for a file of some size: drivers may wait for it a little, so that those who
 * come together hash together from the beginning, and find a processor to come with.  Does nothing if it is expected
 * already. */
void crew_expect(void);

/* It does not come after all.  May be called in any case. */
void crew_expect_no_more(void);

/* As pump_read, which it calls for all that a crew does not do. */
int crew_read(struct pump *p, struct pump_source *s, uint64_t budget);

#endif
