/* SPDX-License-Identifier: Apache-2.0
 *
 * A part of a file as memory, to be looked at only: what is in the page cache need not be copied to be hashed.
 *
 * A mapping costs 0.01 to 0.05 ns a byte, where read(2) costs 0.12 (Intel Xeon, Zen 4; ext4 with large folios).  What it
 * shows is the file as long as `window_intact`; see busguard.h.
 */
#ifndef FASTFS_WINDOW_H
#define FASTFS_WINDOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct window {
    const unsigned char *memory; /* NULL: closed */
    int64_t begin, end;          /* of the file */
    int64_t present;             /* what is before this was in the page cache, or is passed over */
    int fd;
    int guard;
};

/* May this thread look through windows?  Not if it blocks SIGBUS. */
bool window_allowed(void);

/* `len` bytes, a multiple of the page size, from the page on that `offset` is in.  False: there is no such mapping. */
bool window_open(struct window *w, int fd, int64_t offset, size_t len);

/* Is all from `begin` to `end` in the page cache, so that looking at it waits for nothing?  What follows before `most` is
 * seen about at the same time.  `*missed`: of this file something was not there once; then it is looked at more closely.  The
 * caller owns the file or may write to it: the kernel tells nobody else. */
bool window_resident(struct window *w, int64_t begin, int64_t end, int64_t most, bool *missed);

/* The bytes from `offset` on. */
static inline const unsigned char *window_at(const struct window *w, int64_t offset)
{
    return w->memory + (offset - w->begin);
}

/* Nothing was missing so far. */
bool window_intact(const struct window *w);

/* May be repeated. */
void window_close(struct window *w);

#endif
