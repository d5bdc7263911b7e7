/* The router's choice and the experts' products: grouped by expert, only those that are used, resident ones first. */
#include "step.h"
#include "memory.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OP(s) (&(s)->p->ops[(s)->pc])

/* --- route ----------------------------------------------------------------------------------------------------------- */

static int32_t best(const float *score, int32_t n) {
    int32_t at = 0;
    for (int32_t j = 1; j < n; j++)
        if (score[j] > score[at]) at = j;
    return at;
}

/* Whether all are numbers. By their bits: sums of them would be slow, and comparisons pass a NaN over. */
static int all_finite(const float *x, int32_t n) {
    uint32_t bad = 0;
    for (int32_t j = 0; j < n; j++) {
        uint32_t bits;
        memcpy(&bits, x + j, 4);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

/* Leave only the scores of the groups_used best of `groups` groups, a group scored by its two best (one, if it has no more).
 * room: 2 * groups floats. */
static void limit_groups(float *score, int32_t n, int32_t groups, int32_t groups_used, float *room) {
    float *group_score = room, *kept = room + groups;
    int32_t size = n / groups;
    for (int32_t g = 0; g < groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int32_t j = g * size; j < (g + 1) * size; j++) {
            if (score[j] > first) {
                second = first;
                first = score[j];
            } else if (score[j] > second) {
                second = score[j];
            }
        }
        group_score[g] = size > 1 ? first + second : first;
        kept[g] = 0;
    }
    for (int32_t keep = 0; keep < groups_used; keep++) {
        int32_t g = best(group_score, groups);
        group_score[g] = -INFINITY;
        kept[g] = 1;
    }
    for (int32_t g = 0; g < groups; g++)
        if (!kept[g])
            for (int32_t j = g * size; j < (g + 1) * size; j++) score[j] = -INFINITY;
}

/* Choose i0 of n experts for one row. i1: enum hd_gating; i2 groups, of which i3 may be chosen from (0: no groups;
 * DeepSeek-V3, arXiv 2412.19437); i4: weights sum to one; f0 scales them. A bias moves the choice, not the weights. Ties go
 * to the lower number. Where a logit or a bias is no number nothing can be chosen: the first experts with weights of NaN,
 * so that whoever asks for the row's logits sees it. work: HD_CHOOSE_WORK n floats. */
void hd_choose(const float *logits, const float *bias, int32_t n, const hd_op *op, int32_t *chosen, float *weights, float *work) {
    int32_t used = op->i[0], gating = op->i[1], groups = op->i[2], groups_used = op->i[3];
    float *probability = work, *score = work + n;
    if (!all_finite(logits, n) || (bias && !all_finite(bias, n))) {
        for (int32_t k = 0; k < used; k++) {
            chosen[k] = k;
            weights[k] = NAN;
        }
        return;
    }
    float top = logits[best(logits, n)];
    if (gating == HD_GATE_SOFTMAX) {
        double sum = 0;
        for (int32_t j = 0; j < n; j++) sum += probability[j] = expf(logits[j] - top);
        for (int32_t j = 0; j < n; j++) probability[j] = (float)(probability[j] / sum);
    } else if (gating == HD_GATE_SIGMOID) {
        for (int32_t j = 0; j < n; j++) probability[j] = 1.0f / (1.0f + expf(-logits[j]));
    } else {
        memcpy(probability, logits, sizeof(float) * (size_t)n);
    }
    for (int32_t j = 0; j < n; j++) score[j] = probability[j] + (bias ? bias[j] : 0.0f);
    if (groups > 1 && groups_used < groups) limit_groups(score, n, groups, groups_used, work + 2 * n);
    double sum = 0;
    for (int32_t k = 0; k < used; k++) {
        int32_t j = best(score, n);
        score[j] = -INFINITY;
        chosen[k] = j;
        weights[k] = gating == HD_GATE_SOFTMAX_CHOSEN ? expf(probability[j] - top) : probability[j];
        sum += weights[k];
    }
    if (op->i[4] || gating == HD_GATE_SOFTMAX_CHOSEN)
        for (int32_t k = 0; k < used; k++) weights[k] = (float)(weights[k] / (sum > 1e-20 ? sum : 1e-20));
    for (int32_t k = 0; k < used; k++) weights[k] *= op->f[0];
}

static void route_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_op *op = OP(s);
    int32_t n = s->p->buffers[op->in[0]].width;
    /* Small work is done by the thread that prepares the phase; it has the step's own memory. */
    float *work = s->stage ? hd_worker_scratch(w, sizeof(float) * HD_CHOOSE_WORK * (size_t)n) : s->work;
    const float *bias = hd_vector(s, op, 0);
    for (int32_t r = item->r0; r < item->r1; r++)
        hd_choose(hd_row(s, op->in[0], r), bias, n, op, (int32_t *)hd_row(s, op->out[0], r), hd_row(s, op->out[1], r), work);
}

/* out0: the chosen experts (int32), out1: their weights, from the logits in in0 and the bias w0. */
int hd_op_route(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, route_rows, hd_rows(s, op), 16 * (int64_t)s->p->buffers[op->in[0]].width) == HD_SHARE)
        return HD_SHARE;
    hd_written(s, op->out[0]);
    hd_written(s, op->out[1]);
    return HD_DONE;
}

/* --- experts --------------------------------------------------------------------------------------------------------- */

enum { GATE = 0, UP = 1, DOWN = 2, GATE_BIAS = 3, UP_BIAS = 4, DOWN_BIAS = 5 };

static const hd_weight *weight(const hd_step *s, const hd_op *op, int32_t which) {
    return op->w[which] < 0 ? NULL : &s->p->weights[op->w[which]];
}

/* The distinct spans of an expert: gate and up may be views of one. */
static int32_t spans_of(const hd_step *s, const hd_op *op, int32_t expert, int32_t spans[3]) {
    int32_t n = 0;
    for (int32_t which = GATE; which <= DOWN; which++) {
        const hd_weight *m = weight(s, op, which);
        if (!m) continue;
        int32_t span = m->spans[expert];
        if (n && spans[n - 1] == span) continue;
        spans[n++] = span;
    }
    return n;
}

static int expert_state(const hd_step *s, const hd_op *op, int32_t expert) {
    int32_t spans[3], n = spans_of(s, op, expert, spans), state = HD_READY;
    for (int32_t k = 0; k < n; k++) {
        uint8_t here = atomic_load_explicit(&s->p->spans->state[spans[k]], memory_order_acquire);
        if (here == HD_FAILED) return HD_FAILED;
        if (here != HD_READY) state = HD_ABSENT;
    }
    return state;
}

static void hold(hd_step *s, const hd_op *op, int acquire) {
    int32_t spans[3];
    for (int32_t u = 0; u < s->n_uses; u++)
        for (int32_t k = 0, n = spans_of(s, op, s->uses[u].expert, spans); k < n; k++) {
            if (acquire) hd_span_acquire(s->p->spans, spans[k]);
            else hd_span_release(s->p->spans, spans[k]);
        }
    s->acquired = acquire ? op : NULL;
}

void hd_experts_release(hd_step *s) { hold(s, s->acquired, 0); }

static int enough(const hd_program *p, float **memory, size_t *have, size_t floats) {
    if (*have >= floats) return 1;
    hd_memory_free(*memory);
    *memory = hd_program_memory(p, sizeof(float) * floats);
    *have = *memory ? floats : 0;
    return *memory != NULL;
}

static int by_load(const void *a, const void *b) {
    const hd_expert_use *x = a, *y = b;
    int32_t nx = x->end - x->begin, ny = y->end - y->begin;
    return nx != ny ? (nx < ny ? 1 : -1) : x->expert - y->expert;
}

/* Sort (row, slot) pairs by expert; note what is used; point every pair at its inputs and outputs. */
static int group(hd_step *s, const hd_op *op) {
    const hd_program *p = s->p;
    int32_t used = op->i[0], n = hd_rows(s, op), experts = p->n_experts, pairs = n * used;
    const hd_weight *up = weight(s, op, UP), *down = weight(s, op, DOWN);
    int32_t *count = s->counts;
    memset(count, 0, sizeof(int32_t) * (size_t)(experts + 1));
    for (int32_t r = 0; r < n; r++) {
        if (!hd_wanted(s, op, r)) continue;
        const int32_t *chosen = (const int32_t *)hd_row(s, op->in[1], r);
        for (int32_t k = 0; k < used; k++) count[chosen[k] + 1]++;
    }
    s->n_uses = 0;
    for (int32_t e = 0, at = 0; e < experts; e++) {
        int32_t tokens = count[e + 1];
        if (tokens) {
            s->uses[s->n_uses++] = (hd_expert_use){e, at, at + tokens, 0, -1};
            if (p->expert_counts)
                atomic_fetch_add_explicit(&p->expert_counts[(size_t)op->layer * experts + e], (uint64_t)tokens,
                                          memory_order_relaxed);
        }
        count[e] = at;
        at += tokens;
        s->n_pairs = at;
    }
    if (p->expert_touched) {
        atomic_fetch_add_explicit(&p->expert_touched[3 * op->layer], 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&p->expert_touched[3 * op->layer + 1], (uint64_t)s->n_uses, memory_order_relaxed);
        atomic_fetch_add_explicit(&p->expert_touched[3 * op->layer + 2], (uint64_t)experts, memory_order_relaxed);
    }
    /* An odd number of lines from pair to pair: a power of two would put the same columns of all in one set of the cache. */
    s->hidden_stride = (((size_t)up->rows + 15) & ~(size_t)15) | 16;
    s->out_stride = (((size_t)down->rows + 15) & ~(size_t)15) | 16;
    hd_act kind = p->kernels->act_for(down->type);
    s->packed_stride = kind == HD_ACT_F32 ? 0 : p->kernels->act_bytes(kind, down->cols);
    size_t packed_floats = s->packed_stride / sizeof(float) * (size_t)pairs, packed_have = s->packed_bytes / sizeof(float);
    float *packed = (float *)s->pair_packed;
    int ok = enough(p, &s->pair_hidden, &s->hidden_floats, s->hidden_stride * (size_t)pairs) &&
             enough(p, &s->pair_gate, &s->gate_floats, s->hidden_stride * (size_t)pairs) &&
             enough(p, &s->pair_out, &s->out_floats, s->out_stride * (size_t)pairs) &&
             enough(p, &packed, &packed_have, packed_floats);
    s->pair_packed = (uint8_t *)packed;
    s->packed_bytes = packed_have * sizeof(float);
    if (!ok) return HD_FAIL;
    for (int32_t r = 0; r < n; r++) {
        if (!hd_wanted(s, op, r)) continue;
        const int32_t *chosen = (const int32_t *)hd_row(s, op->in[1], r);
        for (int32_t k = 0; k < used; k++) {
            int32_t j = count[chosen[k]]++;
            s->pair_row[j] = r;
            s->pair_at[r * used + k] = j;
            s->out0[j] = s->pair_hidden + s->hidden_stride * (size_t)j;
            s->out1[j] = s->pair_gate + s->hidden_stride * (size_t)j;
            s->mid[j] = s->pair_out + s->out_stride * (size_t)j;
            s->mid_x[j] = kind == HD_ACT_F32 ? (const uint8_t *)s->out0[j] : s->pair_packed + s->packed_stride * (size_t)j;
        }
    }
    qsort(s->uses, (size_t)s->n_uses, sizeof *s->uses, by_load);
    if (s->trace)
        for (int32_t r = 0; r < n; r++) {
            if (!hd_wanted(s, op, r)) continue;
            const int32_t *chosen = (const int32_t *)hd_row(s, op->in[1], r);
            hd_trace *t = s->trace;
            if (t->used + 3 + used > t->capacity) break;
            int32_t *record = t->records + t->used;
            record[0] = (int32_t)s->number;
            record[1] = op->layer;
            record[2] = op->selected ? s->selected[r] : r;
            memcpy(record + 3, chosen, sizeof(int32_t) * (size_t)used);
            t->used += 3 + used;
        }
    return HD_DONE;
}

/* Ask for what is missing; say how many experts are. */
static void submit_missing(hd_step *s, const hd_op *op) {
    int32_t spans[3];
    s->n_missing = 0;
    for (int32_t u = 0; u < s->n_uses; u++)
        for (int32_t k = 0, n = spans_of(s, op, s->uses[u].expert, spans); k < n; k++)
            if (atomic_load_explicit(&s->p->spans->state[spans[k]], memory_order_acquire) != HD_READY)
                s->missing[s->n_missing++] = spans[k];
    if (s->n_missing) hd_queue_submit(s->p->queue, HD_ROUTED, s->missing, s->n_missing);
}

/* --- an expert that cannot be read: the sessions whose rows chose it fail, the others go on -------------------------------- */

static int row_wanted(const hd_step *s, const hd_op *op, int32_t pair) { return hd_wanted(s, op, s->pair_row[pair]); }

static int use_wanted(const hd_step *s, const hd_op *op, const hd_expert_use *use) {
    for (int32_t j = use->begin; j < use->end; j++)
        if (row_wanted(s, op, j)) return 1;
    return 0;
}

/* Nobody gets what this expert's span was needed for. HD_FAIL when that leaves nobody at all. */
static int lose(hd_step *s, const hd_op *op, hd_expert_use *use, int32_t span) {
    use->done = 1;
    for (int32_t j = use->begin; j < use->end; j++) {
        int32_t row = s->pair_row[j], session = s->session[op->selected ? s->selected[row] : row];
        if (s->lost[session] >= 0) continue;
        s->lost[session] = span;
        s->n_lost++;
    }
    if (s->n_lost < s->n_sessions) return HD_DONE;
    atomic_store(&s->failed, HD_ALL_LOST);
    return HD_FAIL;
}

/* Take out of the wave what threads have found unreadable meanwhile. */
static int drop_failed(hd_step *s, const hd_op *op) {
    int32_t kept = 0, n = s->n_wave;
    for (int32_t k = 0; k < n; k++) {
        hd_expert_use *use = &s->uses[s->wave[k]];
        int32_t span = atomic_load(&use->failed);
        if (span < 0) s->wave[kept++] = s->wave[k];
        else if (lose(s, op, use, span)) return HD_FAIL;
    }
    s->n_wave = kept;
    return HD_DONE;
}

/* Kernels read so many bytes past an expert's last row. */
#define PAST 64

static void up_item(hd_step *s, hd_worker *w, const hd_item *item);
static void down_item(hd_step *s, hd_worker *w, const hd_item *item);

int hd_experts_fault(hd_step *s, const hd_item *item, const void *address) {
    if (s->item_fn != up_item && s->item_fn != down_item) return 0;
    hd_expert_use *use = &s->uses[item->what];
    int32_t spans[3], n = spans_of(s, OP(s), use->expert, spans);
    for (int32_t k = 0; k < n; k++) {
        const hd_spans *all = s->p->spans;
        uintptr_t at = (uintptr_t)address, home = (uintptr_t)all->home[spans[k]];
        if (at < home || at - home >= all->nbytes[spans[k]] + PAST) continue;
        atomic_store(&use->failed, spans[k]);
        return 1;
    }
    return 0;
}

/* The experts that are there and not done yet; waits until there is one. HD_DONE or HD_FAIL; n_wave 0 at the end. */
static int next_wave(hd_step *s, const hd_op *op) {
    for (;;) {
        s->n_wave = s->left = 0;
        s->n_missing = 0;
        int32_t spans[3];
        for (int32_t u = 0; u < s->n_uses; u++) {
            if (s->uses[u].done) continue;
            if (s->n_lost && !use_wanted(s, op, &s->uses[u])) {
                s->uses[u].done = 1;
                continue;
            }
            int state = s->p->queue ? expert_state(s, op, s->uses[u].expert) : HD_READY;
            if (state == HD_READY) {
                s->wave[s->n_wave++] = u;
                continue;
            }
            int32_t before = s->n_missing, failed = -1;
            for (int32_t k = 0, n = spans_of(s, op, s->uses[u].expert, spans); k < n; k++) {
                uint8_t here = atomic_load(&s->p->spans->state[spans[k]]);
                if (here == HD_FAILED) failed = spans[k];
                else if (here != HD_READY) s->missing[s->n_missing++] = spans[k];
            }
            if (failed < 0) {
                s->left++;
                continue;
            }
            s->n_missing = before;
            if (lose(s, op, &s->uses[u], failed)) return HD_FAIL;
        }
        if (s->n_wave || !s->left) return HD_DONE;
        if (!s->n_missing) continue;                       /* arrived while we looked */
        if (hd_queue_wait_any(s->p->queue, s->missing, s->n_missing, s->stop) < 0) {
            atomic_store(&s->failed, HD_STOPPED);
            return HD_FAIL;
        }
    }
}

static void run_product(hd_step *s, hd_worker *w, const hd_weight *m, int32_t expert, int32_t tokens, const uint8_t **x,
                        float **out, int32_t r0, int32_t r1) {
    const hd_program *p = s->p;
    hd_product product = {
        .type = m->type, .act = (int32_t)p->kernels->act_for(m->type), .w = hd_weight_at(p, m, expert, w->team),
        .row_bytes = m->row_bytes, .k = m->cols, .n = tokens, .x = x, .out = out};
    void *scratch = hd_worker_scratch(w, p->kernels->product_scratch(&product));
    p->kernels->product(&product, r0, r1, scratch);
    hd_scale_sums(m, expert, tokens, out, r0, r1);
    hd_count_read(p, w->team, m->spans[expert], (size_t)(r1 - r0) * m->row_bytes);
}

static void add_bias(hd_step *s, const hd_op *op, int32_t which, int32_t expert, int32_t tokens, float **out, int32_t r0,
                     int32_t r1) {
    const hd_weight *m = weight(s, op, which);
    if (!m) return;
    const float *bias = (const float *)(hd_weight_at(s->p, m, 0, 0) + (size_t)expert * m->row_bytes);
    for (int32_t t = 0; t < tokens; t++)
        for (int32_t r = r0; r < r1; r++) out[t][r] += bias[r];
}

/* Gate and up of some rows of one expert, and the activation, for all of its tokens. */
static void up_item(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_op *op = OP(s);
    const hd_expert_use *use = &s->uses[item->what];
    if (atomic_load_explicit(&use->failed, memory_order_relaxed) >= 0) return;
    int32_t tokens = use->end - use->begin;
    const hd_weight *gate = weight(s, op, GATE);
    float **hidden = s->out0 + use->begin, **gated = s->out1 + use->begin;
    hd_act kind = s->p->kernels->act_for(weight(s, op, UP)->type);
    /* Rows of the input by pair; gate and up may want different packings. */
    const uint8_t **x = s->x + use->begin;
    run_product(s, w, weight(s, op, UP), use->expert, tokens, x, hidden, item->r0, item->r1);
    add_bias(s, op, UP_BIAS, use->expert, tokens, hidden, item->r0, item->r1);
    if (gate) {
        hd_act gate_kind = s->p->kernels->act_for(gate->type);
        if (gate_kind != kind) {
            /* A second set of pointers lies behind the outputs of the matmul operation. */
            x = (const uint8_t **)(s->out0 + (size_t)s->p->max_rows * s->p->max_used) + use->begin;
        }
        run_product(s, w, gate, use->expert, tokens, x, gated, item->r0, item->r1);
        add_bias(s, op, GATE_BIAS, use->expert, tokens, gated, item->r0, item->r1);
        for (int32_t t = 0; t < tokens; t++)
            s->p->kernels->activate(op->i[1], op->f[0], op->f[1], hidden[t] + item->r0, gated[t] + item->r0,
                                    hidden[t] + item->r0, item->r1 - item->r0);
    } else {
        for (int32_t t = 0; t < tokens; t++)
            s->p->kernels->activate(op->i[1], op->f[0], op->f[1], hidden[t] + item->r0, hidden[t] + item->r0,
                                    hidden[t] + item->r0, item->r1 - item->r0);
    }
}

static void down_item(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_op *op = OP(s);
    const hd_expert_use *use = &s->uses[item->what];
    if (atomic_load_explicit(&use->failed, memory_order_relaxed) >= 0) return;
    int32_t tokens = use->end - use->begin;
    run_product(s, w, weight(s, op, DOWN), use->expert, tokens, s->mid_x + use->begin, s->mid + use->begin, item->r0, item->r1);
    add_bias(s, op, DOWN_BIAS, use->expert, tokens, s->mid + use->begin, item->r0, item->r1);
}

static void pack_mid(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    const hd_weight *down = weight(s, op, DOWN);
    hd_act kind = s->p->kernels->act_for(down->type);
    for (int32_t u = item->r0; u < item->r1; u++)
        for (int32_t j = s->uses[s->wave[u]].begin; j < s->uses[s->wave[u]].end; j++)
            s->p->kernels->act_pack(kind, s->out0[j], down->cols, s->pair_packed + s->packed_stride * (size_t)j);
}

static int publish_wave(hd_step *s, const hd_op *op, hd_item_fn fn, int64_t rows) {
    const hd_program *p = s->p;
    int32_t teams = hd_teams_count(p->teams), ends[64];
    int32_t chunk = hd_chunk(p, rows, s->n_wave);
    hd_items_clear(s, fn);
    for (int32_t team = 0; team < teams; team++) {
        for (int32_t k = 0; k < s->n_wave; k++) {
            int32_t u = s->wave[k], r0 = 0, r1 = (int32_t)rows;
            if (p->split == HD_SPLIT_EXPERTS) {
                if (p->owner[(size_t)op->layer * p->n_experts + s->uses[u].expert] != team) continue;
            } else {
                hd_team_rows(p, team, rows, &r0, &r1);
            }
            for (int32_t r = r0; r < r1; r += chunk)
                if (hd_items_add(s, u, r, r + chunk < r1 ? r + chunk : r1)) return HD_FAIL;
        }
        ends[team] = s->n_items;
    }
    return hd_items_publish_by_team(s, ends);
}

static void combine_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    int32_t used = op->i[0];
    int64_t width = weight(s, op, DOWN)->rows;
    for (int32_t r = item->r0; r < item->r1; r++) {
        float *out = hd_row(s, op->out[0], r);
        const float *weights = hd_row(s, op->in[2], r);
        memset(out, 0, sizeof(float) * (size_t)width);
        if (!hd_wanted(s, op, r)) continue;
        for (int32_t k = 0; k < used; k++)   /* in slot order, whatever was resident first */
            s->p->kernels->axpy(out, weights[k], s->mid[s->pair_at[r * used + k]], width);
    }
}

enum { SETUP, PACK, WAVE, MIDDLE, LOWER, DONE_WAVE, COMBINE, END };

/* out0 = sum over the i0 chosen experts (in1) of weight (in2) * down(act(gate(in0), up(in0))); i1: enum hd_activation with
 * limit f0 and alpha f1; w: gate (or -1), up, down, and their biases [expert][rows]. */
int hd_op_experts(hd_step *s, const hd_op *op, int32_t stage) {
    (void)stage;
    const hd_program *p = s->p;
    const hd_weight *gate = weight(s, op, GATE), *up = weight(s, op, UP), *down = weight(s, op, DOWN);
    int32_t n = hd_rows(s, op);
    int answer;
    for (;;) {
        switch (s->sub) {
        case SETUP:
            if (group(s, op)) return HD_FAIL;
            hold(s, op, 1);
            if (p->queue) submit_missing(s, op);
            hd_lookahead_check(s, op);
            s->sub = PACK;
            break;
        case PACK: {
            hd_act kind = p->kernels->act_for(up->type), gate_kind = gate ? p->kernels->act_for(gate->type) : kind;
            if ((answer = hd_pack(s, op->in[0], kind, n)) != HD_DONE) return answer;
            if ((answer = hd_pack(s, op->in[0], gate_kind, n)) != HD_DONE) return answer;
            int32_t pairs = s->n_pairs;
            const uint8_t **second = (const uint8_t **)(s->out0 + (size_t)p->max_rows * p->max_used);
            for (int32_t j = 0; j < pairs; j++) {
                s->x[j] = hd_packed_row(s, op->in[0], kind, s->pair_row[j]);
                if (gate_kind != kind) second[j] = hd_packed_row(s, op->in[0], gate_kind, s->pair_row[j]);
            }
            s->sub = WAVE;
            break;
        }
        case WAVE:
            if (next_wave(s, op)) return HD_FAIL;
            if (!s->n_wave) {
                s->sub = COMBINE;
                break;
            }
            s->sub = MIDDLE;
            return publish_wave(s, op, up_item, up->rows);
        case MIDDLE: {
            hd_act kind = p->kernels->act_for(down->type);
            if (drop_failed(s, op)) return HD_FAIL;
            s->sub = s->n_wave ? LOWER : WAVE;
            if (kind == HD_ACT_F32 || !s->n_wave) break;
            int64_t pairs = 0;
            for (int32_t k = 0; k < s->n_wave; k++) pairs += s->uses[s->wave[k]].end - s->uses[s->wave[k]].begin;
            if ((answer = hd_share_rows(s, pack_mid, s->n_wave, 2 * down->cols * pairs / s->n_wave)) != HD_DONE) return answer;
            break;
        }
        case LOWER:
            s->sub = DONE_WAVE;
            return publish_wave(s, op, down_item, down->rows);
        case DONE_WAVE:
            if (drop_failed(s, op)) return HD_FAIL;
            for (int32_t k = 0; k < s->n_wave; k++) s->uses[s->wave[k]].done = 1;
            s->sub = WAVE;
            break;
        case COMBINE:
            hold(s, op, 0);
            s->sub = END;
            if ((answer = hd_share_rows(s, combine_rows, n, down->rows * op->i[0])) != HD_DONE) return answer;
            break;
        default:
            hd_written(s, op->out[0]);
            return HD_DONE;
        }
    }
}
