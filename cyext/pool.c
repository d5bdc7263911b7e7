#define _GNU_SOURCE
#include "pool.h"
#include "steps/memory.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int hd_pool_open(hd_pool *p, int32_t n_blocks, size_t block_bytes) {
    size_t n = n_blocks > 0 ? (size_t)n_blocks : 1;
    memset(p, 0, sizeof *p);
    p->n_blocks = n_blocks;
    p->block_bytes = (block_bytes + 4095) & ~(size_t)4095;
    p->holders = calloc(n, sizeof *p->holders);
    p->touched = calloc(n, 1);
    p->cold = malloc(n * sizeof *p->cold);
    p->warm = malloc(n * sizeof *p->warm);
    p->since = malloc(n * sizeof *p->since);
    if (!p->holders || !p->touched || !p->cold || !p->warm || !p->since) return -1;
    if (!n_blocks || !p->block_bytes) return 0;
    p->base = hd_memory_new((size_t)n_blocks * p->block_bytes);
    return p->base ? 0 : -1;
}

void hd_pool_close(hd_pool *p) {
    hd_memory_free(p->base);
    free(p->holders);
    free(p->touched);
    free(p->cold);
    free(p->warm);
    free(p->since);
    memset(p, 0, sizeof *p);
}

int32_t hd_pool_take(hd_pool *p) {
    int32_t block;
    if (p->n_warm) block = p->warm[(p->warm_at + --p->n_warm) % p->n_blocks];
    else if (p->n_cold) block = p->cold[--p->n_cold];
    else if (p->n_fresh < p->n_blocks) block = p->n_fresh++;
    else return -1;
    assert(p->holders[block] == 0);
    p->holders[block] = 1;
    p->n_used++;
    return block;
}

void hd_pool_share(hd_pool *p, int32_t block) {
    assert(p->holders[block] > 0);
    p->holders[block]++;
}

void hd_pool_put(hd_pool *p, int32_t block) {
    assert(p->holders[block] > 0);
    if (--p->holders[block]) return;
    p->n_used--;
    p->touched[block] = 1;
    p->since[block] = now();
    p->warm[(p->warm_at + p->n_warm++) % p->n_blocks] = block;
}

int32_t hd_pool_oldest(hd_pool *p, double seconds, int32_t keep, int32_t most, int32_t *out) {
    if (!p->n_warm) return 0;
    double before = now() - seconds;
    int32_t n = 0;
    while (p->n_warm && n < most) {
        int32_t block = p->warm[p->warm_at];
        if (p->since[block] > before && p->n_warm <= keep) break;
        out[n++] = block;
        p->warm_at = (p->warm_at + 1) % p->n_blocks;
        p->n_warm--;
    }
    return n;
}

void hd_pool_release(const hd_pool *p, const int32_t *blocks, int32_t n) {
    if (!p->base) return;
    for (int32_t k = 0; k < n;) {
        /* Neighbours in one call: a huge page that two blocks share is given back as a whole only so. */
        int32_t end = k + 1, step = end < n && blocks[end] < blocks[k] ? -1 : 1;
        while (end < n && blocks[end] == blocks[end - 1] + step) end++;
        int32_t first = step > 0 ? blocks[k] : blocks[end - 1];
        madvise(hd_pool_at(p, first), (size_t)(end - k) * p->block_bytes, MADV_DONTNEED);
        k = end;
    }
}

void hd_pool_cooled(hd_pool *p, const int32_t *blocks, int32_t n) {
    for (int32_t k = 0; k < n; k++) {
        p->touched[blocks[k]] = 0;
        p->cold[p->n_cold++] = blocks[k];
    }
}

size_t hd_pool_resident(const hd_pool *p) {
    size_t bytes = 0;
    for (int32_t block = 0, end; p->base && block < p->n_fresh; block = end) {
        int there = p->touched[block] || p->holders[block];
        for (end = block + 1; end < p->n_fresh && (p->touched[end] || p->holders[end]) == there; end++) {}
        if (there) bytes += hd_pages_resident(hd_pool_at(p, block), (size_t)(end - block) * p->block_bytes);
    }
    return bytes;
}
