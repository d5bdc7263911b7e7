/* The gated delta rule in plain C: the meaning that the wide ones are tested against. */
#include "delta_body.h"

static float dot(const float *a, const float *b, int32_t n)
{
    float sum = 0.0f;
    for (int32_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void weigh(const delta_group *g, float (*c)[DELTA_WIDTH], int32_t first, int32_t n) { weigh_plain(g, c, first, 0, n); }

static void fold(const delta_group *g, const float (*c)[DELTA_WIDTH], int32_t first, int32_t n) { fold_plain(g, c, first, 0, n); }

void hd_delta_c(const hd_delta *d) { delta_groups(d); }
