/* SPDX-License-Identifier: Apache-2.0
 *
 * SHA-1 and SHA-256 of CHAINS streams, one or two, by the instructions made for them.
 */
#define SHA_EACH LANES_EACH
#define SHANI_DATA (data[n] + at)

static void PASTE(sha1_ni_, CHAINS)(union hash_state *const *s, const unsigned char *const *data, size_t blocks)
{
    __m128i abcd[CHAINS], e[CHAINS], w[4][CHAINS], old[CHAINS], old_e[CHAINS];
    SHA_EACH(abcd[n] = _mm_shuffle_epi32(_mm_load_si128((const __m128i *)s[n]->w32), 0x1b);
             e[n] = _mm_set_epi32((int)s[n]->w32[4], 0, 0, 0));
    for (size_t at = 0; blocks > 0; blocks--, at += 64) {
        SHA_EACH(old[n] = abcd[n]; old_e[n] = e[n]);
        REPEAT16(SHANI1_FOUR, 0)
        REPEAT4(SHANI1_FOUR, 16)
        SHA_EACH(e[n] = _mm_sha1nexte_epu32(e[n], old_e[n]); abcd[n] = _mm_add_epi32(abcd[n], old[n]));
    }
    SHA_EACH(_mm_store_si128((__m128i *)s[n]->w32, _mm_shuffle_epi32(abcd[n], 0x1b));
             s[n]->w32[4] = (uint32_t)_mm_extract_epi32(e[n], 3));
}

static void PASTE(sha256_ni_, CHAINS)(union hash_state *const *s, const unsigned char *const *data, size_t blocks)
{
    __m128i abef[CHAINS], cdgh[CHAINS], w[4][CHAINS], old[2][CHAINS];
    SHA_EACH(shani_load(&abef[n], &cdgh[n], s[n]));
    for (size_t at = 0; blocks > 0; blocks--, at += 64) {
        SHA_EACH(old[0][n] = abef[n]; old[1][n] = cdgh[n]);
        REPEAT16(SHANI_FOUR, 0)
        SHA_EACH(abef[n] = _mm_add_epi32(abef[n], old[0][n]); cdgh[n] = _mm_add_epi32(cdgh[n], old[1][n]));
    }
    SHA_EACH(shani_store(abef[n], cdgh[n], s[n]));
}

#undef SHA_EACH
#undef SHANI_DATA
#undef CHAINS
