"""Python's view of the kernel tables: the choice of an instruction set, and each kernel callable with numpy arrays.

Owns no kernel and decides nothing; for tests and benchmarks, which want one function at a time, and copies inputs where
alignment or padding needs it. The engine calls the same table from C.
"""
from cpython.bytes cimport PyBytes_FromString
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset

import numpy as np

cdef extern from "kernels/bench.h" nogil:
    uint64_t hd_read_bytes(const uint8_t *p, size_t n)

NAMES = ("c", "avx2", "avx512", "avx512bf16", "amx")

cdef const hd_kernels *kernels_for(object name) except NULL:
    cdef const char *why = NULL
    cdef bytes encoded = b"" if name is None else name.encode()
    cdef const hd_kernels *table = hd_kernels_for(encoded, &why)
    if table == NULL:
        raise ValueError(f"instruction set {name or 'of HEARTHD_ISA'}: {PyBytes_FromString(why).decode()}")
    return table

cdef const hd_type_info *type_info(int type) except NULL:
    if type < 0 or type >= HD_TYPE_COUNT or hd_types[type].name == NULL:
        raise ValueError(f"no tensor type {type}")
    return &hd_types[type]

cdef object aligned(size_t n):
    """n bytes at a 64-byte boundary, with 64 zero bytes after them."""
    room = np.zeros(n + 128, np.uint8)
    start = -room.ctypes.data % 64
    return room[start:start + n + 64]

cdef object floats(object x):
    return np.ascontiguousarray(x, np.float32)

cdef uintptr_t at(object array) except? 0:
    return array.ctypes.data


def available():
    """Names of the instruction sets that this machine permits, lowest first."""
    names = []
    for name in NAMES:
        try:
            kernels_for(name)
        except ValueError:
            continue
        names.append(name)
    return names


def select(name=None):
    """The instruction set that a name (None: HEARTHD_ISA, else the best) stands for. ValueError with the reason if refused."""
    return PyBytes_FromString(kernels_for(name).name).decode()


def types():
    """{number: (name, values in a block, bytes of a block)} of the types that have an unpacker."""
    cdef const hd_kernels *k = kernels_for("c")
    return {i: (PyBytes_FromString(hd_types[i].name).decode(), hd_types[i].block, hd_types[i].bytes)
            for i in range(HD_TYPE_COUNT) if k.unpack[i] != NULL}


def row_bytes(int type, int64_t k):
    """Bytes of a row of k values. ValueError unless k is a multiple of the type's block."""
    cdef const hd_type_info *info = type_info(type)
    if k <= 0 or k % info.block:
        raise ValueError(f"{k} columns are no multiple of the block of {info.block}")
    return k // info.block * info.bytes


def unpack(int type, blocks, int64_t n, isa=None):
    """float32 [n]: the first n values (whole blocks) of bytes-like `blocks`."""
    cdef const hd_kernels *k = kernels_for(isa)
    need = row_bytes(type, n)
    if k.unpack[type] == NULL:
        raise ValueError(f"tensor type {type} holds no weights")
    source = np.frombuffer(blocks, np.uint8)
    if source.size < need:
        raise ValueError(f"{source.size} bytes given, {need} needed")
    padded = aligned(need)
    padded[:need] = source[:need]
    out = np.empty(n, np.float32)
    cdef const void *w = <const void *> at(padded)
    cdef float *o = <float *> at(out)
    with nogil:
        k.unpack[type](w, o, n)
    return out


def act_for(int type, isa=None):
    """The number of the activation layout that a product of this type wants."""
    type_info(type)
    return <int> kernels_for(isa).act_for(type)


def act_pack(int act, x, isa=None):
    """uint8 [bytes]: one row of float32 packed in layout `act` (act.h)."""
    cdef const hd_kernels *k = kernels_for(isa)
    x = floats(x)
    cdef int64_t n = x.size
    cdef size_t size = k.act_bytes(<hd_act> act, n)
    out = aligned(size)
    cdef const float *source = <const float *> at(x)
    cdef void *target = <void *> at(out)
    k.act_pack(<hd_act> act, source, n, target)
    return out[:size]


cdef class Product:
    """One product, prepared: weights [rows, k] of a type times x float32 [n, k], `run(r0, r1)` fills out[:, r0:r1].

    weights: bytes-like. It is copied with padding unless `copy` is false; then 64 bytes after its last row must be readable.
    act: a layout of act.h, None for the one that the table wants.
    """
    cdef const hd_kernels *k
    cdef hd_product p
    cdef object held
    cdef readonly object out
    cdef readonly size_t weight_bytes
    cdef readonly int act
    cdef readonly int panel
    cdef void *scratch

    def __init__(self, int type, weights, int64_t rows, int64_t k, x, isa=None, act=None, copy=True):
        self.k = kernels_for(isa)
        cdef size_t width = row_bytes(type, k)
        if self.k.unpack[type] == NULL:
            raise ValueError(f"tensor type {type} holds no weights")
        x = np.atleast_2d(floats(x))
        if x.ndim != 2 or x.shape[1] != k:
            raise ValueError(f"activations are {x.shape}, wanted [n, {k}]")
        n = x.shape[0]
        w = np.frombuffer(weights, np.uint8)
        self.weight_bytes = width * rows
        if rows < 1 or w.size < self.weight_bytes:
            raise ValueError(f"{rows} rows of {width} bytes wanted, {w.size} bytes given")
        if copy:
            padded = aligned(self.weight_bytes)
            padded[:self.weight_bytes] = w[:self.weight_bytes]
            w = padded
        self.act = self.k.act_for(type) if act is None else act
        packed = [act_pack(self.act, row, isa) for row in x]
        self.out = np.zeros((n, rows), np.float32)
        xs = np.array([row.ctypes.data for row in packed], np.uint64)
        outs = np.array([row.ctypes.data for row in self.out], np.uint64)
        self.p.type, self.p.act, self.p.row_bytes, self.p.k, self.p.n = type, self.act, width, k, n
        self.p.w = <const uint8_t *> at(w)
        self.p.x = <const uint8_t *const *> at(xs)
        self.p.out = <float *const *> at(outs)
        room = aligned(self.k.product_scratch(&self.p))
        self.scratch = <void *> at(room)
        self.held = (w, packed, xs, outs, room)
        self.panel = self.k.panel

    def run(self, r0=0, r1=None, int repeat=1):
        """Compute rows r0 <= r < r1 `repeat` times, without the GIL."""
        cdef int64_t first = r0, last = self.out.shape[1] if r1 is None else r1
        if not 0 <= first <= last <= self.out.shape[1]:
            raise ValueError(f"rows {first} to {last} of {self.out.shape[1]}")
        cdef int i
        with nogil:
            for i in range(repeat):
                self.k.product(&self.p, first, last, self.scratch)
        return self.out

    def point(self, weights):
        """Take other weights of the same shape, without a copy (see `copy`)."""
        w = np.frombuffer(weights, np.uint8)
        if w.size < self.weight_bytes:
            raise ValueError(f"{self.weight_bytes} bytes wanted, {w.size} given")
        self.held = (*self.held[1:], w)
        self.p.w = <const uint8_t *> at(w)


def product(int type, weights, int64_t rows, int64_t k, x, isa=None, r0=0, r1=None, act=None):
    """float32 [n, rows]: x [n, k] times the rows r0 to r1 of weights [rows, k]; the other rows stay 0."""
    return Product(type, weights, rows, k, x, isa, act).run(r0, r1)


def read_memory(buffer, int repeat=1):
    """Read every byte of a buffer `repeat` times without the GIL: the yardstick for memory-bound kernels."""
    source = np.frombuffer(buffer, np.uint8)
    cdef const uint8_t *p = <const uint8_t *> at(source)
    cdef size_t n = source.size
    cdef uint64_t all = 0
    cdef int i
    with nogil:
        for i in range(repeat):
            all ^= hd_read_bytes(p, n)
    return all


def rms_norm(x, weight=None, float eps=1e-6, isa=None):
    """float32 [n]: x / sqrt(mean(x^2) + eps) * weight."""
    cdef const hd_kernels *k = kernels_for(isa)
    x = floats(x)
    w = None if weight is None else floats(weight)
    out = np.empty_like(x)
    k.rms_norm(<float *> at(out), <const float *> at(x), NULL if w is None else <const float *> at(w), x.size, eps)
    return out


def silu_mul(gate, up, isa=None):
    """float32 [n]: gate / (1 + exp(-gate)) * up."""
    gate, up = floats(gate), floats(up)
    out = np.empty_like(gate)
    kernels_for(isa).silu_mul(<float *> at(out), <const float *> at(gate), <const float *> at(up), gate.size)
    return out


def activate(int kind, gate, up, float limit=7.0, float alpha=1.702, isa=None):
    """float32 [n]: activation `kind` (enum hd_activation of kernels.h) of gate and up."""
    gate, up = floats(gate), floats(up)
    out = np.empty_like(gate)
    kernels_for(isa).activate(kind, limit, alpha, <float *> at(out), <const float *> at(gate), <const float *> at(up), gate.size)
    return out


def convolve(x, weight, isa=None):
    """float32 [n]: silu of the sum over taps of weight [taps, n] * x [taps, n]."""
    x, weight = floats(x), floats(weight)
    if x.ndim != 2 or x.shape != weight.shape:
        raise ValueError(f"rows are {x.shape}, weights {weight.shape}")
    out = np.empty(x.shape[1], np.float32)
    rows = np.array([row.ctypes.data for row in x], np.uint64)
    kernels_for(isa).convolve(<float *> at(out), <const float *const *> at(rows), <const float *> at(weight), x.shape[0],
                              x.shape[1])
    return out


DELTA_TOKENS = HD_DELTA_TOKENS


def delta(q, k, v, decay, beta, held, tail=None, int before=0, isa=None):
    """(out [rows, dv], state [dk, dv], tail): the gated delta rule over q, k [rows, dk] and v [rows, dv] (hd_delta).

    held: the state at the beginning of the first row's group, `before` tokens of which came earlier and left `tail`. The
    state that is answered is that of the last whole group's end, the tail what the tokens since then left.
    """
    cdef hd_delta d
    q, k, v, decay, beta, held = floats(q), floats(k), floats(v), floats(decay), floats(beta), floats(held)
    rows, dk = q.shape
    dv = v.shape[1]
    if k.shape != q.shape or v.shape[0] != rows or decay.shape != (rows,) or beta.shape != (rows,) or held.shape != (dk, dv):
        raise ValueError("shapes of queries, keys, values, gates and state do not fit")
    tail = np.full(hd_delta_tail(dk, dv), np.nan, np.float32) if tail is None else floats(tail)
    if not 0 <= before < HD_DELTA_TOKENS or tail.shape != (hd_delta_tail(dk, dv),):
        raise ValueError("no such tail")
    out, following, left = np.zeros((rows, dv), np.float32), held.copy(), np.full_like(tail, np.nan)
    pointers = [np.array([row.ctypes.data for row in a], np.uint64) for a in (q, k, v, out)]
    qp, kp, vp, op = pointers
    d.rows, d.dk, d.dv, d.before = rows, dk, dv, before
    d.held, d.next = <const float *> at(held), <float *> at(following)
    d.tail, d.tail_next = <const float *> at(tail), <float *> at(left)
    d.q, d.k, d.v = <const float *const *> at(qp), <const float *const *> at(kp), <const float *const *> at(vp)
    d.decay, d.beta, d.out = <const float *> at(decay), <const float *> at(beta), <float *const *> at(op)
    kernels_for(isa).delta(&d)
    return out, following, left


def softmax(x, isa=None):
    """float32 [n]: exp(x - max) / sum."""
    out = np.array(x, np.float32)
    kernels_for(isa).softmax(<float *> at(out), out.size)
    return out


def add(a, b, isa=None):
    """float32 [n]: a + b."""
    a, b = floats(a), floats(b)
    out = np.empty_like(a)
    kernels_for(isa).add(<float *> at(out), <const float *> at(a), <const float *> at(b), a.size)
    return out


def axpy(out, float a, x, isa=None):
    """float32 [n]: out + a * x, in a new array."""
    out, x = np.array(out, np.float32), floats(x)
    kernels_for(isa).axpy(<float *> at(out), a, <const float *> at(x), x.size)
    return out


def to_f16(x, isa=None):
    """float16 [n], rounded to nearest even."""
    x = floats(x)
    out = np.empty(x.shape, np.float16)
    kernels_for(isa).to_f16(<uint16_t *> at(out), <const float *> at(x), x.size)
    return out


def to_f32(x, isa=None):
    """float32 [n] of float16 [n]."""
    x = np.ascontiguousarray(x, np.float16)
    out = np.empty(x.shape, np.float32)
    kernels_for(isa).to_f32(<float *> at(out), <const uint16_t *> at(x), x.size)
    return out


def rope(x, cosine, sine, bint halves=True, isa=None):
    """float32 [n]: the first 2 * len(cosine) values rotated, pairs (i, i + n/2) if halves else (2i, 2i + 1)."""
    out, cosine, sine = np.array(x, np.float32), floats(cosine), floats(sine)
    if out.size < 2 * cosine.size or sine.size != cosine.size:
        raise ValueError("more angles than pairs")
    kernels_for(isa).rope(<float *> at(out), <const float *> at(cosine), <const float *> at(sine), 2 * cosine.size, halves)
    return out


def attend(q, keys, values, pos, float scale, float softcap=0.0, int window=0, sinks=None, isa=None):
    """float32 [rows, group, dv]: attention of q [rows, group, dk] at ascending positions pos on keys [tokens, dk] and
    values [tokens, dv] of one KV head (rounded to half); see hd_attend for the masks."""
    cdef const hd_kernels *k = kernels_for(isa)
    cdef hd_attend a
    q, pos = floats(q), np.ascontiguousarray(pos, np.int32)
    rows, group, dk = q.shape
    tokens, dv = np.shape(values)
    if np.shape(keys) != (tokens, dk) or pos.shape != (rows,) or (rows and pos.max() >= tokens):
        raise ValueError("shapes of queries, keys, values and positions do not fit")
    n_blocks = -(-tokens // HD_KV_BLOCK)
    kb, vb = np.zeros((n_blocks * HD_KV_BLOCK, dk), np.float16), np.zeros((n_blocks * HD_KV_BLOCK, dv), np.float16)
    kb[:tokens], vb[:tokens] = keys, values
    kp = np.array([kb[i * HD_KV_BLOCK:].ctypes.data for i in range(n_blocks)], np.uint64)
    vp = np.array([vb[i * HD_KV_BLOCK:].ctypes.data for i in range(n_blocks)], np.uint64)
    out = np.zeros((rows, group, dv), np.float32)
    qp = np.array([row.ctypes.data for row in q], np.uint64)
    op = np.array([row.ctypes.data for row in out], np.uint64)
    s = None if sinks is None else floats(sinks)
    a.rows, a.group, a.dk, a.dv = rows, group, dk, dv
    a.q, a.out = <const float *const *> at(qp), <float *const *> at(op)
    a.q_stride, a.out_stride, a.k_stride, a.v_stride = dk, dv, dk, dv
    a.pos = <const int32_t *> at(pos)
    a.k, a.v = <const uint16_t *const *> at(kp), <const uint16_t *const *> at(vp)
    a.scale, a.softcap, a.window = scale, softcap, window
    a.sinks = NULL if s is None else <const float *> at(s)
    room = aligned(k.attend_scratch(&a))
    cdef void *scratch = <void *> at(room)
    with nogil:
        k.attend(&a, scratch)
    return out
