/* SPDX-License-Identifier: Apache-2.0
 *
 *     blockread_stress DIRECTORY THREADS READERS SEED KERNELS
 *
 * Each thread reads so many files block by block, with and without a helper, in order and by leaps, dawdling or not, and now
 * and then a file that was cut short or is closed meanwhile.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <unistd.h>

#include "blockread.h"
#include "stress.h"

enum { EACH = 4, PIECE = 2048, BLOCK = EACH * PIECE, BLOCKS = 40, ROOM = BLOCKREAD_SLOTS };

static const char *directory;
static unsigned readers;
static atomic_uint wrong;

static void complain(const char *what, unsigned seed)
{
    printf("wrong: %s, seed %u\n", what, seed);
    atomic_fetch_add(&wrong, 1);
}

struct reader {
    struct serve_file file;
    struct blockread *blocks;
    char memory[ROOM][BLOCK];
    unsigned set; /* where the next block that is offered goes */
};

static void offer(struct reader *r, unsigned offered)
{
    while (offered < BLOCKS && blockread_has_room(r->blocks)) {
        char *memory[EACH];
        for (unsigned i = 0; i < EACH; i++)
            memory[i] = r->memory[r->set] + (size_t)i * PIECE;
        memset(r->memory[r->set], 0x55, BLOCK);
        blockread_offer(r->blocks, (int64_t)offered++ * BLOCK, memory);
        r->set = (r->set + 1) % ROOM;
    }
}

static void give_back(int last)
{
    if (last >= 0)
        close(last);
}

static void read_through(const unsigned char *content, unsigned blocks, unsigned *random, unsigned seed, int fd)
{
    struct reader r = { .set = 0 };
    serve_file_init(&r.file, fd);
    r.blocks = blockread_new(&r.file, EACH, PIECE);
    bool closed = false;
    for (unsigned at = 0, first = 0; at < BLOCKS; at++) {
        unsigned chance = (unsigned)rand_r(random) % 64;
        if (chance < 4) {
            blockread_forget(r.blocks);
            at = first = chance * 7;
        } else if (chance == 4) {
            give_back(serve_file_close(&r.file));
            closed = true;
        } else if (chance < 9) {
            usleep(chance * 20);
        }
        if (at > first + 2)
            blockread_hire(r.blocks);
        unsigned which = (r.set + ROOM - blockread_offered(r.blocks)) % ROOM;
        offer(&r, at + blockread_offered(r.blocks));
        unsigned char digest[XXH3_DIGEST], right[XXH3_DIGEST];
        int error = blockread_next(r.blocks, digest);
        if (error != 0) {
            if (!(error == -ENODATA && at >= blocks) && !(error == -EBADF && closed))
                complain(strerror(-error), seed);
            break;
        }
        struct xxh3 hash;
        xxh3_begin(&hash);
        xxh3_update(&hash, ways_kernels(), content + (size_t)at * BLOCK, BLOCK);
        xxh3_digest(&hash, right);
        if (at >= blocks || memcmp(digest, right, sizeof right) != 0)
            complain("digest", seed);
        if (memcmp(r.memory[which], content + (size_t)at * BLOCK, BLOCK) != 0)
            complain("bytes", seed);
    }
    blockread_free(r.blocks);
    give_back(serve_file_close(&r.file));
    if (fcntl(fd, F_GETFD) >= 0)
        complain("the descriptor is open", seed);
}

/* Descriptors are per process: only one thread at a time can tell whether its own was closed. */
static void *one_thread(void *argument)
{
    unsigned seed = (unsigned)(size_t)argument, random = seed;
    unsigned char *content = malloc((size_t)BLOCKS * BLOCK);
    char path[4096];
    snprintf(path, sizeof path, "%s/%u", directory, seed);
    for (unsigned i = 0; i < readers; i++) {
        for (size_t j = 0; j < (size_t)BLOCKS * BLOCK; j++)
            content[j] = (unsigned char)((random = random * 1103515245 + 12345) >> 16);
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        unsigned blocks = random % 4 ? BLOCKS : random / 4 % BLOCKS;
        if (fd < 0 || pwrite(fd, content, (size_t)blocks * BLOCK, 0) != (ssize_t)((size_t)blocks * BLOCK)) {
            complain(strerror(errno), seed);
            break;
        }
        /* A number that no other thread is given. */
        int own = fcntl(fd, F_DUPFD_CLOEXEC, 1000 + 10 * (int)(seed % 1000));
        close(fd);
        read_through(content, blocks, &random, seed, own);
    }
    unlink(path);
    free(content);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    directory = argv[1];
    readers = (unsigned)atoi(argv[3]);
    use_kernels(argv[5]);
    run_threads((unsigned)atoi(argv[2]), one_thread, (unsigned)atoi(argv[4]) * 64);
    printf("kernel %s: %s\n", engine_kernels(), atomic_load(&wrong) ? "faults" : "right");
    return atomic_load(&wrong) != 0;
}
