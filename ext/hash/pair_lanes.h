/* SPDX-License-Identifier: Apache-2.0
 *
 * FUNCTION: md5 and SHA-2 of SHA_BITS of the same many streams, the SHA on CHAINS vectors of BYTES.  md5's own
 * chain is hidden among the SHA's instructions, and the message is transposed once for both.  Beside SHA-512
 * md5 has one vector of MD5_BYTES: what the lanes fill, at least 16.
 */
#define SHA_EACH LANES_EACH
#define SHA_WK(i) (w[(i) % 16][n] + k[i])
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

static void FUNCTION(union hash_state *const *m, union hash_state *const *s, const unsigned char *const *data,
                     size_t units)
{
    MD5_V md5[4][MD5_CHAINS], old_md5[4][MD5_CHAINS];
#if SHA_BITS == 32
    V32 sha[8][CHAINS], old[8][CHAINS], w[16][CHAINS], x[16][CHAINS];
    gather32(old_md5, m, 4, CHAINS, BYTES);
    gather32(old, s, 8, CHAINS, BYTES);
#else
    V64 sha[8][CHAINS], old[8][CHAINS], w[16][CHAINS], raw[16][CHAINS], row[16];
    MD5_V words[32][1];
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
    for (size_t at = 0; units > 0; units--, at += HASH_UNIT) {
        UNROLL
        for (unsigned c = 0; c < CHAINS; c++) {
            WORDS64(row, data + c * (BYTES / 8), at);
            UNROLL
            for (unsigned i = 0; i < 16; i++)
                raw[i][c] = row[i], w[i][c] = SWAP64(row[i]);
        }
        OPAQUE(raw);
        OPAQUE(w);
        UNROLL
        for (unsigned i = 0; i < 16; i++) {
            const unsigned char *half = (const unsigned char *)raw[i];
            MD5_V a = (MD5_V)PASTE(load_, MD5_BYTES)(half);
            MD5_V b = (MD5_V)PASTE(load_, MD5_BYTES)(half + CHAINS * BYTES - MD5_BYTES);
            words[2 * i][0] = PASTE(EVEN_, MD5_BYTES)(a, b);
            words[2 * i + 1][0] = PASTE(ODD_, MD5_BYTES)(a, b);
        }
        OPAQUE(words);
        const uint64_t *k = hash_sha512_k;
#define ROUND(i) SHA2_ROUND(i, , )
        REPEAT16(ROUND, 0)
#undef ROUND
        MD5_V(*x)[1] = words;
        for (unsigned half = 0; half < 2; half++) {
#define ROUND(i) SHA2_EXPAND(i) SHA2_ROUND(i, MD5_STEP(2 * (i)), MD5_STEP(2 * (i) + 1)) RING(w);
            k += 16;
            REPEAT16(ROUND, 0)
#undef ROUND
#define ROUND(i) SHA2_EXPAND(i) SHA2_ROUND(i, MD5_STEP(2 * (i) + 32), MD5_STEP(2 * (i) + 33)) RING(w);
            k += 16;
            REPEAT16(ROUND, 0)
#undef ROUND
            x += 16;
            REPEAT4(ADD_OLD_MD5, 0)
            OPAQUE(old_md5);
        }
        REPEAT8(ADD_OLD, 0)
        OPAQUE(old);
    }
    scatter32(old_md5, all, 4, 1, MD5_BYTES);
    scatter64(old, s, LANES64);
#endif
#undef ADD_OLD
#undef ADD_OLD_MD5
}

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
