"""Background populate workers under one queue of five classes (populate_queue.h).

Owns the threads. Decides nothing: which span goes into which class, and when to brake, is the caller's business.
"""

import os

import numpy as np

cimport cython
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t, uintptr_t

from hearthd.cyext.mapping cimport Mapping
from hearthd.cyext.spans cimport Spans

DEMAND, ROUTED, LOOKAHEAD, CURSOR, SWEEP = range(5)
CLASSES = ("demand", "routed", "lookahead", "cursor", "sweep")


@cython.no_gc_clear  # the workers read `spans` until they have been joined
cdef class PopulateQueue:
    """workers: per node, one for all classes, or so many for demand and routed and `background` (0: as many) for the
    rest, which have `nice` less priority; piece: bytes read at once, at most 4 MiB.

    For several nodes: `node` int [n] tells whose workers read a span, `cpus` is a list of CPU sets and `memory` a list
    of kernel node numbers to allocate from, one each per node; or `interleave` names kernel nodes to spread over. Raises OSError when threads cannot be made.
    """

    def __init__(self, Spans spans, int workers=4, int background=0, uint64_t piece=4 << 20, int nice=5, node=None, cpus=None,
                 memory=None, interleave=()):
        cdef hd_queue_options o
        cdef int32_t[::1] node_view, memory_view
        cdef uint8_t[:, ::1] cpus_view
        cdef Mapping mapping = spans.mapping
        nodes = max(len(cpus or ()), len(memory or ()), 1)
        node_array = None
        o.workers, o.background, o.nodes, o.piece, o.nice = workers, background, nodes, piece, nice
        o.node, o.cpus, o.memory, o.n_cpus = NULL, NULL, NULL, 0
        o.interleave = sum(1 << int(k) for k in set(interleave))
        if node is not None:
            node_array = np.ascontiguousarray(node, dtype=np.int32)
            if node_array.shape != (len(spans),) or (len(spans) and not 0 <= node_array.min() <= node_array.max() < nodes):
                raise ValueError("node must name one of the nodes for every span")
            if len(spans):
                node_view = node_array
                o.node = &node_view[0]
        if cpus is not None:
            mask = np.zeros((nodes, max(max(s, default=0) for s in cpus) + 1), dtype=np.uint8)
            for number, chosen in enumerate(cpus):
                mask[number, list(chosen)] = 1
            cpus_view = mask
            o.cpus, o.n_cpus = &cpus_view[0, 0], <int32_t>mask.shape[1]
        if memory is not None:
            memory_array = np.ascontiguousarray(memory, dtype=np.int32)
            memory_view = memory_array
            o.memory = &memory_view[0]
        self.spans = spans
        self.nodes = nodes
        self.keep = node_array
        self.q = hd_queue_new(&spans.c, mapping.get(), <const int32_t *><uintptr_t>spans.file.ctypes.data,
                              <const uint64_t *><uintptr_t>spans.offset.ctypes.data, &o)
        if self.q == NULL:
            raise OSError(errno, os.strerror(errno), "populate workers")

    def __dealloc__(self):
        cdef hd_queue *q = self.q
        self.q = NULL
        with nogil:
            hd_queue_free(q)

    cdef hd_queue *get(self) except NULL:
        if self.q == NULL:
            raise ValueError("the queue is closed")
        return self.q

    def close(self):
        """Pieces in flight end, threads are joined. Nobody may be waiting in the queue."""
        cdef hd_queue *q = self.q
        self.q = NULL
        with nogil:
            hd_queue_free(q)

    @property
    def pointer(self):
        """Address of the C object; what the program is given."""
        return <uintptr_t>self.get()

    def _ids(self, ids):
        ids = np.atleast_1d(np.ascontiguousarray(ids, dtype=np.int32))
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self.spans):
            raise IndexError("no such span")
        return ids

    def submit(self, int cls, ids):
        """Ask for spans in a class; those queued lower move up, those ready or higher stay."""
        cdef const int32_t[::1] view = self._ids(ids)
        cdef int32_t n = <int32_t>view.shape[0]
        cdef hd_queue *q = self.get()
        if not 0 <= cls < HD_CLASSES:
            raise ValueError("no such class")
        if n:
            with nogil:
                hd_queue_submit(q, <hd_class>cls, &view[0], n)

    def rows(self, int32_t span, uint64_t row_bytes, rows):
        """Ask the disk for these rows of a span, of row_bytes each, and wait for nothing; its state stays as it is."""
        self._ids([span])
        wanted = np.ascontiguousarray(rows, dtype=np.int32)
        if not len(wanted) or wanted.min() < 0 or (int(wanted.max()) + 1) * row_bytes > self.spans.nbytes[span]:
            raise IndexError("no such rows")
        cdef const int32_t[::1] view = wanted
        hd_queue_rows(self.get(), span, 0, row_bytes, &view[0], <int32_t>view.shape[0])

    def sweep(self, ids):
        """submit(SWEEP, ids): read in the given order when nothing better is to be done."""
        self.submit(SWEEP, ids)

    def retry(self, ids):
        """Failed spans among these are tried again by whoever asks next; else only for demand and routed, after a second."""
        cdef const int32_t[::1] view = self._ids(ids)
        if view.shape[0]:
            hd_queue_retry(self.get(), &view[0], <int32_t>view.shape[0])

    def wait_any(self, ids, stop=None):
        """Raise to demand, sleep until one is READY or FAILED; its position in ids, -1 when stopped.

        stop: int32 array [1] that another thread sets to non-zero (then call `wake`).
        """
        cdef const int32_t[::1] view = self._ids(ids)
        cdef int32_t[::1] flag
        cdef const void *address = NULL
        cdef int32_t n = <int32_t>view.shape[0], found
        cdef hd_queue *q = self.get()
        if n == 0:
            raise ValueError("nothing to wait for")
        if stop is not None:
            flag = stop
            address = &flag[0]
        with nogil:
            found = hd_queue_wait_any(q, &view[0], n, address)
        return found

    def wake(self):
        hd_queue_wake(self.get())

    def cancel(self, int cls):
        """Drop what waits in a class."""
        if not 0 <= cls < HD_CLASSES:
            raise ValueError("no such class")
        hd_queue_cancel(self.get(), <hd_class>cls)

    def set_plan(self, ids, int window_layers):
        """The cursor: ids in order, taken only up to layer progress + window_layers; replaces the plan before."""
        cdef const int32_t[::1] view = self._ids(ids)
        cdef int32_t n = <int32_t>view.shape[0]
        cdef int32_t none = 0
        cdef hd_queue *q = self.get()
        cdef int error
        cdef const int32_t *p = &view[0] if n else <const int32_t *>&none
        with nogil:
            error = hd_queue_plan(q, p, n, window_layers)
        if error:
            raise MemoryError

    def progress(self, int layer):
        """The step has reached a layer; -1 between steps."""
        hd_queue_progress(self.get(), layer)

    def idle(self):
        """True when nothing above the sweep waits or is in flight."""
        return bool(hd_queue_idle(self.get()))

    def pause(self, classes=(CURSOR, SWEEP)):
        """These classes wait; the others go on, and what was taken of these is read to the end."""
        hd_queue_pause(self.get(), <uint32_t>sum(1 << int(c) for c in set(classes)))

    def resume(self):
        hd_queue_pause(self.get(), 0)

    def set_rate(self, double bytes_per_second):
        """Brake for cursor and sweep together; 0: none."""
        hd_queue_rate(self.get(), max(bytes_per_second, 0.0))

    def set_cover(self, int cls, float cover):
        """From what share on a class reads 2 MiB blocks whole: 0 always, above 1 never."""
        if not 0 <= cls < HD_CLASSES:
            raise ValueError("no such class")
        hd_queue_cover(self.get(), <hd_class>cls, cover)

    def place(self, first, begin, owner):
        """Whose pages are whose (placement.h): int64 [files + 1], uint64 [n], int32 [n]. Owners number sets of workers.

        From now on: what was populated before stays where it is. Everything None: pages are nobody's.
        """
        cdef hd_places c
        cdef const int64_t[::1] f
        cdef const uint64_t[::1] b
        cdef const int32_t[::1] o
        cdef hd_queue *q = self.get()
        if first is None or len(begin) == 0:
            with nogil:
                hd_queue_place(q, NULL)
            self.places = None
            return
        arrays = (np.array(first, dtype=np.int64), np.array(begin, dtype=np.uint64), np.array(owner, dtype=np.int32))
        f, b, o = arrays
        if len(b) != len(o) or f[0] != 0 or f[-1] != len(b) or (np.diff(arrays[0]) < 0).any():
            raise ValueError("first, begin and owner do not fit together")
        if not -1 <= arrays[2].min() <= arrays[2].max() < self.nodes:
            raise ValueError("an owner is none of the sets of workers")
        c.files, c.first, c.begin, c.owner = <int32_t>(len(f) - 1), &f[0], &b[0], &o[0]
        with nogil:  # a plan that is being made holds the places
            hd_queue_place(q, &c)
        self.places = arrays  # the old ones may go only now

    def settled(self):
        """(pages that were found on another node than their owner's, of them those that could not be brought home)."""
        cdef uint64_t wrong, left
        hd_queue_settled(self.get(), &wrong, &left)
        return wrong, left

    def evict(self, ids):
        """Give spans back that nobody reads or has asked for: (spans taken, bytes that left the cache).

        Sort by file and offset: neighbours then go together, and with them the blocks that they share.
        """
        cdef const int32_t[::1] view = self._ids(ids)
        cdef int32_t n = <int32_t>view.shape[0], taken
        cdef uint64_t freed = 0
        cdef hd_queue *q = self.get()
        if n == 0:
            return 0, 0
        with nogil:
            taken = hd_queue_evict(q, &view[0], n, &freed)
        return taken, freed

    def forget(self, ids):
        """READY spans of which the kernel has taken pages become ABSENT, unless somebody reads them; how many did."""
        cdef const int32_t[::1] view = self._ids(ids)
        return hd_queue_forget(self.get(), &view[0], <int32_t>view.shape[0]) if view.shape[0] else 0

    def make_arena(self, ids, uint64_t nbytes):
        """These spans can be read by O_DIRECT into huge pages from now on; `direct` says for which classes.

        nbytes: of all slots. Raises OSError: EINVAL where the file system knows no O_DIRECT, ENOSPC where nothing fits.
        """
        cdef uint8_t[::1] view
        member = np.zeros(max(len(self.spans), 1), dtype=np.uint8)
        member[self._ids(ids)] = 1
        view = member
        cdef int error = hd_queue_arena(self.get(), &view[0], nbytes)
        if error:
            raise OSError(error, os.strerror(error), "arena")

    def direct(self, classes):
        """What these classes ask for is read into the arena while it has slots; the others read into the mapping."""
        hd_queue_direct(self.get(), <uint32_t>sum(1 << int(c) for c in set(classes)))

    def come_home(self, ids):
        """These spans, populated in the mapping by the caller, are read there from now on and give up their slots.

        Those that somebody reads stay; how many came.
        """
        cdef const int32_t[::1] view = self._ids(ids)
        cdef int32_t n = <int32_t>view.shape[0], home
        cdef hd_queue *q = self.get()
        if n == 0:
            return 0
        with nogil:
            home = hd_queue_come_home(q, &view[0], n)
        return home

    def set_victims(self, ids):
        """Whose slot of the arena to take when none is free, in this order."""
        cdef const int32_t[::1] view = self._ids(ids)
        cdef int32_t none = 0
        cdef const int32_t *p = &view[0] if view.shape[0] else <const int32_t *>&none
        if hd_queue_victims(self.get(), p, <int32_t>view.shape[0]):
            raise MemoryError

    def set_mapping_room(self, int64_t nbytes):
        """Spans of so many bytes go to the mapping before any goes to the arena."""
        hd_queue_mapping_room(self.get(), nbytes)

    def limit_arena(self, uint64_t nbytes):
        """No more memory than this: that of free slots goes back. The bytes that are taken now."""
        cdef hd_queue *q = self.get()
        cdef uint64_t taken
        with nogil:
            taken = hd_queue_arena_limit(q, nbytes)
        return taken

    def arena(self):
        """Bytes: capacity, taken (memory), used (by spans); spans: replaced by others, full (found no slot)."""
        cdef hd_arena_counts counts
        hd_queue_arena_counts(self.get(), &counts)
        return {"capacity": counts.capacity, "taken": counts.taken, "used": counts.used, "replaced": counts.replaced,
                "full": counts.full}

    def error(self, int span):
        """(errno, byte in the file) of a failed span, None for any other."""
        cdef uint64_t at = 0
        cdef int error
        self._ids([span])
        error = hd_queue_error(self.get(), span, &at)
        return (error, at) if error else None

    def drain(self, int cls, double seconds):
        """Sleep until a class is empty and nothing of it in flight; False when the time is over before."""
        cdef hd_queue *q = self.get()
        cdef int empty
        if not 0 <= cls < HD_CLASSES:
            raise ValueError("no such class")
        with nogil:
            empty = hd_queue_drain(q, <hd_class>cls, seconds)
        return bool(empty)

    def depths(self):
        """Spans waiting per class, highest first (the cursor's with what is planned)."""
        return [row["waiting"] for row in self.stats().values()]

    def stats(self):
        """Per class name: bytes (read and cached together), read, cached, spans, failed, worker seconds, waiting spans, pieces in flight."""
        cdef hd_class_counts counts[5]
        cdef int64_t waiting[5]
        cdef int32_t in_flight[5]
        hd_queue_counts(self.get(), counts, waiting, in_flight)
        return {
            name: {
                "bytes": counts[k].read + counts[k].cached, "read": counts[k].read, "cached": counts[k].cached, "spans": counts[k].spans,
                "failed": counts[k].failed, "seconds": counts[k].seconds, "waiting": waiting[k],
                "in_flight": in_flight[k],
            }
            for k, name in enumerate(CLASSES)
        }
