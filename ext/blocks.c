/* SPDX-License-Identifier: Apache-2.0 */
#include "blocks.h"

#include <errno.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "hash/xxh3.h"

struct blocks {
    struct digests base;
    size_t block_size;
    uint64_t posted;
    int error; /* -ENOMEM, for good */
    unsigned char *table;
    size_t len, room;
    unsigned char head[XXH3_SHORT]; /* the first bytes of the block that is under way: all, if no more come */
    struct xxh3 hash;
};

/* The block that is under way is complete. */
static void complete(struct blocks *b)
{
    if (b->len == b->room) {
        size_t room = b->room > 0 ? 2 * b->room : 64 * XXH3_DIGEST;
        unsigned char *table = realloc(b->table, room);
        if (table == NULL) {
            b->error = -ENOMEM;
            return;
        }
        b->table = table;
        b->room = room;
    }
    xxh3_digest(&b->hash, b->table + b->len);
    b->len += XXH3_DIGEST;
    xxh3_begin(&b->hash);
}

static int blocks_post(struct digests *d, const void *data, size_t len, uint64_t *ticket)
{
    struct blocks *b = (struct blocks *)d;
    const unsigned char *p = data;
    *ticket = ++b->posted;
    while (len > 0 && b->error == 0) {
        size_t some = b->block_size - (size_t)b->hash.total;
        if (some > len)
            some = len;
        if (b->hash.total < XXH3_SHORT) {
            size_t at = (size_t)b->hash.total, room = XXH3_SHORT - at;
            memcpy(b->head + at, p, some < room ? some : room);
        }
        xxh3_update(&b->hash, ways_kernels(), p, some);
        p += some;
        len -= some;
        if (b->hash.total == b->block_size)
            complete(b);
    }
    return b->error;
}

static int blocks_wait(struct digests *d, uint64_t ticket)
{
    (void)ticket;
    return ((struct blocks *)d)->error;
}

static uint64_t blocks_done(struct digests *d)
{
    return ((struct blocks *)d)->posted;
}

static void blocks_free(struct digests *d)
{
    free(((struct blocks *)d)->table);
    free(d);
}

struct digests *blocks_new(size_t block_size)
{
    static const struct digests_ops ops = { blocks_post, blocks_wait, blocks_done, blocks_free, NULL, true };
    engine_start();
    if (ways_kernels() == NULL || block_size <= XXH3_SHORT) {
        errno = block_size <= XXH3_SHORT ? EINVAL : ENOSYS;
        return NULL;
    }
    struct blocks *b = aligned_alloc(alignof(struct blocks), sizeof *b);
    if (b == NULL)
        return NULL;
    memset(b, 0, sizeof *b);
    b->base.ops = &ops;
    b->block_size = block_size;
    xxh3_begin(&b->hash);
    return &b->base;
}

int blocks_finish(struct digests *d, struct blocks_result *r)
{
    struct blocks *b = (struct blocks *)d;
    if (b->error == 0 && b->hash.total > XXH3_SHORT)
        complete(b);
    *r = (struct blocks_result){ b->table, b->len, b->head, (size_t)b->hash.total };
    return b->error;
}
