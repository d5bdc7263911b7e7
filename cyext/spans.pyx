"""The table that mapping, populate queue and program share: where each span lies and whether it is ready.

Owns the arrays behind `hd_spans` (spans.h). Knows nothing of tensors.
"""

import numpy as np

from libc.stdint cimport int32_t, uint64_t, uintptr_t

ABSENT, LOADING, READY, EVICTING, FAILED = range(5)


cdef class Spans:
    """Arrays of one length: file, offset, nbytes, layer (-1 for what belongs to none).

    Raises ValueError when a range does not lie in its file. `state` uint8 [n] and `users` uint16 [n] are live views
    of what the C side changes: look, do not touch.
    """

    def __init__(self, mapping, file, offset, nbytes, layer, int nodes=1):
        self.mapping = mapping
        self.file = np.array(file, dtype=np.int32, copy=True, order="C")
        self.offset = np.array(offset, dtype=np.uint64, copy=True, order="C")
        self.nbytes = np.array(nbytes, dtype=np.uint64, copy=True, order="C")
        self.layer = np.array(layer, dtype=np.int32, copy=True, order="C")
        n = len(self.file)
        if not (self.file.shape == self.offset.shape == self.nbytes.shape == self.layer.shape == (n,)):
            raise ValueError("file, offset, nbytes and layer must be arrays of one length")
        if nodes < 1:
            raise ValueError("at least one node")
        sizes = np.asarray(mapping.sizes, dtype=np.uint64)
        if n:
            if self.file.min() < 0 or self.file.max() >= len(sizes) or self.layer.min() < -1:
                raise ValueError("a span's file or layer is out of range")
            room = sizes[self.file]
            bad = np.flatnonzero((self.offset > room) | (self.nbytes > room - np.minimum(self.offset, room)))
            if len(bad):
                raise ValueError(f"span {int(bad[0])} reaches past the end of its file")
        bases = np.array([mapping.address(i) for i in range(len(sizes))], dtype=np.uint64)
        self.home = bases[self.file] + self.offset
        self.at = np.tile(self.home, (nodes, 1))
        self.state = np.zeros(n, dtype=np.uint8)
        self.users = np.zeros(n, dtype=np.uint16)
        self.c.n = <int32_t>n
        self.c.nodes = nodes
        self.c.home = <const unsigned char **><uintptr_t>self.home.ctypes.data
        self.c.nbytes = <const uint64_t *><uintptr_t>self.nbytes.ctypes.data
        self.c.layer = <const int32_t *><uintptr_t>self.layer.ctypes.data
        self.c.at = <void *><uintptr_t>self.at.ctypes.data
        self.c.state = <void *><uintptr_t>self.state.ctypes.data
        self.c.users = <void *><uintptr_t>self.users.ctypes.data
        for array in (self.file, self.offset, self.nbytes, self.layer, self.home):
            array.flags.writeable = False

    def __len__(self):
        return self.c.n

    @property
    def nodes(self):
        return self.c.nodes

    @property
    def pointer(self):
        """Address of the C struct."""
        return <uintptr_t>&self.c

    def set_at(self, int node, ids, addresses):
        """Where that node's threads read these spans from now on (an arena copy, or `home`). Aligned 8-byte stores."""
        if not 0 <= node < self.c.nodes:
            raise IndexError(node)
        self.at[node, np.asarray(ids, dtype=np.int32)] = np.asarray(addresses, dtype=np.uint64)
