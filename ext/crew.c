/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "crew.h"

#include <errno.h>
#include <pthread.h>
#include <sys/queue.h>
#include <time.h>

#include "engine.h"
#include "fsops.h"

enum {
    /* What a driver reads of all his streams in a round: half of a second-level cache of 1 MiB. */
    ROUND = 512 * 1024,
    PIECE_LEAST = 16 * 1024,
    PIECE_MOST = 64 * 1024,
    /* After so many bytes a stream makes way for one that waits. */
    TURN = 1024 * 1024,
    /* A block that takes longer to write, in ns, is no matter of memory: its stream goes alone. */
    SLOW = 20 * 1000 * 1000,
};

/* How a ride ends without a result of pump_read: the source has nothing in memory; a digest that is not the engine's has
 * not caught up.  And what is said where there is nothing for a crew to do. */
enum { NOT_READY = 2, BUSY, NO_CREW };

struct ride {
    struct pump *pump;
    struct pump_source *source;
    uint64_t budget;
    bool in_memory; /* the source is: reading it never waits */
    union hash_state *state; /* [2] */
    uint64_t turn_ends; /* the budget that is left then */
    bool ended; /* known to who drives it */
    int result;
    bool waits; /* for somebody to drive it */
    bool over;  /* known to all: nobody drives it any more */
    pthread_cond_t called;
    TAILQ_ENTRY(ride) link;
};

/* The rides of one class of the engine, which can share lanes. */
struct crew {
    TAILQ_HEAD(, ride) waiting;
    unsigned callers; /* those that could ride, and those that do */
    unsigned rides;   /* those that wait, and those that somebody drives */
    unsigned drivers;
};

static struct {
    pthread_mutex_t lock;
    struct crew crew[WAYS_CLASSES];
} all = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void begin_anew(void)
{
    pthread_mutex_init(&all.lock, NULL);
    for (unsigned c = 0; c < WAYS_CLASSES; c++) {
        TAILQ_INIT(&all.crew[c].waiting);
        all.crew[c].callers = all.crew[c].rides = all.crew[c].drivers = 0;
    }
}

static void start(void)
{
    begin_anew();
    pthread_atfork(NULL, NULL, begin_anew);
}

static struct crew *crew_of(const struct ways *k)
{
    return &all.crew[k - ways_of(0)];
}

static void count_caller(const struct ways *k, int n)
{
    pthread_mutex_lock(&all.lock);
    crew_of(k)->callers += (unsigned)n;
    pthread_mutex_unlock(&all.lock);
}

/* How many streams each processor has, so that all are driven. */
static unsigned share_of(unsigned streams, unsigned cores)
{
    return (streams + cores - 1) / cores;
}

/* -- one round ------------------------------------------------------------------------------------------ */

static size_t unhashed(const struct ride *r)
{
    return r->pump->fill - r->pump->hashed;
}

/* Have about `most` bytes to hash. */
static void fill(struct ride *r, size_t most)
{
    struct pump *p = r->pump;
    if (unhashed(r) >= most || p->fill == PUMP_BLOCK)
        return;
    most -= unhashed(r);
    if (r->budget < most)
        most = (size_t)r->budget;
    ssize_t n = pump_fill_ready(p, r->source, most, r->in_memory);
    if (n > 0) {
        r->budget -= (uint64_t)n;
    } else {
        r->ended = true;
        r->result = n == 0 || n == -ECANCELED ? (int)n : n == -EBUSY ? BUSY : NOT_READY;
    }
}

/* Hash what the rides have read, as many at a time as is best and as much as all of these have: what is left of the
 * others is hashed in the next round, in full lanes again. */
static void hash(const struct ways *k, struct ride *const *lane, unsigned n)
{
    struct ride *in[WAYS_LANES];
    uint64_t steps = 0, lanes = 0, bytes = 0;
    unsigned ready = 0;
    for (unsigned i = 0; i < n; i++)
        if (unhashed(lane[i]) >= k->unit)
            in[ready++] = lane[i];
    for (unsigned at = 0, some; at < ready; at += some) {
        union hash_state *first[WAYS_LANES], *second[WAYS_LANES];
        const unsigned char *data[WAYS_LANES];
        size_t len = PUMP_BLOCK;
        some = k->take[ready - at];
        for (unsigned i = 0; i < some; i++) {
            struct ride *r = in[at + i];
            first[i] = &r->state[0];
            second[i] = &r->state[1];
            data[i] = pump_open_block(r->pump) + r->pump->hashed;
            len = unhashed(r) < len ? unhashed(r) : len;
        }
        len -= len % k->unit;
        ways_advance(k, ways_best(k, some), first, second, data, len / k->unit, some);
        for (unsigned i = 0; i < some; i++)
            in[at + i]->pump->hashed += len;
        steps++;
        lanes += some;
        bytes += some * len * (k->pair ? 2 : 1);
    }
    engine_count(steps, lanes, bytes);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Send a full block on its way. */
static void flush(struct ride *r)
{
    uint64_t begin = now();
    int err = pump_flush(r->pump);
    if (err < 0) {
        r->ended = true;
        r->result = err;
    } else if (now() - begin > SLOW) {
        r->pump->alone = true;
        if (!r->ended) {
            r->ended = true;
            r->result = NOT_READY;
        }
    }
}

/* No lock held. */
static void drive_on(const struct ways *k, struct ride *const *lane, unsigned n)
{
    size_t piece = PIECE_MOST; /* halves of a block, so that all come to its end in step */
    while (piece > PIECE_LEAST && n * piece > ROUND)
        piece /= 2;
    for (unsigned i = 0; i < n; i++)
        fill(lane[i], piece);
    hash(k, lane, n);
    for (unsigned i = 0; i < n; i++) {
        struct ride *r = lane[i];
        if (r->pump->hashed == PUMP_BLOCK)
            flush(r);
        if (!r->ended && (r->source->limit == 0 || r->budget == 0)) {
            r->ended = true;
            r->result = r->source->limit > 0;
        }
    }
}

/* -- who drives ----------------------------------------------------------------------------------------- */

/* Has the crew room for one more driver?  Each class has at least one: they know nothing of one another. */
static bool may_drive(const struct crew *c, unsigned cores)
{
    unsigned drivers = 0;
    for (unsigned i = 0; i < WAYS_CLASSES; i++)
        drivers += all.crew[i].drivers;
    return drivers < cores || c->drivers == 0;
}

/* Have an owner drive whose ride waits.  Lock held. */
static void call_driver(struct crew *c, unsigned cores)
{
    struct ride *r = TAILQ_FIRST(&c->waiting);
    if (r != NULL && may_drive(c, cores))
        pthread_cond_signal(&r->called);
}

static void put_back(struct crew *c, struct ride *r)
{
    TAILQ_INSERT_HEAD(&c->waiting, r, link);
    r->waits = true;
}

static struct ride *take(struct crew *c, struct ride *r)
{
    TAILQ_REMOVE(&c->waiting, r, link);
    r->waits = false;
    r->turn_ends = r->budget > TURN ? r->budget - TURN : 0;
    return r;
}

/* While others wait, those whose turn is over wait behind them.  Returns how many are left. */
static unsigned end_turns(struct crew *c, struct ride **lane, unsigned n, const struct ride *own)
{
    unsigned on = 0;
    for (unsigned i = 0; i < n; i++) {
        if (lane[i] == own || lane[i]->budget > lane[i]->turn_ends) {
            lane[on++] = lane[i];
            continue;
        }
        TAILQ_INSERT_TAIL(&c->waiting, lane[i], link);
        lane[i]->waits = true;
    }
    return on;
}

/* Drive until the own ride, which waits, is over.  Called and left with the lock held. */
static void drive(const struct ways *k, struct crew *c, struct ride *own, unsigned cores)
{
    struct ride *lane[WAYS_LANES] = { take(c, own) };
    unsigned n = 1;
    c->drivers++;
    while (!own->over) {
        unsigned share = share_of(c->rides, cores);
        if (share > k->take[WAYS_LANES])
            share = k->take[WAYS_LANES];
        if (!TAILQ_EMPTY(&c->waiting))
            n = end_turns(c, lane, n, own);
        while (n < share && !TAILQ_EMPTY(&c->waiting))
            lane[n++] = take(c, TAILQ_FIRST(&c->waiting));
        while (n > share && lane[n - 1] != own)
            put_back(c, lane[--n]);
        call_driver(c, cores);
        pthread_mutex_unlock(&all.lock);
        drive_on(k, lane, n);
        pthread_mutex_lock(&all.lock);
        unsigned on = 0;
        for (unsigned i = 0; i < n; i++) {
            if (!lane[i]->ended) {
                lane[on++] = lane[i];
                continue;
            }
            lane[i]->over = true;
            c->rides--;
            if (lane[i] != own)
                pthread_cond_signal(&lane[i]->called);
        }
        n = on;
    }
    while (n > 0)
        put_back(c, lane[--n]);
    c->drivers--;
    call_driver(c, cores);
}

/* Go with the crew of the class until there is a result. */
static int ride(const struct ways *k, struct ride *own, unsigned cores)
{
    struct crew *c = crew_of(k);
    pthread_cond_init(&own->called, NULL);
    pthread_mutex_lock(&all.lock);
    TAILQ_INSERT_TAIL(&c->waiting, own, link);
    own->waits = true;
    c->rides++;
    while (!own->over) {
        if (own->waits && may_drive(c, cores))
            drive(k, c, own, cores);
        else
            pthread_cond_wait(&own->called, &all.lock);
    }
    pthread_mutex_unlock(&all.lock);
    pthread_cond_destroy(&own->called);
    return own->result;
}

/* Would lanes be filled so well that going with the others pays? */
static bool worth_while(const struct ways *k, unsigned cores)
{
    struct crew *c = crew_of(k);
    pthread_mutex_lock(&all.lock);
    unsigned callers = c->callers;
    pthread_mutex_unlock(&all.lock);
    return callers > cores && ways_rate(k, share_of(callers, cores)) >= 1.3 * ways_rate(k, 1);
}

enum { TMPFS = 0x01021994 };

/* File systems of this machine's own: no server makes anybody wait. */
static bool is_local(int fd)
{
    switch (fsops_kind(fd)) {
    case 0xEF53:     /* ext2, ext3, ext4 */
    case 0x58465342: /* XFS */
    case 0x9123683E: /* Btrfs */
    case 0xF2F52010: /* F2FS */
    case 0x794C7630: /* overlayfs */
    case TMPFS:
        return true;
    default:
        return false;
    }
}

static bool may_join(const struct pump *p, const struct pump_source *s)
{
    return p->engine != NULL && !p->alone && !p->hold && !p->direct && !p->uncached && !p->drop
           && s->offset >= 0 && !s->sparse && !s->uncached;
}

/* Does nothing that is far away keep the data or gets it? */
static bool is_near(const struct pump *p, const struct pump_source *s)
{
    return is_local(s->fd) && (p->fd < 0 || is_local(p->fd));
}

/* As pump_read, to where `p->size` is `end`; or NO_CREW on the way. */
static int read_with_others(const struct ways *k, struct pump *p, struct pump_source *s, uint64_t end)
{
    unsigned cores = engine_cores();
    struct ride own = { .pump = p, .source = s };
    bool near = false;
    while (p->size < end && may_join(p, s)) {
        if (worth_while(k, cores)) {
            if (!near && !is_near(p, s))
                return NO_CREW;
            near = true;
            int err = pump_wait(p);
            if (err)
                return err;
            own.state = engine_lend(p->engine);
            if (own.state == NULL)
                return NO_CREW;
            own.in_memory = fsops_kind(s->fd) == TMPFS;
            own.budget = end - p->size;
            own.ended = own.over = false;
            int result = ride(k, &own, cores);
            if (result >= 0 && p->fill == PUMP_BLOCK && (err = pump_flush(p)) < 0) /* it had not been hashed whole */
                return err;
            if (result == BUSY)
                continue;
            if (result != NOT_READY)
                return result;
        }
        int more = pump_read(p, s, PUMP_BLOCK < end - p->size ? PUMP_BLOCK : end - p->size);
        if (more != 1)
            return more;
    }
    return p->size < end ? NO_CREW : 1;
}

int crew_read(struct pump *p, struct pump_source *s, uint64_t budget)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const struct ways *k = may_join(p, s) ? engine_ways(p->engine) : NULL;
    if (k == NULL || budget == 0)
        return pump_read(p, s, budget);
    pthread_once(&once, start);
    uint64_t end = p->size + (budget < INT64_MAX ? budget : INT64_MAX);
    count_caller(k, 1);
    int more = read_with_others(k, p, s, end);
    if (more == NO_CREW)
        more = pump_read(p, s, end - p->size);
    count_caller(k, -1);
    return more;
}
