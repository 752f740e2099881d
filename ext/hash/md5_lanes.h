/* SPDX-License-Identifier: Apache-2.0
 *
 * FUNCTION: md5 of many streams, on CHAINS interleaved vectors of BYTES.
 */
#define MD5_EACH LANES_EACH
#define MD5_XK(i) (x[MD5_WORD(i)][n] + hash_md5_k[i])

static void FUNCTION(union hash_state *const *s, const unsigned char *const *data, size_t blocks)
{
    V32 md5[4][CHAINS], old[4][CHAINS], x[16][CHAINS];
    gather32(old, s, 4, CHAINS, BYTES);
    OPAQUE(old);
    memcpy(md5, old, sizeof old);
    for (size_t at = 0; blocks > 0; blocks--, at += 64) {
        for (unsigned c = 0; c < CHAINS; c++)
            WORDS32(&x[0][c], CHAINS, data + c * (BYTES / 4), at, 0);
        OPAQUE(x);
        REPEAT16(MD5_STEP, 0)
        REPEAT16(MD5_STEP, 16)
        REPEAT16(MD5_STEP, 32)
        REPEAT16(MD5_STEP, 48)
#define ADD_OLD(i) LANES_EACH(md5[i][n] += old[i][n]; old[i][n] = md5[i][n]);
        REPEAT4(ADD_OLD, 0)
#undef ADD_OLD
        OPAQUE(old);
    }
    scatter32(old, s, 4, CHAINS, BYTES);
}

#undef MD5_EACH
#undef MD5_XK
#undef FUNCTION
#undef BYTES
#undef CHAINS
