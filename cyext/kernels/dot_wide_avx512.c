/* Direct products with few tokens for AVX-512 of the types in plane_wide.h. Rows that go through code books are spread to
 * bytes one by one, moved up by 128, and those are turned. */
#include "turned_digits.h"
#undef WIDE
#include "plane_wide.h"

#define ROW_BYTES 320 /* no power of two, which would put the same columns of all rows in one set of the cache */
struct spread {
    _Alignas(64) uint8_t q[ROWS][ROW_BYTES];
    float scale[ROWS][16];
};

TURN void put_piece(uint8_t *q, wide_piece p)
{
    __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(p.low), p.high, 1);
    v = _mm512_mask_sub_epi8(v, p.negative, _mm512_setzero_si512(), v);
    _mm512_store_si512(q, _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80)));
}
/* Scales lie as planes have them, one for 16 columns; those of 32 that share one are kept once. */
TURN void turn_spread(struct turned *t, const struct spread *s)
{
#pragma GCC unroll 2
    for (int c = 0; c < 16; c += 8) {
        vi v[8];
        turn32(v, (const uint8_t *)(s->scale[0] + c), sizeof s->scale[0]);
        for (int j = 0; j < 8; j += t->sub / 16) put(t->scale + (c + j) / (t->sub / 16) * TURNED_APART, v[j]);
    }
#pragma GCC unroll 1
    for (int i = 0; i < 8; i++) {
        vi v[8];
        turn32(v, s->q[0] + 32 * i, ROW_BYTES);
        take(t, i, v);
    }
}

/* Rows are spread by a function of its own: beside what else a product keeps GCC finds no registers for it. */
#define DOT256(name, bytes, sub)                                                                        \
    static __attribute__((noinline)) void rows_##name(struct spread *s, const uint8_t *b, size_t stride) \
    {                                                                                                   \
        for (int i = 0; i < ROWS; i++, b += stride) {                                                   \
            const wide_scales of = scales_##name(b);                                                    \
            _mm256_storeu_ps(s->scale[i], of.low);                                                      \
            _mm256_storeu_ps(s->scale[i] + 8, of.high);                                                 \
            _Pragma("GCC unroll 4") for (int c = 0; c < 4; c++) put_piece(s->q[i] + 64 * c, piece_##name(b, c)); \
        }                                                                                               \
    }                                                                                                   \
    TURN void spread_##name(struct turned *t, const uint8_t *p, size_t stride)                          \
    {                                                                                                   \
        struct spread s;                                                                                \
        rows_##name(&s, p, stride);                                                                     \
        turn_spread(t, &s);                                                                             \
    }                                                                                                   \
    DOT_BY(name, spread_##name, NULL, 0, 256, bytes, sub, 0, 128)
DOT256(iq2_xxs, 66, 32)
DOT256(iq2_xs, 74, 16)
DOT256(iq2_s, 82, 16)
DOT256(iq3_xxs, 98, 32)
DOT256(iq3_s, 110, 32)
DOT256(iq1_s, 50, 32)
DOT256(iq1_m, 56, 16)
DOT_BY(tq1_0, turned_tq1_0, NULL, 0, 256, 54, 32, 0, 1)
DOT_BY(tq2_0, turned_tq2_0, NULL, 0, 256, 66, 32, 0, 1)
DOT_BY(nvfp4, four_nvfp4, turned_nvfp4, 64, 256, 144, 16, 0, 12)

const hd_dot_fn hd_dots_by_hand_avx512[HD_TYPE_COUNT] = {
    [HD_IQ2_XXS] = dot_iq2_xxs, [HD_IQ2_XS] = dot_iq2_xs, [HD_IQ2_S] = dot_iq2_s, [HD_IQ3_XXS] = dot_iq3_xxs,
    [HD_IQ3_S] = dot_iq3_s,     [HD_IQ1_S] = dot_iq1_s,   [HD_IQ1_M] = dot_iq1_m, [HD_TQ1_0] = dot_tq1_0,
    [HD_TQ2_0] = dot_tq2_0,     [HD_NVFP4] = dot_nvfp4,
};
