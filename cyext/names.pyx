"""Names of special tokens in text. Owns the memory of names.c and turns lists into calls."""
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "names.h" nogil:
    ctypedef struct hd_names:
        pass
    hd_names *hd_names_new(size_t text_bytes)
    void hd_names_free(hd_names *names)
    void hd_names_add(hd_names *names, const uint8_t *name, size_t n, uint32_t id)
    size_t hd_names_find(const hd_names *names, const uint8_t *text, size_t n, size_t start, size_t *end, uint32_t *id)


cdef class Names:
    """Names (UTF-8) with their ids, to be found in text; an empty name is none."""
    cdef hd_names *names

    def __cinit__(self, list names not None):
        cdef bytes name
        cdef uint32_t token
        cdef size_t total = 0
        for name, _ in names:
            total += <size_t>len(name)
        self.names = hd_names_new(total)
        if self.names == NULL:
            raise MemoryError
        for name, token in names:
            hd_names_add(self.names, <const uint8_t *>PyBytes_AS_STRING(name), <size_t>len(name), token)

    def __dealloc__(self):
        hd_names_free(self.names)

    def find(self, bytes text not None, Py_ssize_t start=0):
        """(begin, end, id) of the first name at or after a byte, of several that begin there the longest; or None."""
        cdef const uint8_t *raw = <const uint8_t *>PyBytes_AS_STRING(text)
        cdef size_t n = <size_t>len(text), begin, end = 0
        cdef uint32_t token = 0
        if start < 0:
            raise IndexError(start)
        with nogil:
            begin = hd_names_find(self.names, raw, n, <size_t>start, &end, &token)
        return (begin, end, token) if begin < n else None
