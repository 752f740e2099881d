/* SPDX-License-Identifier: Apache-2.0
 *
 * What the stress programs share.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "objects.h"

/* Are the digests of a stream those of `len` bytes at `data`, by objects_once, which has no scheduler? */
static inline bool digests_are_right(struct digests *d, const enum hash_algorithm *algorithms, unsigned n, const unsigned char *data,
                              size_t len)
{
    unsigned char ours[ENGINE_DIGESTS][ENGINE_DIGEST_SIZE] = { { 0 } }, right[ENGINE_DIGESTS][ENGINE_DIGEST_SIZE] = { { 0 } };
    for (unsigned i = 0; i < n; i++)
        engine_digest(d, i, ours[i]);
    objects_once(algorithms, n, data, len, right);
    return memcmp(ours, right, sizeof ours) == 0;
}

/* Use these kernels; or end the program. */
static inline void use_kernels(const char *name)
{
    const char *why = engine_select(name);
    if (why != NULL) {
        fprintf(stderr, "%s\n", why);
        exit(3);
    }
}

/* Run so many threads, each with a seed of its own for its argument, to their end. */
static inline void run_threads(unsigned n, void *(*thread)(void *), unsigned seed)
{
    pthread_t *t = calloc(n, sizeof *t);
    for (unsigned i = 0; i < n; i++)
        pthread_create(&t[i], NULL, thread, (void *)(size_t)(seed + i));
    for (unsigned i = 0; i < n; i++)
        pthread_join(t[i], NULL);
    free(t);
}
