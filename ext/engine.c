/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "cores.h"
#include "ways.h"

enum {
    /* Bytes a stream moves on in one step: short enough for late arrivals to join soon, long enough for the
     * 1 us that a step costs besides.  Alone, nobody is kept waiting by a longer one. */
    STEP = 16 * 1024,
    STEP_ALONE = 64 * 1024,
    /* How many blocks of each strand that has some may go before one whose class has few lanes.  16 was no faster (16
     * streams of MD5 and SHA-512) and had a lone block wait for 21 instead of 7 MB of others. */
    PATIENCE = 4,
};

struct strand;
TAILQ_HEAD(strands, strand);

/* Streams that can share lanes. */
struct class {
    struct ways *ways;
    bool together[WAYS_LANES + 1]; /* a pair: with so many streams it is better than two strands */
    unsigned decided_for;         /* on so many processors */

    struct strands ready; /* strands with bytes to hash that nobody works on, the oldest block first */
    unsigned strands;     /* all that there are */
    unsigned waiting;     /* those that are ready */
    unsigned running;     /* those that somebody works on */
    unsigned workers;     /* threads that do */
};

/* The digests of a stream that advance together: one, or MD5 and another. */
struct strand {
    alignas(64) union hash_state state[2];
    unsigned char tail[HASH_UNIT];
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
    struct class class[WAYS_CLASSES];
    TAILQ_HEAD(, hand) idle;
    unsigned coming; /* hands that were called to work and are not there yet */
    unsigned helpers;
    unsigned workers; /* threads inside a step */
    unsigned cores;
    uint64_t clock;
    struct engine_stats stats;
} engine = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void reset_queues(void)
{
    TAILQ_INIT(&engine.idle);
    for (unsigned c = 0; c < WAYS_CLASSES; c++) {
        struct class *k = &engine.class[c];
        k->ways = ways_of(c);
        k->decided_for = 0;
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
    ways_begin_anew();
    reset_queues();
}

static void start(void)
{
    pthread_atfork(NULL, NULL, begin_anew);
    if (ways_kernels() == NULL)
        ways_select(NULL);
    reset_queues();
    engine.cores = (unsigned)cores_usable();
}

void engine_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}

const char *engine_select(const char *name)
{
    engine_start();
    const char *why = ways_select(name);
    if (why != NULL)
        return why;
    pthread_mutex_lock(&engine.lock);
    for (unsigned c = 0; c < WAYS_CLASSES; c++)
        engine.class[c].decided_for = 0;
    pthread_mutex_unlock(&engine.lock);
    return NULL;
}

const char *engine_kernels(void)
{
    engine_start();
    return ways_kernels() != NULL ? ways_kernels()->name : NULL;
}

unsigned engine_rates(enum hash_algorithm a, bool with_md5, unsigned widths[WAYS_MAX], double rates[WAYS_MAX])
{
    engine_start();
    return ways_rates(with_md5 ? ways_beside_md5(a) : ways_alone(a), widths, rates);
}

static struct class *class_of(const struct ways *k)
{
    return &engine.class[k - ways_of(0)];
}

/* The number of processors has changed, or a class has been measured.  Lock held. */
static void decide_together(struct class *k, unsigned cores)
{
    for (unsigned n = 1; n <= WAYS_LANES; n++)
        k->together[n] = ways_better_together(k->ways, n, cores < 16 ? cores : 16);
    k->decided_for = cores;
}

/* Are pairs of this class the better choice now?  Lock held. */
static bool together(struct class *k)
{
    if (k->decided_for != engine.cores)
        decide_together(k, engine.cores);
    unsigned n = (unsigned)(engine.stats.live < WAYS_LANES ? engine.stats.live : WAYS_LANES);
    return k->together[n];
}

/* -- who works ------------------------------------------------------------------------------------------ */

/* How many threads should hash `n` streams.  Fuller lanes do more with a processor, so streams are divided
 * among several where little is lost (70 % of the rate is kept: two streams for two processors), or half of
 * the processors would be idle otherwise and a third is kept.  The other half reads and writes. */
static unsigned parties(const struct class *k, unsigned n)
{
    unsigned p = n < engine.cores ? n : engine.cores;
    for (; p > 1; p--) {
        double kept = ways_rate(k->ways, (n + p - 1) / p) / ways_rate(k->ways, n);
        if (kept >= 0.7 || (2 * p <= engine.cores && kept >= 0.35))
            break;
    }
    return p > 0 ? p : 1;
}

/* Are as many strands ready as make good lanes?  The others of the class will come: their owners read and write. */
static bool worth_while(const struct class *k)
{
    unsigned n = k->strands < WAYS_LANES ? k->strands : WAYS_LANES;
    return 2 * k->waiting >= k->ways->take[n];
}

/* The class whose turn it is, if one more thread would be of use.  Among classes with good lanes, and among those
 * without, it is the one whose oldest block came first; a block that has waited for many others goes before all. */
static struct class *wants_work(unsigned more)
{
    struct class *oldest = NULL, *good = NULL;
    unsigned active = 0; /* streams that wait for their sources put nothing before anybody */
    if (engine.workers + more >= engine.cores)
        return NULL;
    for (unsigned c = 0; c < WAYS_CLASSES; c++) {
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
    ways_advance_one(t->class->ways, &t->state[0], &t->state[1], data, units);
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
static void step(const struct ways *k, const struct way *w, struct task *task, unsigned n)
{
    union hash_state *first[WAYS_LANES], *second[WAYS_LANES];
    const unsigned char *data[WAYS_LANES];
    struct task *in[WAYS_LANES];
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
        ways_advance(k, w, first, second, data, units, filled);
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
    struct task task[WAYS_LANES];
    unsigned live = k->waiting + k->running, among = parties(k, live);
    unsigned n = (live + among - 1) / among;
    if (n > k->waiting)
        n = k->waiting;
    n = k->ways->take[n < WAYS_LANES ? n : WAYS_LANES];
    const struct way *w = ways_best(k->ways, n);
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
    step(k->ways, w, task, n);
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
    engine.stats.bytes += before * (k->ways->pair ? 2 : 1);
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
    unsigned unit = t->class->ways->unit, whole = t->tail_len / unit * unit;
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
    other->class = class_of(ways_alone(t->class->ways->second));
    other->state[0] = t->state[1];
    other->class->strands++;
    t->class = class_of(ways_alone(HASH_MD5));
    t->class->strands++;
    shorten_tail(t);
    shorten_tail(other);
}

/* The class in which all digests of the stream would advance together. */
static struct class *common_class(const struct stream *s)
{
    if (s->n == 1)
        return s->strand[0].class;
    const struct ways *second = s->strand[s->n - 1].class->ways;
    if (s->n == 2 && s->strand[0].class == class_of(ways_alone(HASH_MD5)) && ways_beside_md5(second->second)->count > 0)
        return class_of(ways_beside_md5(second->second));
    return NULL;
}

/* A pair again, out of the two strands that it was split into: nothing is queued, no tail is left. */
static void unite(struct stream *s)
{
    struct strand *t = &s->strand[0], *other = &s->strand[--s->n];
    struct class *pair = class_of(ways_beside_md5(other->class->ways->second));
    t->state[1] = other->state[0];
    other->class->strands--;
    t->class->strands--;
    t->class = pair;
    t->class->strands++;
}

static int engine_post(struct digests *d, const void *data, size_t len, uint64_t *ticket)
{
    struct stream *s = (struct stream *)d;
    pthread_mutex_lock(&engine.lock);
    uint64_t t = s->posted + 1;
    if (len == 0 && lowest(s) == s->posted) { /* nothing to wait for, and nobody is needed */
        *ticket = s->posted = t;
        for (unsigned i = 0; i < s->n; i++)
            s->strand[i].next++;
        pthread_mutex_unlock(&engine.lock);
        return 0;
    }
    if (t > s->depth)
        wait_locked(s, t - s->depth);
    s->block[t % s->depth] = (struct block){ data, len };
    s->posted = t;
    *ticket = t;
    struct strand *last = &s->strand[s->n - 1]; /* where a pair would be */
    if (last->class->ways->pair && !last->queued && !last->running && !together(last->class))
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

/* Without the lock: nothing is queued, so nobody else looks. */
static uint64_t engine_moved(struct digests *d, size_t len)
{
    struct stream *s = (struct stream *)d;
    s->strand[0].total += len;
    s->strand[0].next++;
    return ++s->posted;
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

static void add_strand(struct stream *s, const struct ways *k)
{
    struct strand *t = &s->strand[s->n++];
    memset(t, 0, sizeof *t);
    t->stream = s;
    t->class = class_of(k);
    t->next = 1;
    hash_init(k->pair ? HASH_MD5 : k->second, &t->state[0]);
    hash_init(k->second, &t->state[1]);
    t->class->strands++;
}

/* The strands for the `n` algorithms: MD5 with another one, if that can be, and each of the others.  A pair is the
 * last of them.  Lock held; the classes are measured. */
static void add_strands(struct stream *s, unsigned n, unsigned md5, unsigned partner)
{
    for (unsigned i = 0; i < n; i++)
        if (i != partner && (i != md5 || partner == n))
            add_strand(s, ways_alone(s->algorithm[i]));
    if (partner < n)
        add_strand(s, ways_beside_md5(s->algorithm[partner]));
}

struct digests *engine_new(const enum hash_algorithm *algorithms, unsigned n, unsigned depth)
{
    static const struct digests_ops ops = { engine_post, engine_wait, engine_done, engine_free, engine_moved, false };
    if (n < 1 || n > ENGINE_DIGESTS || depth < 2) {
        errno = EINVAL;
        return NULL;
    }
    engine_start();
    if (ways_kernels() == NULL) {
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
        ways_measure(ways_alone(algorithms[i]));
        if (algorithms[i] == HASH_MD5)
            md5 = i;
        else if (partner == n && ways_beside_md5(algorithms[i])->count > 0)
            partner = i;
    }
    if (md5 == n)
        partner = n;
    if (partner < n)
        ways_measure(ways_beside_md5(algorithms[partner]));
    pthread_mutex_lock(&engine.lock);
    engine.cores = cores;
    engine.stats.live++;
    engine.stats.streams++;
    add_strands(s, n, md5, partner);
    pthread_mutex_unlock(&engine.lock);
    return &s->base;
}

unsigned engine_digest(struct digests *d, unsigned i, unsigned char out[ENGINE_DIGEST_SIZE])
{
    const struct stream *s = (const struct stream *)d;
    enum hash_algorithm a = s->algorithm[i];
    for (unsigned j = 0; j < s->n; j++) {
        const struct strand *t = &s->strand[j];
        const struct ways *k = t->class->ways;
        if (k->second != a && !(k->pair && a == HASH_MD5))
            continue;
        union hash_state state = t->state[k->pair && k->second == a];
        return hash_final(a, ways_kernels(), &state, t->tail, t->tail_len, t->total, out);
    }
    return 0;
}

const struct ways *engine_ways(struct digests *d)
{
    const struct class *k = common_class((const struct stream *)d);
    return k != NULL ? k->ways : NULL;
}

union hash_state *engine_lend(struct digests *d)
{
    struct stream *s = (struct stream *)d;
    pthread_mutex_lock(&engine.lock);
    bool idle = lowest(s) == s->posted;
    for (unsigned i = 0; i < s->n; i++)
        idle = idle && s->strand[i].tail_len == 0;
    if (idle && s->n == 2)
        unite(s);
    pthread_mutex_unlock(&engine.lock);
    return idle ? s->strand[0].state : NULL;
}

unsigned engine_cores(void)
{
    pthread_mutex_lock(&engine.lock);
    unsigned cores = engine.cores;
    pthread_mutex_unlock(&engine.lock);
    return cores;
}

void engine_count(uint64_t steps, uint64_t lanes, uint64_t bytes)
{
    pthread_mutex_lock(&engine.lock);
    engine.stats.steps += steps;
    engine.stats.lanes += lanes;
    engine.stats.bytes += bytes;
    pthread_mutex_unlock(&engine.lock);
}

void engine_stats(struct engine_stats *out)
{
    pthread_mutex_lock(&engine.lock);
    *out = engine.stats;
    pthread_mutex_unlock(&engine.lock);
}
