# What program.pyx takes from C: the layouts of steps/step.h and the calls into kernels and memory.
from hearthd.cyext.teams cimport hd_teams
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t


cdef extern from "kernels/kernels.h" nogil:
    ctypedef struct hd_kernels:
        const char *name
        int32_t panel
        void *unpack[]
    enum: HD_TYPE_COUNT
    const hd_kernels *hd_kernels_for(const char *name, const char **why)
    enum: HD_KV_BLOCK
    enum: HD_DELTA_TOKENS
    size_t hd_delta_tail(size_t dk, size_t dv)


cdef extern from "placement.h" nogil:
    enum hd_policy:
        HD_POLICY_DEFAULT, HD_POLICY_PREFERRED, HD_POLICY_INTERLEAVE
    int hd_thread_policy(hd_policy policy, uint64_t nodes)


cdef extern from "steps/memory.h" nogil:
    void *hd_memory_new(size_t bytes)
    void hd_memory_free(void *memory)
    void hd_memory_release(void *memory)
    void hd_memory_small_pages(void *memory)
    size_t hd_memory_resident(const void *memory)


cdef extern from "steps/step.h" nogil:
    ctypedef struct hd_spans:
        int32_t n
        const uint8_t **home
        const uint64_t *nbytes
    ctypedef struct hd_queue:
        pass
    ctypedef struct hd_op:
        int32_t kind, layer, selected
        int32_t *in_ "in"
        int32_t *out
        int32_t *w
        int32_t *i
        float *f
    ctypedef struct hd_weight:
        int32_t type, n_spans
        int64_t rows, cols
        size_t row_bytes, offset
        const int32_t *spans
        const float *scale
    ctypedef struct hd_buffer_packed:
        uint8_t *data
    ctypedef struct hd_buffer:
        int32_t width
        size_t stride
        float *data
        hd_buffer_packed *packed
    ctypedef struct hd_stream:
        int32_t heads, width
        size_t offset
    ctypedef struct hd_rope:
        int32_t n_rot
        const double *inverse
        float magnitude
        float *cosine
        float *sine
    ctypedef struct hd_session:
        const int32_t *blocks
        int32_t n_blocks
        const float *tail
        float *tail_next
        const float *state
        float *state_next
    ctypedef struct hd_trace:
        int32_t *records
        int64_t used, capacity
    ctypedef struct hd_guess:
        int32_t layer
        uint8_t *guessed
        uint8_t *asked
    ctypedef struct hd_lookahead:
        hd_guess *guess
        uint64_t n_guessed, n_right, n_used, read_bytes, wasted_bytes
        int32_t read, every
    ctypedef struct hd_program:
        const hd_kernels *kernels
        hd_spans *spans
        hd_queue *queue
        hd_teams *teams
        hd_op *ops
        int32_t n_ops
        hd_weight *weights
        int32_t n_weights
        hd_buffer *buffers
        int32_t n_buffers
        hd_stream *streams
        int32_t n_streams
        hd_rope *ropes
        int32_t n_ropes
        int32_t max_rows, n_layers, n_experts, max_used, vocabulary
        uint64_t node_mask
        void *reads
        int32_t split
        const int32_t *owner
        uint8_t *pool
        size_t block_bytes
        size_t tail_floats, state_floats
        void *expert_counts
        void *expert_touched
    ctypedef struct hd_step:
        int32_t n, n_selected
        const int32_t *token
        const int32_t *pos
        const int32_t *session
        const int32_t *selected
        const hd_session *sessions
        int32_t *lost
        int32_t n_sessions
        float **logits
        void *stop
        void *layer
        const void *fault_address
        int32_t failed_span
        float *pair_hidden
        float *pair_gate
        float *pair_out
        uint8_t *pair_packed
        hd_trace *trace
        hd_lookahead *lookahead
    hd_step *hd_step_new(const hd_program *p)
    void hd_step_free(hd_step *s)
    int hd_step_run(hd_step *s)
    void *hd_program_memory(const hd_program *p, size_t bytes)
    void hd_team_rows(const hd_program *p, int32_t team, int64_t rows, int32_t *r0, int32_t *r1)
    enum: HD_OP_KINDS
    enum: HD_ACT_COUNT
    enum: HD_STOPPED
    enum: HD_FAULT
    enum: HD_SPAN_FAILED
    enum: HD_NO_MEMORY
    enum: HD_ALL_LOST
    enum: HD_OP_BUFFERS
    enum: HD_OP_WEIGHTS
    enum: HD_OP_INTS
    enum: HD_OP_FLOATS
    enum:
        HD_OP_EMBED, HD_OP_NORM, HD_OP_MATMUL, HD_OP_ROPE, HD_OP_STORE, HD_OP_ATTEND, HD_OP_ADD, HD_OP_ACTIVATE
        HD_OP_ROUTE, HD_OP_EXPERTS, HD_OP_SELECT, HD_OP_LOOKAHEAD, HD_OP_SCALE, HD_OP_COPY, HD_OP_HEADS_MATMUL
        HD_OP_CONVOLVE, HD_OP_DELTA, HD_OP_DECAY
