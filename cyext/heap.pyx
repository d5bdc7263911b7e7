"""What the C library keeps of freed memory. Owns nothing; when it is worth while, others decide."""

cdef extern from "steps/memory.h" nogil:
    void hd_memory_trim()


def trim():
    """Give the kernel whole free pages of all heaps, as malloc_trim(3) does: some milliseconds for 100 MB. Does nothing
    where the C library has no such call. Blocking, without the GIL."""
    with nogil:
        hd_memory_trim()
