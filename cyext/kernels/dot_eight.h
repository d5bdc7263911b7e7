/* Products of few tokens with AVX2. Of eight rows, each is spread to bytes and multiplied where it lies; the sums of products,
 * exact integers, are gathered so that lanes are rows, and from there on they are added as the panels of gemm_avx2.c add
 * them, to the bit: only the way there is shorter. Owns the walk and the arithmetic; the including file brings, for each type,
 * spread_TYPE (spread_fn) and heads_TYPE (turned_heads.h). */
#pragma once
#include "gemm_panel.h"
#include "product.h"

#include <immintrin.h>

#define TOKENS 4
struct turned {
    uint8_t *scale, *min, *room;
};
#define TURNED_APART 32
#define ROOM_APART 576 /* sizes and signs of 256 weights; no power of two: rows would share a set of the cache */
#define FEW_APART 320 /* bytes from row to row of those that are copied: a piece, and what may be read after it */
#include "turned_heads.h"

/* 32 weights of a row: bytes without signs, and for types that have some what _mm256_sign_epi8 takes for them. */
typedef struct weights {
    vi size, sign;
} weights;
typedef weights spread_fn(const uint8_t *p, int i);
typedef void heads_fn(const struct turned *t, const uint8_t *p, size_t stride);

/* What the compiler knows of a type: columns and bytes of a piece; columns under one scale; whether there are minima; what is
 * in every byte too much; how many sums of two products fit in 16 bits; whether weights have signs; whether heads() puts the
 * eight rows' weights into room, ROOM_APART bytes apart, and spread() takes them from there. */
struct kind {
    spread_fn *spread;
    heads_fn *heads;
    int columns, bytes, sub, mins, offset, depth, has_signs, by_room;
};

TURN vi times(weights w, vi x, int has_signs)
{
    return _mm256_maddubs_epi16(w.size, has_signs ? _mm256_sign_epi8(x, w.sign) : x);
}
TURN vi plus(vi a, vi b, int wide) { return wide ? _mm256_add_epi32(a, b) : _mm256_add_epi16(a, b); }
/* Sums of 16 bits to sums of 32, when no more of the shorter ones can be added. */
TURN vi widened(vi v, int wide) { return wide ? _mm256_madd_epi16(v, _mm256_set1_epi16(1)) : v; }
/* Of two rows: in each half of the register, 64 bits of sums of the one, then of the other. */
TURN vi two_rows(vi a, vi b, int depth)
{
    a = widened(a, depth < 2), b = widened(b, depth < 2);
    return plus(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b), depth < 2);
}
/* Of four: 32 bits of each in each half. */
TURN vi four_rows(vi a, vi b, int depth)
{
    const int now = depth >= 2 && depth < 4;
    const __m256 u = _mm256_castsi256_ps(widened(a, now)), v = _mm256_castsi256_ps(widened(b, now));
    const vi even = _mm256_castps_si256(_mm256_shuffle_ps(u, v, 0x88)), odd = _mm256_castps_si256(_mm256_shuffle_ps(u, v, 0xdd));
    return plus(even, odd, depth < 4);
}

/* Block i of the piece at p of eight rows, times n tokens whose bytes are at x: the 32 columns' sums, or those of 16 and 16. */
TURN void exact_sums(vi out[TOKENS][2], const struct kind kind, const uint8_t *p, size_t stride, int i, const int8_t *const *x,
                     const int n)
{
    const int depth = kind.depth;
    vi four[2][TOKENS];
#pragma GCC unroll 2
    for (size_t h = 0; h < 2; h++, p += 4 * stride) {
        vi two[2][TOKENS];
#pragma GCC unroll 2
        for (size_t g = 0; g < 2; g++) {
            const weights v = kind.spread(p + 2 * g * stride, i), w = kind.spread(p + (2 * g + 1) * stride, i);
#pragma GCC unroll 4
            for (int t = 0; t < n; t++) {
                const vi q = _mm256_loadu_si256((const __m256i *)(const void *)(x[t] + 32 * i));
                two[g][t] = two_rows(times(v, q, kind.has_signs), times(w, q, kind.has_signs), depth);
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < n; t++) four[h][t] = four_rows(two[0][t], two[1][t], depth);
    }
#pragma GCC unroll 4
    for (int t = 0; t < n; t++) {
        const int later = kind.sub == 32 && depth >= 8;
        const vi a = widened(four[0][t], depth >= 4 && !later), b = widened(four[1][t], depth >= 4 && !later);
        const vi low = _mm256_permute2x128_si256(a, b, 0x20), high = _mm256_permute2x128_si256(a, b, 0x31);
        if (kind.sub == 32) out[t][0] = widened(plus(low, high, !later), later);
        else out[t][0] = low, out[t][1] = high;
    }
}

/* total += block i of the piece that begins at column j. */
TURN void add_block(__m256 *total, const hd_product *p, int32_t t0, const int n, const struct kind kind, const uint8_t *from,
                    size_t stride, int64_t j, int i, const float *scale, const float *min)
{
    const int64_t k = p->k;
    const int8_t *x[TOKENS];
#pragma GCC unroll 4
    for (int t = 0; t < n; t++) x[t] = hd_act_q(p->x[t0 + t]) + j;
    vi exact[TOKENS][2];
    exact_sums(exact, kind, from, stride, i, x, n);
#pragma GCC unroll 4
    for (int t = 0; t < n; t++) {
        const float d = hd_q8_d(p->x[t0 + t], k)[j / 32 + i];
        const int16_t *sums = hd_q8_sums(p->x[t0 + t], k) + j / 16 + 2 * i;
#pragma GCC unroll 2
        for (int h = 0; h < 32 / kind.sub; h++) {
            const int s = 32 / kind.sub * i + h;
            vi a = exact[t][h];
            if (kind.offset) {
                int32_t two;
                memcpy(&two, sums, 4);
                const int32_t taken = hd_taken((int16_t)kind.offset, kind.sub == 32 || h == 0, kind.sub == 32 || h == 1);
                a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_set1_epi32(two), _mm256_set1_epi32(taken)));
            }
            total[t] = v_fma(TO_FLOAT(a), v_mul(v_load(scale + 8 * s), v_all(d)), total[t]);
            if (kind.mins) {
                const float of = kind.sub == 32 ? hd_q8_s(p->x[t0 + t], k)[j / 32 + i] : d * (float)sums[h];
                total[t] = v_fnma(v_load(min + 8 * s), v_all(of), total[t]);
            }
        }
    }
}

/* Rows r to r + 7, of which `rows` are there, times n tokens. */
TURN void eight(const hd_product *p, int64_t r, int rows, int32_t t0, const int n, const struct kind kind)
{
    _Alignas(32) float scale[16][8], min[16][8];
    _Alignas(32) uint8_t room[8 * ROOM_APART];
    const struct turned heads = {(uint8_t *)scale, (uint8_t *)min, room};
    uint8_t few[8 * FEW_APART];
    const int64_t k = p->k;
    const uint8_t *w = p->w + (size_t)r * p->row_bytes, *ahead = w + 8 * p->row_bytes; /* asked for in the order of memory */
    const int ask = 8 * kind.bytes / (kind.columns / 32); /* bytes with each block: too many at once would stall the core */
    const size_t stride = rows == 8 ? p->row_bytes : FEW_APART;
    __m256 total[TOKENS];
    for (int t = 0; t < n; t++) total[t] = v_zero();
    if (rows < 8) memset(few, 0, sizeof few);
    for (int64_t j = 0; j < k; j += kind.columns, w += kind.bytes, ahead += 8 * kind.bytes) {
        const uint8_t *from = w;
        if (rows < 8) { /* rows that are not there are zeros */
            for (int i = 0; i < rows; i++) memcpy(few + FEW_APART * i, w + (size_t)i * p->row_bytes, (size_t)kind.bytes);
            from = few;
        }
        kind.heads(&heads, from, stride);
        if (kind.by_room) {
#pragma GCC unroll 1
            for (int i = 0; i < kind.columns / 32; i++) {
                for (int line = ask * i / 64 * 64; line < ask * (i + 1); line += 64) __builtin_prefetch(ahead + line);
                add_block(total, p, t0, n, kind, room, ROOM_APART, j, i, scale[0], min[0]);
            }
            continue;
        }
#pragma GCC unroll 8
        for (int i = 0; i < kind.columns / 32; i++) {
            for (int line = ask * i / 64 * 64; line < ask * (i + 1); line += 64) __builtin_prefetch(ahead + line);
            add_block(total, p, t0, n, kind, from, stride, j, i, scale[0], min[0]);
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

/* Functions of their own: of one that holds them all GCC allocates the registers badly. */
#define EIGHT(name, n, ...)                                                                                  \
    static __attribute__((noinline)) void eight_##name##_##n(const hd_product *p, int64_t r, int rows, int32_t t) \
    {                                                                                                        \
        eight(p, r, rows, t, n, (struct kind){spread_##name, heads_##name, __VA_ARGS__});                    \
    }
/* Tokens are taken up to four at a time, in groups of nearly equal size, each time over eight rows: later groups find them in
 * the first-level cache. */
#define DOT(name, ...)                                                                                       \
    EIGHT(name, 1, __VA_ARGS__)                                                                              \
    EIGHT(name, 2, __VA_ARGS__)                                                                              \
    EIGHT(name, 3, __VA_ARGS__)                                                                              \
    EIGHT(name, 4, __VA_ARGS__)                                                                              \
    static void dot_##name(const hd_product *p, int64_t r0, int64_t r1, int32_t t0, int32_t n)               \
    {                                                                                                        \
        for (int64_t r = r0; r < r1; r += 8) {                                                               \
            const int rows = r1 - r < 8 ? (int)(r1 - r) : 8;                                                 \
            for (int32_t t = t0, take; t < t0 + n; t += take) {                                              \
                take = hd_group_width(t0 + n - t, TOKENS);                                                   \
                if (take == 1) eight_##name##_1(p, r, rows, t);                                              \
                else if (take == 2) eight_##name##_2(p, r, rows, t);                                         \
                else if (take == 3) eight_##name##_3(p, r, rows, t);                                         \
                else eight_##name##_4(p, r, rows, t);                                                        \
            }                                                                                                \
        }                                                                                                    \
    }
