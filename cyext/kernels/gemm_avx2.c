/* Products for many tokens with AVX2: bytes of a panel times the tokens' bytes, in register blocks of 16 rows x up to 3
 * tokens. Products of pairs stay in 16 bits for as many steps as the type's largest byte allows, so sums of 16 or 32
 * columns are exact integers; scales are applied to each in f32. */
#include <immintrin.h>
#include <string.h>

#include "gemm_unpack.h"

#define TOKENS 3
#define INLINE static inline __attribute__((always_inline))

INLINE __m256i four(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    __m256i x = _mm256_set1_epi32(v);
    __asm__ volatile("" : "+x"(x));
    return x;
}

/* a[t][half of 16 rows] += sums over `count` dwords of columns from `from` on. `depth`: how many products of two pairs
 * (each at most 2 x largest byte x 127) fit in 16 bits. depth 0: the panel's bytes are signed. */
INLINE void dots(__m256i a[][2], const uint8_t *w, const int8_t *const *q, const int from, const int count, const int depth,
                 const int n)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const int run = depth ? depth < count ? depth : count : 1;
#pragma GCC unroll 8
    for (int base = 0; base < count; base += run) {
        __m256i part[TOKENS][2];
#pragma GCC unroll 8
        for (int d = base; d < base + run; d++) {
            __m256i w0 = _mm256_load_si256((const void *)(w + 128 * d)), w1 = _mm256_load_si256((const void *)(w + 128 * d + 32));
            __m256i m0 = depth ? w0 : _mm256_abs_epi8(w0), m1 = depth ? w1 : _mm256_abs_epi8(w1);
#pragma GCC unroll 3
            for (int t = 0; t < n; t++) {
                __m256i v = four(q[t] + from + 4 * d);
                __m256i p0 = _mm256_maddubs_epi16(m0, depth ? v : _mm256_sign_epi8(v, w0));
                __m256i p1 = _mm256_maddubs_epi16(m1, depth ? v : _mm256_sign_epi8(v, w1));
                part[t][0] = d == base ? p0 : _mm256_add_epi16(part[t][0], p0);
                part[t][1] = d == base ? p1 : _mm256_add_epi16(part[t][1], p1);
                __asm__ volatile("" : "+x"(part[t][0]), "+x"(part[t][1])); /* in this order: there are only 16 registers */
            }
        }
#pragma GCC unroll 3
        for (int t = 0; t < n; t++) {
            a[t][0] = _mm256_add_epi32(a[t][0], _mm256_madd_epi16(part[t][0], ones));
            a[t][1] = _mm256_add_epi32(a[t][1], _mm256_madd_epi16(part[t][1], ones));
            __asm__ volatile("" : "+x"(a[t][0]), "+x"(a[t][1]));
        }
    }
}

/* 16 rows, n tokens from `at` on. */
INLINE void block(float *sum, const uint8_t *w, const hd_panel_tokens *tokens, const int at, int32_t kc, const float *ws,
                  const int16_t offset, const int sub, const int mins, const int depth, const int n)
{
    const float *wm = ws + 32 * (kc / sub);
    const size_t lifts = tokens->lift, pairs = tokens->sums;
    const int8_t *q[TOKENS];
    const uint8_t *side[TOKENS];
#pragma GCC unroll 3
    for (int t = 0; t < n; t++) q[t] = tokens->x[at + t], side[t] = tokens->side[at + t];
    for (int32_t c = 0; c < kc; c += 32, w += 1024) {
#pragma GCC unroll 2
        for (int h = 0; h < 32 / sub; h++) {
            const __m256i taken = _mm256_set1_epi32(hd_taken(offset, sub == 32 || h == 0, sub == 32 || h == 1));
            __m256i a[TOKENS][2];
#pragma GCC unroll 3
            for (int t = 0; t < n; t++)
                a[t][0] = a[t][1] = depth && !mins /* signed bytes have no offset, nor have types with minima */
                                        ? _mm256_madd_epi16(_mm256_set1_epi32(hd_side_sums(side[t] + pairs)), taken)
                                        : _mm256_setzero_si256();
            dots(a, w + (sub == 16 ? 512 * h : 0), q, 16 * h, sub / 4, depth, n);
            const __m256 s0 = _mm256_load_ps(ws), s1 = _mm256_load_ps(ws + 8);
#pragma GCC unroll 3
            for (int t = 0; t < n; t++) {
                const __m256 d = _mm256_set1_ps(hd_side_float(side[t]));
                float *to = sum + 32 * t;
                __m256 t0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[t][0]), _mm256_mul_ps(s0, d), _mm256_load_ps(to));
                __m256 t1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[t][1]), _mm256_mul_ps(s1, d), _mm256_load_ps(to + 8));
                if (mins) {
                    const int32_t two = hd_side_sums(side[t] + pairs);
                    const __m256 l = _mm256_set1_ps(sub == 32 ? hd_side_float(side[t] + lifts)
                                                              : hd_side_float(side[t]) * (float)(h ? two >> 16 : (int16_t)two));
                    t0 = _mm256_fnmadd_ps(_mm256_load_ps(wm), l, t0);
                    t1 = _mm256_fnmadd_ps(_mm256_load_ps(wm + 8), l, t1);
                }
                _mm256_store_ps(to, t0);
                _mm256_store_ps(to + 8, t1);
            }
            ws += 32, wm += 32;
        }
#pragma GCC unroll 3
        for (int t = 0; t < n; t++) q[t] += 32, side[t] += 4;
    }
}

INLINE void panel(float *sum, const uint8_t *w, const hd_panel_tokens *tokens, int32_t n, int32_t kc, const int16_t offset,
                  const int sub, const int mins, const int depth)
{
    const float *ws = (const float *)(const void *)(w + 32 * kc);
    const uint8_t *ahead = tokens->ahead;
    for (int32_t at = 0, take; at < n; at += take) {
        take = n - at == 4 ? 2 : n - at < TOKENS ? n - at : TOKENS;
        for (int g = 0; g < 2; g++) {
            if (at == 0) /* half of the chunk's share with each half of the panel */
                for (int32_t i = 0; i < tokens->lines * (kc / 64); i++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
            float *to = sum + 32 * at + 16 * g;
            if (take == 1) block(to, w + 64 * g, tokens, at, kc, ws + 16 * g, offset, sub, mins, depth, 1);
            else if (take == 2) block(to, w + 64 * g, tokens, at, kc, ws + 16 * g, offset, sub, mins, depth, 2);
            else block(to, w + 64 * g, tokens, at, kc, ws + 16 * g, offset, sub, mins, depth, 3);
        }
    }
}

/* The combinations that exist: depth is 32767 / (2 * 127 * top), as a power of two. */
static void multiply(float *sum, const uint8_t *w, const hd_panel_kind *kind, const hd_panel_tokens *tokens, int32_t n,
                     int32_t kc)
{
    if (kind->sub == 32 && kind->mins && kind->top <= 15) panel(sum, w, tokens, n, kc, 0, 32, 1, 8);
    else if (kind->sub == 32 && kind->mins) panel(sum, w, tokens, n, kc, 0, 32, 1, 4);
    else if (kind->sub == 32 && kind->top <= 15) panel(sum, w, tokens, n, kc, kind->offset, 32, 0, 8);
    else if (kind->sub == 32 && kind->top <= 31) panel(sum, w, tokens, n, kc, kind->offset, 32, 0, 4);
    else if (kind->sub == 32) panel(sum, w, tokens, n, kc, 0, 32, 0, 0);
    else if (kind->mins) panel(sum, w, tokens, n, kc, 0, 16, 1, 4);
    else if (kind->top <= 15) panel(sum, w, tokens, n, kc, kind->offset, 16, 0, 4);
    else if (kind->top <= 63) panel(sum, w, tokens, n, kc, kind->offset, 16, 0, 2);
    else panel(sum, w, tokens, n, kc, 0, 16, 0, 0);
}

#include "gemm_float_wide.h"

static const hd_panel_way way = {.multiply = multiply, .width = 6};
const hd_panel_way *hd_panel_way_avx2(const hd_panel_kind *kind)
{
    (void)kind;
    return &way;
}

/* Few tokens multiply the blocks as they come: to the bit what panels give, without their way through memory. */
static hd_dot_fn direct(const hd_product *p)
{
    if (p->act != HD_ACT_Q8 || p->n > HD_DOT_MOST) return NULL;
    return hd_dots_avx2[p->type] ? hd_dots_avx2[p->type] : hd_dots_by_hand_avx2[p->type];
}
static const hd_panel_kind *takes_bytes(const hd_product *p)
{
    return p->act == HD_ACT_Q8 ? hd_panel_kind_avx2(p->type) : NULL;
}

int hd_gemm_avx2(const hd_product *p, int64_t r0, int64_t r1, void *scratch)
{
    const hd_dot_fn dot = direct(p);
    const hd_panel_kind *kind = takes_bytes(p);
    if (dot) dot(p, r0, r1, 0, p->n);
    else if (kind) hd_panel_product(p, r0, r1, scratch, kind, &way);
    else if (takes_float(p)) float_product(p, r0, r1, scratch);
    else return 0;
    return 1;
}

size_t hd_gemm_scratch_avx2(const hd_product *p)
{
    if (direct(p)) return 0;
    return takes_bytes(p) ? hd_panel_scratch(p) : takes_float(p) ? float_scratch(p) : 0;
}
