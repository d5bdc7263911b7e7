/* AVX-512 for a processor that has AVX2: the intrinsics that the kernels use, written out lane by lane, for a build of the
 * *_avx512.c and *_amx.c files that any such machine can run (wide.c). Included before a file's first line; owns every
 * _mm512_ name and those masked or newer ones of 128 and 256 bits, and refuses to be built where they are real. What is not
 * written here does not compile. Semantics: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2. */
#pragma once
#ifdef __AVX512F__
#error "this processor's instructions are the real ones"
#endif
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
/* Ties of the kernels to wide registers; `__asm__ volatile` (tiles) is no call of this macro. */
#define __asm__(...)

/* One copy of each function serves all: neither speed nor immediate operands ask for more, and it compiles in seconds. */
#define always_inline unused
#define _Pragma(unroll)

#define HERE static __attribute__((noinline, unused))

typedef union wide {
    __m512 f;
    __m512i i;
    __m256 f2[2];
    __m256i i2[2];
    __m128i i4[4];
    float s[16];
    int64_t q[8];
    uint64_t uq[8];
    int32_t d[16];
    uint32_t ud[16];
    int16_t w[32];
    int8_t b[64];
} wide;

HERE wide w_of(__m512i a) { return (wide){.i = a}; }
HERE wide w_off(__m512 a) { return (wide){.f = a}; }

/* --- what AVX2 does to each half --- */

#define HALVES_1I(name, one) \
    HERE __m512i w_##name(__m512i a) { wide x = w_of(a); return (wide){.i2 = {one(x.i2[0]), one(x.i2[1])}}.i; }
#define HALVES_2I(name, two)                                                       \
    HERE __m512i w_##name(__m512i a, __m512i b) {                                   \
        wide x = w_of(a), y = w_of(b);                                              \
        return (wide){.i2 = {two(x.i2[0], y.i2[0]), two(x.i2[1], y.i2[1])}}.i;      \
    }
#define HALVES_2F(name, two)                                                       \
    HERE __m512 w_##name(__m512 a, __m512 b) {                                      \
        wide x = w_off(a), y = w_off(b);                                            \
        return (wide){.f2 = {two(x.f2[0], y.f2[0]), two(x.f2[1], y.f2[1])}}.f;      \
    }
#define HALVES_3F(name, three)                                                     \
    HERE __m512 w_##name(__m512 a, __m512 b, __m512 c) {                            \
        wide x = w_off(a), y = w_off(b), z = w_off(c);                              \
        return (wide){.f2 = {three(x.f2[0], y.f2[0], z.f2[0]), three(x.f2[1], y.f2[1], z.f2[1])}}.f; \
    }
#define HALVES_N(name, by) \
    HERE __m512i w_##name(__m512i a, int n) { wide x = w_of(a); return (wide){.i2 = {by(x.i2[0], n), by(x.i2[1], n)}}.i; }
HALVES_2I(add_epi8, _mm256_add_epi8)
HALVES_2I(sub_epi8, _mm256_sub_epi8)
HALVES_2I(add_epi32, _mm256_add_epi32)
HALVES_2I(sub_epi32, _mm256_sub_epi32)
HALVES_2I(mullo_epi32, _mm256_mullo_epi32)
HALVES_2I(max_epi32, _mm256_max_epi32)
HALVES_2I(madd_epi16, _mm256_madd_epi16)
HALVES_2I(and_si512, _mm256_and_si256)
HALVES_2I(or_si512, _mm256_or_si256)
HALVES_2I(xor_si512, _mm256_xor_si256)
HALVES_2I(unpacklo_epi32, _mm256_unpacklo_epi32)
HALVES_2I(unpackhi_epi32, _mm256_unpackhi_epi32)
HALVES_2I(unpacklo_epi64, _mm256_unpacklo_epi64)
HALVES_2I(unpackhi_epi64, _mm256_unpackhi_epi64)
HALVES_2I(shuffle_epi8, _mm256_shuffle_epi8)
HALVES_2I(sllv_epi32, _mm256_sllv_epi32)
HALVES_2I(srlv_epi64, _mm256_srlv_epi64)
HALVES_2F(add_ps, _mm256_add_ps)
HALVES_2F(sub_ps, _mm256_sub_ps)
HALVES_2F(mul_ps, _mm256_mul_ps)
HALVES_2F(div_ps, _mm256_div_ps)
HALVES_2F(max_ps, _mm256_max_ps)
HALVES_2F(min_ps, _mm256_min_ps)
HALVES_3F(fmadd_ps, _mm256_fmadd_ps)
HALVES_3F(fnmadd_ps, _mm256_fnmadd_ps)
HALVES_N(slli_epi32, _mm256_slli_epi32)
HALVES_N(srli_epi32, _mm256_srli_epi32)
HALVES_N(srai_epi32, _mm256_srai_epi32)
HALVES_N(srli_epi16, _mm256_srli_epi16)
HALVES_N(srli_epi64, _mm256_srli_epi64)
HERE __m512i w_sll_epi32(__m512i a, __m128i n) {
    wide x = w_of(a);
    return (wide){.i2 = {_mm256_sll_epi32(x.i2[0], n), _mm256_sll_epi32(x.i2[1], n)}}.i;
}
HERE __m512 w_cvtepi32_ps(__m512i a) {
    wide x = w_of(a);
    return (wide){.f2 = {_mm256_cvtepi32_ps(x.i2[0]), _mm256_cvtepi32_ps(x.i2[1])}}.f;
}
HERE __m512i w_cvttps_epi32(__m512 a) {
    wide x = w_off(a);
    return (wide){.i2 = {_mm256_cvttps_epi32(x.f2[0]), _mm256_cvttps_epi32(x.f2[1])}}.i;
}
HERE __m512i w_cvtps_epi32(__m512 a) {
    wide x = w_off(a);
    return (wide){.i2 = {_mm256_cvtps_epi32(x.f2[0]), _mm256_cvtps_epi32(x.f2[1])}}.i;
}
HERE void w_nearest(int how) { if (how != (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) __builtin_trap(); }
HERE __m512 w_round(__m512 a, int how) {
    w_nearest(how);
    wide x = w_off(a);
    return (wide){.f2 = {_mm256_round_ps(x.f2[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                         _mm256_round_ps(x.f2[1], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}}.f;
}
HERE __m512 w_cvtph_ps(__m256i a) {
    return (wide){.f2 = {_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))}}.f;
}
HERE __m256i w_cvtps_ph(__m512 a, int how) {
    w_nearest(how);
    wide x = w_off(a);
    return _mm256_set_m128i(_mm256_cvtps_ph(x.f2[1], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                            _mm256_cvtps_ph(x.f2[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#define WIDEN(name, half, shift)                                                                                \
    HERE __m512i w_##name(__m128i a) { return (wide){.i2 = {half(a), half(_mm_srli_si128(a, shift))}}.i; }
WIDEN(cvtepu8_epi32, _mm256_cvtepu8_epi32, 8)
WIDEN(cvtepi8_epi32, _mm256_cvtepi8_epi32, 8)
HERE __m512i w_cvtepu16_epi32(__m256i a) {
    return (wide){.i2 = {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1))}}.i;
}
HERE __m512i w_cvtepi16_epi32(__m256i a) {
    return (wide){.i2 = {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(a)), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(a, 1))}}.i;
}

/* Four unsigned bytes times four signed ones, added to each dword; nothing saturates. */
HERE __m256i w_dpbusd_256(__m256i c, __m256i a, __m256i b) {
    __m256i low = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(c, _mm256_add_epi32(low, high));
}
HERE __m512i w_dpbusd_epi32(__m512i c, __m512i a, __m512i b) {
    wide x = w_of(a), y = w_of(b), z = w_of(c);
    return (wide){.i2 = {w_dpbusd_256(z.i2[0], x.i2[0], y.i2[0]), w_dpbusd_256(z.i2[1], x.i2[1], y.i2[1])}}.i;
}

/* --- lane by lane --- */

#define EACH(n, to, what)                       \
    do {                                        \
        for (int l = 0; l < (n); l++) to = what; \
    } while (0)
#define LANES(body)     \
    wide r;             \
    memset(&r, 0, sizeof r); \
    body;               \
    return r

HERE wide w_rolv(wide x, wide n) { LANES(EACH(8, r.uq[l], x.uq[l] << (n.q[l] & 63) | x.uq[l] >> (-n.q[l] & 63))); }
/* Bit (a, b, c) of the table. */
HERE wide w_ternary(wide a, wide b, wide c, int table) {
    wide r;
    memset(&r, 0, sizeof r);
    for (int t = 0; t < 8; t++)
        if (table >> t & 1)
            EACH(8, r.uq[l], r.uq[l] | ((t & 4 ? a.uq[l] : ~a.uq[l]) & (t & 2 ? b.uq[l] : ~b.uq[l]) & (t & 1 ? c.uq[l] : ~c.uq[l])));
    return r;
}
HERE wide w_permute_d(wide index, wide a) { LANES(EACH(16, r.d[l], a.d[index.d[l] & 15])); }
HERE wide w_permute2_d(wide a, wide index, wide b) {
    LANES(EACH(16, r.d[l], index.d[l] & 16 ? b.d[index.d[l] & 15] : a.d[index.d[l] & 15]));
}
HERE wide w_permute_q(wide index, wide a) { LANES(EACH(8, r.q[l], a.q[index.q[l] & 7])); }
HERE wide w_permute2_q(wide a, wide index, wide b) {
    LANES(EACH(8, r.q[l], index.q[l] & 8 ? b.q[index.q[l] & 7] : a.q[index.q[l] & 7]));
}
HERE wide w_permute2_w(wide a, wide index, wide b) {
    LANES(EACH(32, r.w[l], index.w[l] & 32 ? b.w[index.w[l] & 31] : a.w[index.w[l] & 31]));
}
HERE wide w_permute_w(wide index, wide a) { LANES(EACH(32, r.w[l], a.w[index.w[l] & 31])); }
HERE wide w_shuffle_4(wide a, wide b, int n) {
    return (wide){.i4 = {a.i4[n & 3], a.i4[n >> 2 & 3], b.i4[n >> 4 & 3], b.i4[n >> 6 & 3]}};
}
HERE wide w_shuffle_d(wide a, int n) { LANES(EACH(16, r.d[l], a.d[(l & 12) | (n >> 2 * (l & 3) & 3)])); }
HERE wide w_shuffle2_d(wide a, wide b, int n) {
    LANES(EACH(16, r.d[l], (l & 2 ? b : a).d[(l & 12) | (n >> 2 * (l & 3) & 3)]));
}
HERE wide w_insert_4(wide a, __m128i b, int at) { a.i4[at] = b; return a; }
HERE wide w_insert_2(wide a, __m256i b, int at) { a.i2[at] = b; return a; }
HERE wide w_insertf_2(wide a, __m256 b, int at) { a.f2[at] = b; return a; }
HERE wide w_blend_d(__mmask16 m, wide a, wide b) { LANES(EACH(16, r.d[l], m >> l & 1 ? b.d[l] : a.d[l])); }
HERE wide w_blend_w(__mmask32 m, wide a, wide b) { LANES(EACH(32, r.w[l], m >> l & 1 ? b.w[l] : a.w[l])); }
HERE wide w_blend_b(__mmask64 m, wide a, wide b) { LANES(EACH(64, r.b[l], m >> l & 1 ? b.b[l] : a.b[l])); }
HERE __mmask16 w_less_d(wide a, wide b) {
    __mmask16 m = 0;
    for (int l = 0; l < 16; l++) m |= (__mmask16)((a.d[l] < b.d[l]) << l);
    return m;
}
HERE __mmask16 w_equal_d(wide a, wide b) {
    __mmask16 m = 0;
    for (int l = 0; l < 16; l++) m |= (__mmask16)((a.d[l] == b.d[l]) << l);
    return m;
}
HERE __mmask64 w_least_ub(wide a, wide b) {
    __mmask64 m = 0;
    for (int l = 0; l < 64; l++) m |= (__mmask64)((uint8_t)a.b[l] >= (uint8_t)b.b[l]) << l;
    return m;
}
HERE __m128i w_to_bytes(wide a) {
    union { __m128i v; int8_t b[16]; } r;
    EACH(16, r.b[l], (int8_t)a.d[l]);
    return r.v;
}
HERE __m256i w_to_words(wide a) {
    union { __m256i v; int16_t w[16]; } r;
    EACH(16, r.w[l], (int16_t)a.d[l]);
    return r.v;
}
/* a * 2^floor(e), rounded once. */
HERE wide w_scale(wide a, wide e) {
    LANES(EACH(16, r.s[l], isnan(a.s[l]) || isnan(e.s[l]) ? a.s[l] + e.s[l]
                           : isinf(e.s[l])                ? (e.s[l] > 0 ? a.s[l] * INFINITY : a.s[l] * 0.0f)
                           : (float)ldexp((double)a.s[l], (int)fmaxf(-600, fminf(600, floorf(e.s[l]))))));
}
/* Nothing is read where the mask is zero. */
HERE wide w_some_d(__mmask16 m, const void *p, int n) {
    LANES(for (int l = 0; l < n; l++) if (m >> l & 1) memcpy(&r.d[l], (const char *)p + 4 * l, 4));
}
HERE wide w_some_w(__mmask32 m, const void *p, int n) {
    LANES(for (int l = 0; l < n; l++) if (m >> l & 1) memcpy(&r.w[l], (const char *)p + 2 * l, 2));
}
HERE void w_put_d(void *p, __mmask16 m, wide a) {
    for (int l = 0; l < 16; l++) if (m >> l & 1) memcpy((char *)p + 4 * l, &a.d[l], 4);
}
HERE wide w_load(const void *p) { wide r; memcpy(&r, p, 64); return r; }
HERE void w_aligned(const void *p) { if ((uintptr_t)p & 63) __builtin_trap(); }
HERE wide w_load_a(const void *p) { w_aligned(p); return w_load(p); }
HERE void w_store(void *p, wide a) { memcpy(p, &a, 64); }
HERE void w_store_a(void *p, wide a) { w_aligned(p); w_store(p, a); }
HERE wide w_all_d(int32_t v) { LANES(EACH(16, r.d[l], v)); }
HERE wide w_all_f(float v) { LANES(EACH(16, r.s[l], v)); }
HERE wide w_all_w(int16_t v) { LANES(EACH(32, r.w[l], v)); }
HERE wide w_all_b(int8_t v) { LANES(EACH(64, r.b[l], v)); }
HERE wide w_all_q(int64_t v) { LANES(EACH(8, r.q[l], v)); }
HERE wide w_none(void) { wide r; memset(&r, 0, sizeof r); return r; }
HERE int32_t w_word(const void *p) { int32_t v; memcpy(&v, p, 4); return v; }
/* The order of GCC's reductions: halves, quarters, and so on. */
HERE float w_sum(wide a) {
    for (int n = 8; n; n /= 2) EACH(n, a.s[l], a.s[l] + a.s[l + n]);
    return a.s[0];
}
HERE int32_t w_sum_d(wide a) {
    for (int n = 8; n; n /= 2) EACH(n, a.ud[l], a.ud[l] + a.ud[l + n]);
    return a.d[0];
}
HERE float w_top(wide a) {
    for (int n = 8; n; n /= 2) EACH(n, a.s[l], a.s[l] > a.s[l + n] ? a.s[l] : a.s[l + n]);
    return a.s[0];
}

/* --- the names --- */


#define _mm512_add_epi8 w_add_epi8
#define _mm512_sub_epi8 w_sub_epi8
#define _mm512_add_epi32 w_add_epi32
#define _mm512_sub_epi32 w_sub_epi32
#define _mm512_mullo_epi32 w_mullo_epi32
#define _mm512_max_epi32 w_max_epi32
#define _mm512_madd_epi16 w_madd_epi16
#define _mm512_and_si512 w_and_si512
#define _mm512_or_si512 w_or_si512
#define _mm512_xor_si512 w_xor_si512
#define _mm512_unpacklo_epi32 w_unpacklo_epi32
#define _mm512_unpackhi_epi32 w_unpackhi_epi32
#define _mm512_unpacklo_epi64 w_unpacklo_epi64
#define _mm512_unpackhi_epi64 w_unpackhi_epi64
#define _mm512_unpacklo_ps(a, b) _mm512_castsi512_ps(w_unpacklo_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
#define _mm512_unpackhi_ps(a, b) _mm512_castsi512_ps(w_unpackhi_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
#define _mm512_shuffle_epi8 w_shuffle_epi8
#define _mm512_sllv_epi32 w_sllv_epi32
#define _mm512_srlv_epi64 w_srlv_epi64
#define _mm512_rolv_epi64(a, n) w_rolv(w_of(a), w_of(n)).i
#define _mm512_add_ps w_add_ps
#define _mm512_sub_ps w_sub_ps
#define _mm512_mul_ps w_mul_ps
#define _mm512_div_ps w_div_ps
#define _mm512_max_ps w_max_ps
#define _mm512_min_ps w_min_ps
#define _mm512_fmadd_ps w_fmadd_ps
#define _mm512_fnmadd_ps w_fnmadd_ps
#define _mm512_slli_epi32 w_slli_epi32
#define _mm512_srli_epi32 w_srli_epi32
#define _mm512_srai_epi32 w_srai_epi32
#define _mm512_srli_epi16 w_srli_epi16
#define _mm512_srli_epi64 w_srli_epi64
#define _mm512_sll_epi32 w_sll_epi32
#define _mm512_cvtepi32_ps w_cvtepi32_ps
#define _mm512_cvtps_epi32 w_cvtps_epi32
#define _mm512_cvttps_epi32 w_cvttps_epi32
#define _mm512_roundscale_ps(a, how) w_round(a, how)
#define _mm512_scalef_ps(a, e) w_scale(w_off(a), w_off(e)).f
#define _mm512_cvtph_ps w_cvtph_ps
#define _mm512_cvtps_ph w_cvtps_ph
#define _mm512_cvtepu8_epi32 w_cvtepu8_epi32
#define _mm512_cvtepi8_epi32 w_cvtepi8_epi32
#define _mm512_cvtepu16_epi32 w_cvtepu16_epi32
#define _mm512_cvtepi16_epi32 w_cvtepi16_epi32
#define _mm512_cvtepi32_epi8(a) w_to_bytes(w_of(a))
#define _mm512_cvtepi32_epi16(a) w_to_words(w_of(a))
#define _mm512_dpbusd_epi32 w_dpbusd_epi32
#define HD_DOT_FOUR(a, w, p) w_dpbusd_epi32(a, w, w_all_d(w_word(p)).i) /* dot_sixteen.h: embedded broadcast */
#define _mm512_ternarylogic_epi64(a, b, c, table) w_ternary(w_of(a), w_of(b), w_of(c), table).i
#define _mm512_ternarylogic_epi32 _mm512_ternarylogic_epi64
#define _mm512_permutexvar_epi32(index, a) w_permute_d(w_of(index), w_of(a)).i
#define _mm512_permutexvar_epi64(index, a) w_permute_q(w_of(index), w_of(a)).i
#define _mm512_permutexvar_ps(index, a) w_permute_d(w_of(index), w_off(a)).f
#define _mm512_permutexvar_epi16(index, a) w_permute_w(w_of(index), w_of(a)).i
#define _mm512_mask_permutexvar_epi16(from, m, index, a) w_blend_w(m, w_of(from), w_permute_w(w_of(index), w_of(a))).i
#define _mm512_permutex2var_epi16(a, index, b) w_permute2_w(w_of(a), w_of(index), w_of(b)).i
#define _mm512_permutex2var_epi32(a, index, b) w_permute2_d(w_of(a), w_of(index), w_of(b)).i
#define _mm512_permutex2var_epi64(a, index, b) w_permute2_q(w_of(a), w_of(index), w_of(b)).i
#define _mm512_permutex2var_ps(a, index, b) w_permute2_d(w_off(a), w_of(index), w_off(b)).f
#define _mm512_shuffle_i32x4(a, b, n) w_shuffle_4(w_of(a), w_of(b), n).i
#define _mm512_shuffle_f32x4(a, b, n) w_shuffle_4(w_off(a), w_off(b), n).f
#define _mm512_shuffle_epi32(a, n) w_shuffle_d(w_of(a), n).i
#define _mm512_shuffle_ps(a, b, n) w_shuffle2_d(w_off(a), w_off(b), n).f
#define _mm512_inserti32x4(a, b, at) w_insert_4(w_of(a), b, at).i
#define _mm512_inserti64x4(a, b, at) w_insert_2(w_of(a), b, at).i
#define _mm512_insertf32x8(a, b, at) w_insertf_2(w_off(a), b, at).f
#define _mm512_extracti64x4_epi64(a, at) (w_of(a).i2[at])
#define _mm512_extractf32x8_ps(a, at) (w_off(a).f2[at])
#define _mm512_extracti32x4_epi32(a, at) (w_of(a).i4[at])
#define _mm512_castps_si512(a) (w_off(a).i)
#define _mm512_castsi512_ps(a) (w_of(a).f)
#define _mm512_castsi512_si128(a) (w_of(a).i4[0])
#define _mm512_castsi512_si256(a) (w_of(a).i2[0])
#define _mm512_castps512_ps256(a) (w_off(a).f2[0])
#define _mm512_castps512_ps128(a) _mm256_castps256_ps128(w_off(a).f2[0])
#define _mm512_castsi128_si512(a) w_insert_4(w_none(), a, 0).i
#define _mm512_castsi256_si512(a) w_insert_2(w_none(), a, 0).i
#define _mm512_castps256_ps512(a) w_insertf_2(w_none(), a, 0).f
#define _mm512_castps128_ps512(a) w_insert_4(w_none(), _mm_castps_si128(a), 0).f
#define _mm512_broadcast_i32x4(a) ((wide){.i4 = {(a), (a), (a), (a)}}.i)
#define _mm512_mask_broadcast_i32x4(from, m, a) w_blend_d(m, w_of(from), w_of(_mm512_broadcast_i32x4(a))).i
#define _mm512_broadcast_i64x4(a) ((wide){.i2 = {(a), (a)}}.i)
#define _mm512_mask_blend_epi32(m, a, b) w_blend_d(m, w_of(a), w_of(b)).i
#define _mm512_mask_blend_epi16(m, a, b) w_blend_w(m, w_of(a), w_of(b)).i
#define _mm512_mask_blend_ps(m, a, b) w_blend_d(m, w_off(a), w_off(b)).f
#define _mm512_maskz_mov_ps(m, a) w_blend_d(m, w_none(), w_off(a)).f
#define _mm512_mask_add_epi8(from, m, a, b) w_blend_b(m, w_of(from), w_of(w_add_epi8(a, b))).i
#define _mm512_mask_sub_epi8(from, m, a, b) w_blend_b(m, w_of(from), w_of(w_sub_epi8(a, b))).i
#define _mm512_cmplt_epi32_mask(a, b) w_less_d(w_of(a), w_of(b))
#define W_COMPARED(a, b, how, h) _mm256_movemask_ps(_mm256_cmp_ps(w_off(a).f2[h], w_off(b).f2[h], how))
#define _mm512_cmp_ps_mask(a, b, how) ((__mmask16)(W_COMPARED(a, b, how, 0) | W_COMPARED(a, b, how, 1) << 8))
#define _mm512_cmpeq_epi32_mask(a, b) w_equal_d(w_of(a), w_of(b))
#define _mm512_cmpge_epu8_mask(a, b) w_least_ub(w_of(a), w_of(b))
#define _mm512_cmpge_epi32_mask(a, b) ((__mmask16)~w_less_d(w_of(a), w_of(b)))
#define _mm512_load_ps(p) w_load_a(p).f
#define _mm512_loadu_ps(p) w_load(p).f
#define _mm512_load_si512(p) w_load_a(p).i
#define _mm512_loadu_si512(p) w_load(p).i
#define _mm512_store_ps(p, a) w_store_a(p, w_off(a))
#define _mm512_storeu_ps(p, a) w_store(p, w_off(a))
#define _mm512_store_si512(p, a) w_store_a(p, w_of(a))
#define _mm512_storeu_si512(p, a) w_store(p, w_of(a))
#define _mm512_maskz_loadu_ps(m, p) w_some_d(m, p, 16).f
#define _mm512_maskz_loadu_epi32(m, p) w_some_d(m, p, 16).i
#define _mm512_mask_storeu_ps(p, m, a) w_put_d(p, m, w_off(a))
#define _mm512_setzero_ps() (w_none().f)
#define _mm512_setzero_si512() (w_none().i)
#define _mm512_set1_ps(a) w_all_f(a).f
#define _mm512_set1_epi8(a) w_all_b((int8_t)(a)).i
#define _mm512_set1_epi16(a) w_all_w((int16_t)(a)).i
#define _mm512_set1_epi32(a) w_all_d((int32_t)(a)).i
#define _mm512_set1_epi64(a) w_all_q(a).i
#define _mm512_setr_epi64(...) ((wide){.q = {__VA_ARGS__}}.i)
#define _mm512_setr_epi32(...) ((wide){.d = {__VA_ARGS__}}.i)
#define _mm512_set_epi32(a15, a14, a13, a12, a11, a10, a9, a8, a7, a6, a5, a4, a3, a2, a1, a0) \
    ((wide){.d = {a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15}}.i)
#define _mm512_setr_ps(...) ((wide){.s = {__VA_ARGS__}}.f)
#define _mm512_cvtss_f32(a) (w_off(a).s[0])
#define _mm512_reduce_add_ps(a) w_sum(w_off(a))
#define _mm512_reduce_max_ps(a) w_top(w_off(a))
#define _mm512_reduce_add_epi32(a) w_sum_d(w_of(a))

/* --- of 128 and 256 bits --- */

HERE wide w_half(__m256i a) { return w_insert_2(w_none(), a, 0); }
HERE __mmask8 w_less_ud(__m256i a, __m256i b) {
    wide x = w_half(a), y = w_half(b);
    __mmask8 m = 0;
    for (int l = 0; l < 8; l++) m |= (__mmask8)((x.ud[l] < y.ud[l]) << l);
    return m;
}
HERE __m128i w_srlv_w(__m128i a, __m128i n) {
    wide x = w_insert_4(w_none(), a, 0), y = w_insert_4(w_none(), n, 0);
    for (int l = 0; l < 8; l++) x.w[l] = (uint16_t)y.w[l] > 15 ? 0 : (int16_t)((uint16_t)x.w[l] >> y.w[l]);
    return x.i4[0];
}
#define _mm_srlv_epi16 w_srlv_w
#define _mm_ternarylogic_epi32(a, b, c, table) \
    (w_ternary(w_insert_4(w_none(), a, 0), w_insert_4(w_none(), b, 0), w_insert_4(w_none(), c, 0), table).i4[0])
#define _mm256_maskz_loadu_ps(m, p) (w_some_d(m, p, 8).f2[0])
#define _mm256_maskz_loadu_epi32(m, p) (w_some_d(m, p, 8).i2[0])
#define _mm256_maskz_loadu_epi16(m, p) (w_some_w(m, p, 16).i2[0])
#define _mm256_maskz_mov_epi32(m, a) (w_blend_d(m, w_none(), w_half(a)).i2[0])
#define _mm256_mask_sub_epi8(from, m, a, b) (w_blend_b(m, w_half(from), w_half(_mm256_sub_epi8(a, b))).i2[0])
#define _mm256_mask_sllv_epi32(from, m, a, n) (w_blend_d(m, w_half(from), w_half(_mm256_sllv_epi32(a, n))).i2[0])
#define _mm256_cmplt_epu32_mask(a, b) w_less_ud(a, b)
HERE __mmask64 w_both_b(wide a, wide b) {
    __mmask64 m = 0;
    for (int l = 0; l < 64; l++) m |= (__mmask64)((a.b[l] & b.b[l]) != 0) << l;
    return m;
}
#define _mm512_test_epi8_mask(a, b) w_both_b(w_of(a), w_of(b))
#define _mm512_mask_set1_epi8(from, m, a) w_blend_b(m, w_of(from), w_all_b((int8_t)(a))).i
#define _mm512_maskz_set1_epi8(m, a) w_blend_b(m, w_none(), w_all_b((int8_t)(a))).i
