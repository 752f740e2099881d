/* SPDX-License-Identifier: Apache-2.0
 *
 * FUNCTION: SHA-1 of many streams, on CHAINS interleaved vectors of BYTES.
 */
#define SHA_EACH LANES_EACH
#define SHA_WK(i) (w[(i) % 16][n] + SHA1_K(i))

static void FUNCTION(union hash_state *const *s, const unsigned char *const *data, size_t blocks)
{
    V32 sha[5][CHAINS], old[5][CHAINS], w[16][CHAINS];
    gather32(old, s, 5, CHAINS, BYTES);
    OPAQUE(old);
    memcpy(sha, old, sizeof old);
    for (size_t at = 0; blocks > 0; blocks--, at += 64) {
        for (unsigned c = 0; c < CHAINS; c++)
            WORDS32(&w[0][c], CHAINS, data + c * (BYTES / 4), at, 1);
        OPAQUE(w);
        REPEAT16(SHA1_ROUND, 0)
#define ROUND(i) SHA1_EXPAND(i) SHA1_ROUND(i) RING(w);
        REPEAT16(ROUND, 16)
        REPEAT16(ROUND, 32)
        REPEAT16(ROUND, 48)
        REPEAT16(ROUND, 64)
#undef ROUND
#define ADD_OLD(i) LANES_EACH(sha[i][n] += old[i][n]; old[i][n] = sha[i][n]);
        REPEAT4(ADD_OLD, 0)
        ADD_OLD(4)
#undef ADD_OLD
        OPAQUE(old);
    }
    scatter32(old, s, 5, CHAINS, BYTES);
}

#undef SHA_EACH
#undef SHA_WK
#undef FUNCTION
#undef BYTES
#undef CHAINS
