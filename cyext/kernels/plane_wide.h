/* The types whose blocks a vectoriser cannot spread (code books, ternary digits, NVFP4), by hand: one body for AVX2 and
 * AVX-512, for planes and for direct products alike. A type brings its scales (sixteen floats a block) and its weights, 64
 * at a time; the sums are those of the plain C in plane_iq_body.h and plane_body.h, to the bit. Layouts:
 * ggml/src/ggml-common.h. */
#pragma once
#include "load.h"
#include "plane.h"

#include <immintrin.h>

#define WIDE static inline __attribute__((always_inline))

/* 64 weights: bytes, of which those count as negative whose bit is set. */
typedef struct wide_piece {
    __m256i low, high;
    uint64_t negative;
} wide_piece;
typedef struct wide_scales {
    __m256 low, high; /* of the sixteen groups of 16 */
} wide_scales;

/* --- pieces --- */

/* 255 in every byte whose bit is set. */
WIDE __m256i wide_bits(uint32_t bits) {
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i s = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), spread), bit);
    return _mm256_cmpeq_epi8(s, bit);
}
WIDE __m256i wide_negated(__m256i v, uint32_t negative) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return _mm256_mask_sub_epi8(v, negative, _mm256_setzero_si256(), v);
#else
    __m256i s = wide_bits(negative);
    return _mm256_sub_epi8(_mm256_xor_si256(v, s), s);
#endif
}
/* Eight sevens of signs; the eighth of each makes their number even. */
WIDE uint64_t wide_even(uint64_t seven) {
    uint64_t odd = seven ^ seven >> 4;
    odd ^= odd >> 2;
    odd ^= odd >> 1;
    return seven | (odd & 0x0101010101010101) << 7;
}
WIDE __m256i wide_four(const uint64_t *table, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return _mm256_setr_epi64x((long long)table[a], (long long)table[b], (long long)table[c], (long long)table[d]);
}
/* Eight scales, each for two groups of 16. */
WIDE wide_scales wide_twice(__m256 s) {
    __m256 low = _mm256_unpacklo_ps(s, s), high = _mm256_unpackhi_ps(s, s);
    return (wide_scales){_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
/* (n + 1/2) d factor. */
WIDE __m256 wide_and_half(__m256i n, float d, float factor) {
    __m256 s = _mm256_add_ps(_mm256_cvtepi32_ps(n), _mm256_set1_ps(0.5f));
    return _mm256_mul_ps(_mm256_mul_ps(s, _mm256_set1_ps(d)), _mm256_set1_ps(factor));
}
/* (2 n + 1) d. */
WIDE __m256 wide_odd(__m256i n, float d) {
    n = _mm256_add_epi32(_mm256_add_epi32(n, n), _mm256_set1_epi32(1));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(n), _mm256_set1_ps(d));
}
/* (n + 1/2) d / 4 of sixteen nibbles. */
WIDE wide_scales wide_nibbles(uint64_t nibbles, float d) {
    __m128i low = _mm_cvtsi64_si128((long long)(nibbles & 0x0f0f0f0f0f0f0f0f));
    __m128i n = _mm_unpacklo_epi8(low, _mm_cvtsi64_si128((long long)(nibbles >> 4 & 0x0f0f0f0f0f0f0f0f)));
    return (wide_scales){wide_and_half(_mm256_cvtepu8_epi32(n), d, 0.25f),
                         wide_and_half(_mm256_cvtepu8_epi32(_mm_srli_si128(n, 8)), d, 0.25f)};
}
WIDE wide_scales wide_all(float d) { return (wide_scales){_mm256_set1_ps(d), _mm256_set1_ps(d)}; }
WIDE __m256i wide_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }

/* --- IQ2, IQ3 --- */

/* Four sevens of signs in the low 28 bits of both words. */
WIDE uint64_t wide_signs(uint32_t low, uint32_t high) {
    return wide_even(_pdep_u64((low & 0xfffffff) | (uint64_t)high << 28, 0x7f7f7f7f7f7f7f7f));
}
WIDE wide_piece piece_iq2_xxs(const uint8_t *b, int i) {
    const uint8_t *p = b + 2 + 16 * i;
    return (wide_piece){wide_four(hd_bytes_iq2_xxs, p[0], p[1], p[2], p[3]),
                        wide_four(hd_bytes_iq2_xxs, p[8], p[9], p[10], p[11]), wide_signs(hd_u32(p + 4), hd_u32(p + 12))};
}
WIDE wide_scales scales_iq2_xxs(const uint8_t *b) {
    __m256i v = _mm256_srli_epi64(wide_load(b + 2), 60), w = _mm256_srli_epi64(wide_load(b + 34), 60);
    __m256i n = _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(v), _mm256_castsi256_ps(w), 0x88));
    return wide_twice(wide_and_half(_mm256_permute4x64_epi64(n, 0xd8), hd_f16_at(b), 0.25f));
}
WIDE wide_piece piece_iq2_xs(const uint8_t *b, int i) {
    uint64_t v = hd_u64(b + 2 + 16 * i), w = hd_u64(b + 10 + 16 * i);
    return (wide_piece){wide_four(hd_bytes_iq2_xs, v & 511, v >> 16 & 511, v >> 32 & 511, v >> 48 & 511),
                        wide_four(hd_bytes_iq2_xs, w & 511, w >> 16 & 511, w >> 32 & 511, w >> 48 & 511),
                        wide_signs((uint32_t)_pext_u64(v, 0xfe00fe00fe00fe00), (uint32_t)_pext_u64(w, 0xfe00fe00fe00fe00))};
}
WIDE wide_scales scales_iq2_xs(const uint8_t *b) { return wide_nibbles(hd_u64(b + 66), hd_f16_at(b)); }
WIDE __m256i wide_iq2_s(const uint8_t *p, uint32_t high) {
    return wide_four(hd_bytes_iq2_s, p[0] | (high << 8 & 0x300), p[1] | (high << 6 & 0x300), p[2] | (high << 4 & 0x300),
                     p[3] | (high << 2 & 0x300));
}
WIDE wide_piece piece_iq2_s(const uint8_t *b, int i) {
    return (wide_piece){wide_iq2_s(b + 2 + 8 * i, b[66 + 2 * i]), wide_iq2_s(b + 6 + 8 * i, b[67 + 2 * i]),
                        hd_u64(b + 34 + 8 * i)};
}
WIDE wide_scales scales_iq2_s(const uint8_t *b) { return wide_nibbles(hd_u64(b + 74), hd_f16_at(b)); }
/* A ninth bit for each of eight indices. */
WIDE __m256i wide_iq3(const uint32_t *table, const uint8_t *p, uint32_t high) {
    return _mm256_setr_epi32((int)table[p[0] | (high << 8 & 256)], (int)table[p[1] | (high << 7 & 256)],
                             (int)table[p[2] | (high << 6 & 256)], (int)table[p[3] | (high << 5 & 256)],
                             (int)table[p[4] | (high << 4 & 256)], (int)table[p[5] | (high << 3 & 256)],
                             (int)table[p[6] | (high << 2 & 256)], (int)table[p[7] | (high << 1 & 256)]);
}
WIDE wide_piece piece_iq3_xxs(const uint8_t *b, int i) {
    const uint8_t *p = b + 2 + 16 * i, *rest = b + 66 + 8 * i;
    return (wide_piece){wide_iq3(hd_bytes_iq3_xxs, p, 0), wide_iq3(hd_bytes_iq3_xxs, p + 8, 0),
                        wide_signs(hd_u32(rest), hd_u32(rest + 4))};
}
WIDE wide_scales scales_iq3_xxs(const uint8_t *b) {
    return wide_twice(wide_and_half(_mm256_srli_epi32(wide_load(b + 66), 28), hd_f16_at(b), 0.5f));
}
WIDE wide_piece piece_iq3_s(const uint8_t *b, int i) {
    const uint8_t *p = b + 2 + 16 * i;
    return (wide_piece){wide_iq3(hd_bytes_iq3_s, p, b[66 + 2 * i]), wide_iq3(hd_bytes_iq3_s, p + 8, b[67 + 2 * i]),
                        hd_u64(b + 74 + 8 * i)};
}
WIDE wide_scales scales_iq3_s(const uint8_t *b) {
    __m128i n = _mm_cvtsi64_si128((long long)_pdep_u64(hd_u32(b + 106), 0x0f0f0f0f0f0f0f0f));
    return wide_twice(wide_odd(_mm256_cvtepu8_epi32(n), hd_f16_at(b)));
}

/* --- types with signed bytes: their piece has no signs beside them --- */

/* IQ1: 8 g + 1 or 8 g - 1. */
WIDE __m256i wide_iq1_s(const uint8_t *p, uint32_t high) {
    __m256i v = wide_four(hd_bytes_iq1, p[0] | (high << 8 & 0x700), p[1] | (high << 5 & 0x700), p[2] | (high << 2 & 0x700),
                          p[3] | (high >> 1 & 0x700));
    return _mm256_add_epi8(v, _mm256_set1_epi8((char)((int16_t)high >> 15 | 1)));
}
WIDE wide_piece piece_iq1_s(const uint8_t *b, int i) {
    return (wide_piece){wide_iq1_s(b + 2 + 8 * i, hd_u16(b + 34 + 4 * i)),
                        wide_iq1_s(b + 6 + 8 * i, hd_u16(b + 36 + 4 * i)), 0};
}
WIDE wide_scales scales_iq1_s(const uint8_t *b) {
    __m256i n = _mm256_srli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(b + 34))), 12);
    __m256 s = wide_odd(_mm256_and_si256(n, _mm256_set1_epi32(7)), hd_f16_at(b));
    return wide_twice(_mm256_mul_ps(s, _mm256_set1_ps(0.125f)));
}
WIDE __m256i wide_iq1_m(const uint8_t *p, uint32_t high) {
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    __m256i v = wide_four(hd_bytes_iq1, p[0] | (high << 8 & 0x700), p[1] | (high << 4 & 0x700), p[2] | (high & 0x700),
                          p[3] | (high >> 4 & 0x700));
    /* A byte of 1 or -1 for each eight weights. */
    uint32_t delta = 0x01010101u + 0xfeu * _pdep_u32(_pext_u32(high, 0x8888), 0x01010101);
    return _mm256_add_epi8(v, _mm256_shuffle_epi8(_mm256_set1_epi32((int)delta), spread));
}
WIDE wide_piece piece_iq1_m(const uint8_t *b, int i) {
    return (wide_piece){wide_iq1_m(b + 8 * i, hd_u16(b + 32 + 4 * i)), wide_iq1_m(b + 4 + 8 * i, hd_u16(b + 34 + 4 * i)), 0};
}
WIDE wide_scales scales_iq1_m(const uint8_t *b) {
    uint64_t words = hd_u64(b + 48), n = _pext_u64(words, 0x0fff0fff0fff0fff); /* sixteen times three bits */
    float d = hd_half_widen((uint16_t)_pext_u64(words, 0xf000f000f000f000));
    __m128i low = _mm_cvtsi64_si128((long long)_pdep_u64(n, 0x0707070707070707));
    __m128i high = _mm_cvtsi64_si128((long long)_pdep_u64(n >> 24, 0x0707070707070707));
    return (wide_scales){_mm256_mul_ps(wide_odd(_mm256_cvtepu8_epi32(low), d), _mm256_set1_ps(0.125f)),
                         _mm256_mul_ps(wide_odd(_mm256_cvtepu8_epi32(high), d), _mm256_set1_ps(0.125f))};
}

/* The top digit of five in a byte: 3 v >> 8, less one. */
WIDE __m256i wide_trits(__m256i v) {
    __m256i one = _mm256_cmpeq_epi8(_mm256_max_epu8(v, _mm256_set1_epi8(86)), v);
    __m256i two = _mm256_cmpeq_epi8(_mm256_max_epu8(v, _mm256_set1_epi8((char)171)), v);
    return _mm256_sub_epi8(_mm256_set1_epi8(-1), _mm256_add_epi8(one, two));
}
WIDE __m256i wide_times3(__m256i v) { return _mm256_add_epi8(v, _mm256_add_epi8(v, v)); }
/* Five digits of 32 bytes, then five of 16 bytes, then four of four bytes: those of a place lie behind each other. */
WIDE wide_piece piece_tq1_0(const uint8_t *b, int i) {
    if (i < 2) {
        __m256i v = wide_load(b);
        if (i) v = wide_times3(wide_times3(v));
        return (wide_piece){wide_trits(v), wide_trits(wide_times3(v)), 0};
    }
    __m256i w = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(b + 32)));
    w = _mm256_blend_epi32(w, wide_times3(w), 0xf0); /* digits 0 and 1 */
    if (i == 2) {
        __m256i v = wide_times3(wide_times3(wide_times3(wide_times3(wide_load(b)))));
        return (wide_piece){wide_trits(v), wide_trits(w), 0};
    }
    w = wide_times3(wide_times3(w));
    __m256i last = wide_times3(wide_times3(w)), u = _mm256_set1_epi32((int)hd_u32(b + 48));
    __m256i three = wide_times3(u), nine = wide_times3(three);
    u = _mm256_blend_epi32(_mm256_blend_epi32(u, three, 0x20), _mm256_blend_epi32(nine, wide_times3(nine), 0x80), 0xc0);
    return (wide_piece){wide_trits(w), wide_trits(_mm256_blend_epi32(last, u, 0xf0)), 0};
}
WIDE wide_scales scales_tq1_0(const uint8_t *b) { return wide_all(hd_f16_at(b + 52)); }
WIDE wide_piece piece_tq2_0(const uint8_t *b, int i) {
    const __m256i three = _mm256_set1_epi8(3), one = _mm256_set1_epi8(1);
    __m256i v = _mm256_srli_epi16(wide_load(b + 32 * (i / 2)), 4 * (i & 1));
    return (wide_piece){_mm256_sub_epi8(_mm256_and_si256(v, three), one),
                        _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(v, 2), three), one), 0};
}
WIDE wide_scales scales_tq2_0(const uint8_t *b) { return wide_all(hd_f16_at(b + 64)); }

/* NVFP4 has blocks of 64 with four scales. */
WIDE wide_piece piece_nvfp4(const uint8_t *b, int i) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)hd_values_e2m1));
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i v = wide_load(b + 36 * i + 4);
    __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble));
    __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
    __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);
    return (wide_piece){_mm256_permute2x128_si256(even, odd, 0x20), _mm256_permute2x128_si256(even, odd, 0x31), 0};
}
WIDE __m128 wide_nvfp4(const uint8_t *b) {
    const float *t = hd_halves_ue4m3;
    return _mm_setr_ps(t[b[0]], t[b[1]], t[b[2]], t[b[3]]);
}
/* Of m blocks, one to four. */
WIDE wide_scales scales_nvfp4(const uint8_t *b, int m) {
    const __m128 zero = _mm_setzero_ps();
    return (wide_scales){_mm256_setr_m128(wide_nvfp4(b), m > 1 ? wide_nvfp4(b + 36) : zero),
                         _mm256_setr_m128(m > 2 ? wide_nvfp4(b + 72) : zero, m > 3 ? wide_nvfp4(b + 108) : zero)};
}
