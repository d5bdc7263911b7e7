/* Weight blocks of as many rows as a vector has lanes (8 with AVX2, 16 with AVX-512), turned while still packed so that
 * lanes are rows and every later step works on all of them. Owns the layouts of the types that people run
 * (ggml/src/ggml-common.h); what becomes of the bytes is the including file's affair (panels keep them, products multiply
 * them at once). It brings, before it includes this file,
 *
 *   struct turned          with the fields scale and min: where the floats of a piece go
 *   TURNED_APART           bytes from one block's scales to the next one's
 *   take(t, i, v)          dword j of every row's 32 bytes of block i of the piece is v[j], j < 8 */
#pragma once
#include <string.h>

#include "gemm_unpack.h"
#include "lanes.h"

#define TURN static inline __attribute__((always_inline))

#ifdef __AVX512F__
typedef __m512i vi;
#define ALL(x) _mm512_set1_epi32(x)
#define AND _mm512_and_si512
#define OR _mm512_or_si512
#define XOR _mm512_xor_si512
#define SUB _mm512_sub_epi32
#define SHR _mm512_srli_epi32
#define SHL _mm512_slli_epi32
#define SHLV _mm512_sllv_epi32
#define LOOKUP _mm512_shuffle_epi8
#define TABLE(p) _mm512_broadcast_i32x4(_mm_load_si128((const void *)(p)))
#define BYTES(p) _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(p)))
#define TO_FLOAT _mm512_cvtepi32_ps
#define PER(op) _mm512_##op
/* That byte of each dword, for LOOKUP. */
#define SPREAD(i) _mm512_broadcast_i32x4(_mm_setr_epi32((i), (i) + 0x04040404, (i) + 0x08080808, (i) + 0x0c0c0c0c))
#ifdef HD_PANEL_SIGNED
#define FLIP 0 /* tiles take signed bytes: no panel has an offset */
#else
#define FLIP 0x80 /* bytes are unsigned to the dot product: signed ones are moved up by 128 */
#endif
/* Bits of byte i of each dword, sign extended. */
#define SIGNED_BYTE(v, i) _mm512_srai_epi32(_mm512_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * (i))), 24)
static inline vf low_half(vi v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
static inline vi below(vi v, int bound, vi yes, vi no)
{
    return _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(v, ALL(bound)), no, yes);
}
/* 16 in every byte of which v has the bit that the byte of m has. */
static inline vi sixteens(vi v, vi m) { return _mm512_maskz_set1_epi8(_mm512_test_epi8_mask(v, m), 16); }
static inline void put(uint8_t *p, vi v) { _mm512_store_si512((void *)p, v); }
#else
typedef __m256i vi;
#define ALL(x) _mm256_set1_epi32(x)
#define AND _mm256_and_si256
#define OR _mm256_or_si256
#define XOR _mm256_xor_si256
#define SUB _mm256_sub_epi32
#define SHR _mm256_srli_epi32
#define SHL _mm256_slli_epi32
#define SHLV _mm256_sllv_epi32
#define LOOKUP _mm256_shuffle_epi8
#define TABLE(p) _mm256_broadcastsi128_si256(_mm_load_si128((const void *)(p)))
#define BYTES(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(p)))
#define TO_FLOAT _mm256_cvtepi32_ps
#define PER(op) _mm256_##op
#define SPREAD(i) _mm256_broadcastsi128_si256(_mm_setr_epi32((i), (i) + 0x04040404, (i) + 0x08080808, (i) + 0x0c0c0c0c))
#define FLIP 0 /* two products of unsigned bytes could saturate: the multiply takes full bytes signed */
#define SIGNED_BYTE(v, i) _mm256_srai_epi32(_mm256_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * (i))), 24)
static inline vf low_half(vi v)
{
    v = AND(v, ALL(0xffff));
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
static inline vi below(vi v, int bound, vi yes, vi no)
{
    return _mm256_blendv_epi8(no, yes, _mm256_cmpgt_epi32(ALL(bound), v));
}
static inline vi sixteens(vi v, vi m) { return AND(_mm256_cmpeq_epi8(AND(v, m), m), ALL(0x10101010)); }
static inline void put(uint8_t *p, vi v) { _mm256_store_si256((void *)p, v); }
#endif
#define WIDE (4 * HD_LANES)  /* bytes of a vector */

#ifdef HD_PANEL_SIGNED
#define OFFSET(n) 0
#define LESS(v, n) _mm512_sub_epi8(v, _mm512_set1_epi8(n))
#else
#define OFFSET(n) (n)
#define LESS(v, n) (v)
#endif

static inline vf high_half(vi v) { return low_half(SHR(v, 16)); }
static inline void put_f(uint8_t *p, vf v) { v_store((float *)(void *)p, v); }

/* p + n as a pointer of its own. Left to itself GCC keeps sixteen offsets for sixteen rows, and has no registers for them. */
TURN const uint8_t *further(const uint8_t *p, size_t n)
{
    p += n;
    __asm__("" : "+r"(p));
    return p;
}

/* out[j] lane i = dword j of the 16 bytes at p + i * stride. */
TURN void turn(vi out[4], const uint8_t *p, size_t stride)
{
    vi r[4], t[4];
#define AT(q) _mm_loadu_si128((const __m128i *)(const void *)((q) + i * stride))
#ifdef __AVX512F__
    const uint8_t *p4 = further(p, 4 * stride), *p8 = further(p, 8 * stride), *p12 = further(p8, 4 * stride);
    for (size_t i = 0; i < 4; i++) {
        vi a = _mm512_inserti32x4(_mm512_castsi128_si512(AT(p)), AT(p4), 1);
        r[i] = _mm512_inserti32x4(_mm512_inserti32x4(a, AT(p8), 2), AT(p12), 3);
    }
#else
    const uint8_t *p4 = p + 4 * stride;
    for (size_t i = 0; i < 4; i++) r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(AT(p)), AT(p4), 1);
#endif
#undef AT
    t[0] = PER(unpacklo_epi32)(r[0], r[1]);
    t[1] = PER(unpackhi_epi32)(r[0], r[1]);
    t[2] = PER(unpacklo_epi32)(r[2], r[3]);
    t[3] = PER(unpackhi_epi32)(r[2], r[3]);
    out[0] = PER(unpacklo_epi64)(t[0], t[2]);
    out[1] = PER(unpackhi_epi64)(t[0], t[2]);
    out[2] = PER(unpacklo_epi64)(t[1], t[3]);
    out[3] = PER(unpackhi_epi64)(t[1], t[3]);
}

/* The same for 32 bytes: out[0..7]. */
TURN void turn32(vi out[8], const uint8_t *p, size_t stride)
{
#ifdef __AVX512F__
    vi r[8], t[8], u[8];
    const uint8_t *p4 = further(p, 4 * stride), *p8 = further(p, 8 * stride), *p12 = further(p8, 4 * stride);
#define AT(q) _mm256_loadu_si256((const __m256i *)(const void *)((q) + i * stride))
    for (size_t i = 0; i < 4; i++) {
        r[i] = _mm512_inserti64x4(_mm512_castsi256_si512(AT(p)), AT(p4), 1);
        r[4 + i] = _mm512_inserti64x4(_mm512_castsi256_si512(AT(p8)), AT(p12), 1);
    }
#undef AT
    for (int h = 0; h < 8; h += 4) {
        t[h] = _mm512_unpacklo_epi32(r[h], r[h + 1]);
        t[h + 1] = _mm512_unpackhi_epi32(r[h], r[h + 1]);
        t[h + 2] = _mm512_unpacklo_epi32(r[h + 2], r[h + 3]);
        t[h + 3] = _mm512_unpackhi_epi32(r[h + 2], r[h + 3]);
        u[h] = _mm512_unpacklo_epi64(t[h], t[h + 2]);
        u[h + 1] = _mm512_unpackhi_epi64(t[h], t[h + 2]);
        u[h + 2] = _mm512_unpacklo_epi64(t[h + 1], t[h + 3]);
        u[h + 3] = _mm512_unpackhi_epi64(t[h + 1], t[h + 3]);
    }
    /* 128-bit lanes of u[j]: dword j of rows 0-3, dword j + 4 of rows 0-3, the same of rows 4-7; of u[j + 4]: rows 8-15 */
    for (int j = 0; j < 4; j++) {
        out[j] = _mm512_shuffle_i32x4(u[j], u[j + 4], 0x88);
        out[j + 4] = _mm512_shuffle_i32x4(u[j], u[j + 4], 0xdd);
    }
#else
    turn(out, p, stride);
    turn(out + 4, p + 16, stride);
#endif
}

/* Halves at p + i * stride as floats. */
TURN vf halves_at(const uint8_t *p, size_t stride)
{
    uint16_t h[HD_LANES];
    for (size_t g = 0; g < HD_LANES; g += 4, p = HD_LANES == 16 ? further(p, 4 * stride) : p + 4 * stride)
        for (size_t i = 0; i < 4; i++) memcpy(h + g + i, p + i * stride, 2);
    return v_from_half(h);
}
/* Words of four bytes likewise. */
TURN vi words_at(const uint8_t *p, size_t stride)
{
    int32_t w[HD_LANES];
    for (size_t g = 0; g < HD_LANES; g += 4, p = HD_LANES == 16 ? further(p, 4 * stride) : p + 4 * stride)
        for (size_t i = 0; i < 4; i++) memcpy(w + g + i, p + i * stride, 4);
#ifdef __AVX512F__
    return _mm512_loadu_si512(w);
#else
    return _mm256_setr_epi32(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]);
#endif
}

/* What the including file does with 32 columns: dword j of the bytes of every row's block i of the piece is v[j], j < 8.
 * Blocks come in any order. */
TURN void take(struct turned *t, int i, const vi *v);

TURN void scale_is(const struct turned *t, int i, vf v) { put_f(t->scale + i * TURNED_APART, v); }
TURN void min_is(const struct turned *t, int i, vf v) { put_f(t->min + i * TURNED_APART, v); }

/* --- pieces of 256 columns --- */

/* The 6-bit scales and minima of Q4_K and Q5_K, whose first 16 bytes are d, dmin and 12 bytes of scales. */
TURN void k_scales(const struct turned *t, const uint8_t *p, size_t stride)
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

TURN void piece_q4_k(struct turned *t, const uint8_t *p, size_t stride)
{
    const vi nibble = ALL(0x0f0f0f0f);
    k_scales(t, p, stride);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) { /* 32 bytes: the columns of blocks 2c and 2c + 1 */
        vi b[8], v[8];
        turn32(b, p + 16 + 32 * c, stride);
        for (int j = 0; j < 8; j++) v[j] = AND(b[j], nibble);
        take(t, 2 * c, v);
        for (int j = 0; j < 8; j++) v[j] = AND(SHR(b[j], 4), nibble);
        take(t, 2 * c + 1, v);
    }
}

TURN void piece_q5_k(struct turned *t, const uint8_t *p, size_t stride)
{
    const vi nibble = ALL(0x0f0f0f0f), bit = ALL(0x10101010);
    vi h[8], low[8];
    k_scales(t, p, stride);
    turn32(h, p + 16, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) { /* bit i of a high byte belongs to block i */
        vi v[8];
        if (!(i & 1)) turn32(low, p + 48 + 16 * i, stride);
        for (int j = 0; j < 8; j++) {
            vi top = AND(i < 4 ? SHL(h[j], 4 - i) : SHR(h[j], i - 4), bit);
            v[j] = OR(AND(i & 1 ? SHR(low[j], 4) : low[j], nibble), top);
        }
        take(t, i, v);
    }
}

/* 6 bits: half h of a block has ql[64], qh[32]; column 32i + l of it takes nibble i / 2 of ql[l + 32 (i & 1)] and
 * bits 2i, 2i + 1 of qh[l]. */
TURN void piece_q6_k(struct turned *t, const uint8_t *p, size_t stride)
{
    const vi nibble = ALL(0x0f0f0f0f), bits = ALL(0x30303030);
    vi s[4];
    vf d = halves_at(p + 208, stride);
    turn(s, p + 192, stride);
    for (int j = 0; j < 16; j++) scale_is(t, j, v_mul(TO_FLOAT(SIGNED_BYTE(s[j / 4], j % 4)), d));
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        vi low[8], h[8];
        turn32(h, p + 128 + 32 * half, stride);
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) {
            turn32(low, p + 64 * half + 32 * c, stride);
#pragma GCC unroll 2
            for (int i = c; i < 4; i += 2) {
                vi v[8];
                for (int j = 0; j < 8; j++) {
                    vi top = AND(i == 0 ? SHL(h[j], 4) : i == 1 ? SHL(h[j], 2) : i == 2 ? h[j] : SHR(h[j], 2), bits);
                    v[j] = LESS(OR(AND(i < 2 ? low[j] : SHR(low[j], 4), nibble), top), 32);
                }
                take(t, 4 * half + i, v);
            }
        }
    }
}

TURN void piece_q2_k(struct turned *t, const uint8_t *p, size_t stride)
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
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        vi q[8];
        turn32(q, p + 16 + 32 * half, stride);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vi v[8];
            for (int j = 0; j < 8; j++) v[j] = AND(i ? SHR(q[j], 2 * i) : q[j], ALL(0x03030303));
            take(t, 4 * half + i, v);
        }
    }
}

TURN void piece_q3_k(struct turned *t, const uint8_t *p, size_t stride)
{
    vi s[4], h[8];
    turn(s, p + 96, stride); /* low nibbles of scales 0 to 7 and 8 to 15, high bits of all, d */
    const vf d = low_half(s[3]);
    for (int g = 0; g < 4; g++) {
        vi low = AND(g < 2 ? s[g] : SHR(s[g - 2], 4), ALL(0x0f0f0f0f));
        vi six = OR(low, SHL(AND(g ? SHR(s[2], 2 * g) : s[2], ALL(0x03030303)), 4));
        for (int j = 0; j < 4; j++)
            scale_is(t, 4 * g + j, v_mul(TO_FLOAT(SUB(AND(SHR(six, 8 * j), ALL(0xff)), ALL(32))), d));
    }
    turn32(h, p, stride);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        vi q[8];
        turn32(q, p + 32 + 32 * half, stride);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) { /* bit 4 half + i of a high byte */
            const int n = 4 * half + i;
            vi v[8];
            for (int j = 0; j < 8; j++) {
                vi top = AND(n < 2 ? SHL(h[j], 2 - n) : n > 2 ? SHR(h[j], n - 2) : h[j], ALL(0x04040404));
                v[j] = LESS(OR(AND(i ? SHR(q[j], 2 * i) : q[j], ALL(0x03030303)), top), 4);
            }
            take(t, n, v);
        }
    }
}

/* --- pieces of one block of 32 --- */

/* 16 bytes: low nibbles, then high ones. */
TURN void nibbles_at(vi v[8], const uint8_t *p, size_t stride)
{
    const vi nibble = ALL(0x0f0f0f0f);
    vi b[4];
    turn(b, p, stride);
    for (int j = 0; j < 4; j++) v[j] = AND(b[j], nibble), v[j + 4] = AND(SHR(b[j], 4), nibble);
}
/* A table of 16 values for a nibble instead of the nibble. */
TURN void by_table(struct turned *t, int i, const uint8_t *p, size_t stride, vi table)
{
    vi v[8];
    nibbles_at(v, p, stride);
    for (int j = 0; j < 8; j++) v[j] = LOOKUP(table, v[j]);
    take(t, i, v);
}
/* A fifth bit for each nibble: bit c of a row's word is column c's. */
TURN void fifth_bits(vi v[8], vi word)
{
    for (int j = 0; j < 8; j++) {
        v[j] = OR(v[j], sixteens(LOOKUP(word, SPREAD(j / 2 * 0x01010101)), ALL(j & 1 ? (int)0x80402010 : 0x08040201)));
    }
}

TURN void piece_q8_0(struct turned *t, const uint8_t *p, size_t stride)
{
    const vi sign = ALL((int)(0x01010101u * FLIP));
    vi v[8];
    scale_is(t, 0, halves_at(p, stride));
    turn32(v, p + 2, stride);
    for (int j = 0; j < 8; j++) v[j] = XOR(v[j], sign);
    take(t, 0, v);
}

TURN void piece_q4_0(struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[8];
    scale_is(t, 0, halves_at(p, stride));
    nibbles_at(v, p + 2, stride);
    for (int j = 0; j < 8; j++) v[j] = LESS(v[j], 8);
    take(t, 0, v);
}

/* A minimum is taken off: it is minus what the file adds. */
TURN void piece_q4_1(struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[8], head = words_at(p, stride);
    scale_is(t, 0, low_half(head));
    min_is(t, 0, v_sub(v_zero(), high_half(head)));
    nibbles_at(v, p + 4, stride);
    take(t, 0, v);
}

TURN void piece_q5_0(struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[8];
    scale_is(t, 0, halves_at(p, stride));
    nibbles_at(v, p + 6, stride);
    fifth_bits(v, words_at(p + 2, stride));
    for (int j = 0; j < 8; j++) v[j] = LESS(v[j], 16);
    take(t, 0, v);
}

TURN void piece_q5_1(struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[8], head = words_at(p, stride);
    scale_is(t, 0, low_half(head));
    min_is(t, 0, v_sub(v_zero(), high_half(head)));
    nibbles_at(v, p + 8, stride);
    fifth_bits(v, words_at(p + 4, stride));
    take(t, 0, v);
}

TURN vi iq4_table(void) { return XOR(TABLE(hd_iq4_bytes), ALL((int)(0x01010101u * (FLIP ^ 0x80)))); }
TURN void piece_iq4_nl(struct turned *t, const uint8_t *p, size_t stride)
{
    scale_is(t, 0, halves_at(p, stride));
    by_table(t, 0, p + 2, stride, iq4_table());
}

/* 256 columns. */
TURN void piece_iq4_xs(struct turned *t, const uint8_t *p, size_t stride)
{
    const vi table = iq4_table();
    vi v[4];
    turn(v, p, stride); /* d, high bits of the scales; low bits of the scales */
    const vf d = low_half(v[0]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        vi s = OR(AND(SHR(v[1], 4 * i), ALL(15)), SHL(AND(SHR(v[0], 16 + 2 * i), ALL(3)), 4));
        scale_is(t, i, v_mul(TO_FLOAT(SUB(s, ALL(32))), d));
        by_table(t, i, p + 8 + 16 * i, stride, table);
    }
}

TURN void piece_mxfp4(struct turned *t, const uint8_t *p, size_t stride)
{
    uint8_t e[HD_LANES];
    for (size_t i = 0; i < HD_LANES; i++) e[i] = p[i * stride];
    /* half of 2^(e - 127), since the table holds doubled values; e = 0 and 1 are subnormal floats */
    vi x = BYTES(e), bits = below(x, 2, SHLV(ALL(0x00200000), x), SHL(SUB(x, ALL(1)), 23));
    put(t->scale, bits);
    by_table(t, 0, p + 1, stride, LESS(TABLE(hd_mxfp4_bytes), 12));
}
