"""A SentencePiece vocabulary in compact tables. Owns the memory of sentence.c and turns lists into calls."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free

cdef extern from "sentence.h" nogil:
    ctypedef struct hd_sentence:
        pass
    int HD_SENTENCE_NO_MEMORY, HD_SENTENCE_TOO_LONG
    hd_sentence *hd_sentence_new(uint32_t tokens, size_t text_bytes)
    void hd_sentence_free(hd_sentence *sentence)
    void hd_sentence_token(hd_sentence *sentence, const char *text, size_t n, uint32_t id, float score)
    void hd_sentence_byte(hd_sentence *sentence, uint8_t byte, uint32_t id)
    void hd_sentence_unknown(hd_sentence *sentence, uint32_t id)
    int hd_sentence_finish(hd_sentence *sentence)
    Py_ssize_t hd_sentence_encode(const hd_sentence *sentence, const uint8_t *text, size_t n, size_t limit,
                                  int32_t **out)


cdef class SentenceVocabulary:
    """Tokens that text may become by merging, as (spelling, id, score); `spelled`: tokens of single bytes."""
    cdef hd_sentence *sentence

    def __cinit__(self, list tokens not None, dict spelled not None, unknown=None):
        cdef bytes text
        cdef uint32_t token
        cdef float score
        cdef size_t total = 0
        for text, _, _ in tokens:
            total += <size_t>len(text)
        self.sentence = hd_sentence_new(<uint32_t>len(tokens), total)
        if self.sentence == NULL:
            raise MemoryError
        for text, token, score in tokens:
            hd_sentence_token(self.sentence, text, <size_t>len(text), token, score)
        for byte, token in spelled.items():
            hd_sentence_byte(self.sentence, byte, token)
        if unknown is not None:
            hd_sentence_unknown(self.sentence, unknown)
        if hd_sentence_finish(self.sentence):
            raise MemoryError

    def __dealloc__(self):
        hd_sentence_free(self.sentence)

    def encode(self, bytes text not None, Py_ssize_t limit):
        """The ids of UTF-8 text, as the bytes of int32; None as soon as they are known to be more than `limit`."""
        cdef const uint8_t *raw = <const uint8_t *>PyBytes_AS_STRING(text)
        cdef size_t n = <size_t>len(text)
        cdef int32_t *out = NULL
        cdef Py_ssize_t count
        if limit < 0:
            return None
        try:
            with nogil:
                count = hd_sentence_encode(self.sentence, raw, n, <size_t>limit, &out)
            if count == HD_SENTENCE_TOO_LONG:
                return None
            if count < 0:
                raise MemoryError
            return PyBytes_FromStringAndSize(<const char *>out, count * sizeof(int32_t))
        finally:
            free(out)
