/* Scalar conversions between float and IEEE half (f16). Owns nothing else; the wide ones live with the vector files. */
#pragma once
#include <stdint.h>
#include <string.h>

static inline float hd_half_widen(uint16_t h)
{
    /* Shift the half into a float's place, then let one multiplication by 2^112 rebase the exponent: subnormal halves
     * become normal floats by the same product. Infinities and NaN carry the largest exponent and are set apart. */
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu) << 13;
    float f;
    if (rest >= 0x0f800000u) {
        rest |= 0x7f800000u;
        rest |= sign;
        memcpy(&f, &rest, 4);
        return f;
    }
    memcpy(&f, &rest, 4);
    f *= 0x1p112f;
    memcpy(&rest, &f, 4);
    rest |= sign;
    memcpy(&f, &rest, 4);
    return f;
}

static inline uint16_t hd_half_narrow(float f)
{
    /* Round to nearest even, as VCVTPS2PH does. */
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a >= 0x7f800000u) return (uint16_t)(sign | 0x7c00u | (a > 0x7f800000u ? 0x200u | ((a >> 13) & 0x3ffu) : 0));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits */
        float x;
        memcpy(&x, &a, 4);
        x += 0.5f;
        memcpy(&a, &x, 4);
        return (uint16_t)(sign | (a - 0x3f000000u));
    }
    a += 0xfffu + ((a >> 13) & 1u);
    return (uint16_t)(sign | ((a - 0x38000000u) >> 13));
}
