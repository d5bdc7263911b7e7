/* The body of attend_avx2.c and attend_avx512.c, written once over lanes.h.
 *
 * A tile of queries (rows x heads of one KV head) goes over the key blocks once, with a running maximum and sum per
 * query (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Keys are turned to [dk][64] f32
 * once per tile, so that lanes are keys and a score is one chain of multiply-adds over dk: the order of additions does
 * not depend on how many queries share the tile. All sums are f32. */
#include "attend.h"
#include "lanes.h"

#define TILE 64           /* queries in a tile */
#define QW 6              /* queries in a register block */
#define KW (HD_LANES / 4 > 2 ? 4 : 2) /* vectors in a register block */
#define INLINE static inline __attribute__((always_inline))

/* Keys of a block: a query's, or those that all of several queries see and that any of them sees. */
typedef struct keys { int32_t from, to; } keys;

static inline int32_t padded(int32_t n) { return (n + 15) & ~15; }

size_t HD_ISA(hd_attend_scratch)(const hd_attend *a)
{
    size_t dv = (size_t)padded(a->dv), tile = TILE + 2;
    return (HD_KV_BLOCK * ((size_t)a->dk + dv) + tile * (HD_KV_BLOCK + dv + 16)) * sizeof(float);
}

/* kt[j][i] = k[i][j] for the keys of one block; [dk][HD_KV_BLOCK]. */
static void turn_keys(float *kt, const uint16_t *k, size_t stride, int32_t dk)
{
    int32_t j = 0;
    for (; j + HD_LANES <= dk; j += HD_LANES)
        for (int32_t i = 0; i < HD_KV_BLOCK; i += HD_LANES) {
            vf r[HD_LANES];
            for (int l = 0; l < HD_LANES; l++) r[l] = v_from_half(k + (size_t)(i + l) * stride + j);
            v_transpose(r);
            for (int l = 0; l < HD_LANES; l++) v_store(kt + (size_t)(j + l) * HD_KV_BLOCK + i, r[l]);
        }
    for (; j < dk; j++)
        for (int32_t i = 0; i < HD_KV_BLOCK; i++) kt[(size_t)j * HD_KV_BLOCK + i] = _cvtsh_ss(k[(size_t)i * stride + j]);
}

static void widen_values(float *vt, const uint16_t *v, size_t stride, int32_t dv, int32_t from, int32_t to)
{
    int32_t wide = padded(dv);
    for (int32_t i = from; i < to; i++) {
        const uint16_t *p = v + (size_t)i * stride;
        float *q = vt + (size_t)i * (size_t)wide;
        int32_t j = 0;
        for (; j + HD_LANES <= dv; j += HD_LANES) v_store(q + j, v_from_half(p + j));
        for (; j < dv; j++) q[j] = _cvtsh_ss(p[j]);
        for (; j < wide; j++) q[j] = 0;
    }
}

/* Scores of n queries with KW vectors of keys. */
INLINE void score_block(float *s, const float *kt, const float *const *q, int32_t dk, const int n)
{
    vf acc[QW][KW];
#pragma GCC unroll 8
    for (int m = 0; m < n; m++)
#pragma GCC unroll 4
        for (int l = 0; l < KW; l++) acc[m][l] = v_zero();
    for (int32_t j = 0; j < dk; j++, kt += HD_KV_BLOCK) {
        vf key[KW];
#pragma GCC unroll 4
        for (int l = 0; l < KW; l++) key[l] = v_load(kt + l * HD_LANES);
#pragma GCC unroll 8
        for (int m = 0; m < n; m++) {
            vf x = v_all(q[m][j]);
#pragma GCC unroll 4
            for (int l = 0; l < KW; l++) acc[m][l] = v_fma(x, key[l], acc[m][l]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < n; m++)
#pragma GCC unroll 4
        for (int l = 0; l < KW; l++) v_store(s + m * HD_KV_BLOCK + l * HD_LANES, acc[m][l]);
}

/* Add keys [from, to) to the sums; unless `all` queries see them, to those of the queries that do. A key that a query does
 * not see is not even multiplied by nothing: a value that is no number would reach it. */
INLINE void add_values(vf acc[QW][KW], const float *s, const void *v, size_t stride, int halves, const keys *seen, const int all,
                       int32_t from, int32_t to, const int n, const int w)
{
    for (int32_t i = from; i < to; i++) {
        vf value[KW];
#pragma GCC unroll 4
        for (int l = 0; l < w; l++)
            value[l] = halves ? v_from_half((const uint16_t *)v + (size_t)i * stride + l * HD_LANES)
                              : v_load((const float *)v + (size_t)i * stride + l * HD_LANES);
#pragma GCC unroll 8
        for (int m = 0; m < n; m++) {
            if (!all && (i < seen[m].from || i >= seen[m].to)) continue;
            vf x = v_all(s[m * HD_KV_BLOCK + i]);
#pragma GCC unroll 4
            for (int l = 0; l < w; l++) acc[m][l] = v_fma(x, value[l], acc[m][l]);
        }
    }
}

/* o[m] = o[m] * fade[m] + sum over the keys that m sees of s[m][key] * v[key], for n queries and w vectors of columns. */
INLINE void value_block(float *o, size_t wide, const float *s, const float *fade, const void *v, size_t stride,
                        int halves, const keys *seen, keys any, keys every, const int n, const int w)
{
    vf acc[QW][KW];
#pragma GCC unroll 8
    for (int m = 0; m < n; m++)
#pragma GCC unroll 4
        for (int l = 0; l < w; l++) acc[m][l] = v_mul(v_load(o + (size_t)m * wide + l * HD_LANES), v_all(fade[m]));
    add_values(acc, s, v, stride, halves, seen, 0, any.from, every.from, n, w);
    add_values(acc, s, v, stride, halves, seen, 1, every.from, every.to, n, w);
    add_values(acc, s, v, stride, halves, seen, 0, every.to, any.to, n, w);
#pragma GCC unroll 8
    for (int m = 0; m < n; m++)
#pragma GCC unroll 4
        for (int l = 0; l < w; l++) v_store(o + (size_t)m * wide + l * HD_LANES, acc[m][l]);
}

static void scores(float *s, const float *kt, const float *const *q, int32_t dk, int n)
{
    for (int c = 0; c < HD_KV_BLOCK; c += KW * HD_LANES) switch (n) {
        case 1: score_block(s + c, kt + c, q, dk, 1); break;
        case 2: score_block(s + c, kt + c, q, dk, 2); break;
        case 3: score_block(s + c, kt + c, q, dk, 3); break;
        case 4: score_block(s + c, kt + c, q, dk, 4); break;
        case 5: score_block(s + c, kt + c, q, dk, 5); break;
        default: score_block(s + c, kt + c, q, dk, 6); break;
        }
}

INLINE void values_from(float *o, int32_t wide, const float *s, const float *fade, const void *v, size_t stride,
                        const int halves, const keys *seen, keys any, keys every, const int n)
{
    int32_t c = 0;
    const size_t size = halves ? sizeof(uint16_t) : sizeof(float);
    for (; c + KW * HD_LANES <= wide; c += KW * HD_LANES)
        value_block(o + c, (size_t)wide, s, fade, (const char *)v + (size_t)c * size, stride, halves, seen, any, every, n, KW);
    for (; c < wide; c += HD_LANES)
        value_block(o + c, (size_t)wide, s, fade, (const char *)v + (size_t)c * size, stride, halves, seen, any, every, n, 1);
}

#define VALUES(n)                                                                              \
    case n:                                                                                    \
        if (halves) values_from(o, wide, s, fade, v, stride, 1, seen, any, every, n);          \
        else values_from(o, wide, s, fade, v, stride, 0, seen, any, every, n);                 \
        break;

static void values(float *o, int32_t wide, const float *s, const float *fade, const void *v, size_t stride, int halves,
                   const keys *seen, int n)
{
    keys any = {HD_KV_BLOCK, 0}, every = {0, HD_KV_BLOCK};
    for (int m = 0; m < n; m++) {
        every.from = seen[m].from > every.from ? seen[m].from : every.from;
        every.to = seen[m].to < every.to ? seen[m].to : every.to;
        if (seen[m].from == seen[m].to) continue;
        any.from = seen[m].from < any.from ? seen[m].from : any.from;
        any.to = seen[m].to > any.to ? seen[m].to : any.to;
    }
    if (any.from >= any.to) return; /* nothing is seen, nothing fades */
    if (every.from >= every.to) every.from = every.to = any.from;
    switch (n) { VALUES(1) VALUES(2) VALUES(3) VALUES(4) VALUES(5) VALUES(6) }
}

/* Turn one query's scores of a block, of which it sees some keys, into weights; moves its maximum and sum on and says what
 * fades the sum so far. */
static inline float weigh(float *s, const hd_attend *a, keys seen, float *top, float *total)
{
    const int count = HD_KV_BLOCK / HD_LANES;
    const float low = -__builtin_inff();
    vf x[HD_KV_BLOCK / HD_LANES], most = v_all(low);
    for (int l = 0; l < count; l++) {
        x[l] = v_mul(v_load(s + l * HD_LANES), v_all(a->scale));
        if (a->softcap > 0) x[l] = v_mul(v_tanh(v_div(x[l], v_all(a->softcap))), v_all(a->softcap));
        x[l] = v_within(x[l], v_all(low), l * HD_LANES, seen.from, seen.to);
        most = v_max(x[l], most);
    }
    float before = *top, now = v_top(most);
    now = now > before ? now : before;
    vf base = v_all(now > low ? now : 0.0f); /* not a number, or no score that counts: then no difference would be one */
    vf sum = v_zero();
    for (int l = 0; l < count; l++) {
        x[l] = v_exp(v_sub(x[l], base));
        sum = v_add(sum, x[l]);
        v_store(s + l * HD_LANES, x[l]);
    }
    float fade = v_first(v_exp(v_sub(v_all(before), base)));
    *top = now;
    *total = *total * fade + v_sum(sum);
    return fade;
}

/* Rows [row, row + rows) and heads [head, head + heads). */
static void attend_tile(const hd_attend *a, int32_t row, int32_t rows, int32_t head, int32_t heads, float *kt)
{
    const int32_t n = rows * heads, wide = padded(a->dv);
    float *vt = kt + (size_t)a->dk * HD_KV_BLOCK;
    float *s = vt + (size_t)wide * HD_KV_BLOCK, *o = s + (size_t)TILE * HD_KV_BLOCK;
    const float *q[TILE];
    float fade[TILE], top[TILE], total[TILE];
    keys seen[TILE];
    for (int32_t m = 0; m < n; m++) {
        q[m] = a->q[row + m / heads] + (size_t)(head + m % heads) * a->q_stride;
        top[m] = -__builtin_inff();
        total[m] = 0;
    }
    for (size_t i = 0; i < (size_t)n * (size_t)wide; i++) o[i] = 0;

    int64_t end = (int64_t)a->pos[row + rows - 1] + 1, first = (int64_t)a->pos[row] + 1;
    int64_t begin = a->window > 0 && first > a->window ? first - a->window : 0;
    for (int64_t base = begin - begin % HD_KV_BLOCK; base < end; base += HD_KV_BLOCK) {
        int32_t from = base < begin ? (int32_t)(begin - base) : 0;
        int32_t to = end - base < HD_KV_BLOCK ? (int32_t)(end - base) : HD_KV_BLOCK;
        const uint16_t *v = a->v[base / HD_KV_BLOCK];
        turn_keys(kt, a->k[base / HD_KV_BLOCK], a->k_stride, a->dk);
        int halves = n <= 2 * QW && a->dv == wide;
        if (!halves) widen_values(vt, v, a->v_stride, a->dv, from, to);
        for (int32_t m = 0; m < n; m += QW) scores(s + m * HD_KV_BLOCK, kt, q + m, a->dk, n - m < QW ? n - m : QW);
        for (int32_t m = 0; m < n; m++) {
            int64_t here = (int64_t)a->pos[row + m / heads] + 1 - base;
            int64_t old = a->window > 0 ? here - a->window : 0;
            fade[m] = 1;
            seen[m] = (keys){0, 0};
            if (here <= 0 || old >= HD_KV_BLOCK) continue; /* the block is other rows' alone */
            seen[m] = (keys){old > 0 ? (int32_t)old : 0, here < HD_KV_BLOCK ? (int32_t)here : HD_KV_BLOCK};
            fade[m] = weigh(s + m * HD_KV_BLOCK, a, seen[m], top + m, total + m);
        }
        for (int32_t m = 0; m < n; m += QW)
            values(o + (size_t)m * (size_t)wide, wide, s + m * HD_KV_BLOCK, fade + m, halves ? (const void *)v : vt,
                   halves ? a->v_stride : (size_t)wide, halves, seen + m, n - m < QW ? n - m : QW);
    }
    for (int32_t m = 0; m < n; m++) {
        float *out = a->out[row + m / heads] + (size_t)(head + m % heads) * a->out_stride;
        float scale = 1.0f;
        if (a->sinks) {
            float sink = a->sinks[head + m % heads], both = sink > top[m] ? sink : top[m];
            scale = __builtin_expf(top[m] - both);
            total[m] = total[m] * scale + __builtin_expf(sink - both);
        }
        scale /= total[m];
        for (int32_t j = 0; j < a->dv; j++) out[j] = o[(size_t)m * (size_t)wide + (size_t)j] * scale;
    }
}

void HD_ISA(hd_attend)(const hd_attend *a, void *scratch)
{
    int32_t heads = a->group < TILE ? a->group : TILE, rows = TILE / heads;
    for (int32_t row = 0; row < a->rows; row += rows)
        for (int32_t head = 0; head < a->group; head += heads)
            attend_tile(a, row, a->rows - row < rows ? a->rows - row : rows, head,
                        a->group - head < heads ? a->group - head : heads, scratch);
}
