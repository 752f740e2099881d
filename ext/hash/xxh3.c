/* SPDX-License-Identifier: Apache-2.0 */
#include "xxh3.h"

#include <string.h>

#include "constants.h"

const unsigned char hash_xxh3_secret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

/* The primes of 32 and 64 bits that the specification numbers. */
#define PRIME32_2 0x85ebca77u
#define PRIME32_3 0xc2b2ae3du
#define PRIME64_1 0x9e3779b185ebca87u
#define PRIME64_2 0xc2b2ae3d27d4eb4fu
#define PRIME64_3 0x165667b19e3779f9u
#define PRIME64_4 0x85ebca77c2b2ae63u
#define PRIME64_5 0x27d4eb2f165667c5u

static uint64_t secret64(size_t at)
{
    uint64_t x;
    memcpy(&x, hash_xxh3_secret + at, sizeof x);
    return x;
}

void xxh3_begin(struct xxh3 *x)
{
    static const uint64_t acc[8] = { PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, XXH3_PRIME32_1 };
    memcpy(x->acc, acc, sizeof acc);
    x->total = x->stripes = x->pending = 0;
}

static void consume(struct xxh3 *x, const struct hash_kernels *k, const unsigned char *data, size_t stripes)
{
    k->xxh3(x->acc, data, stripes, x->stripes);
    x->stripes = (unsigned)((x->stripes + stripes) % XXH3_STRIPES);
}

/* A stripe is consumed when a byte is known to follow it. */
void xxh3_update(struct xxh3 *x, const struct hash_kernels *k, const void *data, size_t len)
{
    const unsigned char *p = data;
    x->total += len;
    size_t some = XXH3_STRIPE - x->pending;
    if (len <= some) {
        if (len > 0)
            memcpy(x->rest + x->pending, p, len);
        x->pending += (unsigned)len;
        return;
    }
    if (x->pending > 0) {
        memcpy(x->rest + x->pending, p, some);
        consume(x, k, x->rest, 1);
        memcpy(x->before, x->rest, XXH3_STRIPE);
        p += some;
        len -= some;
    }
    size_t stripes = (len - 1) / XXH3_STRIPE;
    if (stripes > 0) {
        consume(x, k, p, stripes);
        p += stripes * XXH3_STRIPE;
        len -= stripes * XXH3_STRIPE;
        memcpy(x->before, p - XXH3_STRIPE, XXH3_STRIPE);
    }
    memcpy(x->rest, p, len);
    x->pending = (unsigned)len;
}

/* The 128 bits of a product, the halves on one another. */
static uint64_t folded(uint64_t a, uint64_t b)
{
#ifdef __SIZEOF_INT128__
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t a0 = a & 0xffffffff, a1 = a >> 32, b0 = b & 0xffffffff, b1 = b >> 32;
    uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (middle & 0xffffffff);
    return (other << 32 | (low & 0xffffffff)) ^ (a1 * b1 + (middle >> 32) + (other >> 32));
#endif
}

static uint64_t merge(const uint64_t acc[8], size_t secret, uint64_t start)
{
    uint64_t sum = start;
    for (unsigned i = 0; i < 8; i += 2)
        sum += folded(acc[i] ^ secret64(secret + 8 * i), acc[i + 1] ^ secret64(secret + 8 * i + 8));
    sum ^= sum >> 37;
    sum *= 0x165667919e3779f9u;
    return sum ^ sum >> 32;
}

void xxh3_digest(const struct xxh3 *x, unsigned char digest[XXH3_DIGEST])
{
    uint64_t acc[8];
    unsigned char last[XXH3_STRIPE]; /* the last bytes, which other stripes may have had already */
    memcpy(acc, x->acc, sizeof acc);
    memcpy(last, x->before + x->pending, XXH3_STRIPE - x->pending);
    memcpy(last + XXH3_STRIPE - x->pending, x->rest, x->pending);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t word, keyed;
        memcpy(&word, last + 8 * i, sizeof word);
        keyed = word ^ secret64(XXH3_LAST_SECRET - 7 + 8 * i);
        acc[i ^ 1] += word;
        acc[i] += (keyed & 0xffffffff) * (keyed >> 32);
    }
    uint64_t half[2] = { merge(acc, XXH3_LAST_SECRET - 11, ~(x->total * PRIME64_2)), merge(acc, 11, x->total * PRIME64_1) };
    for (unsigned i = 0; i < XXH3_DIGEST; i++) /* canonical: big-endian, the upper half first */
        digest[i] = (unsigned char)(half[i / 8] >> 8 * (7 - i % 8));
}
