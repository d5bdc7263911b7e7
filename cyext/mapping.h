/* Model files mapped for reading, and what the kernel says of their pages. Mechanism only: which range, and when, is
 * decided elsewhere. Every function here returns 0 or an errno and never raises SIGBUS. */
#pragma once
#include <stdint.h>
#include <stddef.h>

#define HD_HUGE ((uint64_t)2 << 20)

typedef struct hd_mapping {
    int32_t n;
    int32_t huge;        /* the kernel takes MADV_HUGEPAGE here: a populate reads whole 2 MiB blocks */
    int32_t blind;       /* mincore tells us that everything is resident (not our file): always read */
    int32_t *fd;         /* [n] */
    uint8_t **base;      /* [n] 2 MiB aligned */
    uint64_t *size;      /* [n] bytes when opened */
    uint8_t **reserved;  /* [n] what munmap gets */
    uint64_t *reserved_bytes;
} hd_mapping;

typedef struct hd_populated {
    uint64_t read;    /* bytes of the range that were not cached before */
    uint64_t cached;  /* bytes that only had to be mapped */
    uint64_t failed_at; /* file offset of the failure */
} hd_populated;

hd_mapping *hd_mapping_new(int32_t n);
int hd_mapping_open(hd_mapping *m, int32_t file, const char *path);
void hd_mapping_free(hd_mapping *m);
/* From now on exact pages instead of 2 MiB blocks: a block would lie on one node as a whole. */
int hd_mapping_small_pages(hd_mapping *m);

/* Map [offset, offset+bytes) rounded outward to pages, reading what is not cached. `cover` is the share of a 2 MiB block
 * that has to be asked for before the block is read whole (0: always; above 1: never, exact ranges only).
 * ENODATA: the file ends before the range does; failed_at says where. */
int hd_populate(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, float cover, hd_populated *out);

/* Ask the disk for what of [begin, end) is not cached, and wait for nothing: whoever touches it does. */
void hd_read_ahead(const hd_mapping *m, int32_t file, uint64_t begin, uint64_t end);

/* Give back the pages wholly inside the range. *freed: bytes cached before and not after. */
int hd_evict(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, uint64_t *freed);
int hd_lock(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, int on_fault);
int hd_unlock(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes);

/* Bytes of each range in the page cache by mincore. A partial page counts with the part that lies in the range. */
int hd_cached(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
              uint64_t *cached);
/* Of the pages that each range touches, by cachestat(2): [n][2] = cached, recently evicted (bytes of whole pages).
 * ENOSYS, EPERM as the kernel says. */
int hd_cachestat(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
                 uint64_t *out);
/* Bytes of each range present in this process's page table. Ranges sorted by file and offset are cheapest. */
int hd_mapped(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
              uint64_t *mapped);
/* Node of each page address, or -errno, by move_pages(2) without moving. */
int hd_page_nodes(int64_t n, const uint64_t *address, int32_t *node);
