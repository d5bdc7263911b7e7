/* Walks a product through panels (gemm_panel.h); the arithmetic is the instruction sets'. */
#include "gemm_panel.h"

#include <string.h>

static size_t up(size_t n) { return (n + 63) & ~(size_t)63; }

static size_t tail_bytes(const hd_product *p) { return up(HD_GEMM_PANEL * p->row_bytes + 64); }

size_t hd_panel_scratch(const hd_product *p)
{
    size_t groups = (size_t)(p->k / 16), n = (size_t)p->n;
    return up(HD_PANEL_BYTES) + up(n * 128) + 3 * up(groups * n * 4) + tail_bytes(p);
}

static void gather(const hd_product *p, const hd_panel_kind *kind, hd_panel_tokens *tokens)
{
    const int64_t n = p->n, k = p->k, per = 32 / kind->sub;
    for (int64_t t = 0; t < n; t++) {
        const int16_t *sums = hd_q8_sums(p->x[t], k);
        const float *d = hd_q8_d(p->x[t], k);
        for (int64_t c = 0; c < k / 32; c++) tokens->scale[c * n + t] = d[c];
        if (per == 1)
            for (int64_t c = 0; c < k / 32; c++) {
                int32_t sum = sums[2 * c] + sums[2 * c + 1];
                tokens->start[c * n + t] = -kind->offset * sum;
                if (kind->mins) tokens->lift[c * n + t] = d[c] * (float)sum;
            }
        else
            for (int64_t c = 0; c < k / 16; c++) {
                tokens->start[c * n + t] = -kind->offset * sums[c];
                if (kind->mins) tokens->lift[c * n + t] = d[c / 2] * (float)sums[c];
            }
    }
}

void hd_panel_product(const hd_product *p, int64_t r0, int64_t r1, void *scratch, const hd_panel_kind *kind,
                      hd_panel_multiply *multiply)
{
    const size_t n = (size_t)p->n, groups = (size_t)(p->k / 16);
    const hd_type_info *type = &hd_types[p->type];
    uint8_t *panel = scratch, *at = panel + up(HD_PANEL_BYTES);
    float *sum = (float *)(void *)at;
    at += up(n * 128);
    hd_panel_tokens tokens = {.x = p->x, .start = (int32_t *)(void *)at};
    at += up(groups * n * 4);
    tokens.scale = (float *)(void *)at;
    at += up(groups * n * 4);
    tokens.lift = (float *)(void *)at;
    at += up(groups * n * 4);
    gather(p, kind, &tokens);

    for (int64_t r = r0; r < r1; r += HD_GEMM_PANEL) {
        const size_t rows = r1 - r < HD_GEMM_PANEL ? (size_t)(r1 - r) : HD_GEMM_PANEL;
        const uint8_t *w = p->w + (size_t)r * p->row_bytes;
        if (rows < HD_GEMM_PANEL) { /* the panel is always whole: rows that do not exist are copies of nothing */
            memcpy(at, w, rows * p->row_bytes);
            memset(at + rows * p->row_bytes, 0, tail_bytes(p) - rows * p->row_bytes);
            w = at;
        }
        memset(sum, 0, n * 128);
        for (int64_t k0 = 0; k0 < p->k; k0 += HD_CHUNK) {
            const int32_t kc = p->k - k0 < HD_CHUNK ? (int32_t)(p->k - k0) : HD_CHUNK;
            kind->unpack(panel, w + (size_t)(k0 / type->block) * (size_t)type->bytes, p->row_bytes, kc);
            multiply(sum, panel, kind, &tokens, p->n, k0, kc);
        }
        for (size_t t = 0; t < n; t++) memcpy(p->out[t] + r, sum + t * 32, rows * sizeof(float));
    }
}
