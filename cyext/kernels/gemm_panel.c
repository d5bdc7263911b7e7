/* Walks a product through panels (gemm_panel.h); the arithmetic is the instruction sets'. */
#include "gemm_panel.h"

#include <string.h>

static size_t up(size_t n) { return (n + 63) & ~(size_t)63; }

/* Gathered bytes: not a power of two apart, which would put the same columns of all tokens in one set of the cache. */
static size_t row_stride(const hd_product *p) { return up((size_t)p->k) + 64; }
/* What is prepared of a token lies a whole number of lines apart. */
static size_t prepared_stride(const hd_product *p) { return up((size_t)(p->k / 32) * HD_PREPARED_MOST); }
static size_t tail_bytes(const hd_product *p) { return up(HD_GEMM_PANEL * p->row_bytes + 64); }

/* 32 floats. By vectors: the compiler makes REP STOS of a memset or a loop, which is slow to start. */
static void clear(float *p)
{
    typedef float four __attribute__((vector_size(16)));
    four *v = (four *)(void *)p;
    const four zero = {0, 0, 0, 0};
    for (int i = 0; i < 8; i++) {
        __asm__("" : : : "memory");
        v[i] = zero;
    }
}

size_t hd_panel_scratch(const hd_product *p)
{
    return up(HD_PANEL_BYTES) + up((size_t)p->n * 128) + tail_bytes(p) + (size_t)p->n * prepared_stride(p);
}

/* Floats that a group of tokens has gathered. */
static size_t group_floats(const hd_product *p, const hd_panel_kind *kind)
{
    return (size_t)(p->k / 32) * (size_t)hd_gathered_floats(kind);
}

size_t hd_panel_scratch_gathered(const hd_product *p, const hd_panel_kind *kind)
{
    size_t n = (size_t)p->n, groups = (n + HD_GROUP_TOKENS - 1) / HD_GROUP_TOKENS;
    return hd_panel_scratch(p) + (n + HD_GROUP_TOKENS) * row_stride(p) + groups * group_floats(p, kind) * sizeof(float);
}

void hd_panel_product(const hd_product *p, int64_t r0, int64_t r1, void *scratch, const hd_panel_kind *kind,
                      const hd_panel_way *way)
{
    const size_t n = (size_t)p->n, stride = row_stride(p);
    const hd_type_info *type = &hd_types[p->type];
    uint8_t *panel = scratch, *at = panel + up(HD_PANEL_BYTES);
    float *sum = (float *)(void *)at, *floats = NULL;
    at += up(n * 128);
    const uint8_t *prepared = at;
    if (way->prepared)
        for (size_t t = 0; t < n; t++, at += prepared_stride(p)) way->prepare(at, kind, p->x[t], p->k);
    const int8_t *gathered = (const int8_t *)at;
    if (way->gather) {
        for (size_t t = 0; t < n; t++, at += stride) memcpy(at, p->x[t], (size_t)p->k);
        at += HD_GROUP_TOKENS * stride;
        float *group = floats = (float *)(void *)at;
        for (int32_t t = 0, width; t < p->n; t += width, group += group_floats(p, kind)) {
            width = hd_group_width(p->n - t, way->width);
            way->gather(group, p, kind, t, width);
        }
        at = (uint8_t *)group;
    }
    /* The next panel is asked for a few lines at a time while this one is multiplied; the hint may run a little over its
     * end, which a prefetch forgives. */
    const int64_t steps = (p->n + way->width - 1) / way->width * (p->k / 32);
    const int32_t lines = (int32_t)(((int64_t)p->row_bytes * HD_GEMM_PANEL / 64 + steps - 1) / steps);

    hd_panel_tokens tokens;
    tokens.lift = (size_t)p->k / 8;
    tokens.sums = (size_t)p->k / 4;
    tokens.stride = stride;
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
        for (size_t t = 0; t < n && !way->direct; t++) clear(sum + t * 32);
        tokens.row = r;
        for (int64_t k0 = 0; k0 < p->k; k0 += HD_CHUNK) {
            const int32_t kc = p->k - k0 < HD_CHUNK ? (int32_t)(p->k - k0) : HD_CHUNK;
            kind->unpack(panel, w + (size_t)(k0 / type->block) * (size_t)type->bytes, p->row_bytes, kc, p->type);
            const float *group = floats;
            for (int32_t t = 0, width; t < p->n; t += width) {
                width = hd_group_width(p->n - t, way->width);
                if (way->gather) {
                    tokens.x[0] = gathered + (size_t)t * stride + k0;
                    tokens.gathered = group + k0 / 32 * hd_gathered_floats(kind);
                    group += group_floats(p, kind);
                } else {
                    for (int32_t i = 0; i < width; i++) {
                        const uint8_t *row = p->x[t + i];
                        tokens.x[i] = hd_act_q(row) + k0;
                        tokens.side[i] = way->prepared ? prepared + (size_t)(t + i) * prepared_stride(p) + k0 / 32 * way->prepared
                                                       : (const uint8_t *)(hd_q8_d(row, p->k) + k0 / 32);
                    }
                }
                tokens.begins = k0 == 0;
                tokens.out = way->direct && rows == HD_GEMM_PANEL && k0 + kc == p->k ? p->out + t : NULL;
                tokens.ahead = ahead;
                tokens.lines = ahead < end && ahead < after ? lines : 0;
                ahead += (ptrdiff_t)tokens.lines * 64 * (kc / 32);
                way->multiply(sum + 32 * t, panel, kind, &tokens, width, kc);
            }
        }
        if (rows == HD_GEMM_PANEL && way->direct) continue;
        if (rows == HD_GEMM_PANEL) /* a length known to the compiler: else it copies with REP MOVS, which is slow to start */
            for (size_t t = 0; t < n; t++) memcpy(p->out[t] + r, sum + t * 32, HD_GEMM_PANEL * sizeof(float));
        else
            for (size_t t = 0; t < n; t++) memcpy(p->out[t] + r, sum + t * 32, rows * sizeof(float));
    }
}
