/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer target: the copy loop and the chains of digests.  The input says in which pieces bytes come and by which
 * way; whatever it says, the target holds exactly those bytes and every digest has seen them once, in order.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../../ext/chains.h"
#include "../../../ext/pump.h"

#define CHECK(x)                                            \
    do {                                                    \
        if (!(x)) {                                         \
            fprintf(stderr, "failed: %s\n", #x);            \
            abort();                                        \
        }                                                   \
    } while (0)

enum { MOST = PUMP_RING + PUMP_BLOCK };

struct sum {
    uint64_t bytes, value;
};

static int update(void *ctx, const void *data, size_t length)
{
    struct sum *s = ctx;
    const unsigned char *p = data;
    uint64_t value = 0, from = s->bytes;
    for (size_t i = 0; i < length; i++)
        value += p[i] * ((from + i) * 2654435761u | 1);
    s->value += value;
    s->bytes += length;
    return 0;
}

static unsigned char *ring, *bytes;

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    if (ring == NULL) {
        CHECK(posix_memalign((void **)&ring, PUMP_PAGE, PUMP_RING) == 0);
        bytes = malloc(MOST);
    }
    if (n < 2)
        return 0;
    unsigned count = in[0] % (CHAINS_MAX + 1);
    int helpers = (in[0] >> 4) % 3;
    bool thin = in[1] & 1, sparse = in[1] & 2;
    struct sum sums[CHAINS_MAX] = { 0 }, expected = { 0 };
    void *ctx[CHAINS_MAX];
    for (unsigned i = 0; i < CHAINS_MAX; i++)
        ctx[i] = &sums[i];
    struct digests *d = chains_new(count, update, ctx, PUMP_DEPTH, helpers);
    CHECK(d != NULL);
    int target = memfd_create("target", 0), source = memfd_create("source", 0);
    struct pump p;
    pump_init(&p, target, ring, d, thin);
    size_t size = 0;
    /* Three bytes a step: what to do, how much, which bytes. */
    for (size_t at = 2; at + 3 <= n && size < MOST; at += 3) {
        size_t want = (size_t)in[at + 1] << (in[at] >> 4) % 13;
        if (want > MOST - size)
            want = MOST - size;
        unsigned char *here = bytes + size;
        memset(here, 0, want);
        if (in[at + 2] & 1)
            for (size_t i = 0; i < want; i += in[at + 2])
                here[i] = in[at + 2];
        uint64_t ticket;
        switch (in[at] & 3) {
        case 0: /* copied into the open block */
            for (size_t done = 0; done < want;) {
                size_t room = 0;
                int err = 0;
                unsigned char *to = pump_room(&p, &room, &err);
                CHECK(to != NULL && room > 0);
                if (room > want - done)
                    room = want - done;
                memcpy(to, here + done, room);
                CHECK(pump_advance(&p, room) == 0);
                done += room;
            }
            break;
        case 1: /* taken as it is */
            CHECK(pump_take(&p, here, want, &ticket) == 0);
            break;
        case 2: { /* read from a file, maybe with holes */
            CHECK(ftruncate(source, 0) == 0 && ftruncate(source, (off_t)want) == 0);
            for (size_t page = 0; page < want; page += PUMP_PAGE) {
                size_t len = want - page < PUMP_PAGE ? want - page : PUMP_PAGE;
                if (!pump_is_zero(here + page, len))
                    CHECK(pwrite(source, here + page, len, (off_t)page) == (ssize_t)len);
            }
            struct pump_source s = { .fd = source, .offset = 0, .limit = UINT64_MAX, .wait_ms = -1, .sparse = sparse };
            uint64_t budget = (uint64_t)in[at + 2] * 1000 + 1;
            int more;
            while ((more = pump_read(&p, &s, budget)) == 1)
                ;
            CHECK(more == 0);
            break;
        }
        case 3:
            want = 0;
            CHECK(pump_flush(&p) == 0);
            break;
        }
        size += want;
        CHECK(p.size == size);
    }
    CHECK(pump_finish(&p) == 0);
    d->ops->free(d);
    update(&expected, bytes, size);
    for (unsigned i = 0; i < count; i++)
        CHECK(sums[i].bytes == size && sums[i].value == expected.value);
    CHECK(lseek(target, 0, SEEK_END) == (off_t)size);
    if (size > 0) {
        unsigned char *got = mmap(NULL, size, PROT_READ, MAP_SHARED, target, 0);
        CHECK(got != MAP_FAILED && memcmp(got, bytes, size) == 0);
        munmap(got, size);
    }
    close(target);
    close(source);
    return 0;
}
