/* SPDX-License-Identifier: Apache-2.0
 *
 * Looking at a mapped file without dying of it.
 *
 * A page of a mapping that cannot be had when it is touched, because somebody truncated the file or the disk fails, is
 * a SIGBUS, which ends the process.  While a mapping is guarded, zero pages take the place of its rest instead and the
 * guard tells so: whoever looked must throw away what it made of the mapping and read(2) the file, which gives an error
 * that can be handled.  (mmap(2) is no async-signal-safe function of POSIX, but a bare system call on Linux.)
 *
 * The handler is put in place with the first guard; faults that are not of a guarded mapping go to the one before it.
 */
#ifndef FASTFS_BUSGUARD_H
#define FASTFS_BUSGUARD_H

#include <stdbool.h>
#include <stddef.h>

/* Guard `len` bytes from `address` on, a private or shared mapping that nobody writes through.  Returns a number for the
 * functions below, or -EAGAIN: there are as many guards as there can be (256), this thread blocks SIGBUS, or somebody has
 * put another handler in the place of ours; -errno of sigaction(2). */
int busguard_begin(const void *address, size_t len);

/* Was a page missing so far?  May be asked by any thread. */
bool busguard_spoilt(int guard);

/* Before the mapping is given up. */
void busguard_end(int guard);

#endif
