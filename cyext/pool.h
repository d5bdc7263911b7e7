/* Blocks of keys and values that sessions hold by count. Owns the memory and the books of who holds what; knows neither
 * sessions nor what lies in a block. Not thread-safe: whoever calls takes care that one does at a time.
 *
 *   cold   nobody holds it and it has no pages        take: the lowest that was never used, else any
 *   used   one holder or more                         share: one more; put: one fewer, the last makes it warm
 *   warm   nobody holds it, its pages are still there take: before cold ones, the latest first; cool, trim: cold
 *
 * A block with more than one holder is never written (hd_pool_alone). */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct hd_pool {
    uint8_t *base;
    size_t block_bytes;        /* whole pages, so that each block's pages are its own */
    int32_t n_blocks, n_used, n_fresh, n_cold;   /* n_fresh: those from here on were never used */
    int32_t *holders;          /* [n_blocks] */
    uint8_t *touched;          /* [n_blocks] it has pages from before, each where its reader wants it */
    int32_t *cold;             /* [n_cold] used before, given back since */
    int32_t *warm;             /* a ring of [n_blocks], oldest first, from warm_at on */
    double *since;             /* [n_blocks] when it was put, seconds on the monotonic clock */
    int32_t warm_at, n_warm;
} hd_pool;

/* 0, or -1: no memory. The pool is for hd_pool_close, whatever came of it. */
int hd_pool_open(hd_pool *p, int32_t n_blocks, size_t block_bytes);
void hd_pool_close(hd_pool *p);

static inline uint8_t *hd_pool_at(const hd_pool *p, int32_t block) { return p->base + (size_t)block * p->block_bytes; }
static inline int32_t hd_pool_free(const hd_pool *p) { return p->n_blocks - p->n_used; }
static inline int hd_pool_alone(const hd_pool *p, int32_t block) { return p->holders[block] == 1; }

/* A block with one holder, its contents undefined; -1 when all are used. */
int32_t hd_pool_take(hd_pool *p);
/* Of a block that somebody holds. */
void hd_pool_share(hd_pool *p, int32_t block);
void hd_pool_put(hd_pool *p, int32_t block);
/* The oldest of the warm blocks, at most `most`, that nobody has wanted for so many seconds or that are more than `keep`:
 * they are written to out and belong to the caller until hd_pool_cooled. Returns how many. */
int32_t hd_pool_oldest(hd_pool *p, double seconds, int32_t keep, int32_t most, int32_t *out);
/* Give their pages to the kernel. Touches no books, so that it may take its time. */
void hd_pool_release(const hd_pool *p, const int32_t *blocks, int32_t n);
void hd_pool_cooled(hd_pool *p, const int32_t *blocks, int32_t n);

/* Bytes of its pages that are in memory, as the kernel tells of those blocks that may have some; where it does not tell,
 * all bytes of these. */
size_t hd_pool_resident(const hd_pool *p);
