/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: every kernel of this machine, alone, in lanes and beside MD5, and XXH3's stripes, beside the portable ones.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../../ext/hash/hash.h"
#include "../../../ext/hash/xxh3.h"

enum { UNITS_MOST = 6 };

static void must(int good)
{
    if (!good)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    static const struct hash_kernels *kernels[8], *portable;
    static unsigned known;
    if (n < 8)
        return 0;
    if (known == 0) {
        const char *why;
        portable = hash_select("portable", &why);
        for (unsigned i = 0; hash_kernel_names[i] != NULL && known < 8; i++)
            if (hash_select(hash_kernel_names[i], &why) != NULL)
                kernels[known++] = hash_select(hash_kernel_names[i], &why);
    }
    const struct hash_kernels *k = kernels[in[0] % known];
    enum hash_algorithm a = in[1] % HASH_ALGORITHMS;
    size_t units = in[2] % (UNITS_MOST + 1), offset = in[3] % 64, unit = hash_info[a].block;

    /* The streams' bytes follow from the input; none has a byte more than it should, so that reading on is found. */
    unsigned char *data[HASH_MAX_WIDTH];
    union hash_state first[HASH_MAX_WIDTH], second[HASH_MAX_WIDTH], right[2][HASH_MAX_WIDTH];
    union hash_state *one[HASH_MAX_WIDTH], *other[HASH_MAX_WIDTH];
    const unsigned char *bytes[HASH_MAX_WIDTH];
    unsigned width = 1;
    const struct hash_lanes *lanes = &k->lanes[a][in[4] % HASH_WIDTHS];
    const struct hash_pair_lanes *pairs = &k->pair_lanes[a][in[4] % HASH_WIDTHS];
    enum { ONE, LANES, PAIR, PAIRS, STRIPES } way = in[5] % 5;
    for (const struct hash_lanes *l = k->lanes[a]; way == LANES && l < lanes; l++)
        if (l->width == 0)
            return 0;
    for (const struct hash_pair_lanes *l = k->pair_lanes[a]; way == PAIRS && l < pairs; l++)
        if (l->width == 0)
            return 0;
    if (way == LANES)
        width = lanes->width;
    else if (way == PAIRS)
        width = pairs->width;
    if (width == 0 || width > HASH_MAX_WIDTH || (way == PAIR && k->pair[a] == NULL))
        return 0;
    if (way == PAIR || way == PAIRS)
        unit = 128;
    uint64_t x = in[6] | (uint64_t)in[7] << 8;
    for (unsigned i = 0; i < width; i++) {
        data[i] = malloc(offset + units * unit + 1);
        for (size_t j = 0; j < units * unit; j++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            data[i][offset + j] = j % 3 ? (unsigned char)(x >> 56) : in[8 + (j + i) % (n - 7) - 1];
        }
        bytes[i] = data[i] + offset;
        hash_init(way == PAIR || way == PAIRS ? HASH_MD5 : a, &first[i]);
        hash_init(a, &second[i]);
        right[0][i] = first[i];
        right[1][i] = second[i];
        one[i] = &first[i];
        other[i] = &second[i];
    }
    if (way == STRIPES) {
        uint64_t ours[8], theirs[8];
        unsigned at = in[6] % XXH3_STRIPES;
        for (unsigned i = 0; i < 8; i++)
            ours[i] = theirs[i] = x * (i + 1);
        k->xxh3(ours, bytes[0], units * unit / XXH3_STRIPE, at);
        portable->xxh3(theirs, bytes[0], units * unit / XXH3_STRIPE, at);
        must(memcmp(ours, theirs, sizeof ours) == 0);
    } else {
        bool pair = way == PAIR || way == PAIRS;
        size_t blocks = units * unit / hash_info[a].block;
        if (way == ONE)
            k->one[a](one[0], bytes[0], blocks);
        else if (way == LANES)
            lanes->run(one, bytes, blocks);
        else if (way == PAIR)
            k->pair[a](one[0], other[0], bytes[0], units);
        else
            pairs->run(one, other, bytes, units);
        for (unsigned i = 0; i < width; i++) {
            enum hash_algorithm of = pair ? HASH_MD5 : a;
            portable->one[of](&right[0][i], bytes[i], units * unit / hash_info[of].block);
            must(memcmp(&first[i], &right[0][i], hash_info[of].words * hash_info[of].word_size) == 0);
            if (!pair)
                continue;
            portable->one[a](&right[1][i], bytes[i], blocks);
            must(memcmp(&second[i], &right[1][i], hash_info[a].words * hash_info[a].word_size) == 0);
        }
    }
    for (unsigned i = 0; i < width; i++)
        free(data[i]);
    return 0;
}
