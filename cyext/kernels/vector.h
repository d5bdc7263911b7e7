/* Operations on vectors of floats, one set per instruction set; they fill the slots of hd_kernels, where their meaning
 * stands. Inputs need no alignment; out may be one of the inputs. */
#pragma once
#include "kernels.h"

#include <float.h>
#include <math.h>

/* What a row is multiplied by to get a root mean square of one. `mean`: of its squares. Where that is beyond a float, the
 * row is looked at again in double: it may be large only; a NaN or an infinity in it makes all of it NaN, since a norm that
 * made zeros of the rest would hide it. */
static inline float hd_rms_scale(float mean, const float *x, int64_t n, float eps)
{
    if (mean <= FLT_MAX) return 1.0f / sqrtf(mean + eps);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum <= DBL_MAX ? (float)(1.0 / sqrt(sum / (double)n + eps)) : NAN;
}

#define HD_VECTOR_SET(isa)                                                                                  \
    void hd_rms_norm_##isa(float *out, const float *x, const float *weight, int64_t n, float eps);          \
    void hd_silu_mul_##isa(float *out, const float *gate, const float *up, int64_t n);                      \
    void hd_activate_##isa(int32_t kind, float limit, float alpha, float *out, const float *gate,           \
                           const float *up, int64_t n);                                                     \
    void hd_convolve_##isa(float *out, const float *const *x, const float *weight, int32_t taps, int64_t n); \
    void hd_softmax_##isa(float *x, int64_t n);                                                             \
    void hd_add_##isa(float *out, const float *a, const float *b, int64_t n);                               \
    void hd_axpy_##isa(float *out, float a, const float *x, int64_t n);                                     \
    void hd_to_f16_##isa(uint16_t *out, const float *x, int64_t n);                                         \
    void hd_to_f32_##isa(float *out, const uint16_t *x, int64_t n);                                         \
    void hd_rope_##isa(float *x, const float *cosine, const float *sine, int32_t n_rot, int32_t halves);

HD_VECTOR_SET(c)
HD_VECTOR_SET(avx2)
HD_VECTOR_SET(avx512)
