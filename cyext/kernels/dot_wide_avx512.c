/* Direct products with few tokens for AVX-512 of the types in plane_wide.h. Their rows are spread to bytes one by one, moved up
 * by 128, and those are turned. */
#include "dot_sixteen.h"
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
TURN void turn_spread(struct turned *t, const struct spread *s, const int columns)
{
#pragma GCC unroll 2
    for (int c = 0; c < columns / 16; c += 8) {
        vi v[8];
        turn32(v, (const uint8_t *)(s->scale[0] + c), sizeof s->scale[0]);
        for (int j = 0; j < 8 && c + j < columns / 16; j += t->sub / 16)
            put(t->scale + (c + j) / (t->sub / 16) * TURNED_APART, v[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < columns / 32; i++) {
        vi v[8];
        turn32(v, s->q[0] + 32 * i, ROW_BYTES);
        take(t, i, v);
    }
}

#define SPREAD_PIECE(name, columns, SCALES)                                                   \
    TURN void spread_##name(struct turned *t, const uint8_t *p, size_t stride)              \
    {                                                                                         \
        struct spread s;                                                                      \
        for (int i = 0; i < ROWS; i++) {                                                      \
            const uint8_t *b = p + (size_t)i * stride;                                        \
            wide_scales of = SCALES;                                                          \
            _mm256_storeu_ps(s.scale[i], of.low);                                             \
            _mm256_storeu_ps(s.scale[i] + 8, of.high);                                        \
            _Pragma("GCC unroll 4") for (int c = 0; c < (columns) / 64; c++) put_piece(s.q[i] + 64 * c, piece_##name(b, c)); \
        }                                                                                     \
        turn_spread(t, &s, columns);                                                          \
    }
#define SPREAD_DOT(name, columns, bytes, sub) DOT_BY(name, spread_##name, columns, bytes, sub, 0, 128)
#define DOT256(name, bytes, sub) SPREAD_PIECE(name, 256, scales_##name(b)) SPREAD_DOT(name, 256, bytes, sub)
DOT256(iq2_xxs, 66, 32)
DOT256(iq2_xs, 74, 16)
DOT256(iq2_s, 82, 16)
DOT256(iq3_xxs, 98, 32)
DOT256(iq3_s, 110, 32)
DOT256(iq1_s, 50, 32)
DOT256(iq1_m, 56, 16)
DOT256(tq1_0, 54, 32)
DOT256(tq2_0, 66, 32)
SPREAD_PIECE(nvfp4, 64, scales_nvfp4(b, 1))
SPREAD_DOT(nvfp4, 64, 36, 16)

const hd_dot_fn hd_dots_by_hand_avx512[HD_TYPE_COUNT] = {
    [HD_IQ2_XXS] = dot_iq2_xxs, [HD_IQ2_XS] = dot_iq2_xs, [HD_IQ2_S] = dot_iq2_s, [HD_IQ3_XXS] = dot_iq3_xxs,
    [HD_IQ3_S] = dot_iq3_s,     [HD_IQ1_S] = dot_iq1_s,   [HD_IQ1_M] = dot_iq1_m, [HD_TQ1_0] = dot_tq1_0,
    [HD_TQ2_0] = dot_tq2_0,     [HD_NVFP4] = dot_nvfp4,
};
