/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "objects.h"

#include <errno.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "ways.h"

void objects_once(const enum hash_algorithm *algorithms, unsigned n, const void *data, size_t len,
                  unsigned char out[][ENGINE_DIGEST_SIZE])
{
    engine_start();
    const struct hash_kernels *kernels = ways_kernels();
    const unsigned char *p = data;
    if (n == 2 && algorithms[0] == HASH_MD5 && kernels->pair[algorithms[1]] != NULL) {
        union hash_state md5, second;
        size_t units = len / HASH_UNIT, done = units * HASH_UNIT;
        hash_init(HASH_MD5, &md5);
        hash_init(algorithms[1], &second);
        if (units > 0)
            kernels->pair[algorithms[1]](&md5, &second, p, units);
        hash_final(HASH_MD5, kernels, &md5, p + done, len - done, len, out[0]);
        hash_final(algorithms[1], kernels, &second, p + done, len - done, len, out[1]);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        union hash_state s;
        hash_init(algorithms[i], &s);
        hash_final(algorithms[i], kernels, &s, p, len, len, out[i]);
    }
}

struct by_length {
    size_t len, index;
};

static int longest_first(const void *a, const void *b)
{
    size_t x = ((const struct by_length *)a)->len, y = ((const struct by_length *)b)->len;
    return (x < y) - (x > y);
}

/* The whole units of all objects, longest first, so that lanes that run together are of about the same length; a lane
 * that is done takes the next object. */
static void many_of_class(const struct ways *k, const struct object *objects, const struct by_length *order,
                          size_t count, union hash_state (*states)[2])
{
    union hash_state *first[WAYS_LANES], *second[WAYS_LANES];
    const unsigned char *data[WAYS_LANES];
    size_t left[WAYS_LANES], next = 0, steps = 0, lanes = 0, bytes = 0;
    unsigned n = 0;
    for (;;) {
        while (n < k->take[WAYS_LANES] && next < count && order[next].len >= k->unit) {
            const struct by_length *o = &order[next++];
            first[n] = &states[o->index][0];
            second[n] = &states[o->index][1];
            data[n] = objects[o->index].data;
            left[n++] = o->len / k->unit;
        }
        if (n == 0)
            break;
        unsigned some = k->take[n];
        size_t units = left[0];
        for (unsigned i = 1; i < some; i++)
            units = left[i] < units ? left[i] : units;
        ways_advance(k, ways_best(k, some), first, second, data, units, some);
        steps++;
        lanes += some;
        bytes += some * units * k->unit * (k->pair ? 2 : 1);
        for (unsigned i = some; i-- > 0;) {
            data[i] += units * k->unit;
            left[i] -= units;
            if (left[i] == 0) {
                n--;
                first[i] = first[n], second[i] = second[n], data[i] = data[n], left[i] = left[n];
            }
        }
    }
    engine_count(steps, lanes, bytes);
}

int objects_many(const enum hash_algorithm *algorithms, unsigned n, struct object *objects, size_t count)
{
    if (n < 1 || n > ENGINE_DIGESTS)
        return -EINVAL;
    engine_start();
    if (ways_kernels() == NULL)
        return -ENOSYS;
    struct by_length *order = calloc(count + 1, sizeof *order);
    union hash_state(*states)[2] = aligned_alloc(alignof(union hash_state), (count + 1) * sizeof *states);
    if (order == NULL || states == NULL) {
        free(order);
        free(states);
        return -ENOMEM;
    }
    for (size_t j = 0; j < count; j++)
        order[j] = (struct by_length){ objects[j].len, j };
    qsort(order, count, sizeof *order, longest_first);
    for (unsigned i = 0; i < n; i++) {
        bool pair = n == 2 && i == 0 && algorithms[0] == HASH_MD5 && ways_beside_md5(algorithms[1])->count > 0;
        struct ways *k = pair ? ways_beside_md5(algorithms[1]) : ways_alone(algorithms[i]);
        ways_measure(k);
        for (size_t j = 0; j < count; j++) {
            hash_init(algorithms[i], &states[j][0]);
            hash_init(k->second, &states[j][1]);
        }
        many_of_class(k, objects, order, count, states);
        for (unsigned p = 0; p <= pair; p++)
            for (size_t j = 0; j < count; j++) {
                size_t len = objects[j].len, done = len / k->unit * k->unit;
                const unsigned char *rest = len > 0 ? (const unsigned char *)objects[j].data + done : NULL;
                hash_final(algorithms[i + p], ways_kernels(), &states[j][p], rest, len - done, len,
                           objects[j].digest[i + p]);
            }
        i += pair;
    }
    free(order);
    free(states);
    return 0;
}
