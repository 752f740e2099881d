/* SPDX-License-Identifier: Apache-2.0
 *
 * A preload library that makes system calls fail: LD_PRELOAD it, watch some directories, and have the Nth libc
 * call on anything below them give an errno, do half its work, hang, or kill the process.
 *
 * Calls on other files pass untouched and uncounted.  What is below a watched directory is told by path, by
 * the descriptor that a call is relative to, and by the descriptors that were opened so (and their duplicates).
 * Calls are logged in memory that forked children share with their parent, so that the log outlives a SIGKILL.
 *
 * Only libc calls are seen; test_shim.py proves that there are no others to be seen.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* The names of the functions, in the order of their numbers; faults_name() tells them. */
#define FUNCTIONS(X)                                                                                          \
    X(open) X(read) X(readv) X(pread) X(preadv) X(write) X(writev) X(pwrite) X(pwritev) X(sendfile)               \
    X(copy_file_range) X(splice) X(fsync) X(fdatasync) X(syncfs) X(sync_file_range) X(fallocate) X(ftruncate)     \
    X(truncate) X(link) X(rename) X(renameat2) X(symlink) X(unlink) X(rmdir) X(mkdir) X(chmod) X(fchmod)          \
    X(chown) X(stat) X(fstat) X(statfs) X(fstatfs) X(access) X(opendir) X(readdir) X(closedir) X(lseek)           \
    X(flock) X(dup) X(close) X(ioctl) X(setxattr) X(getxattr) X(removexattr) X(listxattr) X(utime)                \
    X(readlink) X(mmap) X(mark)

#define ENUM(name) F_##name,
enum function { FUNCTIONS(ENUM) F_COUNT };
#define NAME(name) #name,
static const char *const names[] = { FUNCTIONS(NAME) };

/* What a watched thing is. */
enum { NOTHING, STORE, SOURCE };

enum when { NEVER, ERROR, SHORT, KILL_BEFORE, KILL_AFTER, KILL_HALF, HANG, LIE };

/* Options: what the file system seems not to have, or to be. */
enum { NO_TMPFILE = 1, NO_NOREPLACE = 2, NO_LOCKS = 4, AS_EXT4 = 8 };

struct plan {
    int64_t at;    /* the number of the call, from 1 */
    uint64_t mask; /* sticky: bits of the functions that fail from then on; 0: only that one call */
    int32_t when;
    int32_t error;
};

struct record {
    int32_t function, class, fd, object;
    int64_t length, result;
    int32_t error;  /* errno, 0 on success */
    int32_t flags;  /* of open */
    int32_t hit;    /* the plan struck here */
    int32_t isdir;
    char name[72];  /* the last part of the path, if there is one */
};

enum { RECORDS = 8192, FDS = 65536, ROOTS = 16 };

struct shared {
    atomic_long count; /* of calls since faults_arm() */
    atomic_int released;
    atomic_int hanging;
    atomic_long hits;
    struct record records[RECORDS];
};

static struct shared *shared;
static struct plan plan;
static bool armed;
static int options;
static struct { char path[PATH_MAX]; size_t len; int class; } roots[ROOTS];
static int n_roots;
static struct { unsigned char class, isdir; int object; } fds[FDS];
static atomic_int objects;

/* From here on the log is this process's own, and that of its children to come. */
__attribute__((constructor, visibility("default"))) void faults_renew(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        abort();
}

/* -- the controls, for ctypes -------------------------------------------------------------------------------- */

const char *faults_name(int function) { return function >= 0 && function < F_COUNT ? names[function] : NULL; }
struct shared *faults_shared(void) { return shared; }
size_t faults_record_size(void) { return sizeof(struct record); }
const struct record *faults_records(void) { return shared->records; }
int64_t faults_count(void) { return atomic_load(&shared->count); }
int64_t faults_hits(void) { return atomic_load(&shared->hits); }
int faults_hanging(void) { return atomic_load(&shared->hanging); }
void faults_release(void) { atomic_store(&shared->released, 1); }
void faults_options(int bits) { options = bits; }

/* Watch what is below `path` (absolute, no slash at its end). */
int faults_root(const char *path, int class)
{
    if (n_roots == ROOTS || strlen(path) >= PATH_MAX)
        return -1;
    strcpy(roots[n_roots].path, path);
    roots[n_roots].len = strlen(path);
    roots[n_roots++].class = class;
    return 0;
}

void faults_watch(int fd, int class)
{
    if (fd >= 0 && fd < FDS) {
        fds[fd].class = (unsigned char)class;
        fds[fd].isdir = 0;
        fds[fd].object = atomic_fetch_add(&objects, 1) + 1;
    }
}

/* Forget the roots and the descriptors. */
void faults_reset(void)
{
    n_roots = 0;
    memset(fds, 0, sizeof fds);
}

/* Count and log from here on, and let `p` happen. */
void faults_arm(const struct plan *p)
{
    plan = *p;
    atomic_store(&shared->count, 0);
    atomic_store(&shared->hits, 0);
    atomic_store(&shared->released, 0);
    atomic_store(&shared->hanging, 0);
    armed = true;
}

void faults_disarm(void) { armed = false; }

/* -- the gate -------------------------------------------------------------------------------------------------- */

struct gate {
    struct record *record;
    struct record unlogged;
    int fail;    /* this errno instead of the call */
    int lie;     /* this errno after the call */
    bool kill;   /* die after the call */
    bool isdir;
};

static int class_of_path(int dirfd, const char *path)
{
    if (path == NULL)
        return NOTHING;
    if (path[0] != '/')
        return dirfd >= 0 && dirfd < FDS ? fds[dirfd].class : NOTHING;
    int fd;
    if (sscanf(path, "/proc/self/fd/%d", &fd) == 1)
        return fd >= 0 && fd < FDS ? fds[fd].class : NOTHING;
    for (int i = 0; i < n_roots; i++)
        if (strncmp(path, roots[i].path, roots[i].len) == 0
            && (path[roots[i].len] == '/' || path[roots[i].len] == '\0'))
            return roots[i].class;
    return NOTHING;
}

static int class_of_fd(int fd) { return fd >= 0 && fd < FDS ? fds[fd].class : NOTHING; }

static void die(void)
{
    syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL);
    for (;;)
        pause();
}

static size_t half(size_t n) { return n > 1 ? n / 2 : n; }

/* A call begins.  `length`: where it may do less than it is told to; NULL: it does all or nothing. */
static struct gate enter(enum function function, int class, int fd, const char *path, size_t *length)
{
    struct gate g = { 0 };
    g.record = &g.unlogged;
    if (!armed || class == NOTHING)
        return g;
    int64_t number = atomic_fetch_add(&shared->count, 1) + 1;
    if (number <= RECORDS)
        g.record = &shared->records[number - 1];
    struct record *r = g.record;
    memset(r, 0, sizeof *r);
    r->function = function;
    r->class = class;
    r->fd = fd;
    if (fd >= 0 && fd < FDS) {
        r->object = fds[fd].object;
        r->isdir = fds[fd].isdir;
    }
    r->length = length ? (int64_t)*length : 0;
    if (path != NULL) {
        const char *slash = strrchr(path, '/');
        strncpy(r->name, slash ? slash + 1 : path, sizeof r->name - 1);
    }
    bool strikes = number == plan.at;
    if (plan.mask != 0 && number > plan.at && class == STORE)
        strikes = plan.mask >> function & 1;
    if (!strikes || plan.when == NEVER)
        return g;
    r->hit = 1;
    atomic_fetch_add(&shared->hits, 1);
    switch (plan.when) {
    case ERROR:
        g.fail = plan.error;
        break;
    case LIE:
        g.lie = plan.error;
        break;
    case KILL_BEFORE:
        die();
        break;
    case KILL_HALF:
        if (length)
            *length = half(*length);
        g.kill = true;
        break;
    case KILL_AFTER:
        g.kill = true;
        break;
    case SHORT:
        if (length)
            *length = half(*length);
        break;
    case HANG:
        atomic_fetch_add(&shared->hanging, 1);
        while (!atomic_load(&shared->released)) {
            struct timespec t = { 0, 1000000 };
            nanosleep(&t, NULL);
        }
        atomic_fetch_sub(&shared->hanging, 1);
        break;
    default:
        break;
    }
    return g;
}

/* It ends with `result`, which the caller is to return. */
static int64_t leave(struct gate *g, int64_t result)
{
    int err = result < 0 ? errno : 0;
    if (g->kill)
        die();
    if (g->lie) {
        result = -1;
        err = g->lie;
    }
    g->record->result = result;
    g->record->error = err;
    errno = err ? err : errno;
    return result;
}

static int64_t refuse(struct gate *g)
{
    g->record->result = -1;
    g->record->error = g->fail;
    errno = g->fail;
    return -1;
}

static void opened(int fd, int class, bool isdir, struct gate *g)
{
    if (fd < 0 || fd >= FDS)
        return;
    fds[fd].class = (unsigned char)class;
    fds[fd].isdir = isdir;
    fds[fd].object = class ? atomic_fetch_add(&objects, 1) + 1 : 0;
    g->record->fd = fd;
    g->record->object = fds[fd].object;
    g->record->isdir = isdir;
}

#define REAL(name) ((__typeof__(&name))real(&real_##name, #name))
#define SLOT(name) static void *real_##name
static void *real(void **slot, const char *name)
{
    if (*slot == NULL)
        *slot = dlsym(RTLD_NEXT, name);
    return *slot;
}

/* Not a call but a moment: what the caller did is acknowledged. */
void faults_mark(void)
{
    struct gate g = enter(F_mark, STORE, -1, NULL, NULL);
    leave(&g, 0);
}

/* A function whose calls all go the same way: result type, name, parameters, arguments, number, class, fd, path,
 * address of its length. */
#define WRAP(type, name, params, args, function, class, fd, path, length)                                     \
    SLOT(name);                                                                                               \
    __attribute__((visibility("default"))) type name params                                                   \
    {                                                                                                         \
        struct gate g = enter(F_##function, class, fd, path, length);                                         \
        if (g.fail)                                                                                           \
            return (type)refuse(&g);                                                                          \
        return (type)leave(&g, REAL(name) args);                                                              \
    }

#define BY_FD(type, name, params, args, function) WRAP(type, name, params, args, function, class_of_fd(fd), fd, NULL, NULL)
#define BY_FD_N(type, name, params, args, function) WRAP(type, name, params, args, function, class_of_fd(fd), fd, NULL, &n)
#define BY_PATH(type, name, params, args, function) \
    WRAP(type, name, params, args, function, class_of_path(AT_FDCWD, path), -1, path, NULL)
#define BY_DIR(type, name, params, args, function) \
    WRAP(type, name, params, args, function, class_of_path(fd, path), fd, path, NULL)

/* -- data -------------------------------------------------------------------------------------------------------- */

BY_FD_N(ssize_t, read, (int fd, void *b, size_t n), (fd, b, n), read)
BY_FD_N(ssize_t, pread, (int fd, void *b, size_t n, off_t at), (fd, b, n, at), pread)
BY_FD_N(ssize_t, pread64, (int fd, void *b, size_t n, off64_t at), (fd, b, n, at), pread)
BY_FD_N(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), write)
BY_FD_N(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t at), (fd, b, n, at), pwrite)
BY_FD_N(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t at), (fd, b, n, at), pwrite)

static size_t total(const struct iovec *v, int count)
{
    size_t n = 0;
    for (int i = 0; i < count; i++)
        n += v[i].iov_len;
    return n;
}

/* Vectors are cut by doing the first part with a single buffer. */
#define WRAP_VECTOR(name, params, call, function, single)                                                     \
    SLOT(name);                                                                                               \
    __attribute__((visibility("default"))) ssize_t name params                                                \
    {                                                                                                         \
        size_t n = total(v, count), all = n;                                                                  \
        struct gate g = enter(F_##function, class_of_fd(fd), fd, NULL, &n);                                   \
        if (g.fail)                                                                                           \
            return refuse(&g);                                                                                \
        if (n < all && count > 0) {                                                                           \
            if (n > v[0].iov_len)                                                                             \
                n = v[0].iov_len;                                                                             \
            return leave(&g, single);                                                                         \
        }                                                                                                     \
        return leave(&g, call);                                                                               \
    }
WRAP_VECTOR(readv, (int fd, const struct iovec *v, int count), REAL(readv)(fd, v, count), readv,
            syscall(SYS_read, fd, v[0].iov_base, n))
WRAP_VECTOR(writev, (int fd, const struct iovec *v, int count), REAL(writev)(fd, v, count), writev,
            syscall(SYS_write, fd, v[0].iov_base, n))
WRAP_VECTOR(preadv, (int fd, const struct iovec *v, int count, off_t at), REAL(preadv)(fd, v, count, at), preadv,
            syscall(SYS_pread64, fd, v[0].iov_base, n, at))
WRAP_VECTOR(preadv64, (int fd, const struct iovec *v, int count, off64_t at), REAL(preadv64)(fd, v, count, at), preadv,
            syscall(SYS_pread64, fd, v[0].iov_base, n, at))
WRAP_VECTOR(preadv2, (int fd, const struct iovec *v, int count, off_t at, int flags),
            REAL(preadv2)(fd, v, count, at, flags), preadv, syscall(SYS_pread64, fd, v[0].iov_base, n, at))
WRAP_VECTOR(preadv64v2, (int fd, const struct iovec *v, int count, off64_t at, int flags),
            REAL(preadv64v2)(fd, v, count, at, flags), preadv, syscall(SYS_pread64, fd, v[0].iov_base, n, at))
WRAP_VECTOR(pwritev, (int fd, const struct iovec *v, int count, off_t at), REAL(pwritev)(fd, v, count, at), pwritev,
            syscall(SYS_pwrite64, fd, v[0].iov_base, n, at))
WRAP_VECTOR(pwritev64, (int fd, const struct iovec *v, int count, off64_t at), REAL(pwritev64)(fd, v, count, at), pwritev,
            syscall(SYS_pwrite64, fd, v[0].iov_base, n, at))
WRAP_VECTOR(pwritev2, (int fd, const struct iovec *v, int count, off_t at, int flags),
            REAL(pwritev2)(fd, v, count, at, flags), pwritev, syscall(SYS_pwrite64, fd, v[0].iov_base, n, at))
WRAP_VECTOR(pwritev64v2, (int fd, const struct iovec *v, int count, off64_t at, int flags),
            REAL(pwritev64v2)(fd, v, count, at, flags), pwritev, syscall(SYS_pwrite64, fd, v[0].iov_base, n, at))

static int class_of_two(int a, int b) { return class_of_fd(a) ? class_of_fd(a) : class_of_fd(b); }

WRAP(ssize_t, sendfile, (int to, int from, off_t *at, size_t n), (to, from, at, n), sendfile, class_of_two(to, from), to,
     NULL, &n)
WRAP(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t n), (to, from, at, n), sendfile, class_of_two(to, from),
     to, NULL, &n)
WRAP(ssize_t, copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags),
     (from, a, to, b, n, flags), copy_file_range, class_of_two(to, from), to, NULL, &n)
WRAP(ssize_t, splice, (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags), (from, a, to, b, n, flags),
     splice, class_of_two(to, from), to, NULL, &n)

/* -- syncing, sizes, status ---------------------------------------------------------------------------------------- */

BY_FD(int, fsync, (int fd), (fd), fsync)
BY_FD(int, fdatasync, (int fd), (fd), fdatasync)
BY_FD(int, syncfs, (int fd), (fd), syncfs)
BY_FD(int, sync_file_range, (int fd, off64_t at, off64_t n, unsigned flags), (fd, at, n, flags), sync_file_range)
WRAP(int, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), fallocate, class_of_fd(fd), fd, NULL,
     (size_t *)&n)
WRAP(int, fallocate64, (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n), fallocate, class_of_fd(fd), fd, NULL,
     (size_t *)&n)
BY_FD(int, ftruncate, (int fd, off_t n), (fd, n), ftruncate)
BY_FD(int, ftruncate64, (int fd, off64_t n), (fd, n), ftruncate)
BY_PATH(int, truncate, (const char *path, off_t n), (path, n), truncate)
BY_PATH(int, truncate64, (const char *path, off64_t n), (path, n), truncate)
BY_FD(off_t, lseek, (int fd, off_t at, int whence), (fd, at, whence), lseek)
BY_FD(off64_t, lseek64, (int fd, off64_t at, int whence), (fd, at, whence), lseek)
BY_FD(int, fstat, (int fd, struct stat *s), (fd, s), fstat)
BY_FD(int, fstat64, (int fd, struct stat64 *s), (fd, s), fstat)
BY_PATH(int, stat, (const char *path, struct stat *s), (path, s), stat)
BY_PATH(int, stat64, (const char *path, struct stat64 *s), (path, s), stat)
BY_PATH(int, lstat, (const char *path, struct stat *s), (path, s), stat)
BY_PATH(int, lstat64, (const char *path, struct stat64 *s), (path, s), stat)
BY_DIR(int, fstatat, (int fd, const char *path, struct stat *s, int flags), (fd, path, s, flags), stat)
BY_DIR(int, fstatat64, (int fd, const char *path, struct stat64 *s, int flags), (fd, path, s, flags), stat)
BY_DIR(int, statx, (int fd, const char *path, int flags, unsigned mask, struct statx *s), (fd, path, flags, mask, s), stat)
BY_PATH(int, statfs, (const char *path, struct statfs *s), (path, s), statfs)
BY_PATH(int, statfs64, (const char *path, struct statfs64 *s), (path, s), statfs)
BY_PATH(int, statvfs, (const char *path, struct statvfs *s), (path, s), statfs)
BY_PATH(int, statvfs64, (const char *path, struct statvfs64 *s), (path, s), statfs)
BY_FD(int, fstatvfs, (int fd, struct statvfs *s), (fd, s), fstatfs)
BY_FD(int, fstatvfs64, (int fd, struct statvfs64 *s), (fd, s), fstatfs)

#define WRAP_FSTATFS(name, type)                                                                              \
    SLOT(name);                                                                                               \
    __attribute__((visibility("default"))) int name(int fd, struct type *s)                                   \
    {                                                                                                         \
        struct gate g = enter(F_fstatfs, class_of_fd(fd), fd, NULL, NULL);                                    \
        if (g.fail)                                                                                           \
            return (int)refuse(&g);                                                                           \
        int result = REAL(name)(fd, s);                                                                       \
        if (result == 0 && options & AS_EXT4 && class_of_fd(fd) == STORE)                                     \
            s->f_type = 0xEF53; /* statfs(2): so that a writer may think that reserving pays */               \
        return (int)leave(&g, result);                                                                        \
    }
WRAP_FSTATFS(fstatfs, statfs)
WRAP_FSTATFS(fstatfs64, statfs64)

BY_PATH(int, access, (const char *path, int mode), (path, mode), access)
BY_DIR(int, faccessat, (int fd, const char *path, int mode, int flags), (fd, path, mode, flags), access)
BY_PATH(int, chmod, (const char *path, mode_t mode), (path, mode), chmod)
BY_FD(int, fchmod, (int fd, mode_t mode), (fd, mode), fchmod)
BY_DIR(int, fchmodat, (int fd, const char *path, mode_t mode, int flags), (fd, path, mode, flags), chmod)
BY_PATH(int, chown, (const char *path, uid_t u, gid_t g_), (path, u, g_), chown)
BY_FD(int, fchown, (int fd, uid_t u, gid_t g_), (fd, u, g_), chown)
BY_DIR(int, fchownat, (int fd, const char *path, uid_t u, gid_t g_, int flags), (fd, path, u, g_, flags), chown)
BY_DIR(int, utimensat, (int fd, const char *path, const struct timespec t[2], int flags), (fd, path, t, flags), utime)
BY_FD(int, futimens, (int fd, const struct timespec t[2]), (fd, t), utime)

/* -- names ------------------------------------------------------------------------------------------------------ */

static int class_of_paths(int a, const char *path, int b, const char *other)
{
    int class = class_of_path(b, other);
    return class ? class : class_of_path(a, path);
}

BY_PATH(int, mkdir, (const char *path, mode_t mode), (path, mode), mkdir)
BY_DIR(int, mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode), mkdir)
BY_PATH(int, rmdir, (const char *path), (path), rmdir)
BY_PATH(int, unlink, (const char *path), (path), unlink)
BY_DIR(int, unlinkat, (int fd, const char *path, int flags), (fd, path, flags), unlink)
BY_PATH(ssize_t, readlink, (const char *path, char *b, size_t n), (path, b, n), readlink)
BY_DIR(ssize_t, readlinkat, (int fd, const char *path, char *b, size_t n), (fd, path, b, n), readlink)
WRAP(int, symlink, (const char *to, const char *path), (to, path), symlink, class_of_path(AT_FDCWD, path), -1, path, NULL)
WRAP(int, symlinkat, (const char *to, int fd, const char *path), (to, fd, path), symlink, class_of_path(fd, path), fd,
     path, NULL)
/* The descriptor of these is the file that gets a name, where that is given by descriptor. */
static int named(int a, const char *from, int flags)
{
    int fd;
    if (flags & AT_EMPTY_PATH && *from == '\0')
        return a;
    return sscanf(from, "/proc/self/fd/%d", &fd) == 1 ? fd : -1;
}
WRAP(int, link, (const char *from, const char *to), (from, to), link, class_of_paths(AT_FDCWD, from, AT_FDCWD, to), -1,
     to, NULL)
WRAP(int, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags), link,
     class_of_paths(a, from, b, to), named(a, from, flags), to, NULL)
WRAP(int, rename, (const char *from, const char *to), (from, to), rename, class_of_paths(AT_FDCWD, from, AT_FDCWD, to), -1,
     to, NULL)
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), rename,
     class_of_paths(a, from, b, to), -1, to, NULL)

SLOT(renameat2);
int renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    struct gate g = enter(F_renameat2, class_of_paths(a, from, b, to), -1, to, NULL);
    g.record->flags = (int)flags;
    if (g.fail)
        return (int)refuse(&g);
    if (options & NO_NOREPLACE && flags != 0 && class_of_paths(a, from, b, to) == STORE) {
        errno = EINVAL;
        return (int)leave(&g, -1);
    }
    return (int)leave(&g, REAL(renameat2)(a, from, b, to, flags));
}

/* -- descriptors ------------------------------------------------------------------------------------------------ */

#define COMMA ,
#define WRAP_OPEN(name, first, args, at)                                                                      \
    SLOT(name);                                                                                               \
    __attribute__((visibility("default"))) int name(first const char *path, int flags, ...)                   \
    {                                                                                                         \
        mode_t mode = 0;                                                                                      \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                                                \
            va_list list;                                                                                     \
            va_start(list, flags);                                                                            \
            mode = va_arg(list, mode_t);                                                                      \
            va_end(list);                                                                                     \
        }                                                                                                     \
        int class = class_of_path(at, path);                                                                  \
        struct gate g = enter(F_open, class, -1, path, NULL);                                                 \
        g.record->flags = flags;                                                                              \
        if (g.fail)                                                                                           \
            return (int)refuse(&g);                                                                           \
        if (class == STORE && options & NO_TMPFILE && (flags & O_TMPFILE) == O_TMPFILE) {                     \
            errno = EOPNOTSUPP;                                                                               \
            return (int)leave(&g, -1);                                                                        \
        }                                                                                                     \
        int fd = REAL(name) args;                                                                             \
        int err = errno;                                                                                      \
        opened(fd, class, (flags & O_DIRECTORY) && (flags & O_TMPFILE) != O_TMPFILE, &g);                     \
        errno = err;                                                                                          \
        return (int)leave(&g, fd);                                                                            \
    }
WRAP_OPEN(open, , (path, flags, mode), AT_FDCWD)
WRAP_OPEN(open64, , (path, flags, mode), AT_FDCWD)
WRAP_OPEN(openat, int dirfd_ COMMA, (dirfd_, path, flags, mode), dirfd_)
WRAP_OPEN(openat64, int dirfd_ COMMA, (dirfd_, path, flags, mode), dirfd_)

SLOT(close);
int close(int fd)
{
    struct gate g = enter(F_close, class_of_fd(fd), fd, NULL, NULL);
    if (fd >= 0 && fd < FDS)
        fds[fd].class = NOTHING;
    int result = REAL(close)(fd);
    if (g.fail) /* the descriptor is gone all the same, close(2) */
        return (int)refuse(&g);
    return (int)leave(&g, result);
}

static int duplicated(struct gate *g, int from, int to)
{
    if (from >= 0 && from < FDS && to >= 0 && to < FDS)
        fds[to] = fds[from];
    return (int)leave(g, to);
}

SLOT(dup);
int dup(int fd)
{
    struct gate g = enter(F_dup, class_of_fd(fd), fd, NULL, NULL);
    if (g.fail)
        return (int)refuse(&g);
    return duplicated(&g, fd, REAL(dup)(fd));
}

#define WRAP_FCNTL(name)                                                                                      \
    SLOT(name);                                                                                               \
    __attribute__((visibility("default"))) int name(int fd, int command, ...)                                 \
    {                                                                                                         \
        va_list list;                                                                                         \
        va_start(list, command);                                                                              \
        long argument = va_arg(list, long);                                                                   \
        va_end(list);                                                                                         \
        if (command != F_DUPFD && command != F_DUPFD_CLOEXEC)                                                 \
            return REAL(name)(fd, command, argument);                                                         \
        struct gate g = enter(F_dup, class_of_fd(fd), fd, NULL, NULL);                                        \
        if (g.fail)                                                                                           \
            return (int)refuse(&g);                                                                           \
        return duplicated(&g, fd, REAL(name)(fd, command, argument));                                         \
    }
WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)

SLOT(flock);
int flock(int fd, int operation)
{
    struct gate g = enter(F_flock, class_of_fd(fd), fd, NULL, NULL);
    if (g.fail)
        return (int)refuse(&g);
    if (options & NO_LOCKS && class_of_fd(fd) == STORE) {
        errno = ENOLCK;
        return (int)leave(&g, -1);
    }
    return (int)leave(&g, REAL(flock)(fd, operation));
}

SLOT(ioctl);
int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    struct gate g = enter(F_ioctl, class_of_fd(fd), fd, NULL, NULL);
    if (g.fail)
        return (int)refuse(&g);
    return (int)leave(&g, REAL(ioctl)(fd, request, argument));
}

#define WRAP_MMAP(name)                                                                                       \
    SLOT(name);                                                                                               \
    __attribute__((visibility("default"))) void *name(void *at, size_t n, int prot, int flags, int fd, off_t offset) \
    {                                                                                                         \
        struct gate g = enter(F_mmap, flags & MAP_ANONYMOUS ? NOTHING : class_of_fd(fd), fd, NULL, NULL);     \
        if (g.fail)                                                                                           \
            return (void *)refuse(&g);                                                                        \
        return (void *)leave(&g, (int64_t)REAL(name)(at, n, prot, flags, fd, offset));                        \
    }
WRAP_MMAP(mmap)
WRAP_MMAP(mmap64)

/* -- directories ------------------------------------------------------------------------------------------------- */

SLOT(opendir);
DIR *opendir(const char *path)
{
    int class = class_of_path(AT_FDCWD, path);
    struct gate g = enter(F_opendir, class, -1, path, NULL);
    if (g.fail) {
        refuse(&g);
        return NULL;
    }
    DIR *d = REAL(opendir)(path);
    int err = errno;
    if (d != NULL)
        opened(dirfd(d), class, true, &g);
    errno = err;
    leave(&g, d ? 0 : -1);
    return d;
}

SLOT(fdopendir);
DIR *fdopendir(int fd)
{
    struct gate g = enter(F_opendir, class_of_fd(fd), fd, NULL, NULL);
    if (g.fail) {
        refuse(&g);
        return NULL;
    }
    DIR *d = REAL(fdopendir)(fd);
    leave(&g, d ? 0 : -1);
    return d;
}

#define WRAP_READDIR(name, type)                                                                              \
    SLOT(name);                                                                                               \
    __attribute__((visibility("default"))) struct type *name(DIR *d)                                          \
    {                                                                                                         \
        int before = errno;                                                                                   \
        struct gate g = enter(F_readdir, class_of_fd(dirfd(d)), dirfd(d), NULL, NULL);                        \
        if (g.fail) {                                                                                         \
            refuse(&g);                                                                                       \
            return NULL;                                                                                      \
        }                                                                                                     \
        errno = before; /* unchanged at the end of the directory */                                           \
        struct type *e = REAL(name)(d);                                                                       \
        leave(&g, 0);                                                                                         \
        return g.lie ? NULL : e;                                                                              \
    }
WRAP_READDIR(readdir, dirent)
WRAP_READDIR(readdir64, dirent64)

SLOT(closedir);
int closedir(DIR *d)
{
    int fd = dirfd(d);
    struct gate g = enter(F_closedir, class_of_fd(fd), fd, NULL, NULL);
    if (fd >= 0 && fd < FDS)
        fds[fd].class = NOTHING;
    int result = REAL(closedir)(d);
    if (g.fail)
        return (int)refuse(&g);
    return (int)leave(&g, result);
}

/* -- extended attributes ------------------------------------------------------------------------------------------ */

#define XSET (const char *path, const char *name, const void *value, size_t n, int flags)
BY_PATH(int, setxattr, XSET, (path, name, value, n, flags), setxattr)
BY_PATH(int, lsetxattr, XSET, (path, name, value, n, flags), setxattr)
BY_FD(int, fsetxattr, (int fd, const char *name, const void *value, size_t n, int flags), (fd, name, value, n, flags),
      setxattr)
#define XGET (const char *path, const char *name, void *value, size_t n)
BY_PATH(ssize_t, getxattr, XGET, (path, name, value, n), getxattr)
BY_PATH(ssize_t, lgetxattr, XGET, (path, name, value, n), getxattr)
BY_FD(ssize_t, fgetxattr, (int fd, const char *name, void *value, size_t n), (fd, name, value, n), getxattr)
BY_PATH(int, removexattr, (const char *path, const char *name), (path, name), removexattr)
BY_PATH(int, lremovexattr, (const char *path, const char *name), (path, name), removexattr)
BY_FD(int, fremovexattr, (int fd, const char *name), (fd, name), removexattr)
BY_PATH(ssize_t, listxattr, (const char *path, char *list, size_t n), (path, list, n), listxattr)
BY_PATH(ssize_t, llistxattr, (const char *path, char *list, size_t n), (path, list, n), listxattr)
BY_FD(ssize_t, flistxattr, (int fd, char *list, size_t n), (fd, list, n), listxattr)
