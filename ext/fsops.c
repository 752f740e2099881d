/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "fsops.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

/* No page is smaller. */
#define PAGE_MIN 4096

int fsops_reserve(int fd, uint64_t size)
{
    /* Below this the call costs more than it saves. */
    if (size < 1024 * 1024 || size > INT64_MAX)
        return 0;
    /* Writing to ext4 is 1.7 times as fast into reserved space; tmpfs would clear every page twice. */
    int64_t kind = fsops_kind(fd);
    if (kind != FSOPS_EXT4 && kind != FSOPS_XFS)
        return 0;
    int err;
    do
        err = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)size) == 0 ? 0 : errno;
    while (err == EINTR);
    if (err == EOPNOTSUPP || err == ENOSYS)
        return 0;
    return err == 0 ? 1 : -err;
}

int fsops_trim(int fd, uint64_t size)
{
    /* Truncating to the length a file has releases the blocks behind it (ext4, xfs). */
    return ftruncate(fd, (off_t)size) == 0 ? 0 : -errno;
}

static bool has_name(int fd, int dirfd, const char *name)
{
    struct stat ours, theirs;
    return fstat(fd, &ours) == 0 && fstatat(dirfd, name, &theirs, AT_SYMLINK_NOFOLLOW) == 0 && ours.st_ino == theirs.st_ino
           && ours.st_dev == theirs.st_dev;
}

/* Take the name away again if it still is this file's. */
static void retract(int fd, int dirfd, const char *name)
{
    if (has_name(fd, dirfd, name))
        unlinkat(dirfd, name, 0);
}

int fsops_link_fd(int fd, int dirfd, const char *name)
{
    /* The short way saves 2 us, and needs CAP_DAC_READ_SEARCH or Linux 6.10: ENOENT without. */
    if (linkat(fd, "", dirfd, name, AT_EMPTY_PATH) == 0)
        return 0;
    int err = errno;
    if (err == ENOENT) {
        char path[32];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (linkat(AT_FDCWD, path, dirfd, name, AT_SYMLINK_FOLLOW) == 0)
            return 0;
        err = errno;
    }
    /* An error may be told of what was done: a network's answer was lost, and then a repeated call finds the name taken. */
    if (err == EEXIST && has_name(fd, dirfd, name))
        return 0;
    retract(fd, dirfd, name);
    return -err;
}

int fsops_rename(int dirfd, const char *from, const char *to)
{
    if (renameat2(dirfd, from, dirfd, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    if (linkat(dirfd, from, dirfd, to, 0) != 0) {
        /* An NFS server that did link, but whose answer was lost, sees the repeated call fail: two links
         * to our temporary say that the other one is ours. */
        int err = errno;
        struct stat a, b;
        if (err != EEXIST || fstatat(dirfd, from, &a, AT_SYMLINK_NOFOLLOW) != 0 || a.st_nlink != 2
            || fstatat(dirfd, to, &b, AT_SYMLINK_NOFOLLOW) != 0 || a.st_ino != b.st_ino || a.st_dev != b.st_dev)
            return -err;
    }
    unlinkat(dirfd, from, 0); /* what stays is the janitor's */
    return 0;
}

/* cachestat(2), Linux 6.5, which the C library does not know yet; one number on every architecture. */
#define NR_CACHESTAT 451

bool fsops_all_resident(int fd, uint64_t offset, size_t len)
{
    struct { uint64_t offset, len; } range = { offset, len };
    struct { uint64_t cached, dirty, writeback, evicted, recently_evicted; } stat = { 0 };
    if (syscall(NR_CACHESTAT, fd, &range, &stat, 0) != 0)
        return false;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return stat.cached == (len + page - 1) / page;
}

int fsops_resident(int fd, uint64_t offset, size_t len, unsigned char *pages)
{
    /* The usual case of a busy file; mincore looks at each page, and so takes a sixth of reading them. */
    if (fsops_all_resident(fd, offset, len)) {
        memset(pages, 1, (len + PAGE_MIN - 1) / PAGE_MIN);
        return 0;
    }
    /* Mapped, never touched, so a file that shrinks meanwhile does no harm. */
    void *at = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, (off_t)offset);
    if (at == MAP_FAILED)
        return -errno;
    int err = mincore(at, len, pages) == 0 ? 0 : -errno;
    munmap(at, len);
    return err;
}

static int write_object(int fd, const struct fsops_object *o)
{
    const char *data = o->data;
    size_t left = o->len;
    while (left > 0) {
        ssize_t n = write(fd, data, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        left -= (size_t)n;
    }
    if (o->attr != NULL) /* an object does without where it fails */
        (void)fsetxattr(fd, o->attr, o->attr_value, o->attr_len, 0);
    if (o->mode >= 0 && fchmod(fd, (mode_t)o->mode) != 0)
        return -errno;
    if (o->sync_file && fsync(fd) != 0)
        return -errno;
    return 0;
}

int fsops_store(const struct fsops_object *o)
{
    char path[PATH_MAX];
    int len = snprintf(path, sizeof path, "%s/%s", o->directory, o->name);
    if (len < 0 || (size_t)len >= sizeof path)
        return -ENAMETOOLONG;

    int err, fd, dirfd = -1;
    if (o->sync_dir) {
        dirfd = open(o->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dirfd < 0)
            return -errno;
    }
    fd = open(o->directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, o->mode >= 0 ? 0600 : 0666);
    if (fd < 0) {
        err = -errno;
        goto end;
    }
    err = write_object(fd, o);
    if (err == 0)
        err = fsops_link_fd(fd, AT_FDCWD, path);
    if (err == 0 && o->sync_dir && fsync(dirfd) != 0) {
        err = -errno;
        retract(fd, AT_FDCWD, path);
    }
    if (close(fd) != 0 && err == 0) {
        err = -errno;
        unlink(path);
    }
end:
    if (dirfd >= 0)
        close(dirfd);
    return err;
}

ssize_t fsops_read(const char *path, void *buf, size_t room)
{
    struct stat st;
    size_t len = 0;
    ssize_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) != 0)
        n = -errno;
    else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > room)
        n = -EFBIG;
    while (n >= 0) {
        /* One byte more than there should be: a read that is not filled saves the one that finds the end. */
        char more;
        struct iovec to[2] = {{(char *)buf + len, room - len}, {&more, 1}};
        n = readv(fd, to, 2);
        if (n < 0 && errno == EINTR) {
            n = 0;
            continue;
        }
        if (n < 0)
            n = -errno;
        else if ((size_t)n > room - len)
            n = -EFBIG;
        else {
            len += (size_t)n;
            if (n == 0 || (st.st_size > 0 && len == (size_t)st.st_size))
                break;
        }
    }
    close(fd);
    return n < 0 ? n : (ssize_t)len;
}

int fsops_draft(int dirfd, const void *data, size_t len, int mode)
{
    const struct fsops_object o = {.data = data, .len = len, .mode = mode};
    int fd = openat(dirfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode >= 0 ? 0600 : 0666);
    if (fd < 0)
        return -errno;
    int err = write_object(fd, &o);
    if (err != 0) {
        close(fd);
        return err;
    }
    return fd;
}

void fsops_sync_many(int *fds, size_t n)
{
    /* First have the writing of all begin: then the journal's commit for the first fsync serves most others. */
    for (size_t i = 0; i < n; i++)
        if (fds[i] >= 0)
            (void)sync_file_range(fds[i], 0, 0, SYNC_FILE_RANGE_WRITE);
    for (size_t i = 0; i < n; i++)
        if (fds[i] >= 0 && fsync(fds[i]) != 0) {
            int err = -errno;
            close(fds[i]);
            fds[i] = err;
        }
}

int fsops_syncfs(int fd)
{
    return syncfs(fd) == 0 ? 0 : -errno;
}

int64_t fsops_kind(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 ? (int64_t)(uint32_t)fs.f_type : -errno;
}
