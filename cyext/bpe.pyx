"""A byte-level BPE vocabulary in compact tables, for vocabularies of some 150,000 tokens and 300,000 merges.

Owns the memory of bpe.c and turns lists into calls; what a word or a special token is, others decide.
"""
import itertools

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int32_t, uint8_t, uint32_t

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *n) except NULL

cdef extern from "bpe.h" nogil:
    ctypedef struct hd_bpe:
        pass
    int HD_BPE_NO_MEMORY, HD_BPE_TOO_LONG
    hd_bpe *hd_bpe_new(uint32_t tokens, size_t text_bytes, uint32_t merges)
    void hd_bpe_free(hd_bpe *bpe)
    void hd_bpe_token(hd_bpe *bpe, const char *text, size_t n)
    void hd_bpe_bytes(hd_bpe *bpe)
    int hd_bpe_merge(hd_bpe *bpe, const char *pair, size_t n)
    size_t hd_bpe_reach(const hd_bpe *bpe)
    int32_t hd_bpe_find(const hd_bpe *bpe, const char *text, size_t n)
    Py_ssize_t hd_bpe_encode(const hd_bpe *bpe, const uint8_t *word, size_t n, int whole, size_t limit, int32_t *out)

# So many bytes of text take about a millisecond; taking the GIL again more often would cost more than others gain.
cdef enum:
    LONG_WORD = 16384


cdef class Vocabulary:
    """Tokens (spelled as GGUF holds them, UTF-8) and merges ("LEFT RIGHT"), both in the order of ids and ranks."""
    cdef hd_bpe *bpe
    cdef readonly Py_ssize_t skipped  # merges that can never apply, because a part or the whole is no token

    def __cinit__(self, list tokens not None, list merges not None):
        cdef Py_ssize_t n = len(tokens), m = len(merges), i
        cdef size_t total = 0
        cdef bytes text
        cdef const char **at = <const char **>PyMem_Malloc((n + m + 1) * sizeof(char *))
        cdef size_t *size = <size_t *>PyMem_Malloc((n + m + 1) * sizeof(size_t))
        try:
            if at == NULL or size == NULL:
                raise MemoryError
            # The lists keep the bytes alive: what takes long then needs no GIL, while a daemon starts beside it.
            for i, text in enumerate(itertools.chain(tokens, merges)):
                at[i] = text
                size[i] = <size_t>len(text)
                if i < n:
                    total += size[i]
            self.bpe = hd_bpe_new(<uint32_t>n, total, <uint32_t>m)
            if self.bpe == NULL:
                raise MemoryError
            with nogil:
                for i in range(n):
                    hd_bpe_token(self.bpe, at[i], size[i])
                hd_bpe_bytes(self.bpe)
                for i in range(n, n + m):
                    self.skipped += not hd_bpe_merge(self.bpe, at[i], size[i])
        finally:
            PyMem_Free(at)
            PyMem_Free(size)

    def __dealloc__(self):
        hd_bpe_free(self.bpe)

    @property
    def reach(self):
        """Bytes of text that a token stands for at most."""
        return hd_bpe_reach(self.bpe)

    def find(self, str text not None):
        """The id of a token by its spelling, or None."""
        cdef Py_ssize_t n
        cdef const char *raw = PyUnicode_AsUTF8AndSize(text, &n)
        cdef int32_t token = hd_bpe_find(self.bpe, raw, n)
        return token if token >= 0 else None

    def encode(self, list words not None, bint whole, Py_ssize_t limit=-1):
        """The ids of all words in a row, as the bytes of int32; `whole`: a word that is a token is taken as it is. A byte
        without a token is left out. None as soon as the ids are known to be more than `limit`; a negative one is none.

        Others get the GIL while a long word is merged, and every millisecond or so.
        """
        cdef size_t most = <size_t>limit if limit >= 0 else <size_t>-1
        cdef int32_t *out = NULL
        cdef void *larger
        cdef Py_ssize_t room = 0, n, count, done = 0, held = 0
        cdef const uint8_t *raw
        cdef str word
        try:
            for word in words:
                raw = <const uint8_t *>PyUnicode_AsUTF8AndSize(word, &n)
                if n > room - done:  # a word has no more ids than bytes
                    room = max(2 * room, done + n)
                    larger = PyMem_Realloc(out, room * sizeof(int32_t))
                    if larger == NULL:
                        raise MemoryError
                    out = <int32_t *>larger
                held += n
                if held < LONG_WORD:
                    count = hd_bpe_encode(self.bpe, raw, n, whole, most, out + done)
                else:
                    held = 0
                    with nogil:
                        count = hd_bpe_encode(self.bpe, raw, n, whole, most, out + done)
                if count == HD_BPE_NO_MEMORY:
                    raise MemoryError
                if count < 0 or <size_t>count > most:
                    return None
                most -= <size_t>count
                done += count
            return PyBytes_FromStringAndSize(<const char *>out, done * sizeof(int32_t))
        finally:
            PyMem_Free(out)
