/* Products of one to three tokens with AVX2: the blocks of eight rows are turned into lanes (turned_wide.h) and multiplied at once, in
 * registers. Sums are formed as the panels of gemm_avx2.c form them, to the bit; only the way there is shorter. */
#include "product.h"

#include <immintrin.h>

#define TOKENS HD_DOT_TOKENS
struct turned {
    uint8_t *scale, *min;
    const int8_t *x[TOKENS];     /* of the piece: the tokens' bytes */
    const int16_t *sums[TOKENS]; /* and their sums */
    __m256i (*exact)[16];        /* what comes of them: the blocks' sums */
    int n, sub, offset, depth;   /* known to the compiler */
};
#define TURNED_APART 32
#define FEW_APART 320 /* bytes from row to row of those that are copied: a piece, and what may be read after it */
#include "turned_wide.h"

TURN __m256i four(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

/* Exact sums of `count` dwords of columns; depth as in gemm_avx2.c. */
TURN __m256i dot(__m256i a, const vi *v, const int8_t *x, const int count, const int depth)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const int run = depth ? depth < count ? depth : count : 1;
#pragma GCC unroll 8
    for (int base = 0; base < count; base += run) {
        __m256i part = ones;
#pragma GCC unroll 8
        for (int j = base; j < base + run; j++) {
            __m256i p = depth ? _mm256_maddubs_epi16(v[j], four(x + 4 * j))
                              : _mm256_maddubs_epi16(_mm256_abs_epi8(v[j]), _mm256_sign_epi8(four(x + 4 * j), v[j]));
            part = j == base ? p : _mm256_add_epi16(part, p);
        }
        a = _mm256_add_epi32(a, _mm256_madd_epi16(part, ones));
    }
    return a;
}

TURN void take(struct turned *t, int i, const vi *v)
{
#pragma GCC unroll 4
    for (int k = 0; k < t->n; k++)
#pragma GCC unroll 2
        for (int h = 0; h < 32 / t->sub; h++) {
            __m256i a = _mm256_setzero_si256();
            if (t->offset) {
                int32_t two;
                memcpy(&two, t->sums[k] + 2 * i, 4);
                const int32_t taken = hd_taken((int16_t)t->offset, t->sub == 32 || h == 0, t->sub == 32 || h == 1);
                a = _mm256_madd_epi16(_mm256_set1_epi32(two), _mm256_set1_epi32(taken));
            }
            t->exact[k][32 / t->sub * i + h] = dot(a, v + 4 * h, t->x[k] + 32 * i + 16 * h, t->sub / 4, t->depth);
        }
}

typedef void piece_fn(struct turned *t, const uint8_t *p, size_t stride);

/* Rows r to r + 7, of which `rows` are there, times n tokens; pieces of `columns` in `bytes`. */
TURN void eight(const hd_product *p, int64_t r, int rows, int32_t t0, const int n, piece_fn *piece, const int columns,
                const int bytes, const int sub, const int mins, const int offset, const int depth)
{
    _Alignas(32) float scale[16][8], min[16][8];
    _Alignas(32) __m256i exact[TOKENS][16];
    uint8_t few[8 * FEW_APART];
    const int64_t k = p->k;
    const uint8_t *w = p->w + (size_t)r * p->row_bytes, *ahead = w + 8 * p->row_bytes;
    __m256 total[TOKENS];
    for (int t = 0; t < n; t++) total[t] = v_zero();
    if (rows < 8) memset(few, 0, sizeof few);
    for (int64_t j = 0; j < k; j += columns, w += bytes) {
        struct turned turned = {.scale = (uint8_t *)scale, .min = (uint8_t *)min, .exact = exact, .n = n, .sub = sub,
                                .offset = offset, .depth = depth};
#pragma GCC unroll 4
        for (int t = 0; t < n; t++) {
            turned.x[t] = hd_act_q(p->x[t0 + t]) + j;
            turned.sums[t] = hd_q8_sums(p->x[t0 + t], k) + j / 16;
        }
        if (rows == 8) {
            for (int i = 0; i < 8 * bytes; i += 64) __builtin_prefetch(ahead + i);
            ahead += 8 * bytes;
            piece(&turned, w, p->row_bytes);
        } else { /* rows that are not there are zeros */
            for (int i = 0; i < rows; i++) memcpy(few + FEW_APART * i, w + (size_t)i * p->row_bytes, (size_t)bytes);
            piece(&turned, few, FEW_APART);
        }
#pragma GCC unroll 4
        for (int t = 0; t < n; t++) {
            const float *d = hd_q8_d(p->x[t0 + t], k) + j / 32, *s = hd_q8_s(p->x[t0 + t], k) + j / 32;
#pragma GCC unroll 16
            for (int i = 0; i < columns / sub; i++) {
                const float of = d[i / (32 / sub)];
                total[t] = v_fma(TO_FLOAT(exact[t][i]), v_mul(v_load(scale[i]), v_all(of)), total[t]);
                if (mins) total[t] = v_fnma(v_load(min[i]), v_all(sub == 32 ? s[i] : of * (float)turned.sums[t][i]), total[t]);
            }
        }
    }
    for (int t = 0; t < n; t++) {
        if (rows == 8) {
            v_store(p->out[t0 + t] + r, total[t]);
        } else {
            float to[8];
            v_store(to, total[t]);
            memcpy(p->out[t0 + t] + r, to, sizeof(float) * (size_t)rows);
        }
    }
}

#define ROWS(name, tokens, ...)                                                                          \
    static void rows_##name##_##tokens(const hd_product *p, int64_t r0, int64_t r1, int32_t t0)          \
    {                                                                                                    \
        int64_t r = r0;                                                                                  \
        for (; r + 8 <= r1; r += 8) eight(p, r, 8, t0, tokens, piece_##name, __VA_ARGS__);               \
        if (r < r1) eight(p, r, (int)(r1 - r), t0, tokens, piece_##name, __VA_ARGS__);                   \
    }
#define DOT(name, ...)                                                                                   \
    ROWS(name, 1, __VA_ARGS__)                                                                           \
    ROWS(name, 2, __VA_ARGS__)                                                                           \
    ROWS(name, 3, __VA_ARGS__)                                                                           \
    static void dot_##name(const hd_product *p, int64_t r0, int64_t r1, int32_t t0, int32_t n)           \
    {                                                                                                    \
        for (; n > 3; t0 += 2, n -= 2) rows_##name##_2(p, r0, r1, t0);                                   \
        if (n == 1) rows_##name##_1(p, r0, r1, t0);                                                      \
        else if (n == 2) rows_##name##_2(p, r0, r1, t0);                                                 \
        else rows_##name##_3(p, r0, r1, t0);                                                             \
    }
/* columns and bytes of a piece; columns under one scale, whether there are minima, offset; depth */
DOT(q4_k, 256, 144, 32, 1, 0, 8)
DOT(q5_k, 256, 176, 32, 1, 0, 4)
DOT(q6_k, 256, 210, 16, 0, 32, 2)
DOT(q2_k, 256, 84, 16, 1, 0, 4)
DOT(q3_k, 256, 110, 16, 0, 4, 4)
DOT(iq4_xs, 256, 136, 32, 0, 0, 0)
DOT(q8_0, 32, 34, 32, 0, 0, 0)
DOT(q4_0, 32, 18, 32, 0, 8, 8)
DOT(q4_1, 32, 20, 32, 1, 0, 8)
DOT(q5_0, 32, 22, 32, 0, 16, 4)
DOT(q5_1, 32, 24, 32, 1, 0, 4)
DOT(iq4_nl, 32, 18, 32, 0, 0, 0)
DOT(mxfp4, 32, 17, 32, 0, 12, 4)

const hd_dot_fn hd_dots_avx2[HD_TYPE_COUNT] = {
    [HD_Q4_K] = dot_q4_k, [HD_Q5_K] = dot_q5_k, [HD_Q6_K] = dot_q6_k,     [HD_Q2_K] = dot_q2_k,
    [HD_Q3_K] = dot_q3_k, [HD_Q8_0] = dot_q8_0, [HD_IQ4_XS] = dot_iq4_xs, [HD_Q4_0] = dot_q4_0,
    [HD_Q4_1] = dot_q4_1, [HD_Q5_0] = dot_q5_0, [HD_Q5_1] = dot_q5_1,     [HD_IQ4_NL] = dot_iq4_nl,
    [HD_MXFP4] = dot_mxfp4,
};
