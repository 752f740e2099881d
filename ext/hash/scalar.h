/* SPDX-License-Identifier: Apache-2.0
 *
 * Words and constants of one stream.
 */
#ifndef FASTFS_HASH_SCALAR_H
#define FASTFS_HASH_SCALAR_H

#include "rounds.h"
#include "vector.h"

INLINE uint32_t word_le32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
INLINE uint32_t word_be32(const unsigned char *p)
{
    return __builtin_bswap32(word_le32(p));
}
INLINE uint64_t word_be64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}

/* Known here, so that they become immediate operands. */
#define LISTED(x) x,
#define PLACED(i, x) [i] = x,
static const uint32_t md5_k[64] = { MD5_SINES(PLACED) };

/* Word by word: copied as a whole, the compiler would keep pairs of 32-bit words in one register. */
#define COPY(to, from, n)             \
    UNROLL                            \
    for (unsigned i = 0; i < n; i++)  \
        to = from;

/* The words of a block with all that is added to them, for one stream: vectors spare the scalar units 64 sums. */
INLINE void md5_sums(uint32_t *xk, const unsigned char *block)
{
    UNROLL
    for (int i = 0; i < 64; i += 4) {
        v32_16 sum = (v32_16)load_16(block + 4 * (i % 16)) + (v32_16)load_16(&hash_md5_k_of_word[i]);
        memcpy(xk + i, &sum, 16);
    }
}

/* For steps of md5 on plain words. */
#define SCALAR_XK(i) (word_le32(data + 4 * MD5_WORD(i)) + md5_k[i])

#endif
