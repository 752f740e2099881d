/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "cores.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static atomic_int limit;
static int quota = 1 << 20;

/* `quota` from one directory of the cgroup file system, both versions.  -1: none is set there. */
static double quota_in(const char *dir)
{
    char path[4200], max[32];
    double period, q = -1;
    snprintf(path, sizeof path, "%s/cpu.max", dir);
    FILE *f = fopen(path, "re");
    if (f != NULL) {
        if (fscanf(f, "%31s %lf", max, &period) == 2 && strcmp(max, "max") != 0 && sscanf(max, "%lf", &q) == 1)
            q /= period;
        fclose(f);
        return q;
    }
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", dir);
    f = fopen(path, "re");
    if (f == NULL)
        return -1;
    if (fscanf(f, "%lf", &q) != 1)
        q = -1;
    fclose(f);
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", dir);
    if (q > 0 && (f = fopen(path, "re")) != NULL) {
        if (fscanf(f, "%lf", &period) == 1 && period > 0)
            q /= period;
        fclose(f);
    }
    return q;
}

/* A quota may be set at any level above this process's group: the least counts.  cgroups(7). */
static void read_quota(void)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (f == NULL)
        return;
    char line[4096], dir[4096 + 32];
    while (fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *group = controllers != NULL ? strchr(++controllers, ':') : NULL;
        if (group == NULL)
            continue;
        *group++ = 0;
        const char *root;
        if (*controllers == 0)
            root = "/sys/fs/cgroup";
        else if (strstr(controllers, "cpu,") != NULL || strcmp(controllers, "cpu") == 0)
            root = "/sys/fs/cgroup/cpu";
        else
            continue;
        for (;;) {
            snprintf(dir, sizeof dir, "%s%s", root, group);
            double q = quota_in(dir);
            if (q > 0 && q < quota)
                quota = (int)q + ((double)(int)q < q);
            char *slash = strrchr(group, '/');
            if (slash == NULL)
                break;
            *slash = 0;
        }
    }
    fclose(f);
}

int cores_usable(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_quota);
    cpu_set_t set;
    int n = 1024; /* more processors than the set can tell: no bound worth having */
    /* The first thread's set: what one of the others was pinned to says nothing of the process. */
    if (sched_getaffinity(getpid(), sizeof set, &set) == 0)
        n = CPU_COUNT(&set);
    if (quota < n)
        n = quota;
    int most = atomic_load(&limit);
    return most > 0 && most < n ? most : n;
}

void cores_limit(int n)
{
    atomic_store(&limit, n);
}
