/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "clock.h"

static const unsigned char zeroes[PUMP_BLOCK] __attribute__((aligned(PUMP_PAGE)));

bool pump_is_zero(const void *data, size_t n)
{
    /* Equal to itself shifted by 16 and zero in the first 16: all zero.  memcmp is the vectorised scan
     * (82 GB/s in the cache; a loop over bytes 2, `any()` in Python 0.17), and stops at the first bit. */
    const unsigned char *p = data;
    if (n < 16)
        return memcmp(p, zeroes, n) == 0;
    return memcmp(p, zeroes, 16) == 0 && memcmp(p, p + 16, n - 16) == 0;
}

static int fail(struct pump *p, enum pump_side side, int err)
{
    p->side = side;
    return err;
}

static void target_begin(struct pump *p)
{
    atomic_store(&p->busy_since, clock_ns());
}

/* Linux 6.14; older headers do not have it. */
#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80
#endif

/* A kernel or a file system that does not know the flag of a preadv2 or pwritev2. */
static bool is_unknown_flag(int err)
{
    return err == EOPNOTSUPP || err == EINVAL || err == ENOSYS;
}

static void set_direct(struct pump *p, bool on)
{
    int flags = fcntl(p->fd, F_GETFL);
    p->direct = flags >= 0 && fcntl(p->fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 && on;
}

static ssize_t put(struct pump *p, const unsigned char *data, size_t len, uint64_t at)
{
    /* Direct writes are of whole pages from aligned memory: the rest, at the end, is an ordinary write. */
    if (p->direct && (at % PUMP_PAGE != 0 || (uintptr_t)data % PUMP_PAGE != 0 || len < PUMP_PAGE))
        set_direct(p, false);
    if (p->direct) {
        ssize_t n = pwrite(p->fd, data, len - len % PUMP_PAGE, (off_t)at);
        if (n >= 0 || errno != EINVAL)
            return n;
        set_direct(p, false); /* this file system wants larger units */
    }
    if (p->uncached) {
        struct iovec piece = { (void *)data, len };
        ssize_t n = pwritev2(p->fd, &piece, 1, (off_t)at, RWF_DONTCACHE);
        if (n >= 0 || !is_unknown_flag(errno))
            return n;
        p->uncached = false;
        p->drop = true;
    }
    return pwrite(p->fd, data, len, (off_t)at);
}

/* Begin to write back what a window holds; by hand, wait for the one before and drop it.  Only advice: an error
 * of the disk comes out again at the fsync. */
static void write_back(struct pump *p)
{
    if ((!p->early && !p->drop) || p->direct || p->uncached)
        return;
    while (p->size - p->begun >= PUMP_WINDOW && !atomic_load(&p->cancelled)) {
        off_t at = (off_t)p->begun;
        target_begin(p);
        sync_file_range(p->fd, at, PUMP_WINDOW, SYNC_FILE_RANGE_WRITE);
        if (p->drop && at >= PUMP_WINDOW) {
            at -= PUMP_WINDOW;
            sync_file_range(p->fd, at, PUMP_WINDOW,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
            posix_fadvise(p->fd, at, PUMP_WINDOW, POSIX_FADV_DONTNEED);
        }
        atomic_store(&p->busy_since, 0);
        p->begun += PUMP_WINDOW;
    }
}

void pump_set_target(struct pump *p, int fd)
{
    bool direct = p->direct;
    p->fd = fd;
    if (direct)
        set_direct(p, true);
}

void pump_set_cache(struct pump *p, enum pump_cache cache)
{
    p->direct = p->drop = false;
    p->uncached = cache != PUMP_KEEP;
    if (cache == PUMP_DIRECT && p->fd >= 0)
        set_direct(p, true);
}

static int write_all(struct pump *p, const unsigned char *data, size_t len, uint64_t at)
{
    while (len > 0) {
        if (atomic_load(&p->cancelled))
            return fail(p, PUMP_TARGET, -ECANCELED);
        target_begin(p);
        ssize_t n = put(p, data, len, at);
        int err = errno;
        atomic_store(&p->busy_since, 0);
        if (n < 0 && err == EINTR)
            continue;
        if (n <= 0)
            return fail(p, PUMP_TARGET, n < 0 ? -err : -EIO);
        data += n;
        len -= (size_t)n;
        at += (uint64_t)n;
    }
    return 0;
}

/* Write what is not zero; whole pages of the target that would be zero stay holes. */
static int write_thin(struct pump *p, const unsigned char *data, size_t len, uint64_t at)
{
    size_t start = 0, pos = 0; /* [start, pos) is data that is not written yet */
    while (pos < len) {
        size_t page = PUMP_PAGE - (size_t)((at + pos) % PUMP_PAGE);
        if (page > len - pos)
            page = len - pos;
        bool hole = pump_is_zero(data + pos, page);
        if (hole && pos > start) {
            int err = write_all(p, data + start, pos - start, at + start);
            if (err)
                return err;
        }
        pos += page;
        if (hole)
            start = pos;
        p->hole_at_end = hole;
    }
    return pos > start ? write_all(p, data + start, pos - start, at + start) : 0;
}

void pump_init(struct pump *p, int fd, unsigned char *ring, struct digests *digests, bool thin)
{
    memset(p, 0, sizeof *p);
    p->fd = fd;
    p->ring = ring;
    p->digests = digests;
    p->thin = thin;
}

/* The engine has hashed `len` bytes at `data`: so do the others. */
static int post_others(struct pump *p, const unsigned char *data, size_t len, uint64_t *ticket)
{
    *ticket = p->engine->ops->moved(p->engine, len);
    return p->others != NULL ? p->others->ops->post(p->others, data, len, ticket) : 0;
}

/* What the engine has hashed already it is not given again. */
static int post(struct pump *p, const unsigned char *data, size_t len, uint64_t *ticket)
{
    size_t hashed = p->hashed;
    p->hashed = 0;
    int err = hashed > 0 ? post_others(p, data, hashed, ticket) : 0;
    if (err == 0 && hashed < len)
        err = p->digests->ops->post(p->digests, data + hashed, len - hashed, ticket);
    return err;
}

/* Hash and write `len` bytes that belong at `at`; hashing goes on after this returns. */
static int dispatch(struct pump *p, const unsigned char *data, size_t len, uint64_t at, uint64_t *ticket)
{
    int err = post(p, data, len, ticket);
    p->last = *ticket;
    if (err)
        return fail(p, PUMP_DIGEST, err);
    p->unwritten = data;
    p->unwritten_len = len;
    p->unwritten_at = at;
    return pump_resume(p);
}

int pump_resume(struct pump *p)
{
    int err = 0;
    if (p->fd >= 0 && p->unwritten != NULL)
        err = (p->thin ? write_thin : write_all)(p, p->unwritten, p->unwritten_len, p->unwritten_at);
    if (err == 0) {
        p->unwritten = NULL;
        if (p->fd >= 0)
            write_back(p);
    }
    return err;
}

unsigned char *pump_open_block(const struct pump *p)
{
    return p->ring + (size_t)p->slot * PUMP_BLOCK;
}

static int wait_for(struct pump *p, uint64_t ticket)
{
    int err = p->digests->ops->wait(p->digests, ticket);
    return err ? fail(p, PUMP_DIGEST, err) : 0;
}

int pump_wait(struct pump *p)
{
    return wait_for(p, p->last);
}

unsigned char *pump_room(struct pump *p, size_t *room, int *err)
{
    if (p->fill == 0 && (*err = wait_for(p, p->ticket[p->slot])) != 0)
        return NULL;
    *room = PUMP_BLOCK - p->fill;
    return pump_open_block(p) + p->fill;
}

int pump_flush(struct pump *p)
{
    if (p->fill == 0)
        return 0;
    size_t len = p->fill;
    uint64_t *ticket = &p->ticket[p->slot];
    struct digests *late = p->hashed == len ? p->others : p->digests; /* that may not have done with it yet */
    p->fill = 0;
    int err = dispatch(p, pump_open_block(p), len, p->size - len, ticket);
    /* A block that nobody needs any more is filled again while it is in the cache. */
    if (err || (late != NULL && late->ops->done(late) < *ticket))
        p->slot = (p->slot + 1) % PUMP_BLOCKS;
    return err;
}

int pump_advance(struct pump *p, size_t n)
{
    p->fill += n;
    p->size += n;
    return p->fill == PUMP_BLOCK && !p->hold ? pump_flush(p) : 0;
}

int pump_take(struct pump *p, const void *data, size_t len, uint64_t *ticket)
{
    int err = pump_flush(p);
    /* In blocks, so that writing the first overlaps hashing it, and a long piece is no special case. */
    for (size_t done = 0; err == 0 && done < len;) {
        size_t n = len - done < PUMP_BLOCK ? len - done : PUMP_BLOCK;
        uint64_t at = p->size;
        p->size += n;
        err = dispatch(p, (const unsigned char *)data + done, n, at, ticket);
        done += n;
    }
    return err;
}

/* `len` zeroes that need not be read: hash them, and write them unless a hole will do. */
static int take_hole(struct pump *p, uint64_t len)
{
    int err = pump_flush(p);
    while (err == 0 && len > 0) {
        size_t n = len < PUMP_BLOCK ? (size_t)len : PUMP_BLOCK;
        uint64_t ticket, at = p->size;
        p->size += n;
        len -= n;
        err = dispatch(p, zeroes, n, at, &ticket);
    }
    return err;
}

/* How many bytes at s->offset are a hole (0: data, or no way to know), at most `want`. */
static uint64_t hole_here(struct pump_source *s, uint64_t want)
{
    off_t data = lseek(s->fd, s->offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
        off_t end = lseek(s->fd, 0, SEEK_END); /* only a hole is left, or nothing */
        data = end > s->offset ? end : s->offset;
    }
    if (data < 0) {
        s->sparse = false; /* this file system cannot tell */
        return 0;
    }
    uint64_t n = (uint64_t)(data - s->offset);
    return n < want ? n : want;
}

/* One read into the open block.  Returns the bytes read, 0 at the end, -errno. */
static ssize_t fill(struct pump *p, struct pump_source *s, uint64_t want)
{
    size_t room;
    int err;
    unsigned char *to = pump_room(p, &room, &err);
    if (to == NULL)
        return err;
    if (want < room)
        room = (size_t)want;
    for (;;) {
        ssize_t n;
        if (s->uncached && s->offset >= 0) {
            struct iovec piece = { to, room };
            n = preadv2(s->fd, &piece, 1, (off_t)s->offset, RWF_DONTCACHE);
            if (n < 0 && is_unknown_flag(errno)) {
                s->uncached = false;
                continue;
            }
        } else {
            n = s->offset >= 0 ? pread(s->fd, to, room, (off_t)s->offset) : read(s->fd, to, room);
        }
        if (n >= 0)
            return n;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return fail(p, PUMP_SOURCE, -errno);
        struct pollfd ready = { .fd = s->fd, .events = POLLIN };
        int got = poll(&ready, 1, s->wait_ms);
        if (got <= 0)
            return fail(p, PUMP_SOURCE, got < 0 ? -errno : -ETIMEDOUT);
    }
}

int pump_read(struct pump *p, struct pump_source *s, uint64_t budget)
{
    uint64_t data_left = 0; /* bytes ahead that are known to be no hole */
    while (s->limit > 0) {
        if (budget == 0 || (p->hold && p->fill == PUMP_BLOCK))
            return 1;
        if (atomic_load(&p->cancelled))
            return fail(p, PUMP_SOURCE, -ECANCELED);
        uint64_t want = s->limit < budget ? s->limit : budget;
        if (s->sparse && data_left == 0 && !p->hold) {
            uint64_t hole = hole_here(s, want);
            if (hole > 0) {
                int err = take_hole(p, hole);
                if (err)
                    return err;
                s->offset += (int64_t)hole;
                s->limit -= hole;
                budget -= hole;
                continue;
            }
            if (s->sparse) {
                off_t end = lseek(s->fd, s->offset, SEEK_HOLE);
                data_left = end > s->offset ? (uint64_t)(end - s->offset) : PUMP_BLOCK;
            }
        }
        if (data_left > 0 && data_left < want)
            want = data_left;
        ssize_t n = fill(p, s, want);
        if (n <= 0)
            return (int)n;
        if (s->offset >= 0)
            s->offset += n;
        s->limit -= (uint64_t)n;
        budget -= (uint64_t)n < budget ? (uint64_t)n : budget;
        data_left -= (uint64_t)n < data_left ? (uint64_t)n : data_left;
        int err = pump_advance(p, (size_t)n);
        if (err)
            return err;
    }
    return 0;
}

ssize_t pump_fill_ready(struct pump *p, struct pump_source *s, size_t most, bool in_memory)
{
    if (atomic_load(&p->cancelled))
        return fail(p, PUMP_SOURCE, -ECANCELED);
    /* Whoever calls this hashes in the engine's place. */
    if (p->fill == 0 && p->others != NULL && p->others->ops->done(p->others) < p->ticket[p->slot])
        return -EBUSY;
    if (most > PUMP_BLOCK - p->fill)
        most = PUMP_BLOCK - p->fill;
    if (most > s->limit)
        most = (size_t)s->limit;
    struct iovec piece = { pump_open_block(p) + p->fill, most };
    ssize_t n = preadv2(s->fd, &piece, 1, (off_t)s->offset, in_memory ? 0 : RWF_NOWAIT);
    if (n < 0) {
        if (is_unknown_flag(errno))
            p->alone = true;
        return -EAGAIN;
    }
    /* Linux 5.9 and 5.10 say so, too, where they would have to wait (preadv2(2)): pump_read will know. */
    if (n == 0 && !in_memory && most > 0)
        return -EAGAIN;
    p->fill += (size_t)n;
    p->size += (uint64_t)n;
    s->offset += n;
    s->limit -= (uint64_t)n;
    return n;
}

int pump_taken(struct pump *p, struct pump_source *s, const unsigned char *data, size_t len)
{
    int err = post_others(p, data, len, &p->last);
    if (err)
        return fail(p, PUMP_DIGEST, err);
    p->size += len;
    s->offset += (int64_t)len;
    s->limit -= len;
    return 0;
}

int pump_finish(struct pump *p)
{
    int err = pump_flush(p);
    if (err == 0)
        err = pump_wait(p);
    while (err == 0 && p->fd >= 0 && p->hole_at_end) {
        if (atomic_load(&p->cancelled))
            return fail(p, PUMP_TARGET, -ECANCELED);
        target_begin(p);
        err = ftruncate(p->fd, (off_t)p->size) == 0 ? 0 : -errno;
        atomic_store(&p->busy_since, 0);
        if (err == 0)
            p->hole_at_end = false;
        else if (err != -EINTR)
            p->side = PUMP_TARGET;
        else
            err = 0;
    }
    return err;
}
