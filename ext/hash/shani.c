/* SPDX-License-Identifier: Apache-2.0
 *
 * SHA-1 and SHA-256 where the processor has instructions for them: one stream, two, and one beside md5.
 */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "cpu.h"
#include "kernels.h"

#define TARGET "sha,sse4.1"
#include "target.h"

#include "lanes.h"
#include "scalar.h"
#include "shani.h"

#define CHAINS 1
#include "shani_lanes.h"
#define CHAINS 2
#include "shani_lanes.h"

static void sha1_ni(union hash_state *s, const unsigned char *data, size_t blocks)
{
    sha1_ni_1(&s, &data, blocks);
}

static void sha256_ni(union hash_state *s, const unsigned char *data, size_t blocks)
{
    sha256_ni_1(&s, &data, blocks);
}

#define MD5_KEPT IN_SCALAR
#define MD5_EACH EACH1
#define MD5_XK SCALAR_XK
#define SHA_EACH EACH1
#define SHANI_DATA data

/* 64 steps of md5, 16 times four rounds of SHA-256. */
static void md5_sha256_ni(union hash_state *m, union hash_state *s, const unsigned char *data, size_t units)
{
    uint32_t md5[4][1];
    __m128i abef[1], cdgh[1], w[4][1];
    COPY(md5[i][0], m->w32[i], 4)
    shani_load(&abef[0], &cdgh[0], s);
    for (size_t blocks = units * (HASH_UNIT / 64); blocks > 0; blocks--, data += 64) {
        __m128i old_abef = abef[0], old_cdgh = cdgh[0];
#define FOUR(g) SHANI_FOUR(g) MD5_STEP(4 * (g)) MD5_STEP(4 * (g) + 1) MD5_STEP(4 * (g) + 2) MD5_STEP(4 * (g) + 3)
        REPEAT16(FOUR, 0)
#undef FOUR
        COPY(m->w32[i], md5[i][0] += m->w32[i], 4)
        abef[0] = _mm_add_epi32(abef[0], old_abef), cdgh[0] = _mm_add_epi32(cdgh[0], old_cdgh);
    }
    shani_store(abef[0], cdgh[0], s);
}

void hash_enter_shani(struct hash_kernels *k, unsigned features)
{
    if ((features & CPU_SHA) == 0)
        return;
    k->one[HASH_SHA1] = sha1_ni;
    k->one[HASH_SHA256] = sha256_ni;
    k->pair[HASH_SHA256] = md5_sha256_ni;
    ENTER_LANES(k, HASH_SHA1, { 2, 2, sha1_ni_2 });
    ENTER_LANES(k, HASH_SHA256, { 2, 2, sha256_ni_2 });
}

#include "target_end.h"
#endif
