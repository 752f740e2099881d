/* SPDX-License-Identifier: Apache-2.0
 *
 * The blocks of a file one after the other, each with its digest, by two threads where there is a processor for the second.
 *
 * Hashing what was just read takes a quarter of the time of reading it, and a block must be whole before its first byte may
 * be handed out.  So a helper reads ahead while the owner hands out; what it has not begun when the owner asks for it, the
 * owner reads, and while the helper is at that block, the next one.  Nobody waits for a thread that is late.  512 MiB in the page
 * cache, iterated in pieces of 64 KiB, beside plain reading: one thread 0.68 times as fast, two 1.03 to 1.19 (Intel Xeon); two
 * that do a batch and wait for one another 0.87 to 0.97.
 */
#ifndef FASTFS_BLOCKREAD_H
#define FASTFS_BLOCKREAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hash/xxh3.h"
#include "serve.h"

enum {
    BLOCKREAD_PIECES = 64, /* of a block, at most */
    BLOCKREAD_SLOTS = 4,   /* blocks that can be under way */
};

struct blockread;

/* Blocks of `each` pieces of `piece` bytes, together more than XXH3_SHORT.  `file` outlives it, and may be closed by anybody
 * at any time.  `engine_kernels` is not NULL.  NULL: no memory. */
struct blockread *blockread_new(struct serve_file *file, unsigned each, size_t piece);

/* Its thread has ended afterwards.  NULL is allowed. */
void blockread_free(struct blockread *b);

/* Have a thread read ahead, if there is a processor to spare. */
void blockread_hire(struct blockread *b);

/* May the owner offer one more block?  Without a helper one at a time.  In a forked child, which has no helper, what was
 * offered is forgotten, and read again when it is offered again: ask before `next`. */
bool blockread_has_room(struct blockread *b);

/* Have the block at `offset` read into these pieces, which must stay until `next` has returned it or `forget` everything. */
void blockread_offer(struct blockread *b, int64_t offset, char *const *memory);

/* How many were offered, and not returned by `next`. */
unsigned blockread_offered(const struct blockread *b);

/* The block that was offered first is there: 0, and its digest.  -errno: it is not; -ENODATA: the file ends in it; -EBADF: it
 * was closed; -EINTR: a signal came, or may have come, ask again. */
int blockread_next(struct blockread *b, unsigned char digest[XXH3_DIGEST]);

/* Nothing is offered any more. */
void blockread_forget(struct blockread *b);

#endif
