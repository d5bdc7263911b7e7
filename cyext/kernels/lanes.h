/* A vector of floats as wide as the including file's instruction set has it (16 with AVX-512, 8 with AVX2), so that one
 * body serves both. Owns the names vf, HD_LANES and v_*; only for files that are compiled for AVX2 or more. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

#ifdef __AVX512F__
typedef __m512 vf;
#define HD_LANES 16
#define HD_ISA(name) name##_avx512
static inline vf v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf v_all(float a) { return _mm512_set1_ps(a); }
static inline vf v_zero(void) { return _mm512_setzero_ps(); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a * b + c */
static inline vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a * b */
static inline vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_scale2(vf a, vf e) { return _mm512_scalef_ps(a, e); } /* a * 2^e for whole e */
static inline vf v_from_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }
static inline void v_to_half(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline float v_first(vf a) { return _mm512_cvtss_f32(a); }
static inline float v_sum(vf a) { return _mm512_reduce_add_ps(a); }
static inline float v_top(vf a) { return _mm512_reduce_max_ps(a); }
/* Lanes whose number i + base lies in [from, to) keep a, the others become b. */
static inline vf v_within(vf a, vf b, int32_t base, int32_t from, int32_t to)
{
    __m512i i = _mm512_add_epi32(_mm512_set1_epi32(base), _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    __mmask16 m = _mm512_cmpge_epi32_mask(i, _mm512_set1_epi32(from)) & _mm512_cmplt_epi32_mask(i, _mm512_set1_epi32(to));
    return _mm512_mask_blend_ps(m, b, a);
}
#else
typedef __m256 vf;
#define HD_LANES 8
#define HD_ISA(name) name##_avx2
static inline vf v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf v_all(float a) { return _mm256_set1_ps(a); }
static inline vf v_zero(void) { return _mm256_setzero_ps(); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf v_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_scale2(vf a, vf e)
{
    /* In two steps: 2^e itself may be subnormal where the product's rounding must still happen once. */
    __m256i i = _mm256_cvtps_epi32(e), h = _mm256_srai_epi32(i, 1), one = _mm256_set1_epi32(127);
    vf first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(h, one), 23));
    vf second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, h), one), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, first), second);
}
static inline vf v_from_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)); }
static inline void v_to_half(uint16_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline float v_first(vf a) { return _mm256_cvtss_f32(a); }
static inline float v_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float v_top(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static inline vf v_within(vf a, vf b, int32_t base, int32_t from, int32_t to)
{
    __m256i i = _mm256_add_epi32(_mm256_set1_epi32(base), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(from), i), inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(to), i);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_andnot_si256(below, inside)));
}
#endif

#ifdef __AVX512F__
/* r[0 .. HD_LANES-1]: rows become columns. */
static inline void v_transpose(vf *r)
{
    __m512i t[16], u[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(_mm512_castps_si512(r[2 * i]), _mm512_castps_si512(r[2 * i + 1]));
        t[2 * i + 1] = _mm512_unpackhi_epi32(_mm512_castps_si512(r[2 * i]), _mm512_castps_si512(r[2 * i + 1]));
    }
    for (int i = 0; i < 4; i++) {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88), b = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88), d = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
        r[i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, c, 0x88));
        r[8 + i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, c, 0xdd));
        r[4 + i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(b, d, 0x88));
        r[12 + i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(b, d, 0xdd));
    }
}
#else
static inline void v_transpose(vf *r)
{
    vf t[8], u[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
        r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
    }
}
#endif

/* exp(x) within 1.2e-7 relative: x = e ln 2 + r with ln 2 in two parts (Cody and Waite), then the Taylor series of
 * exp(r), |r| <= 0.347, to the seventh power. Below -104 the result is 0, above 88.72 infinite; NaN stays NaN. */
static inline vf v_exp(vf x)
{
    vf y = v_max(v_all(-104.0f), v_min(v_all(89.0f), x)); /* max and min pass their second operand on for a NaN */
    vf e = v_round(v_mul(y, v_all(1.44269504088896341f)));
    vf r = v_fnma(e, v_all(0.693359375f), y);
    r = v_fnma(e, v_all(-2.12194440e-4f), r);
    vf p = v_all(1.0f / 5040);
    p = v_fma(p, r, v_all(1.0f / 720));
    p = v_fma(p, r, v_all(1.0f / 120));
    p = v_fma(p, r, v_all(1.0f / 24));
    p = v_fma(p, r, v_all(1.0f / 6));
    p = v_fma(p, r, v_all(0.5f));
    p = v_fma(v_mul(r, r), p, r);
    return v_scale2(v_add(p, v_all(1.0f)), e);
}

/* tanh by 1 - 2 / (exp(2x) + 1): absolute error 1e-7, which is what a soft cap needs. */
static inline vf v_tanh(vf x)
{
    vf e = v_exp(v_add(x, x));
    return v_sub(v_all(1.0f), v_div(v_all(2.0f), v_add(e, v_all(1.0f))));
}
