/* Walks a product through panels (gemm_panel.h); the arithmetic is the instruction sets'. */
#include "gemm_panel.h"

#include <string.h>

static size_t up(size_t n) { return (n + 63) & ~(size_t)63; }

/* Gathered bytes: not a power of two apart, which would put the same columns of all tokens in one set of the cache. */
static size_t row_stride(const hd_product *p) { return up((size_t)p->k) + 64; }
static size_t tail_bytes(const hd_product *p) { return up(HD_GEMM_PANEL * p->row_bytes + 64); }

size_t hd_panel_scratch(const hd_product *p)
{
    size_t groups = (size_t)(p->k / 16), n = (size_t)p->n;
    return up(HD_PANEL_BYTES) + up(n * 128) + 3 * up(groups * n * 4) + tail_bytes(p) +
           (n + HD_GROUP_TOKENS) * row_stride(p);
}

typedef struct gathered {
    int32_t *start;   /* [group of tokens][columns / sub][tokens of the group] */
    float *scale, *lift;
    int8_t *bytes;
} gathered;

static void gather(const hd_product *p, const hd_panel_kind *kind, const hd_panel_way *way, const gathered *g)
{
    const int64_t k = p->k, subs = k / kind->sub, blocks = k / 32;
    for (int32_t first = 0, width; first < p->n; first += width) {
        width = hd_group_width(p->n - first, way->width);
        for (int32_t t = 0; t < width; t++) {
            const int16_t *sums = hd_q8_sums(p->x[first + t], k);
            const float *d = hd_q8_d(p->x[first + t], k);
            if (way->gathered) memcpy(g->bytes + (size_t)(first + t) * row_stride(p), p->x[first + t], (size_t)k);
            int32_t *start = g->start + first * subs + t;
            float *scale = g->scale + first * blocks + t, *lift = g->lift + first * subs + t;
            for (int64_t c = 0; c < blocks; c++) scale[c * width] = d[c];
            for (int64_t b = 0; b < subs; b++) {
                int32_t sum = kind->sub == 32 ? sums[2 * b] + sums[2 * b + 1] : sums[b];
                start[b * width] = -kind->offset * sum;
                if (kind->mins) lift[b * width] = d[b * kind->sub / 32] * (float)sum;
            }
        }
    }
}

void hd_panel_product(const hd_product *p, int64_t r0, int64_t r1, void *scratch, const hd_panel_kind *kind,
                      const hd_panel_way *way)
{
    const size_t n = (size_t)p->n, groups = (size_t)(p->k / 16);
    const hd_type_info *type = &hd_types[p->type];
    uint8_t *panel = scratch, *at = panel + up(HD_PANEL_BYTES);
    float *sum = (float *)(void *)at;
    at += up(n * 128);
    gathered g = {.start = (int32_t *)(void *)at};
    at += up(groups * n * 4);
    g.scale = (float *)(void *)at;
    at += up(groups * n * 4);
    g.lift = (float *)(void *)at;
    at += up(groups * n * 4);
    const size_t stride = row_stride(p);
    g.bytes = (int8_t *)at;
    if (way->gathered) at += (n + HD_GROUP_TOKENS) * stride;
    gather(p, kind, way, &g);
    /* The next panel is asked for a few lines at a time while this one is multiplied; the hint may run a little over its
     * end, which a prefetch forgives. */
    const int64_t steps = (p->n + way->width - 1) / way->width * (p->k / 32);
    const int32_t lines = (int32_t)(((int64_t)p->row_bytes * HD_GEMM_PANEL / 64 + steps - 1) / steps);

    for (int64_t r = r0; r < r1; r += HD_GEMM_PANEL) {
        const size_t rows = r1 - r < HD_GEMM_PANEL ? (size_t)(r1 - r) : HD_GEMM_PANEL;
        const uint8_t *w = p->w + (size_t)r * p->row_bytes;
        const uint8_t *ahead = w + HD_GEMM_PANEL * p->row_bytes, *end = p->w + (size_t)r1 * p->row_bytes;
        const uint8_t *after = ahead + HD_GEMM_PANEL * p->row_bytes;
        if (rows < HD_GEMM_PANEL) { /* the panel is always whole: rows that do not exist are zeros */
            memcpy(at, w, rows * p->row_bytes);
            memset(at + rows * p->row_bytes, 0, tail_bytes(p) - rows * p->row_bytes);
            w = at;
        }
        memset(sum, 0, n * 128);
        for (int64_t k0 = 0; k0 < p->k; k0 += HD_CHUNK) {
            const int32_t kc = p->k - k0 < HD_CHUNK ? (int32_t)(p->k - k0) : HD_CHUNK;
            kind->unpack(panel, w + (size_t)(k0 / type->block) * (size_t)type->bytes, p->row_bytes, kc, p->type);
            for (int32_t t = 0, width; t < p->n; t += width) {
                width = hd_group_width(p->n - t, way->width);
                const int64_t sub = t * (p->k / kind->sub) + k0 / kind->sub * width;
                hd_panel_tokens tokens = {.start = g.start + sub, .lift = g.lift + sub};
                tokens.scale = g.scale + t * (p->k / 32) + k0 / 32 * width;
                for (int32_t i = 0; i < width; i++) {
                    const int8_t *bytes = way->gathered ? g.bytes + (size_t)(t + i) * stride : hd_act_q(p->x[t + i]);
                    tokens.x[i] = bytes + k0;
                }
                tokens.stride = stride;
                tokens.ahead = ahead;
                tokens.lines = ahead < end && ahead < after ? lines : 0;
                ahead += (ptrdiff_t)tokens.lines * 64 * (kc / 32);
                way->multiply(sum + 32 * t, panel, kind, &tokens, width, kc);
            }
        }
        if (rows == HD_GEMM_PANEL) /* a length known to the compiler: else it copies with REP MOVS, which is slow to start */
            for (size_t t = 0; t < n; t++) memcpy(p->out[t] + r, sum + t * 32, HD_GEMM_PANEL * sizeof(float));
        else
            for (size_t t = 0; t < n; t++) memcpy(p->out[t] + r, sum + t * 32, rows * sizeof(float));
    }
}
