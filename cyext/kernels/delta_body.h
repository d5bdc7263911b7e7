/* The walk over a head's groups of tokens, and the arithmetic of columns of its state in plain C. An including file brings
 * `dot` and says with `weigh` and `fold` how columns are worked.
 *
 * With S before token 1 of a group of n, D(j, t) the product of the decays of tokens j + 1 .. t and c_t what token t writes:
 *   c_t   = beta_t (v_t - D(0, t) S^T k_t - sum_{j < t} D(j, t) (k_j . k_t) c_j)
 *   out_t = D(0, t) S^T q_t + sum_{j <= t} D(j, t) (k_j . q_t) c_j
 *   S    <- D(0, n) S + sum_j D(j, n) k_j c_j^T
 * (the chunked form of Yang et al., arXiv 2412.06464, section 3, whose inverse is a substitution for so few tokens). No sum
 * here knows which of the group's tokens came with this call and which with earlier ones. */
#include <string.h>

#include "delta.h"

#define DELTA_WIDTH 256 /* columns at a time */

typedef struct delta_group {
    int32_t old, n;                     /* tokens of earlier calls; these and the ones at hand */
    int32_t dk, dv;
    const float *from;                  /* S */
    float *to;                          /* S after the group; NULL: it is not whole yet */
    const float *k[HD_DELTA_TOKENS], *q[HD_DELTA_TOKENS], *v[HD_DELTA_TOKENS];   /* q, v, out, beta: of those at hand */
    float *out[HD_DELTA_TOKENS];
    float decay[HD_DELTA_TOKENS], beta[HD_DELTA_TOKENS];
    float with_k[HD_DELTA_TOKENS][HD_DELTA_TOKENS], with_q[HD_DELTA_TOKENS][HD_DELTA_TOKENS]; /* [j][t]: D(j, t) times the dot product */
    float kept[HD_DELTA_TOKENS], after[HD_DELTA_TOKENS];                                     /* D(0, t); D(j, n) */
} delta_group;

typedef float delta_written[HD_DELTA_TOKENS][DELTA_WIDTH]; /* c of each token, of some columns */

static float dot(const float *a, const float *b, int32_t n);
/* From the c of the old tokens: c and outputs of those at hand, columns [first, first + n). */
static void weigh(const delta_group *g, float (*c)[DELTA_WIDTH], int32_t first, int32_t n);
/* S after a whole group; c has D(j, n) in it. */
static void fold(const delta_group *g, const float (*c)[DELTA_WIDTH], int32_t first, int32_t n);

static void gates_of(delta_group *g)
{
    float so_far = 1.0f;
    for (int32_t t = 0; t < g->n; t++) {
        float by = 1.0f;
        g->kept[t] = so_far *= g->decay[t];
        for (int32_t j = t; t >= g->old && j >= 0; j--) {
            if (j < t) g->with_k[j][t] = by * dot(g->k[j], g->k[t], g->dk);
            g->with_q[j][t] = by * dot(g->k[j], g->q[t], g->dk);
            g->after[j] = by; /* of the last token */
            by *= g->decay[j];
        }
    }
}

/* Columns from `at` on of the n that begin at column `first`. */
static void weigh_plain(const delta_group *g, float (*c)[DELTA_WIDTH], int32_t first, int32_t at, int32_t n)
{
    float held[DELTA_WIDTH], out[DELTA_WIDTH];
    for (int32_t t = g->old; t < g->n; t++) {
        const float *s = g->from + first;
        for (int32_t x = at; x < n; x++) held[x] = out[x] = 0.0f;
        for (int32_t i = 0; i < g->dk; i++, s += g->dv) {
            const float k = g->k[t][i], q = g->q[t][i];
            for (int32_t x = at; x < n; x++) {
                held[x] += k * s[x];
                out[x] += q * s[x];
            }
        }
        for (int32_t x = at; x < n; x++) {
            float h = held[x] * g->kept[t], o = out[x] * g->kept[t];
            for (int32_t j = 0; j < t; j++) {
                h += g->with_k[j][t] * c[j][x];
                o += g->with_q[j][t] * c[j][x];
            }
            c[t][x] = g->beta[t] * (g->v[t][first + x] - h);
            g->out[t][first + x] = o + g->with_q[t][t] * c[t][x];
        }
    }
}

static void fold_plain(const delta_group *g, const float (*c)[DELTA_WIDTH], int32_t first, int32_t at, int32_t n)
{
    const float kept = g->kept[HD_DELTA_TOKENS - 1];
    for (int32_t i = 0; i < g->dk; i++) {
        const float *s = g->from + (size_t)i * (size_t)g->dv + first;
        float *to = g->to + (size_t)i * (size_t)g->dv + first;
        for (int32_t x = at; x < n; x++) {
            float here = s[x] * kept;
            for (int32_t j = 0; j < HD_DELTA_TOKENS; j++) here += g->k[j][i] * c[j][x];
            to[x] = here;
        }
    }
}

static void delta_groups(const hd_delta *d)
{
    const size_t dk = (size_t)d->dk, dv = (size_t)d->dv;
    const float *from = d->held;
    for (int32_t row = 0, old = d->before, n; row < d->rows; row += n - old, old = 0) {
        delta_group g;
        n = old + d->rows - row < HD_DELTA_TOKENS ? old + d->rows - row : HD_DELTA_TOKENS;
        g.old = old, g.n = n, g.dk = d->dk, g.dv = d->dv, g.from = from;
        g.to = n == HD_DELTA_TOKENS ? d->next : NULL;
        float *past = d->tail_next; /* k, c, decays */
        for (int32_t t = 0; t < n; t++) {
            const int32_t r = row + t - old;
            g.k[t] = t < old ? d->tail + (size_t)t * dk : d->k[r];
            g.decay[t] = t < old ? d->tail[(HD_DELTA_TOKENS - 1) * (dk + dv) + (size_t)t] : d->decay[r];
            if (t >= old) g.q[t] = d->q[r], g.v[t] = d->v[r], g.out[t] = d->out[r], g.beta[t] = d->beta[r];
            if (g.to) continue;
            memcpy(past + (size_t)t * dk, g.k[t], dk * sizeof(float));
            past[(HD_DELTA_TOKENS - 1) * (dk + dv) + (size_t)t] = g.decay[t];
        }
        gates_of(&g);
        for (int32_t first = 0; first < d->dv; first += DELTA_WIDTH) {
            const int32_t width = d->dv - first < DELTA_WIDTH ? d->dv - first : DELTA_WIDTH;
            const size_t bytes = (size_t)width * sizeof(float), at = (HD_DELTA_TOKENS - 1) * dk + (size_t)first;
            _Alignas(64) delta_written c;
            for (int32_t t = 0; t < old; t++) memcpy(c[t], d->tail + at + (size_t)t * dv, bytes);
            weigh(&g, c, first, width);
            if (g.to) {
                for (int32_t t = 0; t < n; t++)
                    for (int32_t x = 0; x < width; x++) c[t][x] *= g.after[t];
                fold(&g, (const float (*)[DELTA_WIDTH])c, first, width);
            } else {
                for (int32_t t = 0; t < n; t++) memcpy(past + at + (size_t)t * dv, c[t], bytes);
            }
        }
        if (g.to) from = g.to;
    }
}
