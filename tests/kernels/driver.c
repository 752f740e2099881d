/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels by number, for tests that load them with ctypes or run them as a program.
 */
#include <stddef.h>

#include "cpu.h"
#include "hash/kernels.h"

#define EXPORT __attribute__((visibility("default")))

static struct hash_kernels table;

EXPORT unsigned driver_features(void)
{
    return cpu_features();
}

EXPORT const char *driver_name(unsigned i)
{
    return hash_kernel_names[i];
}

/* Take the kernels `name` of a machine with `features`; NULL, or why not. */
EXPORT const char *driver_take(const char *name, unsigned features)
{
    return hash_table(name, features, &table);
}

EXPORT const struct hash_kernels *driver_select(const char *name, const char **why)
{
    return hash_select(name, why);
}

EXPORT const char *driver_selected(const struct hash_kernels *k)
{
    return k->name;
}

EXPORT unsigned driver_info(unsigned a, unsigned what)
{
    const struct hash_info *i = &hash_info[a];
    const unsigned v[] = { i->block, i->digest, i->words, i->word_size };
    return v[what];
}

EXPORT const char *driver_algorithm(unsigned a)
{
    return hash_info[a].name;
}

EXPORT void driver_init(unsigned a, union hash_state *s)
{
    hash_init(a, s);
}

EXPORT int driver_has_pair(unsigned a)
{
    return table.pair[a] != NULL;
}

EXPORT unsigned driver_width(unsigned a, int pair, unsigned i)
{
    return pair ? table.pair_lanes[a][i].width : table.lanes[a][i].width;
}

EXPORT unsigned driver_from(unsigned a, int pair, unsigned i)
{
    return pair ? table.pair_lanes[a][i].from : table.lanes[a][i].from;
}

EXPORT void driver_one(unsigned a, union hash_state *s, const unsigned char *data, size_t blocks)
{
    table.one[a](s, data, blocks);
}

EXPORT void driver_pair(unsigned a, union hash_state *md5, union hash_state *s, const unsigned char *data, size_t units)
{
    table.pair[a](md5, s, data, units);
}

EXPORT void driver_lanes(unsigned a, unsigned i, union hash_state *const *s, const unsigned char *const *data,
                         size_t blocks)
{
    table.lanes[a][i].run(s, data, blocks);
}

EXPORT void driver_pair_lanes(unsigned a, unsigned i, union hash_state *const *md5, union hash_state *const *s,
                              const unsigned char *const *data, size_t units)
{
    table.pair_lanes[a][i].run(md5, s, data, units);
}

EXPORT void driver_final(unsigned a, union hash_state *s, const unsigned char *tail, uint64_t total,
                         unsigned char *digest)
{
    hash_final(a, &table, s, tail, total % hash_info[a].block, total, digest);
}
