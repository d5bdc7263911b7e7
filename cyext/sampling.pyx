# cython: language_level=3
"""Requests' samplers, and choices from rows of logits: one call for all rows of a step, without the GIL.

Is told every number, in range; the daemon's model.sampling checks them and says what went wrong.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

import numpy as np

cdef extern from "kernels/kernels.h" nogil:
    ctypedef struct hd_scan:
        pass
    ctypedef struct hd_kernels:
        const hd_scan *scan
    const hd_kernels *hd_kernels_for(const char *name, const char **why)

cdef extern from "sampling.h" nogil:
    ctypedef struct hd_teams:
        pass
    ctypedef struct hd_sampler:
        const hd_scan *scan
        int32_t n_vocab, top_k, likeliest, greedy
        double temperature, top_p, min_p, repeat, presence, frequency
        int32_t repeat_last
        uint64_t seed
        int32_t n_biases, n_forbidden
        const int32_t *biased
        const int32_t *forbidden
        const float *bias
    enum:
        HD_CHOSEN, HD_NOT_FINITE, HD_NONE_LEFT, HD_NO_ROOM
    ctypedef struct hd_pick:
        const float *logits
        const hd_sampler *sampler
        const uint32_t *mask
        uint64_t position
        int32_t *tokens
        double *logprobs
        int32_t status, token, n_tokens
        double logprob
    ctypedef struct hd_scored:
        const float *logits
        int32_t token, finite
        double logprob
    int hd_sampler_begin(hd_sampler *s, const int32_t *tokens, int64_t n)
    int hd_sampler_accept(hd_sampler *s, int32_t token)
    void hd_sampler_end(hd_sampler *s)
    double hd_uniform(uint64_t seed, uint64_t position)
    void hd_sampling_choose(hd_teams *teams, hd_pick *picks, int32_t n)
    void hd_sampling_score(hd_teams *teams, const hd_scan *scan, int32_t n_vocab, hd_scored *rows, int32_t n)

CHOSEN, NOT_FINITE, NONE_LEFT, NO_ROOM = HD_CHOSEN, HD_NOT_FINITE, HD_NONE_LEFT, HD_NO_ROOM


cdef const hd_scan *scan_of(object isa) except NULL:
    cdef const char *why = NULL
    cdef bytes name = b"" if isa is None else isa.encode()
    cdef const hd_kernels *kernels = hd_kernels_for(name, &why)
    if kernels is NULL:
        raise ValueError(f"instruction set {isa or 'of HEARTHD_ISA'}: {why.decode()}")
    return kernels.scan


cdef hd_teams *teams_of(object teams) except? NULL:
    if teams is None:
        return NULL
    if not teams.pointer:
        raise ValueError("the teams are closed")
    return <hd_teams *><uintptr_t>teams.pointer


cdef class Sampler:
    """One request's numbers, and how often which token was there.

    top_k: 0 is off; temperature above 0 unless greedy; likeliest: how many alternatives are told (0: no
    log-probabilities); repeat_last: -1 all, 0 none; bias: {id: number or minus infinity}; forbidden: ids. isa: as the
    kernels' (None: the best).
    """
    cdef hd_sampler s
    cdef object ids, numbers, banned

    def __cinit__(self, int n_vocab, *, int top_k, double top_p, double min_p, double temperature, bint greedy,
                  double repeat, int repeat_last, double presence, double frequency, uint64_t seed, int likeliest,
                  bias, forbidden, isa=None):
        cdef int32_t[::1] ids, banned
        cdef float[::1] numbers
        if n_vocab < 1 or not (greedy or temperature > 0):
            raise ValueError("no vocabulary, or no temperature")
        self.s.scan = scan_of(isa)
        self.s.n_vocab, self.s.top_k, self.s.likeliest, self.s.greedy = n_vocab, top_k, likeliest, greedy
        self.s.temperature, self.s.top_p, self.s.min_p = temperature, top_p, min_p
        self.s.repeat, self.s.presence, self.s.frequency = repeat, presence, frequency
        self.s.repeat_last, self.s.seed = repeat_last, seed
        self.ids = np.array(list(bias), dtype=np.int32)
        self.numbers = np.array(list(bias.values()), dtype=np.float32)
        self.banned = np.array(list(forbidden), dtype=np.int32)
        for some in (self.ids, self.banned):
            if some.size and (some.min() < 0 or some.max() >= n_vocab):
                raise ValueError("a token outside the vocabulary")
        ids, numbers, banned = self.ids, self.numbers, self.banned
        self.s.n_biases, self.s.n_forbidden = <int32_t>ids.shape[0], <int32_t>banned.shape[0]
        if ids.shape[0]:
            self.s.biased, self.s.bias = &ids[0], &numbers[0]
        if banned.shape[0]:
            self.s.forbidden = &banned[0]

    def begin(self, const int32_t[::1] tokens):
        """Tell of the prompt's tokens [n]."""
        if tokens.shape[0] and not hd_sampler_begin(&self.s, &tokens[0], tokens.shape[0]):
            raise MemoryError("counts of tokens")

    def accept(self, int32_t token):
        """Tell of a chosen token."""
        if not hd_sampler_accept(&self.s, token):
            raise MemoryError("counts of tokens")

    def __dealloc__(self):
        hd_sampler_end(&self.s)


def choose(teams, const float[:, :] logits, picks):
    """For each (row, Sampler, position, mask or None) a tuple (status, token, logprob, [(token, logprob), ...]).

    logits: [rows, n_vocab], each row contiguous. mask: uint32 words, bit i % 32 of word i // 32 for token i. The
    tokens' log-probabilities and the alternatives are told where the sampler has `likeliest`. teams: None for this
    thread; who gives them runs nothing else on them. With NOT_FINITE `token` is the first whose logit is not.
    """
    cdef hd_teams *team = teams_of(teams)
    cdef int32_t n = <int32_t>len(picks), i, room = 0
    cdef Sampler sampler
    cdef const uint32_t[::1] words
    cdef int32_t[:, ::1] tokens
    cdef double[:, ::1] logprobs
    cdef hd_pick *all
    if logits.shape[1] > 1 and logits.strides[1] != sizeof(float):
        raise ValueError("a row of logits in pieces")
    for _, sampler, _, _ in picks:
        room = max(room, sampler.s.likeliest)
    tokens = np.empty((n, max(room, 1)), dtype=np.int32)
    logprobs = np.empty((n, max(room, 1)), dtype=np.float64)
    all = <hd_pick *>calloc(max(n, 1), sizeof(hd_pick))
    if all is NULL:
        raise MemoryError("picks")
    try:
        for i in range(n):
            row, sampler, position, mask = picks[i]
            if not 0 <= row < logits.shape[0] or logits.shape[1] != sampler.s.n_vocab:
                shape = f"{logits.shape[0]} x {logits.shape[1]}"
                raise ValueError(f"row {row} of logits {shape} for {sampler.s.n_vocab} tokens")
            all[i].logits, all[i].sampler, all[i].position = &logits[<int64_t>row, 0], &sampler.s, position
            all[i].tokens, all[i].logprobs = &tokens[i, 0], &logprobs[i, 0]
            if mask is not None:
                words = mask
                if words.shape[0] < (sampler.s.n_vocab + 31) // 32:
                    raise ValueError(f"a mask of {words.shape[0]} words for {sampler.s.n_vocab} tokens")
                all[i].mask = &words[0]
        with nogil:
            hd_sampling_choose(team, all, n)
        return [(all[i].status, all[i].token, all[i].logprob,
                 [(tokens[i, j], logprobs[i, j]) for j in range(all[i].n_tokens)]) for i in range(n)]
    finally:
        free(all)


def score(teams, const float[:, :] logits, const int32_t[::1] tokens, isa=None):
    """(float64 [n], row): log-probabilities of tokens [n] (-1: none is wanted, NaN) by rows of logits [n, n_vocab],
    each contiguous; and the first row whose logits are not finite, or -1. teams: as for `choose`."""
    cdef hd_teams *team = teams_of(teams)
    cdef const hd_scan *scan = scan_of(isa)
    cdef int32_t n = <int32_t>tokens.shape[0], n_vocab = <int32_t>logits.shape[1], i
    cdef hd_scored *all
    cdef double[::1] found = np.full(n, np.nan)
    if logits.shape[0] < n or n_vocab < 1 or (n_vocab > 1 and logits.strides[1] != sizeof(float)):
        raise ValueError("rows of logits")
    for i in range(n):
        if tokens[i] >= n_vocab:
            raise ValueError("a token outside the vocabulary")
    all = <hd_scored *>calloc(max(n, 1), sizeof(hd_scored))
    if all is NULL:
        raise MemoryError("rows")
    try:
        for i in range(n):
            all[i].logits, all[i].token = &logits[i, 0], tokens[i]
        with nogil:
            hd_sampling_score(team, scan, n_vocab, all, n)
        for i in range(n):
            if all[i].finite < 0:
                raise MemoryError("room for a row")
            if not all[i].finite:
                return np.asarray(found), i
            if tokens[i] >= 0:
                found[i] = all[i].logprob
        return np.asarray(found), -1
    finally:
        free(all)


def uniform(uint64_t seed, uint64_t position):
    """The number, from 0 to below 1, that draws the token of a position."""
    return hd_uniform(seed, position)
