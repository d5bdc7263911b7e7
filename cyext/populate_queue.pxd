from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from hearthd.cyext.mapping cimport hd_mapping
from hearthd.cyext.spans cimport hd_spans


cdef extern from "placement.h" nogil:
    ctypedef struct hd_places:
        int32_t files
        const int64_t *first
        const uint64_t *begin
        const int32_t *owner


cdef extern from "populate_queue.h" nogil:
    void hd_queue_place(hd_queue *q, const hd_places *places)
    void hd_queue_settled(hd_queue *q, uint64_t *wrong, uint64_t *left)
    ctypedef struct hd_queue:
        pass
    enum hd_class:
        HD_DEMAND, HD_ROUTED, HD_LOOKAHEAD, HD_CURSOR, HD_SWEEP, HD_CLASSES
    ctypedef struct hd_queue_options:
        int32_t workers
        int32_t background
        int32_t nodes
        const int32_t *node
        const uint8_t *cpus
        int32_t n_cpus
        const int32_t *memory
        uint64_t piece
        int32_t nice
        uint64_t interleave
    ctypedef struct hd_class_counts:
        uint64_t read
        uint64_t cached
        uint64_t spans
        uint64_t failed
        double seconds
    void hd_queue_rows(hd_queue *q, int32_t span, uint64_t offset, uint64_t row_bytes, const int32_t *rows, int32_t n)
    void hd_queue_submit(hd_queue *q, hd_class cls, const int32_t *spans, int32_t n)
    void hd_queue_retry(hd_queue *q, const int32_t *spans, int32_t n)
    int32_t hd_queue_wait_any(hd_queue *q, const int32_t *spans, int32_t n, const void *stop)
    void hd_queue_cancel(hd_queue *q, hd_class cls)
    void hd_queue_progress(hd_queue *q, int32_t layer)
    int hd_queue_idle(hd_queue *q)
    int hd_queue_error(hd_queue *q, int32_t span, uint64_t *file_offset)
    hd_queue *hd_queue_new(hd_spans *spans, const hd_mapping *mapping, const int32_t *file, const uint64_t *offset,
                           const hd_queue_options *options)
    void hd_queue_free(hd_queue *q)
    int hd_queue_plan(hd_queue *q, const int32_t *spans, int32_t n, int32_t window)
    void hd_queue_pause(hd_queue *q, uint32_t classes)
    void hd_queue_rate(hd_queue *q, double bytes_per_second)
    void hd_queue_cover(hd_queue *q, hd_class cls, float cover)
    int32_t hd_queue_evict(hd_queue *q, const int32_t *spans, int32_t n, uint64_t *freed)
    int32_t hd_queue_forget(hd_queue *q, const int32_t *spans, int32_t n)
    void hd_queue_wake(hd_queue *q)
    void hd_queue_counts(hd_queue *q, hd_class_counts *counts, int64_t *waiting, int32_t *in_flight)
    int hd_queue_arena(hd_queue *q, const uint8_t *member, uint64_t bytes)
    void hd_queue_mapping_room(hd_queue *q, int64_t bytes)
    void hd_queue_direct(hd_queue *q, uint32_t classes)
    int32_t hd_queue_come_home(hd_queue *q, const int32_t *spans, int32_t n)
    int hd_queue_victims(hd_queue *q, const int32_t *spans, int32_t n)
    uint64_t hd_queue_arena_limit(hd_queue *q, uint64_t bytes)
    ctypedef struct hd_arena_counts:
        uint64_t capacity
        uint64_t taken
        uint64_t used
        uint64_t replaced
        uint64_t full
    void hd_queue_arena_counts(hd_queue *q, hd_arena_counts *counts)
    int hd_queue_drain(hd_queue *q, hd_class cls, double seconds)


cdef class PopulateQueue:
    cdef hd_queue *q
    cdef int nodes
    cdef readonly object spans
    cdef object keep, places
    cdef hd_queue *get(self) except NULL
