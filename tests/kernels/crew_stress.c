/* SPDX-License-Identifier: Apache-2.0
 *
 * crew_stress DIRECTORY THREADS STREAMS SEED [KERNEL]: many threads copy regular files of random lengths, in calls of random
 * length, some with a digest that is not the engine's, some with block digests, some without a target, some given up or
 * cancelled on the way, some cut short meanwhile.  Compares every digest with that of a stream that is alone and every copy
 * with its source.  Prints the counters; ends with 1 if something is wrong or nobody joined a crew.  For ThreadSanitizer and AddressSanitizer.
 */
#define _GNU_SOURCE
#include "blocks.h"
#include "chains.h"
#include "cores.h"
#include "stress.h"
#include "tee.h"
#include "ways.h"

#include <stdatomic.h>

static atomic_uint rounds, lanes;
static void counted(unsigned n)
{
    rounds++;
    lanes += n;
}
struct ride;
static void cut_short(struct ride *const *rides, unsigned n);
/* Before any bytes are hashed.  `in` and `at` are those of crew.c. */
#define ways_advance(k, w, first, second, data, units, n) \
    (cut_short(in + at, n), counted(n), ways_advance(k, w, first, second, data, units, n))
#include "crew.c"

#include <fcntl.h>
#include <unistd.h>

enum { DATA = 6 << 20, SETS = 6, DEPTH = PUMP_DEPTH };

static unsigned char data[DATA];
static const char *directory;
static unsigned streams;
static atomic_uint wrong, whole, given_up, cut;

static const enum hash_algorithm sets[SETS][3] = {
    { HASH_MD5, HASH_SHA512 }, { HASH_MD5, HASH_SHA512 }, { HASH_MD5, HASH_SHA256 },
    { HASH_MD5 },              { HASH_SHA256 },           { HASH_SHA256, HASH_MD5, HASH_SHA1 },
};
static const unsigned counts[SETS] = { 2, 2, 2, 1, 1, 3 };

/* A digest of another kind: where the bytes lie matters. */
struct sum {
    uint64_t sum, bytes;
};

static int add_up(void *ctx, const void *bytes, size_t len)
{
    struct sum *s = ctx;
    for (size_t i = (61 - s->bytes % 61) % 61; i < len; i += 61)
        s->sum = s->sum * 31 + ((const unsigned char *)bytes)[i];
    s->bytes += len;
    return 0;
}

/* Some lie on another device, so that there are several crews. */
static int nameless(unsigned *seed)
{
    int fd = open(rand_r(seed) % 4 == 0 ? "/dev/shm" : directory, O_TMPFILE | O_RDWR, 0600);
    if (fd < 0)
        abort();
    return fd;
}

/* What is beside the engine: nothing, a sum or block digests. */
enum beside { NOTHING, SUM, BLOCKS };

static bool blocks_are_right(struct digests *blocks, const unsigned char *from, size_t len)
{
    struct blocks_result found, expected;
    uint64_t ticket;
    struct digests *alone = blocks_new(1 << 20);
    bool good = alone->ops->post(alone, from, len, &ticket) == 0 && blocks_finish(alone, &expected) == 0
                && blocks_finish(blocks, &found) == 0 && found.len == expected.len
                && memcmp(found.table, expected.table, found.len) == 0;
    alone->ops->free(alone);
    return good;
}

static bool sum_is_right(const struct sum *sum, const unsigned char *from, size_t len)
{
    struct sum expected = { 0, 0 };
    add_up(&expected, from, len);
    return memcmp(sum, &expected, sizeof expected) == 0;
}

static bool copy_is_right(int fd, const unsigned char *from, size_t len)
{
    unsigned char *copy = malloc(len + 1);
    bool good = pread(fd, copy, len + 1, 0) == (ssize_t)len && memcmp(copy, from, len) == 0;
    free(copy);
    return good;
}

/* To what length the file of a descriptor is to be cut, between reading or looking and hashing; -1: not.  At another time
 * the kernel itself may give the zeroes of a page that is being cut for bytes of the file. */
enum { FILES = 4096 };
static atomic_long cuts[FILES];

static void cut_short(struct ride *const *rides, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        int fd = rides[i]->source->fd;
        long to = atomic_exchange(&cuts[fd], -1);
        if (to >= 0 && ftruncate(fd, to) != 0)
            abort();
    }
}

static void one_stream(unsigned *seed, unsigned char *ring)
{
    unsigned set = rand_r(seed) % 2 == 0 ? 0 : (unsigned)rand_r(seed) % SETS;
    enum beside beside = (enum beside)(rand_r(seed) % 3);
    bool target = rand_r(seed) % 2;
    size_t len = (size_t)rand_r(seed) % (rand_r(seed) % 3 == 0 ? DATA : 1 << 20), start = (size_t)rand_r(seed) % (DATA - len);
    int in = nameless(seed), out = target ? nameless(seed) : -1;
    const unsigned char *from = data + start;
    if (rand_r(seed) % 2)
        crew_expect();
    if (write(in, from, len) != (ssize_t)len)
        abort();
    struct sum sum = { 0, 0 };
    void *ctx[] = { &sum };
    struct digests *engine = engine_new(sets[set], counts[set], DEPTH);
    struct digests *others = beside == SUM ? chains_new(1, add_up, ctx, DEPTH, 0) : beside == BLOCKS ? blocks_new(1 << 20) : NULL;
    struct digests *all_of_them = others != NULL ? tee_new(others, engine) : engine;
    struct pump p;
    pump_init(&p, out, ring, all_of_them, false);
    p.engine = engine;
    p.others = others;
    struct pump_source s = { .fd = in, .offset = 0, .limit = len, .wait_ms = -1 };
    bool quit = rand_r(seed) % 16 == 0, cancel = rand_r(seed) % 16 == 0, shrinks = rand_r(seed) % 8 == 0;
    size_t shrunk = len > 0 ? (size_t)rand_r(seed) % len : 0;
    if (in >= FILES)
        abort();
    atomic_store(&cuts[in], shrinks ? (long)shrunk : -1);
    int err = 1;
    while (err == 1 && !(quit && p.size > len / 2)) {
        if (cancel && p.size > len / 2)
            atomic_store(&p.cancelled, true);
        err = crew_read(&p, &s, rand_r(seed) % 8 == 0 ? 1 + (uint64_t)rand_r(seed) % 300000 : 4 << 20);
    }
    if (err == 0 && (err = pump_finish(&p)) == 0 && (p.size == len || (shrinks && p.size < len && p.size >= shrunk))) {
        bool good = digests_are_right(engine, sets[set], counts[set], from, p.size)
                    && (beside != SUM || sum_is_right(&sum, from, p.size))
                    && (beside != BLOCKS || blocks_are_right(others, from, p.size))
                    && (!target || copy_is_right(out, from, p.size));
        whole++;
        cut += p.size < len;
        if (!good) {
            fprintf(stderr, "wrong: set %u, %llu of %zu bytes\n", set, (unsigned long long)p.size, len);
            wrong++;
        }
    } else if (quit || err == -ECANCELED || (shrinks && err == -EIO && beside == BLOCKS)) {
        given_up++;
    } else {
        fprintf(stderr, "wrong: %d after %llu of %zu bytes\n", err, (unsigned long long)p.size, len);
        wrong++;
    }
    crew_expect_no_more();
    all_of_them->ops->free(all_of_them);
    close(in);
    if (out >= 0)
        close(out);
}

static void *thread(void *arg)
{
    unsigned seed = (unsigned)(size_t)arg;
    unsigned char *ring = aligned_alloc(PUMP_PAGE, PUMP_RING);
    for (unsigned i = 0; i < streams; i++)
        one_stream(&seed, ring);
    free(ring);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    directory = argv[1];
    unsigned threads = (unsigned)atoi(argv[2]), seed = (unsigned)atoi(argv[4]);
    streams = (unsigned)atoi(argv[3]);
    cores_limit(2);
    use_kernels(argc > 5 ? argv[5] : NULL);
    for (size_t i = 0; i < DATA; i++)
        data[i] = (unsigned char)rand_r(&seed);
    run_threads(threads, thread, seed);
    unsigned left = all.coming;
    for (unsigned c = 0; c < CREWS; c++)
        left += all.crew[c].callers + all.crew[c].rides + all.crew[c].drivers + !TAILQ_EMPTY(&all.crew[c].waiting);
    struct engine_stats stats;
    engine_stats(&stats);
    printf("kernel %s whole %u cut %u given_up %u wrong %u left %u live %llu lanes %.2f of %u rounds\n", engine_kernels(), whole, cut,
           given_up, wrong, left, (unsigned long long)stats.live, rounds ? (double)lanes / rounds : 0, rounds);
    return wrong != 0 || left != 0 || stats.live != 0 || rounds == 0;
}
