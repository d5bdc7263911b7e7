#define _GNU_SOURCE
#include "mapping.h"
#include "populate.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Numbers from the kernel's uapi headers, which may be older than the kernel that we run on. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#ifndef SYS_mlock2
#define SYS_mlock2 325
#endif
#define PAGE ((uint64_t)4096)

struct cachestat_range { uint64_t off, len; };
struct cachestat_counts { uint64_t cache, dirty, writeback, evicted, recently_evicted; };
struct scan_region { uint64_t start, end, categories; };
struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_PRESENT ((uint64_t)1 << 3)                     /* PAGE_IS_PRESENT, linux/fs.h */
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)          /* PAGEMAP_SCAN, Linux 6.7 */

static uint64_t down(uint64_t x, uint64_t to) { return x / to * to; }
static uint64_t up(uint64_t x, uint64_t to) { return (x + to - 1) / to * to; }
static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t most(uint64_t a, uint64_t b) { return a > b ? a : b; }

hd_mapping *hd_mapping_new(int32_t n) {
    hd_mapping *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->n = n;
    m->huge = 1;
    m->fd = malloc(sizeof(int32_t) * (size_t)n);
    m->base = calloc((size_t)n, sizeof(void *));
    m->size = calloc((size_t)n, sizeof(uint64_t));
    m->reserved = calloc((size_t)n, sizeof(void *));
    m->reserved_bytes = calloc((size_t)n, sizeof(uint64_t));
    if (!m->fd || !m->base || !m->size || !m->reserved || !m->reserved_bytes) {
        m->n = 0;
        hd_mapping_free(m);
        return NULL;
    }
    for (int32_t i = 0; i < n; i++) m->fd[i] = -1;
    return m;
}

void hd_mapping_free(hd_mapping *m) {
    if (!m) return;
    for (int32_t i = 0; i < m->n; i++) {
        if (m->reserved[i]) munmap(m->reserved[i], m->reserved_bytes[i]);
        if (m->fd[i] >= 0) close(m->fd[i]);
    }
    free(m->fd);
    free(m->base);
    free(m->size);
    free(m->reserved);
    free(m->reserved_bytes);
    free(m);
}

int hd_mapping_open(hd_mapping *m, int32_t i, const char *path) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    m->fd[i] = fd;
    if (fstat(fd, &st)) return errno;
    if (!S_ISREG(st.st_mode)) return EINVAL;
    if (st.st_size == 0) return ENODATA;
    uint64_t size = (uint64_t)st.st_size, body = up(size, PAGE);
    /* One readable zero page behind the last: kernels may read 64 bytes past the last row. */
    uint64_t total = body + PAGE + HD_HUGE;
    uint8_t *reserved = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return errno;
    m->reserved[i] = reserved;
    m->reserved_bytes[i] = total;
    uint8_t *base = (uint8_t *)up((uint64_t)(uintptr_t)reserved, HD_HUGE);
    if (mmap(base, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) return errno;
    if (mmap(base + body, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) return errno;
    m->base[i] = base;
    m->size[i] = size;
    /* RANDOM and HUGEPAGE together make a fault read exactly the aligned 2 MiB block around it, as one folio where the
     * file system can (mm/filemap.c, do_sync_mmap_readahead). RANDOM alone reads page by page: then readahead() first. */
    madvise(base, body, MADV_RANDOM);
    if (madvise(base, body, MADV_HUGEPAGE)) m->huge = 0;
    /* The same question the kernel asks before mincore and cachestat tell the truth. */
    if (st.st_uid != geteuid() && faccessat(AT_FDCWD, path, W_OK, AT_EACCESS)) m->blind = 1;
    return 0;
}

int hd_mapping_small_pages(hd_mapping *m) {
    int error = 0;
    for (int32_t i = 0; i < m->n; i++)
        if (madvise(m->base[i], up(m->size[i], PAGE), MADV_NOHUGEPAGE) && errno != EINVAL) error = errno;
    m->huge = 0;
    return error;
}

/* Read-ahead of exactly these pages: one call is cut off near the device's read-ahead size, the rest would be read page by
 * page. */
void hd_read_ahead(const hd_mapping *m, int32_t file, uint64_t begin, uint64_t end) {
    const uint64_t step = m->huge ? HD_HUGE : 128 << 10;
    for (uint64_t at = begin; at < end; at += step) readahead(m->fd[file], (off_t)at, least(step, end - at));
}

/* Pages of [at, at+bytes) that are not cached. `vec` holds a byte per page. */
static uint64_t missing(uint8_t *at, uint64_t bytes, unsigned char *vec) {
    if (mincore(at, bytes, vec)) return bytes / PAGE;
    uint64_t count = 0;
    for (uint64_t i = 0; i < bytes / PAGE; i++) count += !(vec[i] & 1);
    return count;
}

/* Why populating failed, and where: the first page that cannot be read. */
static int diagnose(const hd_mapping *m, int32_t file, uint64_t begin, uint64_t end, int error, uint64_t *at) {
    struct stat st;
    if (!fstat(m->fd[file], &st) && (uint64_t)st.st_size < end && (uint64_t)st.st_size < m->size[file]) {
        *at = most(begin, (uint64_t)st.st_size);
        return ENODATA;
    }
    for (uint64_t o = begin; o < end; o += PAGE) {
        char byte;
        if (pread(m->fd[file], &byte, 1, (off_t)o) < 0) {
            *at = o;
            return errno;
        }
    }
    *at = begin;
    return error;
}

/* begin and end are page aligned and lie in one piece of at most 8 MiB. */
static int populate_piece(const hd_mapping *m, int32_t file, uint64_t begin, uint64_t end, float cover, hd_populated *out) {
    unsigned char vec[HD_HUGE / PAGE];
    uint8_t *base = m->base[file];
    uint64_t body = up(m->size[file], PAGE), read = 0;
    /* A block at a time: is it worth reading whole, or only the part that was asked for? */
    for (uint64_t block = down(begin, HD_HUGE); block < end; block += HD_HUGE) {
        uint64_t a = most(block, begin), b = least(block + HD_HUGE, end), whole = least(block + HD_HUGE, body);
        uint64_t lost = m->blind ? (b - a) / PAGE : missing(base + a, b - a, vec);
        read += lost * PAGE; /* only what was asked for: the rest of a block is counted by whoever asks for that */
        if (!lost) continue;
        int entire = (float)(b - a) >= cover * (float)(whole - block);
        /* Where populate is unknown, a fault may not read more than its page either: the kernel is older than both. */
        if (m->huge && !m->blind && entire && !hd_populate_refused()) continue;
        hd_read_ahead(m, file, a, b);
    }
    out->read += read;
    out->cached += end - begin > read ? end - begin - read : 0;
    int error = hd_map_pages(base + begin, end - begin);
    return error ? diagnose(m, file, begin, least(end, m->size[file]), error, &out->failed_at) : 0;
}

int hd_populate(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, float cover, hd_populated *out) {
    memset(out, 0, sizeof *out);
    if (file < 0 || file >= m->n || offset > m->size[file] || bytes > m->size[file] - offset) {
        out->failed_at = offset;
        return EINVAL;
    }
    uint64_t end = up(offset + bytes, PAGE);
    for (uint64_t at = down(offset, PAGE); at < end;) {
        uint64_t stop = least(end, down(at, HD_HUGE) + 2 * HD_HUGE);
        int error = populate_piece(m, file, at, stop, cover, out);
        if (error) return error;
        at = stop;
    }
    /* A page that is cached beyond the end of a shrunken file would fault only when it is used. */
    struct stat st;
    if (!fstat(m->fd[file], &st) && (uint64_t)st.st_size < offset + bytes) {
        out->failed_at = most(offset, (uint64_t)st.st_size);
        return ENODATA;
    }
    return 0;
}

int hd_evict(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, uint64_t *freed) {
    *freed = 0;
    if (file < 0 || file >= m->n || offset > m->size[file] || bytes > m->size[file] - offset) return EINVAL;
    uint64_t begin = up(offset, PAGE), end = offset + bytes;
    end = end == m->size[file] ? up(end, PAGE) : down(end, PAGE);
    if (begin >= end) return 0;
    uint64_t length = end - begin, before = 0, after = 0;
    hd_cached(m, 1, &file, &begin, &length, &before);
    if (madvise(m->base[file] + begin, length, MADV_DONTNEED)) return errno;
    int error = posix_fadvise(m->fd[file], (off_t)begin, (off_t)length, POSIX_FADV_DONTNEED);
    if (error) return error;
    hd_cached(m, 1, &file, &begin, &length, &after);
    *freed = before > after ? before - after : 0;
    return 0;
}

int hd_lock(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, int on_fault) {
    if (file < 0 || file >= m->n || offset > m->size[file] || bytes > m->size[file] - offset) return EINVAL;
    uint64_t begin = down(offset, PAGE), end = up(offset + bytes, PAGE);
    if (!syscall(SYS_mlock2, m->base[file] + begin, end - begin, on_fault ? 1 : 0)) return 0;
    return errno == ENOSYS && !mlock(m->base[file] + begin, end - begin) ? 0 : errno;
}

int hd_unlock(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes) {
    if (file < 0 || file >= m->n || offset > m->size[file] || bytes > m->size[file] - offset) return EINVAL;
    uint64_t begin = down(offset, PAGE), end = up(offset + bytes, PAGE);
    return munlock(m->base[file] + begin, end - begin) ? errno : 0;
}

/* Bytes that [a, b) and [c, d) share. */
static uint64_t common(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    uint64_t lo = most(a, c), hi = least(b, d);
    return hi > lo ? hi - lo : 0;
}

int hd_cached(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
              uint64_t *cached) {
    enum { PAGES = 16384 };
    unsigned char vec[PAGES];
    for (int64_t i = 0; i < n; i++) {
        uint64_t end = offset[i] + bytes[i];
        cached[i] = 0;
        if (file[i] < 0 || file[i] >= m->n || end > up(m->size[file[i]], PAGE)) return EINVAL;
        for (uint64_t at = down(offset[i], PAGE); at < end; at += PAGES * PAGE) {
            uint64_t stop = least(up(end, PAGE), at + PAGES * PAGE), pages = (stop - at) / PAGE;
            if (mincore(m->base[file[i]] + at, stop - at, vec)) return errno;
            uint64_t count = 0;
            for (uint64_t p = 0; p < pages; p++) count += vec[p] & 1;
            cached[i] += count * PAGE;
            if (at < offset[i] && (vec[0] & 1)) cached[i] -= offset[i] - at;
            if (stop > end && (vec[pages - 1] & 1)) cached[i] -= stop - end;
        }
    }
    return 0;
}

int hd_cachestat(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
                 uint64_t *out) {
    for (int64_t i = 0; i < n; i++) {
        struct cachestat_range range = {offset[i], bytes[i]};
        struct cachestat_counts counts;
        out[2 * i] = out[2 * i + 1] = 0;
        if (file[i] < 0 || file[i] >= m->n) return EINVAL;
        if (bytes[i] == 0) continue;
        if (syscall(SYS_cachestat, m->fd[file[i]], &range, &counts, 0)) return errno;
        out[2 * i] = counts.cache * PAGE;
        out[2 * i + 1] = counts.recently_evicted * PAGE;
    }
    return 0;
}

/* One range from /proc/self/pagemap, eight bytes a page: bit 63 is "present". */
static int mapped_by_pagemap(int fd, uint64_t begin, uint64_t end, uint64_t *mapped) {
    uint64_t entry[4096];
    for (uint64_t at = down(begin, PAGE); at < end;) {
        uint64_t pages = least(4096, (up(end, PAGE) - at) / PAGE);
        ssize_t got = pread(fd, entry, pages * 8, (off_t)(at / PAGE * 8));
        if (got <= 0) return got < 0 ? errno : ENODATA;
        for (int64_t p = 0; p < got / 8; p++, at += PAGE)
            if (entry[p] >> 63) *mapped += common(begin, end, at, at + PAGE);
    }
    return 0;
}

int hd_mapped(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
              uint64_t *mapped) {
    enum { REGIONS = 512 };
    struct scan_region region[REGIONS];
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), error = 0, scan = 1;
    if (fd < 0) return errno;
    for (int64_t i = 0; i < n && !error;) {
        /* Neighbouring ranges of a file are scanned together: one system call for thousands of spans. */
        int64_t last = i;
        if (file[i] < 0 || file[i] >= m->n) error = EINVAL;
        while (!error && last + 1 < n && file[last + 1] == file[i] && offset[last + 1] >= offset[last] + bytes[last] &&
               offset[last + 1] - (offset[last] + bytes[last]) < HD_HUGE)
            last++;
        for (int64_t k = i; k <= last; k++) mapped[k] = 0;
        if (error) break;
        uint64_t base = (uint64_t)(uintptr_t)m->base[file[i]];
        uint64_t from = base + down(offset[i], PAGE), end = base + up(offset[last] + bytes[last], PAGE);
        int64_t k = i;
        while (scan && from < end) {
            struct scan_arg arg = {.size = sizeof arg, .start = from, .end = end, .vec = (uint64_t)(uintptr_t)region,
                                   .vec_len = REGIONS, .category_mask = SCAN_PRESENT, .return_mask = SCAN_PRESENT};
            int got = ioctl(fd, SCAN_IOCTL, &arg);
            if (got < 0) {
                scan = 0;
                break;
            }
            for (int r = 0; r < got; r++) {
                uint64_t a = region[r].start - base, b = region[r].end - base;
                while (k <= last && offset[k] + bytes[k] <= a) k++;
                for (int64_t j = k; j <= last && offset[j] < b; j++)
                    mapped[j] += common(offset[j], offset[j] + bytes[j], a, b);
            }
            if (arg.walk_end <= from) break;
            from = arg.walk_end;
        }
        if (!scan)
            for (int64_t j = i; j <= last && !error; j++) {
                mapped[j] = 0;
                error = mapped_by_pagemap(fd, base + offset[j], base + offset[j] + bytes[j], &mapped[j]);
            }
        i = last + 1;
    }
    close(fd);
    return error;
}

int hd_page_nodes(int64_t n, const uint64_t *address, int32_t *node) {
    void *page[512];
    for (int64_t i = 0; i < n; i += 512) {
        int64_t count = n - i < 512 ? n - i : 512;
        for (int64_t k = 0; k < count; k++) page[k] = (void *)(uintptr_t)(address[i + k] / PAGE * PAGE);
        if (syscall(SYS_move_pages, 0, (unsigned long)count, page, NULL, node + i, 0)) return errno;
    }
    return 0;
}
