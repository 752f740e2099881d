/* SPDX-License-Identifier: Apache-2.0
 *
 * System calls that Python's os module lacks, or that a small object cannot afford one by one.
 * Every function returns 0 or what it says on success, -errno on failure.
 */
#ifndef FASTFS_FSOPS_H
#define FASTFS_FSOPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Reserve `size` bytes for the empty file `fd` without changing its length, where that is known to pay.
 * Returns 1: reserved; 0: not tried or not supported here. */
int fsops_reserve(int fd, uint64_t size);

/* Give back what was reserved beyond `size`, the file's length. */
int fsops_trim(int fd, uint64_t size);

/* Give the nameless file `fd` (O_TMPFILE) the name `name` in `dirfd`, which nothing has: -EEXIST. */
int fsops_link_fd(int fd, int dirfd, const char *name);

/* Rename without replacing: -EEXIST.  Where the file system has no such rename: link, then unlink. */
int fsops_rename(int dirfd, const char *from, const char *to);

struct fsops_object {
    const char *directory; /* absolute, '/' at its end not needed */
    const char *name;
    const void *data;
    size_t len;
    const char *attr; /* name of a user attribute to set, where there is room for it; NULL: none */
    const void *attr_value;
    size_t attr_len;
    int mode;        /* final permission bits; -1: as the umask says */
    bool sync_file;
    bool sync_dir;
};

/* The whole life of a small file: nameless, written, mode set, synced, named, directory synced.  It is there
 * afterwards if and only if 0 is returned.  -EEXIST: the name is taken.  -EOPNOTSUPP (or EISDIR, EINVAL,
 * ENOENT from old kernels and some file systems): no nameless files here. */
int fsops_store(const struct fsops_object *o);

/* What many small objects need one by one, so that a caller can take each step for all of them.
 *
 * Read the regular file at `path` whole.  Returns its length, at most `room` bytes, now at `buf`; -EFBIG: it is
 * longer, or no regular file (never waits for a FIFO). */
ssize_t fsops_read(const char *path, void *buf, size_t room);

/* A nameless file in the directory `dirfd`, written, its mode set (-1: as the umask says).  Returns its descriptor;
 * it is to be linked (fsops_link_fd) and closed by the caller. */
int fsops_draft(int dirfd, const void *data, size_t len, int mode);

/* Put the `n` files `fds` on the disk.  Where that fails the descriptor is closed and -errno put in its place;
 * negative ones are left alone. */
void fsops_sync_many(int *fds, size_t n);

/* Put all that was written to the file system of `fd` on its disk.  Since Linux 5.8 an error of writing back that
 * happened since `fd` was opened is told, once for each open file. */
int fsops_syncfs(int fd);

/* Magic numbers of file systems, statfs(2); ext2 and ext3 have that of ext4. */
enum {
    FSOPS_EXT4 = 0xEF53,
    FSOPS_XFS = 0x58465342,
    FSOPS_BTRFS = 0x9123683E,
    FSOPS_F2FS = 0xF2F52010,
    FSOPS_OVERLAYFS = 0x794C7630,
    FSOPS_TMPFS = 0x01021994,
};

/* That of the file system of `fd`, or -errno. */
int64_t fsops_kind(int fd);
/* Are all pages of the `len` bytes from `offset` on (a multiple of the page size) in the page cache, or on their way into it
 * from the disk?  False as well where the kernel does not tell: before Linux 6.5, or because it is somebody else's file. */
bool fsops_all_resident(int fd, uint64_t offset, size_t len);
/* Which pages of the `len` bytes from `offset` on (a multiple of the page size) are in the page cache: a byte
 * for each page (`pages` has room for one per 4096 bytes), its lowest bit set if it is.  A file that the caller may not write to is all there. */
int fsops_resident(int fd, uint64_t offset, size_t len, unsigned char *pages);

#endif
