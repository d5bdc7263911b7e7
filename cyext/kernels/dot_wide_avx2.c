/* Direct products with few tokens for AVX2 of the types in plane_wide.h. */
#include "dot_eight.h"
#undef WIDE
#include "plane_wide.h"

/* Rows are spread 64 weights at a time into the room: sizes, then what _mm256_sign_epi8 takes as signs. */
TURN void with_signs(uint8_t *to, wide_piece p)
{
    const vi one = _mm256_set1_epi8(1);
    _mm256_store_si256((void *)to, p.low);
    _mm256_store_si256((void *)(to + 32), p.high);
    _mm256_store_si256((void *)(to + HD_PLANE), _mm256_or_si256(wide_bits((uint32_t)p.negative), one));
    _mm256_store_si256((void *)(to + HD_PLANE + 32), _mm256_or_si256(wide_bits((uint32_t)(p.negative >> 32)), one));
}
/* Small signed weights lose their sign by an offset. */
TURN void moved(uint8_t *to, wide_piece p, int offset)
{
    _mm256_store_si256((void *)to, _mm256_add_epi8(p.low, _mm256_set1_epi8((char)offset)));
    _mm256_store_si256((void *)(to + 32), _mm256_add_epi8(p.high, _mm256_set1_epi8((char)offset)));
}
TURN weights from_room(const uint8_t *p, int i)
{
    return (weights){_mm256_load_si256((const void *)(p + 32 * i)), _mm256_load_si256((const void *)(p + HD_PLANE + 32 * i))};
}
/* Their ternary digits are spread as fast where they lie. */
#define TERNARY(name)                                                                                          \
    TURN weights spread_##name(const uint8_t *p, int i)                                                        \
    {                                                                                                          \
        const wide_piece piece = piece_##name(p, i / 2);                                                       \
        return (weights){_mm256_add_epi8(i & 1 ? piece.high : piece.low, _mm256_set1_epi8(1)), _mm256_setzero_si256()}; \
    }
TERNARY(tq1_0) TERNARY(tq2_0)

/* Scales lie as planes have them, one for 16 columns; those of 32 that share one are kept once. */
#define HEADS(name, SCALES, columns, sub, PUT, ...)                                                    \
    TURN weights spread_##name(const uint8_t *p, int i) { return from_room(p, i); }                    \
    TURN void heads_##name(const struct turned *t, const uint8_t *p, size_t stride)                    \
    {                                                                                                  \
        float rows[8][16];                                                                             \
        for (size_t i = 0; i < 8; i++) {                                                               \
            const uint8_t *b = p + i * stride;                                                         \
            const wide_scales of = SCALES;                                                             \
            _mm256_storeu_ps(rows[i], of.low);                                                         \
            if ((columns) > 128) _mm256_storeu_ps(rows[i] + 8, of.high);                               \
            _Pragma("GCC unroll 4") for (int c = 0; c < (columns) / 64; c++)                           \
                PUT(t->room + ROOM_APART * i + 64 * c, piece_##name(b, c) __VA_OPT__(, ) __VA_ARGS__); \
        }                                                                                              \
        for (int c = 0; c < (columns) / 16; c += 8) {                                                  \
            vi v[8];                                                                                   \
            turn32(v, (const uint8_t *)(rows[0] + c), sizeof rows[0]);                                 \
            for (int j = 0; j < 8 && c + j < (columns) / 16; j += (sub) / 16)                          \
                put(t->scale + (c + j) / ((sub) / 16) * TURNED_APART, v[j]);                           \
        }                                                                                              \
    }
TURN void heads_tq1_0(const struct turned *t, const uint8_t *p, size_t stride)
{
    for (int i = 0; i < 8; i++) scale_is(t, i, halves_at(p + 52, stride));
}
TURN void heads_tq2_0(const struct turned *t, const uint8_t *p, size_t stride)
{
    for (int i = 0; i < 8; i++) scale_is(t, i, halves_at(p + 64, stride));
}

/* columns and bytes of a piece; columns under one scale, minima, offset; depth, signs, by room */
#define SIGNS(name, bytes, sub, depth)                               \
    HEADS(name, scales_##name(b), 256, sub, with_signs)              \
    DOT(name, 256, bytes, sub, 0, 0, depth, 1, 1)
#define MOVED(name, SCALES, columns, bytes, sub, offset)             \
    HEADS(name, SCALES, columns, sub, moved, offset)                 \
    DOT(name, columns, bytes, sub, 0, offset, 4, 0, 1)
SIGNS(iq2_xxs, 66, 32, 2)
SIGNS(iq2_xs, 74, 16, 2)
SIGNS(iq2_s, 82, 16, 2)
SIGNS(iq3_xxs, 98, 32, 2)
SIGNS(iq3_s, 110, 32, 8)
MOVED(iq1_s, scales_iq1_s(b), 256, 50, 32, 9)
MOVED(iq1_m, scales_iq1_m(b), 256, 56, 16, 9)
MOVED(nvfp4, scales_nvfp4(b, 1), 64, 36, 16, 12)
DOT(tq1_0, 256, 54, 32, 0, 1, 8, 0, 0)
DOT(tq2_0, 256, 66, 32, 0, 1, 8, 0, 0)

const hd_dot_fn hd_dots_by_hand_avx2[HD_TYPE_COUNT] = {
    [HD_IQ2_XXS] = dot_iq2_xxs, [HD_IQ2_XS] = dot_iq2_xs, [HD_IQ2_S] = dot_iq2_s, [HD_IQ3_XXS] = dot_iq3_xxs,
    [HD_IQ3_S] = dot_iq3_s,     [HD_IQ1_S] = dot_iq1_s,   [HD_IQ1_M] = dot_iq1_m, [HD_TQ1_0] = dot_tq1_0,
    [HD_TQ2_0] = dot_tq2_0,     [HD_NVFP4] = dot_nvfp4,
};
