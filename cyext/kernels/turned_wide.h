/* Weight blocks of as many rows as a vector has lanes (8 with AVX2, 16 with AVX-512), turned while still packed so that
 * lanes are rows and every later step works on all of them. Owns the bytes of the types that people run
 * (ggml/src/ggml-common.h; turned_heads.h has their scales); what becomes of them is the including file's affair (panels
 * keep them, products multiply them at once). It brings what turned_heads.h asks for and
 *
 *   take(t, i, v)          dword j of every row's 32 bytes of block i of the piece is v[j], j < 8 */
#pragma once
#include "gemm_unpack.h"
#include "turned_heads.h"

/* What the including file does with 32 columns: dword j of the bytes of every row's block i of the piece is v[j], j < 8.
 * Blocks come in any order. */
TURN void take(struct turned *t, int i, const vi *v);

/* --- pieces of 256 columns --- */

TURN void piece_q4_k(struct turned *t, const uint8_t *p, size_t stride)
{
    const vi nibble = ALL(0x0f0f0f0f);
    heads_q4_k(t, p, stride);
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
    heads_q4_k(t, p, stride);
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
    heads_q6_k(t, p, stride);
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
    heads_q2_k(t, p, stride);
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
    vi h[8];
    heads_q3_k(t, p, stride);
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
    heads_q8_0(t, p, stride);
    turn32(v, p + 2, stride);
    for (int j = 0; j < 8; j++) v[j] = XOR(v[j], sign);
    take(t, 0, v);
}

TURN void piece_q4_0(struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[8];
    heads_q4_0(t, p, stride);
    nibbles_at(v, p + 2, stride);
    for (int j = 0; j < 8; j++) v[j] = LESS(v[j], 8);
    take(t, 0, v);
}

TURN void piece_q4_1(struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[8];
    heads_q4_1(t, p, stride);
    nibbles_at(v, p + 4, stride);
    take(t, 0, v);
}

TURN void piece_q5_0(struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[8];
    heads_q5_0(t, p, stride);
    nibbles_at(v, p + 6, stride);
    fifth_bits(v, words_at(p + 2, stride));
    for (int j = 0; j < 8; j++) v[j] = LESS(v[j], 16);
    take(t, 0, v);
}

TURN void piece_q5_1(struct turned *t, const uint8_t *p, size_t stride)
{
    vi v[8];
    heads_q5_1(t, p, stride);
    nibbles_at(v, p + 8, stride);
    fifth_bits(v, words_at(p + 4, stride));
    take(t, 0, v);
}

TURN vi iq4_table(void) { return XOR(TABLE(hd_iq4_bytes), ALL((int)(0x01010101u * (FLIP ^ 0x80)))); }
TURN void piece_iq4_nl(struct turned *t, const uint8_t *p, size_t stride)
{
    heads_iq4_nl(t, p, stride);
    by_table(t, 0, p + 2, stride, iq4_table());
}

/* 256 columns. */
TURN void piece_iq4_xs(struct turned *t, const uint8_t *p, size_t stride)
{
    const vi table = iq4_table();
    heads_iq4_xs(t, p, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) by_table(t, i, p + 8 + 16 * i, stride, table);
}

TURN void piece_mxfp4(struct turned *t, const uint8_t *p, size_t stride)
{
    heads_mxfp4(t, p, stride);
    by_table(t, 0, p + 1, stride, LESS(TABLE(hd_mxfp4_bytes), 12));
}
