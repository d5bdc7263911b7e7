"""Memory on chosen nodes, and the kernel's word on where pages lie.

Owns arenas and asks; whose page is whose and what is worth a copy is decided elsewhere.
"""

import os

import numpy as np

from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t, uintptr_t

from hearthd.cyext.mapping cimport Mapping, hd_mapping


cdef extern from "placement.h" nogil:
    enum hd_policy:
        HD_POLICY_DEFAULT, HD_POLICY_PREFERRED, HD_POLICY_INTERLEAVE
    int hd_thread_policy(hd_policy policy, uint64_t nodes)
    int hd_bind(void *memory, size_t bytes, hd_policy policy, uint64_t nodes)
    int hd_page_counts(int64_t n, const uint64_t *address, const uint64_t *pages, int32_t nodes, int64_t *counts)


cdef extern from "steps/memory.h" nogil:
    void *hd_memory_new(size_t bytes)
    void hd_memory_free(void *memory)


cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, int64_t offset)


DEFAULT, PREFERRED, INTERLEAVE = HD_POLICY_DEFAULT, HD_POLICY_PREFERRED, HD_POLICY_INTERLEAVE
PAD = 64  # readable bytes behind every copy: kernels read on past the last row


def thread_policy(int policy, nodes=()):
    """Policy of the calling thread for what it touches first. OSError where the kernel has no NUMA."""
    cdef int error = hd_thread_policy(<hd_policy>policy, sum(1 << int(k) for k in set(nodes)))
    if error:
        raise OSError(error, os.strerror(error), "set_mempolicy")


def page_counts(addresses, nbytes, int nodes):
    """Pages of each range (address, bytes; rounded outward) by the node they lie on: int64 [n, nodes + 1], the last column
    for pages that this process has not mapped. OSError where the kernel has no NUMA."""
    start = np.atleast_1d(np.ascontiguousarray(addresses, dtype=np.uint64))
    length = np.atleast_1d(np.ascontiguousarray(nbytes, dtype=np.uint64))
    page = np.uint64(4096)
    first = start // page
    count = np.where(length > 0, (start + length + page - np.uint64(1)) // page - first, np.uint64(0))
    cdef const uint64_t[::1] a = np.ascontiguousarray(first * page)
    cdef const uint64_t[::1] p = np.ascontiguousarray(count)
    cdef int64_t n = a.shape[0]
    out = np.zeros((n, nodes + 1), dtype=np.int64)
    cdef int64_t[:, ::1] r = out
    cdef int error
    if n == 0:
        return out
    with nogil:
        error = hd_page_counts(n, &a[0], &p[0], nodes, &r[0, 0])
    if error:
        raise OSError(error, os.strerror(error), "move_pages")
    return out


cdef class Arena:
    """Anonymous memory of one node, in huge pages where the kernel grants them. Filled slot by slot, freed as a whole.

    Raises MemoryError when there is no address space, OSError when the kernel knows no such node.
    """
    cdef uint8_t *memory
    cdef readonly uint64_t nbytes, used
    cdef readonly int node

    def __init__(self, uint64_t nbytes, int node):
        cdef int error
        self.memory = <uint8_t *>hd_memory_new(nbytes + PAD)
        if self.memory == NULL:
            raise MemoryError(f"an arena of {nbytes} bytes")
        self.nbytes, self.node = nbytes, node
        error = hd_bind(self.memory, nbytes + PAD, HD_POLICY_PREFERRED, 1ULL << node)
        if error:
            raise OSError(error, os.strerror(error), "mbind")

    @property
    def address(self):
        return <uintptr_t>self.memory

    def copy(self, Mapping mapping, int file, uint64_t offset, uint64_t nbytes):
        """Read a range of a file into the next slot; its address, or None when the arena has no room for it.

        OSError as read(2), ENODATA when the file has become shorter. Reads by the descriptor, not through the mapping, so
        a file that shrinks is an error and no fault.
        """
        cdef hd_mapping *m = mapping.get()
        cdef uint64_t at = (self.used + 63) // 64 * 64, done = 0
        cdef ssize_t got = 1
        cdef int error = 0
        if self.memory == NULL:
            raise ValueError("the arena is closed")
        if not 0 <= file < m.n:
            raise IndexError(file)
        if at + nbytes + PAD > self.nbytes + PAD:
            return None
        with nogil:
            while done < nbytes:
                got = pread(m.fd[file], self.memory + at + done, nbytes - done, <int64_t>(offset + done))
                if got < 0 and errno == EINTR:
                    continue
                if got <= 0:
                    error = errno if got < 0 else 61
                    break
                done += <uint64_t>got
        if error:
            raise OSError(error, f"{os.strerror(error)} at byte {offset + done}", mapping.paths[file])
        self.used = at + nbytes + PAD
        return <uintptr_t>(self.memory + at)

    def close(self):
        """Free it. Nobody may read its slots any more."""
        hd_memory_free(self.memory)
        self.memory = NULL

    def __dealloc__(self):
        hd_memory_free(self.memory)


def slot_bytes(nbytes):
    """What a copy of so many bytes takes of an arena at most."""
    return (np.asarray(nbytes, dtype=np.uint64) + np.uint64(PAD + 63)) // np.uint64(64) * np.uint64(64)
