/* Passes over logits in plain C; scan.h says what they give. */
#include "scan.h"

#include <math.h>

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

static int32_t peaks(const float *x, int64_t n, float *peaks)
{
    float odd = 0; /* NaN as soon as one is not finite */
    for (int64_t i = 0; i < n; i += HD_SCAN_BLOCK) {
        float top = x[i];
        for (int64_t j = i, end = at_most(i + HD_SCAN_BLOCK, n); j < end; j++) {
            top = x[j] > top ? x[j] : top;
            odd += x[j] * 0;
        }
        peaks[i / HD_SCAN_BLOCK] = top;
    }
    return odd == 0;
}

static void weights(const float *x, int64_t n, float top, float slope, float least, float *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = x[i] >= least ? expf((x[i] - top) * slope) : 0;
}

static void masses(const float *x, int64_t n, float top, float slope, float least, double *sums)
{
    float w[HD_SCAN_PIECE];
    for (int64_t i = 0; i < n; i += HD_SCAN_PIECE) {
        int64_t some = at_most(HD_SCAN_PIECE, n - i);
        double sum = 0;
        weights(x + i, some, top, slope, least, w);
        for (int64_t j = 0; j < some; j++) sum += w[j];
        sums[i / HD_SCAN_PIECE] = sum;
    }
}

static int32_t between(const float *x, int32_t n, float least, float most, int32_t *where)
{
    int32_t found = 0;
    for (int32_t i = 0; i < n; i++) {
        where[found] = i;
        found += x[i] >= least && x[i] <= most;
    }
    return found;
}

static void depths(const float *x, int32_t n, float top, int32_t *out)
{
    for (int32_t i = 0; i < n; i++) {
        float depth = (top - x[i]) * 32;
        out[i] = depth < HD_SCAN_DEPTHS - 1 ? (int32_t)depth : HD_SCAN_DEPTHS - 1;
    }
}

const hd_scan hd_scan_c = {peaks, weights, masses, depths, between};
