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
    vf scale = v_all(hd_rms_scale(sum / (float)n, x, n, eps));
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

static inline vf v_sigmoid(vf x)
{
    return v_div(v_all(1.0f), v_add(v_all(1.0f), v_exp(v_sub(v_zero(), x))));
}

static inline vf v_limit(vf x, float limit) { return v_max(v_all(-limit), v_min(v_all(limit), x)); }

/* y; NaN where x is no number, of which a clamp or a sigmoid would make one again. */
static inline vf v_with(vf y, vf x) { return v_fma(v_zero(), x, y); }

static inline vf v_activate(int32_t kind, float limit, float alpha, vf gate, vf up)
{
    switch (kind) {
    case HD_SILU: return v_silu_mul(gate, up);
    case HD_SWIGLU_OAI: {
        vf x = v_min(v_all(limit), gate);
        vf y = v_mul(v_mul(x, v_sigmoid(v_mul(v_all(alpha), x))), v_add(v_limit(up, limit), v_all(1.0f)));
        return v_with(v_with(y, gate), up);
    }
    case HD_SWIGLU_LIMIT:
        return v_with(v_with(v_mul(v_min(v_all(limit), v_mul(gate, v_sigmoid(gate))), v_limit(up, limit)), gate), up);
    case HD_SIGMOID_GATE: return v_with(v_mul(up, v_sigmoid(gate)), gate);
    case HD_SIGMOID: return v_with(v_sigmoid(gate), gate);
    case HD_SILU_ONLY: return v_mul(gate, v_sigmoid(gate));
    default: { /* x (1 + tanh(y)) / 2 = x sigmoid(2 y) */
        vf y = v_mul(gate, v_fma(v_mul(v_all(0.044715f), gate), gate, v_all(1.0f)));
        return v_mul(v_mul(gate, v_sigmoid(v_mul(v_all(2 * 0.7978845608f), y))), up);
    }
    }
}

static inline __attribute__((always_inline)) void activate_all(const int32_t kind, float limit, float alpha, float *out,
                                                               const float *gate, const float *up, int64_t n)
{
    int64_t i = 0;
    for (; i + HD_LANES <= n; i += HD_LANES) v_store(out + i, v_activate(kind, limit, alpha, v_load(gate + i), v_load(up + i)));
    if (i < n)
        v_store_some(out + i, v_activate(kind, limit, alpha, v_load_some(gate + i, n - i, 0), v_load_some(up + i, n - i, 0)), n - i);
}

void HD_ISA(hd_activate)(int32_t kind, float limit, float alpha, float *out, const float *gate, const float *up, int64_t n)
{
    switch (kind) {
    case HD_SILU: activate_all(HD_SILU, limit, alpha, out, gate, up, n); return;
    case HD_SWIGLU_OAI: activate_all(HD_SWIGLU_OAI, limit, alpha, out, gate, up, n); return;
    case HD_SWIGLU_LIMIT: activate_all(HD_SWIGLU_LIMIT, limit, alpha, out, gate, up, n); return;
    case HD_SIGMOID_GATE: activate_all(HD_SIGMOID_GATE, limit, alpha, out, gate, up, n); return;
    case HD_SIGMOID: activate_all(HD_SIGMOID, limit, alpha, out, gate, up, n); return;
    case HD_SILU_ONLY: activate_all(HD_SILU_ONLY, limit, alpha, out, gate, up, n); return;
    default: activate_all(HD_GELU, limit, alpha, out, gate, up, n);
    }
}

void HD_ISA(hd_convolve)(float *out, const float *const *x, const float *weight, int32_t taps, int64_t n)
{
    for (int64_t i = 0; i < n; i += HD_LANES) {
        const int64_t left = n - i < HD_LANES ? n - i : HD_LANES;
        vf sum = v_zero();
        for (int32_t k = 0; k < taps; k++)
            sum = left == HD_LANES ? v_fma(v_load(weight + k * n + i), v_load(x[k] + i), sum)
                                   : v_fma(v_load_some(weight + k * n + i, left, 0), v_load_some(x[k] + i, left, 0), sum);
        sum = v_mul(sum, v_sigmoid(sum));
        if (left == HD_LANES) v_store(out + i, sum);
        else v_store_some(out + i, sum, left);
    }
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
