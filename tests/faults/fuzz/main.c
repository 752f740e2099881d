/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a fuzz target on random inputs, for compilers and sanitizers without libFuzzer: main RUNS [SEED]
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n);

int main(int argc, char **argv)
{
    long runs = argc > 1 ? atol(argv[1]) : 1000;
    uint64_t x = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint8_t in[100];
    for (long run = 0; run < runs; run++) {
        for (size_t i = 0; i < sizeof in; i++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            in[i] = (uint8_t)(x >> 56);
        }
        LLVMFuzzerTestOneInput(in, x >> 32 & 63);
    }
    printf("Done %ld runs\n", runs);
    return 0;
}
