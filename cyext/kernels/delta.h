/* One head of the gated delta rule (Yang et al., arXiv 2412.06464): for each token in order
 *   S <- exp(g) S;  S <- S + k (beta (v - S^T k))^T;  out = S^T q
 * computed in groups of HD_DELTA_TOKENS, which begin at multiples of it in the sequence, however the rows arrive: the state
 * S [dk][dv] is that of the last group's end, and of the tokens since then is kept what they will change in it (the tail).
 * So a row's output is the same, bit for bit, in any cut of the sequence, and S is written once in a group. All of a token's
 * inputs are contiguous; q is scaled already. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define HD_DELTA_TOKENS 4

typedef struct hd_delta {
    int32_t rows, dk, dv;
    int32_t before;                     /* tokens of the first row's group that came before it: its position % HD_DELTA_TOKENS */
    const float *held;                  /* S at the beginning of that group */
    float *next;                        /* becomes S at the end of the last group that is whole with these rows; untouched
                                           where none is */
    const float *tail;                  /* [hd_delta_tail]: what the `before` tokens left */
    float *tail_next;                   /* becomes what the tokens after the last whole group leave; not the same memory */
    const float *const *q, *const *k, *const *v;   /* [rows] */
    const float *decay, *beta;          /* [rows]: exp(g) and beta */
    float *const *out;                  /* [rows] -> [dv] */
} hd_delta;

/* Floats of a tail: of each token k [dk], what it writes [dv] and its decay. */
static inline size_t hd_delta_tail(size_t dk, size_t dv) { return ((HD_DELTA_TOKENS - 1) * (dk + dv + 1) + 15) & ~(size_t)15; }

void hd_delta_c(const hd_delta *d);
void hd_delta_avx2(const hd_delta *d);
void hd_delta_avx512(const hd_delta *d);
