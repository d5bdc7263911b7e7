#define _GNU_SOURCE
#include "populate.h"
#include "fault.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/utsname.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#define PAGE ((uint64_t)4096)

/* MADV_POPULATE_READ came with Linux 5.14. Before 6.9 it tries a page that the disk cannot read again without end, and
 * only SIGKILL gets the thread out ("mm/madvise: make MADV_POPULATE_(READ|WRITE) handle VM_FAULT_RETRY properly"). */
static int populate_reports_failure(void) {
    struct utsname system;
    int major = 0, minor = 0;
    if (uname(&system) || sscanf(system.release, "%d.%d", &major, &minor) != 2) return 0;
    return major > 6 || (major == 6 && minor >= 9);
}

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
    if (!populate_reports_failure()) return touch(address, bytes);
    while (madvise((void *)(uintptr_t)address, bytes, MADV_POPULATE_READ))
        if (errno != EINTR && errno != EAGAIN) return errno;
    return 0;
}
