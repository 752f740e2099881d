/* SPDX-License-Identifier: Apache-2.0
 *
 * With AVX-512 any logic of three operands is one instruction, its truth table a constant.  The compilers find
 * some of them by themselves, but not the majority.  Replaces the logic of rounds.h; for vectors only.
 */
#define LOGIC(name, type, intel, prefix, table)                                                           \
    INLINE type name##_##type(type x, type y, type z)                                                     \
    {                                                                                                     \
        return (type)prefix##_ternarylogic_epi32((intel)x, (intel)y, (intel)z, table);                    \
    }
#define LOGICS(type, intel, prefix)                 \
    LOGIC(xor3, type, intel, prefix, 0x96)          \
    LOGIC(choose, type, intel, prefix, 0xca)        \
    LOGIC(majority, type, intel, prefix, 0xe8)      \
    LOGIC(md5_i, type, intel, prefix, 0x39)
LOGICS(v32_16, __m128i, _mm)
LOGICS(v64_16, __m128i, _mm)
LOGICS(v32_32, __m256i, _mm256)
LOGICS(v64_32, __m256i, _mm256)
LOGICS(v32_64, __m512i, _mm512)
LOGICS(v64_64, __m512i, _mm512)
#undef LOGICS
#undef LOGIC

#define BY_TYPE(name, x)                                                                         \
    _Generic(x, v32_16: name##_v32_16, v64_16: name##_v64_16, v32_32: name##_v32_32,             \
             v64_32: name##_v64_32, v32_64: name##_v32_64, v64_64: name##_v64_64)
#undef XOR3
#undef CHOOSE
#undef MAJORITY
#undef MD5_I_OF
#undef MD5_G_AT_ONCE
#define XOR3(x, y, z) BY_TYPE(xor3, x)(x, y, z)
#define CHOOSE(x, y, z) BY_TYPE(choose, x)(x, y, z)
#define MAJORITY(x, y, z) BY_TYPE(majority, x)(x, y, z)
#define MD5_I_OF(b, c, d) BY_TYPE(md5_i, b)(b, c, d)
#define MD5_G_AT_ONCE 1
