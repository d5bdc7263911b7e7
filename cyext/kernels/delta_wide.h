/* The body of delta_avx2.c and delta_avx512.c: columns of the state are lanes, independent of each other; what does not
 * fill a vector is worked in plain C. */
#include "delta_body.h"
#include "lanes.h"

#define INLINE static inline __attribute__((always_inline))

static float dot(const float *a, const float *b, int32_t n)
{
    vf sum = v_zero();
    int32_t i = 0;
    float rest = 0.0f;
    for (; i + HD_LANES <= n; i += HD_LANES) sum = v_fma(v_load(a + i), v_load(b + i), sum);
    for (; i < n; i++) rest = __builtin_fmaf(a[i], b[i], rest);
    return v_sum(sum) + rest;
}

/* S^T k and S^T q of n tokens at hand, for some vectors of columns whose first is `s`. */
INLINE void columns(const delta_group *g, float (*c)[DELTA_WIDTH], int32_t first, int32_t at, const int n, const int vectors)
{
    vf held[HD_DELTA_TOKENS][8], out[HD_DELTA_TOKENS][8];
    const size_t dv = (size_t)g->dv;
    const float *s = g->from + first + at;
    const int32_t old = g->old;
#pragma GCC unroll 4
    for (int t = 0; t < n; t++)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) held[t][x] = out[t][x] = v_zero();
    for (int32_t i = 0; i < g->dk; i++, s += dv)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) {
            vf here = v_load(s + x * HD_LANES);
#pragma GCC unroll 4
            for (int t = 0; t < n; t++) {
                held[t][x] = v_fma(v_all(g->k[old + t][i]), here, held[t][x]);
                out[t][x] = v_fma(v_all(g->q[old + t][i]), here, out[t][x]);
            }
        }
#pragma GCC unroll 4
    for (int t = 0; t < n; t++)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) {
            const int32_t a = old + t, here = at + x * HD_LANES;
            vf h = v_mul(held[t][x], v_all(g->kept[a])), o = v_mul(out[t][x], v_all(g->kept[a]));
            for (int32_t j = 0; j < a; j++) {
                h = v_fma(v_all(g->with_k[j][a]), v_load(c[j] + here), h);
                o = v_fma(v_all(g->with_q[j][a]), v_load(c[j] + here), o);
            }
            h = v_mul(v_all(g->beta[a]), v_sub(v_load(g->v[a] + first + here), h));
            v_store(c[a] + here, h);
            v_store(g->out[a] + first + here, v_fma(v_all(g->with_q[a][a]), h, o));
        }
}

#define WIDE_MANY (HD_LANES == 16 ? 2 : 1) /* vectors that the registers hold beside four tokens' sums */
#define WIDE_ONE (HD_LANES == 16 ? 8 : 4)  /* beside one's: long runs of a state that comes from memory */

#define COLUMNS(n, vectors)                                                                                       \
    case n:                                                                                                       \
        for (; at + (vectors) * HD_LANES <= whole; at += (vectors) * HD_LANES) columns(g, c, first, at, n, vectors); \
        for (; at < whole; at += HD_LANES) columns(g, c, first, at, n, 1);                                        \
        break;

static void weigh(const delta_group *g, float (*c)[DELTA_WIDTH], int32_t first, int32_t width)
{
    const int32_t whole = width / HD_LANES * HD_LANES;
    int32_t at = 0;
    switch (g->n - g->old) {
        COLUMNS(1, WIDE_ONE)
        COLUMNS(2, 2 * WIDE_MANY)
        COLUMNS(3, WIDE_MANY)
        COLUMNS(4, WIDE_MANY)
    }
    if (whole < width) weigh_plain(g, c, first, whole, width);
}

/* Rows of S in pairs, each along its columns, as it lies in memory. */
static void fold(const delta_group *g, const float (*c)[DELTA_WIDTH], int32_t first, int32_t width)
{
    const int32_t whole = width / HD_LANES * HD_LANES;
    const size_t dv = (size_t)g->dv;
    const vf kept = v_all(g->kept[HD_DELTA_TOKENS - 1]);
    int32_t i = 0;
    for (; i + 2 <= g->dk; i += 2) {
        const float *s = g->from + (size_t)i * dv + first;
        float *to = g->to + (size_t)i * dv + first;
        vf by[2][HD_DELTA_TOKENS];
        for (int j = 0; j < HD_DELTA_TOKENS; j++) by[0][j] = v_all(g->k[j][i]), by[1][j] = v_all(g->k[j][i + 1]);
        for (int32_t x = 0; x < whole; x += HD_LANES) {
            vf a = v_mul(v_load(s + x), kept), b = v_mul(v_load(s + dv + x), kept);
#pragma GCC unroll 4
            for (int j = 0; j < HD_DELTA_TOKENS; j++) {
                vf writes = v_load(c[j] + x);
                a = v_fma(by[0][j], writes, a);
                b = v_fma(by[1][j], writes, b);
            }
            v_store(to + x, a);
            v_store(to + dv + x, b);
        }
    }
    for (; i < g->dk; i++)
        for (int32_t x = 0; x < whole; x += HD_LANES) {
            vf a = v_mul(v_load(g->from + (size_t)i * dv + first + x), kept);
            for (int j = 0; j < HD_DELTA_TOKENS; j++) a = v_fma(v_all(g->k[j][i]), v_load(c[j] + x), a);
            v_store(g->to + (size_t)i * dv + first + x, a);
        }
    if (whole < width) fold_plain(g, c, first, whole, width);
}

void HD_ISA(hd_delta)(const hd_delta *d) { delta_groups(d); }
