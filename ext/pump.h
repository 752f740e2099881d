/* SPDX-License-Identifier: Apache-2.0
 *
 * The chunk-copy loop: bytes come in (from a descriptor, or from memory that the caller filled), are
 * posted to the stream's digests and written to the target while they are hashed.
 *
 * A pump belongs to one thread at a time.  Every function returns 0 (or what it says) on success and
 * -errno on failure; after a failure `side` tells whose fault it was.  -EINTR from pump_read means that a
 * signal came: handle it and call again, nothing is lost.
 */
#ifndef FASTFS_PUMP_H
#define FASTFS_PUMP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "digests.h"

enum {
    /* Buffers of 128 to 512 KiB are equally fast, 16 KiB costs 14 % and 4 MiB 11 % (cache). */
    PUMP_BLOCK = 256 * 1024,
    /* Three suffice to keep two hashes and the disk busy; more only leaves the cache. */
    PUMP_BLOCKS = 4,
    PUMP_RING = PUMP_BLOCK * PUMP_BLOCKS,
    /* Blocks that may be queued for hashing: the ring, and as many owned by the caller. */
    PUMP_DEPTH = 2 * PUMP_BLOCKS,
    /* Zeroes are told from data in units of this many bytes, the page of every file system of note. */
    PUMP_PAGE = 4096,
    /* The kernel is told to begin writing this much at a time. */
    PUMP_WINDOW = 8 * 1024 * 1024,
};

/* What becomes of the page cache. */
enum pump_cache {
    PUMP_KEEP,   /* the kernel's own way: what is written stays as long as there is room */
    PUMP_DROP,   /* pages go as soon as they are on the disk, and those of the source that were read for this */
    PUMP_DIRECT, /* the target's are never made: O_DIRECT, open(2); the source's as above */
};

enum pump_side { PUMP_NOBODY, PUMP_SOURCE, PUMP_TARGET, PUMP_DIGEST };

struct pump {
    struct digests *digests; /* not owned */
    struct digests *engine;  /* the part of them that is the engine's, or NULL; see crew.h */
    struct digests *others;  /* the other part, or NULL; of no interest without the one before */
    bool alone;              /* takes no part in a crew */
    bool missed;             /* parts of the source were not in the page cache; see window.h */
    int fd;                  /* target, not owned; -1 hashes only */
    bool thin;               /* leave holes for pages of zeroes */
    bool hold;               /* let the caller see the open block, and call pump_flush, before it goes */
    bool hole_at_end;        /* the target must be extended to `size` */
    bool early;              /* begin write-back while the stream runs, so that the fsync at its end is short */
    bool direct;             /* the target is in O_DIRECT mode */
    bool uncached;           /* RWF_DONTCACHE, for all that is read and written; off where it is not known */
    bool drop;               /* without RWF_DONTCACHE: drop by hand what is written */
    uint64_t begun;          /* write-back has begun for the bytes before this */
    enum pump_side side;
    _Atomic uint64_t size;   /* bytes taken so far, those in the open block included; others may look */

    unsigned char *ring;     /* PUMP_RING bytes, page aligned, not owned */
    unsigned slot;           /* the open block */
    size_t fill;             /* bytes in it */
    size_t hashed;           /* of these, by the engine, without its queue */
    uint64_t ticket[PUMP_BLOCKS]; /* what must be done before a slot is used again */
    uint64_t last;           /* the ticket posted last */

    const unsigned char *unwritten; /* the block whose writing failed, for pump_resume; else NULL */
    size_t unwritten_len;
    uint64_t unwritten_at;

    atomic_bool cancelled;   /* set by any thread: the next system call on the target is not made */
    _Atomic uint64_t busy_since; /* CLOCK_MONOTONIC ns at which a call on the target began; 0: in none */
};

struct pump_source {
    int fd;
    int64_t offset;  /* read here (pread) and move on; -1: a stream, read() */
    uint64_t limit;  /* take no more than this */
    int wait_ms;     /* how long to wait for a descriptor that is not ready; -1: for ever */
    bool sparse;     /* find the holes of a regular file instead of reading them */
    bool uncached;   /* RWF_DONTCACHE */
};

/* Start on an empty target.  `ring` and `digests` must outlive the pump's last call. */
void pump_init(struct pump *p, int fd, unsigned char *ring, struct digests *digests, bool thin);

/* How the page cache is treated; before the first byte.  Where a way is not to be had (tmpfs has no O_DIRECT),
 * the next gentler one is taken. */
void pump_set_cache(struct pump *p, enum pump_cache cache);

/* The next target's descriptor: as pump_init had it. */
void pump_set_target(struct pump *p, int fd);

/* The free part of the open block: `*room` (> 0) writable bytes at the pointer returned.  NULL: failed,
 * `*err` is set.  May wait for digests. */
unsigned char *pump_room(struct pump *p, size_t *room, int *err);

/* `n` bytes of that room hold data; a block that is full goes on its way. */
int pump_advance(struct pump *p, size_t n);

/* Send the open block on its way although it is not full. */
int pump_flush(struct pump *p);

/* Take `len` bytes at `data` without copying them.  They must stay as they are until the digests are
 * done with `*ticket`. */
int pump_take(struct pump *p, const void *data, size_t len, uint64_t *ticket);

/* The open block. */
unsigned char *pump_open_block(const struct pump *p);

/* Read up to `most` bytes into the open block if that means no waiting (`in_memory`: it never does).  Returns how many; 0
 * at the limit, and at the end of what is in memory.  -EAGAIN: pump_read will have to wait, or meet an error or the end.
 * -EBUSY: so has pump_room.  -ECANCELED.  The block may be full now: hash it, then pump_flush. */
ssize_t pump_fill_ready(struct pump *p, struct pump_source *s, size_t most, bool in_memory);

/* The source's next `len` bytes, `data`, did not go through the open block, which is empty, and the engine need not hash
 * them any more.  There is no target. */
int pump_taken(struct pump *p, struct pump_source *s, const unsigned char *data, size_t len);

/* Everything posted is hashed. */
int pump_wait(struct pump *p);

/* Move bytes from `s` until `budget` bytes are read, the limit is reached or the source ends.
 * Returns 1: there may be more; 0: the source ended or the limit is reached; -errno. */
int pump_read(struct pump *p, struct pump_source *s, uint64_t budget);

/* After a failure of the target: write the block that failed again, to `fd` as it is by now.  Everything
 * before that block (`unwritten_at` bytes) is the caller's to bring there.  The block must still be as it
 * was: no other call may have come in between. */
int pump_resume(struct pump *p);

/* Everything taken is hashed and written, the target has its size. */
int pump_finish(struct pump *p);

/* Are all `n` bytes at `data` zero? */
bool pump_is_zero(const void *data, size_t n);

#endif
