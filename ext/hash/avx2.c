/* SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "kernels.h"

#define TARGET "avx2,bmi,bmi2"
#include "target.h"

#define WIDE_32
#include "lanes.h"
#include "scalar_kernels.h"

#define RING(w) OPAQUE(w)
#define MD5_KEPT IN_VECTOR
#define SHA_KEPT IN_VECTOR

#define FUNCTION md5_8
#define BYTES 32
#define CHAINS 1
#include "md5_lanes.h"
#define FUNCTION md5_16
#define BYTES 32
#define CHAINS 2
#include "md5_lanes.h"
#define FUNCTION md5_24
#define BYTES 32
#define CHAINS 3
#include "md5_lanes.h"
#define FUNCTION sha1_8
#define BYTES 32
#define CHAINS 1
#include "sha1_lanes.h"
#define FUNCTION sha256_8
#define SHA_BITS 32
#define BYTES 32
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION md5_sha256_8
#define SHA_BITS 32
#define BYTES 32
#define CHAINS 1
#include "pair_lanes.h"

/* One of SHA-512's rotations is by 8 bits: one shuffle instead of two shifts and their union.  In this order, which the
 * compiler keeps: 1.27 to 1.31 GB/s with 4 lanes of SHA-512 (Zen 3 at 3.0 GHz; 1.5 if its vector units never waited).
 * With the shuffle first it is slower than without. */
INLINE v64_32 rotated_by_8(v64_32 x)
{
    v8_32 v = (v8_32)x;
#define BYTES_ROTATED(i) (i) + 1, (i) + 2, (i) + 3, (i) + 4, (i) + 5, (i) + 6, (i) + 7, (i)
    return (v64_32)SHUFFLE(8, 32, v, v, BYTES_ROTATED(0), BYTES_ROTATED(8), BYTES_ROTATED(16), BYTES_ROTATED(24));
}
#undef SHA2_SIGMA0
#define SHA2_SIGMA0(x) ((x) >> 1 ^ rotated_by_8(x) ^ (x) >> 7 ^ (x) << 63)

#define FUNCTION sha512_4
#define SHA_BITS 64
#define BYTES 32
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION sha512_8
#define SHA_BITS 64
#define BYTES 32
#define CHAINS 2
#include "sha2_lanes.h"
#define FUNCTION md5_sha512_4
#define SHA_BITS 64
#define BYTES 32
#define MD5_BYTES 16
#define CHAINS 1
#include "pair_lanes.h"
#define FUNCTION md5_sha512_8
#define SHA_BITS 64
#define BYTES 32
#define MD5_BYTES 32
#define CHAINS 2
#include "pair_lanes.h"
#define FUNCTION xxh3
#define BYTES 32
#include "xxh3_stripes.h"

void hash_enter_avx2(struct hash_kernels *k, unsigned features)
{
    (void)features;
    k->xxh3 = xxh3;
    k->one[HASH_MD5] = md5_one;
    k->one[HASH_SHA1] = sha1_one;
    k->one[HASH_SHA256] = sha256_one;
    k->one[HASH_SHA512] = sha512_one;
    k->pair[HASH_SHA256] = sha256_pair;
    k->pair[HASH_SHA512] = sha512_pair;
    ENTER_LANES(k, HASH_MD5, { 8, 2, md5_8 }, { 16, 9, md5_16 }, { 24, 17, md5_24 });
    ENTER_LANES(k, HASH_SHA1, { 8, 2, sha1_8 });
    ENTER_LANES(k, HASH_SHA256, { 8, 2, sha256_8 });
    ENTER_LANES(k, HASH_SHA512, { 4, 2, sha512_4 }, { 8, 5, sha512_8 });
    ENTER_PAIR_LANES(k, HASH_SHA256, { 8, 2, md5_sha256_8 });
    ENTER_PAIR_LANES(k, HASH_SHA512, { 4, 2, md5_sha512_4 }, { 8, 5, md5_sha512_8 });
}

#include "target_end.h"
#endif
