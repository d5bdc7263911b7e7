# cython: language_level=3
"""What a session of a recurrent model keeps beside its blocks: what the last tokens left (tail), and the matrices as they were
at the last whole group of tokens (state). Each twice: as it is, and what a step makes of it. Owns this memory."""
from libc.stdint cimport int64_t


cdef extern from "kernels/kernels.h" nogil:
    enum: HD_DELTA_TOKENS


cdef extern from "steps/memory.h" nogil:
    void *hd_memory_new(size_t bytes)
    void hd_memory_free(void *memory)
    void hd_memory_release(void *memory)


cdef class Recurrent:
    """Zeros at the beginning, there only once they are touched. Floats of tail and state, 0 for none."""

    def __cinit__(self, size_t tail, size_t state):
        self.tail, self.tail_next = zeros(tail), zeros(tail)
        self.state, self.state_next = zeros(state), zeros(state)

    cdef begin(self):
        """As it was at the beginning. Pages that are given back are zero when they come again."""
        if self.tokens:
            self.tokens = 0
            hd_memory_release(self.tail)
            hd_memory_release(self.tail_next)
            hd_memory_release(self.state)
            hd_memory_release(self.state_next)

    cdef settle(self, int64_t tokens):
        """What the last step made of it is it from now on, after so many tokens. Not for a step that failed: then all is as it
        was before."""
        if self.tail is NULL and self.state is NULL:
            return
        if tokens < self.tokens:
            raise ValueError(f"{tokens} tokens after {self.tokens}")
        self.tail, self.tail_next = self.tail_next, self.tail
        if tokens // HD_DELTA_TOKENS > self.tokens // HD_DELTA_TOKENS:
            self.state, self.state_next = self.state_next, self.state
        self.tokens = tokens

    def __dealloc__(self):
        hd_memory_free(self.tail)
        hd_memory_free(self.tail_next)
        hd_memory_free(self.state)
        hd_memory_free(self.state_next)


cdef float *zeros(size_t floats) except? NULL:
    if not floats:
        return NULL
    memory = <float *>hd_memory_new(floats * sizeof(float))
    if memory is NULL:
        raise MemoryError("recurrent state")
    return memory
