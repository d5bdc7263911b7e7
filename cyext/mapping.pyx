"""Model files mapped for reading: populate, evict, lock, and the kernel's own books as plain numpy numbers.

Owns addresses and file descriptors. Decides nothing: it is told which range.
"""

import os

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t


def _ranges(file, offset, nbytes):
    """The three arrays in the types that C reads; one file number serves all ranges."""
    offset = np.atleast_1d(np.ascontiguousarray(offset, dtype=np.uint64))
    nbytes = np.atleast_1d(np.ascontiguousarray(nbytes, dtype=np.uint64))
    file = np.ascontiguousarray(np.broadcast_to(np.asarray(file, dtype=np.int32), offset.shape))
    if offset.ndim != 1 or offset.shape != nbytes.shape:
        raise ValueError("file, offset and nbytes must be arrays of one length")
    return file, offset, nbytes


ctypedef int (*count_t)(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
                        uint64_t *out) noexcept nogil


cdef _bytes(Mapping mapping, count_t count, where, file, offset, nbytes, columns=1):
    """What one of the kernel's books says of each range: uint64 [n], or [n, columns] for several numbers of each."""
    file, offset, nbytes = _ranges(file, offset, nbytes)
    cdef const int32_t[::1] f = file
    cdef const uint64_t[::1] o = offset, b = nbytes
    out = np.zeros(len(offset) * columns, dtype=np.uint64)
    cdef uint64_t[::1] r = out
    cdef int64_t n = len(offset)
    cdef int error = 0
    cdef hd_mapping *m = mapping.get()
    if n:
        with nogil:
            error = count(m, n, &f[0], &o[0], &b[0], &r[0])
    if error:
        raise OSError(error, os.strerror(error), where)
    return out if columns == 1 else out.reshape(-1, columns)


cdef class Mapping:
    """Every file PROT_READ and MAP_SHARED at a 2 MiB aligned address, with a readable zero page behind its end.

    Raises OSError (with the file's name) when a file cannot be opened or mapped, or is empty.
    """

    def __init__(self, paths):
        cdef int error
        self.paths = [os.fspath(path) for path in paths]
        self.c = hd_mapping_new(<int32_t>len(self.paths))
        if self.c == NULL:
            raise MemoryError
        for number, path in enumerate(self.paths):
            error = hd_mapping_open(self.c, <int32_t>number, os.fsencode(path))
            if error:
                raise OSError(error, os.strerror(error), path)

    def __dealloc__(self):
        hd_mapping_free(self.c)

    cdef hd_mapping *get(self) except NULL:
        if self.c == NULL:
            raise ValueError("the mapping is closed")
        return self.c

    def close(self):
        """Unmap. Whoever still holds an address must have ended before."""
        hd_mapping_free(self.c)
        self.c = NULL

    @property
    def pointer(self):
        """Address of the C struct (mapping.h)."""
        return <uintptr_t>self.get()

    @property
    def huge(self):
        """True when a populate reads aligned 2 MiB blocks as one folio each."""
        return bool(self.get().huge)

    @property
    def touches(self):
        """True when the system refuses to populate, and pages are touched one by one instead."""
        return bool(hd_populate_refused())

    @property
    def blind(self):
        """True when the kernel will not tell us what is cached, because a file is neither ours nor writable."""
        return bool(self.get().blind)

    @property
    def sizes(self):
        return [int(self.get().size[i]) for i in range(self.get().n)]

    def small_pages(self):
        """From now on populate reads exact pages instead of 2 MiB blocks, which would lie on one node as a whole."""
        cdef int error = hd_mapping_small_pages(self.get())
        if error:
            raise OSError(error, os.strerror(error), "MADV_NOHUGEPAGE")

    def address(self, int file):
        """Where the file begins in memory."""
        if not 0 <= file < self.get().n:
            raise IndexError(file)
        return <uintptr_t>self.c.base[file]

    def populate(self, int file, uint64_t offset, uint64_t nbytes, float cover=0.0):
        """Map a range, reading what is not cached: (bytes read, bytes that only had to be mapped).

        cover: see hd_populate in mapping.h. OSError ENODATA: the file ends before the range does; EIO: the disk
        failed; both say the byte.
        """
        cdef hd_populated got
        cdef int error
        cdef hd_mapping *m = self.get()
        with nogil:
            error = hd_populate(m, file, offset, nbytes, cover, &got)
        if error:
            raise OSError(error, f"{os.strerror(error)} at byte {got.failed_at}", self._path(file))
        return got.read, got.cached

    def evict(self, int file, uint64_t offset, uint64_t nbytes):
        """Unmap and drop from the cache the pages wholly inside a range. Returns the bytes that left, measured."""
        cdef uint64_t freed
        cdef int error
        cdef hd_mapping *m = self.get()
        with nogil:
            error = hd_evict(m, file, offset, nbytes, &freed)
        if error:
            raise OSError(error, os.strerror(error), self._path(file))
        return freed

    def lock(self, int file, uint64_t offset, uint64_t nbytes, bint on_fault=True):
        """mlock2. OSError ENOMEM or EPERM past RLIMIT_MEMLOCK."""
        cdef int error
        cdef hd_mapping *m = self.get()
        with nogil:
            error = hd_lock(m, file, offset, nbytes, on_fault)
        if error:
            raise OSError(error, os.strerror(error), self._path(file))

    def unlock(self, int file, uint64_t offset, uint64_t nbytes):
        cdef int error
        cdef hd_mapping *m = self.get()
        with nogil:
            error = hd_unlock(m, file, offset, nbytes)
        if error:
            raise OSError(error, os.strerror(error), self._path(file))

    def _path(self, file):
        return self.paths[file] if 0 <= file < len(self.paths) else None

    def cached(self, file, offset, nbytes):
        """Bytes of each range in the page cache, by mincore: uint64 [n]. Meaningless when `blind`."""
        return _bytes(self, hd_cached, "mincore", file, offset, nbytes)

    def cachestat(self, file, offset, nbytes):
        """(cached, recently evicted) of the pages that each range touches, in bytes of whole pages: uint64 [n, 2].

        OSError ENOSYS: kernel before 6.5; EPERM: not our file.
        """
        return _bytes(self, hd_cachestat, "cachestat", file, offset, nbytes, 2)

    def mapped(self, file, offset, nbytes):
        """Bytes of each range in this process's page table, by /proc/self/pagemap: uint64 [n]. Cheapest when sorted."""
        return _bytes(self, hd_mapped, "/proc/self/pagemap", file, offset, nbytes)

    def page_nodes(self, addresses):
        """NUMA node of the page at each address, or a negative errno (-14 or -2: not mapped): int32 [n]."""
        addresses = np.ascontiguousarray(addresses, dtype=np.uint64)
        cdef const uint64_t[::1] a = addresses
        out = np.empty(len(addresses), dtype=np.int32)
        cdef int32_t[::1] r = out
        cdef int64_t n = len(addresses)
        cdef int error
        if n == 0:
            return out
        with nogil:
            error = hd_page_nodes(n, &a[0], &r[0])
        if error:
            raise OSError(error, os.strerror(error), "move_pages")
        return out

    def numa_maps(self):
        """Bytes of each file mapped per node, from /proc/self/numa_maps: {file number: {node: bytes}}."""
        with open("/proc/self/numa_maps", encoding="ascii", errors="replace") as lines:
            return parse_numa_maps(lines, {i: self.address(i) for i in range(len(self.paths))}, self.sizes)


def parse_numa_maps(lines, addresses, sizes):
    """numa_maps lines (Documentation/filesystems/proc.rst) to {file number: {node: bytes}}.

    addresses: {file number: address}; sizes: bytes per file. Lines of other mappings are passed over.
    """
    found = {number: {} for number in addresses}
    for line in lines:
        words = line.split()
        if not words:
            continue
        start = int(words[0], 16)
        number = next((i for i, a in addresses.items() if a <= start < a + sizes[i]), None)
        if number is None or not any(word.startswith("file=") for word in words):
            continue
        page = next((int(word[18:]) << 10 for word in words if word.startswith("kernelpagesize_kB=")), 4096)
        for word in words:
            if word[0] == "N" and "=" in word:
                node, _, pages = word[1:].partition("=")
                if node.isdigit():
                    found[number][int(node)] = found[number].get(int(node), 0) + int(pages) * page
    return found
