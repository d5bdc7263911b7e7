from libc.stdint cimport int32_t, uint8_t, uint16_t, uint64_t


cdef extern from "spans.h" nogil:
    # The atomics are plain integers to Cython: it only hands out their addresses.
    ctypedef struct hd_spans:
        int32_t n
        int32_t nodes
        const uint8_t **home
        const uint64_t *nbytes
        const int32_t *layer
        void *at
        void *state
        void *users
    const uint8_t *hd_span_at(const hd_spans *s, int32_t node, int32_t span)


cdef class Spans:
    cdef hd_spans c
    cdef readonly object mapping
    cdef readonly object file, offset, nbytes, layer, home, at, state, users
