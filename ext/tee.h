/* SPDX-License-Identifier: Apache-2.0
 *
 * Two sets of digests as one: every block goes to both.
 */
#ifndef FASTFS_TEE_H
#define FASTFS_TEE_H

#include "digests.h"

/* Takes over both; NULL with errno set (then both are freed). */
struct digests *tee_new(struct digests *a, struct digests *b);

#endif
