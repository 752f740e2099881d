/* SPDX-License-Identifier: Apache-2.0
 *
 * Vectors of the compiler's own (GCC and Clang), 16, 32 and 64 bytes wide, and how the words of several
 * streams come to lie beside one another in them.
 *
 * `columns` turns n rows of n 64-bit words into n columns: vector i holds word i of every row.  What works
 * on 32-bit words takes two such sets, of as many streams each, and splits a pair of columns into its even
 * and its odd 32-bit words.  The lanes then lie in the order of `lane_of`, which suits every width and lets
 * md5 share the columns of a 64-bit SHA; one shuffle a word is all that a transposition costs.
 *
 * Included by each instruction set, whose target decides what the compiler makes of it; WIDE_32 and WIDE_64
 * say which widths it has.
 */
#ifndef FASTFS_HASH_VECTOR_H
#define FASTFS_HASH_VECTOR_H

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define UNROLL _Pragma("GCC unroll 16")

/* The compiler must not look through memory from here to there: it would keep message words in registers
 * that it has not, and spill the state instead. */
#define OPAQUE(array) __asm__ volatile("" : : "r"(array) : "memory")

#define VECTORS(bytes)                                                   \
    typedef uint8_t v8_##bytes __attribute__((vector_size(bytes)));      \
    typedef uint32_t v32_##bytes __attribute__((vector_size(bytes)));    \
    typedef uint64_t v64_##bytes __attribute__((vector_size(bytes)));    \
    INLINE v64_##bytes load_##bytes(const void *p)                       \
    {                                                                    \
        v64_##bytes v;                                                   \
        memcpy(&v, p, bytes);                                            \
        return v;                                                        \
    }
VECTORS(16)
#ifdef WIDE_32
VECTORS(32)
#endif
#ifdef WIDE_64
VECTORS(64)
#endif

#ifdef __clang__
#define SHUFFLE(bits, bytes, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(bits, bytes, a, b, ...) __builtin_shuffle(a, b, (v##bits##_##bytes){ __VA_ARGS__ })
#endif

/* Of 64-bit words: every other one of both, beginning with the first or the second. */
#define LOWS_16(a, b) SHUFFLE(64, 16, a, b, 0, 2)
#define HIGHS_16(a, b) SHUFFLE(64, 16, a, b, 1, 3)
#define LOWS_32(a, b) SHUFFLE(64, 32, a, b, 0, 4, 2, 6)
#define HIGHS_32(a, b) SHUFFLE(64, 32, a, b, 1, 5, 3, 7)
#define LOWS_64(a, b) SHUFFLE(64, 64, a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define HIGHS_64(a, b) SHUFFLE(64, 64, a, b, 1, 9, 3, 11, 5, 13, 7, 15)
/* Of 128-bit pieces. */
#define FRONT_32(a, b) SHUFFLE(64, 32, a, b, 0, 1, 4, 5)
#define BACK_32(a, b) SHUFFLE(64, 32, a, b, 2, 3, 6, 7)
#define FRONT_64(a, b) SHUFFLE(64, 64, a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define BACK_64(a, b) SHUFFLE(64, 64, a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#define EVENS_64(a, b) SHUFFLE(64, 64, a, b, 0, 1, 4, 5, 8, 9, 12, 13)
#define ODDS_64(a, b) SHUFFLE(64, 64, a, b, 2, 3, 6, 7, 10, 11, 14, 15)

INLINE void columns_16(v64_16 *w, const unsigned char *const *row, size_t at)
{
    v64_16 a = load_16(row[0] + at), b = load_16(row[1] + at);
    w[0] = LOWS_16(a, b);
    w[1] = HIGHS_16(a, b);
}

#ifdef WIDE_32
INLINE void columns_32(v64_32 *w, const unsigned char *const *row, size_t at)
{
    v64_32 a = load_32(row[0] + at), b = load_32(row[1] + at), c = load_32(row[2] + at), d = load_32(row[3] + at);
    v64_32 ab = LOWS_32(a, b), cd = LOWS_32(c, d);
    w[0] = FRONT_32(ab, cd);
    w[2] = BACK_32(ab, cd);
    ab = HIGHS_32(a, b), cd = HIGHS_32(c, d);
    w[1] = FRONT_32(ab, cd);
    w[3] = BACK_32(ab, cd);
}
#endif

#ifdef WIDE_64
INLINE void columns_64(v64_64 *w, const unsigned char *const *row, size_t at)
{
    v64_64 r[8], p, q, s, t;
    UNROLL
    for (int i = 0; i < 8; i++)
        r[i] = load_64(row[i] + at);
    p = LOWS_64(r[0], r[1]), q = LOWS_64(r[2], r[3]), s = LOWS_64(r[4], r[5]), t = LOWS_64(r[6], r[7]);
    w[0] = EVENS_64(FRONT_64(p, q), FRONT_64(s, t));
    w[2] = ODDS_64(FRONT_64(p, q), FRONT_64(s, t));
    w[4] = EVENS_64(BACK_64(p, q), BACK_64(s, t));
    w[6] = ODDS_64(BACK_64(p, q), BACK_64(s, t));
    p = HIGHS_64(r[0], r[1]), q = HIGHS_64(r[2], r[3]), s = HIGHS_64(r[4], r[5]), t = HIGHS_64(r[6], r[7]);
    w[1] = EVENS_64(FRONT_64(p, q), FRONT_64(s, t));
    w[3] = ODDS_64(FRONT_64(p, q), FRONT_64(s, t));
    w[5] = EVENS_64(BACK_64(p, q), BACK_64(s, t));
    w[7] = ODDS_64(BACK_64(p, q), BACK_64(s, t));
}
#endif

/* The even, the odd 32-bit words of two vectors, 128 bits by 128 bits. */
#define EVEN_16(a, b) SHUFFLE(32, 16, a, b, 0, 2, 4, 6)
#define ODD_16(a, b) SHUFFLE(32, 16, a, b, 1, 3, 5, 7)
#define EVEN_32(a, b) SHUFFLE(32, 32, a, b, 0, 2, 8, 10, 4, 6, 12, 14)
#define ODD_32(a, b) SHUFFLE(32, 32, a, b, 1, 3, 9, 11, 5, 7, 13, 15)
#define EVEN_64(a, b) SHUFFLE(32, 64, a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30)
#define ODD_64(a, b) SHUFFLE(32, 64, a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31)

/* Where stream i of a vector of `bytes` / 4 streams lies after that. */
INLINE unsigned lane_of(unsigned i, unsigned bytes)
{
    unsigned half = bytes / 8;
    return i % half / 2 * 4 + i / half * 2 + i % 2;
}

/* The two words of each pair changed over. */
#define SWAPPED_16(a) SHUFFLE(64, 16, a, a, 1, 0)
#define SWAPPED_32(a) SHUFFLE(64, 32, a, a, 1, 0, 3, 2)
#define SWAPPED_64(a) SHUFFLE(64, 64, a, a, 1, 0, 3, 2, 5, 4, 7, 6)

/* The lower half of each word times its upper half: one instruction, which the compilers do not find. */
#if defined(__x86_64__)
#define PRODUCT_16(a) ((v64_16)_mm_mul_epu32((__m128i)(a), (__m128i)((a) >> 32)))
#define PRODUCT_32(a) ((v64_32)_mm256_mul_epu32((__m256i)(a), (__m256i)((a) >> 32)))
#define PRODUCT_64(a) ((v64_64)_mm512_mul_epu32((__m512i)(a), (__m512i)((a) >> 32)))
#elif defined(__aarch64__)
#define PRODUCT_16(a) ((v64_16)vmull_u32(vmovn_u64((uint64x2_t)(a)), vshrn_n_u64((uint64x2_t)(a), 32)))
#else
#define PRODUCT_16(a) (((a) & 0xffffffff) * ((a) >> 32))
#endif

/* Big-endian words to ours. */
#define REVERSED4(i) (i) + 3, (i) + 2, (i) + 1, (i)
#define REVERSED8(i) REVERSED4((i) + 4), REVERSED4(i)
#define SWAP32_AT(i) REVERSED4(i), REVERSED4((i) + 4), REVERSED4((i) + 8), REVERSED4((i) + 12)
#define SWAP64_AT(i) REVERSED8(i), REVERSED8((i) + 8)
#define SWAP(bits, bytes, ...)                                             \
    INLINE v##bits##_##bytes swap##bits##_##bytes(v##bits##_##bytes x)     \
    {                                                                      \
        v8_##bytes v = (v8_##bytes)x;                                      \
        return (v##bits##_##bytes)SHUFFLE(8, bytes, v, v, __VA_ARGS__);    \
    }
#if defined(WIDE_32) || defined(__aarch64__)
SWAP(32, 16, SWAP32_AT(0))
SWAP(64, 16, SWAP64_AT(0))
#else
/* SSE2 shuffles no bytes: a general shuffle would go one byte at a time. */
INLINE v32_16 swap32_16(v32_16 x)
{
    x = (x & 0x00ff00ff) << 8 | (x >> 8 & 0x00ff00ff);
    return x << 16 | x >> 16;
}
INLINE v64_16 swap64_16(v64_16 x)
{
    v32_16 v = swap32_16((v32_16)x);
    return (v64_16)SHUFFLE(32, 16, v, v, 1, 0, 3, 2);
}
#endif
#ifdef WIDE_32
SWAP(32, 32, SWAP32_AT(0), SWAP32_AT(16))
SWAP(64, 32, SWAP64_AT(0), SWAP64_AT(16))
#endif
#ifdef WIDE_64
SWAP(32, 64, SWAP32_AT(0), SWAP32_AT(16), SWAP32_AT(32), SWAP32_AT(48))
SWAP(64, 64, SWAP64_AT(0), SWAP64_AT(16), SWAP64_AT(32), SWAP64_AT(48))
#endif

#endif
