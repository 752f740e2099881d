/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "chains.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "cores.h"

struct block {
    const void *data;
    size_t len;
};

struct chain {
    void *ctx;
    uint64_t next; /* ticket of the next block to consume */
    bool busy;     /* some thread is inside update() */
};

struct chains {
    struct digests base;
    chain_update update;
    unsigned n, depth;
    int helpers_max;

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    uint64_t posted; /* ticket of the last block posted */
    int error;
    bool closing;
    unsigned helpers, sleepers;
    pthread_t helper[CHAINS_MAX];
    struct chain chain[CHAINS_MAX];
    struct block block[]; /* ticket t lies at t % depth */
};

/* Threads of this process that hash or may hash right now: one for each set that has posted, one for
 * each helper.  A helper is only started while this is below the number of usable processors. */
static atomic_int workers;

static void forget_workers(void)
{
    atomic_store(&workers, 0); /* a forked child has none of its parent's threads */
}

static void watch_fork(void)
{
    pthread_atfork(NULL, NULL, forget_workers);
}

static uint64_t lowest(const struct chains *c)
{
    uint64_t done = c->posted;
    for (unsigned i = 0; i < c->n; i++)
        if (c->chain[i].next - 1 < done)
            done = c->chain[i].next - 1;
    return done;
}

/* Take the idle chain that lags most, consume one block of it and come back; false: nothing to take.
 * Called and left with the lock held. */
static bool work(struct chains *c)
{
    struct chain *pick = NULL;
    for (unsigned i = 0; i < c->n; i++) {
        struct chain *k = &c->chain[i];
        if (!k->busy && k->next <= c->posted && (pick == NULL || k->next < pick->next))
            pick = k;
    }
    if (pick == NULL)
        return false;
    struct block b = c->block[pick->next % c->depth];
    bool skip = c->error != 0 || c->closing;
    pick->busy = true;
    pthread_mutex_unlock(&c->lock);
    int err = skip ? 0 : c->update(pick->ctx, b.data, b.len);
    pthread_mutex_lock(&c->lock);
    pick->busy = false;
    pick->next++;
    if (err != 0 && c->error == 0)
        c->error = err;
    if (c->sleepers > 0)
        pthread_cond_broadcast(&c->changed);
    return true;
}

static void doze(struct chains *c)
{
    c->sleepers++;
    pthread_cond_wait(&c->changed, &c->lock);
    c->sleepers--;
}

static void *help(void *arg)
{
    struct chains *c = arg;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        if (work(c))
            continue;
        if (c->closing)
            break;
        doze(c);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* Start one more helper if this set can use it and a processor is idle.  Lock held.  A thread that
 * cannot be had is no error: the poster works alone. */
static void maybe_hire(struct chains *c)
{
    /* One block alone is not worth a thread: starting one costs as much as hashing 32 KiB. */
    if (c->posted < 2 || c->helpers >= c->n || (int)c->helpers == c->helpers_max)
        return;
    if (c->helpers_max < 0 && atomic_load(&workers) >= cores_usable())
        return;
    atomic_fetch_add(&workers, 1);
    /* Signals are Python's main thread's business: a helper takes none. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (pthread_create(&c->helper[c->helpers], NULL, help, c) == 0)
        c->helpers++;
    else
        atomic_fetch_sub(&workers, 1);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static int wait_locked(struct chains *c, uint64_t ticket)
{
    while (lowest(c) < ticket)
        if (!work(c))
            doze(c);
    return c->error;
}

static int chains_post(struct digests *d, const void *data, size_t len, uint64_t *ticket)
{
    struct chains *c = (struct chains *)d;
    pthread_mutex_lock(&c->lock);
    uint64_t t = c->posted + 1;
    int err = t > c->depth ? wait_locked(c, t - c->depth) : c->error;
    if (t == 1)
        atomic_fetch_add(&workers, 1);
    c->block[t % c->depth] = (struct block){ data, len };
    c->posted = t;
    *ticket = t;
    maybe_hire(c);
    if (c->sleepers > 0)
        pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return err;
}

static int chains_wait(struct digests *d, uint64_t ticket)
{
    struct chains *c = (struct chains *)d;
    pthread_mutex_lock(&c->lock);
    int err = wait_locked(c, ticket);
    pthread_mutex_unlock(&c->lock);
    return err;
}

static uint64_t chains_done(struct digests *d)
{
    struct chains *c = (struct chains *)d;
    pthread_mutex_lock(&c->lock);
    uint64_t done = lowest(c);
    pthread_mutex_unlock(&c->lock);
    return done;
}

static void chains_free(struct digests *d)
{
    struct chains *c = (struct chains *)d;
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    for (unsigned i = 0; i < c->helpers; i++)
        pthread_join(c->helper[i], NULL);
    atomic_fetch_sub(&workers, (int)c->helpers + (c->posted > 0));
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static const struct digests_ops chains_ops = { chains_post, chains_wait, chains_done, chains_free, NULL, false };

struct digests *chains_new(unsigned n, chain_update update, void *const *ctx, unsigned depth, int helpers)
{
    if (n > CHAINS_MAX || depth < 2) {
        errno = EINVAL;
        return NULL;
    }
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_fork);
    struct chains *c = calloc(1, sizeof *c + depth * sizeof c->block[0]);
    if (c == NULL)
        return NULL;
    c->base.ops = &chains_ops;
    c->update = update;
    c->n = n;
    c->depth = depth;
    c->helpers_max = helpers;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    for (unsigned i = 0; i < n; i++) {
        c->chain[i].ctx = ctx[i];
        c->chain[i].next = 1;
    }
    return &c->base;
}
