/* SPDX-License-Identifier: Apache-2.0
 *
 * CLOCK_MONOTONIC in nanoseconds, as Python's time.monotonic_ns().
 */
#ifndef FASTFS_CLOCK_H
#define FASTFS_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
