/* Pieces of ternary digits and of NVFP4, for dot_wide_avx512.c: like those of turned_wide.h, with AVX-512 alone. */
#pragma once
#include "dot_sixteen.h"

TURN void all_scales(const struct turned *t, const int n, vf d)
{
    for (int i = 0; i < n; i++) scale_is(t, i, d);
}

/* Two bits each: the four columns of a byte lie 32 apart. */
TURN void turned_tq2_0(struct turned *t, const uint8_t *p, size_t stride)
{
    all_scales(t, 8, halves_at(p + 64, stride));
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        vi q[8];
        turn32(q, p + 32 * half, stride);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vi v[8];
            for (int j = 0; j < 8; j++) v[j] = AND(i ? SHR(q[j], 2 * i) : q[j], ALL(0x03030303));
            take(t, 4 * half + i, v);
        }
    }
}

/* The top digit of five in each byte, 3 v >> 8. */
TURN vi trits(vi v)
{
    const vi one = _mm512_maskz_set1_epi8(_mm512_cmpge_epu8_mask(v, _mm512_set1_epi8(86)), 1);
    return _mm512_mask_set1_epi8(one, _mm512_cmpge_epu8_mask(v, _mm512_set1_epi8((char)171)), 2);
}
TURN vi times3(vi v) { return _mm512_add_epi8(v, _mm512_add_epi8(v, v)); }

/* Five digits of 32 bytes, then five of 16 bytes, then four of four bytes: those of a place lie behind each other. */
TURN void turned_tq1_0(struct turned *t, const uint8_t *p, size_t stride)
{
    vi q[8], v[8], last[4];
    turn(last, p + 38, stride); /* its end: the four bytes and d */
    all_scales(t, 8, high_half(last[3]));
    turn32(q, p, stride);
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < 8; j++) v[j] = trits(q[j]);
        take(t, i, v);
        for (int j = 0; j < 8; j++) q[j] = times3(q[j]);
    }
    turn(q, p + 32, stride);
    q[4] = OR(SHR(last[2], 16), SHL(last[3], 16));
#pragma GCC unroll 3
    for (int i = 5; i < 8; i++) {
        for (int j = 0; j < 4; j++) v[j] = trits(q[j]), q[j] = times3(q[j]);
        if (i < 7) for (int j = 0; j < 4; j++) v[4 + j] = trits(q[j]), q[j] = times3(q[j]);
        else for (int j = 4; j < 8; j++) v[j] = trits(q[4]), q[4] = times3(q[4]);
        take(t, i, v);
    }
}

/* 64 columns: four scales, and of each scale's 16 columns the low nibbles of eight bytes, then the high ones. Scales are four
 * bits of exponent and three more, halves of which are their seven bits in a half, times 2^7; 0x7f
 * is no number and reads as zero. */
TURN void nvfp4_at(struct turned *t, int i, const uint8_t *p, size_t stride)
{
    const vi nibble = ALL(0x0f0f0f0f), table = LESS(TABLE(hd_mxfp4_bytes), 12);
    vi head[4], q[8];
    turn(head, p, stride);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        const vi s = AND(g < 1 ? SHL(head[0], 7) : SHR(head[0], 8 * g - 7), ALL(0xff << 7)), none = ALL(0x7f << 7);
        const vf half = v_mul(low_half(AND(s, none)), v_all(128.0f));
        scale_is(t, 4 * i + g, _mm512_mask_blend_ps(_mm512_cmpeq_epi32_mask(s, none), half, v_zero()));
    }
    turn32(q, p + 4, stride);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        vi v[8];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const int to = 4 * (j / 2) + j % 2;
            v[to] = LOOKUP(table, AND(q[4 * h + j], nibble));
            v[to + 2] = LOOKUP(table, AND(SHR(q[4 * h + j], 4), nibble));
        }
        take(t, 2 * i + h, v);
    }
}
TURN void turned_nvfp4(struct turned *t, const uint8_t *p, size_t stride) { nvfp4_at(t, 0, p, stride); }
TURN void four_nvfp4(struct turned *t, const uint8_t *p, size_t stride)
{
#pragma GCC unroll 1
    for (int i = 0; i < 4; i++) nvfp4_at(t, i, p + 36 * i, stride);
}
