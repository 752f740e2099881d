# cython: language_level=3, binding=True, freethreading_compatible=True, auto_pickle=False
# SPDX-License-Identifier: Apache-2.0
"""The gate to the C core: arguments, buffers, GIL edges and errors.  No policy lives here.

Everything raises builtins only (`OSError` with errno, `ValueError`, `BufferError`, `MemoryError`); the
Python layer decides what they mean.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_CheckExact
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EINTR, EIO, ENOMEM, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free as libc_free, malloc
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport close, getpid, pid_t

import os

cimport cython

cdef extern from "Python.h":
    enum:
        PyBUF_READ

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)

cdef extern from "digests.h" nogil:
    cdef struct digests_ops:
        uint64_t (*done)(digests *d) noexcept nogil
        int (*wait)(digests *d, uint64_t ticket) noexcept nogil
        void (*free)(digests *d) noexcept nogil
    cdef struct digests:
        const digests_ops *ops

cdef extern from "chains.h" nogil:
    enum: CHAINS_MAX
    ctypedef int (*chain_update)(void *ctx, const void *data, size_t length) noexcept nogil
    digests *chains_new(unsigned n, chain_update update, void *const *ctx, unsigned depth, int helpers)

cdef extern from "tee.h" nogil:
    digests *tee_new(digests *a, digests *b)

cdef extern from "hash/hash.h" nogil:
    enum hash_algorithm: HASH_ALGORITHMS
    cdef struct hash_info_t "hash_info":
        const char *name
        unsigned digest
    const hash_info_t *hash_info
    const char *const *hash_kernel_names

cdef extern from "cores.h" nogil:
    int cores_usable()
    void cores_limit(int n)

cdef extern from "engine.h" nogil:
    enum: ENGINE_DIGESTS, ENGINE_DIGEST_SIZE, WAYS_MAX
    ctypedef struct stats_t "struct engine_stats":
        uint64_t streams
        uint64_t live
        uint64_t steps
        uint64_t lanes
        uint64_t bytes
        uint64_t helpers
    const char *engine_select(const char *name)
    const char *engine_kernels()
    digests *engine_new(const hash_algorithm *algorithms, unsigned n, unsigned depth)
    unsigned engine_digest(digests *d, unsigned i, unsigned char *out)
    void engine_stats(stats_t *out)
    unsigned engine_rates(hash_algorithm a, bint with_md5, unsigned *widths, double *rates)

cdef extern from "objects.h" nogil:
    ctypedef struct whole_t "struct object":
        const void *data
        size_t len
        unsigned char digest[4][64]
    void objects_once(const hash_algorithm *algorithms, unsigned n, const void *data, size_t length,
                      unsigned char (*out)[64])
    int objects_many(const hash_algorithm *algorithms, unsigned n, whole_t *objects, size_t count)

cdef extern from "pump.h" nogil:
    enum: PUMP_BLOCK, PUMP_BLOCKS, PUMP_RING, PUMP_DEPTH, PUMP_PAGE
    enum pump_side:
        PUMP_SOURCE
        PUMP_DIGEST
    ctypedef struct pump_t "struct pump":
        digests *engine
        digests *others
        bint alone
        int fd
        bint hold
        bint early
        bint direct
        bint uncached
        pump_side side
        uint64_t size
        unsigned char *ring
        unsigned slot
        size_t fill
        bint cancelled
        uint64_t busy_since
        const unsigned char *unwritten
        uint64_t unwritten_at
    ctypedef struct source_t "struct pump_source":
        int fd
        int64_t offset
        uint64_t limit
        int wait_ms
        bint sparse
        bint uncached
    enum pump_cache:
        PUMP_KEEP
        PUMP_DROP
        PUMP_DIRECT
    void pump_set_cache(pump_t *p, pump_cache cache)
    void pump_set_target(pump_t *p, int fd)
    void pump_init(pump_t *p, int fd, unsigned char *ring, digests *d, bint thin)
    unsigned char *pump_room(pump_t *p, size_t *room, int *err)
    int pump_advance(pump_t *p, size_t n)
    int pump_flush(pump_t *p)
    int pump_take(pump_t *p, const void *data, size_t length, uint64_t *ticket)
    int pump_resume(pump_t *p)
    int pump_finish(pump_t *p)
    bint pump_is_zero(const void *data, size_t n)

cdef extern from "ways.h" nogil:
    ctypedef struct kernels_t "const struct hash_kernels":
        pass
    kernels_t *ways_kernels()

cdef extern from "hash/xxh3.h" nogil:
    enum: XXH3_SHORT
    enum: XXH3_DIGEST
    ctypedef struct xxh3_t "struct xxh3":
        pass
    void xxh3_begin(xxh3_t *x)
    void xxh3_update(xxh3_t *x, kernels_t *k, const void *data, size_t length)
    void xxh3_digest(const xxh3_t *x, unsigned char *digest)

cdef extern from "blocks.h" nogil:
    ctypedef struct blocks_t "struct blocks_result":
        const unsigned char *table
        size_t len
        const unsigned char *rest
        size_t rest_len
    digests *blocks_new(size_t block_size)
    int blocks_finish(digests *d, blocks_t *r)

cdef extern from "crew.h" nogil:
    void crew_expect()
    void crew_expect_no_more()
    int crew_read(pump_t *p, source_t *s, uint64_t budget)

cdef extern from "fsops.h" nogil:
    ctypedef struct object_t "struct fsops_object":
        const char *directory
        const char *name
        const void *data
        size_t len
        const char *attr
        const void *attr_value
        size_t attr_len
        int mode
        bint sync_file
        bint sync_dir
    int fsops_reserve(int fd, uint64_t size)
    int fsops_trim(int fd, uint64_t size)
    int fsops_resident(int fd, uint64_t offset, size_t length, unsigned char *pages)
    int fsops_link_fd(int fd, int dirfd, const char *name)
    int fsops_rename(int dirfd, const char *src, const char *dst)
    int fsops_store(const object_t *o)
    ssize_t fsops_read(const char *path, void *buf, size_t room)
    int fsops_draft(int dirfd, const void *data, size_t len, int mode)
    void fsops_sync_many(int *fds, size_t n)
    int fsops_syncfs(int fd)
    int64_t fsops_kind(int fd)

cdef extern from "busguard.h" nogil:
    int busguard_begin(const void *address, size_t length)
    bint busguard_spoilt(int guard)
    void busguard_end(int guard)

BLOCK_SIZE = PUMP_BLOCK
RING_SIZE = PUMP_RING
PAGE_SIZE = PUMP_PAGE

cdef uint64_t NO_LIMIT = <uint64_t>-1

cdef uint64_t DEFAULT_BUDGET = 16 * 1024 * 1024  # some 20 ms alone: how long a signal has to wait; 0.25 s in a crew


cdef int check(int err) except -1:
    """Raise what a C function returned, unless it is a success."""
    if err < 0:
        raise OSError(-err, os.strerror(-err))
    return err


cdef Py_ssize_t ring_count = 0


@cython.final
cdef class Ring:
    """The blocks of one stream: page-aligned memory that is used again by the next one.

    Supports the buffer protocol, so that a view of it keeps it alive.
    """

    cdef unsigned char *memory
    cdef Py_ssize_t exports
    # Lanes read as many rings at once.  If all began at the same offset in a page, they would share eight places
    # of the first-level cache.
    cdef Py_ssize_t skew

    def __cinit__(self):
        global ring_count
        if posix_memalign(<void **>&self.memory, PUMP_PAGE, PUMP_RING + PUMP_PAGE) != 0:
            self.memory = NULL
            raise MemoryError()
        self.skew = (ring_count % 16) * 256
        ring_count += 1

    def __dealloc__(self):
        libc_free(self.memory)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.memory, PUMP_RING + PUMP_PAGE, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1


# Fresh memory costs 2 GB/s at its first touch, so a few rings are kept (1 MiB each).  One that somebody
# still has a view of is not: its memory may change at any time.
cdef list spare_rings = []
cdef Py_ssize_t SPARE_RINGS_MAX = 16


cdef Ring take_ring():
    # Looked at first: where there is no memory for a traceback, Cython's `except` crashes.
    if not spare_rings:
        return Ring()
    try:
        return spare_rings.pop()
    except IndexError:  # another thread was faster (free-threaded Python)
        return Ring()


cdef int update_hash(void *ctx, const void *data, size_t length) noexcept nogil:
    """One block into one hashlib object, which releases the GIL while it works."""
    with gil:
        try:
            (<object>ctx)(PyMemoryView_FromMemory(<char *>data, <Py_ssize_t>length, PyBUF_READ))
        except MemoryError:
            return -ENOMEM
        except BaseException:
            return -EIO
    return 0


@cython.final
cdef class EngineDigest:
    """One digest of one stream, made by the hash engine: give it to a `Pump` beside or instead of hashlib objects.

    :param name: as hashlib has it, one of `engine_algorithms`.
    :raises ValueError: the engine has no such algorithm.
    """

    cdef readonly str name
    cdef hash_algorithm algorithm
    cdef bint taken
    cdef bytes result

    def __cinit__(self, str name not None):
        if name not in ALGORITHM or engine_kernels() == NULL:
            raise ValueError(f"the hash engine has no {name} on this machine")
        self.name = name
        self.algorithm = <hash_algorithm><int>ALGORITHM[name]

    def digest(self):
        """The digest as bytes, once the pump is finished."""
        if self.result is None:
            raise ValueError("the stream is not finished")
        return self.result

    def hexdigest(self):
        """The digest in hexadecimal, once the pump is finished."""
        return self.digest().hex()


@cython.final
cdef class BlockDigests:
    """XXH3 of 128 bits of each block of one stream, for a `Pump`.

    :param block_size: bytes of a block, more than 240; the last one may be shorter.
    :raises ValueError: a block of so few bytes.
    """

    cdef readonly size_t block_size
    cdef bint taken
    cdef tuple result

    def __cinit__(self, size_t block_size):
        if block_size <= XXH3_SHORT:
            raise ValueError(f"a block has more than {XXH3_SHORT} bytes")
        self.block_size = block_size

    def digests(self):
        """The digests, 16 bytes each, one after the other, and the bytes of a last block of 240 bytes or fewer, whose
        digest is not among them.

        :raises RuntimeError: the pump has not finished.
        """
        if self.result is None:
            raise RuntimeError("the stream has not ended")
        return self.result


# Helper threads use `updates` and `held` until __dealloc__ has ended them: the collector must take neither before.
@cython.no_gc
@cython.final
cdef class Pump:
    """One stream's chunk-copy loop: hash and write what comes in.

    :param fd: the target, opened for writing and empty; -1 only hashes.  Not closed here.
    :param hashers: up to four fresh `EngineDigest`, a fresh `BlockDigests`, and up to four hashlib-like objects, whose
        ``update`` is called with a memoryview that is only valid during the call, from any thread, for one block at a
        time.
    :param thin: leave holes for pages (4096 bytes) of zeroes.
    :param helpers: bound on helper threads for the hashlib-like; -1 leaves it to the number of idle processors.
    :param cache: ``"keep"``, or ``"drop"`` the pages of source and target, or write ``"direct"`` (O_DIRECT).
    :param early: let the kernel begin to write to the disk while the stream runs (sync_file_range(2)).
    :param alone: every system call on source and target is made by the thread that calls; otherwise, while many streams
        copy regular files, a thread may do it for several.

    One thread at a time may use it, except for `cancel` and `busy_since`.
    """

    cdef pump_t pump
    cdef digests *digests
    cdef digests *engine  # a part of `digests`, or NULL
    cdef digests *blocks  # the same
    cdef Ring ring
    cdef bint uncached
    cdef list engine_digests
    cdef BlockDigests block_digests
    cdef tuple updates  # the hashers' bound `update` methods; the C core points at them
    cdef list held      # [(ticket, bytes, length)]: pieces that are hashed without being copied
    cdef pid_t pid

    def __cinit__(self, int fd, hashers, *, bint thin=False, int helpers=-1, str cache not None="keep",
                  bint early=False, bint alone=False):
        cdef void *ctx[CHAINS_MAX]
        cdef hash_algorithm algorithms[ENGINE_DIGESTS]
        cdef unsigned n = 0, updates = 0
        cdef EngineDigest one
        cdef digests *others
        hashers = list(hashers)
        self.engine_digests = [h for h in hashers if isinstance(h, EngineDigest)]
        blocks = [h for h in hashers if isinstance(h, BlockDigests)]
        self.updates = tuple([h.update for h in hashers if not isinstance(h, (EngineDigest, BlockDigests))])
        if len(self.updates) > CHAINS_MAX or len(self.engine_digests) > ENGINE_DIGESTS or len(blocks) > 1:
            raise ValueError("too many hashers")
        for one in self.engine_digests:
            if one.taken:
                raise ValueError("a digest is of one stream only")
            one.taken = True
            algorithms[n] = one.algorithm
            n += 1
        self.held = []
        self.pid = getpid()
        self.ring = take_ring()
        for self.block_digests in blocks:
            if self.block_digests.taken:
                raise ValueError("a digest is of one stream only")
            self.block_digests.taken = True
            self.blocks = blocks_new(self.block_digests.block_size)
            self.take(self.blocks)
        if self.updates or (n == 0 and not blocks):
            for update in self.updates:
                ctx[updates] = <void *>update
                updates += 1
            self.take(chains_new(updates, update_hash, ctx, PUMP_DEPTH, helpers))
        others = self.digests
        if n > 0:
            with nogil:
                self.engine = engine_new(algorithms, n, PUMP_DEPTH)
            self.take(self.engine)
        # An aligned ring for O_DIRECT; otherwise one of sixteen offsets, see Ring.
        pump_init(&self.pump, fd, self.ring.memory + (0 if cache == "direct" else self.ring.skew), self.digests, thin)
        self.pump.early = early
        self.pump.engine = self.engine
        self.pump.others = others
        self.pump.alone = alone
        self.uncached = cache != "keep"
        pump_set_cache(&self.pump, PUMP_DIRECT if cache == "direct" else PUMP_DROP if self.uncached else PUMP_KEEP)

    def __dealloc__(self):
        cdef digests *d = self.digests
        self.digests = NULL
        if d != NULL and self.pid == getpid():
            with nogil:
                d.ops.free(d)
        # At interpreter shutdown the list may be gone before the last pump is.
        if self.ring is not None and self.ring.exports == 0 and spare_rings is not None:
            if len(spare_rings) < SPARE_RINGS_MAX:
                spare_rings.append(self.ring)

    cdef int take(self, digests *part) except -1:
        """Make `part` one of `digests`, with which it is freed."""
        if part != NULL and self.digests != NULL:
            part = tee_new(self.digests, part)  # or frees both
            self.digests = NULL
        if part == NULL:
            raise MemoryError()
        self.digests = part
        return 0

    cdef int alive(self) except -1:
        if self.digests == NULL:
            raise ValueError("the pump is closed")
        if self.pid != getpid():
            raise RuntimeError("an upload cannot go on in a forked child")
        return 0

    cdef int check(self, int err) except -1:
        if err == -ENOMEM and self.pump.side == PUMP_DIGEST:
            raise MemoryError()
        return check(err)

    def close(self):
        """End all threads of this stream and let go of its memory.  May be repeated."""
        cdef digests *d = self.digests
        self.digests = NULL
        if d != NULL and self.pid == getpid():
            with nogil:
                d.ops.free(d)
        self.held = []
        self.updates = ()  # they may refer to us, which the collector could not see

    @property
    def size(self):
        """Bytes taken so far."""
        return self.pump.size

    @property
    def side(self):
        """Whose fault the last error was: ``"source"``, ``"target"``, ``"digest"`` or ``""``."""
        return ("", "source", "target", "digest")[<int>self.pump.side]

    @property
    def busy_since(self):
        """``time.monotonic_ns()`` when the system call on the target began that is under way; 0: none is."""
        return self.pump.busy_since

    def cancel(self):
        """Make no further system call; the one under way cannot be stopped.  Any thread may call this."""
        self.pump.cancelled = True

    def read_fd(self, int fd, object offset=None, object limit=None, *, int wait_ms=-1, bint sparse=False,
                object budget=None, bint hold=False):
        """Copy from a descriptor, without the GIL.

        :param offset: where to read a seekable file (its position is not used); None: a stream.
        :param limit: take no more than this many bytes in this call; None: to the end.
        :param wait_ms: for descriptors in non-blocking mode: how long to wait for data; -1: for ever.
        :param budget: return to the caller after about this many bytes; a stream that shares lanes goes on
            to 64 MiB, but not for more than 0.25 s.
        :param hold: return as soon as the open block is full, before anything is done with it: look at it
            with `pending`, then `flush`.
        :return: ``(more, taken)``: False at the end of the source or at the limit; bytes taken.
        :raises OSError: see `side`.  ETIMEDOUT on the source side: `wait_ms` is over.
        """
        cdef source_t s
        cdef uint64_t b = DEFAULT_BUDGET if budget is None else budget
        cdef uint64_t before = self.pump.size
        cdef int err
        self.alive()
        s.fd = fd
        s.offset = -1 if offset is None else offset
        s.limit = NO_LIMIT if limit is None else limit
        s.wait_ms = wait_ms
        s.sparse = sparse
        s.uncached = self.uncached
        self.pump.hold = hold
        while True:
            with nogil:
                err = crew_read(&self.pump, &s, b)
            if err == -EINTR and self.pump.side == PUMP_SOURCE:
                PyErr_CheckSignals()
                continue
            PyErr_CheckSignals()
            return self.check(err) == 1, self.pump.size - before

    def room(self):
        """A writable view of the free part of the open block, for a ``readinto``; then call `advance`."""
        cdef size_t n = 0
        cdef int err = 0
        cdef unsigned char *p
        self.alive()
        with nogil:
            p = pump_room(&self.pump, &n, &err)
        self.check(err)
        start = <Py_ssize_t>(p - self.ring.memory)
        return memoryview(self.ring)[start:start + <Py_ssize_t>n]

    def advance(self, size_t n):
        """The first `n` bytes of `room` are data."""
        cdef int err
        self.alive()
        if n > PUMP_BLOCK - self.pump.fill:
            raise ValueError("more than there is room for")
        with nogil:
            err = pump_advance(&self.pump, n)
        self.check(err)

    def pending(self):
        """A copy of the open block."""
        start = <Py_ssize_t>(self.pump.ring - self.ring.memory) + <Py_ssize_t>self.pump.slot * PUMP_BLOCK
        return bytes(memoryview(self.ring)[start:start + <Py_ssize_t>self.pump.fill])

    def feed(self, data, Py_ssize_t start=0, object stop=None):
        """Take ``data[start:stop]``.  Large pieces of ``bytes`` are not copied but kept until they are hashed;
        of any other bytes-like object, which might change meanwhile, a copy is taken.
        """
        cdef Py_buffer view
        cdef const char *p
        cdef size_t left, room, n
        cdef Py_ssize_t end
        cdef int err = 0
        cdef uint64_t ticket = 0
        cdef unsigned char *to
        self.alive()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            end = view.len if stop is None else min(<Py_ssize_t>stop, view.len)
            if start < 0 or start > end:
                raise ValueError("start is not within the data")
            p = <const char *>view.buf + start
            left = <size_t>(end - start)
            if PyBytes_CheckExact(data) and left >= <size_t>PUMP_BLOCK // 2 and not self.pump.direct:
                self.held.append((0, data, left))
                try:
                    with nogil:
                        err = pump_take(&self.pump, p, left, &ticket)
                finally:
                    self.held[len(self.held) - 1] = (ticket, data, left)
                self.let_go()
                self.check(err)
                return
            with nogil:
                while left > 0 and err == 0:
                    room = 0
                    to = pump_room(&self.pump, &room, &err)
                    if to == NULL:
                        break
                    n = room if room < left else left
                    memcpy(to, p, n)
                    p += n
                    left -= n
                    err = pump_advance(&self.pump, n)
            self.check(err)
        finally:
            PyBuffer_Release(&view)

    cdef int let_go(self) except -1:
        """Drop the bytes that are hashed; wait for the oldest where more than a ring's worth is held."""
        cdef uint64_t done, ticket
        cdef digests *d = self.digests
        cdef Py_ssize_t total = 0
        if self.pump.unwritten != NULL:
            return 0  # `retarget` may need them yet
        for _, _, size in self.held:
            total += size
        done = d.ops.done(d)
        while self.held:
            ticket = self.held[0][0]
            if ticket > done:
                if total <= PUMP_RING:
                    break
                with nogil:
                    d.ops.wait(d, ticket)
            total -= self.held[0][2]
            del self.held[0]
        return 0

    def flush(self):
        """Send the open block on its way although it is not full."""
        cdef int err
        self.alive()
        with nogil:
            err = pump_flush(&self.pump)
        self.check(err)

    @property
    def unwritten_at(self):
        """How many bytes of the target are good after an error of the target."""
        return self.pump.unwritten_at if self.pump.unwritten != NULL else self.pump.size

    def retarget(self, int fd):
        """Go on with another target that holds the first `unwritten_at` bytes already."""
        cdef int err
        self.alive()
        with nogil:
            pump_set_target(&self.pump, fd)
            err = pump_resume(&self.pump)
        self.check(err)

    def finish(self):
        """Hash and write what is left, give the target its length, and each `EngineDigest` its result.

        :return: the size in bytes.
        """
        cdef int err
        cdef unsigned n, i = 0
        cdef unsigned char out[ENGINE_DIGEST_SIZE]
        cdef EngineDigest one
        cdef blocks_t found
        self.alive()
        with nogil:
            err = pump_finish(&self.pump)
        self.check(err)
        for one in self.engine_digests:
            n = engine_digest(self.engine, i, out)
            one.result = (<char *>out)[:n]
            i += 1
        if self.block_digests is not None:
            if blocks_finish(self.blocks, &found) != 0:
                raise MemoryError()
            self.block_digests.result = ((<char *>found.table)[:found.len], (<char *>found.rest)[:found.rest_len])
        return self.pump.size


def engine_algorithms():
    """The names of the algorithms that the hash engine has, as hashlib has them; none on a machine without kernels."""
    return () if engine_kernels() == NULL else tuple(ALGORITHM)


def kernel():
    """The name of the engine's kernels in use; "" on a machine without."""
    cdef const char *name = engine_kernels()
    return "" if name == NULL else name.decode()


def kernels():
    """The names of all kernels that are compiled in; `select_kernel` tells which can run here."""
    cdef const char *const *name = hash_kernel_names
    names = []
    while name[0] != NULL:
        names.append(name[0].decode())
        name += 1
    return tuple(names)


def select_kernel(str name):
    """Use the kernels of this name (None: the best this machine has) for all streams to come; none may be open.

    :raises ValueError: there are none of this name, or they cannot run here.
    """
    cdef const char *why
    cdef bytes encoded = b"" if name is None else name.encode()
    cdef const char *wanted = NULL
    if name is not None:
        wanted = encoded
    why = engine_select(wanted)
    if why != NULL:
        raise ValueError(why.decode())


def engine_counters():
    """What the hash engine of this process has done so far: streams, live, steps, lanes, bytes, helpers."""
    cdef stats_t stats
    with nogil:
        engine_stats(&stats)
    return {
        "streams": stats.streams,
        "live": stats.live,
        "steps": stats.steps,
        "lanes": stats.lanes,
        "bytes": stats.bytes,
        "helpers": stats.helpers,
    }


def kernel_rates(str name not None, bint with_md5=False):
    """The engine's rates on this processor, measured now or earlier in this process.

    :param with_md5: beside MD5 of the same bytes.
    :return: {streams side by side: bytes per second, all together, on one core}
    """
    cdef unsigned widths[WAYS_MAX]
    cdef double rates[WAYS_MAX]
    cdef hash_algorithm a = (<EngineDigest>EngineDigest(name)).algorithm
    cdef unsigned n
    with nogil:
        n = engine_rates(a, with_md5, widths, rates)
    return {widths[i]: rates[i] for i in range(n)}


def expect_stream():
    """The calling thread will soon have a `Pump` read a regular file: while many do, some may wait for it a moment."""
    with nogil:
        crew_expect()


def expect_no_stream():
    """It does not after all.  May be called in any case."""
    with nogil:
        crew_expect_no_more()


def cores():
    """How many processors this process may keep busy: affinity, control group and `limit_cores`."""
    return cores_usable()


def limit_cores(int n):
    """Use no more than `n` processors for hashing; 0: what the process may use."""
    cores_limit(n)


cdef dict ALGORITHM = {hash_info[a].name.decode(): a for a in range(HASH_ALGORITHMS)}


def hash_once(data, names):
    """Hash small bytes-like `data` on the calling thread.

    :param names: up to four of `engine_algorithms`.
    :return: the digests in hexadecimal, in the order of `names`.
    """
    cdef Py_buffer view
    cdef hash_algorithm algorithms[ENGINE_DIGESTS]
    cdef unsigned char out[ENGINE_DIGESTS][64]
    cdef unsigned n = 0, i
    for name in names:
        if n == ENGINE_DIGESTS:
            raise ValueError("too many digests")
        algorithms[n] = <hash_algorithm><int>ALGORITHM[name]
        n += 1
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            objects_once(algorithms, n, view.buf, <size_t>view.len, out)
    finally:
        PyBuffer_Release(&view)
    return tuple([(<char *>out[i])[:hash_info[<unsigned>algorithms[i]].digest].hex() for i in range(n)])


def hash_many(pieces, names):
    """Hash many small bytes-like objects on the calling thread, in as many lanes as pay.

    :param pieces: a sequence.
    :param names: up to four of `engine_algorithms`.
    :return: for each of the pieces its digests in hexadecimal, in the order of `names`.
    """
    cdef hash_algorithm algorithms[ENGINE_DIGESTS]
    cdef Py_ssize_t count = len(pieces), taken = 0, i
    cdef unsigned n = 0, j
    cdef int err
    cdef Py_buffer *views = NULL
    cdef whole_t *objects = NULL
    for name in names:
        if n == ENGINE_DIGESTS:
            raise ValueError("too many digests")
        algorithms[n] = <hash_algorithm><int>ALGORITHM[name]
        n += 1
    try:
        views = <Py_buffer *>malloc(count * sizeof(Py_buffer) + 1)
        objects = <whole_t *>malloc(count * sizeof(whole_t) + 1)
        if views == NULL or objects == NULL:
            raise MemoryError()
        for i in range(count):
            PyObject_GetBuffer(pieces[i], &views[i], PyBUF_SIMPLE)
            taken += 1
            objects[i].data = views[i].buf
            objects[i].len = <size_t>views[i].len
        with nogil:
            err = objects_many(algorithms, n, objects, <size_t>count)
        check(err)
        return [
            tuple([
                (<char *>objects[i].digest[j])[:hash_info[<unsigned>algorithms[j]].digest].hex() for j in range(n)
            ])
            for i in range(count)
        ]
    finally:
        for i in range(taken):
            PyBuffer_Release(&views[i])
        libc_free(views)
        libc_free(objects)


def is_zero(data):
    """Are all bytes of the bytes-like `data` zero?"""
    cdef Py_buffer view
    cdef bint zero
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            zero = pump_is_zero(view.buf, <size_t>view.len)
        return zero
    finally:
        PyBuffer_Release(&view)


def reserve(int fd, uint64_t size):
    """Allocate `size` bytes for the empty file where that pays (ext4, xfs); its length stays 0.

    :return: True if the space is reserved now.
    :raises OSError: ENOSPC, EDQUOT, EFBIG: it is not to be had.
    """
    cdef int err
    with nogil:
        err = fsops_reserve(fd, size)
    return check(err) == 1


def trim(int fd, uint64_t size):
    """Release what is reserved behind the file's length `size`."""
    cdef int err
    with nogil:
        err = fsops_trim(fd, size)
    check(err)


def link_fd(int fd, int dirfd, bytes name not None):
    """Name the nameless file (O_TMPFILE); FileExistsError if the name is taken."""
    cdef int err
    cdef const char *to = name
    with nogil:
        err = fsops_link_fd(fd, dirfd, to)
    check(err)


def rename_noreplace(int dirfd, bytes src not None, bytes dst not None):
    """Rename within a directory; FileExistsError if the name is taken."""
    cdef int err
    cdef const char *a = src
    cdef const char *b = dst
    with nogil:
        err = fsops_rename(dirfd, a, b)
    check(err)


def resident(int fd, uint64_t offset, size_t length):
    """Which pages (`PAGE_SIZE` bytes) of a file are in the page cache, from `offset`, a multiple of that, on.

    :return: a byte for each page, odd if it is there; all are where the caller has no right to know.
    :raises OSError: the file cannot be mapped.
    """
    cdef bytearray pages = bytearray((length + PUMP_PAGE - 1) // PUMP_PAGE)
    cdef unsigned char *p = pages
    cdef int err
    if length == 0:
        return pages
    with nogil:
        err = fsops_resident(fd, offset, length, p)
    check(err)
    return pages


def block_digests(data, size_t block_size):
    """XXH3 of 128 bits of each block of `data`, without the GIL.

    :param data: any number of whole blocks.
    :param block_size: more than 240.
    :return: the digests, 16 bytes each, one after the other.
    """
    cdef Py_buffer view
    cdef xxh3_t hash
    cdef size_t i, n
    if block_size <= XXH3_SHORT or engine_kernels() == NULL:
        raise ValueError(f"there is no XXH3 of blocks of {block_size} bytes here")
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        n = <size_t>view.len // block_size
        if n * block_size != <size_t>view.len:
            raise ValueError("the last block is not whole")
        digests = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(n * XXH3_DIGEST))
        out = <unsigned char *>PyBytes_AS_STRING(digests)
        with nogil:
            for i in range(n):
                xxh3_begin(&hash)
                xxh3_update(&hash, ways_kernels(), <char *>view.buf + i * block_size, block_size)
                xxh3_digest(&hash, out + i * XXH3_DIGEST)
        return digests
    finally:
        PyBuffer_Release(&view)


@cython.final
cdef class BusGuard:
    """As long as it is open, a page of a mapped file that is gone is no SIGBUS: see busguard.h.

    :param memory: an `mmap.mmap`, which cannot be closed meanwhile.
    :raises OSError: there cannot be a guard now; read the file.
    """
    cdef Py_buffer view
    cdef int guard
    cdef pid_t owner

    def __cinit__(self, memory):
        self.owner = getpid()
        self.guard = -1
        PyObject_GetBuffer(memory, &self.view, PyBUF_SIMPLE)
        cdef int found = busguard_begin(self.view.buf, <size_t>self.view.len)
        if found < 0:
            PyBuffer_Release(&self.view)
            check(found)
        self.guard = found

    @property
    def spoilt(self):
        """Something was missing: what was seen is not what the file holds."""
        return self.guard < 0 or self.owner != getpid() or busguard_spoilt(self.guard)

    def close(self):
        """May be repeated."""
        if self.guard >= 0:
            if self.owner == getpid():  # a forked child has begun anew
                busguard_end(self.guard)
            self.guard = -1
            PyBuffer_Release(&self.view)

    def __dealloc__(self):
        self.close()


def store_object(bytes directory not None, str name not None, data, int mode, bint sync_file, bint sync_dir,
                 bytes attribute=None, bytes value=None):
    """Make a small file appear whole or not at all.

    :param name: without NUL.

    :param mode: permission bits, or -1 for what the umask leaves of 0666.
    :param attribute: a user attribute to set to `value` where there is room for such.
    :raises OSError: EEXIST: the name is taken; EOPNOTSUPP, EISDIR or EINVAL: there are no nameless files
        on this file system.
    """
    cdef Py_buffer view
    cdef object_t o
    cdef int err
    cdef bytes encoded = PyUnicode_EncodeFSDefault(name)
    o.directory = directory
    o.name = encoded
    o.attr = NULL
    o.attr_value = NULL
    o.attr_len = 0
    if attribute is not None and value is not None:
        o.attr = attribute
        o.attr_value = <const char *>value
        o.attr_len = len(value)
    o.mode = mode
    o.sync_file = sync_file
    o.sync_dir = sync_dir
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    o.data = view.buf
    o.len = <size_t>view.len
    try:
        with nogil:
            err = fsops_store(&o)
    finally:
        PyBuffer_Release(&view)
    check(err)


def sync_filesystem(int fd):
    """syncfs(2): all that was written to the file system of `fd` is on its disk.

    :raises OSError: an error of writing back, of whatever file, since `fd` was opened (Linux 5.8 and later).
    """
    cdef int err
    with nogil:
        err = fsops_syncfs(fd)
    check(err)


def filesystem_kind(int fd):
    """The magic number of the file system of `fd`, see statfs(2)."""
    cdef int64_t kind
    with nogil:
        kind = fsops_kind(fd)
    check(<int>kind if kind < 0 else 0)
    return kind


# Many small objects take each step together: every call below gives up the GIL once for all of them, which
# among threads costs more than the system calls of one object.


def read_files(paths, buffer, Py_ssize_t most):
    """Read small regular files whole into `buffer`, one behind the other.

    :param paths: a list of `bytes` without NUL.
    :param most: a file may have up to this many bytes.
    :return: a list of each file's length; or -errno, -EFBIG where it is longer than `most` or than what is left
        of the buffer, or no regular file.
    """
    cdef Py_buffer view
    cdef Py_ssize_t n = len(paths), i, room
    cdef ssize_t got
    cdef char *p
    cdef char *end
    cdef const char **names = NULL
    cdef ssize_t *lengths = NULL
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    try:
        names = <const char **>malloc(n * sizeof(char *) + 1)
        lengths = <ssize_t *>malloc(n * sizeof(ssize_t) + 1)
        if names == NULL or lengths == NULL:
            raise MemoryError()
        held = tuple(paths)
        for i in range(n):
            names[i] = <bytes?>held[i]
        p = <char *>view.buf
        end = p + view.len
        with nogil:
            for i in range(n):
                room = end - p
                got = fsops_read(names[i], p, <size_t>(most if most < room else room))
                lengths[i] = got
                if got > 0:
                    p += got
        return [lengths[i] for i in range(n)]
    finally:
        libc_free(names)
        libc_free(lengths)
        PyBuffer_Release(&view)


def draft_objects(int dirfd, pieces, int mode, bint sync):
    """Make a nameless file of each of the bytes-like `pieces` in the directory `dirfd`.

    :param mode: permission bits, or -1 for what the umask leaves of 0666.
    :param sync: put them on the disk.
    :return: a list of descriptors, or -errno; for `link_objects`, then `close_objects`.
    """
    cdef Py_ssize_t n = len(pieces), i, taken = 0
    cdef Py_buffer *views = <Py_buffer *>malloc(n * sizeof(Py_buffer) + 1)
    cdef int *fds = <int *>malloc(n * sizeof(int) + 1)
    try:
        if views == NULL or fds == NULL:
            raise MemoryError()
        for i in range(n):
            PyObject_GetBuffer(pieces[i], &views[i], PyBUF_SIMPLE)
            taken += 1
        with nogil:
            for i in range(n):
                fds[i] = fsops_draft(dirfd, views[i].buf, <size_t>views[i].len, mode)
            if sync:
                fsops_sync_many(fds, <size_t>n)
        try:
            return [fds[i] for i in range(n)]
        except MemoryError:
            for i in range(n):
                if fds[i] >= 0:
                    close(fds[i])
            raise
    finally:
        for i in range(taken):
            PyBuffer_Release(&views[i])
        libc_free(views)
        libc_free(fds)


def link_objects(int dirfd, fds, names):
    """Name nameless files; what has such a name stays as it is (EEXIST).

    :return: a list of 0 or -errno.
    """
    cdef Py_ssize_t n = len(fds), i
    cdef int *results = <int *>malloc(n * sizeof(int) + 1)
    cdef const char **to = <const char **>malloc(n * sizeof(char *) + 1)
    try:
        if results == NULL or to == NULL:
            raise MemoryError()
        held = tuple(names)
        for i in range(n):
            results[i] = fds[i]
            to[i] = <bytes?>held[i]
        with nogil:
            for i in range(n):
                results[i] = fsops_link_fd(results[i], dirfd, to[i])
        return [results[i] for i in range(n)]
    finally:
        libc_free(results)
        libc_free(to)


def close_objects(fds):
    """Close descriptors.

    :return: a list of 0 or -errno.
    """
    cdef Py_ssize_t n = len(fds), i
    cdef int *results = <int *>malloc(n * sizeof(int) + 1)
    try:
        if results == NULL:
            raise MemoryError()
        for i in range(n):
            results[i] = fds[i]
        with nogil:
            for i in range(n):
                results[i] = -errno if close(results[i]) != 0 else 0
        return [results[i] for i in range(n)]
    finally:
        libc_free(results)


# -- reading: ext/serve.c -----------------------------------------------------------------------------------

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_CLEAR, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EBADF, EBUSY, ENODATA, EOPNOTSUPP

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    bytes PyUnicode_EncodeFSDefault(object text)

cdef extern from *:
    """
    /* A bytes object that nothing refers to but ourselves is as good as a new one, once its hash is forgotten. */
    #ifdef Py_GIL_DISABLED
    #define fastfs_unshared(o) 0 /* its references are counted in several places */
    #else
    #define fastfs_unshared(o) (Py_REFCNT(o) == 1)
    #endif
    static inline void fastfs_forget_hash(PyObject *o)
    {
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
        ((PyBytesObject *)o)->ob_shash = -1;
    #pragma GCC diagnostic pop
    }
    """
    bint fastfs_unshared(PyObject *o)
    void fastfs_forget_hash(PyObject *o)

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "serve.h" nogil:
    enum: SERVE_SENDFILE, SERVE_MAPPED, SERVE_MEMORY
    enum serve_side:
        SERVE_SOURCE
    ctypedef struct file_t "struct serve_file":
        int fd
    ctypedef struct serve_t "struct serve":
        int fd "in"
        int out
        bint socket
        int way
        int64_t offset
        uint64_t left
        int wait_ms
        serve_side side
    void serve_file_init(file_t *f, int fd)
    bint serve_file_enter(file_t *f)
    int serve_file_leave(file_t *f)
    int serve_file_claim(file_t *f)
    int serve_file_unclaim(file_t *f)
    bint serve_file_seize(file_t *f)
    void serve_file_release(file_t *f)
    int serve_file_close(file_t *f)
    bint serve_file_closed(const file_t *f)
    Py_ssize_t serve_read(int fd, iovec *iov, int n, int64_t offset, bint nowait)
    Py_ssize_t serve_fill(int fd, void *data, size_t n, int64_t offset)
    void serve_advise(int fd, int64_t offset, uint64_t length)
    int serve_run(serve_t *s, uint64_t budget)
    int serve_widen(int out)
    void serve_narrow(int out, int before)
    ctypedef struct copy_t "struct serve_copy":
        int fd "in"
        int out
        bint shared
        int64_t start "from"
        int64_t to
        uint64_t left
        serve_side side
    int serve_copy(copy_t *c, uint64_t budget)
    int serve_clone_range(int fd, int64_t start, uint64_t count, int out, int64_t to)
    int serve_extent(int fd, int64_t *start, int64_t *stop, int64_t end)
    int serve_open(const char *path, int64_t *size)
    bint serve_remote(int fd)
    bint serve_local_peer(int fd)

cdef extern from "blockread.h" nogil:
    enum: BLOCKREAD_PIECES, BLOCKREAD_SLOTS
    ctypedef struct blockread_t "struct blockread":
        pass
    blockread_t *blockread_new(file_t *file, unsigned each, size_t piece)
    void blockread_free(blockread_t *b)
    void blockread_hire(blockread_t *b)
    bint blockread_has_room(blockread_t *b)
    void blockread_offer(blockread_t *b, int64_t offset, char **memory)
    unsigned blockread_offered(const blockread_t *b)
    int blockread_next(blockread_t *b, unsigned char *digest)
    void blockread_forget(blockread_t *b)

BY_SENDFILE = SERVE_SENDFILE
BY_MAPPING = SERVE_MAPPED
BY_MEMORY = SERVE_MEMORY

# How far pieces are read ahead, by one system call.  512 MiB took 62 ms at 64 KiB, 57 at 256, 50 at 512 and 47 at 1024;
# the memory is that of each reader.
cdef Py_ssize_t AHEAD = 512 * 1024
cdef enum: AHEAD_MAX = 64

cdef uint64_t SEND_BUDGET = 64 * 1024 * 1024  # some 30 ms: how long a signal may have to wait


cdef int claim(file_t *file) except -1:
    cdef int err = serve_file_claim(file)
    if err == -EBUSY:
        raise ValueError("the reader is in use by another thread")
    if err < 0:
        raise ValueError("the reader is closed")
    return 0


cdef void give_back(int fd) noexcept:
    """Close what a `serve_file_` function has told to close.  It may hang, and others want the GIL meanwhile."""
    if fd >= 0:
        with nogil:
            close(fd)


cdef char *writable_piece(PyObject **kept, Py_ssize_t size) except NULL:
    """The memory of a piece of which nobody else knows: the one that is kept, or a new one in its place."""
    if kept[0] != NULL:
        if fastfs_unshared(kept[0]) and PyBytes_GET_SIZE(<object>kept[0]) == size:
            fastfs_forget_hash(kept[0])
            return PyBytes_AS_STRING(<object>kept[0])
        Py_CLEAR(kept[0])
    piece = PyBytes_FromStringAndSize(NULL, size)
    Py_INCREF(piece)
    kept[0] = <PyObject *>piece
    return PyBytes_AS_STRING(piece)


cdef class FileRange:
    """A range of an open file: in pieces, into buffers, out through descriptors.

    :param fd: a descriptor, owned by this object from now on, that may be closed while other threads use it.
    :param path: for messages.
    :param views: iterating gives read-only memoryviews of page-aligned memory instead of `bytes`.  The memory is
        used again when no view of it is left.

    Errors are what `_error` makes of an errno; ENODATA: the file ends before the range does.
    """

    cdef file_t file
    cdef readonly object path
    cdef readonly int64_t offset
    cdef readonly int64_t length
    cdef readonly bint views
    cdef int64_t end
    cdef int64_t position   # of what was handed out
    cdef Py_ssize_t chunk
    cdef bint advised
    #: Iterated to the end.
    cdef readonly bint finished
    cdef bint blocking      # the file system cannot tell what is in memory
    # Pieces that are read but not handed out yet: kept[at:ready], or the part of `view` behind `at` chunks.
    cdef Py_ssize_t at
    cdef Py_ssize_t ready
    cdef Py_ssize_t most    # pieces to read at once, the next time
    cdef PyObject *kept[AHEAD_MAX]
    cdef Ring ring
    cdef object view
    cdef list rings

    def __cinit__(self, int fd, *args, **kwargs):
        serve_file_init(&self.file, fd)
        for i in range(AHEAD_MAX):
            self.kept[i] = NULL

    def __init__(self, int fd, path, offset, int64_t length, Py_ssize_t chunk_size, *, bint views=False):
        if offset < 0 or length < 0:
            raise ValueError("a range has no negative offset or length")
        self.path = path
        # A range of nothing may begin anywhere.
        self.offset = self.position = offset if length else min(offset, PY_SSIZE_T_MAX)
        self.length = length
        self.end = self.offset + length
        self.views = views
        self.rings = []
        self.chunk_size = chunk_size

    def __dealloc__(self):
        give_back(serve_file_close(&self.file))
        for i in range(AHEAD_MAX):
            Py_CLEAR(self.kept[i])

    def _error(self, int number):
        """The exception for an errno; subclasses have their own."""
        return OSError(number, os.strerror(number))

    @property
    def chunk_size(self):
        """Bytes in a piece."""
        return self.chunk

    @chunk_size.setter
    def chunk_size(self, Py_ssize_t size):
        if size < 1:
            raise ValueError("chunk_size must be 1 or more")
        self.chunk = size
        self.forget()

    cdef void forget(self):
        """Drop what is read ahead."""
        self.at = self.ready = 0
        self.most = 1

    @property
    def closed(self):
        return serve_file_closed(&self.file)

    def close(self):
        """Give the descriptor back, as soon as no other thread uses it.  May be repeated."""
        cdef int err = serve_file_claim(&self.file)
        give_back(serve_file_close(&self.file))
        if err == 0:  # otherwise a thread may be reading into this memory
            try:
                self.drop()
            finally:
                give_back(serve_file_unclaim(&self.file))

    cdef int drop(self) except -1:
        """Let go of all memory."""
        self.forget()
        self.ring = self.view = None
        self.rings = []
        for i in range(AHEAD_MAX):
            Py_CLEAR(self.kept[i])
        return 0

    def fileno(self):
        """The descriptor.  Whoever uses it must not outlive the reader.

        :raises ValueError: closed.
        """
        if serve_file_closed(&self.file):
            raise ValueError("the reader is closed")
        return self.file.fd

    def _dup(self):
        """Another descriptor of the file.

        :raises ValueError: closed.
        """
        if not serve_file_enter(&self.file):
            raise ValueError("the reader is closed")
        try:
            return os.dup(self.file.fd)
        finally:
            give_back(serve_file_leave(&self.file))

    def tell(self):
        """The position in the file, not in the range."""
        return self.position

    def _move(self, int64_t position):
        self.claim()
        self.position = position
        self.forget()
        give_back(serve_file_unclaim(&self.file))

    cdef int claim(self) except -1:
        return claim(&self.file)

    cdef int advise(self) except -1:
        """Once, and not for what is read at one go anyway."""
        if not self.advised:
            self.advised = True
            if self.end - self.position > 128 * 1024:
                with nogil:
                    serve_advise(self.file.fd, self.position, <uint64_t>(self.end - self.position))
        return 0

    cdef int fill(self, char *data, Py_ssize_t size, int64_t start) except -1:
        """Read `size` bytes from `start` on, whole."""
        cdef Py_ssize_t got
        cdef Py_ssize_t done = 0
        while done < size:
            with nogil:
                got = serve_fill(self.file.fd, data + done, <size_t>(size - done), start + done)
            if got == -EINTR:
                PyErr_CheckSignals()
                continue
            if got <= 0:
                raise self._error(-<int>got if got < 0 else ENODATA)
            done += got
        return 0

    # -- pieces ---------------------------------------------------------------------------------------------

    cdef object prepare(self, Py_ssize_t n, Py_ssize_t last, iovec *iov):
        """Memory for `n` pieces, the last of `last` bytes; the number of buffers."""
        cdef Py_ssize_t i, size
        cdef Ring ring
        if self.views and self.chunk <= PUMP_RING:
            self.view = None
            for ring in self.rings:
                if ring.exports == 0:
                    break
            else:
                # One is what the consumer still looks at, the other takes what comes next.
                ring = take_ring()
                self.rings = [*self.rings[-1:], ring]
            self.ring = ring
            self.view = memoryview(ring).toreadonly()
            iov[0].iov_base = ring.memory
            iov[0].iov_len = <size_t>((n - 1) * self.chunk + last)
            return 1
        for i in range(n):
            size = self.chunk if i < n - 1 else last
            iov[i].iov_base = writable_piece(&self.kept[i], size)
            iov[i].iov_len = <size_t>size
        return n

    cdef int ahead(self, bint nowait) except -1:
        """Read the next pieces; 0: it would have to wait for them."""
        cdef iovec iov[AHEAD_MAX]
        cdef int64_t left = self.end - self.position
        cdef Py_ssize_t n = self.most
        cdef Py_ssize_t got, first, last
        cdef int buffers
        self.at = self.ready = 0
        if n > (left - 1) // self.chunk + 1:
            n = <Py_ssize_t>((left - 1) // self.chunk + 1)
        last = <Py_ssize_t>min(left - (n - 1) * self.chunk, <int64_t>self.chunk)
        first = self.chunk if n > 1 else last
        buffers = self.prepare(n, last, iov)
        while True:
            with nogil:
                got = serve_read(self.file.fd, iov, buffers, self.position, nowait)
            if got != -EINTR:
                break
            PyErr_CheckSignals()
        if nowait and (got == -EAGAIN or 0 <= got < first):
            return 0
        if nowait and got == -EOPNOTSUPP:
            self.blocking = True
            return 0
        if 0 < got < first:  # a signal came, or the file ends within the piece
            self.fill(<char *>self.memory() + got, first - got, self.position + got)
            got = first
        if got <= 0:
            raise self._error(-<int>got if got < 0 else ENODATA)
        self.ready = n if got == (n - 1) * self.chunk + last else got // self.chunk
        # More the next time: whoever wants the first piece only does not wait for the others.
        self.most = min(2 * self.most, <Py_ssize_t>AHEAD_MAX, max(AHEAD // self.chunk, 1))
        return 1

    cdef void *memory(self):
        """Where the first piece is."""
        if self.views and self.chunk <= PUMP_RING:
            return self.ring.memory
        return PyBytes_AS_STRING(<object>self.kept[0])

    cdef object take(self):
        """The next of the pieces that are read."""
        cdef Py_ssize_t at = self.at
        cdef Py_ssize_t size = <Py_ssize_t>min(<int64_t>self.chunk, self.end - self.position)
        self.at += 1
        self.position += size
        if self.views and self.chunk <= PUMP_RING:
            return self.view[at * self.chunk:at * self.chunk + size]
        piece = <object>self.kept[at]
        if self.chunk > AHEAD:  # too much to be kept
            Py_CLEAR(self.kept[at])
        return memoryview(piece) if self.views else piece

    def _finish(self):
        """Iterated to the end."""
        self.finished = True
        self.close()

    def __iter__(self):
        return self

    def __next__(self):
        piece = self._piece(False)
        if piece is None:
            raise StopIteration
        return piece

    def _piece(self, bint nowait):
        """The next piece; None at the end, NotImplemented if it would have to wait for it and must not."""
        if self.finished:
            return None
        if self.position >= self.end:
            self._finish()
            return None
        self.claim()
        try:
            if self.at == self.ready:
                self.advise()
                if nowait and self.blocking:
                    return NotImplemented
                if not self.ahead(nowait):
                    return NotImplemented
            return self.take()
        finally:
            give_back(serve_file_unclaim(&self.file))

    # -- buffers --------------------------------------------------------------------------------------------

    def read(self, size=-1):
        """Up to `size` bytes, all that is left without one; fewer only at the end of the range, then b""."""
        cdef int64_t left, want
        self.claim()
        try:
            left = self.end - self.position
            want = left if size is None or size < 0 or size > left else size
            piece = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>want)
            if want:
                self.forget()
                self.fill(PyBytes_AS_STRING(piece), <Py_ssize_t>want, self.position)
                self.position += want
            return piece
        finally:
            give_back(serve_file_unclaim(&self.file))

    def readinto(self, buffer):
        """Fill `buffer` from the range; the number of bytes, less than its length only at the end."""
        cdef Py_buffer view
        cdef Py_ssize_t size
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            self.claim()
            try:
                size = <Py_ssize_t>min(<int64_t>view.len, self.end - self.position)
                if size > 0:
                    self.advise()
                    self.forget()
                    self.fill(<char *>view.buf, size, self.position)
                    self.position += size
                return max(size, 0)
            finally:
                give_back(serve_file_unclaim(&self.file))
        finally:
            PyBuffer_Release(&view)

    # -- descriptors ----------------------------------------------------------------------------------------

    def _send(self, int out, int64_t start, uint64_t count, int way, bint socket, int wait_ms):
        """Move bytes from `start`, a position in the file, to a descriptor; the reader's position is not used.

        :param way: ``BY_SENDFILE``, ``BY_MAPPING`` or ``BY_MEMORY``; another one where that is not to be had.
        :param wait_ms: how long to wait for `out`; -1: for ever, 0: EAGAIN.
        :return: (bytes moved, errno or 0, whether that error is the file's); ENODATA of the file: it ends too early,
            EAGAIN and ETIMEDOUT of the target: `wait_ms` are over.
        """
        cdef serve_t s
        cdef int err
        cdef int before = 0
        s.out = out
        s.socket = socket
        s.way = way
        s.offset = start
        s.left = count
        s.wait_ms = wait_ms
        if not serve_file_enter(&self.file):
            raise ValueError("the reader is closed")
        try:
            s.fd = self.file.fd
            if socket and count >= <uint64_t>AHEAD:
                before = serve_widen(out)
            while True:
                with nogil:
                    err = serve_run(&s, SEND_BUDGET)
                PyErr_CheckSignals()
                if err != 1:
                    break
            return count - s.left, -err, s.side == SERVE_SOURCE
        finally:
            if before:
                serve_narrow(out, before)
            give_back(serve_file_leave(&self.file))


# A helper takes 30 us to be started, and reading ahead what nobody wants takes longer.
cdef int64_t READ_BEFORE_HELP = 4 * 1024 * 1024
# Of blocks that are read at once.
cdef Py_ssize_t AHEAD_BYTES = 16 * 1024 * 1024


@cython.final
cdef class CheckedBlocks:
    """Whole blocks of an open file, each in pieces and with its digest, one after the other: see blockread.h.

    A second thread reads ahead once 4 MiB were read in order, up to four blocks and 16 MiB, where there is a processor
    to spare.  It lives until `close`.

    :param fd: a descriptor, owned by this object from now on.
    :param end: where the last block ends, at most.
    :param block_size: more than 240; a multiple of `piece_size`, 64 times that at most.
    :raises ValueError: other sizes.
    :raises RuntimeError: there is no XXH3 for this machine.
    """

    cdef file_t file
    cdef blockread_t *blocks
    cdef readonly Py_ssize_t piece_size
    cdef Py_ssize_t block_size, each
    cdef int64_t end
    cdef int64_t start      # of what is read in order
    cdef int64_t position   # of the next block
    # Memory of blocks, which set each is in (the one at `position` first), and which sets are in use.
    cdef PyObject *kept[BLOCKREAD_SLOTS][BLOCKREAD_PIECES]
    cdef int order[BLOCKREAD_SLOTS]
    cdef unsigned used

    def __cinit__(self, int fd, *args):
        serve_file_init(&self.file, fd)
        memset(self.kept, 0, sizeof(self.kept))

    def __init__(self, int fd, int64_t end, Py_ssize_t block_size, Py_ssize_t piece_size):
        if self.blocks != NULL or piece_size < 1 or not can_check(block_size, piece_size):
            raise ValueError(f"{block_size} bytes in pieces of {piece_size}")
        if engine_kernels() == NULL:
            raise RuntimeError("there is no XXH3 for this machine")
        self.block_size = block_size
        self.piece_size = piece_size
        self.each = block_size // piece_size
        self.end = end
        self.start = self.position = -1
        self.blocks = blockread_new(&self.file, <unsigned>self.each, <size_t>piece_size)
        if self.blocks == NULL:
            raise MemoryError()

    def __dealloc__(self):
        self.drop()
        give_back(serve_file_close(&self.file))

    cdef void drop(self):
        """Let go of the thread and all memory."""
        with nogil:
            blockread_free(self.blocks)
        self.blocks = NULL
        for i in range(BLOCKREAD_SLOTS):
            for j in range(BLOCKREAD_PIECES):
                Py_CLEAR(self.kept[i][j])

    cdef void reap(self):
        """Whoever closes it while another thread reads leaves this to that one."""
        if serve_file_seize(&self.file):
            self.drop()
            serve_file_release(&self.file)

    def close(self):
        """Give descriptor and thread back, as soon as no other thread uses them.  May be repeated."""
        give_back(serve_file_close(&self.file))
        self.reap()

    cdef int offer(self) except -1:
        """Have the next block read, and those that follow if there is room for them."""
        cdef char *memory[BLOCKREAD_PIECES]
        cdef unsigned n, i
        cdef int which
        cdef bint ahead = self.position - self.start >= READ_BEFORE_HELP and self.block_size <= AHEAD_BYTES // 2
        if ahead:
            blockread_hire(self.blocks)
        while blockread_has_room(self.blocks):
            n = blockread_offered(self.blocks)
            if n == 0:
                self.used = 0
            elif not ahead or (n + 1) * self.block_size > AHEAD_BYTES:
                break
            if self.position + (n + 1) * self.block_size > self.end:
                break
            which = 0
            while self.used >> which & 1:
                which += 1
            try:
                for i in range(self.each):
                    memory[i] = writable_piece(&self.kept[which][i], self.piece_size)
            except MemoryError:
                if n > 0:
                    break
                raise
            self.order[n] = which
            self.used |= 1u << which
            blockread_offer(self.blocks, self.position + n * self.block_size, memory)
        return 0

    def read(self, int64_t position):
        """The block at `position`: its pieces, the first one last, and its digest, XXH3 of 128 bits.

        :raises OSError: it cannot be read; ENODATA: the file ends before the block does.
        :raises ValueError: closed, or in use by another thread.
        """
        cdef unsigned char digest[XXH3_DIGEST]
        cdef list pieces = []
        cdef Py_ssize_t i
        cdef int which, err
        claim(&self.file)
        try:
            if position != self.position:
                with nogil:
                    blockread_forget(self.blocks)
                    if self.end - position > 128 * 1024:
                        serve_advise(self.file.fd, position, <uint64_t>(self.end - position))
                self.start = self.position = position
            self.offer()
            if blockread_offered(self.blocks) == 0:
                raise OSError(ENODATA, os.strerror(ENODATA))
            while True:
                with nogil:
                    err = blockread_next(self.blocks, digest)
                if err != -EINTR:
                    break
                PyErr_CheckSignals()
            which = self.order[0]
            self.used &= ~(1u << which)
            memmove(self.order, self.order + 1, sizeof(self.order) - sizeof(self.order[0]))
            self.position += self.block_size
            if err == -EBADF:
                raise ValueError("the reader is closed")
            if err < 0:
                raise OSError(-err, os.strerror(-err))
            for i in range(self.each - 1, -1, -1):
                pieces.append(<object>self.kept[which][i])
                if self.block_size > AHEAD_BYTES // 2:  # too much to be kept
                    Py_CLEAR(self.kept[which][i])
            return pieces, (<char *>digest)[:XXH3_DIGEST]
        finally:
            give_back(serve_file_unclaim(&self.file))
            self.reap()


cpdef bint can_check(Py_ssize_t block_size, Py_ssize_t piece_size):
    """Can `CheckedBlocks` have blocks of this size in such pieces?"""
    return block_size > XXH3_SHORT and block_size % piece_size == 0 and block_size // piece_size <= BLOCKREAD_PIECES


def open_regular(str path):
    """Open a regular file for reading, without following a link in its place or waiting for a FIFO or a device.

    :return: (descriptor, size in bytes)
    :raises OSError: ENOENT also where there is something else.
    :raises ValueError: no path in the file system's encoding.
    """
    cdef bytes encoded = PyUnicode_EncodeFSDefault(path)
    cdef const char *name = encoded
    cdef int64_t size = 0
    cdef int fd
    if b"\0" in encoded:
        raise ValueError("NUL in a path")
    with nogil:
        fd = serve_open(name, &size)
    return check(fd), size


def copy(int fd, int64_t start, int out, int64_t to, uint64_t count, uint64_t budget, bint shared):
    """Copy up to `budget` of `count` bytes between files.

    :param shared: let the file system do it (copy_file_range), where it can.
    :return: (bytes copied, errno or 0, whether that error is the source's); ENODATA: it ends too early.
    """
    cdef copy_t c
    cdef int err
    c.fd = fd
    c.out = out
    c.shared = shared
    c.start = start
    c.to = to
    c.left = count
    with nogil:
        err = serve_copy(&c, budget)
    PyErr_CheckSignals()
    return count - c.left, -min(err, 0), c.side == SERVE_SOURCE


def clone_range(int fd, int64_t start, uint64_t count, int out, int64_t to):
    """Let part of `out` share blocks of `fd`, at multiples of the block size; `count` 0: to the end."""
    cdef int err
    with nogil:
        err = serve_clone_range(fd, start, count, out, to)
    check(err)


def extent(int fd, int64_t start, int64_t end):
    """The first data in ``[start, end)`` as (start, stop); None if there are only holes."""
    cdef int64_t stop = end
    cdef int err
    with nogil:
        err = serve_extent(fd, &start, &stop, end)
    return (start, stop) if check(err) else None


def is_remote(int fd):
    """Is the file kept by a server far away (NFS, SMB, Ceph)?"""
    cdef bint remote
    with nogil:
        remote = serve_remote(fd)
    return remote


def is_local(int fd):
    """Is the other end of a TCP connection on this very machine, as its address tells?"""
    return serve_local_peer(fd)
