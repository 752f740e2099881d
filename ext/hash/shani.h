/* SPDX-License-Identifier: Apache-2.0
 *
 * SHA-1 and SHA-256 by their own instructions (x86 SHA extensions), four rounds at a time.  An instruction of
 * theirs answers in 4 (SHA-256) or 6 cycles but another can begin after 1 or 2, so that a second stream costs
 * little: EACHm as in rounds.h.  Needs the target "sha,sse4.1".
 */
#ifndef FASTFS_HASH_SHANI_H
#define FASTFS_HASH_SHANI_H

#include <immintrin.h>

#include "rounds.h"
#include "vector.h"

/* The extensions keep a SHA-256 state as (a, b, e, f) and (c, d, g, h), highest word first. */
INLINE void shani_load(__m128i *abef, __m128i *cdgh, const union hash_state *s)
{
    __m128i cdab = _mm_shuffle_epi32(_mm_load_si128((const __m128i *)&s->w32[0]), 0xb1);
    __m128i efgh = _mm_shuffle_epi32(_mm_load_si128((const __m128i *)&s->w32[4]), 0x1b);
    *abef = _mm_alignr_epi8(cdab, efgh, 8);
    *cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
}

INLINE void shani_store(__m128i abef, __m128i cdgh, union hash_state *s)
{
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_store_si128((__m128i *)&s->w32[0], _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_store_si128((__m128i *)&s->w32[4], _mm_alignr_epi8(dchg, feba, 8));
}

/* Rounds 4 g to 4 g + 3 of SHA-256 for chain n: state `abef[n]`, `cdgh[n]`, ring `w[4][n]`.  Wants SHA_EACH and
 * SHANI_DATA: chain n's block. */
#define SHANI_BIG_ENDIAN(x) _mm_shuffle_epi8(x, _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203))
#define SHANI_FOUR(g)                                                                                        \
    do {                                                                                                     \
        if ((g) < 4)                                                                                         \
            SHA_EACH(w[(g) % 4][n] =                                                                         \
                         SHANI_BIG_ENDIAN(_mm_loadu_si128((const __m128i *)(SHANI_DATA + 16 * (g)))));       \
        else                                                                                                 \
            SHA_EACH(w[(g) % 4][n] = _mm_sha256msg2_epu32(                                                   \
                         _mm_add_epi32(_mm_sha256msg1_epu32(w[(g) % 4][n], w[((g) + 1) % 4][n]),             \
                                       _mm_alignr_epi8(w[((g) + 3) % 4][n], w[((g) + 2) % 4][n], 4)),        \
                         w[((g) + 3) % 4][n]));                                                              \
        __m128i wk[4];                                                                                       \
        SHA_EACH(wk[n] = _mm_add_epi32(w[(g) % 4][n], _mm_load_si128((const __m128i *)&hash_sha256_k[4 * (g)])); \
                 cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], wk[n]));                                  \
        SHA_EACH(abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], _mm_shuffle_epi32(wk[n], 0x0e)));         \
    } while (0);

/* Rounds 4 g to 4 g + 3 of SHA-1: state `abcd[n]`, `e[n]` (the e of now for g = 0, after that the state before
 * the last four). */
#define SHANI1_FOUR(g)                                                                                       \
    do {                                                                                                     \
        if ((g) < 4)                                                                                         \
            SHA_EACH(w[(g) % 4][n] =                                                                         \
                         SHANI_REVERSED(_mm_loadu_si128((const __m128i *)(SHANI_DATA + 16 * (g)))));         \
        else                                                                                                 \
            SHA_EACH(w[(g) % 4][n] = _mm_sha1msg2_epu32(                                                     \
                         _mm_xor_si128(_mm_sha1msg1_epu32(w[(g) % 4][n], w[((g) + 1) % 4][n]), w[((g) + 2) % 4][n]), \
                         w[((g) + 3) % 4][n]));                                                              \
        SHA_EACH(__m128i ew = (g) == 0 ? _mm_add_epi32(e[n], w[0][n]) : _mm_sha1nexte_epu32(e[n], w[(g) % 4][n]); \
                 e[n] = abcd[n]; abcd[n] = _mm_sha1rnds4_epu32(abcd[n], ew, (g) / 5));                       \
    } while (0);
#define SHANI_REVERSED(x) _mm_shuffle_epi8(x, _mm_set_epi64x(0x0001020304050607, 0x08090a0b0c0d0e0f))

#endif
