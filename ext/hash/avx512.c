/* SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "cpu.h"
#include "kernels.h"

#define TARGET "avx512f,avx512vl,avx512bw,avx512dq,avx2,bmi,bmi2"
#include "target.h"

#define WIDE_32
#define WIDE_64
#define STITCH_VECTOR
#include "lanes.h"
#include "scalar_kernels.h"
#include "ternary.h"

#define RING(w) OPAQUE(w)
#define MD5_KEPT IN_VECTOR
#define SHA_KEPT IN_VECTOR

#define FUNCTION md5_8
#define BYTES 32
#define CHAINS 1
#include "md5_lanes.h"
#define FUNCTION md5_16
#define BYTES 64
#define CHAINS 1
#include "md5_lanes.h"
#define FUNCTION md5_32
#define BYTES 64
#define CHAINS 2
#include "md5_lanes.h"
#define FUNCTION md5_48
#define BYTES 64
#define CHAINS 3
#include "md5_lanes.h"
#define FUNCTION sha1_8
#define BYTES 32
#define CHAINS 1
#include "sha1_lanes.h"
#define FUNCTION sha1_16
#define BYTES 64
#define CHAINS 1
#include "sha1_lanes.h"
#define FUNCTION sha256_8
#define SHA_BITS 32
#define BYTES 32
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION sha256_16
#define SHA_BITS 32
#define BYTES 64
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION sha256_32
#define SHA_BITS 32
#define BYTES 64
#define CHAINS 2
#include "sha2_lanes.h"
#define FUNCTION sha512_2
#define SHA_BITS 64
#define BYTES 16
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION sha512_4
#define SHA_BITS 64
#define BYTES 32
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION sha512_8
#define SHA_BITS 64
#define BYTES 64
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION sha512_16
#define SHA_BITS 64
#define BYTES 64
#define CHAINS 2
#include "sha2_lanes.h"
#define FUNCTION md5_sha256_4
#define SHA_BITS 32
#define BYTES 16
#define CHAINS 1
#include "pair_lanes.h"
#define FUNCTION md5_sha256_8
#define SHA_BITS 32
#define BYTES 32
#define CHAINS 1
#include "pair_lanes.h"
#define FUNCTION md5_sha256_16
#define SHA_BITS 32
#define BYTES 64
#define CHAINS 1
#include "pair_lanes.h"
#define FUNCTION md5_sha256_32
#define SHA_BITS 32
#define BYTES 64
#define CHAINS 2
#include "pair_lanes.h"
#define FUNCTION md5_sha512_2
#define SHA_BITS 64
#define BYTES 16
#define MD5_BYTES 16
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
#define BYTES 64
#define MD5_BYTES 32
#define CHAINS 1
#include "pair_lanes.h"
#define FUNCTION md5_sha512_16
#define SHA_BITS 64
#define BYTES 64
#define MD5_BYTES 64
#define CHAINS 2
#include "pair_lanes.h"
#define FUNCTION xxh3
#define BYTES 64
#include "xxh3_stripes.h"

void hash_enter_avx512(struct hash_kernels *k, unsigned features)
{
    k->xxh3 = xxh3;
    k->one[HASH_MD5] = md5_one;
    k->one[HASH_SHA1] = sha1_one;
    k->one[HASH_SHA256] = sha256_one;
    k->one[HASH_SHA512] = sha512_one;
    k->pair[HASH_SHA256] = sha256_pair;
    k->pair[HASH_SHA512] = (features & CPU_QUICK_VECTOR) != 0 ? sha512_pair_vector : sha512_pair;
    ENTER_LANES(k, HASH_MD5, { 8, 2, md5_8 }, { 16, 9, md5_16 }, { 32, 17, md5_32 }, { 48, 33, md5_48 });
    ENTER_LANES(k, HASH_SHA1, { 8, 2, sha1_8 }, { 16, 9, sha1_16 });
    ENTER_LANES(k, HASH_SHA256, { 8, 2, sha256_8 }, { 16, 9, sha256_16 }, { 32, 17, sha256_32 });
    ENTER_LANES(k, HASH_SHA512, { 2, 2, sha512_2 }, { 4, 3, sha512_4 }, { 8, 5, sha512_8 }, { 16, 9, sha512_16 });
    ENTER_PAIR_LANES(k, HASH_SHA256, { 4, 2, md5_sha256_4 }, { 8, 5, md5_sha256_8 }, { 16, 9, md5_sha256_16 }, { 32, 17, md5_sha256_32 });
    ENTER_PAIR_LANES(k, HASH_SHA512, { 2, 2, md5_sha512_2 }, { 4, 3, md5_sha512_4 }, { 8, 5, md5_sha512_8 }, { 16, 9, md5_sha512_16 });
}

#include "target_end.h"
#endif
