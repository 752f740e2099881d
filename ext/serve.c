/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SERVE_CLOSED 0x80000000u

void serve_file_init(struct serve_file *f, int fd)
{
    f->fd = fd;
    atomic_init(&f->state, fd < 0 ? SERVE_CLOSED : 0);
    atomic_init(&f->claimed, false);
}

int serve_file_leave(struct serve_file *f)
{
    return atomic_fetch_sub(&f->state, 1) == (SERVE_CLOSED | 1) ? f->fd : -1;
}

bool serve_file_enter(struct serve_file *f)
{
    unsigned state = atomic_load(&f->state);
    do
        if (state & SERVE_CLOSED)
            return false;
    while (!atomic_compare_exchange_weak(&f->state, &state, state + 1));
    return true;
}

int serve_file_claim(struct serve_file *f)
{
    if (atomic_exchange(&f->claimed, true))
        return -EBUSY;
    if (serve_file_enter(f))
        return 0;
    atomic_store(&f->claimed, false);
    return -EBADF;
}

int serve_file_unclaim(struct serve_file *f)
{
    int last = serve_file_leave(f);
    atomic_store(&f->claimed, false);
    return last;
}

bool serve_file_seize(struct serve_file *f)
{
    return serve_file_closed(f) && !atomic_exchange(&f->claimed, true);
}

void serve_file_release(struct serve_file *f)
{
    atomic_store(&f->claimed, false);
}

void serve_file_forked(struct serve_file *f, bool within)
{
    unsigned before = atomic_load(&f->state);
    atomic_store(&f->state, (before & SERVE_CLOSED) | within);
    if (before > SERVE_CLOSED && !within) /* one of them would have closed it */
        close(f->fd);
}

int serve_file_close(struct serve_file *f)
{
    return atomic_fetch_or(&f->state, SERVE_CLOSED) == 0 ? f->fd : -1;
}

bool serve_file_closed(const struct serve_file *f)
{
    return atomic_load(&f->state) & SERVE_CLOSED;
}

int serve_open(const char *path, int64_t *size)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY);
    if (fd < 0)
        return errno == ENXIO ? -ENOENT : -errno; /* a socket, a device without a driver */
    int err = fstat(fd, &info) != 0 ? -errno : S_ISREG(info.st_mode) ? 0 : -ENOENT;
    if (err) {
        close(fd);
        return err;
    }
    *size = info.st_size;
    return fd;
}

ssize_t serve_read(int fd, struct iovec *iov, int n, int64_t offset, bool nowait)
{
    ssize_t total = 0;
    while (n > 0) {
        ssize_t got = nowait ? preadv2(fd, iov, n, (off_t)offset, RWF_NOWAIT) : preadv(fd, iov, n, (off_t)offset);
        if (got < 0)
            return total > 0 ? total : -errno;
        if (got == 0) /* Linux 5.9 and 5.10 say so, too, where they would have to wait: preadv2(2) */
            return nowait && total == 0 ? -EAGAIN : total;
        total += got;
        offset += got;
        while (n > 0 && (size_t)got >= iov->iov_len) {
            got -= (ssize_t)iov->iov_len;
            iov++;
            n--;
        }
        if (n > 0) {
            iov->iov_base = (char *)iov->iov_base + got;
            iov->iov_len -= (size_t)got;
        }
    }
    return total;
}

static ssize_t read_one(int fd, void *data, size_t n, int64_t offset)
{
    struct iovec iov = {data, n};
    return serve_read(fd, &iov, 1, offset, false);
}

/* The kernel copies with `rep movsb`, which Zen 5 does at a third to two thirds of its speed where the target lies 1 to
 * 31 bytes behind the source, modulo a page: 512 MiB took 182 ms at 1 byte, 72 at 16 (a large bytearray, whose memory
 * begins that much behind a page), 47 elsewhere.  So read a few bytes beside where the data belongs, and move it: 65. */
ssize_t serve_fill(int fd, void *data, size_t n, int64_t offset)
{
    enum { BAD = 32 };
    char *to = data;
    size_t phase = ((size_t)to - (size_t)offset) % 4096, done = 0;
    if (phase == 0 || phase >= BAD || n < 2 * SERVE_SHIFT)
        return read_one(fd, data, n, offset);
    while (done < n) {
        char saved[BAD], *at = to + done;
        size_t want = n - done < 2 * SERVE_SHIFT ? n - done : SERVE_SHIFT;
        bool last = done + want == n;
        char *beside = last ? at - phase : at + BAD - phase; /* in front of the last block is data that must stay */
        memcpy(saved, at - (last ? phase : 0), phase);
        ssize_t got = read_one(fd, beside, want, offset + (int64_t)done);
        if (got > 0)
            memmove(at, beside, (size_t)got);
        if (last)
            memcpy(beside, saved, phase);
        if (got <= 0)
            return done > 0 ? (ssize_t)done : got;
        done += (size_t)got;
        if ((size_t)got < want)
            break;
    }
    return (ssize_t)done;
}

void serve_advise(int fd, int64_t offset, uint64_t length)
{
    posix_fadvise(fd, (off_t)offset, (off_t)length, POSIX_FADV_SEQUENTIAL);
}

/* Errors that only the other end of a connection can have. */
static bool peer_error(int err)
{
    return err == EPIPE || err == ECONNRESET || err == ENOTCONN || err == ECONNABORTED || err == EHOSTUNREACH
           || err == ENETUNREACH || err == ETIMEDOUT;
}

static ssize_t put(const struct serve *s, const void *data, size_t n)
{
    return s->socket ? send(s->out, data, n, MSG_NOSIGNAL) : write(s->out, data, n);
}

static ssize_t step_sendfile(struct serve *s, size_t n)
{
    off_t offset = (off_t)s->offset;
    ssize_t got = sendfile(s->out, s->in, &offset, n);
    if (got == 0) {
        s->side = SERVE_SOURCE;
        errno = ENODATA;
        return -1;
    }
    if (got < 0 && (errno == EPIPE || (s->socket && peer_error(errno))))
        s->side = SERVE_TARGET;
    return got;
}

static ssize_t step_mapped(struct serve *s, size_t n)
{
    size_t before = (size_t)(s->offset % SERVE_WINDOW);
    char *window = mmap(NULL, before + n, PROT_READ, MAP_SHARED, s->in, (off_t)(s->offset - (int64_t)before));
    if (window == MAP_FAILED)
        return -1;
    ssize_t got = put(s, window + before, n);
    int err = errno;
    munmap(window, before + n);
    /* Behind the end of a file its last page is zeroes, which would go out for what was truncated. */
    struct stat info;
    if (got > 0 && (fstat(s->in, &info) != 0 || info.st_size < s->offset + got)) {
        s->side = SERVE_SOURCE;
        err = ENODATA;
        got = -1;
    }
    errno = err;
    if (got < 0 && peer_error(err))
        s->side = SERVE_TARGET;
    return got;
}

static ssize_t step_memory(struct serve *s, unsigned char *block, size_t n)
{
    struct iovec iov = {block, n};
    ssize_t got = serve_read(s->in, &iov, 1, s->offset, false);
    if (got <= 0) {
        errno = got < 0 ? (int)-got : ENODATA;
        s->side = SERVE_SOURCE;
        return -1;
    }
    /* What does not go out is read again. */
    got = put(s, block, (size_t)got);
    if (got == 0)
        errno = EIO;
    if (got <= 0) {
        s->side = SERVE_TARGET;
        return -1;
    }
    return got;
}

/* Wait until `out` takes something. */
static int await(const struct serve *s)
{
    struct pollfd p = {.fd = s->out, .events = POLLOUT};
    int ready = poll(&p, 1, s->wait_ms);
    return ready > 0 ? 0 : ready == 0 ? -ETIMEDOUT : -errno;
}

/* What one call may move. */
static size_t step_size(const struct serve *s, uint64_t budget)
{
    uint64_t n = s->left < budget ? s->left : budget;
    uint64_t most = s->way == SERVE_MAPPED   ? SERVE_WINDOW - (uint64_t)s->offset % SERVE_WINDOW
                    : s->way == SERVE_MEMORY ? SERVE_BLOCK
                                             : n;
    return (size_t)(n < most ? n : most);
}

int serve_run(struct serve *s, uint64_t budget)
{
    unsigned char *block = NULL;
    int err = 0;
    while (s->left > 0 && err == 0) {
        if (budget == 0) {
            err = 1;
            break;
        }
        size_t n = step_size(s, budget);
        ssize_t got;
        s->side = SERVE_NOBODY;
        if (s->way == SERVE_MEMORY && block == NULL
            && posix_memalign((void **)&block, 4096, s->left < SERVE_BLOCK ? (size_t)s->left : SERVE_BLOCK) != 0) {
            block = NULL;
            err = -ENOMEM;
            break;
        }
        if (s->way == SERVE_SENDFILE)
            got = step_sendfile(s, n);
        else if (s->way == SERVE_MAPPED)
            got = step_mapped(s, n);
        else
            got = step_memory(s, block, n);
        if (got > 0) {
            s->offset += got;
            s->left -= (uint64_t)got;
            budget -= (uint64_t)got;
            /* A target that blocks takes everything, unless there was a signal: the next call might wait for ever. */
            if ((size_t)got < n && s->wait_ms < 0)
                err = 1;
            continue;
        }
        err = -errno;
        if (err == -EINTR) {
            err = 1;
        } else if (err == -EAGAIN && s->side != SERVE_SOURCE) {
            err = s->wait_ms == 0 ? -EAGAIN : await(s);
            s->side = SERVE_TARGET;
            if (err == -EINTR)
                err = 1;
        } else if (s->side == SERVE_NOBODY && s->way != SERVE_MEMORY) {
            /* Not to be had here, or one of the two failed: through memory it shows which. */
            s->way = SERVE_MEMORY;
            err = 0;
        }
    }
    free(block);
    return err;
}

int serve_widen(int out)
{
    int kind, now, want = 4 * 1024 * 1024;
    socklen_t length = sizeof kind;
    if (getsockopt(out, SOL_SOCKET, SO_DOMAIN, &kind, &length) != 0 || kind != AF_UNIX)
        return 0;
    length = sizeof now;
    if (getsockopt(out, SOL_SOCKET, SO_SNDBUF, &now, &length) != 0 || now >= 2 * want)
        return 0;
    /* The kernel doubles what it is given, and gives no more than net.core.wmem_max. */
    return setsockopt(out, SOL_SOCKET, SO_SNDBUF, &want, sizeof want) == 0 ? now / 2 : 0;
}

void serve_narrow(int out, int before)
{
    setsockopt(out, SOL_SOCKET, SO_SNDBUF, &before, sizeof before);
}

static ssize_t copy_step(struct serve_copy *c, unsigned char *block, size_t n)
{
    struct iovec iov = {block, n < SERVE_BLOCK ? n : SERVE_BLOCK};
    c->side = SERVE_SOURCE;
    ssize_t got = serve_read(c->in, &iov, 1, c->from, false);
    if (got <= 0) {
        errno = got < 0 ? (int)-got : ENODATA;
        return -1;
    }
    c->side = SERVE_TARGET;
    got = pwrite(c->out, block, (size_t)got, (off_t)c->to);
    if (got == 0)
        errno = EIO;
    return got;
}

int serve_copy(struct serve_copy *c, uint64_t budget)
{
    unsigned char *block = NULL;
    int err = 0;
    while (c->left > 0 && err == 0) {
        if (budget == 0) {
            err = 1;
            break;
        }
        uint64_t n = c->left < budget ? c->left : budget;
        ssize_t got;
        if (c->shared) {
            off_t from = (off_t)c->from, to = (off_t)c->to;
            got = copy_file_range(c->in, &from, c->out, &to, (size_t)n, 0);
            if (got == 0 || (got < 0 && errno != EINTR)) {
                c->shared = false; /* not here, or an error that shows better through memory */
                continue;
            }
        } else if (block == NULL && posix_memalign((void **)&block, 4096, SERVE_BLOCK) != 0) {
            block = NULL;
            err = -ENOMEM;
            break;
        } else {
            got = copy_step(c, block, (size_t)n);
        }
        if (got <= 0) {
            err = errno == EINTR ? 1 : -errno;
            break;
        }
        c->from += got;
        c->to += got;
        c->left -= (uint64_t)got;
        budget -= (uint64_t)got;
    }
    free(block);
    return err;
}

int serve_clone_range(int in, int64_t from, uint64_t count, int out, int64_t to)
{
    struct file_clone_range range = {
        .src_fd = in, .src_offset = (uint64_t)from, .src_length = count, .dest_offset = (uint64_t)to};
    int err;
    do
        err = ioctl(out, FICLONERANGE, &range) == 0 ? 0 : -errno;
    while (err == -EINTR);
    return err;
}

int serve_extent(int fd, int64_t *from, int64_t *to, int64_t end)
{
    if (*from >= end)
        return 0;
    off_t begin = lseek(fd, (off_t)*from, SEEK_DATA);
    if (begin < 0 && errno == ENXIO)
        return 0;
    off_t stop = begin < 0 ? -1 : lseek(fd, begin, SEEK_HOLE);
    if (stop < 0) {
        if (errno != EINVAL && errno != EOPNOTSUPP)
            return -errno;
        *to = end; /* a file system that knows no holes */
        return 1;
    }
    if (begin >= end)
        return 0;
    *from = begin;
    *to = stop < end ? stop : end;
    return 1;
}

bool serve_remote(int fd)
{
    struct statfs fs;
    if (fstatfs(fd, &fs) != 0)
        return false;
    switch ((uint32_t)fs.f_type) {
    case 0x6969:     /* NFS */
    case 0xFF534D42: /* CIFS */
    case 0xFE534D42: /* SMB2 */
    case 0x00C36400: /* Ceph */
        return true;
    default:
        return false;
    }
}

bool serve_local_peer(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
        struct sockaddr_storage room;
    } peer, own;
    socklen_t length = sizeof peer;
    if (getpeername(fd, &peer.any, &length) != 0)
        return false;
    length = sizeof own;
    if (getsockname(fd, &own.any, &length) != 0 || own.any.sa_family != peer.any.sa_family)
        return false;
    /* Whoever connects to an address of this machine without choosing one of his own is given the same. */
    if (peer.any.sa_family == AF_INET)
        return peer.four.sin_addr.s_addr == own.four.sin_addr.s_addr
               || ntohl(peer.four.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    if (peer.any.sa_family == AF_INET6)
        return memcmp(&peer.six.sin6_addr, &own.six.sin6_addr, sizeof peer.six.sin6_addr) == 0
               || IN6_IS_ADDR_LOOPBACK(&peer.six.sin6_addr)
               || (IN6_IS_ADDR_V4MAPPED(&peer.six.sin6_addr) && peer.six.sin6_addr.s6_addr[12] == IN_LOOPBACKNET);
    return false;
}
