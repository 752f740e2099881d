/* SPDX-License-Identifier: Apache-2.0
 *
 * FUNCTION: md5 and SHA-2 of SHA_BITS of the same many streams, the SHA on CHAINS vectors of BYTES.  md5's own
 * chain is hidden among the SHA's instructions, and the message is transposed once for both.  Beside SHA-512
 * md5 has one vector of MD5_BYTES: what the lanes fill, at least 16.
 */
#define SHA_EACH LANES_EACH
#if SHA_BITS == 32
#define SHA_WK(i) (w[(i) % 16][n] + k[i])
#else
#define SHA_WK(i) (r[i][n] + k[i])
#endif
#define MD5_XK(i) (x[MD5_WORD(i)][n] + hash_md5_k[i])
#if SHA_BITS == 32
#define MD5_EACH LANES_EACH
#define MD5_CHAINS CHAINS
#define MD5_BYTES BYTES
#else
#define MD5_EACH EACH1
#define MD5_CHAINS 1
#endif
#define MD5_V PASTE(v32_, MD5_BYTES)

#if SHA_BITS == 64
/* Word i of the schedule, from those before it. */
#define EXPANDED(w, i) (w[(i) - 16][n] + SHA2_SIGMA0(w[(i) - 15][n]) + w[(i) - 7][n] + SHA2_SIGMA1(w[(i) - 2][n]))

/* The 128 bytes at `at` of every stream: as the first words of a schedule, and as md5's.  Not inlined, for it is called at
 * two places: 16 lanes in 30 KB of code ran at 2.0 to 6.0 GB/s, by where in memory the code happened to lie; 25 KB mostly fit
 * the caches of instructions. */
static __attribute__((noinline)) void PASTE(FUNCTION, _words)(V64 (*w)[CHAINS], MD5_V (*x)[1],
                                                             const unsigned char *const *data, size_t at)
{
    V64 raw[16][CHAINS], row[16];
    UNROLL
    for (unsigned c = 0; c < CHAINS; c++) {
        WORDS64(row, data + c * (BYTES / 8), at);
        UNROLL
        for (unsigned i = 0; i < 16; i++)
            raw[i][c] = row[i], w[i][c] = SWAP64(row[i]);
    }
    OPAQUE(raw);
    UNROLL
    for (unsigned i = 0; i < 16; i++) {
        const unsigned char *half = (const unsigned char *)raw[i];
        MD5_V a = (MD5_V)PASTE(load_, MD5_BYTES)(half);
        MD5_V b = (MD5_V)PASTE(load_, MD5_BYTES)(half + CHAINS * BYTES - MD5_BYTES);
        x[2 * i][0] = PASTE(EVEN_, MD5_BYTES)(a, b);
        x[2 * i + 1][0] = PASTE(ODD_, MD5_BYTES)(a, b);
    }
}
#endif

static void FUNCTION(union hash_state *const *m, union hash_state *const *s, const unsigned char *const *data,
                     size_t units)
{
    MD5_V md5[4][MD5_CHAINS], old_md5[4][MD5_CHAINS];
#if SHA_BITS == 32
    V32 sha[8][CHAINS], old[8][CHAINS], w[16][CHAINS], x[16][CHAINS];
    gather32(old_md5, m, 4, CHAINS, BYTES);
    gather32(old, s, 8, CHAINS, BYTES);
#else
    V64 sha[8][CHAINS], old[8][CHAINS], schedule[2][80][CHAINS];
    MD5_V words[2][32][1];
    union hash_state *all[MD5_BYTES / 4];
    for (unsigned i = 0; i < MD5_BYTES / 4; i++)
        all[i] = m[i % LANES64];
    gather32(old_md5, all, 4, 1, MD5_BYTES);
    gather64(old, s, LANES64);
#endif
    OPAQUE(old_md5);
    OPAQUE(old);
    memcpy(md5, old_md5, sizeof md5);
    memcpy(sha, old, sizeof sha);
#define ADD_OLD(i) SHA_EACH(sha[i][n] += old[i][n]; old[i][n] = sha[i][n]);
#define ADD_OLD_MD5(i) MD5_EACH(md5[i][n] += old_md5[i][n]; old_md5[i][n] = md5[i][n]);
#if SHA_BITS == 32
    size_t end = units * HASH_UNIT;
    for (size_t at = 0; at < end; at += 64) {
        UNROLL
        for (unsigned c = 0; c < CHAINS; c++) {
            WORDS32(&x[0][c], CHAINS, data + c * (BYTES / 4), at, 0);
            UNROLL
            for (unsigned i = 0; i < 16; i++)
                w[i][c] = SWAP32(x[i][c]);
        }
        OPAQUE(x);
        OPAQUE(w);
        const uint32_t *k = hash_sha256_k;
#define ROUND(i) SHA2_ROUND(i, MD5_STEP(i), )
        REPEAT16(ROUND, 0)
#undef ROUND
#define ROUND(i) SHA2_EXPAND(i) SHA2_ROUND(i, MD5_STEP(i), ) RING(w);
        REPEAT16(ROUND, 16)
        REPEAT16(ROUND, 32)
        REPEAT16(ROUND, 48)
#undef ROUND
        REPEAT4(ADD_OLD_MD5, 0)
        REPEAT8(ADD_OLD, 0)
        OPAQUE(old_md5);
        OPAQUE(old);
    }
    scatter32(old_md5, m, 4, CHAINS, BYTES);
    scatter32(old, s, 8, CHAINS, BYTES);
#else
    V64(*r)[CHAINS] = schedule[0];
    MD5_V(*x)[1] = words[0];
    if (units > 0) {
        PASTE(FUNCTION, _words)(r, x, data, 0);
        for (unsigned i = 16; i < 48; i++)
            SHA_EACH(r[i][n] = EXPANDED(r, i));
    }
    for (size_t at = 0, next = 1; units > 0; units--, next = 1 - next) {
        /* Two halves of 40 rounds and 64 steps, in one loop.  The schedule is 48 words ahead of the rounds, in the
         * second half already in the next unit, so that nothing ever waits for it: 8 lanes 3.8 instead of 3.3 GB/s, 4
         * lanes 2.0 instead of 1.25 (Zen 5). */
        const uint64_t *k = hash_sha512_k;
        V64(*e)[CHAINS] = r + 48;
        for (unsigned half = 0; half < 2; half++) {
#define STEPS_BEFORE(i) ((i) * 8 / 5)
#define SECOND_STEP(i) if (STEPS_BEFORE(i) + 1 < STEPS_BEFORE((i) + 1)) MD5_STEP(STEPS_BEFORE(i) + 1)
#define ROUND(i)                                                                   \
    if ((i) % 5 < 4)                                                               \
        SHA_EACH(e[(i) / 5 * 4 + (i) % 5][n] = EXPANDED(e, (i) / 5 * 4 + (i) % 5)); \
    SHA2_ROUND(i, MD5_STEP(STEPS_BEFORE(i)), SECOND_STEP(i))
            REPEAT16(ROUND, 0)
            REPEAT16(ROUND, 16)
            REPEAT8(ROUND, 32)
#undef ROUND
            REPEAT4(ADD_OLD_MD5, 0)
            OPAQUE(old_md5);
            r += 40;
            k += 40;
            x += 16;
            if (half == 0) {
                if (units > 1) /* else what is there once more, for nobody */
                    at += HASH_UNIT;
                PASTE(FUNCTION, _words)(schedule[next], words[next], data, at);
                e = schedule[next] + 16;
            }
        }
        r = schedule[next];
        x = words[next];
        REPEAT8(ADD_OLD, 0)
        OPAQUE(old);
    }
    scatter32(old_md5, all, 4, 1, MD5_BYTES);
    scatter64(old, s, LANES64);
#endif
#undef ADD_OLD
#undef ADD_OLD_MD5
}

#undef EXPANDED
#undef STEPS_BEFORE
#undef SECOND_STEP
#undef SHA_EACH
#undef SHA_WK
#undef SHA_BITS
#undef MD5_EACH
#undef MD5_XK
#undef MD5_V
#undef MD5_CHAINS
#undef MD5_BYTES
#undef FUNCTION
#undef BYTES
#undef CHAINS
