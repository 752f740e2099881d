/* SPDX-License-Identifier: Apache-2.0
 *
 * One step of md5, one round of SHA-1 and of SHA-2: written once, for every kind of word and every number
 * of interleaved chains.  `i` is always a constant, so that all that depends on it is decided by the compiler.
 *
 * Who uses a round declares the state as an array `md5[4][chains]`, `sha[8][chains]` of words (integers or
 * vectors) and defines what the round draws on; EACHm repeats a statement for chain n = 0 to m - 1, operation
 * by operation: interleaved round by round, two chains of SHA-512 reach 3.3 instead of 4.5 GB/s on Zen 5.
 */
#ifndef FASTFS_HASH_ROUNDS_H
#define FASTFS_HASH_ROUNDS_H

#include "constants.h"

#define FOR_CHAIN(i, ...) \
    do {                  \
        enum { n = i };   \
        __VA_ARGS__;      \
    } while (0)
#define EACH1(...) FOR_CHAIN(0, __VA_ARGS__)
#define EACH2(...)                 \
    do {                           \
        EACH1(__VA_ARGS__);        \
        FOR_CHAIN(1, __VA_ARGS__); \
    } while (0)
#define EACH3(...)                 \
    do {                           \
        EACH2(__VA_ARGS__);        \
        FOR_CHAIN(2, __VA_ARGS__); \
    } while (0)

#define REPEAT2(round, i) round((i)) round((i) + 1)
#define REPEAT4(round, i) REPEAT2(round, i) REPEAT2(round, (i) + 2)
#define REPEAT8(round, i) REPEAT4(round, i) REPEAT4(round, (i) + 4)
#define REPEAT16(round, i) REPEAT8(round, i) REPEAT8(round, (i) + 8)

#define ROL(x, r, bits) ((x) << (r) | (x) >> ((bits) - (r)))
#define ROR(x, r, bits) ROL(x, (bits) - (r), bits)

/* The compiler must not regroup sums across this: it would put what comes last into the middle, a cycle later in
 * each step (md5 of one vector 6.8 instead of 7.7 GB/s).  MD5_KEPT and SHA_KEPT are the constraint of the words,
 * one of these. */
#define IN_SCALAR(x) "+r"(x)
#ifdef __aarch64__
#define IN_VECTOR(x) "+w"(x)
#else
#define IN_VECTOR(x) "+v"(x)
#endif
#define KEEP(x, kept_in) __asm__("" : kept_in(x))

/* The logic of all three: x chooses between y and z; the majority; md5's fourth. */
#define XOR3(x, y, z) ((x) ^ (y) ^ (z))
#define CHOOSE(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))
#define MAJORITY(x, y, z) ((y) ^ (((x) ^ (y)) & ((y) ^ (z)))) /* y ^ z is the x ^ y of the round before */
#define MD5_I_OF(b, c, d) ((c) ^ ((b) | ~(d)))
#define MD5_G_AT_ONCE 0

/* md5 (RFC 1321, 3.4).  Wants MD5_EACH and MD5_XK(i): word MD5_WORD(i) of the block of chain n and the i-th sine, added.
 *
 * What waits for the step before is b alone, so the rest is added first.  The second round chooses by d: its
 * half that needs no b is added early too, unless choosing is one instruction (MD5_G_AT_ONCE). */
#define MD5_WORD(i) ((i) < 16 ? (i) : (i) < 32 ? (5 * (i) + 1) % 16 : (i) < 48 ? (3 * (i) + 5) % 16 : 7 * (i) % 16)
#define MD5_TURN(i, r0, r1, r2, r3) ((i) % 4 == 0 ? r0 : (i) % 4 == 1 ? r1 : (i) % 4 == 2 ? r2 : r3)
#define MD5_ROTATION(i)                          \
    ((i) < 16   ? MD5_TURN(i, 7, 12, 17, 22)     \
     : (i) < 32 ? MD5_TURN(i, 5, 9, 14, 20)      \
     : (i) < 48 ? MD5_TURN(i, 4, 11, 16, 23)     \
                : MD5_TURN(i, 6, 10, 15, 21))
#define MD5_G(b, c, d) (MD5_G_AT_ONCE ? CHOOSE(d, b, c) : (b) & (d))
#define MD5_LOGIC(i, b, c, d)         \
    ((i) < 16   ? CHOOSE(b, c, d)     \
     : (i) < 32 ? MD5_G(b, c, d) \
     : (i) < 48 ? XOR3(c, d, b)       \
                : MD5_I_OF(b, c, d))
#define MD5_STEP(i)                                                                    \
    do {                                                                               \
        enum { A = (64 - (i)) % 4, B = (65 - (i)) % 4, C = (66 - (i)) % 4, D = (67 - (i)) % 4 }; \
        MD5_EACH(md5[A][n] += MD5_XK(i); KEEP(md5[A][n], MD5_KEPT));         \
        if ((i) / 16 == 1 && !MD5_G_AT_ONCE)                                           \
            MD5_EACH(md5[A][n] += md5[C][n] & ~md5[D][n]);                             \
        MD5_EACH(md5[A][n] += MD5_LOGIC(i, md5[B][n], md5[C][n], md5[D][n]));          \
        MD5_EACH(md5[A][n] = ROL(md5[A][n], MD5_ROTATION(i), 32) + md5[B][n]);         \
    } while (0);

/* SHA-2 (FIPS 180-4, 4.1.2, 4.1.3, 6.2.2 and 6.4.2) of SHA_BITS, 32 or 64.  Wants SHA_EACH and SHA_WK(i): word i of
 * the schedule for chain n and the i-th cube root, added.  `one` and `two` are statements of another algorithm, put
 * where they hide latency best.  SHA_KEEP is for the last sums of a round: KEEP where that is faster. */
#define SHA_KEEP(x)
#define SHA2_BY(r32, r64) (SHA_BITS == 32 ? (r32) : (r64))
#define SHA2_ROR(x, r32, r64) ROR(x, SHA2_BY(r32, r64), SHA_BITS)
#define SHA2_SUM0(x) XOR3(SHA2_ROR(x, 2, 28), SHA2_ROR(x, 13, 34), SHA2_ROR(x, 22, 39))
#define SHA2_SUM1(x) XOR3(SHA2_ROR(x, 6, 14), SHA2_ROR(x, 11, 18), SHA2_ROR(x, 25, 41))
#define SHA2_SIGMA0(x) XOR3(SHA2_ROR(x, 7, 1), SHA2_ROR(x, 18, 8), (x) >> SHA2_BY(3, 7))
#define SHA2_SIGMA1(x) XOR3(SHA2_ROR(x, 17, 19), SHA2_ROR(x, 19, 61), (x) >> SHA2_BY(10, 6))
#define SHA2_ROUND(i, one, two)                                                \
    do {                                                                       \
        enum { A = (80 - (i)) % 8, B = (81 - (i)) % 8, C = (82 - (i)) % 8, D = (83 - (i)) % 8 }; \
        enum { E = (84 - (i)) % 8, F = (85 - (i)) % 8, G = (86 - (i)) % 8, H = (87 - (i)) % 8 }; \
        SHA_EACH(sha[H][n] += SHA_WK(i); KEEP(sha[H][n], SHA_KEPT));                      \
        SHA_EACH(sha[H][n] += CHOOSE(sha[E][n], sha[F][n], sha[G][n]); KEEP(sha[H][n], SHA_KEPT));        \
        SHA_EACH(sha[H][n] += SHA2_SUM1(sha[E][n]); KEEP(sha[H][n], SHA_KEPT));                           \
        SHA_EACH(sha[D][n] += sha[H][n]; SHA_KEEP(sha[D][n]));                 \
        one;                                                                   \
        SHA_EACH(sha[H][n] += MAJORITY(sha[A][n], sha[B][n], sha[C][n]); SHA_KEEP(sha[H][n])); \
        SHA_EACH(sha[H][n] += SHA2_SUM0(sha[A][n]); SHA_KEEP(sha[H][n]));      \
        two;                                                                   \
    } while (0);

/* Turn word i - 16 of the ring `w[16][chains]` into word i. */
#define SHA2_EXPAND(i)                                                                        \
    SHA_EACH(w[(i) % 16][n] += SHA2_SIGMA0(w[((i) + 1) % 16][n]) + w[((i) + 9) % 16][n] +     \
                               SHA2_SIGMA1(w[((i) + 14) % 16][n]));

/* SHA-1 (FIPS 180-4, 4.1.1 and 6.1.2).  Wants SHA_EACH, SHA_WK(i). */
#define SHA1_LOGIC(i, b, c, d) ((i) < 20 ? CHOOSE(b, c, d) : (i) < 40 || (i) >= 60 ? XOR3(c, d, b) : MAJORITY(c, d, b))
#define SHA1_ROUND(i)                                                                         \
    do {                                                                                      \
        enum { A = (80 - (i)) % 5, B = (81 - (i)) % 5, C = (82 - (i)) % 5, D = (83 - (i)) % 5, E = (84 - (i)) % 5 }; \
        SHA_EACH(sha[E][n] += SHA_WK(i));                                                     \
        SHA_EACH(sha[E][n] += SHA1_LOGIC(i, sha[B][n], sha[C][n], sha[D][n]));                \
        SHA_EACH(sha[E][n] += ROL(sha[A][n], 5, 32));                                         \
        SHA_EACH(sha[B][n] = ROL(sha[B][n], 30, 32));                                         \
    } while (0);
#define SHA1_EXPAND(i)                                                                        \
    SHA_EACH(w[(i) % 16][n] = XOR3(w[((i) + 13) % 16][n], w[((i) + 8) % 16][n], w[((i) + 2) % 16][n]) ^ w[(i) % 16][n]; \
             w[(i) % 16][n] = ROL(w[(i) % 16][n], 1, 32));

#endif
