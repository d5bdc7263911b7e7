/* Passes over one row of logits, one set per instruction set: maxima, sums of exp, who is so high. They fill
 * hd_kernels.scan. Sums are made in pieces of fixed length, each in one order; so a sum depends on the row alone. */
#pragma once
#include <stdint.h>

#define HD_SCAN_BLOCK 64   /* of a maximum */
#define HD_SCAN_PIECE 512  /* of a sum; a multiple of the block */
#define HD_SCAN_DEPTHS 1024

typedef struct hd_scan {
    /* The maxima of blocks [ceil(n / HD_SCAN_BLOCK)]; answers whether all n are finite (if not, maxima mean nothing). */
    int32_t (*peaks)(const float *x, int64_t n, float *peaks);
    /* out[i] = exp((x[i] - top) * slope), 0 where x[i] < least; with slope 0 it counts. */
    void (*weights)(const float *x, int64_t n, float top, float slope, float least, float *out);
    /* sums[ceil(n / HD_SCAN_PIECE)]: the sums of those weights, piece by piece. */
    void (*masses)(const float *x, int64_t n, float top, float slope, float least, double *sums);
    /* How deep below the top, in 32nds: out[i] = (top - x[i]) * 32, rounded down, at most HD_SCAN_DEPTHS - 1. */
    void (*depths)(const float *x, int32_t n, float top, int32_t *out);
    /* The indices, ascending, of those at least so high and not above `most`; how many. `where` has room for n. */
    int32_t (*between)(const float *x, int32_t n, float least, float most, int32_t *where);
} hd_scan;

extern const hd_scan hd_scan_c, hd_scan_avx2, hd_scan_avx512;
