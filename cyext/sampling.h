/* From rows of logits to tokens, rows shared out by teams: penalties, bias, mask, filters, a seeded draw,
 * log-probabilities. A row's choice depends on its logits, its sampler, its mask and its position alone. Changes no
 * logits. */
#pragma once
#include "kernels/scan.h"
#include "teams.h"
#include <stdint.h>

/* How often a token was among the last ones, and how often it was chosen. */
typedef struct hd_count { int32_t token; uint32_t recent, chosen; } hd_count;

/* One request's sampler. The first part is filled in by its owner; the counts belong to hd_sampler_*. */
typedef struct hd_sampler {
    const hd_scan *scan;
    int32_t n_vocab;
    int32_t top_k;                       /* 0: off */
    int32_t likeliest;                   /* how many are told with a choice; 0: no log-probabilities */
    int32_t greedy;
    double temperature, top_p, min_p;    /* temperature above 0 unless greedy */
    double repeat, presence, frequency;
    int32_t repeat_last;                 /* -1: all, 0: none */
    uint64_t seed;
    int32_t n_biases, n_forbidden;
    const int32_t *biased, *forbidden;   /* ids within the vocabulary */
    const float *bias;

    hd_count *counts;                    /* [capacity], open addressing; token -1: free */
    int32_t capacity, used;
    int32_t *ring;                       /* the last tokens when repeat_last > 0 */
    int32_t room, held, oldest;
} hd_sampler;

enum hd_chosen { HD_CHOSEN, HD_NOT_FINITE, HD_NONE_LEFT, HD_NO_ROOM };

typedef struct hd_pick {
    const float *logits;                 /* [n_vocab] */
    const hd_sampler *sampler;
    const uint32_t *mask;                /* a bit per token, 1: may come; or NULL */
    uint64_t position;
    int32_t *tokens;                     /* [likeliest] and their log-probabilities, likeliest first */
    double *logprobs;

    int32_t status;                      /* enum hd_chosen */
    int32_t token;                       /* the chosen one; with HD_NOT_FINITE the first that is not */
    int32_t n_tokens;
    double logprob;
} hd_pick;

/* Tell of the prompt's tokens, or of one that was chosen. 0 when out of memory. Tokens that have no logit only take
 * their place among the last ones. */
int hd_sampler_begin(hd_sampler *s, const int32_t *tokens, int64_t n);
int hd_sampler_accept(hd_sampler *s, int32_t token);
void hd_sampler_end(hd_sampler *s);

/* Logits [n_vocab] in place: what is asked for with them, in this order: repetition penalty, frequency and presence
 * penalties, bias, forbidden tokens, mask. `hd_sampler_adjusts`: whether there is anything to do. */
int hd_sampler_adjusts(const hd_sampler *s, const uint32_t *mask);
void hd_sampler_adjust(const hd_sampler *s, const uint32_t *mask, float *x);

/* From 0 to below 1, by seed and position alone. */
double hd_uniform(uint64_t seed, uint64_t position);

/* Fill in every pick. teams: NULL for the calling thread. */
void hd_sampling_choose(hd_teams *teams, hd_pick *picks, int32_t n);

typedef struct hd_scored { const float *logits; int32_t token, finite; double logprob; } hd_scored;

/* log-probability of each row's token (-1: none is wanted), by rows of n_vocab logits. */
void hd_sampling_score(hd_teams *teams, const hd_scan *scan, int32_t n_vocab, hd_scored *rows, int32_t n);
