/* SPDX-License-Identifier: Apache-2.0
 *
 * FUNCTION: stripes of XXH3, in vectors of BYTES.
 */
#define STRIPE(data, secret)                                                                        \
    UNROLL                                                                                          \
    for (unsigned i = 0; i < VECTORS_EACH; i++) {                                                   \
        V64 x = PASTE(load_, BYTES)((data) + i * BYTES), keyed = x ^ PASTE(load_, BYTES)((secret) + i * BYTES); \
        a[i] += PASTE(SWAPPED_, BYTES)(x) + PASTE(PRODUCT_, BYTES)(keyed);                          \
    }
#define SCRAMBLE                                                                                    \
    UNROLL                                                                                          \
    for (unsigned i = 0; i < VECTORS_EACH; i++)                                                     \
        a[i] = (a[i] ^ a[i] >> 47 ^ PASTE(load_, BYTES)(hash_xxh3_secret + XXH3_LAST_SECRET + i * BYTES)) * XXH3_PRIME32_1;

static void FUNCTION(uint64_t acc[8], const unsigned char *data, size_t stripes, unsigned at)
{
    enum { VECTORS_EACH = XXH3_STRIPE / BYTES };
    V64 a[VECTORS_EACH];
    memcpy(a, acc, sizeof a);
    for (; stripes > 0 && (at > 0 || stripes < XXH3_STRIPES); stripes--, data += XXH3_STRIPE) {
        STRIPE(data, hash_xxh3_secret + 8 * at);
        if (++at == XXH3_STRIPES) {
            SCRAMBLE
            at = 0;
        }
    }
    for (; stripes >= XXH3_STRIPES; stripes -= XXH3_STRIPES, data += XXH3_STRIPES * XXH3_STRIPE) {
        UNROLL
        for (unsigned n = 0; n < XXH3_STRIPES; n++)
            STRIPE(data + n * XXH3_STRIPE, hash_xxh3_secret + 8 * n);
        SCRAMBLE
    }
    for (; stripes > 0; stripes--, data += XXH3_STRIPE, at++)
        STRIPE(data, hash_xxh3_secret + 8 * at);
    memcpy(acc, a, sizeof a);
}

#undef FUNCTION
#undef STRIPE
#undef SCRAMBLE
#undef BYTES
