/* SPDX-License-Identifier: Apache-2.0
 *
 * Digests of whole objects that lie in memory, on the caller's thread: no stream, no queue, nobody else.
 */
#ifndef FASTFS_OBJECTS_H
#define FASTFS_OBJECTS_H

#include <stddef.h>

#include "engine.h"

/* All digests of `len` bytes at once, on this thread: for small objects. */
void objects_once(const enum hash_algorithm *algorithms, unsigned n, const void *data, size_t len,
                  unsigned char out[][ENGINE_DIGEST_SIZE]);

/* All digests of `count` objects at once, on this thread, in as many lanes as pay: for packs of small objects.  `n` as
 * for engine_new.  Returns 0, -EINVAL, -ENOMEM, or -ENOSYS where there are no kernels. */
struct object {
    const void *data;
    size_t len;
    unsigned char digest[ENGINE_DIGESTS][ENGINE_DIGEST_SIZE]; /* the results */
};
int objects_many(const enum hash_algorithm *algorithms, unsigned n, struct object *objects, size_t count);

#endif
