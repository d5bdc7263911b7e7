/* The body of scan_avx2.c and scan_avx512.c, written once over lanes.h. A last part vector is filled up with what counts
 * for nothing (minus infinity), so an element's share does not depend on where the row ends. */
#include "lanes.h"
#include "scan.h"

#include <math.h>
#include <string.h>

#ifdef __AVX512F__
static inline vf v_if_at_least(vf w, vf x, vf least) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_GE_OQ), w); }
static inline uint32_t v_between(vf x, vf least, vf most)
{
    return _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ) & _mm512_cmp_ps_mask(x, most, _CMP_LE_OQ);
}
static inline void v_to_int(int32_t *p, vf a) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(a)); }
#else
static inline vf v_if_at_least(vf w, vf x, vf least) { return _mm256_and_ps(w, _mm256_cmp_ps(x, least, _CMP_GE_OQ)); }
static inline uint32_t v_between(vf x, vf least, vf most)
{
    vf inside = _mm256_and_ps(_mm256_cmp_ps(x, least, _CMP_GE_OQ), _mm256_cmp_ps(x, most, _CMP_LE_OQ));
    return (uint32_t)_mm256_movemask_ps(inside);
}
static inline void v_to_int(int32_t *p, vf a) { _mm256_storeu_si256((__m256i *)(void *)p, _mm256_cvttps_epi32(a)); }
#endif

static inline vf v_up_to(const float *x, int64_t n, float fill)
{
    float t[HD_LANES];
    if (n >= HD_LANES) return v_load(x);
    for (int i = 0; i < HD_LANES; i++) t[i] = fill;
    if (n > 0) memcpy(t, x, (size_t)n * sizeof(float));
    return v_load(t);
}

static int32_t peaks(const float *x, int64_t n, float *peaks)
{
    vf odd = v_zero(), other = v_zero(); /* a lane becomes NaN when it meets what is not finite */
    int64_t i = 0;
    for (; i + HD_SCAN_BLOCK <= n; i += HD_SCAN_BLOCK) {
        vf a = v_load(x + i), b = v_load(x + i + HD_LANES);
        odd = v_fma(a, v_zero(), odd), other = v_fma(b, v_zero(), other);
        for (int j = 2 * HD_LANES; j < HD_SCAN_BLOCK; j += 2 * HD_LANES) {
            vf c = v_load(x + i + j), d = v_load(x + i + j + HD_LANES);
            odd = v_fma(c, v_zero(), odd), other = v_fma(d, v_zero(), other);
            a = v_max(a, c), b = v_max(b, d);
        }
        peaks[i / HD_SCAN_BLOCK] = v_top(v_max(a, b));
    }
    if (i < n) {
        vf a = v_all(x[i]);
        for (int64_t j = i; j < n; j += HD_LANES) {
            vf c = v_up_to(x + j, n - j, x[i]);
            odd = v_fma(c, v_zero(), odd);
            a = v_max(a, c);
        }
        peaks[i / HD_SCAN_BLOCK] = v_top(a);
    }
    return v_sum(v_add(odd, other)) == 0;
}

static inline vf weight(vf x, vf top, vf slope, vf least)
{
    return v_if_at_least(v_exp(v_mul(v_sub(x, top), slope)), x, least);
}

static void weights(const float *x, int64_t n, float top, float slope, float least, float *out)
{
    vf t = v_all(top), s = v_all(slope), l = v_all(least);
    for (int64_t i = 0; i < n; i += HD_LANES) {
        vf w = weight(v_up_to(x + i, n - i, -INFINITY), t, s, l);
        if (n - i >= HD_LANES) {
            v_store(out + i, w);
        } else {
            float some[HD_LANES];
            v_store(some, w);
            memcpy(out + i, some, (size_t)(n - i) * sizeof(float));
        }
    }
}

static void masses(const float *x, int64_t n, float top, float slope, float least, double *sums)
{
    vf t = v_all(top), s = v_all(slope), l = v_all(least);
    for (int64_t i = 0; i < n; i += HD_SCAN_PIECE) {
        vf a = v_zero(), b = v_zero(), c = v_zero(), d = v_zero();
        int64_t j = i, end = i + HD_SCAN_PIECE;
        if (end <= n) {
            for (; j < end; j += 4 * HD_LANES) {
                a = v_add(a, weight(v_load(x + j), t, s, l));
                b = v_add(b, weight(v_load(x + j + HD_LANES), t, s, l));
                c = v_add(c, weight(v_load(x + j + 2 * HD_LANES), t, s, l));
                d = v_add(d, weight(v_load(x + j + 3 * HD_LANES), t, s, l));
            }
        } else {
            for (; j < n; j += HD_LANES) a = v_add(a, weight(v_up_to(x + j, n - j, -INFINITY), t, s, l));
        }
        sums[i / HD_SCAN_PIECE] = v_sum(v_add(v_add(a, b), v_add(c, d)));
    }
}

static int32_t between(const float *x, int32_t n, float least, float most, int32_t *where)
{
    vf l = v_all(least), m = v_all(most);
    int32_t found = 0;
    for (int32_t i = 0; i < n; i += HD_LANES) {
        uint32_t bits = v_between(v_up_to(x + i, n - i, NAN), l, m);
        for (; bits; bits &= bits - 1) where[found++] = i + __builtin_ctz(bits);
    }
    return found;
}

static void depths(const float *x, int32_t n, float top, int32_t *out)
{
    vf t = v_all(top), most = v_all(HD_SCAN_DEPTHS - 1);
    for (int32_t i = 0; i < n; i += HD_LANES) {
        int32_t some[HD_LANES];
        v_to_int(some, v_min(v_mul(v_sub(t, v_up_to(x + i, n - i, top)), v_all(32)), most));
        memcpy(out + i, some, sizeof(int32_t) * (size_t)(n - i < HD_LANES ? n - i : HD_LANES));
    }
}

const hd_scan HD_ISA(hd_scan) = {peaks, weights, masses, depths, between};
