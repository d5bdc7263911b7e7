/* The block layouts of every quantised type, each spread into a plane. Compiled once per instruction set (the including
 * file defines HD_NAME), so that the compiler's vectoriser serves all types; hot types have kernels by hand elsewhere.
 * Layouts: ggml/src/ggml-common.h, and the numpy code of gguf-py/gguf/quants.py, which the tests compare with. */
#include "load.h"
#include "plane.h"

#define PLANE(type, block, bytes)                                                                    \
    static void HD_NAME(one_##type)(const uint8_t *restrict b, int8_t *restrict q, float *restrict scale, \
                                    float *restrict min);                                            \
    static void HD_NAME(plane_##type)(const uint8_t *b, int64_t n, hd_plane *p) {                    \
        for (int64_t i = 0; i < n / (block); i++)                                                    \
            HD_NAME(one_##type)(b + i * (bytes), p->q + i * (block), p->scale + i * ((block) / 16),  \
                                p->min + i * ((block) / 16));                                        \
    }                                                                                                \
    static void HD_NAME(one_##type)(const uint8_t *restrict b, int8_t *restrict q, float *restrict scale, \
                                    float *restrict min)

static inline void HD_NAME(both)(float *pair, float v) { pair[0] = pair[1] = v; }

PLANE(q4_0, 32, 18) {
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)((b[2 + j] & 15) - 8);
        q[16 + j] = (int8_t)((b[2 + j] >> 4) - 8);
    }
    HD_NAME(both)(scale, hd_f16_at(b));
    HD_NAME(both)(min, 0.0f);
}
PLANE(q4_1, 32, 20) {
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)(b[4 + j] & 15);
        q[16 + j] = (int8_t)(b[4 + j] >> 4);
    }
    HD_NAME(both)(scale, hd_f16_at(b));
    HD_NAME(both)(min, -hd_f16_at(b + 2));
}
PLANE(q5_0, 32, 22) {
    uint32_t high = hd_u32(b + 2);
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)(((b[6 + j] & 15) | (high >> j & 1) << 4) - 16);
        q[16 + j] = (int8_t)((b[6 + j] >> 4 | (high >> (16 + j) & 1) << 4) - 16);
    }
    HD_NAME(both)(scale, hd_f16_at(b));
    HD_NAME(both)(min, 0.0f);
}
PLANE(q5_1, 32, 24) {
    uint32_t high = hd_u32(b + 4);
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)((b[8 + j] & 15) | (high >> j & 1) << 4);
        q[16 + j] = (int8_t)(b[8 + j] >> 4 | (high >> (16 + j) & 1) << 4);
    }
    HD_NAME(both)(scale, hd_f16_at(b));
    HD_NAME(both)(min, -hd_f16_at(b + 2));
}
PLANE(q8_0, 32, 34) {
    memcpy(q, b + 2, 32);
    HD_NAME(both)(scale, hd_f16_at(b));
    HD_NAME(both)(min, 0.0f);
}
PLANE(iq4_nl, 32, 18) {
    for (int j = 0; j < 16; j++) {
        q[j] = hd_values_iq4[b[2 + j] & 15];
        q[16 + j] = hd_values_iq4[b[2 + j] >> 4];
    }
    HD_NAME(both)(scale, hd_f16_at(b));
    HD_NAME(both)(min, 0.0f);
}
PLANE(mxfp4, 32, 17) {
    for (int j = 0; j < 16; j++) {
        q[j] = hd_values_e2m1[b[1 + j] & 15];
        q[16 + j] = hd_values_e2m1[b[1 + j] >> 4];
    }
    HD_NAME(both)(scale, hd_e8m0_half(b[0]));
    HD_NAME(both)(min, 0.0f);
}
PLANE(q2_k, 256, 84) {
    const uint8_t *qs = b + 16;
    float d = hd_f16_at(b + 80), dmin = hd_f16_at(b + 82);
    for (int h = 0; h < 2; h++)
        for (int s = 0; s < 4; s++)
            for (int j = 0; j < 32; j++) q[128 * h + 32 * s + j] = (int8_t)(qs[32 * h + j] >> (2 * s) & 3);
    for (int g = 0; g < 16; g++) {
        scale[g] = d * (float)(b[g] & 15);
        min[g] = dmin * (float)(b[g] >> 4);
    }
}
PLANE(q3_k, 256, 110) {
    const uint8_t *qs = b + 32, *sc = b + 96;
    float d = hd_f16_at(b + 108);
    for (int h = 0; h < 2; h++)
        for (int s = 0; s < 4; s++)
            for (int j = 0; j < 32; j++)
                q[128 * h + 32 * s + j] =
                    (int8_t)((qs[32 * h + j] >> (2 * s) & 3) - 4 + (b[j] >> (4 * h + s) & 1) * 4);
    for (int g = 0; g < 16; g++) {
        int low = sc[g & 7] >> (g < 8 ? 0 : 4) & 15, high = sc[8 + (g & 3)] >> (2 * (g >> 2)) & 3;
        scale[g] = d * (float)((low | high << 4) - 32);
        min[g] = 0.0f;
    }
}

/* The eight 6-bit scales and minima of Q4_K and Q5_K, as one word of bytes each. */
static inline void HD_NAME(scales_k4)(const uint8_t *b, uint8_t sc[8], uint8_t m[8]) {
    uint32_t a = hd_u32(b), c = hd_u32(b + 4), e = hd_u32(b + 8);
    uint32_t words[4] = {a & 0x3f3f3f3fu, (e & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u), c & 0x3f3f3f3fu,
                         (e >> 4 & 0x0f0f0f0fu) | (c >> 2 & 0x30303030u)};
    memcpy(sc, words, 8);
    memcpy(m, words + 2, 8);
}
PLANE(q4_k, 256, 144) {
    uint8_t sc[8], m[8];
    float d = hd_f16_at(b), dmin = hd_f16_at(b + 2);
    HD_NAME(scales_k4)(b + 4, sc, m);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 32; j++) {
            q[64 * i + j] = (int8_t)(b[16 + 32 * i + j] & 15);
            q[64 * i + 32 + j] = (int8_t)(b[16 + 32 * i + j] >> 4);
        }
    for (int i = 0; i < 8; i++) {
        HD_NAME(both)(scale + 2 * i, d * (float)sc[i]);
        HD_NAME(both)(min + 2 * i, dmin * (float)m[i]);
    }
}
PLANE(q5_k, 256, 176) {
    uint8_t sc[8], m[8];
    float d = hd_f16_at(b), dmin = hd_f16_at(b + 2);
    const uint8_t *high = b + 16, *low = b + 48;
    HD_NAME(scales_k4)(b + 4, sc, m);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 32; j++) {
            q[64 * i + j] = (int8_t)((low[32 * i + j] & 15) | (high[j] >> (2 * i) & 1) << 4);
            q[64 * i + 32 + j] = (int8_t)(low[32 * i + j] >> 4 | (high[j] >> (2 * i + 1) & 1) << 4);
        }
    for (int i = 0; i < 8; i++) {
        HD_NAME(both)(scale + 2 * i, d * (float)sc[i]);
        HD_NAME(both)(min + 2 * i, dmin * (float)m[i]);
    }
}
PLANE(q6_k, 256, 210) {
    const uint8_t *high = b + 128;
    float d = hd_f16_at(b + 208);
    for (int h = 0; h < 2; h++)
        for (int j = 0; j < 32; j++) {
            uint8_t a = b[64 * h + j], c = b[64 * h + 32 + j], e = high[32 * h + j];
            q[128 * h + j] = (int8_t)(((a & 15) | (e & 3) << 4) - 32);
            q[128 * h + 32 + j] = (int8_t)(((c & 15) | (e >> 2 & 3) << 4) - 32);
            q[128 * h + 64 + j] = (int8_t)((a >> 4 | (e >> 4 & 3) << 4) - 32);
            q[128 * h + 96 + j] = (int8_t)((c >> 4 | (e >> 6) << 4) - 32);
        }
    for (int g = 0; g < 16; g++) {
        scale[g] = d * (float)(int8_t)b[192 + g];
        min[g] = 0.0f;
    }
}
PLANE(iq4_xs, 256, 136) {
    float d = hd_f16_at(b);
    uint32_t high = hd_u16(b + 2);
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 16; j++) {
            q[32 * i + j] = hd_values_iq4[b[8 + 16 * i + j] & 15];
            q[32 * i + 16 + j] = hd_values_iq4[b[8 + 16 * i + j] >> 4];
        }
        int low = b[4 + i / 2] >> (4 * (i & 1)) & 15;
        HD_NAME(both)(scale + 2 * i, d * (float)((int)(low | (high >> (2 * i) & 3) << 4) - 32));
        HD_NAME(both)(min + 2 * i, 0.0f);
    }
}

#if !defined(__AVX2__) /* else by hand: plane_wide.h */

PLANE(nvfp4, 64, 36) {
    for (int g = 0; g < 4; g++) {
        for (int j = 0; j < 8; j++) {
            q[16 * g + j] = hd_values_e2m1[b[4 + 8 * g + j] & 15];
            q[16 * g + 8 + j] = hd_values_e2m1[b[4 + 8 * g + j] >> 4];
        }
        scale[g] = hd_ue4m3_half(b[g]);
        min[g] = 0.0f;
    }
}

/* Five ternary digits to a byte: digit i of byte v is the top two bits' worth of 3 * (v * 3^i mod 256). */
static inline int8_t HD_NAME(trit)(uint8_t v, int power) { return (int8_t)((uint8_t)(v * power) * 3 >> 8) - 1; }
PLANE(tq1_0, 256, 54) {
    static const int powers[5] = {1, 3, 9, 27, 81};
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < 32; j++) q[32 * i + j] = HD_NAME(trit)(b[j], powers[i]);
        for (int j = 0; j < 16; j++) q[160 + 16 * i + j] = HD_NAME(trit)(b[32 + j], powers[i]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) q[240 + 4 * i + j] = HD_NAME(trit)(b[48 + j], powers[i]);
    float d = hd_f16_at(b + 52);
    for (int g = 0; g < 16; g++) scale[g] = d, min[g] = 0.0f;
}
PLANE(tq2_0, 256, 66) {
    for (int h = 0; h < 2; h++)
        for (int s = 0; s < 4; s++)
            for (int j = 0; j < 32; j++) q[128 * h + 32 * s + j] = (int8_t)((b[32 * h + j] >> (2 * s) & 3) - 1);
    float d = hd_f16_at(b + 64);
    for (int g = 0; g < 16; g++) scale[g] = d, min[g] = 0.0f;
}

#endif
