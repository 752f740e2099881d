/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "window.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "busguard.h"
#include "fsops.h"

enum {
    /* Asked about at a time. */
    ASKED = 256 * 1024,
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
    w->fd = fd;
    return true;
}

/* How many of `len` bytes, whole pages, follow one another in the page cache.
 *
 * mincore(2) looks for every page, 0.03 ns a byte; cachestat(2) only counts, and counts those too that the disk is still
 * bringing.  It is enough where nothing of the file has been missing yet.  To map the pages beforehand (MADV_POPULATE_READ)
 * costs more than that the kernel finds them missing when they are hashed, and maps 64 KiB around each: 0.095 and 0.07 ns a
 * byte with mincore(2), 0.05 without (Zen 4, ext4 with large folios); by each of the two a deep scrub takes 0.96 of the
 * time.  MADV_RANDOM, so that no fault reads ahead, made hashing files that are not in memory 1.4 times as long. */
static size_t present_of(struct window *w, size_t len, bool *missed)
{
    if (!*missed && fsops_all_resident(w->fd, (uint64_t)w->present, len))
        return len;
    *missed = true;
    unsigned char pages[ASKED / PAGE_LEAST];
    size_t page = (size_t)sysconf(_SC_PAGESIZE), there = 0;
    if (mincore((void *)window_at(w, w->present), len, pages) != 0)
        return 0;
    while (there < len / page && pages[there] & 1)
        there++;
    return there * page;
}

bool window_resident(struct window *w, int64_t begin, int64_t end, int64_t most, bool *missed)
{
    int64_t page = sysconf(_SC_PAGESIZE);
    if (w->present < begin / page * page)
        w->present = begin / page * page;
    if (most > w->end)
        most = w->end;
    while (w->present < end) {
        int64_t len = ASKED;
        if (most - w->present < ASKED)
            len = (most - w->present + page - 1) / page * page;
        len = (int64_t)present_of(w, (size_t)len, missed);
        if (w->present + len < end)
            return false;
        w->present += len;
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
