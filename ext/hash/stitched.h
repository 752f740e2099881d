/* SPDX-License-Identifier: Apache-2.0
 *
 * FUNCTION: md5 and SHA-2 of SHA_BITS of one stream, the steps of the one among the rounds of the other, md5 on
 * words of MD5_TYPE.  Part of scalar_sha2.h.
 */
/* 128 bytes are 128 steps of md5 and 80 rounds of SHA-512: 8 steps to 5 rounds; 64 bytes are 64 of both. */
#define STEPS_BEFORE(i) (SHA_BITS == 32 ? (i) : (i) * 8 / 5)
#define STEP(i)                            \
    {                                      \
        if ((i) == 64)                     \
            ADD_OLD_MD5;                   \
        enum { at = (i) / 64 * 64 };       \
        MD5_STEP((i) % 64)                 \
    }
#define ADD_OLD_MD5                        \
    UNROLL                                 \
    for (unsigned i = 0; i < 4; i++)       \
        md5[i][0] += m->w32[i], memcpy(&m->w32[i], &md5[i][0], 4)
#define SECOND_STEP(i)                                        \
    if (STEPS_BEFORE(i) + 1 < STEPS_BEFORE((i) + 1))          \
        STEP(STEPS_BEFORE(i) + 1)
#define PAIR_ROUND(i) SHA2_ROUND(i, STEP(STEPS_BEFORE(i)), SECOND_STEP(i))
#undef MD5_XK
#define MD5_XK(i) xk[at + (i) / 16 * 16 + MD5_WORD(i)]

static void FUNCTION(union hash_state *m, union hash_state *s, const unsigned char *data, size_t units)
{
    MD5_TYPE md5[4][1];
    uint32_t xk[BLOCK];
    WORD sha[8][1];
    SCHEDULE;
    COPY(md5[i][0], (MD5_TYPE){ 0 } + m->w32[i], 4)
    COPY(sha[i][0], s->STATE[i], 8)
    for (size_t blocks = units * (HASH_UNIT / BLOCK); blocks > 0; blocks--, data += BLOCK) {
        for (unsigned i = 0; i < BLOCK; i += 64)
            md5_sums(xk + i, data + i);
        OPAQUE(xk);
        FIRST
#define ROUND(i) FRESH(i) PAIR_ROUND(i) AHEAD(i)
        REPEAT16(ROUND, 0)
#undef ROUND
#define ROUND(i) EXPAND(i) PAIR_ROUND(i) AHEAD(i)
        REPEAT16(ROUND, 16)
        REPEAT16(ROUND, 32)
        REPEAT16(ROUND, 48)
#if SHA_BITS == 64
        REPEAT16(ROUND, 64)
#endif
#undef ROUND
        ADD_OLD_MD5;
        REPEAT8(ADD_OLD, 0)
    }
}

#undef MD5_TYPE
#undef FUNCTION
#undef STEPS_BEFORE
#undef STEP
#undef ADD_OLD_MD5
#undef SECOND_STEP
#undef PAIR_ROUND
