/* SPDX-License-Identifier: Apache-2.0
 *
 * How many processors this process may keep busy.
 */
#ifndef FASTFS_CORES_H
#define FASTFS_CORES_H

/* The least of what is set by cores_limit, the affinity mask (sched_getaffinity(2)) and the quota of the
 * control group (cgroup v2 cpu.max, v1 cpu.cfs_quota_us), rounded up; at least 1.  The quota is read once a
 * process, the mask at every call. */
int cores_usable(void);

/* Use no more than `n`; 0: what the process may use. */
void cores_limit(int n);

#endif
