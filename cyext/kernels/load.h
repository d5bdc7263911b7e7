/* Unaligned little-endian loads, and the scales of the block types as floats. */
#pragma once
#include "half.h"

static inline uint16_t hd_u16(const void *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}
static inline uint32_t hd_u32(const void *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static inline uint64_t hd_u64(const void *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
static inline float hd_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline float hd_f16_at(const void *p) { return hd_half_widen(hd_u16(p)); }
static inline float hd_bf16(uint16_t h) { return hd_float((uint32_t)h << 16); }

/* E8M0 exponent, halved because the table of E2M1 values is doubled (OCP Microscaling Formats 1.0). */
static inline float hd_e8m0_half(uint8_t e) {
    return hd_float(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}
/* Unsigned E4M3 with bias 7, halved likewise; 0x7f is no number and reads as zero. */
static inline float hd_ue4m3_half(uint8_t e) {
    int exponent = e >> 3 & 15, mantissa = e & 7;
    if (e == 0x7f) return 0.0f;
    if (exponent == 0) return (float)mantissa * 0.0009765625f; /* 2^-10 */
    return (float)(8 + mantissa) * hd_float((uint32_t)(exponent - 7 - 4 + 127) << 23);
}
