/* Products for many tokens with AVX-512 VNNI: bytes of a panel (32 rows) times the tokens' bytes, in register blocks of
 * 32 rows x up to 6 tokens. Sums of 16 or 32 columns are exact integers; scales are applied to each in f32. */
#include <immintrin.h>
#include <string.h>

#include "gemm_unpack.h"

#define TOKENS 6
#define INLINE static inline __attribute__((always_inline))

/* One broadcast for both halves of the panel: GCC would fold it into each product and load twice. */
INLINE __m512i four(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    __m512i x = _mm512_set1_epi32(v);
    __asm__("" : "+v"(x));
    return x;
}

/* Exact sums of `count` dwords of columns for n tokens. */
INLINE void dots(__m512i a[][2], const uint8_t *w, const int8_t *const *q, const int from, const int count,
                 const int n)
{
#pragma GCC unroll 8
    for (int d = 0; d < count; d++) {
        __m512i w0 = _mm512_load_si512(w + 128 * d), w1 = _mm512_load_si512(w + 128 * d + 64);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            __m512i v = four(q[t] + from + 4 * d);
            a[t][0] = _mm512_dpbusd_epi32(a[t][0], w0, v);
            a[t][1] = _mm512_dpbusd_epi32(a[t][1], w1, v);
        }
    }
}

/* Of types without minima each 32 columns of a token are prepared: d and, for each of their scales, minus the offset times the
 * sum of q, with which their sums begin: {d, taken} under one scale, {d, d, taken, taken} under two. */
static void prepare_32(uint8_t *to, const hd_panel_kind *kind, const uint8_t *row, int64_t k)
{
    const __m512i less = _mm512_set1_epi16((int16_t)-kind->offset);
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int64_t b = 0; b < k / 32; b += 16, to += 128) {
        const int64_t left = k / 32 - b;
        const __mmask16 here = left < 16 ? (__mmask16)((1 << left) - 1) : 0xffff;
        const __m512i d = _mm512_maskz_loadu_epi32(here, hd_q8_d(row, k) + b);
        const __m512i taken = _mm512_madd_epi16(_mm512_maskz_loadu_epi32(here, hd_q8_sums(row, k) + 2 * b), less);
        _mm512_storeu_si512(to, _mm512_permutex2var_epi32(d, low, taken));
        if (left > 8) _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi32(d, high, taken));
    }
}

static void prepare_16(uint8_t *to, const hd_panel_kind *kind, const uint8_t *row, int64_t k)
{
    const __m512i less = _mm512_set1_epi32(-kind->offset);
    const __m512i low = _mm512_setr_epi32(0, 0, 16, 17, 1, 1, 18, 19, 2, 2, 20, 21, 3, 3, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_setr_epi32(4, 4, 8, 8, 4, 4, 8, 8, 4, 4, 8, 8, 4, 4, 8, 8));
    for (int64_t b = 0; b < k / 32; b += 8, to += 128) {
        const int64_t left = k / 32 - b;
        const __mmask8 here = left < 8 ? (__mmask8)((1 << left) - 1) : 0xff;
        const __m512i d = _mm512_castsi256_si512(_mm256_maskz_loadu_epi32(here, hd_q8_d(row, k) + b));
        const __m256i pairs = _mm256_maskz_loadu_epi32(here, hd_q8_sums(row, k) + 2 * b);
        const __m512i taken = _mm512_mullo_epi32(_mm512_cvtepi16_epi32(pairs), less);
        _mm512_storeu_si512(to, _mm512_permutex2var_epi32(d, low, taken));
        if (left > 4) _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi32(d, high, taken));
    }
}

/* Four bytes of a token's side, the same in all lanes. */
INLINE __m512i word(const uint8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}
INLINE __m512i less(const uint8_t *sums, int32_t taken)
{
    return _mm512_madd_epi16(word(sums), _mm512_set1_epi32(taken));
}

INLINE void block(float *sum, const uint8_t *w, const hd_panel_kind *kind, const hd_panel_tokens *tokens, int32_t kc,
                  const int sub, const int mins, const int n)
{
    const float *ws = (const float *)(const void *)(w + 32 * kc), *wm = ws + 32 * (kc / sub);
    const size_t lifts = tokens->lift, pairs = tokens->sums;
    const int32_t early = hd_taken(kind->offset, 1, 0), late = hd_taken(kind->offset, 0, 1);
    const int side_step = mins ? 4 : sub == 32 ? 8 : 16;
    const int8_t *q[TOKENS];
    const uint8_t *side[TOKENS], *ahead = tokens->ahead;
    __m512 total[TOKENS][2];
#pragma GCC unroll 6
    for (int t = 0; t < n; t++) {
        q[t] = tokens->x[t];
        side[t] = tokens->side[t];
        total[t][0] = total[t][1] = _mm512_setzero_ps();
        if (tokens->begins) continue;
        total[t][0] = _mm512_load_ps(sum + 32 * t);
        total[t][1] = _mm512_load_ps(sum + 32 * t + 16);
    }
    for (int32_t c = 0; c < kc; c += 32, w += 1024) {
        __m512i a[TOKENS][2];
        __m512 first[TOKENS][2];
        for (int32_t i = 0; i < tokens->lines; i++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        if (sub == 16) { /* the first 16 columns, weighed by their scale, wait in floats for the others */
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
                a[t][0] = a[t][1] = mins ? less(side[t] + pairs, early) : word(side[t] + 8);
            dots(a, w, q, 0, 4, n);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) {
                first[t][0] = _mm512_mul_ps(_mm512_cvtepi32_ps(a[t][0]), _mm512_load_ps(ws));
                first[t][1] = _mm512_mul_ps(_mm512_cvtepi32_ps(a[t][1]), _mm512_load_ps(ws + 16));
            }
            if (mins)
#pragma GCC unroll 6
                for (int t = 0; t < n; t++) {
                    __m512 l = _mm512_set1_ps(hd_side_float(side[t]) * (float)(int16_t)hd_side_sums(side[t] + pairs));
                    total[t][0] = _mm512_fnmadd_ps(_mm512_load_ps(wm), l, total[t][0]);
                    total[t][1] = _mm512_fnmadd_ps(_mm512_load_ps(wm + 16), l, total[t][1]);
                }
            ws += 32, wm += 32;
        }
#pragma GCC unroll 6
        for (int t = 0; t < n; t++)
            a[t][0] = a[t][1] = !mins ? word(side[t] + side_step - 4)
                              : sub == 16 ? less(side[t] + pairs, late)
                                          : _mm512_setzero_si512(); /* types with such a minimum have no offset */
        if (sub == 16) dots(a, w + 512, q, 16, 4, n);
        else dots(a, w, q, 0, 8, n);
        const __m512 s0 = _mm512_load_ps(ws), s1 = _mm512_load_ps(ws + 16);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            const __m512 d = _mm512_set1_ps(hd_side_float(side[t]));
            __m512 f0 = _mm512_cvtepi32_ps(a[t][0]), f1 = _mm512_cvtepi32_ps(a[t][1]);
            if (sub == 16) {
                f0 = _mm512_fmadd_ps(f0, s0, first[t][0]);
                f1 = _mm512_fmadd_ps(f1, s1, first[t][1]);
            } else {
                f0 = _mm512_mul_ps(f0, s0);
                f1 = _mm512_mul_ps(f1, s1);
            }
            total[t][0] = _mm512_fmadd_ps(f0, d, total[t][0]);
            total[t][1] = _mm512_fmadd_ps(f1, d, total[t][1]);
        }
        if (mins)
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) {
                __m512 l = sub == 32 ? _mm512_set1_ps(hd_side_float(side[t] + lifts))
                                     : _mm512_set1_ps(hd_side_float(side[t]) * (float)(hd_side_sums(side[t] + pairs) >> 16));
                total[t][0] = _mm512_fnmadd_ps(_mm512_load_ps(wm), l, total[t][0]);
                total[t][1] = _mm512_fnmadd_ps(_mm512_load_ps(wm + 16), l, total[t][1]);
            }
        ws += 32, wm += 32;
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) q[t] += 32, side[t] += side_step;
    }
#pragma GCC unroll 6
    for (int t = 0; t < n; t++) {
        float *to = tokens->out ? tokens->out[t] + tokens->row : sum + 32 * t;
        _mm512_storeu_ps(to, total[t][0]);
        _mm512_storeu_ps(to + 16, total[t][1]);
    }
}

typedef void block_fn(float *sum, const uint8_t *panel, const hd_panel_kind *kind, const hd_panel_tokens *tokens, int32_t kc);
#define BLOCK(sub, mins, n)                                                                                  \
    static void block_##sub##_##mins##_##n(float *sum, const uint8_t *panel, const hd_panel_kind *kind,      \
                                           const hd_panel_tokens *tokens, int32_t kc)                        \
    {                                                                                                        \
        block(sum, panel, kind, tokens, kc, sub, mins, n);                                                   \
    }
#define BLOCKS(sub, mins) \
    BLOCK(sub, mins, 1) BLOCK(sub, mins, 2) BLOCK(sub, mins, 3) BLOCK(sub, mins, 4) BLOCK(sub, mins, 5) BLOCK(sub, mins, 6)
BLOCKS(32, 0)
BLOCKS(32, 1)
BLOCKS(16, 0)
BLOCKS(16, 1)
#define NAMES(sub, mins)                                                                                     \
    {block_##sub##_##mins##_1, block_##sub##_##mins##_2, block_##sub##_##mins##_3, block_##sub##_##mins##_4, \
     block_##sub##_##mins##_5, block_##sub##_##mins##_6}
static block_fn *const blocks[2][2][TOKENS] = {{NAMES(32, 0), NAMES(32, 1)}, {NAMES(16, 0), NAMES(16, 1)}};

static void multiply(float *sum, const uint8_t *panel, const hd_panel_kind *kind, const hd_panel_tokens *tokens,
                     int32_t n, int32_t kc)
{
    blocks[kind->sub == 16][kind->mins][n - 1](sum, panel, kind, tokens, kc);
}

#include "gemm_float_wide.h"

/* Two scales in 32 columns need registers for the first sixteen's sums, too. */
static const hd_panel_way way_mins = {.multiply = multiply, .width = 6, .direct = 1};
static const hd_panel_way way_32 = {multiply, 6, 1, 8, prepare_32, NULL};
static const hd_panel_way way_16 = {multiply, 5, 1, 16, prepare_16, NULL};
const hd_panel_way *hd_panel_way_avx512(const hd_panel_kind *kind)
{
    return kind->mins ? &way_mins : kind->sub == 32 ? &way_32 : &way_16;
}

static const hd_panel_kind *takes_bytes(const hd_product *p)
{
    return p->act == HD_ACT_Q8 ? hd_panel_kind_avx512(p->type) : NULL;
}

/* Few tokens multiply the blocks as they come: to the bit what panels give, without their way through memory. */
static hd_dot_fn direct(const hd_product *p)
{
    if (p->act != HD_ACT_Q8 || p->n > HD_DOT_MOST) return NULL;
    return hd_dots_avx512[p->type] ? hd_dots_avx512[p->type] : hd_dots_by_hand_avx512[p->type];
}

int hd_gemm_avx512(const hd_product *p, int64_t r0, int64_t r1, void *scratch)
{
    const hd_panel_kind *kind = takes_bytes(p);
    const hd_dot_fn dot = direct(p);
    if (dot) dot(p, r0, r1, 0, p->n);
    else if (kind) hd_panel_product(p, r0, r1, scratch, kind, hd_panel_way_avx512(kind));
    else if (takes_float(p)) float_product(p, r0, r1, scratch);
    else return 0;
    return 1;
}

size_t hd_gemm_scratch_avx512(const hd_product *p)
{
    if (direct(p)) return 0;
    return takes_bytes(p) ? hd_panel_scratch(p) : takes_float(p) ? float_scratch(p) : 0;
}
