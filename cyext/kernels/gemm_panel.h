/* The panel: HD_GEMM_PANEL weight rows over a chunk of columns, unpacked to bytes in the layout that dot products of four
 * bytes (and int8 tiles) want. Owns the layout and the way a product is walked through panels; the instruction sets
 * bring the unpackers and the multiply.
 *
 *   bytes: for each 32 columns, each dword d < 8, each half g < 2 of the panel: 64 bytes = 16 rows x columns 4d .. 4d+3
 *   float scale[kc / sub][32]; float min[kc / sub][32] (when the type has minima)
 *
 * A weight is scale * (byte - offset) - min. Activations are HD_ACT_Q8. */
#pragma once
#include "act.h"
#include "gemm.h"

#define HD_CHUNK 512   /* columns in a chunk: its panel stays in the first-level cache */
#define HD_PANEL_BYTES (HD_CHUNK * 32 + 2 * (HD_CHUNK / 16) * 128)

/* Unpack kc columns (whole blocks) of 32 rows of a type that lie row_bytes apart. */
typedef void hd_panel_unpack(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type);

typedef struct hd_panel_kind {
    hd_panel_unpack *unpack;
    int16_t sub;      /* columns under one scale: 32 or 16 */
    int16_t offset;   /* subtracted from every byte */
    int16_t mins;     /* whether min is used */
    int16_t top;      /* no byte is larger; 255: AVX2 has them signed */
} hd_panel_kind;

/* What a group of n tokens brings to the multiply, for the columns of a chunk: x[t] the bytes of token t; side[t] what
 * HD_ACT_Q8 keeps with them, four bytes for each 32 columns: d there, d times the sum of q `lift` bytes on, and the two sums
 * of 16 q (int16) `sums` bytes on. While it works it may ask for `lines` cache lines from `ahead` on, for each 32 columns:
 * bytes of the next panel. */
#define HD_GROUP_TOKENS 16
typedef struct hd_panel_tokens {
    const int8_t *x[HD_GROUP_TOKENS];
    const uint8_t *side[HD_GROUP_TOKENS];
    size_t lift, sums;
    const uint8_t *ahead;
    int32_t lines;
    int32_t begins;      /* these are the first columns: sum is not set yet (ways that are direct) */
    float *const *out;   /* after the last columns the sums go to out[t][row ..] instead; NULL: they stay (likewise) */
    int64_t row;
    /* Gathered only: token t + 1's bytes lie `stride` after token t's, readable for 16 tokens; of each 32 columns, a float
     * for each of 16 tokens: d, then for types with minima what multiplies those, one for each scale's columns. */
    size_t stride;
    const float *gathered;
} hd_panel_tokens;

/* Floats gathered for each 32 columns of a group. */
static inline int32_t hd_gathered_floats(const hd_panel_kind *kind)
{
    return HD_GROUP_TOKENS * (1 + (kind->mins ? 32 / kind->sub : 0));
}

static inline float hd_side_float(const uint8_t *p)
{
    return *(const float *)(const void *)p;
}
/* Two sums of 16 columns, the earlier one in the low half. */
static inline int32_t hd_side_sums(const uint8_t *p)
{
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return v;
}
/* What multiplies the two sums to take an offset off 16 columns: the first, the second, or both of them. */
static inline int32_t hd_taken(int16_t offset, int first, int second)
{
    return (int32_t)((first ? (uint32_t)(uint16_t)-offset : 0) | (second ? (uint32_t)(uint16_t)-offset << 16 : 0));
}

/* sum[t][0..31] += panel x token t for n tokens, 1 <= n <= width; ways that are direct see to tokens->begins and ->out. */
typedef void hd_panel_multiply(float *sum, const uint8_t *panel, const hd_panel_kind *kind, const hd_panel_tokens *tokens,
                               int32_t n, int32_t kc);

/* Gather the floats (hd_panel_tokens) of `width` tokens from token t on, for all columns; tokens that are not there: zeros. */
typedef void hd_panel_gather(float *to, const hd_product *p, const hd_panel_kind *kind, int32_t t, int32_t width);

/* Prepare a token's row of k columns: at most HD_PREPARED_MOST bytes for each 32 of them; whole lines may be written. */
#define HD_PREPARED_MOST 16
typedef void hd_panel_prepare(uint8_t *to, const hd_panel_kind *kind, const uint8_t *row, int64_t k);

/* How an instruction set wants its tokens: in groups of at most `width`; gathered (x and side are unset then), or where they
 * lie; with `prepared` bytes for each 32 columns of a token that side[t] leads to instead, made once per product; direct:
 * it begins sums and puts them out itself. */
typedef struct hd_panel_way {
    hd_panel_multiply *multiply;
    int32_t width, direct, prepared;
    hd_panel_prepare *prepare;
    hd_panel_gather *gather;   /* NULL: not gathered */
} hd_panel_way;
const hd_panel_way *hd_panel_way_avx2(const hd_panel_kind *kind), *hd_panel_way_avx512(const hd_panel_kind *kind);

/* Tokens of the group that begins when `left` remain: groups are of nearly equal width, since one of a single token would
 * wait on its own additions. */
static inline int32_t hd_group_width(int32_t left, int32_t width)
{
    int32_t groups = (left + width - 1) / width;
    return (left + groups - 1) / groups;
}

size_t hd_panel_scratch(const hd_product *p);
/* With gathered tokens. */
size_t hd_panel_scratch_gathered(const hd_product *p, const hd_panel_kind *kind);
void hd_panel_product(const hd_product *p, int64_t r0, int64_t r1, void *scratch, const hd_panel_kind *kind,
                      const hd_panel_way *way);
