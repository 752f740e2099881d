/* SPDX-License-Identifier: Apache-2.0
 *
 * Between hash.c and the instruction sets: one function per set, which enters what it has into a table.
 */
#ifndef FASTFS_HASH_KERNELS_H
#define FASTFS_HASH_KERNELS_H

#include "hash.h"

/* Enter the kernels of the set, as `features` (of enum cpu_feature) allow, over what `k` has already. */
typedef void hash_enter_fn(struct hash_kernels *k, unsigned features);
hash_enter_fn hash_enter_portable, hash_enter_shani, hash_enter_avx2, hash_enter_avx512;

/* Enter the lanes of an algorithm: { width, from, function }, … */
#define ENTER_LANES(k, a, ...) \
    memcpy((k)->lanes[a], (struct hash_lanes[HASH_WIDTHS + 1]){ __VA_ARGS__ }, sizeof (k)->lanes[a])
#define ENTER_PAIR_LANES(k, a, ...) \
    memcpy((k)->pair_lanes[a], (struct hash_pair_lanes[HASH_WIDTHS + 1]){ __VA_ARGS__ }, sizeof (k)->pair_lanes[a])
#define NEVER (HASH_MAX_WIDTH + 1)

/* What hash_select chooses from, for tests that leave out features: fill `k` with the kernels called `name`
 * as if the machine had just `features`.  NULL, or why it cannot be. */
const char *hash_table(const char *name, unsigned features, struct hash_kernels *k);

#endif
