/* SPDX-License-Identifier: Apache-2.0
 *
 * The numbers of RFC 1321 and FIPS 180-4.  Lists for macros, because what is derived from them differs:
 * SHA-256's are the upper halves of SHA-512's.  tests/kernels derives them all anew.
 */
#ifndef FASTFS_HASH_CONSTANTS_H
#define FASTFS_HASH_CONSTANTS_H

#include <stdint.h>

/* clang-format off */
/* RFC 1321, 3.4: floor(2^32 |sin i|), i = 1 to 64, here numbered from 0 */
#define MD5_SINES(X) \
    X(0, 0xd76aa478) X(1, 0xe8c7b756) X(2, 0x242070db) X(3, 0xc1bdceee) X(4, 0xf57c0faf) X(5, 0x4787c62a) \
    X(6, 0xa8304613) X(7, 0xfd469501) X(8, 0x698098d8) X(9, 0x8b44f7af) X(10, 0xffff5bb1) X(11, 0x895cd7be) \
    X(12, 0x6b901122) X(13, 0xfd987193) X(14, 0xa679438e) X(15, 0x49b40821) X(16, 0xf61e2562) X(17, 0xc040b340) \
    X(18, 0x265e5a51) X(19, 0xe9b6c7aa) X(20, 0xd62f105d) X(21, 0x02441453) X(22, 0xd8a1e681) X(23, 0xe7d3fbc8) \
    X(24, 0x21e1cde6) X(25, 0xc33707d6) X(26, 0xf4d50d87) X(27, 0x455a14ed) X(28, 0xa9e3e905) X(29, 0xfcefa3f8) \
    X(30, 0x676f02d9) X(31, 0x8d2a4c8a) X(32, 0xfffa3942) X(33, 0x8771f681) X(34, 0x6d9d6122) X(35, 0xfde5380c) \
    X(36, 0xa4beea44) X(37, 0x4bdecfa9) X(38, 0xf6bb4b60) X(39, 0xbebfbc70) X(40, 0x289b7ec6) X(41, 0xeaa127fa) \
    X(42, 0xd4ef3085) X(43, 0x04881d05) X(44, 0xd9d4d039) X(45, 0xe6db99e5) X(46, 0x1fa27cf8) X(47, 0xc4ac5665) \
    X(48, 0xf4292244) X(49, 0x432aff97) X(50, 0xab9423a7) X(51, 0xfc93a039) X(52, 0x655b59c3) X(53, 0x8f0ccc92) \
    X(54, 0xffeff47d) X(55, 0x85845dd1) X(56, 0x6fa87e4f) X(57, 0xfe2ce6e0) X(58, 0xa3014314) X(59, 0x4e0811a1) \
    X(60, 0xf7537e82) X(61, 0xbd3af235) X(62, 0x2ad7d2bb) X(63, 0xeb86d391)

/* FIPS 180-4, 4.2.2 and 4.2.3: the first 64 bits of the fractions of the cube roots of the first 80
 * primes; the first 64 of them for SHA-256 */
#define SHA2_CUBE_ROOTS_64(X) \
    X(0x428a2f98d728ae22) X(0x7137449123ef65cd) X(0xb5c0fbcfec4d3b2f) X(0xe9b5dba58189dbbc) \
    X(0x3956c25bf348b538) X(0x59f111f1b605d019) X(0x923f82a4af194f9b) X(0xab1c5ed5da6d8118) \
    X(0xd807aa98a3030242) X(0x12835b0145706fbe) X(0x243185be4ee4b28c) X(0x550c7dc3d5ffb4e2) \
    X(0x72be5d74f27b896f) X(0x80deb1fe3b1696b1) X(0x9bdc06a725c71235) X(0xc19bf174cf692694) \
    X(0xe49b69c19ef14ad2) X(0xefbe4786384f25e3) X(0x0fc19dc68b8cd5b5) X(0x240ca1cc77ac9c65) \
    X(0x2de92c6f592b0275) X(0x4a7484aa6ea6e483) X(0x5cb0a9dcbd41fbd4) X(0x76f988da831153b5) \
    X(0x983e5152ee66dfab) X(0xa831c66d2db43210) X(0xb00327c898fb213f) X(0xbf597fc7beef0ee4) \
    X(0xc6e00bf33da88fc2) X(0xd5a79147930aa725) X(0x06ca6351e003826f) X(0x142929670a0e6e70) \
    X(0x27b70a8546d22ffc) X(0x2e1b21385c26c926) X(0x4d2c6dfc5ac42aed) X(0x53380d139d95b3df) \
    X(0x650a73548baf63de) X(0x766a0abb3c77b2a8) X(0x81c2c92e47edaee6) X(0x92722c851482353b) \
    X(0xa2bfe8a14cf10364) X(0xa81a664bbc423001) X(0xc24b8b70d0f89791) X(0xc76c51a30654be30) \
    X(0xd192e819d6ef5218) X(0xd69906245565a910) X(0xf40e35855771202a) X(0x106aa07032bbd1b8) \
    X(0x19a4c116b8d2d0c8) X(0x1e376c085141ab53) X(0x2748774cdf8eeb99) X(0x34b0bcb5e19b48a8) \
    X(0x391c0cb3c5c95a63) X(0x4ed8aa4ae3418acb) X(0x5b9cca4f7763e373) X(0x682e6ff3d6b2b8a3) \
    X(0x748f82ee5defb2fc) X(0x78a5636f43172f60) X(0x84c87814a1f0ab72) X(0x8cc702081a6439ec) \
    X(0x90befffa23631e28) X(0xa4506cebde82bde9) X(0xbef9a3f7b2c67915) X(0xc67178f2e372532b)
#define SHA2_CUBE_ROOTS_16(X) \
    X(0xca273eceea26619c) X(0xd186b8c721c0c207) X(0xeada7dd6cde0eb1e) X(0xf57d4f7fee6ed178) \
    X(0x06f067aa72176fba) X(0x0a637dc5a2c898a6) X(0x113f9804bef90dae) X(0x1b710b35131c471b) \
    X(0x28db77f523047d84) X(0x32caab7b40c72493) X(0x3c9ebe0a15c9bebc) X(0x431d67c49c100d4c) \
    X(0x4cc5d4becb3e42b6) X(0x597f299cfc657e2a) X(0x5fcb6fab3ad6faec) X(0x6c44198c4a475817)

/* FIPS 180-4, 5.3: of the square roots of the first eight primes, and of the next eight */
#define SHA2_SQUARE_ROOTS_LOW(X) \
    X(0x6a09e667f3bcc908) X(0xbb67ae8584caa73b) X(0x3c6ef372fe94f82b) X(0xa54ff53a5f1d36f1) \
    X(0x510e527fade682d1) X(0x9b05688c2b3e6c1f) X(0x1f83d9abfb41bd6b) X(0x5be0cd19137e2179)
#define SHA2_SQUARE_ROOTS_HIGH(X) \
    X(0xcbbb9d5dc1059ed8) X(0x629a292a367cd507) X(0x9159015a3070dd17) X(0x152fecd8f70e5939) \
    X(0x67332667ffc00b31) X(0x8eb44a8768581511) X(0xdb0c2e0d64f98fa7) X(0x47b5481dbefa4fa4)
/* clang-format on */

/* FIPS 180-4, 4.2.1 */
#define SHA1_K(round) \
    ((round) < 20 ? 0x5a827999u : (round) < 40 ? 0x6ed9eba1u : (round) < 60 ? 0x8f1bbcdcu : 0xca62c1d6u)

/* XXH3 (xxh3.h): the first prime of 32 bits, and where the key of what is the last begins in the secret. */
#define XXH3_PRIME32_1 0x9e3779b1u
#define XXH3_LAST_SECRET 128

#pragma GCC visibility push(hidden)
extern const uint32_t hash_md5_k[64];
extern const uint32_t hash_md5_k_of_word[64]; /* the same, each round in the order of the words it goes with */
extern const uint32_t hash_sha256_k[64];
extern const uint64_t hash_sha512_k[80];
extern const unsigned char hash_xxh3_secret[192];
#pragma GCC visibility pop

#endif
