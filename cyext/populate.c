#define _GNU_SOURCE
#include "populate.h"
#include "fault.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/utsname.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#define PAGE ((uint64_t)4096)

enum { UNASKED, POPULATE, TOUCH, REFUSED };

/* MADV_POPULATE_READ came with Linux 5.14; sandboxes (gVisor, seccomp filters) may not know it on any kernel. Before 6.9 it
 * tries a page that the disk cannot read again without end, and only SIGKILL gets the thread out ("mm/madvise: make
 * MADV_POPULATE_(READ|WRITE) handle VM_FAULT_RETRY properly"). Asked once, of a page of our own. */
static int way(void) {
    static _Atomic int known = UNASKED;
    int found = atomic_load_explicit(&known, memory_order_relaxed);
    if (found != UNASKED) return found;
    void *page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return TOUCH; /* a bad moment to ask */
    struct utsname system;
    int major = 0, minor = 0;
    if (madvise(page, PAGE, MADV_POPULATE_READ) && errno != EINTR && errno != EAGAIN && errno != ENOMEM)
        found = REFUSED;
    else if (uname(&system) || sscanf(system.release, "%d.%d", &major, &minor) != 2)
        found = TOUCH;
    else
        found = major > 6 || (major == 6 && minor >= 9) ? POPULATE : TOUCH;
    munmap(page, PAGE);
    atomic_store_explicit(&known, found, memory_order_relaxed);
    return found;
}

int hd_populate_refused(void) { return way() == REFUSED; }

/* A plain fault ends in SIGBUS on every kernel. It maps the pages around it that are cached, so few of these reads fault. */
static int touch(const uint8_t *address, uint64_t bytes) {
    int error = 0;
    hd_fault_install();
    HD_GUARD(
        for (uint64_t at = 0; at < bytes; at += PAGE) (void)*(const volatile uint8_t *)(address + at),
        error = EFAULT);
    return error;
}

int hd_map_pages(const uint8_t *address, uint64_t bytes) {
    if (way() != POPULATE) return touch(address, bytes);
    while (madvise((void *)(uintptr_t)address, bytes, MADV_POPULATE_READ)) {
        /* Not for this mapping, or no more since we asked. */
        if (errno == EINVAL || errno == ENOSYS || errno == EPERM) return touch(address, bytes);
        if (errno != EINTR && errno != EAGAIN) return errno;
    }
    return 0;
}
