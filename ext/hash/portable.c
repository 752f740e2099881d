/* SPDX-License-Identifier: Apache-2.0
 *
 * What every processor runs: on x86-64 that is SSE2, on aarch64 NEON.
 */
#include "kernels.h"
#include "lanes.h"
#include "scalar_kernels.h"

#define RING(w) OPAQUE(w)
#define MD5_KEPT IN_VECTOR
#define SHA_KEPT IN_VECTOR

#define FUNCTION md5_4
#define BYTES 16
#define CHAINS 1
#include "md5_lanes.h"
#define FUNCTION md5_8
#define BYTES 16
#define CHAINS 2
#include "md5_lanes.h"
#define FUNCTION sha1_4
#define BYTES 16
#define CHAINS 1
#include "sha1_lanes.h"
#define FUNCTION sha256_4
#define SHA_BITS 32
#define BYTES 16
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION sha512_2
#define SHA_BITS 64
#define BYTES 16
#define CHAINS 1
#include "sha2_lanes.h"
#define FUNCTION md5_sha256_4
#define SHA_BITS 32
#define BYTES 16
#define CHAINS 1
#include "pair_lanes.h"
#define FUNCTION md5_sha512_2
#define SHA_BITS 64
#define BYTES 16
#define MD5_BYTES 16
#define CHAINS 1
#include "pair_lanes.h"
#define FUNCTION md5_sha512_4
#define SHA_BITS 64
#define BYTES 16
#define MD5_BYTES 16
#define CHAINS 2
#include "pair_lanes.h"
#define FUNCTION xxh3
#define BYTES 16
#include "xxh3_stripes.h"

void hash_enter_portable(struct hash_kernels *k, unsigned features)
{
    (void)features;
    k->xxh3 = xxh3;
    k->one[HASH_MD5] = md5_one;
    k->one[HASH_SHA1] = sha1_one;
    k->one[HASH_SHA256] = sha256_one;
    k->one[HASH_SHA512] = sha512_one;
    k->pair[HASH_SHA256] = sha256_pair;
    k->pair[HASH_SHA512] = sha512_pair;
    ENTER_LANES(k, HASH_MD5, { 4, 2, md5_4 }, { 8, 5, md5_8 });
    ENTER_LANES(k, HASH_SHA1, { 4, NEVER, sha1_4 });
    ENTER_LANES(k, HASH_SHA256, { 4, NEVER, sha256_4 });
    ENTER_LANES(k, HASH_SHA512, { 2, NEVER, sha512_2 });
    ENTER_PAIR_LANES(k, HASH_SHA256, { 4, NEVER, md5_sha256_4 });
    ENTER_PAIR_LANES(k, HASH_SHA512, { 2, NEVER, md5_sha512_2 }, { 4, NEVER, md5_sha512_4 });
}
