/* The body of gemm_unpack_avx2.c, gemm_unpack_avx512.c and gemm_unpack_signed_avx512.c: unpacks weight blocks into panels (gemm_panel.h), as many rows
 * at a time as a vector has lanes. Rows are turned into lanes while still packed, so that every later step works on all
 * of them. The types that people run have their own way; the others go by planes. Layouts: ggml/src/ggml-common.h. */
#include <string.h>

#include "gemm_unpack.h"
#include "lanes.h"
#include "plane.h"

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
static inline void put(uint8_t *p, vi v) { _mm256_store_si256((void *)p, v); }
#endif
#define WIDE (4 * HD_LANES)  /* bytes of a vector */

#ifdef HD_PANEL_SIGNED
#define KIND hd_panel_kind_signed
#define OFFSET(n) 0
#define LESS(v, n) _mm512_sub_epi8(v, _mm512_set1_epi8(n))
#else
#define KIND HD_ISA(hd_panel_kind)
#define OFFSET(n) (n)
#define LESS(v, n) (v)
#endif

static inline vf high_half(vi v) { return low_half(SHR(v, 16)); }
static inline void put_f(uint8_t *p, vf v) { v_store((float *)(void *)p, v); }

/* out[j] lane i = dword j of the 16 bytes at p + i * stride. */
static inline void turn(vi out[4], const uint8_t *p, size_t stride)
{
    vi r[4], t[4];
    const uint8_t *p4 = p + 4 * stride;
#define AT(q) _mm_loadu_si128((const __m128i *)(const void *)((q) + i * stride))
#ifdef __AVX512F__
    const uint8_t *p8 = p + 8 * stride, *p12 = p + 12 * stride;
    for (size_t i = 0; i < 4; i++) {
        vi a = _mm512_inserti32x4(_mm512_castsi128_si512(AT(p)), AT(p4), 1);
        r[i] = _mm512_inserti32x4(_mm512_inserti32x4(a, AT(p8), 2), AT(p12), 3);
    }
#else
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
static inline void turn32(vi out[8], const uint8_t *p, size_t stride)
{
#ifdef __AVX512F__
    vi r[8], t[8], u[8];
    const uint8_t *p4 = p + 4 * stride;
#define AT(q) _mm256_loadu_si256((const __m256i *)(const void *)((q) + i * stride))
    for (size_t h = 0; h < 2; h++, p += 8 * stride, p4 += 8 * stride)
        for (size_t i = 0; i < 4; i++) r[4 * h + i] = _mm512_inserti64x4(_mm512_castsi256_si512(AT(p)), AT(p4), 1);
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
static inline vf halves_at(const uint8_t *p, size_t stride)
{
    uint16_t h[HD_LANES];
    for (size_t i = 0; i < HD_LANES; i++) memcpy(h + i, p + i * stride, 2);
    return v_from_half(h);
}

/* The 6-bit scales and minima of Q4_K and Q5_K, whose first 16 bytes are d, dmin and 12 bytes of scales. */
static inline void k_scales(uint8_t *scale, uint8_t *min, const vi head[4])
{
    vf d = low_half(head[0]), dmin = high_half(head[0]);
    vi sc[2], m[2];
    sc[0] = AND(head[1], ALL(0x3f3f3f3f));
    m[0] = AND(head[2], ALL(0x3f3f3f3f));
    sc[1] = OR(AND(head[3], ALL(0x0f0f0f0f)), AND(SHR(head[1], 2), ALL(0x30303030)));
    m[1] = OR(AND(SHR(head[3], 4), ALL(0x0f0f0f0f)), AND(SHR(head[2], 2), ALL(0x30303030)));
    for (int h = 0; h < 2; h++)
        for (int j = 0; j < 4; j++) {
            vi s = AND(SHR(sc[h], 8 * j), ALL(0xff)), n = AND(SHR(m[h], 8 * j), ALL(0xff));
            put_f(scale + (4 * h + j) * 128, v_mul(TO_FLOAT(s), d));
            put_f(min + (4 * h + j) * 128, v_mul(TO_FLOAT(n), dmin));
        }
}

static void panel_q4_k(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    (void)type;
    const vi nibble = ALL(0x0f0f0f0f);
    uint8_t *scales = panel + 32 * kc, *mins = scales + 4 * kc;
    for (; kc > 0; kc -= 256, w += 144, panel += 8192, scales += 1024, mins += 1024)
        for (int g = 0; g < 32 / HD_LANES; g++) {
            const uint8_t *p = w + (size_t)(HD_LANES * g) * row_bytes;
            uint8_t *q = panel + WIDE * g;
            vi v[4];
            turn(v, p, row_bytes);
            k_scales(scales + WIDE * g, mins + WIDE * g, v);
            for (int c = 0; c < 4; c++, q += 2048) { /* 32 bytes: the columns of sub-blocks 2c and 2c + 1 */
                vi b[8];
                turn32(b, p + 16 + 32 * c, row_bytes);
                for (int j = 0; j < 8; j++) {
                    put(q + j * 128, AND(b[j], nibble));
                    put(q + j * 128 + 1024, AND(SHR(b[j], 4), nibble));
                }
            }
        }
}

static void panel_q5_k(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    (void)type;
    const vi nibble = ALL(0x0f0f0f0f), bit = ALL(0x10101010);
    uint8_t *scales = panel + 32 * kc, *mins = scales + 4 * kc;
    for (; kc > 0; kc -= 256, w += 176, panel += 8192, scales += 1024, mins += 1024)
        for (int g = 0; g < 32 / HD_LANES; g++) {
            const uint8_t *p = w + (size_t)(HD_LANES * g) * row_bytes;
            uint8_t *q = panel + WIDE * g;
            vi v[4], h[8], low[8];
            turn(v, p, row_bytes);
            k_scales(scales + WIDE * g, mins + WIDE * g, v);
            turn32(h, p + 16, row_bytes);
#pragma GCC unroll 8
            for (int s = 0; s < 8; s++) { /* bit s of a high byte belongs to sub-block s */
                if (!(s & 1)) turn32(low, p + 48 + 16 * s, row_bytes);
                for (int j = 0; j < 8; j++) {
                    vi top = AND(s < 4 ? SHL(h[j], 4 - s) : SHR(h[j], s - 4), bit);
                    put(q + s * 1024 + j * 128, OR(AND(s & 1 ? SHR(low[j], 4) : low[j], nibble), top));
                }
            }
        }
}

/* 6 bits: half h of a block has ql[64], qh[32]; column 32i + l of it takes nibble i / 2 of ql[l + 32 (i & 1)] and
 * bits 2i, 2i + 1 of qh[l]. */
static void panel_q6_k(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    (void)type;
    const vi nibble = ALL(0x0f0f0f0f), bits = ALL(0x30303030);
    uint8_t *scales = panel + 32 * kc;
    for (; kc > 0; kc -= 256, w += 210, panel += 8192, scales += 2048)
        for (int g = 0; g < 32 / HD_LANES; g++) {
            const uint8_t *p = w + (size_t)(HD_LANES * g) * row_bytes;
            uint8_t *q = panel + WIDE * g, *scale = scales + WIDE * g;
            vi v[4], low[16], h[8];
            vf d = halves_at(p + 208, row_bytes);
            turn(v, p + 192, row_bytes);
            for (int j = 0; j < 16; j++) {
                vi s = SIGNED_BYTE(v[j / 4], j % 4);
                put_f(scale + j * 128, v_mul(TO_FLOAT(s), d));
            }
            for (int half = 0; half < 2; half++) {
                for (int c = 0; c < 2; c++) turn32(low + 8 * c, p + 64 * half + 32 * c, row_bytes);
                turn32(h, p + 128 + 32 * half, row_bytes);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 8; j++) {
                        vi x = low[8 * (i & 1) + j], top = h[j];
                        top = AND(i == 0 ? SHL(top, 4) : i == 1 ? SHL(top, 2) : i == 2 ? top : SHR(top, 2), bits);
                        put(q + (4 * half + i) * 1024 + j * 128, LESS(OR(AND(i < 2 ? x : SHR(x, 4), nibble), top), 32));
                    }
            }
        }
}

static void panel_q8_0(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    (void)type;
    uint8_t *scale = panel + 32 * kc;
    const vi sign = ALL((int)(0x01010101u * FLIP));
    for (; kc > 0; kc -= 32, w += 34, panel += 1024, scale += 128)
        for (int g = 0; g < 32 / HD_LANES; g++) {
            const uint8_t *p = w + (size_t)(HD_LANES * g) * row_bytes;
            vi v[8];
            put_f(scale + WIDE * g, halves_at(p, row_bytes));
            turn32(v, p + 2, row_bytes);
            for (int j = 0; j < 8; j++) put(panel + WIDE * g + j * 128, XOR(v[j], sign));
        }
}

static void panel_q4_0(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    (void)type;
    uint8_t *scale = panel + 32 * kc;
    const vi nibble = ALL(0x0f0f0f0f);
    for (; kc > 0; kc -= 32, w += 18, panel += 1024, scale += 128)
        for (int g = 0; g < 32 / HD_LANES; g++) {
            const uint8_t *p = w + (size_t)(HD_LANES * g) * row_bytes;
            vi v[4];
            put_f(scale + WIDE * g, halves_at(p, row_bytes));
            turn(v, p + 2, row_bytes);
            for (int j = 0; j < 4; j++) {
                put(panel + WIDE * g + j * 128, LESS(AND(v[j], nibble), 8));
                put(panel + WIDE * g + 512 + j * 128, LESS(AND(SHR(v[j], 4), nibble), 8));
            }
        }
}

/* A table of 16 values for a nibble instead of the nibble: IQ4_NL (f16 scale in front) and MXFP4 (power of two). */
static inline void by_table(uint8_t *panel, const uint8_t *p, size_t row_bytes, vi table)
{
    const vi nibble = ALL(0x0f0f0f0f);
    vi v[4];
    turn(v, p, row_bytes);
    for (int j = 0; j < 4; j++) {
        put(panel + j * 128, LOOKUP(table, AND(v[j], nibble)));
        put(panel + 512 + j * 128, LOOKUP(table, AND(SHR(v[j], 4), nibble)));
    }
}

static void panel_iq4_nl(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    (void)type;
    uint8_t *scale = panel + 32 * kc;
    const vi table = XOR(TABLE(hd_iq4_bytes), ALL((int)(0x01010101u * (FLIP ^ 0x80))));
    for (; kc > 0; kc -= 32, w += 18, panel += 1024, scale += 128)
        for (int g = 0; g < 32 / HD_LANES; g++) {
            const uint8_t *p = w + (size_t)(HD_LANES * g) * row_bytes;
            put_f(scale + WIDE * g, halves_at(p, row_bytes));
            by_table(panel + WIDE * g, p + 2, row_bytes, table);
        }
}

static void panel_iq4_xs(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    (void)type;
    uint8_t *scales = panel + 32 * kc;
    const vi table = XOR(TABLE(hd_iq4_bytes), ALL((int)(0x01010101u * (FLIP ^ 0x80))));
    for (; kc > 0; kc -= 256, w += 136, panel += 8192, scales += 1024)
        for (int g = 0; g < 32 / HD_LANES; g++) {
            const uint8_t *p = w + (size_t)(HD_LANES * g) * row_bytes;
            vi v[4];
            turn(v, p, row_bytes); /* d, high bits of the scales; low bits of the scales */
            const vf d = low_half(v[0]);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                vi s = OR(AND(SHR(v[1], 4 * i), ALL(15)), SHL(AND(SHR(v[0], 16 + 2 * i), ALL(3)), 4));
                put_f(scales + WIDE * g + 128 * i, v_mul(TO_FLOAT(SUB(s, ALL(32))), d));
                by_table(panel + WIDE * g + 1024 * i, p + 8 + 16 * i, row_bytes, table);
            }
        }
}

static void panel_mxfp4(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    (void)type;
    uint8_t *scale = panel + 32 * kc;
    const vi table = LESS(TABLE(hd_mxfp4_bytes), 12);
    for (; kc > 0; kc -= 32, w += 17, panel += 1024, scale += 128)
        for (int g = 0; g < 32 / HD_LANES; g++) {
            const uint8_t *p = w + (size_t)(HD_LANES * g) * row_bytes;
            uint8_t e[HD_LANES];
            for (size_t i = 0; i < HD_LANES; i++) e[i] = p[i * row_bytes];
            /* half of 2^(e - 127), since the table holds doubled values; e = 0 and 1 are subnormal floats */
            vi x = BYTES(e), bits = below(x, 2, SHLV(ALL(0x00200000), x), SHL(SUB(x, ALL(1)), 23));
            put(scale + WIDE * g, bits);
            by_table(panel + WIDE * g, p + 1, row_bytes, table);
        }
}

/* Any type that has planes: rows are spread one by one, then turned. */
static void panel_planes(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    const hd_plane_fn spread = HD_ISA(hd_planes)[type];
    const size_t step = (size_t)(HD_PLANE / hd_types[type].block) * (size_t)hd_types[type].bytes;
    const vi flip = ALL((int)(0x01010101u * FLIP));
    uint8_t *scales = panel + 32 * kc, *mins = scales + 8 * kc;
    hd_plane planes[HD_LANES];
    memset(planes, 0, sizeof planes);
    for (; kc > 0; kc -= HD_PLANE, w += step, panel += 8192, scales += 2048, mins += 2048) {
        const int32_t m = kc < HD_PLANE ? kc : HD_PLANE;
        for (int g = 0; g < 32 / HD_LANES; g++) {
            for (size_t i = 0; i < HD_LANES; i++) spread(w + ((size_t)(HD_LANES * g) + i) * row_bytes, m, planes + i);
            for (int32_t c = 0; c < m / 16; c++) {
                vi v[4];
                turn(v, (const uint8_t *)planes->q + 16 * c, sizeof(hd_plane));
                for (int j = 0; j < 4; j++) put(panel + WIDE * g + c * 512 + j * 128, XOR(v[j], flip));
            }
            for (int32_t c = 0; c < m / 16; c += 4) {
                vi v[4], u[4];
                turn(v, (const uint8_t *)(planes->scale + c), sizeof(hd_plane));
                turn(u, (const uint8_t *)(planes->min + c), sizeof(hd_plane));
                for (int j = 0; j < 4 && c + j < m / 16; j++) {
                    put(scales + WIDE * g + (c + j) * 128, v[j]);
                    if (hd_plane_has_min(type)) put(mins + WIDE * g + (c + j) * 128, u[j]);
                }
            }
        }
    }
}

static const hd_panel_kind kinds[HD_TYPE_COUNT] = {
    [HD_Q4_K] = {panel_q4_k, 32, 0, 1, 15},
    [HD_Q5_K] = {panel_q5_k, 32, 0, 1, 31},
    [HD_Q6_K] = {panel_q6_k, 16, OFFSET(32), 0, 63},
    [HD_Q8_0] = {panel_q8_0, 32, FLIP, 0, 255},
    [HD_Q4_0] = {panel_q4_0, 32, OFFSET(8), 0, 15},
    [HD_IQ4_NL] = {panel_iq4_nl, 32, FLIP, 0, 255},
    [HD_IQ4_XS] = {panel_iq4_xs, 32, FLIP, 0, 255},
    [HD_MXFP4] = {panel_mxfp4, 32, OFFSET(12), 0, 24},
};
static const hd_panel_kind by_planes[2] = {{panel_planes, 16, FLIP, 0, 255}, {panel_planes, 16, FLIP, 1, 255}};

const hd_panel_kind *KIND(int32_t type)
{
    if (type < 0 || type >= HD_TYPE_COUNT) return NULL;
    if (kinds[type].unpack) return &kinds[type];
    return HD_ISA(hd_planes)[type] ? &by_planes[hd_plane_has_min(type)] : NULL;
}
