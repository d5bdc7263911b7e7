# Recurrent state for program.pyx.
from libc.stdint cimport int64_t


cdef class Recurrent:
    cdef int64_t tokens      # that it has seen
    cdef float *tail
    cdef float *tail_next
    cdef float *state
    cdef float *state_next
    cdef begin(self)
    cdef settle(self, int64_t tokens)
