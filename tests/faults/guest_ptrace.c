/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded into user-mode Linux, whose kernel has room for the vector registers of a processor up to AVX-512: where there
 * are more (AMX), the host refuses to set a part of them (EFAULT, ptrace(2)) and the guest does not boot.  What the guest
 * does not know of stays what it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

typedef long ptrace_fn(int request, int pid, void *address, void *data);

long ptrace(enum __ptrace_request request, ...)
{
    static ptrace_fn *next;
    static char all[64 * 1024];
    va_list arguments;
    va_start(arguments, request);
    int pid = va_arg(arguments, int);
    void *address = va_arg(arguments, void *);
    struct iovec *part = va_arg(arguments, struct iovec *);
    va_end(arguments);
    if (next == NULL)
        next = (ptrace_fn *)dlsym(RTLD_NEXT, "ptrace");
    if (request != PTRACE_SETREGSET || (long)address != NT_X86_XSTATE)
        return next(request, pid, address, part);
    struct iovec whole = { .iov_base = all, .iov_len = sizeof all };
    if (next(PTRACE_GETREGSET, pid, address, &whole) != 0)
        return -1;
    memcpy(all, part->iov_base, part->iov_len < whole.iov_len ? part->iov_len : whole.iov_len);
    return next(request, pid, address, &whole);
}
