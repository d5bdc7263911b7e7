/* Vector operations in plain C: the meaning that the wide versions are tested against. */
#include "vector.h"

#include <math.h>

#include "half.h"

void hd_rms_norm_c(float *out, const float *x, const float *weight, int64_t n, float eps)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float scale = 1.0f / sqrtf((float)(sum / (double)n) + eps);
    if (weight)
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
    else
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale;
}

void hd_silu_mul_c(float *out, const float *gate, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void hd_softmax_c(float *x, int64_t n)
{
    float top = -INFINITY;
    for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - top);
        sum += x[i];
    }
    float scale = (float)(1.0 / sum);
    for (int64_t i = 0; i < n; i++) x[i] *= scale;
}

void hd_add_c(float *out, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}

void hd_axpy_c(float *out, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] += a * x[i];
}

void hd_to_f16_c(uint16_t *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = hd_half_narrow(x[i]);
}

void hd_to_f32_c(float *out, const uint16_t *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = hd_half_widen(x[i]);
}

void hd_rope_c(float *x, const float *cosine, const float *sine, int32_t n_rot, int32_t halves)
{
    int32_t pairs = n_rot / 2, step = halves ? 1 : 2, far = halves ? pairs : 1;
    for (int32_t i = 0; i < pairs; i++) {
        float *p = x + (int64_t)i * step, a = p[0], b = p[far];
        p[0] = a * cosine[i] - b * sine[i];
        p[far] = a * sine[i] + b * cosine[i];
    }
}
