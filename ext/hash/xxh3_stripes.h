/* SPDX-License-Identifier: Apache-2.0
 *
 * FUNCTION: stripes of XXH3, in vectors of BYTES.
 */
static void FUNCTION(uint64_t acc[8], const unsigned char *data, size_t stripes, unsigned at)
{
    enum { VECTORS_EACH = XXH3_STRIPE / BYTES };
    V64 a[VECTORS_EACH];
    memcpy(a, acc, sizeof a);
    while (stripes > 0) {
        size_t run = XXH3_STRIPES - at < stripes ? XXH3_STRIPES - at : stripes;
        const unsigned char *secret = hash_xxh3_secret + 8 * at;
        stripes -= run;
        at += (unsigned)run;
        for (; run > 0; run--, data += XXH3_STRIPE, secret += 8) {
            UNROLL
            for (unsigned i = 0; i < VECTORS_EACH; i++) {
                V64 x = PASTE(load_, BYTES)(data + i * BYTES), keyed = x ^ PASTE(load_, BYTES)(secret + i * BYTES);
                a[i] += PASTE(SWAPPED_, BYTES)(x) + PASTE(PRODUCT_, BYTES)(keyed);
            }
        }
        if (at < XXH3_STRIPES)
            break;
        at = 0;
        UNROLL
        for (unsigned i = 0; i < VECTORS_EACH; i++)
            a[i] = (a[i] ^ a[i] >> 47 ^ PASTE(load_, BYTES)(hash_xxh3_secret + XXH3_LAST_SECRET + i * BYTES)) * XXH3_PRIME32_1;
    }
    memcpy(acc, a, sizeof a);
}

#undef FUNCTION
#undef BYTES
