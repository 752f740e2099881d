/* SPDX-License-Identifier: Apache-2.0
 *
 * program FILE: the digests of pieces of FILE by every kernel that this machine can run, for machines that are emulated.
 * Prints a line for each: set, kernel, lanes, algorithm, first byte, length, digest.
 */
#include "driver.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_SIZE = 1 << 16, STRIDE = 331 /* odd: every lane lies differently */ };

static unsigned char file[FILE_SIZE];

static void show(const char *set, const char *kind, unsigned width, unsigned a, union hash_state *s, unsigned block,
                 size_t start, size_t done, size_t length)
{
    unsigned char digest[HASH_MAX_DIGEST];
    size_t more = (length - done) / block;
    if (more > 0)
        driver_one(a, s, file + start + done, more);
    driver_final(a, s, file + start + done + more * block, length, digest);
    printf("%s %s %u %s %zu %zu ", set, kind, width, hash_info[a].name, start, length);
    for (unsigned i = 0; i < hash_info[a].digest; i++)
        printf("%02x", digest[i]);
    printf("\n");
}

/* `units` by the kernel (i < 0: the one of one stream), what is over of each lane's own length by itself. */
static void lanes(const char *set, unsigned a, int pair, int i, size_t units)
{
    static union hash_state state[2][HASH_MAX_WIDTH];
    union hash_state *first[HASH_MAX_WIDTH], *second[HASH_MAX_WIDTH];
    const unsigned char *data[HASH_MAX_WIDTH];
    unsigned width = i < 0 ? 1 : driver_width(a, pair, (unsigned)i), unit = pair ? HASH_UNIT : hash_info[a].block;
    for (unsigned j = 0; j < width; j++) {
        driver_init(HASH_MD5, first[j] = &state[0][j]);
        driver_init(a, second[j] = &state[1][j]);
        data[j] = file + j * STRIDE;
    }
    if (i >= 0 && pair)
        driver_pair_lanes(a, (unsigned)i, first, second, data, units);
    else if (i >= 0)
        driver_lanes(a, (unsigned)i, second, data, units);
    else if (pair)
        driver_pair(a, first[0], second[0], data[0], units);
    else
        driver_one(a, second[0], data[0], units);
    static const size_t over[] = { 0, 1, 55, 56, 63, 64, 65, 111, 112, 127 };
    for (unsigned j = 0; j < width; j++) {
        size_t length = units * unit + over[(units + j) % (sizeof over / sizeof *over)];
        if (pair)
            show(set, i < 0 ? "pair" : "pair_lanes", width, HASH_MD5, first[j], 64, j * STRIDE, units * unit, length);
        show(set, pair ? (i < 0 ? "pair" : "pair_lanes") : (i < 0 ? "one" : "lanes"), width, a, second[j],
             hash_info[a].block, j * STRIDE, units * unit, length);
    }
}

int main(int argc, char **argv)
{
    FILE *f = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (f == NULL || fread(file, 1, FILE_SIZE, f) != FILE_SIZE)
        return 2;
    fclose(f);
    for (unsigned n = 0; driver_name(n) != NULL; n++) {
        if (driver_take(driver_name(n), driver_features()) != NULL)
            continue;
        for (unsigned a = 0; a < HASH_ALGORITHMS; a++)
            for (int pair = 0; pair <= driver_has_pair(a); pair++)
                for (int i = -1; i < 0 || driver_width(a, pair, (unsigned)i) > 0; i++)
                    for (size_t units = 1; units <= 20; units++)
                        lanes(driver_name(n), a, pair, i, units);
    }
    return 0;
}
