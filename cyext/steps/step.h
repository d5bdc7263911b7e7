/* A program and the step that runs it.
 *
 * A program is a flat list of operations over buffers of float rows. A step runs it for a batch of rows (token, position,
 * session); nothing in a program assumes one sequence. Each operation is a small state machine: op(step, stage) is called
 * by one thread while the others wait; it does small work itself (DONE), or publishes items for all threads (SHARE) and is
 * called again with the next stage when they are done. */
#pragma once
#include "kernels/kernels.h"
#include "placement.h"
#include "populate_queue.h"
#include "spans.h"
#include "teams.h"

enum { HD_DONE = 0, HD_SHARE = 1, HD_FAIL = 2 };

enum hd_op_kind {
    HD_OP_EMBED, HD_OP_NORM, HD_OP_MATMUL, HD_OP_ROPE, HD_OP_STORE, HD_OP_ATTEND, HD_OP_ADD, HD_OP_ACTIVATE,
    HD_OP_ROUTE, HD_OP_EXPERTS, HD_OP_SELECT, HD_OP_LOOKAHEAD, HD_OP_SCALE, HD_OP_COPY, HD_OP_HEADS_MATMUL,
    HD_OP_CONVOLVE, HD_OP_DELTA, HD_OP_DECAY,
    HD_OP_KINDS
};

enum hd_gating { HD_GATE_SOFTMAX = 0, HD_GATE_SIGMOID = 1, HD_GATE_SOFTMAX_CHOSEN = 2 };

#define HD_OP_BUFFERS 4
#define HD_OP_WEIGHTS 8
#define HD_OP_INTS 12
#define HD_OP_FLOATS 6

typedef struct hd_op {
    int32_t kind, layer;
    int32_t selected;                      /* 1: rows that want logits only, 0: all rows of the step */
    int32_t in[HD_OP_BUFFERS], out[HD_OP_BUFFERS];   /* buffer numbers, -1 none */
    int32_t w[HD_OP_WEIGHTS];              /* weight numbers, -1 none */
    int32_t i[HD_OP_INTS];
    float f[HD_OP_FLOATS];
} hd_op;

/* A matrix (or one per expert) as it lies in spans. */
typedef struct hd_weight {
    int32_t type, n_spans;
    int64_t rows, cols;
    size_t row_bytes;
    size_t offset;                         /* bytes from the span's beginning: a view of some of its rows */
    const int32_t *spans;                  /* [n_spans]: one, or one per expert */
    const float *scale;                    /* [n_spans]: what each one's finished sums are multiplied by, or NULL */
} hd_weight;

typedef struct hd_buffer {
    int32_t width;
    size_t stride;                         /* floats from row to row */
    float *data;
    uint32_t version;                      /* moves with every write: what was packed from an older one is stale */
    struct { uint32_t version; size_t stride; uint8_t *data; } packed[HD_ACT_COUNT];
} hd_buffer;

/* What a session keeps of its tokens: halves [heads][HD_KV_BLOCK][width] in each block. */
typedef struct hd_stream { int32_t heads, width; size_t offset; } hd_stream;

typedef struct hd_rope { int32_t n_rot; const double *inverse; float magnitude; float *cosine, *sine; } hd_rope;

typedef struct hd_session {
    const int32_t *blocks;                 /* block numbers in the pool, in order of position */
    int32_t n_blocks;
    /* Of a recurrent model, else NULL. The step reads what the session keeps and writes what it will keep if the step
     * succeeds. tail: what the last few tokens left (inputs of convolutions, tokens that no matrix holds yet); tail_next is
     * written whole. state: matrices, as they were at the last multiple of HD_DELTA_TOKENS; state_next is written, whole,
     * by a step whose rows reach the next one. */
    const float *tail; float *tail_next;
    const float *state; float *state_next;
} hd_session;

/* A piece of shared work: rows [r0, r1) of something. */
typedef struct hd_item { int32_t what, r0, r1; } hd_item;

/* failed: a span of it that could not be read, or -1; set by any thread. */
typedef struct hd_expert_use { int32_t expert, begin, end, done; _Atomic int32_t failed; } hd_expert_use;

typedef struct hd_step hd_step;
typedef void (*hd_item_fn)(hd_step *s, hd_worker *w, const hd_item *item);

typedef struct hd_program {
    const hd_kernels *kernels;
    hd_spans *spans;
    hd_queue *queue;                       /* NULL: nothing is deferred, pages fault as they are read */
    hd_teams *teams;
    hd_op *ops; int32_t n_ops;
    hd_weight *weights; int32_t n_weights;
    hd_buffer *buffers; int32_t n_buffers;
    hd_stream *streams; int32_t n_streams;
    hd_rope *ropes; int32_t n_ropes;
    int32_t max_rows, n_layers, n_experts, max_used, vocabulary;
    uint64_t node_mask;                    /* kernel's nodes over which buffers are spread, 0: wherever */
    _Atomic uint64_t *reads;               /* [teams][spans] weight bytes read since the start, or NULL: not counted */
    int32_t split;                         /* enum hd_split: how rows are shared between teams */
    const int32_t *owner;                  /* [n_layers][n_experts] team of an expert when split by experts */
    uint8_t *pool; size_t block_bytes;     /* the KV pool */
    size_t tail_floats, state_floats;      /* of a session's recurrent state, each kept twice */
    _Atomic uint64_t *expert_counts;       /* [n_layers][n_experts] tokens routed there since the start */
    _Atomic uint64_t *expert_touched;      /* [n_layers][3]: steps, experts used, experts there were, summed over steps */
} hd_program;

enum hd_split { HD_SPLIT_NONE = 0, HD_SPLIT_ROWS = 1, HD_SPLIT_EXPERTS = 2 };

/* Where a routing trace goes: records of (step, layer, row, used expert numbers) until full. */
typedef struct hd_trace { int32_t *records; int64_t used, capacity; } hd_trace;

#define HD_LOOKAHEAD_ROWS 4
#define HD_LOOKAHEAD_USED 64 /* experts of a row */
/* A guess for one layer of one step. Two are alive at a time: the one for this layer, which its experts have not confirmed
 * yet, and the one for the next. */
typedef struct hd_guess {
    int32_t layer;                                         /* -1: none */
    uint64_t step;
    uint8_t *guessed, *asked;                              /* [n_experts] guessed; of them asked of the queue */
} hd_guess;
typedef struct hd_lookahead {
    hd_guess guess[2];                                     /* even and odd layers among those with experts */
    int32_t latest;
    uint64_t n_guessed, n_right, n_used;                   /* experts guessed; of them used; used at all: since the start */
    uint64_t read_bytes, wasted_bytes;                     /* asked of the queue on a guess; of them not used */
    int32_t read;                                          /* policy: 1 submits guesses to the queue */
    int32_t every;                                         /* policy: guess on every so many-th step */
} hd_lookahead;

struct hd_step {
    const hd_program *p;
    int32_t n, n_selected;
    const int32_t *token, *pos, *session;  /* [n] */
    const int32_t *selected;               /* [n_selected] rows that want logits, ascending */
    const hd_session *sessions;
    int32_t *lost;                         /* [n_sessions] the expert's span that its rows needed in vain, or -1 */
    int32_t n_sessions, n_lost;
    float **logits;                        /* [n_selected] where each row's go, [vocabulary] */
    _Atomic int32_t *stop;
    _Atomic int32_t *layer;                /* published progress */

    int32_t pc, stage;                     /* stage: how often the running operation has shared work */
    int32_t sub;                           /* the running operation's own state, 0 at its beginning */
    uint64_t number;
    hd_item_fn item_fn;
    hd_item *items; int32_t n_items, items_capacity;
    _Atomic int32_t failed;                /* enum hd_failure */
    _Atomic(const void *) fault_address;
    int32_t failed_span;

    /* the running matmul or experts operation */
    hd_buffer *pack_buffer; int32_t pack_kind;
    const uint8_t **x; float **out0; float **out1; float **mid; const uint8_t **mid_x;   /* pointer arrays [pairs] */
    int32_t n_pairs;                       /* of rows that are still wanted */
    int32_t *pair_row;                     /* [pairs] the row of each pair, sorted by expert */
    int32_t *pair_at;                      /* [row * used + slot] -> place in the sorted order */
    hd_expert_use *uses; int32_t n_uses; int32_t *counts;     /* what is used; [experts + 1] for the sort */
    int32_t *wave, n_wave, left;
    int32_t *missing; int32_t n_missing;
    float *pair_hidden, *pair_gate, *pair_out; uint8_t *pair_packed;   /* scratch of the experts operation */
    size_t hidden_floats, out_floats, gate_floats, packed_bytes; size_t hidden_stride, out_stride, packed_stride;
    const hd_op *acquired;                 /* the experts operation whose spans are held */
    const int32_t *chosen; const float *chosen_weight;   /* where its choices lie, rows of chosen_stride */
    size_t chosen_stride;
    float *work; size_t work_floats;       /* for the router */
    hd_trace *trace;
    hd_lookahead *lookahead;
};

/* HD_ALL_LOST: every session's rows needed an expert in vain; else a step goes on for the others. */
enum hd_failure { HD_OK = 0, HD_STOPPED = 1, HD_FAULT = 2, HD_SPAN_FAILED = 3, HD_NO_MEMORY = 4, HD_ALL_LOST = 5 };

/* Run a step; 0 or enum hd_failure. The step's memory is reused by the next call with the same object. */
int hd_step_run(hd_step *s);
hd_step *hd_step_new(const hd_program *p);
void hd_step_free(hd_step *s);

typedef int (*hd_op_fn)(hd_step *s, const hd_op *op, int32_t stage);
int hd_op_embed(hd_step *, const hd_op *, int32_t);
int hd_op_norm(hd_step *, const hd_op *, int32_t);
int hd_op_matmul(hd_step *, const hd_op *, int32_t);
int hd_op_rope(hd_step *, const hd_op *, int32_t);
int hd_op_store(hd_step *, const hd_op *, int32_t);
int hd_op_attend(hd_step *, const hd_op *, int32_t);
int hd_op_add(hd_step *, const hd_op *, int32_t);
int hd_op_activate(hd_step *, const hd_op *, int32_t);
int hd_op_route(hd_step *, const hd_op *, int32_t);
int hd_op_experts(hd_step *, const hd_op *, int32_t);
int hd_op_select(hd_step *, const hd_op *, int32_t);
int hd_op_lookahead(hd_step *, const hd_op *, int32_t);
int hd_op_scale(hd_step *, const hd_op *, int32_t);
int hd_op_heads_matmul(hd_step *, const hd_op *, int32_t);
int hd_op_convolve(hd_step *, const hd_op *, int32_t);
int hd_op_delta(hd_step *, const hd_op *, int32_t);
int hd_op_decay(hd_step *, const hd_op *, int32_t);
int hd_op_copy(hd_step *, const hd_op *, int32_t);

/* --- for operations ------------------------------------------------------------------------------------------------- */
static inline int32_t hd_rows(const hd_step *s, const hd_op *op) { return op->selected ? s->n_selected : s->n; }
static inline float *hd_row(const hd_step *s, int32_t buffer, int32_t row) {
    const hd_buffer *b = &s->p->buffers[buffer];
    return b->data + (size_t)row * b->stride;
}
/* Whether somebody still waits for what becomes of the operation's row. If not, it may become anything; it asks for no expert. */
static inline int hd_wanted(const hd_step *s, const hd_op *op, int32_t row) {
    return !s->n_lost || s->lost[s->session[op->selected ? s->selected[row] : row]] < 0;
}
static inline void hd_written(const hd_step *s, int32_t buffer) { s->p->buffers[buffer].version++; }

/* Forget the items of the last phase; add one. Items are team 0's unless hd_items_share is told otherwise. */
void hd_items_clear(hd_step *s, hd_item_fn fn);
int hd_items_add(hd_step *s, int32_t what, int32_t r0, int32_t r1);
/* All items to all teams alike (by contiguous ranges); returns HD_SHARE. */
int hd_items_publish(hd_step *s);
/* As above, with team k's items ending at ends[k]. */
int hd_items_publish_by_team(hd_step *s, const int32_t *ends);

/* Do fn for rows [0, rows): at once when the work (floats touched) is small, else shared. */
int hd_share_rows(hd_step *s, hd_item_fn fn, int32_t rows, int64_t floats_per_row);

/* Rows [*r0, *r1) of a matrix of `rows` rows belong to this team. */
void hd_team_rows(const hd_program *p, int32_t team, int64_t rows, int32_t *r0, int32_t *r1);

/* How many rows one item takes, when `units` matrices of `rows` rows are shared between all threads. */
int32_t hd_chunk(const hd_program *p, int64_t rows, int64_t units);

/* Where this team reads a weight's span k. */
static inline const uint8_t *hd_weight_at(const hd_program *p, const hd_weight *w, int32_t k, int32_t team) {
    int32_t node = p->spans->nodes > 1 ? team : 0;
    return hd_span_at(p->spans, node, w->spans[k]) + w->offset;
}

/* The last thing that a product with the weight's matrix k does to rows [r0, r1) of n tokens: one rounding more, the same on
 * every way. */
static inline void hd_scale_sums(const hd_weight *w, int32_t k, int32_t n, float *const *out, int64_t r0, int64_t r1) {
    if (!w->scale) return;
    const float by = w->scale[k];
    for (int32_t t = 0; t < n; t++)
        for (int64_t r = r0; r < r1; r++) out[t][r] *= by;
}

static inline void hd_count_read(const hd_program *p, int32_t team, int32_t span, size_t bytes) {
    if (p->reads)
        atomic_fetch_add_explicit(&p->reads[(size_t)team * (size_t)p->spans->n + (size_t)span], bytes, memory_order_relaxed);
}

/* Memory for a buffer that all teams use; freed by hd_memory_free. */
void *hd_program_memory(const hd_program *p, size_t bytes);

/* Wait for dense spans; HD_DONE or HD_FAIL. */
int hd_need_spans(hd_step *s, const int32_t *spans, int32_t n);

/* Pack rows of a buffer as a product of this type wants them. HD_DONE when packed, HD_SHARE when the threads are to do it
 * (call again afterwards). */
int hd_pack(hd_step *s, int32_t buffer, hd_act kind, int32_t rows);
static inline const uint8_t *hd_packed_row(const hd_step *s, int32_t buffer, hd_act kind, int32_t row) {
    const hd_buffer *b = &s->p->buffers[buffer];
    if (kind == HD_ACT_F32) return (const uint8_t *)(b->data + (size_t)row * b->stride);
    return b->packed[kind].data + (size_t)row * b->packed[kind].stride;
}

/* Float vectors kept in the file as F32 (norms, biases). */
static inline const float *hd_vector(const hd_step *s, const hd_op *op, int32_t slot) {
    if (op->w[slot] < 0) return NULL;
    return (const float *)hd_weight_at(s->p, &s->p->weights[op->w[slot]], 0, 0);
}

/* A read failed at this address in an item of an experts operation: 1 when it was that expert's and is noted. From any
 * thread. */
int hd_experts_fault(hd_step *s, const hd_item *item, const void *address);

/* Compare the guess for this layer, if there is one, with what its router chose. */
void hd_lookahead_check(hd_step *s, const hd_op *op);
#define HD_CHOOSE_WORK 4 /* floats of work for each expert */
void hd_choose(const float *logits, const float *bias, int32_t n, const hd_op *op, int32_t *chosen, float *weights, float *work);
