# The table of kernels for other modules: `cdef const hd_kernels *k = kernels_for(name)` raises ValueError with the reason.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t

cdef extern from "kernels/types.h" nogil:
    enum: HD_TYPE_COUNT
    ctypedef struct hd_type_info:
        const char *name
        int32_t block
        int32_t bytes
    const hd_type_info hd_types[]

cdef extern from "kernels/kernels.h" nogil:
    enum: HD_KV_BLOCK
    ctypedef enum hd_act:
        HD_ACT_F32
        HD_ACT_Q8
        HD_ACT_COUNT
    ctypedef struct hd_product:
        int32_t type
        int32_t act
        const uint8_t *w
        size_t row_bytes
        int64_t k
        int32_t n
        const uint8_t *const *x
        float *const *out
    ctypedef struct hd_attend:
        int32_t rows
        int32_t group
        int32_t dk
        int32_t dv
        const float *const *q
        float *const *out
        size_t q_stride
        size_t out_stride
        const int32_t *pos
        const uint16_t *const *k
        const uint16_t *const *v
        size_t k_stride
        size_t v_stride
        float scale
        float softcap
        int32_t window
        const float *sinks
    ctypedef struct hd_delta:
        int32_t rows
        int32_t dk
        int32_t dv
        int32_t before
        const float *held
        float *next "next"
        const float *tail
        float *tail_next
        const float *const *q
        const float *const *k
        const float *const *v
        const float *decay
        const float *beta
        float *const *out
    enum: HD_DELTA_TOKENS
    size_t hd_delta_tail(size_t dk, size_t dv)
    ctypedef struct hd_kernels:
        const char *name
        int32_t panel
        void (*unpack[41])(const void *blocks, float *out, int64_t n) noexcept nogil
        hd_act (*act_for)(int32_t type) noexcept nogil
        size_t (*act_bytes)(hd_act kind, int64_t k) noexcept nogil
        void (*act_pack)(hd_act kind, const float *x, int64_t k, void *out) noexcept nogil
        size_t (*product_scratch)(const hd_product *p) noexcept nogil
        void (*product)(const hd_product *p, int64_t r0, int64_t r1, void *scratch) noexcept nogil
        size_t (*attend_scratch)(const hd_attend *a) noexcept nogil
        void (*attend)(const hd_attend *a, void *scratch) noexcept nogil
        void (*rms_norm)(float *out, const float *x, const float *weight, int64_t n, float eps) noexcept nogil
        void (*silu_mul)(float *out, const float *gate, const float *up, int64_t n) noexcept nogil
        void (*activate)(int32_t kind, float limit, float alpha, float *out, const float *gate, const float *up,
                         int64_t n) noexcept nogil
        void (*convolve)(float *out, const float *const *x, const float *weight, int32_t taps, int64_t n) noexcept nogil
        void (*delta)(const hd_delta *d) noexcept nogil
        void (*softmax)(float *x, int64_t n) noexcept nogil
        void (*add)(float *out, const float *a, const float *b, int64_t n) noexcept nogil
        void (*axpy)(float *out, float a, const float *x, int64_t n) noexcept nogil
        void (*to_f16)(uint16_t *out, const float *x, int64_t n) noexcept nogil
        void (*to_f32)(float *out, const uint16_t *x, int64_t n) noexcept nogil
        void (*rope)(float *x, const float *cosine, const float *sine, int32_t n_rot, int32_t halves) noexcept nogil
    const hd_kernels *hd_kernels_for(const char *name, const char **why)

cdef const hd_kernels *kernels_for(object name) except NULL
