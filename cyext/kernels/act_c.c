/* Packing of activations in plain C: the meaning that the SIMD versions must repeat byte for byte. */
#include "act.h"

#include <math.h>
#include <string.h>

size_t hd_act_bytes(hd_act kind, int64_t k) {
    size_t n = (size_t)k, bytes = 0;
    switch (kind) {
    case HD_ACT_F32: bytes = 4 * n; break;
    case HD_ACT_BF16: bytes = 2 * n; break;
    case HD_ACT_Q8: bytes = n + n / 8 + n / 8 + n / 8; break;
    case HD_ACT_Q8K: bytes = n + n / 64 + n / 8; break;
    default: break;
    }
    return (bytes + 63) & ~(size_t)63;
}

static uint16_t bf16_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 64); /* a NaN stays one */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

/* One block of n values: q and the returned scale. Rounds to nearest even, as the vector conversions do. */
static float quantise(const float *x, int64_t n, int8_t *q) {
    float top = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        top = a > top ? a : top;
    }
    float d = top / 127.0f, inverse = d > 0.0f ? 127.0f / top : 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float v = x[i] * inverse;
        v = v > 127.0f ? 127.0f : v;
        v = v < -127.0f ? -127.0f : v;
        q[i] = (int8_t)lrintf(v);
    }
    return d;
}

static void sums_of(const int8_t *q, int64_t k, int16_t *sums) {
    for (int64_t i = 0; i < k / 16; i++) {
        int sum = 0;
        for (int j = 0; j < 16; j++) sum += q[16 * i + j];
        sums[i] = (int16_t)sum;
    }
}

void hd_act_pack_c(hd_act kind, const float *x, int64_t k, void *out) {
    uint8_t *row = out;
    size_t used = 0, bytes = hd_act_bytes(kind, k);
    switch (kind) {
    case HD_ACT_F32:
        used = 4 * (size_t)k;
        memcpy(out, x, used);
        break;
    case HD_ACT_BF16: {
        uint16_t *y = out;
        for (int64_t i = 0; i < k; i++) y[i] = bf16_of(x[i]);
        used = 2 * (size_t)k;
        break;
    }
    case HD_ACT_Q8: {
        float *d = (float *)(void *)(row + k), *s = (float *)(void *)(row + k + k / 8);
        int16_t *sums = (int16_t *)(void *)(row + k + k / 4);
        for (int64_t b = 0; b < k / 32; b++) d[b] = quantise(x + 32 * b, 32, (int8_t *)row + 32 * b);
        sums_of((const int8_t *)row, k, sums);
        for (int64_t b = 0; b < k / 32; b++) s[b] = d[b] * (float)(sums[2 * b] + sums[2 * b + 1]);
        used = (size_t)(k + 3 * (k / 8));
        break;
    }
    case HD_ACT_Q8K: {
        float *d = (float *)(void *)(row + k);
        int16_t *sums = (int16_t *)(void *)(row + k + k / 64);
        for (int64_t b = 0; b < k / 256; b++) d[b] = quantise(x + 256 * b, 256, (int8_t *)row + 256 * b);
        sums_of((const int8_t *)row, k, sums);
        used = (size_t)(k + k / 64 + k / 8);
        break;
    }
    default: return;
    }
    memset(row + used, 0, bytes - used);
}
