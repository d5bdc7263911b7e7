/* Which tokens of one row of logits are the likeliest: so many of them, or those that make up a share. Exact: no token
 * is passed over and ties go to the lower id. Owns the order of selection and of sums; knows no request. */
#pragma once
#include "kernels/scan.h"
#include <stddef.h>
#include <stdint.h>

/* Tokens are kept in one list up to so many; beyond, they are told by a limit alone. */
#define HD_LIST 256

#define HD_BUCKETS 2048

/* A row that is looked at, and the room to do it in. Threads do not share one. */
typedef struct hd_row {
    const hd_scan *scan;
    const float *x;
    int32_t n;
    float top;                       /* the highest; minus infinity when no token is left */
    float *peaks[6];                 /* maxima of blocks, of blocks of those, ... down to one block */
    int32_t counts[6], levels;
    double *sums;                    /* of pieces */
    double *buckets;                 /* [HD_BUCKETS] */
    int32_t *where;                  /* indices: [blocks] and [HD_SCAN_BLOCK] behind them */
    uint64_t *keys;                  /* what is selected, likeliest first once sorted */
} hd_row;

/* Tokens above `least`, and of those at it the ones with ids up to `last`. */
typedef struct hd_kept { float least; int32_t last; } hd_kept;

/* Bytes for rows of n logits of which at most `list` likeliest are listed (n for hd_row_fewest), and the row laid out
 * in them. */
size_t hd_row_bytes(int32_t n, int32_t list);
void hd_row_place(hd_row *row, const hd_scan *scan, int32_t n, int32_t list, void *room);

/* Look at logits [n]: 0 when some are not finite. */
int hd_row_look(hd_row *row, const float *x);

/* The k likeliest (at most HD_LIST), likeliest first, as keys; how many there are (fewer when fewer are above minus
 * infinity). */
int32_t hd_row_likeliest(hd_row *row, int32_t k);
static inline int32_t hd_key_token(uint64_t key) { return (int32_t)(uint32_t)key; }

/* The token that is likeliest. */
int32_t hd_row_first(hd_row *row);

/* Sum of exp((x - top) * slope) over the kept, left in pieces for hd_row_draw. */
double hd_row_mass(hd_row *row, hd_kept kept, float slope);

/* The token at which the pieces' running sum passes share (from 0 to below 1) of the mass, in the order of ids. */
int32_t hd_row_draw(hd_row *row, hd_kept kept, float slope, double mass, double share);

/* The fewest likeliest of the kept whose sum of exp((x - top) * slope) reaches `wanted`. Slope 0: so many of them. */
hd_kept hd_row_fewest(hd_row *row, hd_kept kept, float slope, double wanted);

/* The lowest x for which exp(x - top), in double, is at least `least` (above 0, at most 1). */
float hd_limit(float top, double least);

/* The k lowest of m keys, ascending, in place at the front. */
void hd_lowest(uint64_t *keys, int32_t m, int32_t k);
