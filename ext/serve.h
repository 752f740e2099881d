/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes of a file on their way out: into memory, a socket, a pipe or another file, by whatever moves them with the
 * least work.  No function takes or keeps the GIL.  Where nothing else is said, 0 is success and -errno failure.
 */
#ifndef FASTFS_SERVE_H
#define FASTFS_SERVE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum {
    /* Larger reads into a buffer that lies badly are made in blocks of this size. */
    SERVE_SHIFT = 64 * 1024,
    /* What goes through memory goes in blocks of this size. */
    SERVE_BLOCK = 256 * 1024,
    /* Bytes of a file that are mapped at once. */
    SERVE_WINDOW = 4 * 1024 * 1024,
};

/* A descriptor that several threads use, and that one may close meanwhile: it is given back when the last of them
 * has left, so that none goes on with a number that has become another file.  Who leaves, unclaims or closes is told by the
 * result whether that is for him to do (close(2) may hang, and he may have to let go of something before): the descriptor,
 * or -1. */
struct serve_file {
    int fd;
    atomic_uint state;   /* threads within, and SERVE_CLOSED */
    atomic_bool claimed; /* by whoever moves the reader's position */
};

void serve_file_init(struct serve_file *f, int fd);

/* false: it is closed; otherwise call serve_file_leave afterwards. */
bool serve_file_enter(struct serve_file *f);
int serve_file_leave(struct serve_file *f);

/* As enter and leave, for one thread at a time: -EBUSY, another one is within; -EBADF, it is closed. */
int serve_file_claim(struct serve_file *f);
int serve_file_unclaim(struct serve_file *f);

/* Claim a file that is closed, to give back what belongs to it: true for one thread at a time, which calls release. */
bool serve_file_seize(struct serve_file *f);
void serve_file_release(struct serve_file *f);

/* In a forked child, which has none of the other threads that may have been within; is the caller (claim, enter)? */
void serve_file_forked(struct serve_file *f, bool within);

/* May be repeated. */
int serve_file_close(struct serve_file *f);
bool serve_file_closed(const struct serve_file *f);

/* Open a regular file for reading, `*size` bytes long: a link at `path` is not followed, a FIFO or device not waited
 * for.  Returns the descriptor; -ENOENT also where there is something else than a regular file. */
int serve_open(const char *path, int64_t *size);

/* Fill `n` buffers one after the other from `offset` on.  Returns the bytes read, fewer only at the end of the file
 * or when a signal or an error came after some; -errno if none was read, -EINTR among them.  `nowait`: only what is
 * in memory already, -EAGAIN if nothing is, -EOPNOTSUPP where the file system cannot tell.  Changes `iov`. */
ssize_t serve_read(int fd, struct iovec *iov, int n, int64_t offset, bool nowait);

/* As serve_read, for one buffer and waiting, with the buffer's place in memory minded: see serve.c. */
ssize_t serve_fill(int fd, void *data, size_t n, int64_t offset);

/* The range is going to be read from one end to the other: have the kernel read further ahead. */
void serve_advise(int fd, int64_t offset, uint64_t length);

enum serve_way {
    SERVE_SENDFILE, /* the kernel moves pages */
    SERVE_MAPPED,   /* send(2) out of the mapped file; nothing but the kernel touches the mapping, so that a file
                       that was truncated gives EFAULT and not SIGBUS */
    SERVE_MEMORY,   /* pread, then write or send */
};

enum serve_side { SERVE_NOBODY, SERVE_SOURCE, SERVE_TARGET };

struct serve {
    int in;          /* a regular file; its position is not used */
    int out;
    bool socket;     /* `out` is one */
    enum serve_way way; /* becomes SERVE_MEMORY where the one asked for is not to be had */
    int64_t offset;  /* moves on */
    uint64_t left;
    int wait_ms;     /* `out` is not ready: how long to wait for it; -1: for ever, 0: -EAGAIN */
    enum serve_side side; /* whose fault the last error was */
};

/* Move up to `budget` bytes.  Returns 0: nothing is left; 1: come again, the budget is used up or a signal came;
 * -errno, -ENODATA on the source's side: the file ends before the range does; -ETIMEDOUT on the target's: `wait_ms`
 * are over.  `offset` and `left` tell what was moved in any case. */
int serve_run(struct serve *s, uint64_t budget);

/* Let more be under way in a Unix socket, where what is sent are pages of the file: the sender sleeps 62 times in
 * 512 MiB, not 2000, which on a virtual machine was 78 ms and not 250.  Returns what to give to serve_narrow afterwards;
 * 0: nothing was changed. */
int serve_widen(int out);
void serve_narrow(int out, int before);

struct serve_copy {
    int in, out;     /* regular files; their positions are not used */
    bool shared;     /* leave it to copy_file_range(2), which network file systems do without moving the bytes */
    int64_t from, to; /* move on, as `left` does */
    uint64_t left;
    enum serve_side side;
};

/* Copy up to `budget` bytes between regular files.  Returns as serve_run. */
int serve_copy(struct serve_copy *c, uint64_t budget);

/* Let a part of `out` share blocks of `in`.  The offsets are multiples of the block size, and so is the length unless it
 * ends with `in`. */
int serve_clone_range(int in, int64_t from, uint64_t count, int out, int64_t to);

/* The next data in [*from, end): 1, and its bounds; 0: there are only holes. */
int serve_extent(int fd, int64_t *from, int64_t *to, int64_t end);

/* Does a server far away keep the file? */
bool serve_remote(int fd);

/* Is the other end of a TCP connection this very machine, as its address tells? */
bool serve_local_peer(int fd);

#endif
