/* The body of vector_avx2.c and vector_avx512.c, written once over lanes.h. What does not fill a vector goes through a
 * padded copy and the same arithmetic, so an element's value does not depend on where in the vector it stands. */
#include <string.h>

#include "half.h"
#include "lanes.h"
#include "vector.h"

static inline vf v_load_some(const float *p, int64_t n, float fill)
{
    float t[HD_LANES];
    for (int i = 0; i < HD_LANES; i++) t[i] = fill;
    memcpy(t, p, (size_t)n * sizeof(float));
    return v_load(t);
}

static inline void v_store_some(float *p, vf a, int64_t n)
{
    float t[HD_LANES];
    v_store(t, a);
    memcpy(p, t, (size_t)n * sizeof(float));
}

void HD_ISA(hd_rms_norm)(float *out, const float *x, const float *weight, int64_t n, float eps)
{
    vf a = v_zero(), b = v_zero(), c = v_zero(), d = v_zero();
    int64_t i = 0;
    for (; i + 4 * HD_LANES <= n; i += 4 * HD_LANES) {
        vf p = v_load(x + i), q = v_load(x + i + HD_LANES), r = v_load(x + i + 2 * HD_LANES), s = v_load(x + i + 3 * HD_LANES);
        a = v_fma(p, p, a), b = v_fma(q, q, b), c = v_fma(r, r, c), d = v_fma(s, s, d);
    }
    for (; i < n; i += HD_LANES) {
        vf p = n - i < HD_LANES ? v_load_some(x + i, n - i, 0) : v_load(x + i);
        a = v_fma(p, p, a);
    }
    float sum = v_sum(v_add(v_add(a, b), v_add(c, d)));
    vf scale = v_all(1.0f / __builtin_sqrtf(sum / (float)n + eps));
    for (i = 0; i + HD_LANES <= n; i += HD_LANES) {
        vf y = v_mul(v_load(x + i), scale);
        v_store(out + i, weight ? v_mul(y, v_load(weight + i)) : y);
    }
    if (i < n) {
        vf y = v_mul(v_load_some(x + i, n - i, 0), scale);
        v_store_some(out + i, weight ? v_mul(y, v_load_some(weight + i, n - i, 0)) : y, n - i);
    }
}

static inline vf v_silu_mul(vf gate, vf up)
{
    vf e = v_exp(v_sub(v_zero(), gate));
    return v_mul(v_div(gate, v_add(v_all(1.0f), e)), up);
}

void HD_ISA(hd_silu_mul)(float *out, const float *gate, const float *up, int64_t n)
{
    int64_t i = 0;
    for (; i + HD_LANES <= n; i += HD_LANES) v_store(out + i, v_silu_mul(v_load(gate + i), v_load(up + i)));
    if (i < n) v_store_some(out + i, v_silu_mul(v_load_some(gate + i, n - i, 0), v_load_some(up + i, n - i, 0)), n - i);
}

void HD_ISA(hd_softmax)(float *x, int64_t n)
{
    const float low = -__builtin_inff();
    vf top = v_all(low), sum = v_zero();
    int64_t i = 0, whole = n - n % HD_LANES, rest = n - whole;
    for (i = 0; i < whole; i += HD_LANES) top = v_max(top, v_load(x + i));
    if (rest) top = v_max(top, v_load_some(x + whole, rest, low));
    top = v_all(v_top(top));
    for (i = 0; i < whole; i += HD_LANES) {
        vf e = v_exp(v_sub(v_load(x + i), top));
        v_store(x + i, e);
        sum = v_add(sum, e);
    }
    if (rest) {
        vf e = v_exp(v_sub(v_load_some(x + whole, rest, low), top));
        v_store_some(x + whole, e, rest);
        sum = v_add(sum, e);
    }
    vf scale = v_all(1.0f / v_sum(sum));
    for (i = 0; i < whole; i += HD_LANES) v_store(x + i, v_mul(v_load(x + i), scale));
    for (i = whole; i < n; i++) x[i] *= v_first(scale);
}

void HD_ISA(hd_add)(float *out, const float *a, const float *b, int64_t n)
{
    int64_t i = 0;
    for (; i + HD_LANES <= n; i += HD_LANES) v_store(out + i, v_add(v_load(a + i), v_load(b + i)));
    for (; i < n; i++) out[i] = a[i] + b[i];
}

void HD_ISA(hd_axpy)(float *out, float a, const float *x, int64_t n)
{
    int64_t i = 0;
    vf f = v_all(a);
    for (; i + HD_LANES <= n; i += HD_LANES) v_store(out + i, v_fma(f, v_load(x + i), v_load(out + i)));
    for (; i < n; i++) out[i] = __builtin_fmaf(a, x[i], out[i]);
}

void HD_ISA(hd_to_f16)(uint16_t *out, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + HD_LANES <= n; i += HD_LANES) v_to_half(out + i, v_load(x + i));
    for (; i < n; i++) out[i] = hd_half_narrow(x[i]);
}

void HD_ISA(hd_to_f32)(float *out, const uint16_t *x, int64_t n)
{
    int64_t i = 0;
    for (; i + HD_LANES <= n; i += HD_LANES) v_store(out + i, v_from_half(x + i));
    for (; i < n; i++) out[i] = hd_half_widen(x[i]);
}

void HD_ISA(hd_rope)(float *x, const float *cosine, const float *sine, int32_t n_rot, int32_t halves)
{
    int32_t pairs = n_rot / 2, step = halves ? 1 : 2, far = halves ? pairs : 1, i = 0;
    if (halves)
        for (; i + HD_LANES <= pairs; i += HD_LANES) {
            vf a = v_load(x + i), b = v_load(x + far + i), c = v_load(cosine + i), s = v_load(sine + i);
            v_store(x + i, v_fnma(b, s, v_mul(a, c)));
            v_store(x + far + i, v_fma(b, c, v_mul(a, s)));
        }
    for (; i < pairs; i++) {
        float *p = x + (int64_t)i * step, a = p[0], b = p[far];
        p[0] = __builtin_fmaf(-b, sine[i], a * cosine[i]);
        p[far] = __builtin_fmaf(b, cosine[i], a * sine[i]);
    }
}
