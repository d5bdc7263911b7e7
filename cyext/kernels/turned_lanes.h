/* Vectors of dwords for both widths (8 lanes with AVX2, 16 with AVX-512), and the turn: what lies in rows, a stride apart,
 * comes to lie in lanes. Owns no layout of a type. */
#pragma once
#include <string.h>

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
