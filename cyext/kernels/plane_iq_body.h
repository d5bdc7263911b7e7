/* The IQ types with code books, spread into planes; included after plane_body.h, which has the PLANE macro.
 * IQ1's offset of an eighth is folded into the values: scale * (g + 1/8) = scale/8 * (8 g + 1), which is exact. */

#if defined(__AVX2__)
#include "plane_wide.h"

static inline void HD_NAME(put_piece)(int8_t *q, wide_piece v) {
    _mm256_storeu_si256((__m256i *)(void *)q, wide_negated(v.low, (uint32_t)v.negative));
    _mm256_storeu_si256((__m256i *)(void *)(q + 32), wide_negated(v.high, (uint32_t)(v.negative >> 32)));
}
#define BY_HAND(type, bytes)                                                                     \
    PLANE(type, 256, bytes) {                                                                    \
        (void)min; /* none of them has one */                                                    \
        wide_scales s = scales_##type(b);                                                        \
        _mm256_storeu_ps(scale, s.low);                                                          \
        _mm256_storeu_ps(scale + 8, s.high);                                                     \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) HD_NAME(put_piece)(q + 64 * i, piece_##type(b, i)); \
    }
BY_HAND(iq2_xxs, 66) BY_HAND(iq2_xs, 74) BY_HAND(iq2_s, 82) BY_HAND(iq3_xxs, 98) BY_HAND(iq3_s, 110)
BY_HAND(iq1_s, 50) BY_HAND(iq1_m, 56) BY_HAND(tq1_0, 54) BY_HAND(tq2_0, 66)
PLANE(nvfp4, 64, 36) {
    (void)min;
    _mm_storeu_ps(scale, wide_nvfp4(b));
    HD_NAME(put_piece)(q, piece_nvfp4(b, 0));
}
#else

/* Seven stored signs; the eighth makes their number even. */
static inline uint32_t HD_NAME(even_signs)(uint32_t seven) {
    return seven | (uint32_t)(__builtin_popcount(seven) & 1) << 7;
}
/* Eight values of a 2-bit code book with their signs. Levels 8, 25, 43. */
static inline void HD_NAME(put_iq2)(int8_t *restrict q, uint16_t entry, uint32_t signs) {
    static const int8_t levels[4] = {8, 25, 43, 0};
    for (int i = 0; i < 8; i++) {
        int v = levels[entry >> (2 * i) & 3], s = -(int)(signs >> i & 1);
        q[i] = (int8_t)((v ^ s) - s);
    }
}
static inline void HD_NAME(put_iq3)(int8_t *restrict q, uint16_t entry, uint32_t signs, const int8_t levels[8]) {
    for (int i = 0; i < 4; i++) {
        int v = levels[entry >> (4 * i) & 7], s = -(int)(signs >> i & 1);
        q[i] = (int8_t)((v ^ s) - s);
    }
}
static inline void HD_NAME(put_iq1)(int8_t *restrict q, uint16_t entry, int delta) {
    for (int i = 0; i < 8; i++) q[i] = (int8_t)(8 * ((entry >> (2 * i) & 3) - 1) + delta);
}
static inline void HD_NAME(no_min)(float *min) {
    for (int g = 0; g < 16; g++) min[g] = 0.0f;
}

PLANE(iq2_xxs, 256, 66) {
    float d = hd_f16_at(b);
    for (int i = 0; i < 8; i++) {
        const uint8_t *p = b + 2 + 8 * i;
        uint32_t rest = hd_u32(p + 4);
        for (int j = 0; j < 4; j++)
            HD_NAME(put_iq2)(q + 32 * i + 8 * j, hd_grid_iq2_xxs[p[j]], HD_NAME(even_signs)(rest >> (7 * j) & 127));
        HD_NAME(both)(scale + 2 * i, d * (0.5f + (float)(rest >> 28)) * 0.25f);
    }
    HD_NAME(no_min)(min);
}
PLANE(iq2_xs, 256, 74) {
    float d = hd_f16_at(b);
    for (int i = 0; i < 32; i++) {
        uint32_t v = hd_u16(b + 2 + 2 * i);
        HD_NAME(put_iq2)(q + 8 * i, hd_grid_iq2_xs[v & 511], HD_NAME(even_signs)(v >> 9));
    }
    for (int g = 0; g < 16; g++) scale[g] = d * (0.5f + (float)(b[66 + g / 2] >> (4 * (g & 1)) & 15)) * 0.25f;
    HD_NAME(no_min)(min);
}
PLANE(iq2_s, 256, 82) {
    float d = hd_f16_at(b);
    for (int i = 0; i < 32; i++) {
        uint32_t index = b[2 + i] | (uint32_t)(b[66 + i / 4] >> (2 * (i & 3)) & 3) << 8;
        HD_NAME(put_iq2)(q + 8 * i, hd_grid_iq2_s[index], b[34 + i]);
    }
    for (int g = 0; g < 16; g++) scale[g] = d * (0.5f + (float)(b[74 + g / 2] >> (4 * (g & 1)) & 15)) * 0.25f;
    HD_NAME(no_min)(min);
}
PLANE(iq3_xxs, 256, 98) {
    static const int8_t levels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
    float d = hd_f16_at(b);
    for (int i = 0; i < 8; i++) {
        uint32_t rest = hd_u32(b + 66 + 4 * i);
        for (int j = 0; j < 4; j++) {
            const uint8_t *p = b + 2 + 8 * i + 2 * j;
            uint32_t signs = HD_NAME(even_signs)(rest >> (7 * j) & 127);
            HD_NAME(put_iq3)(q + 32 * i + 8 * j, hd_grid_iq3_xxs[p[0]], signs, levels);
            HD_NAME(put_iq3)(q + 32 * i + 8 * j + 4, hd_grid_iq3_xxs[p[1]], signs >> 4, levels);
        }
        HD_NAME(both)(scale + 2 * i, d * (0.5f + (float)(rest >> 28)) * 0.5f);
    }
    HD_NAME(no_min)(min);
}
PLANE(iq3_s, 256, 110) {
    static const int8_t levels[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    float d = hd_f16_at(b);
    for (int i = 0; i < 64; i++) {
        uint32_t index = b[2 + i] | (uint32_t)(b[66 + i / 8] >> (i & 7) & 1) << 8;
        HD_NAME(put_iq3)(q + 4 * i, hd_grid_iq3_s[index], (uint32_t)b[74 + i / 2] >> (4 * (i & 1)), levels);
    }
    for (int i = 0; i < 8; i++) HD_NAME(both)(scale + 2 * i, d * (float)(1 + 2 * (b[106 + i / 2] >> (4 * (i & 1)) & 15)));
    HD_NAME(no_min)(min);
}
PLANE(iq1_s, 256, 50) {
    float d = hd_f16_at(b);
    for (int i = 0; i < 8; i++) {
        uint32_t high = hd_u16(b + 34 + 2 * i);
        for (int j = 0; j < 4; j++)
            HD_NAME(put_iq1)(q + 32 * i + 8 * j, hd_grid_iq1[b[2 + 4 * i + j] | (high >> (3 * j) & 7) << 8],
                             high & 0x8000 ? -1 : 1);
        HD_NAME(both)(scale + 2 * i, d * (float)(2 * (high >> 12 & 7) + 1) * 0.125f);
    }
    HD_NAME(no_min)(min);
}
PLANE(iq1_m, 256, 56) {
    const uint8_t *sc = b + 48;
    uint32_t d16 = 0; /* the half lies in the top nibbles of the four words of scales */
    for (int i = 0; i < 4; i++) d16 |= (uint32_t)(hd_u16(sc + 2 * i) >> 12) << (4 * i);
    float d = hd_half_widen((uint16_t)d16);
    for (int i = 0; i < 32; i++) {
        uint32_t high = (uint32_t)b[32 + i / 2] >> (4 * (i & 1));
        HD_NAME(put_iq1)(q + 8 * i, hd_grid_iq1[b[i] | (high & 7) << 8], high & 8 ? -1 : 1);
    }
    for (int g = 0; g < 16; g++)
        scale[g] = d * (float)(2 * (hd_u16(sc + 2 * (g / 4)) >> (3 * (g & 3)) & 7) + 1) * 0.125f;
    HD_NAME(no_min)(min);
}

#endif

const hd_plane_fn HD_NAME(hd_planes)[HD_TYPE_COUNT] = {
    [HD_Q4_0] = HD_NAME(plane_q4_0),       [HD_Q4_1] = HD_NAME(plane_q4_1),       [HD_Q5_0] = HD_NAME(plane_q5_0),
    [HD_Q5_1] = HD_NAME(plane_q5_1),       [HD_Q8_0] = HD_NAME(plane_q8_0),       [HD_Q2_K] = HD_NAME(plane_q2_k),
    [HD_Q3_K] = HD_NAME(plane_q3_k),       [HD_Q4_K] = HD_NAME(plane_q4_k),       [HD_Q5_K] = HD_NAME(plane_q5_k),
    [HD_Q6_K] = HD_NAME(plane_q6_k),       [HD_IQ2_XXS] = HD_NAME(plane_iq2_xxs), [HD_IQ2_XS] = HD_NAME(plane_iq2_xs),
    [HD_IQ2_S] = HD_NAME(plane_iq2_s),     [HD_IQ3_XXS] = HD_NAME(plane_iq3_xxs), [HD_IQ3_S] = HD_NAME(plane_iq3_s),
    [HD_IQ1_S] = HD_NAME(plane_iq1_s),     [HD_IQ1_M] = HD_NAME(plane_iq1_m),     [HD_IQ4_NL] = HD_NAME(plane_iq4_nl),
    [HD_IQ4_XS] = HD_NAME(plane_iq4_xs),   [HD_TQ1_0] = HD_NAME(plane_tq1_0),     [HD_TQ2_0] = HD_NAME(plane_tq2_0),
    [HD_MXFP4] = HD_NAME(plane_mxfp4),     [HD_NVFP4] = HD_NAME(plane_nvfp4),
};
