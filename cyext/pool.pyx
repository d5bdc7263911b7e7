# cython: language_level=3
"""Blocks of the tokens that sessions keep, held by count, and given back to the kernel when nobody has wanted them for a while.

Owns that memory and who holds it. What lies in a block, and how long a while is, others say.
"""
from libc.stdint cimport int32_t, uintptr_t
from libc.stdlib cimport free, malloc

cdef enum:
    BATCH = 256  # blocks that are given back at a time


cdef class Pool:
    """n_blocks blocks of block_bytes (rounded up to whole pages); nothing is touched before somebody writes.

    A block is used (it has holders), warm (free, its pages still there) or cold (free, without pages). Calls are made by one
    thread at a time; put() may come at any time between others' calls. Raises MemoryError.
    """

    def __cinit__(self, int n_blocks, size_t block_bytes):
        if hd_pool_open(&self.c, n_blocks, block_bytes):
            hd_pool_close(&self.c)
            raise MemoryError(f"no memory for {n_blocks} blocks of {block_bytes} bytes")

    def __dealloc__(self):
        hd_pool_close(&self.c)

    cdef int32_t held(self, int block) except -1:
        if not 0 <= block < self.c.n_blocks or not self.c.holders[block]:
            raise ValueError(f"nobody holds block {block}")
        return block

    def take(self):
        """A block with one holder, contents undefined; None when all are used."""
        block = hd_pool_take(&self.c)
        return None if block < 0 else block

    def share(self, int block):
        """One more holder. Raises ValueError for a block that nobody holds, as all of these do."""
        hd_pool_share(&self.c, self.held(block))

    def put(self, int block):
        """One holder fewer; a block that nobody holds is free."""
        hd_pool_put(&self.c, self.held(block))

    def holders(self, int block):
        """How many hold it."""
        return self.c.holders[self.held(block)]

    def cool(self, double seconds=0.0, int keep=0, int most=0):
        """Give the pages of warm blocks back to the kernel: of those that were put at least so many seconds ago, and of the
        oldest beyond `keep`. At most `most` blocks (0: all). Without the GIL while the kernel works. How many."""
        cdef int32_t n, done = 0, batch = BATCH
        cdef int32_t *blocks
        if not self.c.n_warm:
            return 0
        blocks = <int32_t *>malloc(batch * sizeof(int32_t))
        if blocks is NULL:
            raise MemoryError("a list of blocks")
        while True:
            n = hd_pool_oldest(&self.c, seconds, keep, min(batch, most - done) if most else batch, blocks)
            if n == 0:
                break
            with nogil:
                hd_pool_release(&self.c, blocks, n)
            hd_pool_cooled(&self.c, blocks, n)
            done += n
            if done == most:
                break
        free(blocks)
        return done

    @property
    def blocks(self):
        return self.c.n_blocks

    @property
    def used(self):
        return self.c.n_used

    @property
    def warm(self):
        return self.c.n_warm

    @property
    def free(self):
        """Warm and cold ones."""
        return hd_pool_free(&self.c)

    @property
    def block_bytes(self):
        return self.c.block_bytes

    @property
    def address(self):
        return <uintptr_t>self.c.base

    def resident(self):
        """Bytes in memory, as the kernel tells."""
        return hd_pool_resident(&self.c)
