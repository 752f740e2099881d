/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>

#include "cores.h"

enum {
    LANES_MAX = 64,
    UNIT_MAX = 128,
    /* Bytes a stream moves on in one step: short enough for late arrivals to join soon, long enough for the
     * 1 us that a step costs besides.  Alone, nobody is kept waiting by a longer one. */
    STEP = 16 * 1024,
    STEP_ALONE = 64 * 1024,
    /* What is hashed together: each algorithm by itself, or with MD5 of the same bytes. */
    CLASSES = 2 * HASH_ALGORITHMS,
    MEASURE = 4096,
    /* How many blocks of each strand that has some may go before one whose class has few lanes.  16 was no faster (16
     * streams of MD5 and SHA-512) and had a lone block wait for 21 instead of 7 MB of others. */
    PATIENCE = 4,
};

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

struct strand;
TAILQ_HEAD(strands, strand);

/* Streams that can share lanes. */
struct class {
    enum hash_algorithm second; /* of a pair, the one beside MD5 */
    bool pair;
    unsigned unit; /* bytes */
    unsigned ways;
    struct way way[ENGINE_WIDTHS];
    unsigned char take[LANES_MAX + 1]; /* of so many streams, how many to move on together */
    unsigned char best[LANES_MAX + 1]; /* the way to do that with so many */
    double rate[LANES_MAX + 1];        /* units/ns when so many streams are there */
    bool together[LANES_MAX + 1];      /* a pair: with so many streams it is better than two strands */
    unsigned decided_for;              /* on so many processors */
    atomic_bool measured;

    struct strands ready; /* strands with bytes to hash that nobody works on, the oldest block first */
    unsigned strands;     /* all that there are */
    unsigned waiting;     /* those that are ready */
    unsigned running;     /* those that somebody works on */
    unsigned workers;     /* threads that do */
};

/* The digests of a stream that advance together: one, or MD5 and another. */
struct strand {
    alignas(64) union hash_state state[2];
    unsigned char tail[UNIT_MAX];
    unsigned tail_len;
    uint64_t total; /* bytes consumed */
    struct stream *stream;
    struct class *class;
    uint64_t next;   /* ticket of the block it is in */
    size_t at;       /* bytes of that block consumed */
    uint64_t stamp;  /* when that block came to the queue */
    bool queued, running;
    TAILQ_ENTRY(strand) link;
};

struct block {
    const unsigned char *data;
    size_t len;
};

/* A thread that has nothing to do until it is called. */
struct hand {
    pthread_cond_t cond;
    bool called;     /* leave the list and look again */
    bool to_work;    /* called because there is work, not because its own wish came true */
    TAILQ_ENTRY(hand) link;
};

struct stream {
    struct digests base;
    unsigned n, depth;
    bool closing;
    uint64_t posted; /* ticket of the last block */
    uint64_t wanted; /* what the sleeping owner waits for */
    struct hand *owner, *helper;
    pthread_t helper_thread;
    bool helped;
    enum hash_algorithm algorithm[ENGINE_DIGESTS];
    struct strand *strand; /* [n] */
    struct block block[];  /* ticket t lies at t % depth */
};

static struct {
    pthread_mutex_t lock; /* guards all below and whatever hangs on it, except the states of running strands */
    const struct hash_kernels *kernels;
    struct class class[CLASSES];
    TAILQ_HEAD(, hand) idle;
    unsigned coming; /* hands that were called to work and are not there yet */
    unsigned helpers;
    unsigned workers; /* threads inside a step */
    unsigned cores;
    uint64_t clock;
    struct engine_stats stats;
} engine = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Measuring is done outside the lock, by one at a time. */
static pthread_mutex_t measuring = PTHREAD_MUTEX_INITIALIZER;

/* -- kernels and what they cost here ------------------------------------------------------------------ */

static void reset_queues(void)
{
    TAILQ_INIT(&engine.idle);
    for (unsigned c = 0; c < CLASSES; c++) {
        struct class *k = &engine.class[c];
        TAILQ_INIT(&k->ready);
        k->strands = k->waiting = k->running = k->workers = 0;
    }
    engine.coming = engine.helpers = engine.workers = 0;
    memset(&engine.stats, 0, sizeof engine.stats);
}

/* A forked child has none of its parent's threads, and none of its streams may go on in it. */
static void begin_anew(void)
{
    pthread_mutex_init(&engine.lock, NULL);
    pthread_mutex_init(&measuring, NULL);
    reset_queues();
}

static void add_way(struct class *k, struct way way)
{
    if (way.width <= LANES_MAX && k->ways < ENGINE_WIDTHS)
        k->way[k->ways++] = way;
}

static void list_ways(void)
{
    const struct hash_kernels *kernels = engine.kernels;
    if (kernels == NULL)
        return;
    for (unsigned c = 0; c < CLASSES; c++) {
        struct class *k = &engine.class[c];
        enum hash_algorithm a = c % HASH_ALGORITHMS;
        k->second = a;
        k->pair = c >= HASH_ALGORITHMS;
        k->unit = k->pair ? UNIT_MAX : hash_info[a].block;
        k->ways = 0;
        k->measured = false;
        k->decided_for = 0;
        if (!k->pair) {
            add_way(k, (struct way){ .width = 1, .run.one = kernels->one[a] });
            for (const struct hash_lanes *l = kernels->lanes[a]; l->width > 0; l++)
                add_way(k, (struct way){ .width = l->width, .run.lanes = l->run });
        } else if (kernels->pair[a] != NULL) {
            add_way(k, (struct way){ .width = 1, .run.pair = kernels->pair[a] });
            for (const struct hash_pair_lanes *l = kernels->pair_lanes[a]; l->width > 0; l++)
                add_way(k, (struct way){ .width = l->width, .run.pair_lanes = l->run });
            add_way(k, (struct way){ .width = LANES_MAX, .apart = true });
        }
    }
}

static void start(void)
{
    pthread_atfork(NULL, NULL, begin_anew);
    if (engine.kernels == NULL) {
        const char *why;
        engine.kernels = hash_select(NULL, &why);
    }
    list_ways();
    reset_queues();
    engine.cores = (unsigned)cores_usable();
}

static void ensure_started(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}

const char *engine_select(const char *name)
{
    const char *why = NULL;
    const struct hash_kernels *kernels = hash_select(name, &why);
    if (kernels == NULL)
        return why;
    ensure_started();
    engine.kernels = kernels;
    list_ways();
    return NULL;
}

const char *engine_kernels(void)
{
    ensure_started();
    return engine.kernels != NULL ? engine.kernels->name : NULL;
}

static struct class *alone(enum hash_algorithm a)
{
    return &engine.class[a];
}

static struct class *beside_md5(enum hash_algorithm a)
{
    return &engine.class[HASH_ALGORITHMS + a];
}

static void advance(const struct class *k, const struct way *w, union hash_state *const *first,
                    union hash_state *const *second, const unsigned char *const *data, size_t units, unsigned n);

/* Move `n` streams on, each algorithm in the lanes that it does best with. */
static void advance_apart(const struct class *k, union hash_state *const *first, union hash_state *const *second,
                          const unsigned char *const *data, size_t units, unsigned n)
{
    const struct class *part[2] = { alone(HASH_MD5), alone(k->second) };
    union hash_state *const *state[2] = { first, second };
    for (unsigned p = 0; p < 2; p++) {
        size_t steps = units * (k->unit / part[p]->unit);
        for (unsigned at = 0, some; at < n; at += some) {
            some = part[p]->take[n - at];
            const struct way *w = &part[p]->way[part[p]->best[some]];
            advance(part[p], w, state[p] + at, state[p] + at, data + at, steps, some);
        }
    }
}

/* Move `n` streams on, at most as many as the way has lanes.  Lanes that are left over repeat the first one's bytes for
 * nobody. */
static void advance(const struct class *k, const struct way *w, union hash_state *const *first,
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
    union hash_state *a[LANES_MAX], *b[LANES_MAX];
    const unsigned char *d[LANES_MAX];
    alignas(64) union hash_state nobody[2][LANES_MAX];
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

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* The least time of seven: what disturbs a measurement only makes it longer. */
static double cost_of(const struct class *k, const struct way *w, const unsigned char *memory)
{
    alignas(64) union hash_state state[2][LANES_MAX];
    union hash_state *first[LANES_MAX], *second[LANES_MAX];
    const unsigned char *data[LANES_MAX];
    for (unsigned i = 0; i < w->width; i++) {
        first[i] = &state[0][i];
        second[i] = &state[1][i];
        hash_init(k->pair ? HASH_MD5 : k->second, first[i]);
        hash_init(k->second, second[i]);
        data[i] = memory + i * (MEASURE + 256);
    }
    size_t units = MEASURE / k->unit;
    double best = 1e18;
    for (int round = 0; round < 8; round++) { /* the first one warms up */
        double begin = now();
        advance(k, w, first, second, data, units, w->width);
        double took = now() - begin;
        if (round > 0 && took < best)
            best = took;
    }
    return (best + 1) / (double)units;
}

/* ns for a unit of each of `n` streams, which the way has lanes for. */
static double cost_with(const struct class *k, const struct way *w, unsigned n)
{
    if (!w->apart)
        return w->cost;
    double sum = 0;
    const struct class *part[2] = { alone(HASH_MD5), alone(k->second) };
    for (unsigned p = 0; p < 2; p++)
        for (unsigned left = n; left > 0; left -= part[p]->take[left])
            sum += part[p]->take[left] / part[p]->rate[left] * (k->unit / part[p]->unit);
    return sum;
}

static void measure(struct class *k)
{
    pthread_mutex_lock(&measuring);
    if (!atomic_load(&k->measured) && k->ways > 0) {
        unsigned char *memory = calloc(LANES_MAX, MEASURE + 256);
        for (unsigned i = 0; i < k->ways; i++) /* without memory to measure in: what is widest is best */
            if (!k->way[i].apart)
                k->way[i].cost = memory != NULL ? cost_of(k, &k->way[i], memory) : 1;
        free(memory);
        k->rate[0] = 0;
        for (unsigned n = 1; n <= LANES_MAX; n++) {
            /* As many as before, unless one more makes it faster. */
            k->rate[n] = k->rate[n - 1];
            k->take[n] = k->take[n - 1];
            for (unsigned i = 0; i < k->ways; i++) {
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

static void ensure_measured(struct class *k)
{
    if (atomic_load(&k->measured))
        return;
    if (k->pair) { /* what it costs apart follows from these */
        ensure_measured(alone(HASH_MD5));
        ensure_measured(alone(k->second));
    }
    measure(k);
}

/* bytes/ns of `n` streams divided among `p` threads, each of them. */
static double rate_among(const struct class *k, unsigned n, unsigned p)
{
    return k->rate[(n + p - 1) / p] * k->unit;
}

/* Is a pair better than two strands with `n` streams on so many processors?  Two strands can be hashed on two
 * processors at once, in lanes of different number; what bounds them is the processors' time, and each algorithm's. */
static bool better_together(const struct class *k, unsigned n, unsigned cores)
{
    const struct class *md5 = alone(HASH_MD5), *other = alone(k->second);
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
    return pair > two;
}

unsigned engine_rates(enum hash_algorithm a, bool with_md5, unsigned widths[ENGINE_WIDTHS], double rates[ENGINE_WIDTHS])
{
    ensure_started();
    struct class *k = with_md5 ? beside_md5(a) : alone(a);
    ensure_measured(k);
    unsigned n = 0;
    for (unsigned i = 0; i < k->ways; i++) {
        /* Apart, the lanes beyond the best number bring nothing. */
        unsigned width = k->way[i].apart ? k->take[LANES_MAX] : k->way[i].width;
        if (k->way[i].apart && k->best[width] != i)
            continue;
        widths[n] = width;
        rates[n++] = 1e9 * k->unit * width / cost_with(k, &k->way[i], width);
    }
    return n;
}

/* The number of processors has changed, or a class has been measured.  Lock held. */
static void decide_together(struct class *k, unsigned cores)
{
    for (unsigned n = 1; n <= LANES_MAX; n++)
        k->together[n] = better_together(k, n, cores < 16 ? cores : 16);
    k->decided_for = cores;
}

/* Are pairs of this class the better choice now?  Lock held. */
static bool together(struct class *k)
{
    if (k->decided_for != engine.cores)
        decide_together(k, engine.cores);
    unsigned n = (unsigned)(engine.stats.live < LANES_MAX ? engine.stats.live : LANES_MAX);
    return k->together[n];
}

/* -- who works ------------------------------------------------------------------------------------------ */

static double rate_of(const struct class *k, unsigned n)
{
    return k->rate[n < LANES_MAX ? n : LANES_MAX];
}

/* How many threads should hash `n` streams.  Fuller lanes do more with a processor, so streams are divided
 * among several where little is lost (70 % of the rate is kept: two streams for two processors), or half of
 * the processors would be idle otherwise and a third is kept.  The other half reads and writes. */
static unsigned parties(const struct class *k, unsigned n)
{
    unsigned p = n < engine.cores ? n : engine.cores;
    for (; p > 1; p--) {
        double kept = rate_of(k, (n + p - 1) / p) / rate_of(k, n);
        if (kept >= 0.7 || (2 * p <= engine.cores && kept >= 0.35))
            break;
    }
    return p > 0 ? p : 1;
}

/* Are as many strands ready as make good lanes?  The others of the class will come: their owners read and write. */
static bool worth_while(const struct class *k)
{
    unsigned n = k->strands < LANES_MAX ? k->strands : LANES_MAX;
    return 2 * k->waiting >= k->take[n];
}

/* The class whose turn it is, if one more thread would be of use.  Among classes with good lanes, and among those
 * without, it is the one whose oldest block came first; a block that has waited for many others goes before all. */
static struct class *wants_work(unsigned more)
{
    struct class *oldest = NULL, *good = NULL;
    unsigned active = 0; /* streams that wait for their sources put nothing before anybody */
    if (engine.workers + more >= engine.cores)
        return NULL;
    for (unsigned c = 0; c < CLASSES; c++) {
        struct class *k = &engine.class[c];
        active += k->waiting + k->running;
        if (k->waiting == 0 || k->workers + more >= parties(k, k->waiting + k->running))
            continue;
        uint64_t stamp = TAILQ_FIRST(&k->ready)->stamp;
        if (oldest == NULL || stamp < TAILQ_FIRST(&oldest->ready)->stamp)
            oldest = k;
        if (worth_while(k) && (good == NULL || stamp < TAILQ_FIRST(&good->ready)->stamp))
            good = k;
    }
    if (oldest == NULL || good == NULL || engine.clock - TAILQ_FIRST(&oldest->ready)->stamp > PATIENCE * active)
        return oldest;
    return good;
}

static void call(struct hand *h, bool to_work)
{
    h->called = true;
    h->to_work = to_work;
    engine.coming += to_work;
    TAILQ_REMOVE(&engine.idle, h, link);
    pthread_cond_signal(&h->cond);
}

/* Have a sleeping thread work if that would be of use. */
static void call_somebody(void)
{
    struct hand *h = TAILQ_FIRST(&engine.idle);
    if (h != NULL && wants_work(engine.coming) != NULL)
        call(h, true);
}

/* Sleep until called.  Helpers are called before owners, who have their own streams to look after. */
static void doze(struct hand **place, bool helper)
{
    struct hand h = { .cond = PTHREAD_COND_INITIALIZER };
    if (helper)
        TAILQ_INSERT_HEAD(&engine.idle, &h, link);
    else
        TAILQ_INSERT_TAIL(&engine.idle, &h, link);
    *place = &h;
    while (!h.called)
        pthread_cond_wait(&h.cond, &engine.lock);
    *place = NULL;
    engine.coming -= h.to_work;
}

static uint64_t lowest(const struct stream *s)
{
    uint64_t done = s->posted;
    for (unsigned i = 0; i < s->n; i++)
        if (s->strand[i].next - 1 < done)
            done = s->strand[i].next - 1;
    return done;
}

static void enqueue(struct strand *t)
{
    struct class *k = t->class;
    if (t->at == 0) {
        t->stamp = ++engine.clock;
        TAILQ_INSERT_TAIL(&k->ready, t, link);
    } else {
        TAILQ_INSERT_HEAD(&k->ready, t, link); /* what is begun is finished first */
    }
    t->queued = true;
    k->waiting++;
}

static void dequeue(struct strand *t)
{
    TAILQ_REMOVE(&t->class->ready, t, link);
    t->queued = false;
    t->class->waiting--;
}

/* What a worker does for one strand in one step. */
struct task {
    struct strand *strand;
    const unsigned char *data; /* the rest of its block */
    size_t len;
};

static void run_one(struct strand *t, const unsigned char *data, size_t units)
{
    union hash_state *first = &t->state[0], *second = &t->state[1];
    advance(t->class, &t->class->way[0], &first, &second, &data, units, 1);
}

static void consumed(struct task *task, size_t n)
{
    task->data += n;
    task->len -= n;
    task->strand->total += n;
    task->strand->at += n;
}

static void into_tail(struct task *task, size_t most)
{
    struct strand *t = task->strand;
    size_t n = task->len < most ? task->len : most;
    memcpy(t->tail + t->tail_len, task->data, n);
    t->tail_len += (unsigned)n;
    consumed(task, n);
}

/* One step of `n` strands of a class.  No lock held. */
static void step(const struct class *k, const struct way *w, struct task *task, unsigned n)
{
    union hash_state *first[LANES_MAX], *second[LANES_MAX];
    const unsigned char *data[LANES_MAX];
    struct task *in[LANES_MAX];
    unsigned filled = 0;
    size_t most = w->width > 1 ? STEP : STEP_ALONE;
    for (unsigned i = 0; i < n; i++) {
        struct strand *t = task[i].strand;
        if (t->tail_len > 0) {
            into_tail(&task[i], k->unit - t->tail_len);
            if (t->tail_len == k->unit) {
                run_one(t, t->tail, 1);
                t->tail_len = 0;
            }
        }
        if (task[i].len < k->unit)
            continue;
        first[filled] = &t->state[0];
        second[filled] = &t->state[1];
        data[filled] = task[i].data;
        in[filled++] = &task[i];
        if (task[i].len < most)
            most = task[i].len;
    }
    size_t units = most / k->unit;
    if (filled == 1)
        run_one(in[0]->strand, data[0], units);
    else if (filled > 1)
        advance(k, w, first, second, data, units, filled);
    for (unsigned i = 0; i < filled; i++)
        consumed(in[i], units * k->unit);
    for (unsigned i = 0; i < n; i++)
        if (task[i].len < k->unit)
            into_tail(&task[i], task[i].len);
}

/* Take as many streams as pay and move them on.  False: nothing to do for one more thread.  Called and left
 * with the lock held. */
static bool work(void)
{
    struct class *k = wants_work(0);
    if (k == NULL)
        return false;
    struct task task[LANES_MAX];
    unsigned live = k->waiting + k->running, among = parties(k, live);
    unsigned n = (live + among - 1) / among;
    if (n > k->waiting)
        n = k->waiting;
    n = k->take[n < LANES_MAX ? n : LANES_MAX];
    const struct way *w = &k->way[k->best[n]];
    uint64_t before = 0;
    for (unsigned i = 0; i < n; i++) {
        struct strand *t = TAILQ_FIRST(&k->ready);
        const struct block *b = &t->stream->block[t->next % t->stream->depth];
        dequeue(t);
        t->running = true;
        task[i] = (struct task){ t, b->data + t->at, b->len - t->at };
        before += task[i].len;
    }
    k->running += n;
    k->workers++;
    engine.workers++;
    call_somebody();
    pthread_mutex_unlock(&engine.lock);
    step(k, w, task, n);
    pthread_mutex_lock(&engine.lock);
    k->workers--;
    engine.workers--;
    k->running -= n;
    engine.stats.steps++;
    engine.stats.lanes += n;
    for (unsigned i = 0; i < n; i++) {
        struct strand *t = task[i].strand;
        struct stream *s = t->stream;
        before -= task[i].len;
        t->running = false;
        if (task[i].len == 0) {
            t->next++;
            t->at = 0;
        }
        if (!s->closing && t->next <= s->posted)
            enqueue(t);
        if (s->owner != NULL && !s->owner->called && (s->closing || lowest(s) >= s->wanted))
            call(s->owner, false);
    }
    engine.stats.bytes += before * (k->pair ? 2 : 1);
    return true;
}

static void wait_locked(struct stream *s, uint64_t ticket)
{
    bool worked = false;
    while (lowest(s) < ticket) {
        if (work()) {
            worked = true;
            continue;
        }
        s->wanted = ticket;
        doze(&s->owner, false);
        worked = true; /* or was called to, and does not come */
    }
    if (worked)
        call_somebody();
}

/* -- helpers -------------------------------------------------------------------------------------------- */

static void *help(void *arg)
{
    struct stream *s = arg;
    pthread_mutex_lock(&engine.lock);
    while (!s->closing)
        if (!work())
            doze(&s->helper, true);
    call_somebody();
    pthread_mutex_unlock(&engine.lock);
    return NULL;
}

/* A thread beside the owner, where processors are to spare: always on one of two, and on all that have no
 * stream of their own.  A thread that cannot be had is no error: owners hash while they wait. */
static void maybe_hire(struct stream *s)
{
    /* One block alone is not worth a thread: starting one costs as much as hashing 32 KiB. */
    if (s->helped || s->posted < 2 || engine.cores < 2)
        return;
    if (2 * engine.helpers >= engine.cores && engine.helpers + engine.stats.live >= engine.cores)
        return;
    /* Signals are Python's main thread's business: a helper takes none. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    s->helped = pthread_create(&s->helper_thread, NULL, help, s) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    engine.helpers += s->helped;
    engine.stats.helpers += s->helped;
}

/* -- the set of digests ----------------------------------------------------------------------------------- */

/* Whole blocks of the tail, which is of a larger unit, into the state. */
static void shorten_tail(struct strand *t)
{
    unsigned unit = t->class->unit, whole = t->tail_len / unit * unit;
    if (whole == 0)
        return;
    run_one(t, t->tail, whole / unit);
    memmove(t->tail, t->tail + whole, t->tail_len - whole);
    t->tail_len -= whole;
}

/* Two strands out of a pair that nobody works on. */
static void split(struct stream *s, struct strand *t)
{
    struct strand *other = &s->strand[s->n++];
    *other = *t;
    t->class->strands--;
    other->class = alone(t->class->second);
    other->state[0] = t->state[1];
    other->class->strands++;
    t->class = alone(HASH_MD5);
    t->class->strands++;
    shorten_tail(t);
    shorten_tail(other);
}

static int engine_post(struct digests *d, const void *data, size_t len, uint64_t *ticket)
{
    struct stream *s = (struct stream *)d;
    pthread_mutex_lock(&engine.lock);
    uint64_t t = s->posted + 1;
    if (t > s->depth)
        wait_locked(s, t - s->depth);
    s->block[t % s->depth] = (struct block){ data, len };
    s->posted = t;
    *ticket = t;
    struct strand *last = &s->strand[s->n - 1]; /* where a pair would be */
    if (last->class->pair && !last->queued && !last->running && !together(last->class))
        split(s, last);
    for (unsigned i = 0; i < s->n; i++)
        if (!s->strand[i].queued && !s->strand[i].running)
            enqueue(&s->strand[i]);
    maybe_hire(s);
    call_somebody();
    pthread_mutex_unlock(&engine.lock);
    return 0;
}

static int engine_wait(struct digests *d, uint64_t ticket)
{
    pthread_mutex_lock(&engine.lock);
    wait_locked((struct stream *)d, ticket);
    pthread_mutex_unlock(&engine.lock);
    return 0;
}

static uint64_t engine_done(struct digests *d)
{
    pthread_mutex_lock(&engine.lock);
    uint64_t done = lowest((struct stream *)d);
    pthread_mutex_unlock(&engine.lock);
    return done;
}

static bool any_running(const struct stream *s)
{
    for (unsigned i = 0; i < s->n; i++)
        if (s->strand[i].running)
            return true;
    return false;
}

static void engine_free(struct digests *d)
{
    struct stream *s = (struct stream *)d;
    pthread_mutex_lock(&engine.lock);
    s->closing = true;
    for (unsigned i = 0; i < s->n; i++) {
        s->strand[i].class->strands--;
        if (s->strand[i].queued)
            dequeue(&s->strand[i]);
    }
    if (s->helper != NULL && !s->helper->called)
        call(s->helper, false);
    while (any_running(s))
        if (!work())
            doze(&s->owner, false);
    call_somebody(); /* it may have been this thread that was called to work */
    engine.stats.live--;
    pthread_mutex_unlock(&engine.lock);
    if (s->helped) {
        pthread_join(s->helper_thread, NULL);
        pthread_mutex_lock(&engine.lock);
        engine.helpers--;
        pthread_mutex_unlock(&engine.lock);
    }
    free(s->strand);
    free(s);
}

static void add_strand(struct stream *s, struct class *k)
{
    struct strand *t = &s->strand[s->n++];
    memset(t, 0, sizeof *t);
    t->stream = s;
    t->class = k;
    t->next = 1;
    hash_init(k->pair ? HASH_MD5 : k->second, &t->state[0]);
    hash_init(k->second, &t->state[1]);
    k->strands++;
}

/* The strands for the `n` algorithms: MD5 with another one, if that can be, and each of the others.  A pair is the
 * last of them.  Lock held; the classes are measured. */
static void add_strands(struct stream *s, unsigned n, unsigned md5, unsigned partner)
{
    for (unsigned i = 0; i < n; i++)
        if (i != partner && (i != md5 || partner == n))
            add_strand(s, alone(s->algorithm[i]));
    if (partner < n)
        add_strand(s, beside_md5(s->algorithm[partner]));
}

struct digests *engine_new(const enum hash_algorithm *algorithms, unsigned n, unsigned depth)
{
    static const struct digests_ops ops = { engine_post, engine_wait, engine_done, engine_free };
    if (n < 1 || n > ENGINE_DIGESTS || depth < 2) {
        errno = EINVAL;
        return NULL;
    }
    ensure_started();
    if (engine.kernels == NULL) {
        errno = ENOSYS;
        return NULL;
    }
    unsigned cores = (unsigned)cores_usable();
    struct stream *s = calloc(1, sizeof *s + depth * sizeof s->block[0]);
    if (s == NULL)
        return NULL;
    s->strand = aligned_alloc(alignof(struct strand), n * sizeof *s->strand);
    if (s->strand == NULL) {
        free(s);
        return NULL;
    }
    s->base.ops = &ops;
    s->depth = depth;
    memcpy(s->algorithm, algorithms, n * sizeof *algorithms);
    unsigned md5 = n, partner = n;
    for (unsigned i = 0; i < n; i++) {
        ensure_measured(alone(algorithms[i]));
        if (algorithms[i] == HASH_MD5)
            md5 = i;
        else if (partner == n && beside_md5(algorithms[i])->ways > 0)
            partner = i;
    }
    if (md5 == n)
        partner = n;
    if (partner < n)
        ensure_measured(beside_md5(algorithms[partner]));
    pthread_mutex_lock(&engine.lock);
    engine.cores = cores;
    engine.stats.live++;
    engine.stats.streams++;
    add_strands(s, n, md5, partner);
    pthread_mutex_unlock(&engine.lock);
    return &s->base;
}

/* The digest that `state` and up to UNIT_MAX - 1 bytes of tail give. */
static unsigned finish(enum hash_algorithm a, const union hash_state *state, const unsigned char *tail, unsigned len,
                       uint64_t total, unsigned char *out)
{
    union hash_state s = *state;
    unsigned blocks = len / hash_info[a].block;
    if (blocks > 0)
        engine.kernels->one[a](&s, tail, blocks);
    hash_final(a, engine.kernels, &s, tail + blocks * hash_info[a].block, total, out);
    return hash_info[a].digest;
}

unsigned engine_digest(struct digests *d, unsigned i, unsigned char out[ENGINE_DIGEST_SIZE])
{
    const struct stream *s = (const struct stream *)d;
    enum hash_algorithm a = s->algorithm[i];
    for (unsigned j = 0; j < s->n; j++) {
        const struct strand *t = &s->strand[j];
        if (t->class->second == a)
            return finish(a, &t->state[t->class->pair], t->tail, t->tail_len, t->total, out);
        if (t->class->pair && a == HASH_MD5)
            return finish(a, &t->state[0], t->tail, t->tail_len, t->total, out);
    }
    return 0;
}

void engine_once(const enum hash_algorithm *algorithms, unsigned n, const void *data, size_t len,
                 unsigned char out[][ENGINE_DIGEST_SIZE])
{
    ensure_started();
    const unsigned char *p = data;
    if (n == 2 && algorithms[0] == HASH_MD5 && engine.kernels->pair[algorithms[1]] != NULL) {
        union hash_state md5, second;
        size_t units = len / UNIT_MAX, done = units * UNIT_MAX;
        hash_init(HASH_MD5, &md5);
        hash_init(algorithms[1], &second);
        if (units > 0)
            engine.kernels->pair[algorithms[1]](&md5, &second, p, units);
        finish(HASH_MD5, &md5, p + done, (unsigned)(len - done), len, out[0]);
        finish(algorithms[1], &second, p + done, (unsigned)(len - done), len, out[1]);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        union hash_state s;
        size_t blocks = len / hash_info[algorithms[i]].block, done = blocks * hash_info[algorithms[i]].block;
        hash_init(algorithms[i], &s);
        if (blocks > 0)
            engine.kernels->one[algorithms[i]](&s, p, blocks);
        finish(algorithms[i], &s, p + done, (unsigned)(len - done), len, out[i]);
    }
}

struct by_length {
    size_t len, index;
};

static int longest_first(const void *a, const void *b)
{
    size_t x = ((const struct by_length *)a)->len, y = ((const struct by_length *)b)->len;
    return (x < y) - (x > y);
}

/* The whole units of all objects, longest first, so that lanes that run together are of about the same length; a lane
 * that is done takes the next object. */
static void many_of_class(const struct class *k, const struct engine_object *objects, const struct by_length *order,
                          size_t count, union hash_state (*states)[2])
{
    union hash_state *first[LANES_MAX], *second[LANES_MAX];
    const unsigned char *data[LANES_MAX];
    size_t left[LANES_MAX], next = 0, steps = 0, lanes = 0, bytes = 0;
    unsigned n = 0;
    for (;;) {
        while (n < k->take[LANES_MAX] && next < count && order[next].len >= k->unit) {
            const struct by_length *o = &order[next++];
            first[n] = &states[o->index][0];
            second[n] = &states[o->index][1];
            data[n] = objects[o->index].data;
            left[n++] = o->len / k->unit;
        }
        if (n == 0)
            break;
        unsigned some = k->take[n];
        size_t units = left[0];
        for (unsigned i = 1; i < some; i++)
            units = left[i] < units ? left[i] : units;
        advance(k, &k->way[k->best[some]], first, second, data, units, some);
        steps++;
        lanes += some;
        bytes += some * units * k->unit * (k->pair ? 2 : 1);
        for (unsigned i = some; i-- > 0;) {
            data[i] += units * k->unit;
            left[i] -= units;
            if (left[i] == 0) {
                n--;
                first[i] = first[n], second[i] = second[n], data[i] = data[n], left[i] = left[n];
            }
        }
    }
    pthread_mutex_lock(&engine.lock);
    engine.stats.steps += steps;
    engine.stats.lanes += lanes;
    engine.stats.bytes += bytes;
    pthread_mutex_unlock(&engine.lock);
}

int engine_many(const enum hash_algorithm *algorithms, unsigned n, struct engine_object *objects, size_t count)
{
    if (n < 1 || n > ENGINE_DIGESTS)
        return -EINVAL;
    ensure_started();
    if (engine.kernels == NULL)
        return -ENOSYS;
    struct by_length *order = calloc(count + 1, sizeof *order);
    union hash_state(*states)[2] = aligned_alloc(alignof(union hash_state), (count + 1) * sizeof *states);
    if (order == NULL || states == NULL) {
        free(order);
        free(states);
        return -ENOMEM;
    }
    for (size_t j = 0; j < count; j++)
        order[j] = (struct by_length){ objects[j].len, j };
    qsort(order, count, sizeof *order, longest_first);
    for (unsigned i = 0; i < n; i++) {
        bool pair = n == 2 && i == 0 && algorithms[0] == HASH_MD5 && beside_md5(algorithms[1])->ways > 0;
        struct class *k = pair ? beside_md5(algorithms[1]) : alone(algorithms[i]);
        ensure_measured(k);
        for (size_t j = 0; j < count; j++) {
            hash_init(algorithms[i], &states[j][0]);
            hash_init(k->second, &states[j][1]);
        }
        many_of_class(k, objects, order, count, states);
        for (unsigned p = 0; p <= pair; p++)
            for (size_t j = 0; j < count; j++) {
                size_t len = objects[j].len, done = len / k->unit * k->unit;
                const unsigned char *rest = len > 0 ? (const unsigned char *)objects[j].data + done : NULL;
                finish(algorithms[i + p], &states[j][p], rest, (unsigned)(len - done), len,
                       objects[j].digest[i + p]);
            }
        i += pair;
    }
    free(order);
    free(states);
    return 0;
}

void engine_stats(struct engine_stats *out)
{
    pthread_mutex_lock(&engine.lock);
    *out = engine.stats;
    pthread_mutex_unlock(&engine.lock);
}
