/* SPDX-License-Identifier: Apache-2.0
 *
 * SHA-2 of SHA_BITS for one stream, and beside md5.  Part of scalar.h.
 *
 * SHA-512's schedule is made in vectors of two words, a group of 16 rounds ahead: the scalar units have enough
 * to do with the rounds.
 */
#if SHA_BITS == 32
#define WORD uint32_t
#define STATE w32
#define NAME(x) sha256_##x
static const uint32_t sha256_k[64] = {
#define UPPER(x) (uint32_t)(x >> 32),
    SHA2_CUBE_ROOTS_64(UPPER)
#undef UPPER
};
#define SCHEDULE uint32_t w[16][1]
#define SHA_WK(i) w[(i) % 16][n] + sha256_k[i]
#define FIRST
#define FRESH(i) w[i][0] = word_be32(data + 4 * (i));
#define EXPAND(i) SHA2_EXPAND(i)
#define AHEAD(i)
#else
#define WORD uint64_t
#define STATE w64
#define NAME(x) sha512_##x
#define SCHEDULE            \
    v64_16 w[8];            \
    uint64_t wk[16] __attribute__((aligned(16)))
#define SHA_WK(i) wk[(i) % 16]
#define PAIR_OF(p) w[(p) % 8]
#define BETWEEN(p) SHUFFLE(64, 16, PAIR_OF(p), PAIR_OF((p) + 1), 1, 2)
#define READY(p, i)                                                        \
    do {                                                                   \
        v64_16 sum = w[p] + load_16(&hash_sha512_k[(i)]);                  \
        memcpy(&wk[2 * (p)], &sum, 16);                                    \
        __asm__ volatile("" : "+m"(*(uint64_t(*)[2])&wk[2 * (p)]));         \
    } while (0)
#define FIRST                                                              \
    UNROLL                                                                 \
    for (int p = 0; p < 8; p++) {                                          \
        w[p] = swap64_16(load_16(data + 16 * p));                          \
        READY(p, 2 * p);                                                   \
    }
#define FRESH(i)
#define EXPAND(i)
/* After round i, odd: words i + 15 and i + 16 take the places of i - 1 and i. */
#define AHEAD(i)                                                                               \
    if ((i) % 2 == 1 && (i) < 64) {                                                            \
        enum { p = (i) / 2 % 8 };                                                              \
        w[p] += SHA2_SIGMA0(BETWEEN(p)) + BETWEEN(p + 4) + SHA2_SIGMA1(PAIR_OF(p + 7));        \
        READY(p, (i) + 15);                                                                    \
    }
#endif
#define BLOCK (SHA_BITS * 2)
#define ADD_OLD(i) sha[i][0] += s->STATE[i], s->STATE[i] = sha[i][0];

static void NAME(one)(union hash_state *s, const unsigned char *data, size_t blocks)
{
    WORD sha[8][1];
    SCHEDULE;
    COPY(sha[i][0], s->STATE[i], 8)
    for (; blocks > 0; blocks--, data += BLOCK) {
        FIRST
#define ROUND(i) FRESH(i) SHA2_ROUND(i, , ) AHEAD(i)
        REPEAT16(ROUND, 0)
#undef ROUND
#define ROUND(i) EXPAND(i) SHA2_ROUND(i, , ) AHEAD(i)
        REPEAT16(ROUND, 16)
        REPEAT16(ROUND, 32)
        REPEAT16(ROUND, 48)
#if SHA_BITS == 64
        REPEAT16(ROUND, 64)
#endif
#undef ROUND
        REPEAT8(ADD_OLD, 0)
    }
}

#define MD5_TYPE uint32_t
#define FUNCTION NAME(pair)
#include "stitched.h"
#if SHA_BITS == 64 && defined(STITCH_VECTOR)
#undef MD5_G_AT_ONCE
#define MD5_G_AT_ONCE 1
#undef MD5_KEPT
#define MD5_KEPT IN_VECTOR
#define MD5_TYPE v32_16
#define FUNCTION sha512_pair_vector
#include "stitched.h"
#endif

#undef SHA_BITS
#undef WORD
#undef STATE
#undef NAME
#undef SCHEDULE
#undef SHA_WK
#undef PAIR_OF
#undef BETWEEN
#undef READY
#undef FIRST
#undef FRESH
#undef EXPAND
#undef AHEAD
#undef BLOCK
#undef ADD_OLD
