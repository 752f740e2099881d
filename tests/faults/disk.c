/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk that writes down what happens to it, for power cuts; and that can hang or die.  A FUSE file system (spoken
 * straight to /dev/fuse, so nothing but the kernel's headers is needed) with two files:
 *
 *     disk   SIZE bytes of memory; put a loop device on it, and a file system on that
 *     mark   what is written here goes into the log: what was acknowledged, and when
 *
 * The log is a sequence of records: struct entry, then `length` bytes.
 *
 *     disk MOUNTPOINT SIZE LOG CONTROL
 *
 * CONTROL is a file of at least one byte, looked at before each read, write and flush: 0 obey; 1 hang until it is
 * something else; 2 fail with EIO; 3 fail flushes with EIO; 4 fail the next flush, then become 0.
 * Ends when it is unmounted.  One thread: the log has the order in which things happened.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { ROOT = 1, DISK = 2, MARK = 3, MAX_WRITE = 1024 * 1024 };
enum { OBEY, HANG, DIE, FAIL_FLUSHES, FAIL_A_FLUSH };

struct entry {
    uint64_t kind; /* 'W', 'F', 'M' */
    uint64_t offset;
    uint64_t length;
};

static int device, logfile;
static unsigned char *disk;
static uint64_t size;
static volatile unsigned char *control;

static void answer(uint64_t unique, int error, const void *data, size_t length)
{
    struct fuse_out_header h = { .len = (uint32_t)(sizeof h + length), .error = error, .unique = unique };
    struct iovec v[2] = { { &h, sizeof h }, { (void *)data, length } };
    /* ENOENT: the request was interrupted. */
    if (writev(device, v, length ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV)
        perror("disk: answer");
}

static void note(uint64_t kind, uint64_t offset, const void *data, uint64_t length)
{
    struct entry e = { kind, offset, length };
    struct iovec v[2] = { { &e, sizeof e }, { (void *)data, length } };
    if (writev(logfile, v, 2) != (ssize_t)(sizeof e + length)) {
        perror("disk: log");
        _exit(1);
    }
}

static void attributes(struct fuse_attr *a, uint64_t node)
{
    memset(a, 0, sizeof *a);
    a->ino = node;
    a->mode = node == ROOT ? S_IFDIR | 0700 : S_IFREG | 0600;
    a->nlink = 1;
    a->size = node == DISK ? size : 0;
    a->blocks = a->size / 512;
    a->blksize = 4096;
}

/* 0, or the errno that the state of the disk asks for. */
static int trouble(int flush)
{
    struct timespec t = { 0, 2000000 };
    while (*control == HANG)
        nanosleep(&t, NULL);
    if (*control == DIE || (flush && *control >= FAIL_FLUSHES)) {
        if (*control == FAIL_A_FLUSH)
            *control = OBEY;
        return -EIO;
    }
    return 0;
}

static void serve(char *request)
{
    struct fuse_in_header *in = (void *)request;
    void *body = in + 1;
    switch (in->opcode) {
    case FUSE_INIT: {
        struct fuse_init_in *i = body;
        struct fuse_init_out o = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION };
        o.max_readahead = i->max_readahead;
        o.flags = i->flags & (FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_ASYNC_READ);
        o.max_write = MAX_WRITE;
        o.max_pages = MAX_WRITE / 4096;
        o.max_background = 64;
        o.congestion_threshold = 48;
        answer(in->unique, 0, &o, sizeof o);
        return;
    }
    case FUSE_LOOKUP: {
        const char *name = body;
        struct fuse_entry_out o = { .nodeid = strcmp(name, "disk") == 0 ? DISK : strcmp(name, "mark") == 0 ? MARK : 0 };
        if (o.nodeid == 0) {
            answer(in->unique, -ENOENT, NULL, 0);
            return;
        }
        attributes(&o.attr, o.nodeid);
        answer(in->unique, 0, &o, sizeof o);
        return;
    }
    case FUSE_GETATTR:
    case FUSE_SETATTR: {
        struct fuse_attr_out o = { 0 };
        attributes(&o.attr, in->nodeid);
        answer(in->unique, 0, &o, sizeof o);
        return;
    }
    case FUSE_OPEN: {
        struct fuse_open_out o = { 0 };
        answer(in->unique, 0, &o, sizeof o);
        return;
    }
    case FUSE_READ: {
        struct fuse_read_in *r = body;
        int error = trouble(0);
        uint64_t n = in->nodeid != DISK || r->offset >= size ? 0 : size - r->offset < r->size ? size - r->offset : r->size;
        answer(in->unique, error, disk + r->offset, error ? 0 : n);
        return;
    }
    case FUSE_WRITE: {
        struct fuse_write_in *w = body;
        struct fuse_write_out o = { .size = w->size };
        if (in->nodeid == MARK) {
            note('M', 0, w + 1, w->size);
        } else {
            int error = trouble(0);
            if (error == 0 && (w->offset > size || w->size > size - w->offset))
                error = -ENOSPC;
            if (error) {
                answer(in->unique, error, NULL, 0);
                return;
            }
            memcpy(disk + w->offset, w + 1, w->size);
            note('W', w->offset, w + 1, w->size);
        }
        answer(in->unique, 0, &o, sizeof o);
        return;
    }
    case FUSE_FSYNC: {
        int error = in->nodeid == DISK ? trouble(1) : 0;
        if (error == 0 && in->nodeid == DISK)
            note('F', 0, "", 0);
        answer(in->unique, error, NULL, 0);
        return;
    }
    case FUSE_STATFS: {
        struct fuse_statfs_out o = { 0 };
        o.st.bsize = o.st.frsize = 4096;
        o.st.blocks = size / 4096;
        o.st.namelen = 255;
        answer(in->unique, 0, &o, sizeof o);
        return;
    }
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_OPENDIR:
    case FUSE_RELEASEDIR:
    case FUSE_ACCESS: {
        struct fuse_open_out o = { 0 };
        answer(in->unique, 0, &o, in->opcode == FUSE_OPENDIR ? sizeof o : 0);
        return;
    }
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        return; /* no answer is expected */
    default:
        answer(in->unique, -ENOSYS, NULL, 0);
    }
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    size = strtoull(argv[2], NULL, 10);
    disk = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    logfile = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
    int c = open(argv[4], O_RDWR);
    control = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, c, 0);
    device = open("/dev/fuse", O_RDWR);
    if (disk == MAP_FAILED || logfile < 0 || c < 0 || control == MAP_FAILED || device < 0) {
        perror("disk");
        return 1;
    }
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%d,group_id=%d", device, getuid(), getgid());
    if (mount("faults-disk", argv[1], "fuse", MS_NOSUID | MS_NODEV, options) != 0) {
        perror("disk: mount");
        return 1;
    }
    printf("ready\n");
    fflush(stdout);
    static char request[MAX_WRITE + 65536];
    for (;;) {
        ssize_t n = read(device, request, sizeof request);
        if (n > 0)
            serve(request);
        else if (n < 0 && errno == ENODEV) /* unmounted */
            return 0;
        else if (n < 0 && errno != EINTR && errno != EAGAIN && errno != ENOENT) {
            perror("disk: read");
            return 1;
        }
    }
}
