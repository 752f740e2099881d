/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_turns: whose turn it is, played by one thread that is all workers in one: no clock and no chance.  Four streams
 * always have a block of SHA-256 ready; fifteen streams of MD5 and SHA-512 live and wait for their sources, and one of
 * them has a block, of which good lanes cannot be made.  Prints how many blocks of the others went before it.
 */
#include "engine.c"

#include <stdio.h>

enum { BUSY = 4, IDLE = 15, SIZE = 1 << 16, SOON = 32 };

static unsigned char data[SIZE];

static struct digests *begin(const enum hash_algorithm *algorithms, unsigned n)
{
    struct digests *d = engine_new(algorithms, n, 2);
    if (d == NULL)
        abort();
    return d;
}

int main(void)
{
    static const enum hash_algorithm pair[] = { HASH_MD5, HASH_SHA512 }, single[] = { HASH_SHA256 };
    struct digests *idle[IDLE], *busy[BUSY], *small;
    uint64_t ticket = 0, last[BUSY];
    cores_limit(1);
    for (unsigned i = 0; i < IDLE; i++)
        idle[i] = begin(pair, 2);
    for (unsigned i = 0; i < BUSY; i++) {
        busy[i] = begin(single, 1);
        busy[i]->ops->post(busy[i], data, SIZE, &last[i]);
    }
    small = begin(pair, 2);
    struct class *k = class_of(ways_beside_md5(HASH_SHA512));
    k->decided_for = engine.cores;
    for (unsigned n = 1; n <= WAYS_LANES; n++) {
        k->together[n] = true;
        k->ways->take[n] = (unsigned char)n; /* as if every lane more made it faster */
    }
    small->ops->post(small, data, SIZE, &ticket);
    unsigned before = 0;
    while (small->ops->done(small) < ticket) {
        pthread_mutex_lock(&engine.lock);
        bool worked = work();
        pthread_mutex_unlock(&engine.lock);
        if (!worked)
            return 2;
        for (unsigned i = 0; i < BUSY; i++)
            if (busy[i]->ops->done(busy[i]) == last[i]) {
                before++;
                busy[i]->ops->post(busy[i], data, SIZE, &last[i]);
            }
    }
    printf("%u blocks went before\n", before);
    small->ops->free(small);
    for (unsigned i = 0; i < IDLE; i++)
        idle[i]->ops->free(idle[i]);
    for (unsigned i = 0; i < BUSY; i++)
        busy[i]->ops->free(busy[i]);
    return before > SOON;
}
