/* SPDX-License-Identifier: Apache-2.0
 *
 * The ways to hash many streams at once with the kernels in use, and what each costs on this machine.
 *
 * Streams of which the same is wanted make a class: one algorithm, or MD5 and another of the same bytes (a pair).  How
 * many streams make which kernel worth while is measured at the first use of a class (some 0.2 ms), not assumed: the
 * same binary meets processors whose ratios differ by 3.
 *
 * No function here takes a lock that is held for long or hashes under one that the engine knows; any number of threads
 * may call them at once, except for ways_select.
 */
#ifndef FASTFS_WAYS_H
#define FASTFS_WAYS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "hash/hash.h"

enum { WAYS_MAX = 6, WAYS_LANES = HASH_MAX_WIDTH, WAYS_CLASSES = 2 * HASH_ALGORITHMS };

/* One way to move streams of a class on: `width` of them at a time.  A pair can also be taken `apart`: MD5 of all of
 * them first, then the other algorithm, each in the lanes that suit it.  Without AVX-512 that is often the best:
 * 24 lanes of MD5 and 4 of SHA-512 need 0.94 ns a byte, 4 of both together 1.40 (Zen 3). */
struct way {
    unsigned width;
    bool apart;
    union {
        hash_one_fn *one;
        hash_pair_fn *pair;
        hash_lanes_fn *lanes;
        hash_pair_lanes_fn *pair_lanes;
    } run;
    double cost; /* ns for a unit of every lane; not of those that are apart */
};

/* The ways of one class. */
struct ways {
    enum hash_algorithm second; /* of a pair, the one beside MD5 */
    bool pair;
    unsigned unit; /* bytes that a stream moves on by at least */
    unsigned count;
    struct way way[WAYS_MAX];
    unsigned char take[WAYS_LANES + 1]; /* of so many streams, how many to move on together */
    unsigned char best[WAYS_LANES + 1]; /* the way to do that with so many */
    double rate[WAYS_LANES + 1];        /* units/ns when so many streams are there */
    atomic_bool measured;               /* only then do the three above mean anything */
};

/* Use the kernels of this name (NULL: the best that this machine has) from now on.  Returns NULL, or why they cannot be
 * used.  Nothing may be hashed meanwhile. */
const char *ways_select(const char *name);

/* The kernels in use; NULL: there are none for this machine, and nothing below may be called. */
const struct hash_kernels *ways_kernels(void);

/* The class of an algorithm, of MD5 and another (which may have no way: count is 0), and each of the WAYS_CLASSES. */
struct ways *ways_alone(enum hash_algorithm a);
struct ways *ways_beside_md5(enum hash_algorithm a);
struct ways *ways_of(unsigned c);

/* Have the class measured, which takes a moment the first time. */
void ways_measure(struct ways *k);

/* units/ns with `n` streams. */
double ways_rate(const struct ways *k, unsigned n);

/* Is a pair better than each algorithm by itself, with `n` streams on so many processors? */
bool ways_better_together(const struct ways *k, unsigned n, unsigned cores);

/* The way that is best for `n` streams, a number that `take` has. */
static inline const struct way *ways_best(const struct ways *k, unsigned n)
{
    return &k->way[k->best[n]];
}

/* Move the states of `n` streams on by so many units, at most as many streams as the way has lanes.  `second` is used
 * for a pair alone. */
void ways_advance(const struct ways *k, const struct way *w, union hash_state *const *first,
                  union hash_state *const *second, const unsigned char *const *data, size_t units, unsigned n);

/* One stream, whether the class has been measured or not. */
void ways_advance_one(const struct ways *k, union hash_state *first, union hash_state *second,
                      const unsigned char *data, size_t units);

/* What was measured for the class: widths[i] lanes, all filled, give rates[i] bytes/s.  Measures now unless that is
 * done.  Returns how many there are. */
unsigned ways_rates(struct ways *k, unsigned widths[WAYS_MAX], double rates[WAYS_MAX]);

/* A child after fork has none of its parent's threads: nobody measures. */
void ways_begin_anew(void);

#endif
