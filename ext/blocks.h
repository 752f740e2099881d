/* SPDX-License-Identifier: Apache-2.0
 *
 * The digests of each block of a stream, XXH3 of 128 bits: a set of digests that is up to date whenever a post returns.
 *
 * It takes so little (100 GB/s with AVX-512, 33 with SSE2; MD5 makes 1) that no thread is worth its while, and no lock.
 */
#ifndef FASTFS_BLOCKS_H
#define FASTFS_BLOCKS_H

#include "digests.h"

/* Digests of blocks of `block_size` bytes (more than 240).  NULL with errno: ENOMEM; EINVAL; ENOSYS: there are no kernels
 * for this machine. */
struct digests *blocks_new(size_t block_size);

struct blocks_result {
    const unsigned char *table; /* the digests, one after the other */
    size_t len;
    const unsigned char *rest; /* a last block that is too short for us: its bytes, at most 240; its digest is not there */
    size_t rest_len;
};

/* No more will be posted.  What `*r` points at lives as long as `d`.  Returns 0 or -ENOMEM. */
int blocks_finish(struct digests *d, struct blocks_result *r);

#endif
