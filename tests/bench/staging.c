/* One expert tensor multiplied step by step, with and without copies of its experts made first: what staging.py measures.
 * Owns the ways and their timing; kernels and threads are the engine's own (libhearth), routing and memory the caller's. */
#define _GNU_SOURCE
#include "bench.h"
#include "gemm_unpack.h"
#include "teams.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* staging.py names them in this order. */
enum way { MAPPING, COPY_USED, REPACK_USED, COPY_ALL, KEPT, KEPT_REPACKED, READ, WAYS };
enum { ROWS = 256 }; /* in an item: what the engine shares out at a time */

/* Filled by staging.py in this order. Experts of a layer lie behind each other, layer behind layer; the arenas hold every
 * layer (what was copied beforehand) or are used as if they held one. */
typedef struct tensor {
    int32_t type, layers, experts, rows, cols;
    const uint8_t *mapped;
    uint8_t *arena, *panels;
} tensor;

typedef struct item { int32_t use, r0, r1; } item;
typedef struct use { int32_t expert, begin, end; } use;

typedef struct run {
    hd_teams *teams;
    const hd_kernels *k;
    const hd_panel_kind *kind;
    const hd_panel_way *panel_way;
    const tensor *t;
    size_t row_bytes, panel_bytes; /* panel_bytes: of 32 rows */
    int32_t way, layer, phase;
    int32_t act, n_uses, n_items;
    use *uses;
    item *items;
    const uint8_t **x;
    float **out;
} run;

static size_t expert_bytes(const run *r) { return r->row_bytes * (size_t)r->t->rows; }
static size_t expert_panels(const run *r) { return r->panel_bytes * (size_t)((r->t->rows + 31) / 32); }
static const uint8_t *source(const run *r, int32_t expert)
{
    return r->t->mapped + ((size_t)r->layer * (size_t)r->t->experts + (size_t)expert) * expert_bytes(r);
}
/* Copies made in the step lie in one layer's slots, those made beforehand in their own. */
static size_t slot(const run *r, int32_t expert)
{
    int kept = r->way == KEPT || r->way == KEPT_REPACKED;
    return (size_t)(kept ? r->layer : 0) * (size_t)r->t->experts + (size_t)expert;
}

static size_t chunk_bytes(const hd_panel_kind *kind, int32_t kc)
{
    return (size_t)kc * 32 + (size_t)(1 + kind->mins) * 128 * (size_t)(kc / kind->sub);
}

static size_t panel_size(const hd_panel_kind *kind, int32_t cols)
{
    size_t bytes = 0;
    for (int32_t c = 0; c < cols; c += HD_CHUNK) bytes += chunk_bytes(kind, cols - c < HD_CHUNK ? cols - c : HD_CHUNK);
    return bytes;
}

static void repack(const run *r, const uint8_t *w, uint8_t *panel)
{
    const hd_type_info *type = &hd_types[r->t->type];
    for (int32_t c = 0; c < r->t->cols; c += HD_CHUNK) {
        int32_t kc = r->t->cols - c < HD_CHUNK ? r->t->cols - c : HD_CHUNK;
        r->kind->unpack(panel, w + (size_t)(c / type->block) * (size_t)type->bytes, r->row_bytes, kc, r->t->type);
        panel += chunk_bytes(r->kind, kc);
    }
}

/* Of what is prepared of a token. */
static size_t side_bytes(int32_t cols) { return (size_t)cols / 32 * HD_PREPARED_MOST + 64; }

/* The panels' walk of the engine, without the unpacking. */
static void multiply_panels(const run *r, const use *u, const item *i, void *scratch)
{
    int32_t n = u->end - u->begin, cols = r->t->cols;
    const size_t prepared = side_bytes(cols);
    float *sum = scratch;
    uint8_t *sides = (uint8_t *)scratch + (size_t)n * 128;
    if (r->panel_way->prepared)
        for (int32_t t = 0; t < n; t++) r->panel_way->prepare(sides + (size_t)t * prepared, r->kind, r->x[u->begin + t], cols);
    for (int32_t row = i->r0; row < i->r1; row += HD_GEMM_PANEL) {
        const uint8_t *panel = r->t->panels + slot(r, u->expert) * expert_panels(r) + (size_t)(row / 32) * r->panel_bytes;
        memset(sum, 0, (size_t)n * 128);
        for (int32_t c = 0; c < cols; c += HD_CHUNK) {
            int32_t kc = cols - c < HD_CHUNK ? cols - c : HD_CHUNK;
            hd_panel_tokens tokens = {.lift = (size_t)cols / 8, .sums = (size_t)cols / 4, .ahead = panel + 4096,
                                      .begins = c == 0, .row = row,
                                      .lines = n <= r->panel_way->width ? 16 : 0};
            for (int32_t t = 0, width; t < n; t += width) {
                width = hd_group_width(n - t, r->panel_way->width);
                for (int32_t j = 0; j < width; j++) {
                    const uint8_t *x = r->x[u->begin + t + j];
                    tokens.x[j] = hd_act_q(x) + c;
                    tokens.side[j] = r->panel_way->prepared ? sides + (size_t)(t + j) * prepared + c / 32 * r->panel_way->prepared
                                                            : (const uint8_t *)(hd_q8_d(x, cols) + c / 32);
                }
                r->panel_way->multiply(sum + 32 * t, panel, r->kind, &tokens, width, kc);
            }
            panel += chunk_bytes(r->kind, kc);
        }
        for (int32_t t = 0; t < n; t++) memcpy(r->out[u->begin + t] + row, sum + 32 * t, 128);
    }
}

static _Atomic uint64_t seen; /* keeps the reading from being left out */

static void do_item(void *context, hd_worker *w, int32_t number)
{
    const run *r = context;
    const item *i = &r->items[number];
    /* Copying everything counts experts, not uses. */
    int32_t expert = r->way == COPY_ALL && r->phase == 1 ? i->use : r->uses[i->use].expert;
    size_t from = (size_t)i->r0 * r->row_bytes, bytes = (size_t)(i->r1 - i->r0) * r->row_bytes;
    const uint8_t *weights = source(r, expert);
    if (r->way == READ) {
        atomic_fetch_xor(&seen, hd_read_bytes(weights + from, bytes));
        return;
    }
    if (r->phase == 1 && r->way == REPACK_USED) {
        uint8_t *panels = r->t->panels + slot(r, expert) * expert_panels(r);
        for (int32_t row = i->r0; row < i->r1; row += 32)
            repack(r, weights + (size_t)row * r->row_bytes, panels + (size_t)(row / 32) * r->panel_bytes);
        return;
    }
    if (r->phase == 1 && (r->way == COPY_USED || r->way == COPY_ALL)) {
        memcpy(r->t->arena + slot(r, expert) * expert_bytes(r) + from, weights + from, bytes);
        return;
    }
    const use *u = &r->uses[i->use];
    if (r->way == REPACK_USED || r->way == KEPT_REPACKED) {
        multiply_panels(r, u, i, hd_worker_scratch(w, (size_t)(u->end - u->begin) * (128 + side_bytes(r->t->cols))));
        return;
    }
    hd_product p = {.type = r->t->type, .act = r->act, .row_bytes = r->row_bytes, .k = r->t->cols,
                    .w = r->way == MAPPING ? weights : r->t->arena + slot(r, expert) * expert_bytes(r),
                    .n = u->end - u->begin, .x = r->x + u->begin, .out = r->out + u->begin};
    r->k->product(&p, i->r0, i->r1, hd_worker_scratch(w, r->k->product_scratch(&p)));
}

static int next(void *context, hd_worker *w)
{
    (void)w;
    run *r = context;
    int copies = r->way == COPY_USED || r->way == REPACK_USED || r->way == COPY_ALL;
    r->phase += r->phase == 0 && !copies ? 2 : 1; /* 1: copy, 2: multiply */
    if (r->phase > 2) return 0;
    int32_t count = r->phase == 1 && r->way == COPY_ALL ? r->t->experts : r->n_uses;
    r->n_items = 0;
    for (int32_t u = 0; u < count; u++)
        for (int32_t row = 0; row < r->t->rows; row += ROWS)
            r->items[r->n_items++] = (item){u, row, row + ROWS < r->t->rows ? row + ROWS : r->t->rows};
    hd_teams_publish(r->teams, 0, 0, r->n_items);
    return 1;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int prepare(run *r, const tensor *t, const char *isa, int32_t threads, const int32_t *cpus)
{
    memset(r, 0, sizeof *r);
    r->t = t;
    r->k = hd_kernels_for(isa, NULL);
    r->row_bytes = (size_t)(t->cols / hd_types[t->type].block) * (size_t)hd_types[t->type].bytes;
    if (!r->k) return 0;
    /* Not AMX: its multiply wants more than panels (gemm_amx.c), and another set's would be compared with it. */
    if (strcmp(r->k->name, "avx2") == 0) {
        r->kind = hd_panel_kind_avx2(t->type);
        if (r->kind) r->panel_way = hd_panel_way_avx2(r->kind);
    } else if (strncmp(r->k->name, "avx512", 6) == 0) {
        r->kind = hd_panel_kind_avx512(t->type);
        if (r->kind) r->panel_way = hd_panel_way_avx512(r->kind);
    }
    if (r->kind) r->panel_bytes = panel_size(r->kind, t->cols);
    int32_t *team = calloc((size_t)threads, sizeof *team);
    r->teams = team ? hd_teams_new(threads, cpus, team, NULL, 2000) : NULL;
    free(team);
    return r->teams != NULL;
}

static void step(run *r)
{
    hd_job job = {next, do_item, NULL, r};
    r->phase = 0;
    hd_teams_run(r->teams, &job);
}

/* Bytes of a layer's experts as panels; 0: the type has none. */
uint64_t staging_panels(const tensor *t, const char *isa)
{
    int32_t cpu = -1;
    run r;
    uint64_t bytes = prepare(&r, t, isa, 1, &cpu) && r.kind ? expert_panels(&r) * (uint64_t)t->experts : 0;
    hd_teams_free(r.teams);
    return bytes;
}

/* Seconds of so many steps of `tokens` rows, for each way and repetition: seconds [WAYS][repetitions]. Step s works on layer
 * s % layers and sends row i to the experts chosen[s][i][used]. Copies that are made beforehand are made first. used_sum:
 * experts used, summed over steps. 0: it could not be done, or a copy gave other results than the mapping. */
int staging_measure(const tensor *t, const char *isa, int32_t threads, const int32_t *cpus, int32_t steps, int32_t tokens,
                    int32_t used, const int32_t *chosen, const float *x, int32_t repetitions, double *seconds,
                    int64_t *used_sum)
{
    run r;
    size_t pairs = (size_t)tokens * (size_t)used, experts = (size_t)t->experts;
    int same = 0;
    if (!prepare(&r, t, isa, threads, cpus)) return 0;
    r.act = r.k->act_for(t->type);
    size_t packed = r.k->act_bytes((hd_act)r.act, t->cols), stride = (size_t)t->rows + 16;
    uint8_t *rows = aligned_alloc(64, packed * (size_t)tokens);
    float *out = malloc(sizeof(float) * stride * pairs), *first = malloc(sizeof(float) * stride * pairs);
    r.uses = malloc(sizeof(use) * experts);
    r.items = malloc(sizeof(item) * experts * (size_t)(t->rows / ROWS + 1));
    r.x = malloc(sizeof *r.x * pairs);
    r.out = malloc(sizeof *r.out * pairs);
    if (!rows || !out || !first || !r.uses || !r.items || !r.x || !r.out) goto end;
    same = 1;
    for (int32_t i = 0; i < tokens; i++)
        r.k->act_pack((hd_act)r.act, x + (size_t)i * (size_t)t->cols, t->cols, rows + packed * (size_t)i);
    for (size_t i = 0; i < pairs; i++) r.out[i] = out + stride * i;
    for (int32_t layer = 0; layer < t->layers; layer++)
        for (int32_t e = 0; e < t->experts; e++) {
            r.way = KEPT, r.layer = layer;
            memcpy(t->arena + slot(&r, e) * expert_bytes(&r), source(&r, e), expert_bytes(&r));
            for (int32_t row = 0; t->panels && row < t->rows; row += 32)
                repack(&r, source(&r, e) + (size_t)row * r.row_bytes,
                       t->panels + slot(&r, e) * expert_panels(&r) + (size_t)(row / 32) * r.panel_bytes);
        }
    for (int32_t turn = -1; turn < repetitions; turn++)
        for (r.way = 0; r.way < WAYS; r.way++) {
            double total = 0;
            if ((r.way == REPACK_USED || r.way == KEPT_REPACKED) && !t->panels) continue;
            *used_sum = 0;
            if (turn < 0) memset(out, 0, sizeof(float) * stride * pairs); /* no way passes for what another one left */
            for (int32_t s = 0; s < steps; s++) {
                const int32_t *choice = chosen + (size_t)s * pairs;
                r.n_uses = 0, r.layer = s % t->layers;
                for (int32_t e = 0, at = 0; e < t->experts; e++) {
                    int32_t begin = at;
                    for (size_t i = 0; i < pairs; i++)
                        if (choice[i] == e) r.x[at++] = rows + packed * (i / (size_t)used);
                    if (at > begin) r.uses[r.n_uses++] = (use){e, begin, at};
                }
                *used_sum += r.n_uses;
                double start = now();
                step(&r);
                total += now() - start;
            }
            if (turn >= 0) seconds[r.way * repetitions + turn] = total;
            else if (r.way == MAPPING) memcpy(first, out, sizeof(float) * stride * pairs);
            else if (r.way == COPY_USED || r.way == COPY_ALL || r.way == KEPT)
                same &= memcmp(first, out, sizeof(float) * stride * pairs) == 0;
        }
end:
    hd_teams_free(r.teams);
    free(rows), free(out), free(first), free(r.uses), free(r.items), free(r.x), free(r.out);
    return same;
}
