/* Pieces of 256 columns that are eight blocks of 32, for dot_avx512.c: what eight blocks share of the way is gone once, and
 * scales that stand alone are fetched for two blocks of sixteen rows at once. Owns the order of work; the bytes are those of
 * turned_wide.h's pieces of one block, which multiply what is left of a row. */
#pragma once
#include "dot_sixteen.h"

/* Word `a` of the 64 bytes at p + i * stride as word i, word `b` as word 16 + i. */
TURN __m512i words_of_two(const uint8_t *p, size_t stride, const short a, const short b)
{
    const __m512i at = _mm512_inserti64x4(_mm512_set1_epi16(a), _mm256_set1_epi16(b), 1);
    __m512i four[4];
    for (int g = 0; g < 4; g++, p = further(p, 4 * stride)) { /* a row's words lie everywhere, and the next row's over them */
        four[g] = _mm512_permutexvar_epi16(at, _mm512_loadu_si512(p));
        four[g] = _mm512_mask_permutexvar_epi16(four[g], 0x22222222, at, _mm512_loadu_si512(p + stride));
        four[g] = _mm512_mask_permutexvar_epi16(four[g], 0x44444444, at, _mm512_loadu_si512(p + 2 * stride));
        four[g] = _mm512_mask_permutexvar_epi16(four[g], 0x88888888, at, _mm512_loadu_si512(p + 3 * stride));
    }
    __m512i v = _mm512_mask_blend_epi16(0x00f000f0, four[0], four[1]);
    v = _mm512_mask_blend_epi16(0x0f000f00, v, four[2]);
    return _mm512_mask_blend_epi16(0xf000f000, v, four[3]);
}

/* The words with which blocks 2q and 2q + 1 of `bytes` begin (the second may begin in the middle of its word). Nothing is read
 * past the eight blocks. */
TURN __m512i first_words(const uint8_t *p, size_t stride, const int bytes, const int q)
{
    const int begin = 2 * q * bytes, from = begin < 8 * bytes - 64 ? begin : 8 * bytes - 64;
    return words_of_two(p + from, stride, (short)((begin - from) / 2), (short)((begin - from + bytes) / 2));
}
TURN void first_halves(const struct turned *t, const uint8_t *p, size_t stride, const int bytes)
{
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        __m512i v = first_words(p, stride, bytes, q);
        scale_is(t, 2 * q, _mm512_cvtph_ps(_mm512_castsi512_si256(v)));
        scale_is(t, 2 * q + 1, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1)));
    }
}

#define EIGHT(name, bytes, ONCE, EACH)                                           \
    TURN void eight_##name(struct turned *t, const uint8_t *p, size_t stride)    \
    {                                                                            \
        ONCE;                                                                    \
        _Pragma("GCC unroll 1") for (int i = 0; i < 8; i++, p += (bytes)) EACH;  \
    }

TURN void bytes_of(struct turned *t, int i, const uint8_t *p, size_t stride)
{
    vi v[8];
    turn32(v, p + 2, stride);
    for (int j = 0; j < 8; j++) v[j] = XOR(v[j], ALL((int)(0x01010101u * FLIP)));
    take(t, i, v);
}
EIGHT(q8_0, 34, first_halves(t, p, stride, 34), bytes_of(t, i, p, stride))

TURN void nibbles_of(struct turned *t, int i, const uint8_t *p, size_t stride)
{
    vi v[8];
    nibbles_at(v, p, stride);
    take(t, i, v);
}
EIGHT(q4_0, 18, first_halves(t, p, stride, 18), nibbles_of(t, i, p + 2, stride))
EIGHT(iq4_nl, 18, first_halves(t, p, stride, 18); const vi table = iq4_table(), by_table(t, i, p + 2, stride, table))

/* Half of 2^(e - 127), since the table holds doubled values; e = 0 and 1 are subnormal floats. */
TURN void mxfp4_is(const struct turned *t, int i, vi e)
{
    put(t->scale + i * TURNED_APART, below(e, 2, SHLV(ALL(0x00200000), e), SHL(SUB(e, ALL(1)), 23)));
}
TURN void mxfp4_scales(const struct turned *t, const uint8_t *p, size_t stride)
{
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        __m512i v = first_words(p, stride, 17, q);
        mxfp4_is(t, 2 * q, AND(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v)), ALL(255)));
        mxfp4_is(t, 2 * q + 1, SHR(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1)), 8));
    }
}
EIGHT(mxfp4, 17, mxfp4_scales(t, p, stride); const vi table = TABLE(hd_mxfp4_bytes), by_table(t, i, p + 1, stride, table))

/* Of blocks that begin with more than a scale, the first dwords are turned with them. */
TURN void scale_and_min(const struct turned *t, int i, vi both)
{
    scale_is(t, i, low_half(both));
    min_is(t, i, v_sub(v_zero(), high_half(both)));
}
TURN void q4_1_of(struct turned *t, int i, const uint8_t *p, size_t stride)
{
    vi head[4];
    turn(head, p, stride);
    scale_and_min(t, i, head[0]);
    nibbles_of(t, i, p + 4, stride);
}
EIGHT(q4_1, 20, , q4_1_of(t, i, p, stride))

TURN void five_bits_of(struct turned *t, int i, const uint8_t *p, size_t stride, vi fifth)
{
    vi v[8];
    nibbles_at(v, p, stride);
    fifth_bits(v, fifth);
    take(t, i, v);
}
TURN void q5_0_of(struct turned *t, int i, const uint8_t *p, size_t stride)
{
    vi head[4];
    turn(head, p, stride);
    scale_is(t, i, low_half(head[0]));
    five_bits_of(t, i, p + 6, stride, OR(SHR(head[0], 16), SHL(head[1], 16)));
}
EIGHT(q5_0, 22, , q5_0_of(t, i, p, stride))
TURN void q5_1_of(struct turned *t, int i, const uint8_t *p, size_t stride)
{
    vi head[4];
    turn(head, p, stride);
    scale_and_min(t, i, head[0]);
    five_bits_of(t, i, p + 8, stride, head[1]);
}
EIGHT(q5_1, 24, , q5_1_of(t, i, p, stride))
