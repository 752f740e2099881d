/* SPDX-License-Identifier: Apache-2.0
 *
 * Digests that are plain update functions (hashlib's, for one), several of them beside one another.
 *
 * Each digest is a chain: its blocks must be consumed one after the other, but the chains of a stream
 * are independent.  Whoever has time takes the chain that lags most: the posting thread whenever it
 * would have to wait, and helper threads while the machine has idle processors.  With two processors
 * and md5 + sha512 that balances hashing and I/O by itself; with every processor busy there is no
 * helper and the poster does all the work, so a crowd of streams costs no extra threads.
 */
#ifndef FASTFS_CHAINS_H
#define FASTFS_CHAINS_H

#include "digests.h"

/* Consume `len` bytes at `data`.  Called by one thread at a time for a given `ctx`, in stream order, on
 * any thread, without locks held.  Returns 0 or -errno. */
typedef int (*chain_update)(void *ctx, const void *data, size_t len);

enum { CHAINS_MAX = 4 };

/* A set of `n` chains (0 to CHAINS_MAX); chain i calls update(ctx[i], ...).  `depth` is how many blocks
 * may be queued, at least 2.  `helpers` bounds the helper threads of this set; -1 leaves it to the
 * number of processors that this process may use.  Returns NULL with errno set on failure. */
struct digests *chains_new(unsigned n, chain_update update, void *const *ctx, unsigned depth, int helpers);

#endif
