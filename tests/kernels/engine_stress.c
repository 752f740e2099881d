/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_stress THREADS STREAMS SEED STRIDE [KERNEL]: many threads post streams of random lengths in random blocks to the
 * hash engine, give some up half-way, and compare every digest with objects_once's, which has no scheduler.  Before that
 * one thread splits pairs at every place around the blocks' ends, or at each STRIDE-th of them.  Prints the counters; ends with 1 if a digest is
 * wrong or no pair was split.  For ThreadSanitizer and AddressSanitizer.
 *
 * Whether MD5 and another algorithm of one stream go together is a matter of rates that were measured; here, where the
 * engine's insides can be had, it depends on the number of live streams alone, so that pairs are split on every machine.
 */
#include "engine.c"
#include "stress.h"

enum { DATA = 4 << 20, DEPTH = 8, APART = 3 /* streams, and two more of each three */ };

static unsigned char data[DATA];
static unsigned streams;
static atomic_uint wrong, given_up, whole, splits;

static const enum hash_algorithm sets[][3] = {
    { HASH_MD5, HASH_SHA512 },  { HASH_MD5, HASH_SHA512 },           { HASH_MD5, HASH_SHA256 },
    { HASH_MD5, HASH_SHA1 },    { HASH_MD5 },                        { HASH_SHA256, HASH_MD5, HASH_SHA1 },
    { HASH_SHA384, HASH_SHA224 }, { HASH_SHA512, HASH_SHA256, HASH_MD5 },
};
static const unsigned counts[] = { 2, 2, 2, 2, 1, 3, 2, 3 };
enum { KINDS = sizeof counts / sizeof counts[0] };

/* Pairs stay together with this many streams, or go apart. */
static void force(unsigned streams_alive, bool to)
{
    for (enum hash_algorithm a = 0; a < HASH_ALGORITHMS; a++) {
        struct class *k = class_of(ways_beside_md5(a));
        k->together[streams_alive] = to;
        k->decided_for = engine.cores;
    }
}

static struct digests *begin(unsigned kind, unsigned *strands)
{
    struct digests *d = engine_new(sets[kind], counts[kind], DEPTH);
    if (d == NULL)
        abort();
    *strands = ((struct stream *)d)->n;
    return d;
}

static void end(struct digests *d, unsigned kind, size_t len, unsigned strands)
{
    if (!digests_are_right(d, sets[kind], counts[kind], data, len)) {
        fprintf(stderr, "wrong: set %u, %zu bytes\n", kind, len);
        wrong++;
    }
    splits += ((struct stream *)d)->n > strands;
    whole++;
    d->ops->free(d);
}

static void one_stream(unsigned *seed)
{
    unsigned strands, kind = (unsigned)rand_r(seed) % KINDS;
    size_t len = (size_t)rand_r(seed) % (rand_r(seed) % 4 == 0 ? DATA : 70000), at = 0;
    struct digests *d = begin(kind, &strands);
    uint64_t ticket = 0;
    while (at < len) {
        size_t n = 1 + (size_t)rand_r(seed) % (rand_r(seed) % 3 == 0 ? 300 : 262144);
        if (n > len - at)
            n = len - at;
        d->ops->post(d, data + at, n, &ticket);
        at += n;
        if (rand_r(seed) % 64 == 0) { /* as if the caller had raised */
            d->ops->free(d);
            given_up++;
            return;
        }
        if (rand_r(seed) % 8 == 0)
            d->ops->wait(d, ticket);
    }
    d->ops->wait(d, ticket);
    end(d, kind, len, strands);
}

static void *thread(void *arg)
{
    unsigned seed = (unsigned)(size_t)arg;
    for (unsigned i = 0; i < streams; i++)
        one_stream(&seed);
    return NULL;
}

/* `before` bytes as a pair, in one block or in two, then the rest as two strands. */
static void split_after(unsigned kind, size_t before, size_t after, bool in_two)
{
    unsigned strands;
    uint64_t ticket = 0;
    struct digests *d = begin(kind, &strands);
    force(1, true);
    if (in_two)
        d->ops->post(d, data, before / 2, &ticket);
    d->ops->post(d, data + (in_two ? before / 2 : 0), before - (in_two ? before / 2 : 0), &ticket);
    d->ops->wait(d, ticket);
    force(1, false);
    d->ops->post(d, data + before, after / 2, &ticket);
    d->ops->post(d, data + before + after / 2, after - after / 2, &ticket);
    d->ops->wait(d, ticket);
    end(d, kind, before + after, strands);
}

static void split_everywhere(unsigned stride)
{
    static const size_t lengths[] = { 0, 1, 55, 63, 64, 65, 111, 127, 128, 129, 191, 192, 193, 255, 256, 257, 65536, 66047 };
    enum { N = sizeof lengths / sizeof *lengths };
    for (unsigned kind = 0; kind < KINDS; kind++)
        for (unsigned i = 0; i < N * N * 2; i += stride)
            split_after(kind, lengths[i / 2 % N], lengths[i / 2 / N], i % 2 == 1);
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    unsigned threads = (unsigned)atoi(argv[1]), seed = (unsigned)atoi(argv[3]);
    streams = (unsigned)atoi(argv[2]);
    if (argc > 5)
        use_kernels(argv[5]);
    for (size_t i = 0; i < DATA; i++)
        data[i] = (unsigned char)rand_r(&seed);
    engine_start();
    for (unsigned c = 0; c < WAYS_CLASSES; c++)
        ways_measure(ways_of(c));
    split_everywhere((unsigned)atoi(argv[4]));
    unsigned one_thread = splits;
    for (unsigned n = 1; n <= WAYS_LANES; n++)
        force(n, n % APART == 1);
    run_threads(threads, thread, seed);
    struct engine_stats stats;
    engine_stats(&stats);
    printf("kernel %s whole %u given_up %u wrong %u live %llu streams %llu lanes %.2f split %u and %u\n", engine_kernels(),
           whole, given_up, wrong, (unsigned long long)stats.live, (unsigned long long)stats.streams,
           (double)stats.lanes / (double)stats.steps, one_thread, splits - one_thread);
    return wrong != 0 || stats.live != 0 || one_thread == 0 || splits == one_thread;
}
