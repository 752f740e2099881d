/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "busguard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { GUARDS = 256 };

/* `begin` is 0 in one that is free, `FILLING` while it is being filled. */
#define FILLING UINTPTR_MAX
static struct guard {
    atomic_uintptr_t begin;
    atomic_uintptr_t end;
    atomic_uint turn; /* how often it was filled */
    atomic_bool spoilt;
} guards[GUARDS];

static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;
static bool installed;
static struct sigaction before; /* whoever was asked for SIGBUS until then */
static uintptr_t page;

/* The guard of an address, and where its memory ends.  A guard that is given up and used again meanwhile is none. */
static struct guard *guard_of(uintptr_t address, uintptr_t *end)
{
    for (unsigned i = 0; i < GUARDS; i++) {
        struct guard *g = &guards[i];
        unsigned turn = atomic_load(&g->turn);
        uintptr_t begin = atomic_load(&g->begin);
        *end = atomic_load(&g->end);
        if (begin != 0 && begin != FILLING && address >= begin && address < *end && atomic_load(&g->turn) == turn)
            return g;
    }
    return NULL;
}

static void default_action(int signal)
{
    sigaction(signal, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
    raise(signal);
}

/* Not ours.  A handler that neither mends the fault nor ends the process is called again and again: two that believe to
 * have been there before one another, say. */
static void pass_on(int signal, siginfo_t *info, void *context)
{
    enum { PATIENCE = 100 /* times a second */ };
    static atomic_uintptr_t last;
    static atomic_uint times;
    static atomic_long since;
    bool fault = info->si_code > 0, simple = !(before.sa_flags & SA_SIGINFO), hopeless = false;
    if (fault) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (atomic_exchange(&last, (uintptr_t)info->si_addr) != (uintptr_t)info->si_addr
            || atomic_load(&since) != (long)now.tv_sec) {
            atomic_store(&since, (long)now.tv_sec);
            atomic_store(&times, 0);
        }
        hopeless = atomic_fetch_add(&times, 1) > PATIENCE;
    }
    if (simple && before.sa_handler == SIG_IGN && !fault)
        return;
    if (hopeless || (simple && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN))) {
        default_action(signal);
        return;
    }
    if (before.sa_flags & SA_NODEFER) {
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, signal);
        pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    }
    if (simple)
        before.sa_handler(signal);
    else
        before.sa_sigaction(signal, info, context);
}

static void missing(int signal, siginfo_t *info, void *context)
{
    int err = errno;
    uintptr_t address = (uintptr_t)info->si_addr, end;
    struct guard *g = info->si_code > 0 ? guard_of(address, &end) : NULL; /* not one that somebody sent */
    if (g != NULL) {
        uintptr_t begin = address / page * page;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
        if (mmap((void *)begin, end - begin, PROT_READ, flags, -1, 0) != MAP_FAILED) {
            atomic_store(&g->spoilt, true);
            errno = err;
            return;
        }
    }
    pass_on(signal, info, context);
    errno = err;
}

/* A forked child looks at nothing yet. */
static void begin_anew(void)
{
    pthread_mutex_init(&installing, NULL);
    for (unsigned i = 0; i < GUARDS; i++)
        atomic_store(&guards[i].begin, 0);
}

static void prepare(void)
{
    page = (uintptr_t)sysconf(_SC_PAGESIZE);
    pthread_atfork(NULL, NULL, begin_anew);
}

/* Have SIGBUS come to us, once: a handler that takes the place of ours later may go on to ours, and is not to be called
 * by it. */
static int install(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, prepare);
    struct sigaction now;
    pthread_mutex_lock(&installing);
    int err = sigaction(SIGBUS, NULL, &now) == 0 ? 0 : -errno;
    bool there = err == 0 && now.sa_flags & SA_SIGINFO && now.sa_sigaction == missing;
    if (err == 0 && !there && installed)
        err = -EAGAIN;
    else if (err == 0 && !there) {
        struct sigaction ours = { .sa_sigaction = missing, .sa_flags = SA_SIGINFO | SA_ONSTACK };
        sigemptyset(&ours.sa_mask);
        before = now;
        installed = sigaction(SIGBUS, &ours, NULL) == 0;
        err = installed ? 0 : -errno;
    }
    pthread_mutex_unlock(&installing);
    return err;
}

int busguard_begin(const void *address, size_t len)
{
    sigset_t blocked;
    if (pthread_sigmask(SIG_BLOCK, NULL, &blocked) != 0 || sigismember(&blocked, SIGBUS))
        return -EAGAIN;
    int err = install();
    if (err)
        return err;
    for (int i = 0; i < GUARDS; i++) {
        uintptr_t unused = 0;
        if (!atomic_compare_exchange_strong(&guards[i].begin, &unused, FILLING))
            continue;
        uintptr_t end = ((uintptr_t)address + len + page - 1) / page * page;
        atomic_fetch_add(&guards[i].turn, 1);
        atomic_store(&guards[i].end, end);
        atomic_store(&guards[i].spoilt, false);
        atomic_store(&guards[i].begin, (uintptr_t)address);
        return i;
    }
    return -EAGAIN;
}

bool busguard_spoilt(int guard)
{
    return atomic_load(&guards[guard].spoilt);
}

void busguard_end(int guard)
{
    atomic_store(&guards[guard].begin, 0);
}
