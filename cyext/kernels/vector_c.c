/* Vector operations in plain C: the meaning that the wide versions are tested against. */
#include "vector.h"

#include <math.h>

#include "half.h"

void hd_rms_norm_c(float *out, const float *x, const float *weight, int64_t n, float eps)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float scale = hd_rms_scale((float)(sum / (double)n), x, n, eps);
    if (weight)
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
    else
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale;
}

void hd_silu_mul_c(float *out, const float *gate, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* y; NaN where a or b is no number, of which a clamp or a sigmoid would make one again. */
static inline float with(float y, float a, float b) { return y + 0.0f * a + 0.0f * b; }

void hd_activate_c(int32_t kind, float limit, float alpha, float *out, const float *gate, const float *up, int64_t n)
{
    switch (kind) {
    case HD_SILU:
        hd_silu_mul_c(out, gate, up, n);
        return;
    case HD_SWIGLU_OAI:
        /* gpt-oss: x * sigmoid(alpha x) * (y + 1), x <= limit, |y| <= limit (openai/gpt-oss, torch/model.py) */
        for (int64_t j = 0; j < n; j++) {
            float x = gate[j] > limit ? limit : gate[j];
            float y = up[j] < -limit ? -limit : up[j] > limit ? limit : up[j];
            out[j] = with(x / (1.0f + expf(-alpha * x)) * (y + 1.0f), gate[j], up[j]);
        }
        return;
    case HD_SWIGLU_LIMIT:
        /* Step 3.5: min(silu(gate), limit) * clamp(up, +-limit) */
        for (int64_t j = 0; j < n; j++) {
            float x = gate[j] / (1.0f + expf(-gate[j]));
            float y = up[j] < -limit ? -limit : up[j] > limit ? limit : up[j];
            out[j] = with((x > limit ? limit : x) * y, gate[j], up[j]);
        }
        return;
    case HD_SIGMOID_GATE:
        for (int64_t j = 0; j < n; j++) out[j] = with(up[j] / (1.0f + expf(-gate[j])), gate[j], 0.0f);
        return;
    case HD_SIGMOID:
        for (int64_t j = 0; j < n; j++) out[j] = with(1.0f / (1.0f + expf(-gate[j])), gate[j], 0.0f);
        return;
    case HD_SILU_ONLY:
        for (int64_t j = 0; j < n; j++) out[j] = gate[j] / (1.0f + expf(-gate[j]));
        return;
    default:
        /* tanh form of GELU, times up (Hendrycks and Gimpel 2016) */
        for (int64_t j = 0; j < n; j++) {
            float x = gate[j];
            out[j] = 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))) * up[j];
        }
    }
}

void hd_convolve_c(float *out, const float *const *x, const float *weight, int32_t taps, int64_t n)
{
    for (int64_t c = 0; c < n; c++) {
        float sum = weight[(taps - 1) * n + c] * x[taps - 1][c];
        for (int32_t k = 0; k < taps - 1; k++) sum += weight[k * n + c] * x[k][c];
        out[c] = sum / (1.0f + expf(-sum));
    }
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
