/* SPDX-License-Identifier: Apache-2.0
 *
 * Hash kernels: plain functions over chaining states and whole blocks.  They allocate nothing, cannot
 * fail, keep no state of their own and may be called by any number of threads at once.
 *
 * Data may lie at any address; exactly the named blocks are read.  States are aligned as the union says
 * and distinct from one another.  Streams of one call may share data (an idle lane points at anything
 * readable that is long enough, and at a state that nobody wants).
 *
 * On a big-endian processor there are no kernels: hash_select returns NULL.
 */
#ifndef FASTFS_HASH_H
#define FASTFS_HASH_H

#include <stddef.h>
#include <stdint.h>

enum hash_algorithm { HASH_MD5, HASH_SHA1, HASH_SHA224, HASH_SHA256, HASH_SHA384, HASH_SHA512, HASH_ALGORITHMS };

struct hash_info {
    const char *name;                         /* hashlib's */
    unsigned block, digest, words, word_size; /* bytes; words: of the state */
};
extern const struct hash_info hash_info[HASH_ALGORITHMS];

/* A chaining state: its `words` in native byte order. */
union hash_state {
    uint32_t w32[8];
    uint64_t w64[8];
} __attribute__((aligned(64)));

enum { HASH_UNIT = 128 /* bytes; what pairs advance by */, HASH_MAX_BLOCK = 128, HASH_MAX_DIGEST = 64 };

/* One stream, one algorithm. */
typedef void hash_one_fn(union hash_state *s, const unsigned char *data, size_t blocks);

/* md5 and a SHA of the same bytes. */
typedef void hash_pair_fn(union hash_state *md5, union hash_state *sha, const unsigned char *data, size_t units);

/* `width` independent streams, the same number of blocks of each. */
typedef void hash_lanes_fn(union hash_state *const *s, const unsigned char *const *data, size_t blocks);
typedef void hash_pair_lanes_fn(union hash_state *const *md5, union hash_state *const *sha,
                                const unsigned char *const *data, size_t units);

/* Stripes of XXH3 (xxh3.h), the first one being number `at` of its block of 16. */
enum { XXH3_STRIPE = 64 /* bytes */, XXH3_STRIPES = 16 };
typedef void hash_xxh3_fn(uint64_t acc[8], const unsigned char *data, size_t stripes, unsigned at);

/* `from`: with at least so many live streams this beats the narrower ways (scalar included), idle lanes and
 * all; above `width`: it never does on the processors measured, and is here to be proven and measured. */
struct hash_lanes {
    unsigned width, from;
    hash_lanes_fn *run;
};
struct hash_pair_lanes {
    unsigned width, from;
    hash_pair_lanes_fn *run;
};

enum { HASH_WIDTHS = 4, HASH_MAX_WIDTH = 64 };

struct hash_kernels {
    const char *name; /* "portable", "avx2", "avx512", "neon" */
    hash_one_fn *one[HASH_ALGORITHMS];
    hash_pair_fn *pair[HASH_ALGORITHMS];                               /* beside md5; NULL where there is none */
    struct hash_lanes lanes[HASH_ALGORITHMS][HASH_WIDTHS + 1];         /* ascending, ended by width 0 */
    struct hash_pair_lanes pair_lanes[HASH_ALGORITHMS][HASH_WIDTHS + 1];
    hash_xxh3_fn *xxh3;
};

/* The kernels for this machine, or those that `name` demands.  NULL with *why set to a sentence: no such
 * kernels, or they cannot run here.  What is returned lives forever. */
const struct hash_kernels *hash_select(const char *name, const char **why);

/* The names of all that are compiled in, the best last; ended by NULL. */
extern const char *const hash_kernel_names[];

/* The initial state. */
void hash_init(enum hash_algorithm a, union hash_state *s);

/* Pad and finish a stream of `total` bytes: `s` is the state after all but the last `len` of them (whole blocks), which
 * `tail` holds.  Writes hash_info[a].digest bytes to `digest` and returns how many; `s` is spoilt. */
unsigned hash_final(enum hash_algorithm a, const struct hash_kernels *k, union hash_state *s, const unsigned char *tail,
                    size_t len, uint64_t total, unsigned char *digest);

#endif
