/* The loop that walks a program, and what all operations share: items, packing, waiting for spans. */
#define _GNU_SOURCE
#include "step.h"
#include "steps/memory.h"
#include <stdlib.h>
#include <string.h>
#include <math.h>

static const hd_op_fn operations[HD_OP_KINDS] = {
    [HD_OP_EMBED] = hd_op_embed,       [HD_OP_NORM] = hd_op_norm,           [HD_OP_MATMUL] = hd_op_matmul,
    [HD_OP_ROPE] = hd_op_rope,         [HD_OP_STORE] = hd_op_store,         [HD_OP_ATTEND] = hd_op_attend,
    [HD_OP_ADD] = hd_op_add,           [HD_OP_ACTIVATE] = hd_op_activate,   [HD_OP_ROUTE] = hd_op_route,
    [HD_OP_EXPERTS] = hd_op_experts,   [HD_OP_SELECT] = hd_op_select,       [HD_OP_LOOKAHEAD] = hd_op_lookahead,
    [HD_OP_SCALE] = hd_op_scale,       [HD_OP_COPY] = hd_op_copy,           [HD_OP_HEADS_MATMUL] = hd_op_heads_matmul,
    [HD_OP_CONVOLVE] = hd_op_convolve, [HD_OP_DELTA] = hd_op_delta,         [HD_OP_DECAY] = hd_op_decay,
};

/* --- items ---------------------------------------------------------------------------------------------------------- */

void hd_items_clear(hd_step *s, hd_item_fn fn) {
    s->n_items = 0;
    s->item_fn = fn;
}

int hd_items_add(hd_step *s, int32_t what, int32_t r0, int32_t r1) {
    if (s->n_items == s->items_capacity) {
        int32_t capacity = s->items_capacity ? 2 * s->items_capacity : 1024;
        hd_item *grown = realloc(s->items, sizeof(hd_item) * (size_t)capacity);
        if (!grown) {
            atomic_store(&s->failed, HD_NO_MEMORY);
            return HD_FAIL;
        }
        s->items = grown;
        s->items_capacity = capacity;
    }
    s->items[s->n_items++] = (hd_item){what, r0, r1};
    return HD_DONE;
}

int hd_items_publish(hd_step *s) {
    int32_t teams = hd_teams_count(s->p->teams);
    for (int32_t t = 0; t < teams; t++) {
        int64_t a, b;
        hd_teams_share(s->p->teams, t, s->n_items, &a, &b);
        hd_teams_publish(s->p->teams, t, (int32_t)a, (int32_t)b);
    }
    return HD_SHARE;
}

int hd_items_publish_by_team(hd_step *s, const int32_t *ends) {
    int32_t teams = hd_teams_count(s->p->teams);
    for (int32_t t = 0, begin = 0; t < teams; t++) {
        hd_teams_publish(s->p->teams, t, begin, ends[t]);
        begin = ends[t];
    }
    return HD_SHARE;
}

/* Below this many floats a barrier costs more than the second thread gains. */
#define SMALL_WORK 32768

int hd_share_rows(hd_step *s, hd_item_fn fn, int32_t rows, int64_t floats_per_row) {
    if (rows <= 0) return HD_DONE;
    if (rows == 1 || rows * floats_per_row <= SMALL_WORK) {
        hd_item all = {0, 0, rows};
        hd_worker nobody = {0};
        fn(s, &nobody, &all);
        return HD_DONE;
    }
    int32_t pieces = 4 * hd_teams_threads(s->p->teams);
    int32_t each = (rows + pieces - 1) / pieces;
    hd_items_clear(s, fn);
    for (int32_t r = 0; r < rows; r += each)
        if (hd_items_add(s, 0, r, r + each < rows ? r + each : rows)) return HD_FAIL;
    return hd_items_publish(s);
}

void hd_team_rows(const hd_program *p, int32_t team, int64_t rows, int32_t *r0, int32_t *r1) {
    int64_t panel = p->kernels->panel, panels = (rows + panel - 1) / panel, a, b;
    hd_teams_share(p->teams, team, panels, &a, &b);
    *r0 = (int32_t)(a * panel < rows ? a * panel : rows);
    *r1 = (int32_t)(b * panel < rows ? b * panel : rows);
}

int32_t hd_chunk(const hd_program *p, int64_t rows, int64_t units) {
    int64_t panel = p->kernels->panel;
    int64_t each = rows * units / (8 * (int64_t)hd_teams_threads(p->teams));
    if (each > 256) each = 256;
    if (each < 32) each = 32;
    return (int32_t)((each + panel - 1) / panel * panel);
}

void *hd_program_memory(const hd_program *p, size_t bytes) {
    void *memory = hd_memory_new(bytes);
    /* Every team reads all of an activation: spread it, so that no node's memory serves them all. */
    if (memory && p->node_mask) hd_bind(memory, bytes, HD_POLICY_INTERLEAVE, p->node_mask);
    return memory;
}

/* --- waiting for what is not there yet ------------------------------------------------------------------------------- */

int hd_need_spans(hd_step *s, const int32_t *spans, int32_t n) {
    if (!s->p->queue) return HD_DONE;
    for (int32_t k = 0; k < n; k++) {
        for (int asked = 0;; asked = 1) {
            uint8_t state = atomic_load_explicit(&s->p->spans->state[spans[k]], memory_order_acquire);
            if (state == HD_READY) break;
            if (state == HD_FAILED && !asked) { /* an earlier step's failure: the disk may have recovered */
                hd_queue_submit(s->p->queue, HD_DEMAND, spans + k, 1);
                continue;
            }
            if (state == HD_FAILED) {
                s->failed_span = spans[k];
                atomic_store(&s->failed, HD_SPAN_FAILED);
                return HD_FAIL;
            }
            if (hd_queue_wait_any(s->p->queue, spans + k, 1, s->stop) < 0) {
                atomic_store(&s->failed, HD_STOPPED);
                return HD_FAIL;
            }
        }
    }
    return HD_DONE;
}

/* --- packing --------------------------------------------------------------------------------------------------------- */

static void pack_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_buffer *b = s->pack_buffer;
    int32_t kind = s->pack_kind;
    for (int32_t r = item->r0; r < item->r1; r++)
        s->p->kernels->act_pack((hd_act)kind, b->data + (size_t)r * b->stride, b->width,
                                b->packed[kind].data + (size_t)r * b->packed[kind].stride);
}

int hd_pack(hd_step *s, int32_t buffer, hd_act kind, int32_t rows) {
    hd_buffer *b = &s->p->buffers[buffer];
    if (kind == HD_ACT_F32) return HD_DONE;
    if (b->packed[kind].data && b->packed[kind].version == b->version) return HD_DONE;
    if (!b->packed[kind].data) {
        b->packed[kind].stride = s->p->kernels->act_bytes(kind, b->width);
        b->packed[kind].data = hd_program_memory(s->p, b->packed[kind].stride * (size_t)s->p->max_rows);
        if (!b->packed[kind].data) {
            atomic_store(&s->failed, HD_NO_MEMORY);
            return HD_FAIL;
        }
    }
    b->packed[kind].version = b->version;
    s->pack_buffer = b;
    s->pack_kind = (int32_t)kind;
    return hd_share_rows(s, pack_rows, rows, 2 * (int64_t)b->width);
}

/* --- the loop -------------------------------------------------------------------------------------------------------- */

static void rope_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    for (int32_t k = 0; k < s->p->n_ropes; k++) {
        const hd_rope *rope = &s->p->ropes[k];
        int32_t half = rope->n_rot / 2;
        for (int32_t r = item->r0; r < item->r1; r++)
            for (int32_t j = 0; j < half; j++) {
                double angle = s->pos[r] * rope->inverse[j];
                rope->cosine[(size_t)r * half + j] = (float)cos(angle) * rope->magnitude;
                rope->sine[(size_t)r * half + j] = (float)sin(angle) * rope->magnitude;
            }
    }
}

void hd_experts_release(hd_step *s);

static int step_next(void *context, hd_worker *w) {
    (void)w;
    hd_step *s = context;
    const hd_program *p = s->p;
    for (;;) {
        if (!atomic_load(&s->failed) && atomic_load_explicit(s->stop, memory_order_relaxed))
            atomic_store(&s->failed, HD_STOPPED);
        if (atomic_load(&s->failed) || s->pc == p->n_ops) return 0;
        int answer;
        if (s->pc < 0) {
            answer = s->stage || !p->n_ropes ? HD_DONE : hd_share_rows(s, rope_rows, s->n, 1024);
        } else {
            const hd_op *op = &p->ops[s->pc];
            if (s->stage == 0 && op->layer != atomic_load_explicit(s->layer, memory_order_relaxed)) {
                atomic_store(s->layer, op->layer);
                if (p->queue) hd_queue_progress(p->queue, op->layer);
            }
            answer = hd_rows(s, op) ? operations[op->kind](s, op, s->stage) : HD_DONE;
        }
        if (answer == HD_SHARE) {
            s->stage++;
            return 1;
        }
        if (answer == HD_FAIL) {
            if (!atomic_load(&s->failed)) atomic_store(&s->failed, HD_NO_MEMORY);
            return 0;
        }
        s->pc++;
        s->stage = s->sub = 0;
    }
}

static void step_item(void *context, hd_worker *w, int32_t item) {
    hd_step *s = context;
    s->item_fn(s, w, &s->items[item]);
}

static void step_fault(void *context, const void *address) {
    hd_step *s = context;
    atomic_store(&s->fault_address, address);
    atomic_store(&s->failed, HD_FAULT);
}

static int step_item_fault(void *context, int32_t item, const void *address) {
    hd_step *s = context;
    return hd_experts_fault(s, &s->items[item], address);
}

int hd_step_run(hd_step *s) {
    const hd_program *p = s->p;
    s->pc = -1;
    s->stage = s->sub = 0;
    s->number++;
    s->failed_span = -1;
    atomic_store(&s->failed, HD_OK);
    /* What an earlier, broken step left in a buffer must not count as packed. */
    for (int32_t b = 0; b < p->n_buffers; b++) p->buffers[b].version++;
    s->n_lost = 0;
    for (int32_t k = 0; k < s->n_sessions; k++) s->lost[k] = -1;
    hd_job job = {step_next, step_item, step_fault, s, step_item_fault};
    hd_teams_run(p->teams, &job);
    if (s->acquired) hd_experts_release(s);
    atomic_store(s->layer, -1);
    if (p->queue) hd_queue_progress(p->queue, -1);
    return atomic_load(&s->failed);
}

hd_step *hd_step_new(const hd_program *p) {
    hd_step *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->p = p;
    int32_t experts = p->n_experts > 0 ? p->n_experts : 1, used = p->max_used > 0 ? p->max_used : 1;
    size_t rows = (size_t)p->max_rows, pairs = rows * (size_t)used;
    /* The pointer arrays serve a matmul of four matrices and an experts operation with two packings. */
    size_t pointers = rows * (size_t)(2 * used > 4 ? 2 * used : 4);
    s->x = malloc(sizeof *s->x * pointers);
    s->out0 = malloc(sizeof *s->out0 * pointers);
    s->out1 = malloc(sizeof *s->out1 * pairs);
    s->mid = malloc(sizeof *s->mid * pairs);
    s->mid_x = malloc(sizeof *s->mid_x * pairs);
    s->pair_row = malloc(sizeof(int32_t) * pairs);
    s->pair_at = malloc(sizeof(int32_t) * pairs);
    s->uses = malloc(sizeof *s->uses * (size_t)experts);
    s->counts = malloc(sizeof(int32_t) * (size_t)(experts + 1));
    s->wave = malloc(sizeof(int32_t) * (size_t)experts);
    s->missing = malloc(sizeof(int32_t) * (size_t)experts * 3);
    s->work_floats = HD_CHOOSE_WORK * (size_t)experts + 64;
    s->work = malloc(sizeof(float) * s->work_floats);
    if (!s->x || !s->out0 || !s->out1 || !s->mid || !s->mid_x || !s->pair_row || !s->pair_at || !s->uses ||
        !s->counts || !s->wave || !s->missing || !s->work) {
        hd_step_free(s);
        return NULL;
    }
    return s;
}

void hd_step_free(hd_step *s) {
    if (!s) return;
    free(s->x); free(s->out0); free(s->out1); free(s->mid); free(s->mid_x);
    free(s->pair_row); free(s->pair_at);
    free(s->uses); free(s->counts); free(s->wave); free(s->missing); free(s->work); free(s->items);
    hd_memory_free(s->pair_hidden); hd_memory_free(s->pair_gate); hd_memory_free(s->pair_out);
    hd_memory_free(s->pair_packed);
    free(s);
}
