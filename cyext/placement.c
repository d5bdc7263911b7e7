#define _GNU_SOURCE
#include "placement.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE ((uint64_t)4096)
#define BATCH 512
#define MOVE_OURS (1 << 1)      /* MPOL_MF_MOVE: pages that only we map; needs no privilege */

int32_t hd_places_at(const hd_places *p, int32_t file, uint64_t offset, uint64_t *end) {
    *end = UINT64_MAX;
    if (!p || file < 0 || file >= p->files) return -1;
    int64_t lo = p->first[file], stop = p->first[file + 1], hi = stop;
    if (lo == hi) return -1;
    while (hi - lo > 1) {
        int64_t middle = (lo + hi) / 2;
        if (p->begin[middle] <= offset) lo = middle;
        else hi = middle;
    }
    if (hi < stop) *end = p->begin[hi];
    return p->owner[lo];
}

int hd_thread_policy(enum hd_policy policy, uint64_t nodes) {
    /* The kernel reads one bit less than it is told of. */
    unsigned long mask[2] = {nodes, 0};
    return syscall(SYS_set_mempolicy, policy, policy ? mask : NULL, policy ? 65UL : 0UL) ? errno : 0;
}

int hd_bind(void *memory, size_t bytes, enum hd_policy policy, uint64_t nodes) {
    unsigned long mask[2] = {nodes, 0};
    uint64_t begin = (uint64_t)(uintptr_t)memory / PAGE * PAGE;
    uint64_t end = ((uint64_t)(uintptr_t)memory + bytes + PAGE - 1) / PAGE * PAGE;
    return syscall(SYS_mbind, begin, end - begin, policy, policy ? mask : NULL, policy ? 65UL : 0UL, 0) ? errno : 0;
}

int hd_page_counts(int64_t n, const uint64_t *address, const uint64_t *pages, int32_t nodes, int64_t *counts) {
    uint64_t at[BATCH];
    int32_t node[BATCH];
    memset(counts, 0, sizeof(int64_t) * (size_t)n * (size_t)(nodes + 1));
    for (int64_t i = 0; i < n; i++) {
        int64_t *row = counts + i * (nodes + 1);
        for (uint64_t k = 0; k < pages[i]; k += BATCH) {
            int64_t count = pages[i] - k < BATCH ? (int64_t)(pages[i] - k) : BATCH;
            for (int64_t j = 0; j < count; j++) at[j] = address[i] + (k + (uint64_t)j) * PAGE;
            int error = hd_page_nodes(count, at, node);
            if (error) return error;
            for (int64_t j = 0; j < count; j++) row[node[j] >= 0 && node[j] < nodes ? node[j] : nodes]++;
        }
    }
    return 0;
}

/* Pages of a batch that lie on another node; *first and *last are the outermost. */
static int64_t elsewhere(int64_t count, const uint64_t *at, int32_t node, int64_t *first, int64_t *last, int *error) {
    int32_t where[BATCH];
    int64_t found = 0;
    *error = hd_page_nodes(count, at, where);
    if (*error) return 0;
    for (int64_t j = 0; j < count; j++)
        if (where[j] >= 0 && where[j] != node) {
            if (!found++) *first = j;
            *last = j;
        }
    return found;
}

int hd_settle(const hd_mapping *m, int32_t file, uint64_t begin, uint64_t end, int32_t node, uint64_t *wrong,
              uint64_t *left, hd_populated *reread) {
    memset(reread, 0, sizeof *reread);
    *wrong = *left = 0;
    end = (end + PAGE - 1) / PAGE * PAGE;
    for (uint64_t from = begin / PAGE * PAGE; from < end; from += BATCH * PAGE) {
        uint64_t at[BATCH];
        int64_t count = (int64_t)((end - from) / PAGE < BATCH ? (end - from) / PAGE : BATCH), first = 0, last = 0;
        int error;
        for (int64_t j = 0; j < count; j++) at[j] = (uint64_t)(uintptr_t)m->base[file] + from + (uint64_t)j * PAGE;
        int64_t found = elsewhere(count, at, node, &first, &last, &error);
        if (error || !found) continue;
        *wrong += (uint64_t)found;
        /* From the first to the last in one piece: the disk likes one read better than many. */
        uint64_t a = from + (uint64_t)first * PAGE, b = from + (uint64_t)(last + 1) * PAGE, freed = 0;
        uint64_t size = m->size[file], length = (b < size ? b : size) - a;
        if (!hd_evict(m, file, a, length, &freed)) {
            hd_populated got;
            error = hd_populate(m, file, a, length, 2.0f, &got);
            reread->read += got.read;
            if (error) {
                reread->failed_at = got.failed_at;
                return error;
            }
        }
        found = elsewhere(count, at, node, &first, &last, &error);
        if (error || !found) continue;
        void *page[BATCH];
        int target[BATCH], status[BATCH], where[BATCH];
        int64_t n = 0;
        if (hd_page_nodes(count, at, where)) continue;
        for (int64_t j = 0; j < count; j++)
            if (where[j] >= 0 && where[j] != node) {
                page[n] = (void *)(uintptr_t)at[j];
                target[n++] = node;
            }
        (void)!syscall(SYS_move_pages, 0, (unsigned long)n, page, target, status, MOVE_OURS);
        /* Asked again: a status of success has been seen on pages that stayed. */
        found = elsewhere(count, at, node, &first, &last, &error);
        *left += error ? 0 : (uint64_t)found;
    }
    return 0;
}
