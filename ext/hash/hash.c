/* SPDX-License-Identifier: Apache-2.0 */
#include "hash.h"

#include "constants.h"
#include "cpu.h"
#include "kernels.h"
#include "rounds.h"

#include <pthread.h>
#include <string.h>

const struct hash_info hash_info[HASH_ALGORITHMS] = {
    [HASH_MD5] = { "md5", 64, 16, 4, 4 },         [HASH_SHA1] = { "sha1", 64, 20, 5, 4 },
    [HASH_SHA224] = { "sha224", 64, 28, 8, 4 },   [HASH_SHA256] = { "sha256", 64, 32, 8, 4 },
    [HASH_SHA384] = { "sha384", 128, 48, 8, 8 },  [HASH_SHA512] = { "sha512", 128, 64, 8, 8 },
};

#define LISTED(x) x,
#define UPPER(x) (uint32_t)(x >> 32),
#define LOWER(x) (uint32_t)(x),
#define PLACED(i, x) [i] = x,
#define BY_WORD(i, x) [(i) / 16 * 16 + MD5_WORD(i)] = x,
const uint32_t hash_md5_k[64] = { MD5_SINES(PLACED) };
const uint32_t hash_md5_k_of_word[64] = { MD5_SINES(BY_WORD) };
const uint32_t hash_sha256_k[64] = { SHA2_CUBE_ROOTS_64(UPPER) };
const uint64_t hash_sha512_k[80] = { SHA2_CUBE_ROOTS_64(LISTED) SHA2_CUBE_ROOTS_16(LISTED) };

void hash_init(enum hash_algorithm a, union hash_state *s)
{
    /* RFC 1321, 3.3; FIPS 180-4, 5.3 */
    static const union hash_state initial[HASH_ALGORITHMS] = {
        [HASH_MD5].w32 = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476 },
        [HASH_SHA1].w32 = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 },
        [HASH_SHA224].w32 = { SHA2_SQUARE_ROOTS_HIGH(LOWER) },
        [HASH_SHA256].w32 = { SHA2_SQUARE_ROOTS_LOW(UPPER) },
        [HASH_SHA384].w64 = { SHA2_SQUARE_ROOTS_HIGH(LISTED) },
        [HASH_SHA512].w64 = { SHA2_SQUARE_ROOTS_LOW(LISTED) },
    };
    *s = initial[a];
}

unsigned hash_final(enum hash_algorithm a, const struct hash_kernels *k, union hash_state *s, const unsigned char *tail,
                    size_t len, uint64_t total, unsigned char *digest)
{
    const struct hash_info *info = &hash_info[a];
    unsigned char last[2 * HASH_MAX_BLOCK] = { 0 };
    size_t blocks = len / info->block, left = len % info->block;
    if (blocks > 0)
        k->one[a](s, tail, blocks);
    if (left > 0)
        memcpy(last, tail + blocks * info->block, left);
    last[left] = 0x80;
    /* The length in bits takes two words at the end; its upper half is what shifting loses, or zero. */
    size_t size = left + 1 + 2 * info->word_size <= info->block ? info->block : 2 * info->block;
    uint64_t bits = total << 3;
    for (unsigned i = 0; i < 8; i++)
        last[a == HASH_MD5 ? size - 8 + i : size - 1 - i] = (unsigned char)(bits >> 8 * i);
    if (info->word_size == 8)
        last[size - 9] = (unsigned char)(total >> 61);
    k->one[a](s, last, size / info->block);
    for (unsigned i = 0; i < info->digest; i++) {
        unsigned in_word = i % info->word_size;
        unsigned shift = 8 * (a == HASH_MD5 ? in_word : info->word_size - 1 - in_word);
        uint64_t word = info->word_size == 8 ? s->w64[i / 8] : s->w32[i / 4];
        digest[i] = (unsigned char)(word >> shift);
    }
    return info->digest;
}

/* The sets, each to be entered over the ones before it. */
static const struct set {
    unsigned features;
    hash_enter_fn *enter;
} sets[] = {
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#define NAMES
    { 0, NULL },
#elif defined(__x86_64__)
#define NAMES "portable", "avx2", "avx512",
    { 0, hash_enter_portable }, { CPU_AVX2, hash_enter_avx2 }, { CPU_AVX512, hash_enter_avx512 },
#elif defined(__aarch64__)
#define NAMES "neon",
    { CPU_NEON, hash_enter_portable },
#else
#define NAMES "portable",
    { 0, hash_enter_portable },
#endif
};
const char *const hash_kernel_names[] = { NAMES NULL };
enum { SETS = sizeof hash_kernel_names / sizeof *hash_kernel_names - 1 };

/* Where `name` stands; -1: nowhere. */
static int find(const char *name)
{
    for (int i = 0; i < SETS; i++)
        if (strcmp(name, hash_kernel_names[i]) == 0)
            return i;
    return -1;
}

const char *hash_table(const char *name, unsigned features, struct hash_kernels *k)
{
    int last = find(name);
    if (last < 0)
        return "there are no kernels of this name";
    if ((features & sets[last].features) != sets[last].features)
        return "this processor or operating system lacks the instructions of these kernels";
    memset(k, 0, sizeof *k);
    k->name = hash_kernel_names[last];
    for (int i = 0; i <= last; i++)
        sets[i].enter(k, features);
#ifdef __x86_64__
    hash_enter_shani(k, features);
#endif
    static const enum hash_algorithm same[][2] = { { HASH_SHA224, HASH_SHA256 }, { HASH_SHA384, HASH_SHA512 } };
    for (int i = 0; i < 2; i++) { /* but for their initial states */
        enum hash_algorithm to = same[i][0], from = same[i][1];
        k->one[to] = k->one[from];
        k->pair[to] = k->pair[from];
        memcpy(k->lanes[to], k->lanes[from], sizeof k->lanes[to]);
        memcpy(k->pair_lanes[to], k->pair_lanes[from], sizeof k->pair_lanes[to]);
    }
    return NULL;
}

static struct hash_kernels tables[SETS + 1];
static const char *missing[SETS + 1];

static void fill_tables(void)
{
    for (int i = 0; i < SETS; i++)
        missing[i] = hash_table(hash_kernel_names[i], cpu_features(), &tables[i]);
}

const struct hash_kernels *hash_select(const char *name, const char **why)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_tables);
    int i = SETS - 1;
    if (name != NULL)
        i = find(name);
    else
        while (i >= 0 && missing[i] != NULL)
            i--;
    if (i < 0)
        *why = SETS > 0 ? "there are no kernels of this name" : "there are no kernels for big-endian processors";
    else if (missing[i] == NULL)
        return &tables[i];
    else
        *why = missing[i];
    return NULL;
}
