/* 32 weights of one row as bytes, with AVX2: bytes_TYPE(p, i) is block i of the piece at p, 256 columns or 32, the column's
 * order kept. Bytes are unsigned, with the type's offset still in them; those of types that need full bytes are signed.
 * Layouts: ggml/src/ggml-common.h. */
#pragma once
#include "load.h"
#include "plane.h"

#include <immintrin.h>

#define BYTE static inline __attribute__((always_inline))

BYTE __m256i load32(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
BYTE __m256i keep(__m256i v, int bits) { return _mm256_and_si256(v, _mm256_set1_epi8((char)bits)); }
/* Bits of every byte moved left by n (right if negative); neighbours' bits come in and must be masked out. */
BYTE __m256i left(__m256i v, int n)
{
    return n > 0 ? _mm256_slli_epi16(v, n) : n < 0 ? _mm256_srli_epi16(v, -n) : v;
}
/* 16 bytes: their low nibbles, then their high ones. */
BYTE __m256i nibbles(const uint8_t *p)
{
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
    return keep(_mm256_inserti128_si256(_mm256_castsi128_si256(v), _mm_srli_epi16(v, 4), 1), 15);
}
/* The fifth bits of a block, one bit a weight: byte n of the word goes to bytes 8n onwards, each keeps its own bit. */
BYTE __m256i with_fifth(__m256i low, const uint8_t *p)
{
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i own = _mm256_set1_epi64x((long long)0x8040201008040201u);
    __m256i high = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)hd_u32(p)), spread), own);
    return _mm256_or_si256(low, keep(_mm256_cmpeq_epi8(high, own), 16));
}
BYTE __m256i in_table(const int8_t *table, int offset, __m256i index)
{
    __m128i t = _mm_add_epi8(_mm_loadu_si128((const __m128i *)(const void *)table), _mm_set1_epi8((char)offset));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), index);
}

/* --- pieces of 256 columns --- */

BYTE __m256i bytes_q4_k(const uint8_t *p, int i) { return keep(left(load32(p + 16 + 32 * (i >> 1)), i & 1 ? -4 : 0), 15); }
BYTE __m256i bytes_q5_k(const uint8_t *p, int i)
{
    return _mm256_or_si256(keep(left(load32(p + 48 + 32 * (i >> 1)), i & 1 ? -4 : 0), 15),
                           keep(left(load32(p + 16), 4 - i), 16));
}
BYTE __m256i bytes_q6_k(const uint8_t *p, int i)
{
    const int h = i >> 2, s = i & 3;
    return _mm256_or_si256(keep(left(load32(p + 64 * h + 32 * (s & 1)), s & 2 ? -4 : 0), 15),
                           keep(left(load32(p + 128 + 32 * h), 4 - 2 * s), 0x30));
}
BYTE __m256i bytes_q2_k(const uint8_t *p, int i) { return keep(left(load32(p + 16 + 32 * (i >> 2)), -2 * (i & 3)), 3); }
BYTE __m256i bytes_q3_k(const uint8_t *p, int i)
{
    return _mm256_or_si256(keep(left(load32(p + 32 + 32 * (i >> 2)), -2 * (i & 3)), 3), keep(left(load32(p), 2 - i), 4));
}
BYTE __m256i bytes_iq4_xs(const uint8_t *p, int i) { return in_table(hd_values_iq4, 0, nibbles(p + 8 + 16 * i)); }

/* --- one block of 32 --- */

BYTE __m256i bytes_q8_0(const uint8_t *p, int i) { return load32(p + 34 * i + 2); }
BYTE __m256i bytes_q4_0(const uint8_t *p, int i) { return nibbles(p + 18 * i + 2); }
BYTE __m256i bytes_q4_1(const uint8_t *p, int i) { return nibbles(p + 20 * i + 4); }
BYTE __m256i bytes_q5_0(const uint8_t *p, int i) { return with_fifth(nibbles(p + 22 * i + 6), p + 22 * i + 2); }
BYTE __m256i bytes_q5_1(const uint8_t *p, int i) { return with_fifth(nibbles(p + 24 * i + 8), p + 24 * i + 4); }
BYTE __m256i bytes_iq4_nl(const uint8_t *p, int i) { return in_table(hd_values_iq4, 0, nibbles(p + 18 * i + 2)); }
BYTE __m256i bytes_mxfp4(const uint8_t *p, int i) { return in_table(hd_values_e2m1, 12, nibbles(p + 17 * i + 1)); }
