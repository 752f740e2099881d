/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer target: small files and names.  Whatever the name, bytes and mode: the file is there whole, or an error is
 * told and nothing is there; an existing one stays; no descriptor stays open.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../../ext/fsops.h"

static char directory[PATH_MAX];

static void clean(void)
{
    rmdir(directory);
}

static void must(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "failed: %s\n", what);
        abort();
    }
}

static int entries(void)
{
    int n = 0;
    DIR *d = opendir(directory);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n - 2;
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    if (*directory == '\0') {
        snprintf(directory, sizeof directory, "%s/fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        must(mkdtemp(directory) != NULL, "a directory");
        atexit(clean);
    }
    if (n < 4)
        return 0;
    int free_fd = dup(0);
    close(free_fd);
    size_t length = in[0] % 64 + (in[1] & 1) * 250;
    char name[400] = "";
    for (size_t i = 0; i < length; i++) {
        char c = (char)in[4 + i % (n - 4 ? n - 4 : 1) < n ? 4 + i % (n - 4 ? n - 4 : 1) : 3];
        name[i] = c == '/' || c == '\0' ? '_' : c; /* ids are checked before */
    }
    bool odd = *name == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || length > NAME_MAX;
    struct fsops_object o = {
        .directory = directory,
        .name = name,
        .data = in,
        .len = n,
        .attr = in[3] & 4 ? "user.fastfs.fuzz" : NULL, /* where there is no room for it, it is left out */
        .attr_value = in,
        .attr_len = n,
        .mode = in[2] % 4 ? 0600 + in[2] % 64 : -1,
        .sync_file = in[3] & 1,
        .sync_dir = in[3] & 2,
    };
    int err = fsops_store(&o);
    must(odd ? err < 0 : err == 0, "stored exactly if the name is one");
    char path[PATH_MAX + 500], other[PATH_MAX + 500];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    snprintf(other, sizeof other, "%s/-other-", directory);
    if (err == 0) {
        must(fsops_store(&o) == -EEXIST, "not replaced");
        int fd = open(path, O_RDONLY), top = open(directory, O_RDONLY | O_DIRECTORY);
        unsigned char *got = malloc(n + 1);
        must(read(fd, got, n + 1) == (ssize_t)n && memcmp(got, in, n) == 0, "whole");
        free(got);
        if (strcmp(name, "-other-") != 0) {
            must(fsops_rename(top, name, "-other-") == 0, "renamed");
            must(fsops_store(&o) == 0, "again");
            must(fsops_rename(top, name, "-other-") == -EEXIST, "not replaced by renaming");
            must(entries() == 2, "nothing else");
            unlink(other);
        }
        unlink(path);
        close(fd);
        close(top);
    }
    must(entries() == 0, "nothing left");
    int now = dup(0);
    must(now == free_fd, "no descriptor left");
    close(now);
    return 0;
}
