/* SPDX-License-Identifier: Apache-2.0
 *
 * Ends what target.h began.
 */
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
