/* Direct products with few tokens of the types in plane_wide.h for AVX2 (HD_NAME from the including file): a block's weights go
 * from its bytes to the sums without lying in a plane between. Where signs lie beside the weights they move over to the
 * activations; other bytes become unsigned by an offset, which is taken off through the activations' sums. */
#include "dot_rows.h"
#include "plane_wide.h"

#define LOCALITY 0

typedef struct weights { __m256i size[2], sign[2]; } weights; /* sign: what _mm256_sign_epi8 takes */
typedef struct scales { float all[16]; } scales;
WIDE weights weights_of(wide_piece p, int offset) {
    const __m256i one = _mm256_set1_epi8(1), add = _mm256_set1_epi8((char)offset);
    return (weights){{_mm256_add_epi8(p.low, add), _mm256_add_epi8(p.high, add)},
                     {_mm256_or_si256(wide_bits((uint32_t)p.negative), one),
                      _mm256_or_si256(wide_bits((uint32_t)(p.negative >> 32)), one)}};
}
WIDE scales scales_of(wide_scales w, const float *d, int m) {
    scales s;
    for (int h = 0; h < 2; h++) {
        __m128 x = 2 * h + 2 <= m ? _mm_loadu_ps(d + 4 * h)
                 : 2 * h + 1 == m ? _mm_setr_ps(d[4 * h], d[4 * h + 1], 0, 0) : _mm_setzero_ps();
        __m256 twice = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(x), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
        _mm256_storeu_ps(s.all + 8 * h, _mm256_mul_ps(h ? w.high : w.low, twice));
    }
    return s;
}
WIDE vf add_offset(vf off, const scales *s, const int16_t *group_sums, int m, int offset) {
    for (int h = 0; h < 2 && 2 * h < m; h++) {
        __m128i v = 2 * h + 1 == m ? _mm_loadl_epi64((const __m128i *)(const void *)(group_sums + 8 * h))
                                   : _mm_loadu_si128((const __m128i *)(const void *)(group_sums + 8 * h));
        __m256 g = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(v)), _mm256_set1_ps((float)offset));
        off = _mm256_fmadd_ps(_mm256_loadu_ps(s->all + 8 * h), g, off);
    }
    return off;
}
WIDE vf add_piece(vf acc, weights w, const int8_t *x, const scales *s, const int i, const int offset) {
    for (int h = 0; h < 2; h++) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(x + 32 * h));
        if (!offset) v = _mm256_sign_epi8(v, w.sign[h]);
        __m256i dot = _mm256_madd_epi16(_mm256_maddubs_epi16(w.size[h], v), _mm256_set1_epi16(1));
        __m256 pair = hd_pairs(s->all + 4 * i + 2 * h);
        __m256 scale = _mm256_permutevar_ps(pair, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc);
    }
    return acc;
}

/* The next m pieces of a row, for N tokens. */
#define STEP(name, offset, SCALES, m)                                                                           \
    do {                                                                                                        \
        const wide_scales ws = SCALES;                                                                          \
        scales s[4];                                                                                            \
        _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) {                                                   \
            s[t] = scales_of(ws, hd_q8_d(xs[t], k) + j / 32, m);                                                \
            if (offset) off[t] = add_offset(off[t], &s[t], hd_q8_sums(xs[t], k) + j / 16, m, offset);           \
        }                                                                                                       \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) if (i < (m)) {                                      \
            const weights w = weights_of(piece_##name(b, i), offset);                                           \
            _Pragma("GCC unroll 4") for (int t = 0; t < N; t++)                                                 \
                acc[t][i & 1] = add_piece(acc[t][i & 1], w, hd_act_q(xs[t]) + j + 64 * i, &s[t], i, offset);    \
        }                                                                                                       \
    } while (0)

#define DOT256(name, bytes, offset) HD_DOT_ROWS(name, bytes, STEP(name, offset, scales_##name(b), 4), (void)0, HD_ALL)

DOT256(iq2_xxs, 66, 0)
DOT256(iq2_xs, 74, 0)
DOT256(iq2_s, 82, 0)
DOT256(iq3_xxs, 98, 0)
DOT256(iq3_s, 110, 0)
DOT256(iq1_s, 50, 9)
DOT256(iq1_m, 56, 9)
DOT256(tq1_0, 54, 1)
DOT256(tq2_0, 66, 1)
HD_DOT_ROWS(nvfp4, 144, STEP(nvfp4, 12, scales_nvfp4(b, 4), 4), do {
    const int left = (int)((k - j) / 64);
    if (left) STEP(nvfp4, 12, scales_nvfp4(b, left), left);
} while (0), HD_ALL)

const hd_dot_fn HD_NAME(hd_dots_by_hand)[HD_TYPE_COUNT] = {
    [HD_IQ2_XXS] = dot_iq2_xxs, [HD_IQ2_XS] = dot_iq2_xs, [HD_IQ2_S] = dot_iq2_s, [HD_IQ3_XXS] = dot_iq3_xxs,
    [HD_IQ3_S] = dot_iq3_s,     [HD_IQ1_S] = dot_iq1_s,   [HD_IQ1_M] = dot_iq1_m, [HD_TQ1_0] = dot_tq1_0,
    [HD_TQ2_0] = dot_tq2_0,     [HD_NVFP4] = dot_nvfp4,
};
