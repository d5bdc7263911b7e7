/* Scales and minima of as many rows as a vector has lanes, as floats in lanes: for each type, heads_TYPE(t, p, stride) of the
 * blocks at p + i * stride (layouts: ggml/src/ggml-common.h). The including file brings, before it includes this one,
 *
 *   struct turned          with the fields scale and min: where the floats of a piece go
 *   TURNED_APART           bytes from one block's scales to the next one's */
#pragma once
#include "turned_lanes.h"

TURN void scale_is(const struct turned *t, int i, vf v) { put_f(t->scale + i * TURNED_APART, v); }
TURN void min_is(const struct turned *t, int i, vf v) { put_f(t->min + i * TURNED_APART, v); }

/* --- 256 columns --- */

/* The 6-bit scales and minima of Q4_K and Q5_K, whose first 16 bytes are d, dmin and 12 bytes of scales. */
TURN void heads_q4_k(const struct turned *t, const uint8_t *p, size_t stride)
{
    vi head[4], sc[2], m[2];
    turn(head, p, stride);
    vf d = low_half(head[0]), dmin = high_half(head[0]);
    sc[0] = AND(head[1], ALL(0x3f3f3f3f));
    m[0] = AND(head[2], ALL(0x3f3f3f3f));
    sc[1] = OR(AND(head[3], ALL(0x0f0f0f0f)), AND(SHR(head[1], 2), ALL(0x30303030)));
    m[1] = OR(AND(SHR(head[3], 4), ALL(0x0f0f0f0f)), AND(SHR(head[2], 2), ALL(0x30303030)));
    for (int i = 0; i < 8; i++) {
        scale_is(t, i, v_mul(TO_FLOAT(AND(SHR(sc[i / 4], 8 * (i % 4)), ALL(0xff))), d));
        min_is(t, i, v_mul(TO_FLOAT(AND(SHR(m[i / 4], 8 * (i % 4)), ALL(0xff))), dmin));
    }
}

TURN void heads_q5_k(const struct turned *t, const uint8_t *p, size_t stride) { heads_q4_k(t, p, stride); }

TURN void heads_q6_k(const struct turned *t, const uint8_t *p, size_t stride)
{
    vi s[4];
    vf d = halves_at(p + 208, stride);
    turn(s, p + 192, stride);
    for (int j = 0; j < 16; j++) scale_is(t, j, v_mul(TO_FLOAT(SIGNED_BYTE(s[j / 4], j % 4)), d));
}

TURN void heads_q2_k(const struct turned *t, const uint8_t *p, size_t stride)
{
    vi s[4];
    turn(s, p, stride);
    vi ends = words_at(p + 80, stride);
    vf d = low_half(ends), dmin = high_half(ends);
    for (int j = 0; j < 16; j++) {
        vi both = SHR(s[j / 4], 8 * (j % 4));
        scale_is(t, j, v_mul(TO_FLOAT(AND(both, ALL(15))), d));
        min_is(t, j, v_mul(TO_FLOAT(AND(SHR(both, 4), ALL(15))), dmin));
    }
}

TURN void heads_q3_k(const struct turned *t, const uint8_t *p, size_t stride)
{
    vi s[4];
    turn(s, p + 96, stride); /* low nibbles of scales 0 to 7 and 8 to 15, high bits of all, d */
    const vf d = low_half(s[3]);
    for (int g = 0; g < 4; g++) {
        vi low = AND(g < 2 ? s[g] : SHR(s[g - 2], 4), ALL(0x0f0f0f0f));
        vi six = OR(low, SHL(AND(g ? SHR(s[2], 2 * g) : s[2], ALL(0x03030303)), 4));
        for (int j = 0; j < 4; j++)
            scale_is(t, 4 * g + j, v_mul(TO_FLOAT(SUB(AND(SHR(six, 8 * j), ALL(0xff)), ALL(32))), d));
    }
}

TURN void heads_iq4_xs(const struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[4];
    turn(v, p, stride); /* d, high bits of the scales; low bits of the scales */
    const vf d = low_half(v[0]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        vi s = OR(AND(SHR(v[1], 4 * i), ALL(15)), SHL(AND(SHR(v[0], 16 + 2 * i), ALL(3)), 4));
        scale_is(t, i, v_mul(TO_FLOAT(SUB(s, ALL(32))), d));
    }
}

/* --- blocks of 32 --- */

TURN void heads_q8_0(const struct turned *t, const uint8_t *p, size_t stride) { scale_is(t, 0, halves_at(p, stride)); }
TURN void heads_q4_0(const struct turned *t, const uint8_t *p, size_t stride) { heads_q8_0(t, p, stride); }
TURN void heads_q5_0(const struct turned *t, const uint8_t *p, size_t stride) { heads_q8_0(t, p, stride); }
TURN void heads_iq4_nl(const struct turned *t, const uint8_t *p, size_t stride) { heads_q8_0(t, p, stride); }

/* A minimum is taken off: it is minus what the file adds. */
TURN void heads_q4_1(const struct turned *t, const uint8_t *p, size_t stride)
{
    const vi both = words_at(p, stride);
    scale_is(t, 0, low_half(both));
    min_is(t, 0, v_sub(v_zero(), high_half(both)));
}
TURN void heads_q5_1(const struct turned *t, const uint8_t *p, size_t stride) { heads_q4_1(t, p, stride); }

TURN void heads_mxfp4(const struct turned *t, const uint8_t *p, size_t stride)
{
    uint8_t e[HD_LANES];
    for (size_t i = 0; i < HD_LANES; i++) e[i] = p[i * stride];
    /* half of 2^(e - 127), since the table holds doubled values; e = 0 and 1 are subnormal floats */
    vi x = BYTES(e), bits = below(x, 2, SHLV(ALL(0x00200000), x), SHL(SUB(x, ALL(1)), 23));
    put(t->scale, bits);
}
