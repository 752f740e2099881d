/* SPDX-License-Identifier: Apache-2.0
 *
 * FUNCTION: SHA-2 of SHA_BITS of many streams, on CHAINS interleaved vectors of BYTES.
 */
#define SHA_EACH LANES_EACH
#define SHA_WK(i) (w[(i) % 16][n] + k[i])

static void FUNCTION(union hash_state *const *s, const unsigned char *const *data, size_t blocks)
{
#if SHA_BITS == 32
    V32 sha[8][CHAINS], old[8][CHAINS], w[16][CHAINS];
    gather32(old, s, 8, CHAINS, BYTES);
#else
    V64 sha[8][CHAINS], old[8][CHAINS], w[16][CHAINS], raw[16];
    gather64(old, s, LANES64);
#endif
    OPAQUE(old);
    memcpy(sha, old, sizeof old);
    for (size_t at = 0; blocks > 0; blocks--, at += 2 * SHA_BITS) {
        UNROLL
        for (unsigned c = 0; c < CHAINS; c++) {
#if SHA_BITS == 32
            WORDS32(&w[0][c], CHAINS, data + c * (BYTES / 4), at, 1);
#else
            WORDS64(raw, data + c * (BYTES / 8), at);
            UNROLL
            for (unsigned i = 0; i < 16; i++)
                w[i][c] = SWAP64(raw[i]);
#endif
        }
        OPAQUE(w);
#if SHA_BITS == 32
        const uint32_t *k = hash_sha256_k;
#else
        const uint64_t *k = hash_sha512_k;
#endif
#define ROUND(i) SHA2_ROUND(i, , )
        REPEAT16(ROUND, 0)
#undef ROUND
#define ROUND(i) SHA2_EXPAND(i) SHA2_ROUND(i, , ) RING(w);
        /* A loop: 80 rounds in a row would not fit the caches of decoded instructions. */
        for (unsigned turn = 1; turn < (SHA_BITS == 32 ? 4 : 5); turn++) {
            k += 16;
            REPEAT16(ROUND, 0)
        }
#undef ROUND
#define ADD_OLD(i) LANES_EACH(sha[i][n] += old[i][n]; old[i][n] = sha[i][n]);
        REPEAT8(ADD_OLD, 0)
#undef ADD_OLD
        OPAQUE(old);
    }
#if SHA_BITS == 32
    scatter32(old, s, 8, CHAINS, BYTES);
#else
    scatter64(old, s, LANES64);
#endif
}

#undef SHA_EACH
#undef SHA_WK
#undef SHA_BITS
#undef FUNCTION
#undef BYTES
#undef CHAINS
