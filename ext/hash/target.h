/* SPDX-License-Identifier: Apache-2.0
 *
 * From here to target_end.h functions are compiled for TARGET, so that no file needs flags of its own.
 */
#define TARGET_TEXT(x) #x
#define TARGET_PRAGMA(x) _Pragma(TARGET_TEXT(x))
#ifdef __clang__
TARGET_PRAGMA(clang attribute push(__attribute__((target(TARGET))), apply_to = function))
#else
#pragma GCC push_options
TARGET_PRAGMA(GCC target(TARGET))
#endif
