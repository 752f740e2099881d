/* SPDX-License-Identifier: Apache-2.0
 *
 * One stream in plain C, and md5 beside a SHA of the same stream: md5 is bound by its latency and leaves most
 * of the processor idle.  Included by each instruction set that makes more of it than the one before.
 */
#include "scalar.h"

#define MD5_KEPT IN_SCALAR
#define SHA_KEPT IN_SCALAR
/* Every sum of a SHA-2 round where it is written: SHA-512 0.68 to 0.71 GB/s, md5 beside it 1 % faster (Zen 3).  Lanes lose
 * 2 % by it. */
#undef SHA_KEEP
#define SHA_KEEP(x) KEEP(x, SHA_KEPT)
#define MD5_EACH EACH1
#define MD5_XK SCALAR_XK
#define SHA_EACH EACH1
#define SHA_WK(i) w[(i) % 16][n] + SHA1_K(i)

static void md5_one(union hash_state *s, const unsigned char *data, size_t blocks)
{
    uint32_t md5[4][1];
    COPY(md5[i][0], s->w32[i], 4)
    for (; blocks > 0; blocks--, data += 64) {
        uint32_t old[4] = { md5[0][0], md5[1][0], md5[2][0], md5[3][0] };
        REPEAT16(MD5_STEP, 0)
        REPEAT16(MD5_STEP, 16)
        REPEAT16(MD5_STEP, 32)
        REPEAT16(MD5_STEP, 48)
        md5[0][0] += old[0], md5[1][0] += old[1], md5[2][0] += old[2], md5[3][0] += old[3];
    }
    COPY(s->w32[i], md5[i][0], 4)
}

static void sha1_one(union hash_state *s, const unsigned char *data, size_t blocks)
{
    uint32_t sha[5][1], w[16][1];
    COPY(sha[i][0], s->w32[i], 5)
    for (; blocks > 0; blocks--, data += 64) {
        uint32_t old[5] = { sha[0][0], sha[1][0], sha[2][0], sha[3][0], sha[4][0] };
#define ROUND(i) w[i][0] = word_be32(data + 4 * (i)); SHA1_ROUND(i)
        REPEAT16(ROUND, 0)
#undef ROUND
#define ROUND(i) SHA1_EXPAND(i) SHA1_ROUND(i)
        REPEAT16(ROUND, 16)
        REPEAT16(ROUND, 32)
        REPEAT16(ROUND, 48)
        REPEAT16(ROUND, 64)
#undef ROUND
        sha[0][0] += old[0], sha[1][0] += old[1], sha[2][0] += old[2], sha[3][0] += old[3], sha[4][0] += old[4];
    }
    COPY(s->w32[i], sha[i][0], 5)
}

#undef SHA_WK
#define SHA_BITS 32
#include "scalar_sha2.h"
#define SHA_BITS 64
#include "scalar_sha2.h"

#undef MD5_KEPT
#undef SHA_KEPT
#undef SHA_KEEP
#define SHA_KEEP(x)
#undef MD5_EACH
#undef SHA_EACH
#undef MD5_XK
