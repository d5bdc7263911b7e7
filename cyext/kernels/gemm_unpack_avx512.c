/* Unpacks weight blocks into panels (gemm_panel.h) with AVX-512, sixteen rows at a time: rows are turned into lanes
 * while still packed, so that every later step works on all of them. Layouts: ggml/src/ggml-common.h. */
#include <immintrin.h>
#include <string.h>

#include "gemm_unpack.h"

#define ALL(x) _mm512_set1_epi32(x)
#define AND _mm512_and_si512
#define OR _mm512_or_si512
#define SHR _mm512_srli_epi32
#define SHL _mm512_slli_epi32

/* out[j] lane i = dword j of the 16 bytes at p + i * stride. */
static inline void turn(__m512i out[4], const uint8_t *p, size_t stride)
{
    __m512i r[4], t[4];
    const uint8_t *p4 = p + 4 * stride, *p8 = p + 8 * stride, *p12 = p + 12 * stride;
    for (size_t i = 0; i < 4; i++) {
        __m512i a = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(p + i * stride)));
        a = _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(const void *)(p4 + i * stride)), 1);
        a = _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(const void *)(p8 + i * stride)), 2);
        r[i] = _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(const void *)(p12 + i * stride)), 3);
    }
    t[0] = _mm512_unpacklo_epi32(r[0], r[1]);
    t[1] = _mm512_unpackhi_epi32(r[0], r[1]);
    t[2] = _mm512_unpacklo_epi32(r[2], r[3]);
    t[3] = _mm512_unpackhi_epi32(r[2], r[3]);
    out[0] = _mm512_unpacklo_epi64(t[0], t[2]);
    out[1] = _mm512_unpackhi_epi64(t[0], t[2]);
    out[2] = _mm512_unpacklo_epi64(t[1], t[3]);
    out[3] = _mm512_unpackhi_epi64(t[1], t[3]);
}

static inline __m512 low_half(__m512i v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
static inline __m512 high_half(__m512i v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(SHR(v, 16))); }
static inline void put(uint8_t *p, __m512i v) { _mm512_store_si512((void *)p, v); }
static inline void put_f(uint8_t *p, __m512 v) { _mm512_store_ps((void *)p, v); }

/* Halves at p + i * stride as floats. */
static inline __m512 halves_at(const uint8_t *p, size_t stride)
{
    uint16_t h[16];
    for (size_t i = 0; i < 16; i++) memcpy(h + i, p + i * stride, 2);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)h));
}

/* The 6-bit scales and minima of Q4_K and Q5_K, whose first 16 bytes are d, dmin and 12 bytes of scales. */
static inline void k_scales(uint8_t *scale, uint8_t *min, const __m512i head[4])
{
    __m512 d = low_half(head[0]), dmin = high_half(head[0]);
    __m512i sc[2], m[2];
    sc[0] = AND(head[1], ALL(0x3f3f3f3f));
    m[0] = AND(head[2], ALL(0x3f3f3f3f));
    sc[1] = OR(AND(head[3], ALL(0x0f0f0f0f)), AND(SHR(head[1], 2), ALL(0x30303030)));
    m[1] = OR(AND(SHR(head[3], 4), ALL(0x0f0f0f0f)), AND(SHR(head[2], 2), ALL(0x30303030)));
    for (int h = 0; h < 2; h++)
        for (int j = 0; j < 4; j++) {
            __m512i s = AND(SHR(sc[h], 8 * j), ALL(0xff)), n = AND(SHR(m[h], 8 * j), ALL(0xff));
            put_f(scale + (4 * h + j) * 128, _mm512_mul_ps(_mm512_cvtepi32_ps(s), d));
            put_f(min + (4 * h + j) * 128, _mm512_mul_ps(_mm512_cvtepi32_ps(n), dmin));
        }
}

static void panel_q4_k(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc)
{
    const __m512i nibble = ALL(0x0f0f0f0f);
    uint8_t *scales = panel + 32 * kc, *mins = scales + 4 * kc;
    for (; kc > 0; kc -= 256, w += 144, panel += 8192, scales += 1024, mins += 1024)
        for (int g = 0; g < 2; g++) {
            const uint8_t *p = w + (size_t)(16 * g) * row_bytes;
            uint8_t *q = panel + 64 * g;
            __m512i v[4];
            turn(v, p, row_bytes);
            k_scales(scales + 64 * g, mins + 64 * g, v);
            for (int c = 0; c < 8; c++) { /* 16 bytes: 16 columns of sub-block 2(c/2), 16 of the next */
                uint8_t *a = q + (c / 2) * 2048 + (c & 1) * 512;
                turn(v, p + 16 + 16 * c, row_bytes);
                for (int j = 0; j < 4; j++) {
                    put(a + j * 128, AND(v[j], nibble));
                    put(a + j * 128 + 1024, AND(SHR(v[j], 4), nibble));
                }
            }
        }
}

static void panel_q5_k(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc)
{
    const __m512i nibble = ALL(0x0f0f0f0f), bit = ALL(0x10101010);
    uint8_t *scales = panel + 32 * kc, *mins = scales + 4 * kc;
    for (; kc > 0; kc -= 256, w += 176, panel += 8192, scales += 1024, mins += 1024)
        for (int g = 0; g < 2; g++) {
            const uint8_t *p = w + (size_t)(16 * g) * row_bytes;
            uint8_t *q = panel + 64 * g;
            __m512i v[4], h[8], low[8];
            turn(v, p, row_bytes);
            k_scales(scales + 64 * g, mins + 64 * g, v);
            turn(h, p + 16, row_bytes);
            turn(h + 4, p + 32, row_bytes);
#pragma GCC unroll 8
            for (int s = 0; s < 8; s++) /* bit s of a high byte belongs to sub-block s */
                for (int c = 0; c < 2; c++) {
                    uint8_t *a = q + s * 1024 + c * 512;
                    if (!(s & 1)) turn(low + 4 * c, p + 48 + 16 * s + 16 * c, row_bytes);
                    for (int j = 0; j < 4; j++) {
                        __m512i top = h[4 * c + j], v = low[4 * c + j];
                        top = AND(s < 4 ? SHL(top, 4 - s) : SHR(top, s - 4), bit);
                        put(a + j * 128, OR(AND(s & 1 ? SHR(v, 4) : v, nibble), top));
                    }
                }
        }
}

/* 6 bits: half h of a block has ql[64], qh[32]; column 32i + l of it takes nibble i / 2 of ql[l + 32 (i & 1)] and
 * bits 2i, 2i + 1 of qh[l]. */
static void panel_q6_k(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc)
{
    const __m512i nibble = ALL(0x0f0f0f0f), bits = ALL(0x30303030);
    uint8_t *scales = panel + 32 * kc;
    for (; kc > 0; kc -= 256, w += 210, panel += 8192, scales += 2048)
        for (int g = 0; g < 2; g++) {
            const uint8_t *p = w + (size_t)(16 * g) * row_bytes;
            uint8_t *q = panel + 64 * g, *scale = scales + 64 * g;
            __m512i v[4], low[16], h[8];
            __m512 d = halves_at(p + 208, row_bytes);
            turn(v, p + 192, row_bytes);
            for (int j = 0; j < 16; j++) {
                __m512i s = _mm512_srai_epi32(_mm512_sll_epi32(v[j / 4], _mm_cvtsi32_si128(24 - 8 * (j % 4))), 24);
                put_f(scale + j * 128, _mm512_mul_ps(_mm512_cvtepi32_ps(s), d));
            }
            for (int half = 0; half < 2; half++) {
                for (int c = 0; c < 4; c++) turn(low + 4 * c, p + 64 * half + 16 * c, row_bytes);
                for (int c = 0; c < 2; c++) turn(h + 4 * c, p + 128 + 32 * half + 16 * c, row_bytes);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 8; j++) {
                        __m512i x = low[8 * (i & 1) + j], top = h[j];
                        top = AND(i == 0 ? SHL(top, 4) : i == 1 ? SHL(top, 2) : i == 2 ? top : SHR(top, 2), bits);
                        put(q + (4 * half + i) * 1024 + j * 128, OR(AND(i < 2 ? x : SHR(x, 4), nibble), top));
                    }
            }
        }
}

static void panel_q8_0(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc)
{
    uint8_t *scale = panel + 32 * kc;
    const __m512i sign = ALL((int)0x80808080u);
    for (; kc > 0; kc -= 32, w += 34, panel += 1024, scale += 128)
        for (int g = 0; g < 2; g++) {
            const uint8_t *p = w + (size_t)(16 * g) * row_bytes;
            __m512i v[4];
            put_f(scale + 64 * g, halves_at(p, row_bytes));
            for (int c = 0; c < 2; c++) {
                turn(v, p + 2 + 16 * c, row_bytes);
                for (int j = 0; j < 4; j++) put(panel + 64 * g + c * 512 + j * 128, _mm512_xor_si512(v[j], sign));
            }
        }
}

static void panel_q4_0(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc)
{
    uint8_t *scale = panel + 32 * kc;
    const __m512i nibble = ALL(0x0f0f0f0f);
    for (; kc > 0; kc -= 32, w += 18, panel += 1024, scale += 128)
        for (int g = 0; g < 2; g++) {
            const uint8_t *p = w + (size_t)(16 * g) * row_bytes;
            __m512i v[4];
            put_f(scale + 64 * g, halves_at(p, row_bytes));
            turn(v, p + 2, row_bytes);
            for (int j = 0; j < 4; j++) {
                put(panel + 64 * g + j * 128, AND(v[j], nibble));
                put(panel + 64 * g + 512 + j * 128, AND(SHR(v[j], 4), nibble));
            }
        }
}

/* A table of 16 values for a nibble instead of the nibble: IQ4_NL (f16 scale in front) and MXFP4 (power of two). */
static inline void by_table(uint8_t *panel, const uint8_t *p, size_t row_bytes, __m512i table)
{
    const __m512i nibble = ALL(0x0f0f0f0f);
    __m512i v[4];
    turn(v, p, row_bytes);
    for (int j = 0; j < 4; j++) {
        put(panel + j * 128, _mm512_shuffle_epi8(table, AND(v[j], nibble)));
        put(panel + 512 + j * 128, _mm512_shuffle_epi8(table, AND(SHR(v[j], 4), nibble)));
    }
}

static void panel_iq4_nl(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc)
{
    uint8_t *scale = panel + 32 * kc;
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128((const void *)hd_iq4_bytes));
    for (; kc > 0; kc -= 32, w += 18, panel += 1024, scale += 128)
        for (int g = 0; g < 2; g++) {
            const uint8_t *p = w + (size_t)(16 * g) * row_bytes;
            put_f(scale + 64 * g, halves_at(p, row_bytes));
            by_table(panel + 64 * g, p + 2, row_bytes, table);
        }
}

static void panel_mxfp4(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc)
{
    uint8_t *scale = panel + 32 * kc;
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128((const void *)hd_mxfp4_bytes));
    for (; kc > 0; kc -= 32, w += 17, panel += 1024, scale += 128)
        for (int g = 0; g < 2; g++) {
            const uint8_t *p = w + (size_t)(16 * g) * row_bytes;
            uint8_t e[16];
            for (size_t i = 0; i < 16; i++) e[i] = p[i * row_bytes];
            /* half of 2^(e - 127), since the table holds doubled values; e = 0 and 1 are subnormal halves */
            __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)e));
            __m512i bits = _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(x, ALL(2)), SHL(_mm512_sub_epi32(x, ALL(1)), 23),
                                                   _mm512_sllv_epi32(ALL(0x00200000), x));
            put(scale + 64 * g, bits);
            by_table(panel + 64 * g, p + 1, row_bytes, table);
        }
}

static const hd_panel_kind kinds[HD_TYPE_COUNT] = {
    [HD_Q4_K] = {panel_q4_k, 32, 0, 1},      [HD_Q5_K] = {panel_q5_k, 32, 0, 1},
    [HD_Q6_K] = {panel_q6_k, 16, 32, 0},     [HD_Q8_0] = {panel_q8_0, 32, 128, 0},
    [HD_Q4_0] = {panel_q4_0, 32, 8, 0},      [HD_IQ4_NL] = {panel_iq4_nl, 32, 128, 0},
    [HD_MXFP4] = {panel_mxfp4, 32, 12, 0},
};

const hd_panel_kind *hd_panel_kind_avx512(int32_t type)
{
    return type >= 0 && type < HD_TYPE_COUNT && kinds[type].unpack ? &kinds[type] : NULL;
}
