/* Products of few tokens with AVX-512 VNNI: the blocks of sixteen rows are turned into lanes (turned_wide.h) and multiplied with
 * every token at once, so that weights are read, and turned, once. Sums are formed as the panels of gemm_avx512.c form them, to
 * the bit; only the way there is shorter. Owns the walk and the arithmetic; a type's piece comes from turned_wide.h or from the
 * file that includes this one. */
#pragma once
#include "act.h"
#include "product.h"

#include <immintrin.h>

struct turned {
    uint8_t *scale, *min;
    const int8_t *x[HD_DOT_MOST];     /* of the piece: a token's bytes */
    const int16_t *sums[HD_DOT_MOST]; /* and their sums */
    __m512i (*exact)[16];             /* what comes of them: for each token, the blocks' sums */
    int n, sub, offset;               /* sub and offset are known to the compiler */
};
#define TURNED_APART 64 /* bytes */
#include "turned_wide.h"

#define ROWS 16
#define FEW_APART 320 /* bytes from row to row of those that are copied: a piece, and what may be read after it */
#define AHEAD 384     /* bytes of a row: enough for memory, with sixteen of them */

TURN __m512i four(const void *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

/* a + w times the four bytes at p, the same for all rows: one instruction, of which GCC 12 makes two. */
#ifndef HD_DOT_FOUR
#define HD_DOT_FOUR(a, w, p) dot_four(a, w, p)
TURN __m512i dot_four(__m512i a, __m512i w, const int8_t *p)
{
    struct word { int32_t v; } __attribute__((packed, may_alias));
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(a) : "v"(w), "m"(*(const struct word *)(const void *)p));
    return a;
}
#endif

TURN void take(struct turned *t, int i, const vi *v)
{
#pragma GCC unroll 1
    for (int u = 0; u < t->n; u++) {
        const int8_t *x = t->x[u] + 32 * i;
#pragma GCC unroll 2
        for (int h = 0; h < 32 / t->sub; h++) {
            const int32_t taken = hd_taken((int16_t)t->offset, t->sub == 32 || h == 0, t->sub == 32 || h == 1);
            __m512i a = t->offset ? _mm512_madd_epi16(four(t->sums[u] + 2 * i), _mm512_set1_epi32(taken))
                                  : _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int j = 0; j < t->sub / 4; j++)
                a = HD_DOT_FOUR(a, v[t->sub / 4 * h + j], x + t->sub * h + 4 * j);
            t->exact[u][32 / t->sub * i + h] = a;
        }
    }
}

typedef void piece_fn(struct turned *t, const uint8_t *p, size_t stride);

/* total + the piece's `blocks` of 32 columns. */
TURN __m512 settle(__m512 total, const __m512i *exact, const float (*scale)[ROWS], const float (*min)[ROWS], const float *d,
                   const float *s, const int16_t *sums, const int blocks, const int sub, const int mins)
{
#pragma GCC unroll 8
    for (int i = 0; i < blocks; i++) {
        const __m512 of = _mm512_set1_ps(d[i]);
        if (sub == 32) {
            total = v_fma(v_mul(TO_FLOAT(exact[i]), v_load(scale[i])), of, total);
            if (mins) total = v_fnma(v_load(min[i]), v_all(s[i]), total);
        } else {
            vf f = v_mul(TO_FLOAT(exact[2 * i]), v_load(scale[2 * i]));
            if (mins) total = v_fnma(v_load(min[2 * i]), v_all(d[i] * (float)sums[2 * i]), total);
            total = v_fma(v_fma(TO_FLOAT(exact[2 * i + 1]), v_load(scale[2 * i + 1]), f), of, total);
            if (mins) total = v_fnma(v_load(min[2 * i + 1]), v_all(d[i] * (float)sums[2 * i + 1]), total);
        }
    }
    return total;
}

/* Sixteen rows from r on, of which `rows` are there, and `after` that follow; n tokens. */
struct walk {
    const hd_product *p;
    const uint8_t *w;
    uint8_t *few; /* where rows are copied, if not all are there; the others are zeros */
    int64_t after;
    int32_t t0;
    int rows;
    size_t three, four; /* rows' bytes */
    size_t at, asked; /* bytes of a row that are done, and that were asked for */
};

/* Adds a piece of `columns` in `bytes`, the columns from j on. */
TURN void step(struct walk *s, __m512 *total, const int64_t j, const int n, piece_fn *piece, const int columns, const int bytes,
               const int sub, const int mins, const int offset)
{
    _Alignas(64) float scale[16][ROWS], min[16][ROWS];
    _Alignas(64) __m512i exact[HD_DOT_MOST][16];
    struct turned t = {.scale = (uint8_t *)scale, .min = (uint8_t *)min, .exact = exact, .n = n, .sub = sub, .offset = offset};
    const int64_t k = s->p->k;
    const size_t row_bytes = s->p->row_bytes, at = s->at;
#pragma GCC unroll 1
    for (int u = 0; u < n; u++) {
        const uint8_t *x = s->p->x[s->t0 + u];
        t.x[u] = hd_act_q(x) + j;
        t.sums[u] = hd_q8_sums(x, k) + j / 16;
    }
    for (; s->asked < at + bytes; s->asked += 64) { /* past their end rows go on sixteen further down */
        const uint8_t *ahead = s->w + s->asked + AHEAD;
        if (s->asked + AHEAD >= row_bytes) {
            if (!s->after) break;
            ahead += (ROWS - 1) * row_bytes;
        }
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++, ahead = further(ahead, s->four)) {
            __builtin_prefetch(ahead, 0, 0);
            __builtin_prefetch(ahead + row_bytes, 0, 0);
            __builtin_prefetch(ahead + 2 * row_bytes, 0, 0);
            __builtin_prefetch(ahead + s->three, 0, 0);
        }
    }
    for (size_t i = 0; s->rows < ROWS && i < (size_t)s->rows; i++)
        memcpy(s->few + FEW_APART * i, s->w + at + i * row_bytes, (size_t)bytes);
    piece(&t, s->rows < ROWS ? s->few : s->w + at, s->rows < ROWS ? FEW_APART : row_bytes);
#pragma GCC unroll 1
    for (int u = 0; u < n; u++) {
        const uint8_t *x = s->p->x[s->t0 + u];
        total[u] = settle(total[u], exact[u], scale, min, hd_q8_d(x, k) + j / 32, hd_q8_s(x, k) + j / 32, t.sums[u],
                          columns / 32, sub, mins);
    }
    s->at += (size_t)bytes;
}

/* Pieces of `columns` in `bytes`; of a row that ends in the middle of one, what is left by `rest`, in blocks of `block`. */
TURN void sixteen(const hd_product *p, int64_t r, int rows, int64_t after, int32_t t0, const int n, piece_fn *piece,
                  piece_fn *rest, const int block, const int columns, const int bytes, const int sub, const int mins,
                  const int offset)
{
    _Alignas(64) uint8_t few[ROWS * FEW_APART];
    __m512 total[HD_DOT_MOST];
    struct walk s = {p, p->w + (size_t)r * p->row_bytes, few, after, t0, rows, 3 * p->row_bytes, 4 * p->row_bytes, 0, 0};
    __asm__("" : "+r"(s.three), "+r"(s.four)); /* of what it knows GCC makes sixteen additions */
    const int64_t k = p->k;
    int64_t j = 0;
    for (int u = 0; u < n; u++) total[u] = v_zero();
    if (rows < ROWS) memset(few, 0, sizeof few);
    for (; j + columns <= k; j += columns) step(&s, total, j, n, piece, columns, bytes, sub, mins, offset);
    for (; rest && j < k; j += block) step(&s, total, j, n, rest, block, bytes * block / columns, sub, mins, offset);
    const __mmask16 there = (__mmask16)((1u << rows) - 1);
    for (int u = 0; u < n; u++) _mm512_mask_storeu_ps(p->out[t0 + u] + r, there, total[u]);
}

/* What follows the names: columns and bytes of a piece; columns under one scale, whether there are minima, offset. One token
 * has a copy of its own. */
#define DOT(name, ...) DOT_BY(name, piece_##name, NULL, 0, __VA_ARGS__)
#define DOT_BY(name, piece, rest, block, ...)                                                                   \
    static void dot_##name(const hd_product *p, int64_t r0, int64_t r1, int32_t t0, int32_t n)                  \
    {                                                                                                           \
        for (int64_t r = r0; r < r1; r += ROWS) {                                                               \
            const int rows = r1 - r < ROWS ? (int)(r1 - r) : ROWS;                                              \
            const int64_t after = r1 - r - rows;                                                                \
            if (n == 1) sixteen(p, r, rows, after, t0, 1, piece, rest, block, __VA_ARGS__);                     \
            else sixteen(p, r, rows, after, t0, n, piece, rest, block, __VA_ARGS__);                            \
        }                                                                                                       \
    }
