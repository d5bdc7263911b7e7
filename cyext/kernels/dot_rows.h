/* The walk that all direct products of quantised types share: rows, pieces of 256 columns, one to four tokens. Owns no
 * arithmetic; the including file says how a piece is multiplied, and how its weights are to be prefetched (LOCALITY, as
 * __builtin_prefetch has it). */
#pragma once
#include "lanes.h"
#include "product.h"

#define HD_INLINE static inline __attribute__((always_inline))

/* Far enough ahead for memory, and across the pages where hardware stops. */
#define HD_AHEAD 4096
#define HD_PREFETCH(p, bytes) \
    for (int ahead = 0; ahead < (bytes); ahead += 64) __builtin_prefetch((p) + HD_AHEAD + ahead, 0, LOCALITY)

/* v_sum(a), to the bit; with AVX-512 in fewer instructions than the compiler's own reduction. */
HD_INLINE float hd_total(vf a) {
#ifdef __AVX512F__
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
    return v_sum(a);
#endif
}

#ifndef __AVX512F__
/* Two floats side by side, four times, by a load. GCC's intrinsic says nothing of types, so that it may alias floats; from a
 * copy of them it would make shuffles of the vectors that were stored there, which costs a tenth of the speed. */
HD_INLINE vf hd_pairs(const float *p) {
    return _mm256_castpd_ps(_mm256_broadcast_sd((const double *)(const void *)p));
}
#endif

/* dot_NAME (hd_dot_fn) from rows_NAME, which has the number of tokens N at compile time. The same code serves 1 to 4 of
 * them, so a token's sum does not depend on its company. */
#define HD_DOT(name)                                                                                            \
    static void dot_##name(const hd_product *p, int64_t r0, int64_t r1, int32_t t0, int32_t n) {                \
        if (n == 1) rows_##name(p, r0, r1, t0, 1);                                                              \
        else if (n == 2) rows_##name(p, r0, r1, t0, 2);                                                         \
        else if (n == 3) rows_##name(p, r0, r1, t0, 3);                                                         \
        else rows_##name(p, r0, r1, t0, 4);                                                                     \
    }

/* `bytes` hold 256 columns. STEP multiplies those from j on, TAIL what is left of a row; they know the weights b, k, N, the
 * activations xs[t], and add to acc[t][0], acc[t][1] and off[t], of which OFF is taken off. */
#define HD_DOT_ROWS(name, bytes, STEP, TAIL, OFF)                                                               \
    HD_INLINE void rows_##name(const hd_product *p, int64_t r0, int64_t r1, int32_t t0, const int N) {          \
        const int64_t k = p->k;                                                                                 \
        const uint8_t *xs[4];                                                                                   \
        for (int t = 0; t < N; t++) xs[t] = p->x[t0 + t];                                                       \
        for (int64_t r = r0; r < r1; r++) {                                                                     \
            const uint8_t *b = p->w + (size_t)r * p->row_bytes;                                                 \
            vf acc[4][2], off[4];                                                                               \
            for (int t = 0; t < N; t++) acc[t][0] = acc[t][1] = off[t] = v_zero();                              \
            int64_t j = 0;                                                                                      \
            for (; j + 256 <= k; j += 256, b += (bytes)) {                                                      \
                HD_PREFETCH(b, bytes);                                                                          \
                STEP;                                                                                           \
            }                                                                                                   \
            TAIL;                                                                                               \
            for (int t = 0; t < N; t++)                                                                         \
                p->out[t0 + t][r] = hd_total(v_sub(v_add(acc[t][0], acc[t][1]), OFF(off[t])));                  \
        }                                                                                                       \
    }                                                                                                           \
    HD_DOT(name)
#define HD_ALL(off) (off)
