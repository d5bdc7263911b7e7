/* Products for many tokens with AVX-512 VNNI: bytes of a panel (32 rows) times the tokens' bytes, in register blocks of
 * 32 rows x up to 6 tokens. Sums of 16 or 32 columns are exact integers; scales are applied to each in f32. */
#include <immintrin.h>
#include <string.h>

#include "gemm_unpack.h"

#define TOKENS 6
#define INLINE static inline __attribute__((always_inline))

/* One broadcast for both halves of the panel: GCC would fold it into each product and load twice. */
INLINE __m512i four(const uint8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    __m512i x = _mm512_set1_epi32(v);
    __asm__("" : "+v"(x));
    return x;
}

/* `stride` tokens lie in the token arrays; the block works on n of them. */
INLINE void block(float *sum, const uint8_t *panel, const uint8_t *const *x, const int32_t *start, const float *scale,
                  const float *lift, int32_t stride, int64_t k0, int32_t kc, const int sub, const int mins, const int n)
{
    const uint8_t *w = panel;
    const float *ws = (const float *)(const void *)(panel + 32 * kc), *wm = ws + 32 * (kc / sub);
    const uint8_t *q[TOKENS];
    __m512 total[TOKENS][2];
#pragma GCC unroll 6
    for (int t = 0; t < n; t++) {
        q[t] = x[t] + k0;
        total[t][0] = _mm512_load_ps(sum + 32 * t);
        total[t][1] = _mm512_load_ps(sum + 32 * t + 16);
    }
    for (int32_t c = 0; c < kc; c += 32) {
        if (sub == 32) {
            __m512i a[TOKENS][2];
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) a[t][0] = a[t][1] = mins ? _mm512_setzero_si512() : _mm512_set1_epi32(start[t]);
#pragma GCC unroll 8
            for (int d = 0; d < 8; d++) {
                __m512i w0 = _mm512_load_si512(w + 128 * d), w1 = _mm512_load_si512(w + 128 * d + 64);
#pragma GCC unroll 6
                for (int t = 0; t < n; t++) {
                    __m512i v = four(q[t] + c + 4 * d);
                    a[t][0] = _mm512_dpbusd_epi32(a[t][0], w0, v);
                    a[t][1] = _mm512_dpbusd_epi32(a[t][1], w1, v);
                }
            }
            __m512 s0 = _mm512_load_ps(ws), s1 = _mm512_load_ps(ws + 16);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) {
                __m512 d = _mm512_set1_ps(scale[t]);
                total[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a[t][0]), _mm512_mul_ps(s0, d), total[t][0]);
                total[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a[t][1]), _mm512_mul_ps(s1, d), total[t][1]);
                if (mins) {
                    __m512 l = _mm512_set1_ps(lift[t]);
                    total[t][0] = _mm512_fnmadd_ps(_mm512_load_ps(wm), l, total[t][0]);
                    total[t][1] = _mm512_fnmadd_ps(_mm512_load_ps(wm + 16), l, total[t][1]);
                }
            }
            start += stride, lift += stride, ws += 32, wm += 32;
        } else {
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m512i a[TOKENS][2];
#pragma GCC unroll 6
                for (int t = 0; t < n; t++) a[t][0] = a[t][1] = _mm512_set1_epi32(start[t]);
#pragma GCC unroll 4
                for (int d = 4 * h; d < 4 * h + 4; d++) {
                    __m512i w0 = _mm512_load_si512(w + 128 * d), w1 = _mm512_load_si512(w + 128 * d + 64);
#pragma GCC unroll 6
                    for (int t = 0; t < n; t++) {
                        __m512i v = four(q[t] + c + 4 * d);
                        a[t][0] = _mm512_dpbusd_epi32(a[t][0], w0, v);
                        a[t][1] = _mm512_dpbusd_epi32(a[t][1], w1, v);
                    }
                }
                __m512 s0 = _mm512_load_ps(ws), s1 = _mm512_load_ps(ws + 16);
#pragma GCC unroll 6
                for (int t = 0; t < n; t++) {
                    __m512 d = _mm512_set1_ps(scale[t]);
                    total[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a[t][0]), _mm512_mul_ps(s0, d), total[t][0]);
                    total[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a[t][1]), _mm512_mul_ps(s1, d), total[t][1]);
                    if (mins) {
                        __m512 l = _mm512_set1_ps(lift[t]);
                        total[t][0] = _mm512_fnmadd_ps(_mm512_load_ps(wm), l, total[t][0]);
                        total[t][1] = _mm512_fnmadd_ps(_mm512_load_ps(wm + 16), l, total[t][1]);
                    }
                }
                start += stride, lift += stride, ws += 32, wm += 32;
            }
        }
        w += 1024, scale += stride;
    }
#pragma GCC unroll 6
    for (int t = 0; t < n; t++) {
        _mm512_store_ps(sum + 32 * t, total[t][0]);
        _mm512_store_ps(sum + 32 * t + 16, total[t][1]);
    }
}

typedef void block_fn(float *sum, const uint8_t *panel, const uint8_t *const *x, const int32_t *start, const float *scale,
                      const float *lift, int32_t stride, int64_t k0, int32_t kc);
#define BLOCK(sub, mins, n)                                                                                        \
    static void block_##sub##_##mins##_##n(float *sum, const uint8_t *panel, const uint8_t *const *x,              \
                                           const int32_t *start, const float *scale, const float *lift,            \
                                           int32_t stride, int64_t k0, int32_t kc)                                 \
    {                                                                                                              \
        block(sum, panel, x, start, scale, lift, stride, k0, kc, sub, mins, n);                                    \
    }
#define BLOCKS(sub, mins) \
    BLOCK(sub, mins, 1) BLOCK(sub, mins, 2) BLOCK(sub, mins, 3) BLOCK(sub, mins, 4) BLOCK(sub, mins, 5) BLOCK(sub, mins, 6)
BLOCKS(32, 0) BLOCKS(32, 1) BLOCKS(16, 0) BLOCKS(16, 1)
#define NAMES(sub, mins)                                                                                  \
    {block_##sub##_##mins##_1, block_##sub##_##mins##_2, block_##sub##_##mins##_3, block_##sub##_##mins##_4, \
     block_##sub##_##mins##_5, block_##sub##_##mins##_6}
static block_fn *const blocks[2][2][TOKENS] = {{NAMES(32, 0), NAMES(32, 1)}, {NAMES(16, 0), NAMES(16, 1)}};

static void multiply(float *sum, const uint8_t *panel, const hd_panel_kind *kind, const hd_panel_tokens *tokens,
                     int32_t n, int64_t k0, int32_t kc)
{
    block_fn *const *of = blocks[kind->sub == 16][kind->mins];
    const int64_t group = k0 / kind->sub * n, c = k0 / 32 * n;
    int32_t parts = (n + TOKENS - 1) / TOKENS;
    for (int32_t t = 0; parts > 0; parts--) { /* blocks of nearly equal width: one of a single token would wait on itself */
        int32_t take = (n - t + parts - 1) / parts;
        of[take - 1](sum + 32 * t, panel, tokens->x + t, tokens->start + group + t, tokens->scale + c + t,
                     tokens->lift + group + t, n, k0, kc);
        t += take;
    }
}

#define LEAST 4 /* tokens; fewer are the direct products' */

int hd_gemm_avx512(const hd_product *p, int64_t r0, int64_t r1, void *scratch)
{
    const hd_panel_kind *kind = hd_panel_kind_avx512(p->type);
    if (!kind || p->act != HD_ACT_Q8 || p->n < LEAST) return 0;
    hd_panel_product(p, r0, r1, scratch, kind, multiply);
    return 1;
}

size_t hd_gemm_scratch_avx512(const hd_product *p)
{
    return p->act == HD_ACT_Q8 && p->n >= LEAST && hd_panel_kind_avx512(p->type) ? hd_panel_scratch(p) : 0;
}

int32_t hd_gemm_act_avx512(int32_t type, int32_t step_rows)
{
    (void)step_rows;
    return hd_panel_kind_avx512(type) ? HD_ACT_Q8 : -1;
}
