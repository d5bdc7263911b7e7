/* One head of the gated delta rule (Yang et al., arXiv 2412.06464): for each token in order
 *   S <- exp(g) S;  S <- S + k (beta (v - S^T k))^T;  out = S^T q
 * with the state S [dk][dv] in place. All of a token's inputs are contiguous; q is scaled already. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct hd_delta {
    int32_t rows, dk, dv;
    float *state;                       /* [dk][dv] */
    const float *const *q, *const *k, *const *v;   /* [rows] */
    const float *decay, *beta;          /* [rows]: exp(g) and beta */
    float *const *out;                  /* [rows] -> [dv] */
} hd_delta;

void hd_delta_c(const hd_delta *d);
void hd_delta_avx2(const hd_delta *d);
void hd_delta_avx512(const hd_delta *d);
