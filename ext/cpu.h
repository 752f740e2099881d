/* SPDX-License-Identifier: Apache-2.0
 *
 * What this processor and this operating system can do together.
 */
#ifndef FASTFS_CPU_H
#define FASTFS_CPU_H

enum cpu_feature {
    CPU_AVX2 = 1 << 0,   /* with BMI1 and BMI2; the system saves the wide registers */
    CPU_AVX512 = 1 << 1, /* F, VL, BW and DQ; the system saves them */
    CPU_SHA = 1 << 2,    /* SHA-1 and SHA-256 instructions, with SSSE3 and SSE4.1 */
    CPU_NEON = 1 << 3,   /* every aarch64 */
    /* Simple vector integer instructions answer in one cycle, as the scalar ones do: one md5 is then
     * faster in vector registers, where three-operand logic is one instruction.  Not so on Zen 5. */
    CPU_QUICK_VECTOR = 1 << 4,
};

/* The set of `enum cpu_feature` that may be used here.  Cheap enough to be asked anew each time. */
unsigned cpu_features(void);

/* FASTFS_KERNEL of the environment: the kernels that the user demands by name, or NULL (unset or empty).
 * A demand, not a wish: what cannot run is an error (hash_select says why). */
const char *cpu_override(void);

#endif
