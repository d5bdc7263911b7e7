/* The body of delta_avx2.c and delta_avx512.c: the gated delta rule for some columns of the state at a time, which are
 * independent of each other, and for up to four tokens at once, so that the state is read and written once for them.
 *
 * With S before token 1, D(j, t) the product of the decays of tokens j + 1 .. t and c_t what token t writes:
 *   c_t   = beta_t (v_t - D(0, t) S^T k_t - sum_{j < t} D(j, t) (k_j . k_t) c_j)
 *   out_t = D(0, t) S^T q_t + sum_{j <= t} D(j, t) (k_j . q_t) c_j
 *   S    <- D(0, n) S + sum_j D(j, n) k_j c_j^T
 * (the chunked form of Yang et al., arXiv 2412.06464, section 3, whose inverse is a substitution for so few tokens). */
#include "delta.h"
#include "lanes.h"

#define DELTA_TOKENS 4
#define INLINE static inline __attribute__((always_inline))

typedef struct delta_dots {
    float with_k[DELTA_TOKENS][DELTA_TOKENS], with_q[DELTA_TOKENS][DELTA_TOKENS]; /* [j][t]: D(j, t) times the dot product */
    float kept[DELTA_TOKENS], after[DELTA_TOKENS];                               /* D(0, t); D(j, n) */
} delta_dots;

static float dot(const float *a, const float *b, int32_t n)
{
    vf sum = v_zero();
    int32_t i = 0;
    float rest = 0.0f;
    for (; i + HD_LANES <= n; i += HD_LANES) sum = v_fma(v_load(a + i), v_load(b + i), sum);
    for (; i < n; i++) rest = __builtin_fmaf(a[i], b[i], rest);
    return v_sum(sum) + rest;
}

static void dots_of(delta_dots *g, const hd_delta *d, int32_t t0, int32_t n)
{
    float so_far = 1.0f;
    for (int32_t t = 0; t < n; t++) {
        float by = 1.0f;
        g->kept[t] = so_far *= d->decay[t0 + t];
        for (int32_t j = t; j >= 0; j--) {
            if (j < t) g->with_k[j][t] = by * dot(d->k[t0 + j], d->k[t0 + t], d->dk);
            g->with_q[j][t] = by * dot(d->k[t0 + j], d->q[t0 + t], d->dk);
            if (t == n - 1) g->after[j] = by;
            by *= d->decay[t0 + j];
        }
    }
}

/* Columns [first, first + vectors * HD_LANES) and tokens [t0, t0 + n). */
INLINE void columns(const hd_delta *d, const delta_dots *g, int32_t t0, int32_t first, const int n, const int vectors)
{
    vf held[DELTA_TOKENS][8], out[DELTA_TOKENS][8];
    const size_t dv = (size_t)d->dv;
    float *s = d->state + first;
#pragma GCC unroll 4
    for (int t = 0; t < n; t++)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) held[t][x] = out[t][x] = v_zero();
    for (int32_t i = 0; i < d->dk; i++, s += dv)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) {
            vf here = v_load(s + x * HD_LANES);
#pragma GCC unroll 4
            for (int t = 0; t < n; t++) {
                held[t][x] = v_fma(v_all(d->k[t0 + t][i]), here, held[t][x]);
                out[t][x] = v_fma(v_all(d->q[t0 + t][i]), here, out[t][x]);
            }
        }
#pragma GCC unroll 4
    for (int t = 0; t < n; t++)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) { /* held becomes what the token writes */
            const int32_t at = first + x * HD_LANES;
            vf h = v_mul(held[t][x], v_all(g->kept[t])), o = v_mul(out[t][x], v_all(g->kept[t]));
#pragma GCC unroll 4
            for (int j = 0; j < t; j++) {
                h = v_fma(v_all(g->with_k[j][t]), held[j][x], h);
                o = v_fma(v_all(g->with_q[j][t]), held[j][x], o);
            }
            h = v_mul(v_all(d->beta[t0 + t]), v_sub(v_load(d->v[t0 + t] + at), h));
            held[t][x] = h;
            v_store(d->out[t0 + t] + at, v_fma(v_all(g->with_q[t][t]), h, o));
        }
#pragma GCC unroll 4
    for (int t = 0; t < n; t++)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) held[t][x] = v_mul(held[t][x], v_all(g->after[t]));
    const vf kept = v_all(g->kept[n - 1]);
    s = d->state + first;
    for (int32_t i = 0; i < d->dk; i++, s += dv)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) {
            vf here = v_mul(v_load(s + x * HD_LANES), kept);
#pragma GCC unroll 4
            for (int t = 0; t < n; t++) here = v_fma(v_all(d->k[t0 + t][i]), held[t][x], here);
            v_store(s + x * HD_LANES, here);
        }
}

/* One column of what does not fill a vector. */
static void column(const hd_delta *d, int32_t c)
{
    for (int32_t t = 0; t < d->rows; t++) {
        float held = 0.0f, out = 0.0f, *s = d->state + c;
        for (int32_t i = 0; i < d->dk; i++) held = __builtin_fmaf(d->k[t][i], s[(size_t)i * (size_t)d->dv], held);
        const float write = d->beta[t] * (d->v[t][c] - d->decay[t] * held);
        for (int32_t i = 0; i < d->dk; i++, s += d->dv) {
            *s = __builtin_fmaf(d->k[t][i], write, d->decay[t] * *s);
            out = __builtin_fmaf(d->q[t][i], *s, out);
        }
        d->out[t][c] = out;
    }
}

#define WIDE_MANY (HD_LANES == 16 ? 2 : 1) /* vectors that the registers hold beside four tokens' sums */
#define WIDE_ONE (HD_LANES == 16 ? 8 : 4)  /* beside one's: long runs of a state that comes from memory */

static void few(const hd_delta *d, const delta_dots *g, int32_t t, int32_t n, int32_t c)
{
    if (n == 4) columns(d, g, t, c, 4, 1);
    else if (n == 3) columns(d, g, t, c, 3, 1);
    else if (n == 2) columns(d, g, t, c, 2, 1);
    else columns(d, g, t, c, 1, 1);
}

void HD_ISA(hd_delta)(const hd_delta *d)
{
    const int32_t whole = d->dv / HD_LANES * HD_LANES;
    for (int32_t t = 0, n; t < d->rows; t += n) {
        delta_dots g;
        int32_t c = 0;
        n = d->rows - t < DELTA_TOKENS ? d->rows - t : DELTA_TOKENS;
        dots_of(&g, d, t, n);
        if (n == DELTA_TOKENS)
            for (; c + WIDE_MANY * HD_LANES <= whole; c += WIDE_MANY * HD_LANES) columns(d, &g, t, c, DELTA_TOKENS, WIDE_MANY);
        else if (n == 1)
            for (; c + WIDE_ONE * HD_LANES <= whole; c += WIDE_ONE * HD_LANES) columns(d, &g, t, c, 1, WIDE_ONE);
        for (; c < whole; c += HD_LANES) few(d, &g, t, n, c);
    }
    for (int32_t c = whole; c < d->dv; c++) column(d, c);
}
