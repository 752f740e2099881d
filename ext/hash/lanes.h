/* SPDX-License-Identifier: Apache-2.0
 *
 * What the lane kernels share: states and messages of many streams to vectors, and states back.
 */
#ifndef FASTFS_HASH_LANES_H
#define FASTFS_HASH_LANES_H

#include "rounds.h"
#include "vector.h"

/* Words of 32 bits, `v[word][chain][lane]`. */
INLINE void gather32(void *v, union hash_state *const *s, unsigned words, unsigned chains, unsigned bytes)
{
    unsigned lanes = bytes / 4;
    for (unsigned j = 0; j < chains * lanes; j++)
        for (unsigned i = 0; i < words; i++)
            ((uint32_t *)v)[(i * chains + j / lanes) * lanes + lane_of(j % lanes, bytes)] = s[j]->w32[i];
}

INLINE void scatter32(const void *v, union hash_state *const *s, unsigned words, unsigned chains, unsigned bytes)
{
    unsigned lanes = bytes / 4;
    for (unsigned j = 0; j < chains * lanes; j++)
        for (unsigned i = 0; i < words; i++)
            s[j]->w32[i] = ((const uint32_t *)v)[(i * chains + j / lanes) * lanes + lane_of(j % lanes, bytes)];
}

/* Words of 64 bits, `v[word][lane]`, the chains one after the other. */
INLINE void gather64(void *v, union hash_state *const *s, unsigned lanes)
{
    for (unsigned j = 0; j < lanes; j++)
        for (unsigned i = 0; i < 8; i++)
            ((uint64_t *)v)[i * lanes + j] = s[j]->w64[i];
}

INLINE void scatter64(const void *v, union hash_state *const *s, unsigned lanes)
{
    for (unsigned j = 0; j < lanes; j++)
        for (unsigned i = 0; i < 8; i++)
            s[j]->w64[i] = ((const uint64_t *)v)[i * lanes + j];
}

/* words64: 128 bytes from `at` of bytes / 8 rows to 16 vectors, as they are.
 * words32: 64 bytes from `at` of bytes / 4 rows to 16 vectors, `stride` apart, their bytes swapped or not. */
#define WORDS(bytes)                                                                                    \
    INLINE void words64_##bytes(v64_##bytes *w, const unsigned char *const *row, size_t at)             \
    {                                                                                                   \
        UNROLL                                                                                          \
        for (unsigned i = 0; i < 16; i += bytes / 8)                                                    \
            columns_##bytes(w + i, row, at + 8 * i);                                                    \
    }                                                                                                   \
    INLINE void words32_##bytes(v32_##bytes *w, unsigned stride, const unsigned char *const *row, size_t at, int swap) \
    {                                                                                                   \
        v64_##bytes a[8], b[8];                                                                         \
        UNROLL                                                                                          \
        for (unsigned i = 0; i < 8; i += bytes / 8) {                                                   \
            columns_##bytes(a + i, row, at + 8 * i);                                                    \
            columns_##bytes(b + i, row + bytes / 8, at + 8 * i);                                        \
        }                                                                                               \
        UNROLL                                                                                          \
        for (unsigned i = 0; i < 8; i++) {                                                              \
            v32_##bytes even = EVEN_##bytes((v32_##bytes)a[i], (v32_##bytes)b[i]);                      \
            v32_##bytes odd = ODD_##bytes((v32_##bytes)a[i], (v32_##bytes)b[i]);                        \
            w[2 * i * stride] = swap ? swap32_##bytes(even) : even;                                     \
            w[(2 * i + 1) * stride] = swap ? swap32_##bytes(odd) : odd;                                 \
        }                                                                                               \
    }
WORDS(16)
#ifdef WIDE_32
WORDS(32)
#endif
#ifdef WIDE_64
WORDS(64)
#endif

#define V32 PASTE(v32_, BYTES)
#define V64 PASTE(v64_, BYTES)
#define WORDS32 PASTE(words32_, BYTES)
#define WORDS64 PASTE(words64_, BYTES)
#define SWAP32 PASTE(swap32_, BYTES)
#define SWAP64 PASTE(swap64_, BYTES)
#define LANES_EACH PASTE(EACH, CHAINS)
#define LANES32 (CHAINS * BYTES / 4)
#define LANES64 (CHAINS * BYTES / 8)

#endif
