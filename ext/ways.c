/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "ways.h"

#include <pthread.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

enum { MEASURE = 4096 /* bytes of each stream */, TURNS_MOST = 100, TURNS_SAME = 24 };

static const struct hash_kernels *kernels;
static struct ways classes[WAYS_CLASSES];

/* Selecting and measuring is done by one at a time. */
static pthread_mutex_t measuring = PTHREAD_MUTEX_INITIALIZER;

void ways_begin_anew(void)
{
    pthread_mutex_init(&measuring, NULL);
}

static void add_way(struct ways *k, struct way way)
{
    if (way.width <= WAYS_LANES && k->count < WAYS_MAX)
        k->way[k->count++] = way;
}

static void list_ways(void)
{
    for (unsigned c = 0; c < WAYS_CLASSES; c++) {
        struct ways *k = &classes[c];
        enum hash_algorithm a = c % HASH_ALGORITHMS;
        k->second = a;
        k->pair = c >= HASH_ALGORITHMS;
        k->unit = k->pair ? HASH_UNIT : hash_info[a].block;
        k->count = 0;
        k->measured = false;
        if (!k->pair) {
            add_way(k, (struct way){ .width = 1, .run.one = kernels->one[a] });
            for (const struct hash_lanes *l = kernels->lanes[a]; l->width > 0; l++)
                add_way(k, (struct way){ .width = l->width, .run.lanes = l->run });
        } else if (kernels->pair[a] != NULL) {
            add_way(k, (struct way){ .width = 1, .run.pair = kernels->pair[a] });
            for (const struct hash_pair_lanes *l = kernels->pair_lanes[a]; l->width > 0; l++)
                add_way(k, (struct way){ .width = l->width, .run.pair_lanes = l->run });
            add_way(k, (struct way){ .width = WAYS_LANES, .apart = true });
        }
    }
}

const char *ways_select(const char *name)
{
    const char *why = NULL;
    const struct hash_kernels *found = hash_select(name, &why);
    if (found == NULL)
        return why;
    pthread_mutex_lock(&measuring);
    if (found != kernels) { /* otherwise somebody may be hashing with them already */
        kernels = found;
        list_ways();
    }
    pthread_mutex_unlock(&measuring);
    return NULL;
}

const struct hash_kernels *ways_kernels(void)
{
    return kernels;
}

struct ways *ways_of(unsigned c)
{
    return &classes[c];
}

struct ways *ways_alone(enum hash_algorithm a)
{
    return &classes[a];
}

struct ways *ways_beside_md5(enum hash_algorithm a)
{
    return &classes[HASH_ALGORITHMS + a];
}

/* Move `n` streams on, each algorithm in the lanes that it does best with. */
static void advance_apart(const struct ways *k, union hash_state *const *first, union hash_state *const *second,
                          const unsigned char *const *data, size_t units, unsigned n)
{
    const struct ways *part[2] = { ways_alone(HASH_MD5), ways_alone(k->second) };
    union hash_state *const *state[2] = { first, second };
    for (unsigned p = 0; p < 2; p++) {
        size_t steps = units * (k->unit / part[p]->unit);
        for (unsigned at = 0, some; at < n; at += some) {
            some = part[p]->take[n - at];
            ways_advance(part[p], ways_best(part[p], some), state[p] + at, state[p] + at, data + at, steps, some);
        }
    }
}

/* Lanes that are left over repeat the first one's bytes for nobody. */
void ways_advance(const struct ways *k, const struct way *w, union hash_state *const *first,
                  union hash_state *const *second, const unsigned char *const *data, size_t units, unsigned n)
{
    if (w->apart) {
        advance_apart(k, first, second, data, units, n);
        return;
    }
    if (w->width == 1) {
        if (k->pair)
            w->run.pair(first[0], second[0], data[0], units);
        else
            w->run.one(first[0], data[0], units);
        return;
    }
    union hash_state *a[WAYS_LANES], *b[WAYS_LANES];
    const unsigned char *d[WAYS_LANES];
    alignas(64) union hash_state nobody[2][WAYS_LANES];
    if (n < w->width) {
        unsigned idle = w->width - n;
        memcpy(a, first, n * sizeof *a);
        memcpy(b, second, n * sizeof *b);
        memcpy(d, data, n * sizeof *d);
        memset(nobody[0], 0, idle * sizeof nobody[0][0]);
        memset(nobody[1], 0, idle * sizeof nobody[1][0]);
        for (unsigned i = 0; i < idle; i++) {
            a[n + i] = &nobody[0][i];
            b[n + i] = &nobody[1][i];
            d[n + i] = data[0];
        }
        first = a, second = b, data = d;
    }
    if (k->pair)
        w->run.pair_lanes(first, second, data, units);
    else
        w->run.lanes(first, data, units);
}

void ways_advance_one(const struct ways *k, union hash_state *first, union hash_state *second,
                      const unsigned char *data, size_t units)
{
    ways_advance(k, &k->way[0], &first, &second, &data, units, 1);
}

/* ns that hashing so many bytes of each stream takes, once. */
static double time_of(const struct ways *k, const struct way *w, const unsigned char *memory)
{
    alignas(64) union hash_state state[2][WAYS_LANES];
    union hash_state *first[WAYS_LANES], *second[WAYS_LANES];
    const unsigned char *data[WAYS_LANES];
    for (unsigned i = 0; i < w->width; i++) {
        first[i] = &state[0][i];
        second[i] = &state[1][i];
        hash_init(k->pair ? HASH_MD5 : k->second, first[i]);
        hash_init(k->second, second[i]);
        data[i] = memory + i * (MEASURE + 256);
    }
    uint64_t begin = clock_ns();
    ways_advance(k, w, first, second, data, MEASURE / k->unit, w->width);
    return (double)(clock_ns() - begin) + 1;
}

/* The least time: what disturbs a measurement only makes it longer.  All ways in turns, so that a disturbance meets all of
 * them, until none has become faster for a while: what a processor can do, with its widest vectors above all, it does after
 * some milliseconds only (Intel: 8 lanes of MD5 and SHA-512 2.1 GB/s after seven turns, 2.5 after thirty). */
static void measure_costs(struct ways *k)
{
    unsigned char *memory = calloc(WAYS_LANES, MEASURE + 256);
    for (unsigned turn = 0, same = 0; turn < TURNS_MOST && same < TURNS_SAME; turn++) {
        bool faster = false;
        for (unsigned i = 0; i < k->count; i++) {
            struct way *w = &k->way[i];
            /* Without memory to measure in what is widest is best. */
            double cost = w->apart ? 0 : memory != NULL ? time_of(k, w, memory) / (MEASURE / k->unit) : 1;
            faster = faster || cost < 0.98 * w->cost;
            if (turn <= 1 || cost < w->cost) /* the first one warms up */
                w->cost = cost;
        }
        same = faster || turn <= 1 ? 0 : same + 1;
    }
    free(memory);
}

/* ns for a unit of each of `n` streams, which the way has lanes for. */
static double cost_with(const struct ways *k, const struct way *w, unsigned n)
{
    if (!w->apart)
        return w->cost;
    double sum = 0;
    const struct ways *part[2] = { ways_alone(HASH_MD5), ways_alone(k->second) };
    for (unsigned p = 0; p < 2; p++)
        for (unsigned left = n; left > 0; left -= part[p]->take[left])
            sum += part[p]->take[left] / part[p]->rate[left] * (k->unit / part[p]->unit);
    return sum;
}

static void measure(struct ways *k)
{
    pthread_mutex_lock(&measuring);
    if (!atomic_load(&k->measured) && k->count > 0) {
        measure_costs(k);
        k->rate[0] = 0;
        for (unsigned n = 1; n <= WAYS_LANES; n++) {
            /* As many as before, unless one more makes it faster. */
            k->rate[n] = k->rate[n - 1];
            k->take[n] = k->take[n - 1];
            for (unsigned i = 0; i < k->count; i++) {
                if (n > k->way[i].width)
                    continue;
                double rate = n / cost_with(k, &k->way[i], n);
                if (rate > k->rate[n]) {
                    k->rate[n] = rate;
                    k->take[n] = (unsigned char)n;
                    k->best[n] = (unsigned char)i;
                }
            }
        }
        atomic_store(&k->measured, true);
    }
    pthread_mutex_unlock(&measuring);
}

void ways_measure(struct ways *k)
{
    if (atomic_load(&k->measured))
        return;
    if (k->pair) { /* what it costs apart follows from these */
        ways_measure(ways_alone(HASH_MD5));
        ways_measure(ways_alone(k->second));
    }
    measure(k);
}

double ways_rate(const struct ways *k, unsigned n)
{
    return k->rate[n < WAYS_LANES ? n : WAYS_LANES];
}

/* bytes/ns of `n` streams divided among `p` threads, each of them. */
static double rate_among(const struct ways *k, unsigned n, unsigned p)
{
    return k->rate[(n + p - 1) / p] * k->unit;
}

/* By itself each algorithm can be hashed on a processor of its own, in lanes of different number; what bounds the two
 * are the processors' time and the slower algorithm. */
bool ways_better_together(const struct ways *k, unsigned n, unsigned cores)
{
    const struct ways *md5 = ways_alone(HASH_MD5), *other = ways_alone(k->second);
    double pair = 0, two = 0;
    unsigned most = n < cores ? n : cores;
    for (unsigned p = 1; p <= most; p++) {
        double rate = p * rate_among(k, n, p);
        pair = rate > pair ? rate : pair;
        for (unsigned q = 1; q <= most; q++) {
            double a = rate_among(md5, n, p), b = rate_among(other, n, q);
            double all = cores / (1 / a + 1 / b);
            all = all > p * a ? p * a : all;
            all = all > q * b ? q * b : all;
            two = all > two ? all : two;
        }
    }
    /* More streams than processors: apart, each byte goes through the caches twice and there are twice as many steps.
     * 16 streams of MD5 and SHA-512 on Zen 5: apart should be 1.1 times as fast, and needed 1.6 times the processor time. */
    return (n > cores ? 1.25 : 1) * pair > two;
}

unsigned ways_rates(struct ways *k, unsigned widths[WAYS_MAX], double rates[WAYS_MAX])
{
    ways_measure(k);
    unsigned n = 0;
    for (unsigned i = 0; i < k->count; i++) {
        /* Apart, the lanes beyond the best number bring nothing. */
        unsigned width = k->way[i].apart ? k->take[WAYS_LANES] : k->way[i].width;
        if (k->way[i].apart && k->best[width] != i)
            continue;
        widths[n] = width;
        rates[n++] = 1e9 * k->unit * width / cost_with(k, &k->way[i], width);
    }
    return n;
}
