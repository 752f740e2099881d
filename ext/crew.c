/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "crew.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "engine.h"
#include "fsops.h"
#include "window.h"

#define SECOND 1000000000u /* ns */

enum {
    CREWS = 64,
    /* What a driver reads of all its streams in a round: half of a second-level cache of 1 MiB. */
    ROUND = 512 * 1024,
    PIECE_LEAST = 16 * 1024,
    PIECE_MOST = 64 * 1024,
    /* Of a file as memory, for each processor, and at least and at most.  Giving up a window is heard by all of them. */
    WINDOW = 1024 * 1024,
    WINDOW_LEAST = 8 * 1024 * 1024,
    WINDOW_MOST = 64 * 1024 * 1024,
    /* Of fewer bytes no step is made for all lanes, unless a block ends with them. */
    STEP_LEAST = 4096,
    /* Even if its caller wants to be asked earlier a stream goes on for so many bytes, or until so many ns are over: while it
     * returns its lanes are empty.  16 files of 64 MiB are hashed in 0.96 of the time with 64 instead of 16 MiB. */
    RIDE = 64 * 1024 * 1024,
    RIDE_TIME = 250 * 1000 * 1000,
    /* After so many bytes a stream makes way for one that waits; and so many it goes alone when it could not be driven. */
    TURN = 1024 * 1024,
    /* A block that takes longer to write, in ns, is no matter of memory. */
    SLOW = 20 * 1000 * 1000,
    /* Who is said to come has so many ns: as long as a thread of Python's may have the others wait (the switch interval).
     * After the last one said so, another may say so for a while. */
    COMING = 5 * 1000 * 1000,
    LINGER = 500 * 1000,
    /* How long the first of many wait for the others at most, and of all time one part in so many. */
    GATHER = 10 * 1000 * 1000,
    GATHER_PART = 16,
};

/* How a ride ends without a result of pump_read: the source has nothing in memory, or the target took its time; a digest
 * that is not the engine's has not caught up. */
enum { NOT_READY = 2, BUSY };

struct ride {
    struct pump *pump;
    struct pump_source *source;
    uint64_t budget;
    uint64_t beyond; /* of which so much is more than the caller asked for */
    uint64_t began;
    bool in_memory; /* the source is: reading it never waits */
    union hash_state *state; /* [2] */

    /* What is only hashed is not copied where the source can be looked at. */
    bool maps;
    struct window window;
    int64_t source_size;
    size_t ahead; /* bytes from source->offset on that can be seen */
    uint64_t turn_ends; /* the budget that is left then */
    bool ended; /* known to who drives it */
    int result;
    bool waits; /* for somebody to drive it */
    bool over;  /* known to all: nobody drives it any more */
    pthread_cond_t called;
    TAILQ_ENTRY(ride) link;
};

/* Streams of one class of the engine, which can share lanes, and of one device that is read and one that is written to: if
 * one hangs, no others hang with it.  Nobody's while it has no callers. */
struct crew {
    const struct ways *ways;
    dev_t source, target; /* 0: memory; nothing is written */
    unsigned callers; /* that could ride, and that do */
    unsigned rides;   /* those that wait, and those that somebody drives */
    unsigned drivers;
    TAILQ_HEAD(, ride) waiting;
};

static struct {
    pthread_mutex_t lock;
    unsigned callers; /* of all crews */
    struct crew crew[CREWS];

    unsigned coming; /* will be callers */
    uint64_t announced; /* when the last of them said so */
    pthread_cond_t none_coming;
    uint64_t gather_until;
    uint64_t gathered; /* when somebody waited last */
} all = { .lock = PTHREAD_MUTEX_INITIALIZER };

static _Thread_local bool expected;

static void begin_anew(void)
{
    pthread_condattr_t clock;
    pthread_mutex_init(&all.lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&all.none_coming, &clock);
    pthread_condattr_destroy(&clock);
    memset(all.crew, 0, sizeof all.crew);
    all.callers = all.coming = 0;
    expected = false;
    for (unsigned i = 0; i < CREWS; i++)
        TAILQ_INIT(&all.crew[i].waiting);
}

static void start(void)
{
    begin_anew();
    pthread_atfork(NULL, NULL, begin_anew);
}

static void prepare(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}

void crew_expect(void)
{
    if (expected)
        return;
    prepare();
    pthread_mutex_lock(&all.lock);
    uint64_t now = clock_ns();
    if (all.callers + all.coming == 0) {
        uint64_t most = (now - all.gathered) / GATHER_PART;
        all.gather_until = now + (most < GATHER ? most : GATHER);
    }
    expected = true;
    all.coming++;
    all.announced = now;
    pthread_mutex_unlock(&all.lock);
}

/* Lock held. */
static void expect_no_more(void)
{
    if (expected && --all.coming == 0)
        pthread_cond_broadcast(&all.none_coming);
    expected = false;
}

void crew_expect_no_more(void)
{
    if (!expected)
        return;
    pthread_mutex_lock(&all.lock);
    expect_no_more();
    pthread_mutex_unlock(&all.lock);
}

/* How many more callers there will be in a moment.  Lock held. */
static unsigned coming(void)
{
    return all.coming > 0 && clock_ns() < all.announced + COMING ? all.coming : 0;
}

/* Be a caller of such a crew; NULL: there are too many others. */
static struct crew *join(const struct ways *k, dev_t source, dev_t target)
{
    struct crew *found = NULL;
    pthread_mutex_lock(&all.lock);
    expect_no_more();
    for (struct crew *c = all.crew; c < all.crew + CREWS; c++) {
        if (c->callers > 0 && c->ways == k && c->source == source && c->target == target) {
            found = c;
            break;
        }
        if (c->callers == 0)
            found = c;
    }
    if (found != NULL && found->callers == 0) {
        found->ways = k;
        found->source = source;
        found->target = target;
    }
    if (found != NULL) {
        found->callers++;
        all.callers++;
    }
    pthread_mutex_unlock(&all.lock);
    return found;
}

static void leave(struct crew *c)
{
    pthread_mutex_lock(&all.lock);
    c->callers--;
    all.callers--;
    pthread_mutex_unlock(&all.lock);
}

/* How many streams each processor has, so that all are driven. */
static unsigned share_of(unsigned streams, unsigned cores)
{
    return (streams + cores - 1) / cores;
}

/* -- one round ------------------------------------------------------------------------------------------ */

/* Bytes are hashed where they lie, not in the open block. */
static bool is_mapped(const struct ride *r)
{
    return r->maps && r->pump->fill == 0;
}

static size_t unhashed(const struct ride *r)
{
    return is_mapped(r) ? r->ahead : r->pump->fill - r->pump->hashed;
}

static const unsigned char *next_bytes(const struct ride *r)
{
    return is_mapped(r) ? window_at(&r->window, r->source->offset) : pump_open_block(r->pump) + r->pump->hashed;
}

static void end(struct ride *r, int result)
{
    r->ended = true;
    r->result = result;
}

static size_t window_size(void)
{
    size_t size = WINDOW_LEAST;
    while (size < WINDOW_MOST && size < engine_cores() * (size_t)WINDOW)
        size *= 2;
    return size;
}

/* From now on everything goes through the open block. */
static void stop_mapping(struct ride *r)
{
    r->maps = false;
    r->ahead = 0;
}

/* How many bytes, whole units, the window still has. */
static size_t room_ahead(const struct ride *r, size_t unit)
{
    const struct pump_source *s = r->source;
    int64_t from = s->offset + (int64_t)r->ahead, end = r->window.end < r->source_size ? r->window.end : r->source_size;
    uint64_t room = end > from ? (uint64_t)(end - from) : 0, most = s->limit < r->budget ? s->limit : r->budget;
    if (room > most - r->ahead)
        room = most - r->ahead;
    return (size_t)room / unit * unit;
}

/* See about `most` bytes, if that means no waiting. */
static void look_ahead(struct ride *r, size_t most, size_t unit)
{
    struct window *w = &r->window;
    int64_t from = r->source->offset;
    if (atomic_load(&r->pump->cancelled))
        return;
    if (r->ahead == 0 && (w->memory == NULL || from + (int64_t)unit > w->end)) {
        window_close(w);
        if (!window_open(w, r->source->fd, from, window_size())) {
            stop_mapping(r);
            return;
        }
    }
    size_t some = room_ahead(r, unit);
    if (some > most - r->ahead)
        some = most - r->ahead;
    int64_t to = from + (int64_t)(r->ahead + some);
    if (some > 0 && (r->in_memory || window_resident(w, from, to, r->source_size, &r->pump->missed)))
        r->ahead += some;
}

/* No more can be hashed together with what is there to be hashed: the block, or a window, ends. */
static bool is_complete(const struct ride *r, size_t unit)
{
    return is_mapped(r) ? room_ahead(r, unit) == 0 : r->pump->fill == PUMP_BLOCK;
}

/* Have about `most` bytes to hash. */
static void fill(struct ride *r, size_t most, size_t unit)
{
    struct pump *p = r->pump;
    if (unhashed(r) >= most || p->fill == PUMP_BLOCK)
        return;
    if (is_mapped(r)) {
        look_ahead(r, most, unit);
        if (r->ahead >= STEP_LEAST || (r->ahead > 0 && is_complete(r, unit)))
            return;
        r->ahead = 0; /* the next page is missing, or it ends: reading will tell */
    }
    most -= unhashed(r);
    if (r->budget < most)
        most = (size_t)r->budget;
    ssize_t n = pump_fill_ready(p, r->source, most, r->in_memory);
    if (n > 0)
        r->budget -= (uint64_t)n;
    else
        end(r, n == 0 || n == -ECANCELED ? (int)n : n == -EBUSY ? BUSY : NOT_READY);
}

/* Those that have bytes to hash: whole units, and so many that a step of all lanes is worth while, if any have. */
static unsigned ready_rides(const struct ways *k, struct ride *const *lane, unsigned n, struct ride **in)
{
    unsigned ready = 0;
    for (size_t least = STEP_LEAST; ready == 0 && least > 0; least = least > k->unit ? k->unit : 0)
        for (unsigned i = 0; i < n; i++)
            if (unhashed(lane[i]) >= least || (unhashed(lane[i]) >= k->unit && is_complete(lane[i], k->unit)))
                in[ready++] = lane[i];
    return ready;
}

/* What a driver has hashed, for the engine's counters. */
struct work {
    uint64_t steps, lanes, bytes;
};

/* What the ride has seen was the file: no page was missing, and what lies behind the end, which reads as zeroes, was not
 * seen. */
static bool is_intact(const struct ride *r)
{
    struct stat now;
    return window_intact(&r->window) && fstat(r->source->fd, &now) == 0 && now.st_size >= r->source_size;
}

/* `len` bytes are hashed; `before` [2]: the state that they were hashed from. */
static void move_on(struct ride *r, const unsigned char *data, size_t len, const union hash_state *before)
{
    struct pump *p = r->pump;
    if (!is_mapped(r)) {
        p->hashed += len;
        return;
    }
    if (!is_intact(r)) {
        memcpy(r->state, before, 2 * sizeof *before);
        stop_mapping(r);
        return;
    }
    int err = pump_taken(p, r->source, data, len);
    if (err == 0 && p->others != NULL && !is_intact(r)) {
        p->side = PUMP_SOURCE; /* too late: they have seen what is not there */
        err = -EIO;
    }
    if (err)
        end(r, err);
    r->ahead -= len;
    r->budget -= len;
}

/* Of rides that are ready, so many are left for the next round, and come first then: they would fill their lanes much worse
 * than those before them.  Nine streams go by eights, not by eight and one. */
static bool are_left(const struct ways *k, unsigned left, unsigned ready)
{
    return left < ready && ways_rate(k, left) < 0.85 * ways_rate(k, ready);
}

/* Put these, which are among them, before the other rides. */
static void put_first(struct ride *const *first, unsigned n, struct ride **lane, unsigned lanes)
{
    struct ride *others[WAYS_LANES];
    unsigned rest = 0;
    for (unsigned i = 0, next = 0; i < lanes; i++) {
        if (next < n && lane[i] == first[next]) /* in the same order */
            next++;
        else
            others[rest++] = lane[i];
    }
    memcpy(lane, first, n * sizeof(struct ride *));
    memcpy(lane + n, others, rest * sizeof(struct ride *));
}

/* Hash what the rides have read, as many at a time as is best and as much as all of these have: what is left of the
 * others is hashed in the next round, in full lanes again. */
static void hash(const struct ways *k, struct ride **lane, unsigned n, size_t most, struct work *done)
{
    struct ride *in[WAYS_LANES];
    unsigned ready = ready_rides(k, lane, n, in);
    for (unsigned at = 0, some; at < ready; at += some) {
        if (are_left(k, ready - at, ready)) {
            put_first(in + at, ready - at, lane, n);
            break;
        }
        union hash_state *first[WAYS_LANES], *second[WAYS_LANES], before[WAYS_LANES][2];
        const unsigned char *data[WAYS_LANES];
        size_t len = most;
        some = k->take[ready - at];
        for (unsigned i = 0; i < some; i++) {
            struct ride *r = in[at + i];
            first[i] = &r->state[0];
            second[i] = &r->state[1];
            memcpy(before[i], r->state, sizeof before[i]);
            data[i] = next_bytes(r);
            len = unhashed(r) < len ? unhashed(r) : len;
        }
        len -= len % k->unit;
        ways_advance(k, ways_best(k, some), first, second, data, len / k->unit, some);
        for (unsigned i = 0; i < some; i++)
            move_on(in[at + i], data[i], len, before[i]);
        done->steps++;
        done->lanes += some;
        done->bytes += some * len * (k->pair ? 2 : 1);
    }
}

/* Send a full block on its way. */
static void flush(struct ride *r)
{
    uint64_t begin = clock_ns();
    int err = pump_flush(r->pump);
    if (err < 0)
        end(r, err);
    else if (clock_ns() - begin > SLOW && !r->ended)
        end(r, NOT_READY);
}

/* No lock held. */
static void drive_on(const struct ways *k, struct ride **lane, unsigned n, struct work *done)
{
    size_t piece = PIECE_MOST; /* halves of a block, so that all come to its end in step */
    while (piece > PIECE_LEAST && n * piece > ROUND)
        piece /= 2;
    for (unsigned i = 0; i < n; i++)
        fill(lane[i], piece, k->unit);
    hash(k, lane, n, piece, done);
    uint64_t now = clock_ns();
    for (unsigned i = 0; i < n; i++) {
        struct ride *r = lane[i];
        if (r->pump->hashed == PUMP_BLOCK)
            flush(r);
        bool late = r->budget <= r->beyond && now - r->began > RIDE_TIME;
        if (!r->ended && (r->source->limit == 0 || r->budget == 0 || late))
            end(r, r->source->limit > 0);
    }
}

/* -- who drives ----------------------------------------------------------------------------------------- */

/* How many drivers the crew may have: as many as there are processors that no other crew has, and its part of all in any
 * case, for the others' drivers may hang; at least one. */
static unsigned seats(const struct crew *c, unsigned cores)
{
    unsigned drivers = 0, crews = 1;
    for (const struct crew *other = all.crew; other < all.crew + CREWS; other++) {
        if (other == c || other->rides == 0)
            continue;
        drivers += other->drivers;
        crews++;
    }
    unsigned left = drivers < cores ? cores - drivers : 1, part = cores / crews;
    return left > part ? left : part;
}

/* Have an owner drive whose ride waits.  Lock held. */
static void call_driver(struct crew *c, unsigned cores)
{
    struct ride *r = TAILQ_FIRST(&c->waiting);
    if (r != NULL && c->drivers < seats(c, cores))
        pthread_cond_signal(&r->called);
}

static void wait_in_front(struct crew *c, struct ride *r)
{
    TAILQ_INSERT_HEAD(&c->waiting, r, link);
    r->waits = true;
}

static void wait_behind(struct crew *c, struct ride *r)
{
    TAILQ_INSERT_TAIL(&c->waiting, r, link);
    r->waits = true;
}

static struct ride *take(struct crew *c, struct ride *r, bool looks)
{
    if (!looks)
        stop_mapping(r);
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
        if (lane[i] == own || lane[i]->budget > lane[i]->turn_ends)
            lane[on++] = lane[i];
        else
            wait_behind(c, lane[i]);
    }
    return on;
}

/* Lock held. */
static uint64_t gather_until(void)
{
    uint64_t until = all.announced + (all.coming > 0 ? COMING : LINGER);
    return until < all.gather_until ? until : all.gather_until;
}

/* Where many come at once let them come: with fewer the lanes would be emptier, from beginning to end, and while all
 * processors drive it takes the others long to come.  32 uploads of 16 MiB were together after 8 instead of 45 to 70 ms, and
 * all needed 0.9 of the time.  Lock held. */
static void gather(const struct crew *c, unsigned cores)
{
    uint64_t until;
    while (clock_ns() < (until = gather_until()) && all.callers + all.coming > cores
           && c->rides < cores * c->ways->take[WAYS_LANES]) {
        struct timespec at = { .tv_sec = (time_t)(until / SECOND), .tv_nsec = (long)(until % SECOND) };
        pthread_cond_timedwait(&all.none_coming, &all.lock, &at);
        all.gathered = clock_ns();
    }
}

/* Drive until the own ride, which waits, is over.  Called and left with the lock held. */
static void drive(struct crew *c, struct ride *own, unsigned cores, struct work *done)
{
    const struct ways *k = c->ways;
    bool looks = window_allowed();
    struct ride *lane[WAYS_LANES] = { take(c, own, looks) };
    unsigned n = 1;
    c->drivers++;
    while (!own->over) {
        gather(c, cores);
        unsigned share = share_of(c->rides, seats(c, cores));
        if (share > k->take[WAYS_LANES])
            share = k->take[WAYS_LANES];
        if (!TAILQ_EMPTY(&c->waiting))
            n = end_turns(c, lane, n, own);
        while (n < share && !TAILQ_EMPTY(&c->waiting))
            lane[n++] = take(c, TAILQ_FIRST(&c->waiting), looks);
        while (n > share) {
            if (lane[n - 1] == own) {
                lane[n - 1] = lane[0];
                lane[0] = own;
            }
            wait_in_front(c, lane[--n]);
        }
        call_driver(c, cores);
        pthread_mutex_unlock(&all.lock);
        drive_on(k, lane, n, done);
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
        wait_in_front(c, lane[--n]);
    c->drivers--;
    for (struct crew *any = all.crew; any < all.crew + CREWS; any++)
        call_driver(any, cores);
}

/* Go with the crew until there is a result. */
static int ride(struct crew *c, struct ride *own, unsigned cores)
{
    struct work done = { 0, 0, 0 };
    own->ended = own->over = false;
    pthread_cond_init(&own->called, NULL);
    pthread_mutex_lock(&all.lock);
    wait_behind(c, own);
    if (++c->rides == cores * c->ways->take[WAYS_LANES])
        pthread_cond_broadcast(&all.none_coming); /* all lanes are filled */
    while (!own->over) {
        if (own->waits && c->drivers < seats(c, cores))
            drive(c, own, cores, &done);
        else
            pthread_cond_wait(&own->called, &all.lock);
    }
    pthread_mutex_unlock(&all.lock);
    pthread_cond_destroy(&own->called);
    engine_count(done.steps, done.lanes, done.bytes);
    return own->result;
}

/* Would lanes be filled so well that going with the others pays? */
static bool pays(const struct crew *c, unsigned cores)
{
    pthread_mutex_lock(&all.lock);
    unsigned more = coming(), callers = all.callers + more, each = share_of(callers, cores);
    if (each > c->callers + more)
        each = c->callers + more;
    pthread_mutex_unlock(&all.lock);
    return callers > cores && each > 1 && ways_rate(c->ways, each) >= 1.3 * ways_rate(c->ways, 1);
}

/* Is it a regular file of this machine's own, as a rule, so that no server makes anybody wait? */
static bool is_near(int fd, struct stat *info, bool *in_memory)
{
    if (fstat(fd, info) != 0 || !S_ISREG(info->st_mode)) /* a block device is in devtmpfs, which is tmpfs */
        return false;
    int64_t kind = fsops_kind(fd);
    *in_memory = kind == FSOPS_TMPFS;
    switch (kind) {
    case FSOPS_EXT4:
    case FSOPS_XFS:
    case FSOPS_BTRFS:
    case FSOPS_F2FS:
    case FSOPS_OVERLAYFS:
    case FSOPS_TMPFS:
        return true;
    default:
        return false;
    }
}

/* Will the kernel tell what is in the page cache?  It tells owners and those who may write; to others all is there. */
static bool may_ask(int fd, const struct stat *info)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return geteuid() == info->st_uid || faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0;
}

static bool may_join(const struct pump *p, const struct pump_source *s)
{
    return p->engine != NULL && !p->alone && !p->hold && !p->direct && !p->uncached && !p->drop
           && s->offset >= 0 && !s->sparse && !s->uncached;
}

/* As pump_read, to where `p->size` is `end` or more, or the crew cannot help any more. */
static int read_with_others(struct crew *c, struct ride *own, uint64_t end)
{
    struct pump *p = own->pump;
    struct pump_source *s = own->source;
    unsigned cores = engine_cores();
    uint64_t most = end - p->size < RIDE ? p->size + RIDE : end;
    own->beyond = most - end;
    own->began = clock_ns();
    while (p->size < end && may_join(p, s)) {
        uint64_t some = PUMP_BLOCK, before = p->size;
        if (pays(c, cores)) {
            int err = pump_wait(p);
            if (err)
                return err;
            own->state = engine_lend(p->engine);
            if (own->state == NULL)
                break;
            own->budget = most - p->size;
            int result = ride(c, own, cores);
            if (result >= 0 && p->fill == PUMP_BLOCK && (err = pump_flush(p)) < 0) /* it had not been hashed whole */
                return err;
            if (result == BUSY)
                continue;
            if (result != NOT_READY)
                return result;
            p->missed = true;
            if (p->size >= end)
                return s->limit > 0;
            if (p->size == before) /* reading and hashing overlap again */
                some = TURN;
        }
        int more = pump_read(p, s, some < end - p->size ? some : end - p->size);
        if (more != 1)
            return more;
    }
    return 1;
}

int crew_read(struct pump *p, struct pump_source *s, uint64_t budget)
{
    const struct ways *k = may_join(p, s) ? engine_ways(p->engine) : NULL;
    if (k == NULL || budget == 0) {
        crew_expect_no_more();
        return pump_read(p, s, budget);
    }
    struct stat source, target = { .st_dev = 0 };
    struct ride own = { .pump = p, .source = s };
    bool whatever;
    if (!is_near(s->fd, &source, &own.in_memory) || (p->fd >= 0 && !is_near(p->fd, &target, &whatever))) {
        p->alone = true;
        crew_expect_no_more();
        return pump_read(p, s, budget);
    }
    prepare();
    own.source_size = source.st_size;
    own.maps = p->fd < 0 && (p->others == NULL || p->others->ops->at_once) && (own.in_memory || may_ask(s->fd, &source));
    struct crew *c = join(k, own.in_memory ? 0 : source.st_dev, target.st_dev);
    uint64_t end = p->size + (budget < INT64_MAX ? budget : INT64_MAX);
    int more = 1;
    if (c != NULL) {
        more = read_with_others(c, &own, end);
        leave(c);
    }
    window_close(&own.window);
    return more == 1 && p->size < end ? pump_read(p, s, end - p->size) : more;
}
