/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "window.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "busguard.h"

/* Linux 5.14; older headers do not have it. */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum {
    /* Fetched at a time: 64 KiB cost three times as much a byte, 1 MiB not less. */
    FETCH = 256 * 1024,
    PAGE_LEAST = 4096,
};

bool window_allowed(void)
{
    sigset_t blocked;
    return pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0 && !sigismember(&blocked, SIGBUS);
}

bool window_open(struct window *w, int fd, int64_t offset, size_t len)
{
    int64_t page = sysconf(_SC_PAGESIZE);
    w->begin = w->present = offset / page * page;
    w->end = w->begin + (int64_t)len;
    void *memory = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, (off_t)w->begin);
    if (memory == MAP_FAILED)
        return false;
    madvise(memory, len, MADV_DONTFORK); /* nobody would close it in a forked child */
    w->guard = busguard_begin(memory, len);
    if (w->guard < 0) {
        munmap(memory, len);
        return false;
    }
    w->memory = memory;
    return true;
}

bool window_fetch(struct window *w, int64_t begin, int64_t end, int64_t most, bool resident)
{
    int64_t page = sysconf(_SC_PAGESIZE);
    if (w->present < begin / page * page)
        w->present = begin / page * page;
    if (most > w->end)
        most = w->end;
    while (w->present < end) {
        unsigned char pages[FETCH / PAGE_LEAST];
        size_t len = FETCH;
        if (most - w->present < FETCH)
            len = (size_t)((most - w->present + page - 1) / page * page);
        void *at = (void *)window_at(w, w->present);
        if (resident) {
            if (mincore(at, len, pages) != 0)
                return false;
            size_t there = 0;
            while (there < len / (size_t)page && pages[there] & 1)
                there++;
            len = there * (size_t)page;
            if (w->present + (int64_t)len < end)
                return false;
        }
        /* Where it is not known, each page is fetched when it is touched. */
        if (madvise(at, len, MADV_POPULATE_READ) != 0 && errno != EINVAL)
            return false;
        w->present += (int64_t)len;
    }
    return true;
}

bool window_intact(const struct window *w)
{
    return !busguard_spoilt(w->guard);
}

void window_close(struct window *w)
{
    if (w->memory == NULL)
        return;
    busguard_end(w->guard);
    munmap((void *)w->memory, (size_t)(w->end - w->begin));
    w->memory = NULL;
}
