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
#define FUNCTION md5_sha256_8
#define SHA_BITS 32
#define BYTES 32
#define CHAINS 1
#include "pair_lanes.h"
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

void hash_enter_avx2(struct hash_kernels *k, unsigned features)
{
    (void)features;
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
