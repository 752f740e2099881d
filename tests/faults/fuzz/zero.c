/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer target: are all bytes zero?  At every length and alignment, beside a loop over bytes.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../../ext/pump.h"

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    if (n < 4)
        return 0;
    size_t length = (size_t)in[0] << (in[1] % 8), offset = in[2] % 64;
    unsigned char *memory = calloc(1, offset + length); /* not one byte more: reading past the end is found */
    for (size_t i = 3; i + 2 < n && length > 0; i += 3)
        memory[offset + (((size_t)in[i] << 8 | in[i + 1]) % length)] = in[i + 2];
    bool zero = true;
    for (size_t i = 0; i < length; i++)
        zero = zero && memory[offset + i] == 0;
    if (pump_is_zero(memory + offset, length) != zero)
        abort();
    free(memory);
    return 0;
}
