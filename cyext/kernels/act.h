/* Packed activations: how one input row of k values lies in memory for each hd_act. Owns the layouts and their packing
 * in plain C and SIMD; knows nothing of weights. Every row starts 64-byte aligned and its size is a multiple of 64.
 *
 *   HD_ACT_F32   float x[k]
 *   HD_ACT_Q8    int8_t q[k]; float d[k/32]; float s[k/32]; int16_t sums[k/16]       k a multiple of 32
 *
 * x[j] is about d[block] * q[j] with |q| <= 127, d = max|x| / 127 (0 for a block of zeros or of next to nothing; a NaN or
 * an infinity where the block holds one, so that every sum over it is no number either); sums[i] is the sum of
 * q[16i .. 16i+15]; s[b] is d[b] times the sum of q in block b. */
#pragma once
#include "kernels.h"

#define HD_ACT_BLOCK 32

static inline const int8_t *hd_act_q(const uint8_t *row) { return (const int8_t *)row; }

static inline const float *hd_q8_d(const uint8_t *row, int64_t k) { return (const float *)(const void *)(row + k); }
static inline const float *hd_q8_s(const uint8_t *row, int64_t k) { return (const float *)(const void *)(row + k + k / 8); }
static inline const int16_t *hd_q8_sums(const uint8_t *row, int64_t k) {
    return (const int16_t *)(const void *)(row + k + k / 4);
}

/* Bytes of one packed row, a multiple of 64. */
size_t hd_act_bytes(hd_act kind, int64_t k);

/* All give the same bytes, whatever the instruction set. */
void hd_act_pack_c(hd_act kind, const float *x, int64_t k, void *out);
void hd_act_pack_avx2(hd_act kind, const float *x, int64_t k, void *out);
void hd_act_pack_avx512(hd_act kind, const float *x, int64_t k, void *out);
