/* SPDX-License-Identifier: Apache-2.0
 *
 * The hash engine: digests of many streams at once, in the lanes of the processor's vectors.
 *
 * There is one engine a process and it has no threads of its own while nothing is hashed.  Streams post
 * blocks; whoever has to wait for a digest hashes meanwhile, not for itself but for all: it takes as many
 * streams as fill the lanes of the best kernel, moves each on by a step (16 KiB at most), and looks again.
 * So late arrivals join between steps, an owner gets on with its own I/O as soon as its block is done, and
 * sixteen blocking callers hash together without knowing of one another.
 *
 * A stream that is alone, on a machine with processors to spare, gets a helper thread that lives no longer
 * than the stream: it hashes while the owner reads and writes.
 *
 * Which kernel, in how many lanes, and whether MD5 and another algorithm go together is for ways.h to say.
 */
#ifndef FASTFS_ENGINE_H
#define FASTFS_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "digests.h"
#include "hash/hash.h"
#include "ways.h"

enum { ENGINE_DIGESTS = 4, ENGINE_DIGEST_SIZE = HASH_MAX_DIGEST };

/* Use the kernels of this name (NULL: the best this machine has) from now on.  Call it before the first
 * stream.  Returns NULL, or why they cannot be used. */
const char *engine_select(const char *name);

/* The kernels that are best here, unless some were selected: what every function below but engine_stats does first. */
void engine_start(void);

/* The name of the kernels in use; NULL: there are none for this machine, and nothing below may be called. */
const char *engine_kernels(void);

/* A stream of which `n` digests (1 to ENGINE_DIGESTS, all different) are wanted; up to `depth` (at least 2)
 * blocks may be queued.  NULL with errno: EINVAL, ENOMEM. */
struct digests *engine_new(const enum hash_algorithm *algorithms, unsigned n, unsigned depth);

/* Digest `i` of everything posted, which must have been waited for.  Returns its length.  Nothing more may be
 * posted after the first such call; it may be repeated. */
unsigned engine_digest(struct digests *d, unsigned i, unsigned char out[ENGINE_DIGEST_SIZE]);

/* A caller that has more than one stream at hand may move them on by itself.  The ways to do that for this one; NULL: its
 * digests cannot advance together. */
const struct ways *engine_ways(struct digests *d);

/* Of a stream that has such ways the state [2], to be moved on by whole units while nothing is posted, of which
 * `moved` is told then; NULL: something is queued, or a part of a unit. */
union hash_state *engine_lend(struct digests *d);

/* How many processors there are for hashing. */
unsigned engine_cores(void);

/* What the engine has done since the process began (a forked child begins anew). */
struct engine_stats {
    uint64_t streams; /* that were made */
    uint64_t live;    /* that are not freed yet */
    uint64_t steps;   /* calls of a kernel */
    uint64_t lanes;   /* lanes that did useful work, summed over the steps */
    uint64_t bytes;   /* hashed, each byte once for each digest */
    uint64_t helpers; /* helper threads that were started */
};
void engine_stats(struct engine_stats *out);

/* Add what was hashed beside the engine's queues. */
void engine_count(uint64_t steps, uint64_t lanes, uint64_t bytes);

/* The rates in bytes/s that were measured here for `a` (with_md5: beside MD5 of the same bytes): of one stream,
 * and with all lanes of each width filled.  Measures now unless that is done.  Returns how many rates there
 * are; widths[i] lanes give rates[i]. */
unsigned engine_rates(enum hash_algorithm a, bool with_md5, unsigned widths[WAYS_MAX], double rates[WAYS_MAX]);

#endif
