/* SPDX-License-Identifier: Apache-2.0
 *
 * XXH3 of 128 bits, without a seed, of more than 240 bytes: the digest of a block of an image.
 *
 * Algorithm and constants: "xxHash fast digest algorithm", version 0.2.0, of the xxHash project
 * (doc/xxhash_spec.md).  Shorter inputs, which it treats in other ways, are the xxhash package's.
 */
#ifndef FASTFS_HASH_XXH3_H
#define FASTFS_HASH_XXH3_H

#include <stddef.h>
#include <stdint.h>

#include "hash.h"

enum { XXH3_SHORT = 240 /* bytes that are too few for us */, XXH3_DIGEST = 16 };

struct xxh3 {
    uint64_t acc[8] __attribute__((aligned(64)));
    uint64_t total;
    unsigned stripes;                  /* consumed since the accumulators were scrambled */
    unsigned pending;                  /* bytes not consumed: the last stripe is another matter */
    unsigned char rest[XXH3_STRIPE];   /* these bytes */
    unsigned char before[XXH3_STRIPE]; /* the stripe before them */
};

void xxh3_begin(struct xxh3 *x);
void xxh3_update(struct xxh3 *x, const struct hash_kernels *k, const void *data, size_t len);

/* Of more than XXH3_SHORT bytes. */
void xxh3_digest(const struct xxh3 *x, unsigned char digest[XXH3_DIGEST]);

#endif
