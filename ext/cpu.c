/* SPDX-License-Identifier: Apache-2.0 */
#include "cpu.h"

#include <stdlib.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

/* The register state that the system saves and restores for us. */
__attribute__((target("xsave"))) static unsigned long long saved_state(void)
{
    return _xgetbv(0);
}

unsigned cpu_features(void)
{
    unsigned a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    unsigned family = (a >> 8 & 15) + ((a >> 8 & 15) == 15 ? a >> 20 & 255 : 0);
    unsigned basic = c;
    unsigned b7, c7, d7;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7))
        return 0;
    if ((b7 & bit_SHA) != 0 && (basic & bit_SSSE3) != 0 && (basic & bit_SSE4_1) != 0)
        found |= CPU_SHA;
    if ((basic & bit_OSXSAVE) == 0)
        return found;
    const unsigned avx2 = bit_AVX2 | bit_BMI | bit_BMI2;
    const unsigned avx512 = bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ;
    unsigned long long saved = saved_state();
    if ((saved & 0x06) == 0x06 && (b7 & avx2) == avx2) /* SSE and AVX halves */
        found |= CPU_AVX2;
    if ((found & CPU_AVX2) != 0 && (saved & 0xe0) == 0xe0 && (b7 & avx512) == avx512) /* masks, upper halves, 16 to 31 */
        found |= CPU_AVX512;
    if (family != 0x1a) /* Zen 5: two cycles */
        found |= CPU_QUICK_VECTOR;
    return found;
}
#elif defined(__aarch64__)
unsigned cpu_features(void)
{
    return CPU_NEON;
}
#else
unsigned cpu_features(void)
{
    return 0;
}
#endif

const char *cpu_override(void)
{
    const char *name = getenv("FASTFS_KERNEL");
    return name != NULL && name[0] != '\0' ? name : NULL;
}
