/* SPDX-License-Identifier: Apache-2.0
 *
 * The seam between the chunk-copy loop and whatever hashes.
 *
 * A `struct digests` is the set of digests of one stream.  The stream posts blocks in order; a block is
 * not copied and stays the poster's until `wait` says that every digest has consumed it.  All calls on
 * one set come from one thread at a time; different sets are independent.
 *
 * Nothing here may be called with a lock of the caller's held (for Python callers: the GIL), because an
 * implementation may have to take it.
 */
#ifndef FASTFS_DIGESTS_H
#define FASTFS_DIGESTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct digests;

struct digests_ops {
    /* Append `len` readable bytes at `data` to the stream.  `*ticket` names the block for `wait`; tickets
     * count up from 1.  Blocks while the queue is full.  Returns 0, or -errno when a digest has failed. */
    int (*post)(struct digests *d, const void *data, size_t len, uint64_t *ticket);

    /* Return once the block of `ticket`, and so every earlier one, is no longer needed.  Ticket 0 is
     * always done.  Returns 0, or -errno when a digest has failed (the block is then free as well). */
    int (*wait)(struct digests *d, uint64_t ticket);

    /* The highest ticket that is done; never blocks. */
    uint64_t (*done)(struct digests *d);

    /* Give up what is still queued, end all threads of the set and release it.  No block is touched
     * after this returns. */
    void (*free)(struct digests *d);

    /* The stream's next block, of `len` bytes, has been consumed by somebody to whom its state was lent (engine_lend): returns
     * its ticket.  NULL where that cannot be. */
    uint64_t (*moved)(struct digests *d, size_t len);

    bool at_once; /* `post` never leaves anything to be done later */
};

struct digests {
    const struct digests_ops *ops;
};

#endif
