/* The one visible border of the kernels: a table of functions per instruction set, chosen at run time.
 * Nothing here allocates, locks or knows of threads; the caller shares rows out and brings the scratch memory. */
#pragma once
#include "delta.h"
#include "scan.h"
#include "types.h"

/* How a product wants its activations. Packed once per input row, then shared by every product that reads it. */
typedef enum hd_act {
    HD_ACT_F32 = 0,   /* k floats as they are */
    HD_ACT_Q8 = 1,    /* 8 bits in blocks of 32 with scale and sums */
    HD_ACT_COUNT = 2
} hd_act;

/* out[t][r] = sum_j W[r][j] * x_t[j] for tokens t < n and rows r0 <= r < r1. Within an instruction set an element has the same
 * bits whatever n, r0, r1 and the other tokens are: its additions have one order.
 * out[t] points at the element of row 0 of the whole matrix, so r indexes it directly. */
typedef struct hd_product {
    int32_t type;                /* enum hd_type of the weights */
    int32_t act;                 /* enum hd_act of the activations: what act_for() answered */
    const uint8_t *w;            /* row 0 of the weights, as the file has them */
    size_t row_bytes;
    int64_t k;                   /* columns; a multiple of the type's block */
    int32_t n;                   /* tokens */
    const uint8_t *const *x;     /* [n] packed activations, each 64-byte aligned */
    float *const *out;           /* [n] */
} hd_product;

/* Attention of some query rows of one sequence on one KV head. Keys and values lie in blocks of HD_KV_BLOCK tokens,
 * f16; block b holds positions b*HD_KV_BLOCK onwards. Row i sees keys at positions p with
 * p <= pos[i] and (window <= 0 or p > pos[i] - window). Nothing larger than scratch is materialised. */
#define HD_KV_BLOCK 64
typedef struct hd_attend {
    int32_t rows, group, dk, dv;       /* query rows; query heads that share this KV head; widths */
    const float *const *q;             /* [rows] -> [group][dk], heads q_stride floats apart */
    float *const *out;                 /* [rows] -> [group][dv], heads out_stride floats apart */
    size_t q_stride, out_stride;
    const int32_t *pos;                /* [rows] positions, ascending */
    const uint16_t *const *k;          /* [blocks] -> f16 [HD_KV_BLOCK][dk], tokens k_stride halves apart */
    const uint16_t *const *v;          /* [blocks] -> f16 [HD_KV_BLOCK][dv], tokens v_stride halves apart */
    size_t k_stride, v_stride;
    float scale, softcap;              /* scores * scale; softcap 0: none, else c*tanh(s/c) */
    int32_t window;                    /* 0: all */
    const float *sinks;                /* [group] extra logit that only adds to the denominator, or NULL */
} hd_attend;

enum hd_activation { HD_SILU = 0, HD_SWIGLU_OAI = 1, HD_SWIGLU_LIMIT = 2, HD_GELU = 3, HD_SIGMOID_GATE = 4, HD_SIGMOID = 5,
                     HD_SILU_ONLY = 6 };

typedef struct hd_kernels {
    const char *name;                  /* "c", "avx2", "avx512", "avx512bf16", "amx" */
    int32_t panel;                     /* callers share rows out in multiples of this (the last chunk may be short) */

    /* --- weights (kernel files per type family) --- */
    void (*unpack[HD_TYPE_COUNT])(const void *blocks, float *out, int64_t n);   /* n values, whole blocks; NULL: no such type */
    hd_act (*act_for)(int32_t type);   /* which activations a product of this type wants; HD_ACT_F32 always works */
    size_t (*act_bytes)(hd_act kind, int64_t k);                                /* a multiple of 64 */
    void (*act_pack)(hd_act kind, const float *x, int64_t k, void *out);
    size_t (*product_scratch)(const hd_product *p);                             /* bytes, 64-byte aligned by the caller */
    void (*product)(const hd_product *p, int64_t r0, int64_t r1, void *scratch);

    /* --- attention --- */
    size_t (*attend_scratch)(const hd_attend *a);
    void (*attend)(const hd_attend *a, void *scratch);

    /* --- recurrence --- */
    void (*delta)(const hd_delta *d);

    /* --- logits --- */
    const hd_scan *scan;

    /* --- vectors of n floats --- */
    void (*rms_norm)(float *out, const float *x, const float *weight, int64_t n, float eps);  /* weight may be NULL */
    void (*silu_mul)(float *out, const float *gate, const float *up, int64_t n);              /* silu(gate) * up */
    /* out = kind (enum hd_activation) of gate and up; formulas in vector_c.c. */
    void (*activate)(int32_t kind, float limit, float alpha, float *out, const float *gate, const float *up, int64_t n);
    /* out[c] = silu(sum over taps k of weight[k][c] * x[k][c]) with weight [taps][n]. */
    void (*convolve)(float *out, const float *const *x, const float *weight, int32_t taps, int64_t n);
    void (*softmax)(float *x, int64_t n);
    void (*add)(float *out, const float *a, const float *b, int64_t n);
    void (*axpy)(float *out, float a, const float *x, int64_t n);                             /* out += a * x */
    void (*to_f16)(uint16_t *out, const float *x, int64_t n);
    void (*to_f32)(float *out, const uint16_t *x, int64_t n);
    /* Rotate one head in place by the angles whose cosine and sine are given, n_rot/2 pairs: (i, i + n_rot/2) when
     * halves (NeoX order) else (2i, 2i + 1). */
    void (*rope)(float *x, const float *cosine, const float *sine, int32_t n_rot, int32_t halves);
} hd_kernels;

/* The table for an instruction set by name, or the best one for NULL; NULL and a reason in *why when the processor or
 * the kernel does not permit it. Tables are made once; each is immutable. */
const hd_kernels *hd_kernels_for(const char *name, const char **why);
