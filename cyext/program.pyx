# cython: language_level=3
"""Programs and the sessions they run for.

Owns the memory of buffers and of a step, and where a step's tokens go in the pool. Is told every number: which tensor, which
order, which node.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, malloc, free, realloc
from libc.string cimport memcpy

cimport cython
import numpy as np
from hearthd.cyext import operands
from hearthd.cyext.pool cimport Pool, hd_pool_alone, hd_pool_at, hd_pool_free, hd_pool_put, hd_pool_take
from hearthd.cyext.recurrent cimport Recurrent
from hearthd.cyext.teams cimport Teams, hd_teams_share


KV_BLOCK = HD_KV_BLOCK
OPERATIONS = {
    "embed": HD_OP_EMBED, "norm": HD_OP_NORM, "matmul": HD_OP_MATMUL, "rope": HD_OP_ROPE, "store": HD_OP_STORE,
    "attend": HD_OP_ATTEND, "add": HD_OP_ADD, "activate": HD_OP_ACTIVATE, "route": HD_OP_ROUTE, "experts": HD_OP_EXPERTS,
    "select": HD_OP_SELECT, "lookahead": HD_OP_LOOKAHEAD, "scale": HD_OP_SCALE, "copy": HD_OP_COPY,
    "heads_matmul": HD_OP_HEADS_MATMUL,
    "convolve": HD_OP_CONVOLVE, "delta": HD_OP_DELTA, "decay": HD_OP_DECAY,
}


def computes(int type):
    """Whether there are kernels for matrices of this type: some types are for other things than weights."""
    return 0 <= type < HD_TYPE_COUNT and hd_kernels_for(b"c", NULL).unpack[type] is not NULL


def delta_tail(size_t dk, size_t dv):
    """Floats that a head of the delta rule keeps of the tokens that its matrix does not hold yet."""
    return hd_delta_tail(dk, dv)


class Failed(RuntimeError):
    """A step did not end well. kind: "stopped", "fault", "span" or "memory"; span: the span's number or -1."""

    def __init__(self, kind, span=-1):
        super().__init__(kind)
        self.kind = kind
        self.span = span


@cython.no_gc_clear  # its blocks go back to the pool when it goes
cdef class State:
    """One sequence's place in the KV pool, and its recurrent state."""
    cdef Program program
    cdef Pool pool
    cdef int32_t *blocks
    cdef int32_t n_blocks, capacity
    cdef Recurrent kept

    def __cinit__(self, Program program):
        self.program, self.pool = program, program.pool
        program.sessions_open += 1
        self.kept = Recurrent(program.p.tail_floats, program.p.state_floats)

    @property
    def held(self):
        """Numbers of its blocks, in order of position."""
        return [self.blocks[k] for k in range(self.n_blocks)]

    def reserve(self, int64_t first, int64_t end):
        """Have blocks for the positions [0, end), of which [first, end) may be written: what others hold of these is copied
        before. False when the pool has none left (what was there stays)."""
        cdef int64_t need = (end + HD_KV_BLOCK - 1) // HD_KV_BLOCK
        cdef int64_t k, copies = 0
        for k in range(first // HD_KV_BLOCK, min(need, self.n_blocks)):
            copies += not hd_pool_alone(&self.pool.c, self.blocks[k])
        if copies + max(need - self.n_blocks, 0) > hd_pool_free(&self.pool.c):
            return False
        if need > self.capacity:
            grown = <int32_t *>realloc(self.blocks, sizeof(int32_t) * <size_t>need)
            if grown is NULL:
                raise MemoryError("block table")
            self.blocks = grown
            self.capacity = <int32_t>need
        for k in range(first // HD_KV_BLOCK, min(need, self.n_blocks)):
            if not hd_pool_alone(&self.pool.c, self.blocks[k]):
                self.own(k)
        while self.n_blocks < need:
            self.blocks[self.n_blocks] = self.program.take_block()
            self.n_blocks += 1
        return True

    cdef own(self, int64_t k):
        """Instead of its block k, which others hold too, have a copy. The pool has one free."""
        cdef int32_t shared = self.blocks[k]
        self.blocks[k] = self.program.take_block()
        memcpy(hd_pool_at(&self.pool.c, self.blocks[k]), hd_pool_at(&self.pool.c, shared), self.pool.c.block_bytes)
        hd_pool_put(&self.pool.c, shared)

    def shrink(self, int64_t tokens):
        """Give back the blocks beyond so many tokens. Recurrent state stays as it was last settled; at 0 it begins anew."""
        cdef int64_t keep = (tokens + HD_KV_BLOCK - 1) // HD_KV_BLOCK
        while self.n_blocks > keep:
            self.n_blocks -= 1
            hd_pool_put(&self.pool.c, self.blocks[self.n_blocks])
        if tokens == 0 and self.kept is not None:
            self.kept.begin()

    def settle(self, int64_t tokens):
        """What the last step made of the recurrent state is the session's from now on, which has so many tokens with it."""
        self.kept.settle(tokens)

    def __dealloc__(self):
        if self.pool is not None:
            self.shrink(0)
            self.program.sessions_open -= 1
        free(self.blocks)


cdef class Program:
    """A flat list of operations over buffers; built once, then run.

    spans and queue are objects with `.pointer` (hd_spans, hd_queue), queue may be None: then pages fault as they are read.
    """
    cdef hd_program p
    cdef hd_step *step
    cdef int32_t *rows             # of a step: tokens, positions, parts, and which of them want logits
    cdef hd_session *sessions
    cdef float **logits
    cdef void *scratch_memory
    cdef object scratch
    cdef object spans, queue, teams, owner
    cdef int32_t stop_flag, layer_now
    cdef list keep, ops, weights, buffers, streams, ropes
    cdef object shapes             # of all these, for the check of operations
    cdef readonly object expert_counts, expert_touched, reads
    cdef readonly list nodes
    cdef readonly Pool pool
    cdef readonly int64_t token_bytes   # that the pool keeps of each token
    cdef readonly int sessions_open
    cdef hd_trace trace
    cdef hd_lookahead ahead
    cdef object trace_records

    def __cinit__(self, spans, queue, Teams teams, isa, int max_rows, int n_layers, int n_experts, int max_used, int vocabulary):
        cdef const char *why = NULL
        cdef bytes name
        if isa is None:
            self.p.kernels = hd_kernels_for(NULL, &why)
        else:
            name = isa.encode()
            self.p.kernels = hd_kernels_for(name, &why)
        if self.p.kernels is NULL:
            raise ValueError(f"instruction set {isa!r}: {why.decode() if why is not NULL else 'not on this machine'}")
        self.spans, self.queue, self.teams = spans, queue, teams
        self.p.spans = <hd_spans *><uintptr_t>spans.pointer
        self.p.queue = NULL if queue is None else <hd_queue *><uintptr_t>queue.pointer
        self.p.teams = teams.handle
        self.p.max_rows, self.p.n_layers, self.p.n_experts = max_rows, n_layers, n_experts
        self.p.max_used, self.p.vocabulary = max_used, vocabulary
        self.layer_now = -1
        self.keep, self.ops, self.weights, self.buffers, self.streams, self.ropes = [], [], [], [], [], []
        self.shapes = operands.Program(self.buffers, [], [], [], n_layers, n_experts, max_used, vocabulary, delta_tail)
        self.nodes = []
        self.reads = None
        self.expert_counts = np.zeros((max(n_layers, 1), max(n_experts, 1)), dtype=np.uint64)
        self.expert_touched = np.zeros((max(n_layers, 1), 3), dtype=np.uint64)

    @property
    def isa(self):
        return self.p.kernels.name.decode()

    @property
    def layer(self):
        """The layer that the running step has reached, -1 when none runs."""
        return self.layer_now

    # --- building ---

    def weight(self, int type, int64_t rows, int64_t cols, size_t row_bytes, spans, size_t offset=0, scale=None):
        """A matrix, or one per span. scale: float32, what each one's products are multiplied by."""
        cdef object ids = np.ascontiguousarray(spans, dtype=np.int32)
        if not computes(type):
            raise ValueError(f"a weight of type {type} cannot be computed with")
        if scale is not None:
            scale = np.ascontiguousarray(scale, dtype=np.float32)
            if scale.shape != ids.shape:
                raise ValueError(f"{scale.shape} scales for {ids.shape} matrices")
        self.weights.append((type, rows, cols, row_bytes, ids, offset, scale))
        self.shapes.weights.append(operands.Matrix(rows, cols, len(ids)))
        return len(self.weights) - 1

    def buffer(self, int width):
        self.buffers.append(width)
        return len(self.buffers) - 1

    def stream(self, int heads, int width):
        """What each token keeps: heads x width halves. Blocks hold KV_BLOCK tokens of all streams."""
        offset = sum(h * w * 2 * HD_KV_BLOCK for h, w, _ in self.streams)
        self.streams.append((heads, width, offset))
        self.shapes.streams.append((heads, width))
        return len(self.streams) - 1

    def rope(self, inverse, float magnitude=1.0):
        """inverse: float64 [n_rot / 2], radians per position of each pair; magnitude scales cosine and sine."""
        self.ropes.append((np.ascontiguousarray(inverse, dtype=np.float64), magnitude))
        self.shapes.ropes.append(2 * len(inverse))
        return len(self.ropes) - 1

    def tail(self, size_t floats):
        """So many floats per session for what the last few tokens left; the offset of this part."""
        at = self.p.tail_floats
        self.p.tail_floats += floats
        self.shapes.tail = self.p.tail_floats
        return at

    def delta_tail(self, int heads, int dk, int dv):
        """A tail for the delta rule of so many heads."""
        return self.tail(heads * hd_delta_tail(dk, dv))

    def state(self, size_t floats):
        """So many floats per session of matrices that all its tokens moved; the offset of this part."""
        at = self.p.state_floats
        self.p.state_floats += floats
        self.shapes.state = self.p.state_floats
        return at

    def op(self, kind, int layer, ins=(), outs=(), weights=(), ints=(), floats=(), bint selected=False):
        if len(ins) > HD_OP_BUFFERS or len(outs) > HD_OP_BUFFERS or len(weights) > HD_OP_WEIGHTS:
            raise ValueError(f"{kind}: too many operands")
        if len(ints) > HD_OP_INTS or len(floats) > HD_OP_FLOATS:
            raise ValueError(f"{kind}: too many parameters")
        operands.check(kind, layer, ins, outs, weights, ints, self.shapes)
        self.ops.append((OPERATIONS[kind], layer, tuple(ins), tuple(outs), tuple(weights), tuple(ints), tuple(floats), selected))

    def set_split(self, int split, owner=None):
        """How rows are shared between teams: 0 one team, 1 rows, 2 whole experts; owner: int32 [layers, experts]."""
        cdef int32_t[:, ::1] view
        self.p.split = split
        if owner is not None:
            self.owner = np.ascontiguousarray(owner, dtype=np.int32)
            view = self.owner
            self.p.owner = &view[0, 0]

    def set_nodes(self, nodes):
        """The kernel's node of each team, before finish(): buffers are spread over them, each key head's part of the KV pool
        lies with the team that reads it, and weight bytes read are counted per team and span (`reads`)."""
        cdef uint64_t[:, ::1] view
        if len(nodes) != len(self.teams.cpus):
            raise ValueError("one node for each team")
        self.nodes = [int(node) for node in nodes]
        if len(nodes) > 1 and all(0 <= node < 64 for node in self.nodes):
            self.p.node_mask = sum(1 << node for node in set(self.nodes))
            self.reads = np.zeros((len(nodes), self.p.spans.n), dtype=np.uint64)
            view = self.reads
            self.p.reads = <void *>&view[0, 0]

    def set_teams(self, Teams teams):
        """Other threads from the next step on, as many teams with the same shares: who reads which rows stays. Not while a
        step runs."""
        if teams.shares != (<Teams>self.teams).shares:
            raise ValueError("teams with other shares")
        self.teams = teams
        self.p.teams = teams.handle

    def team_rows(self, int64_t rows):
        """[(first, end)]: the rows of a matrix of so many rows that each team reads."""
        cdef int32_t r0, r1
        found = []
        for team in range(len(self.teams.cpus)):
            hd_team_rows(&self.p, team, rows, &r0, &r1)
            found.append((r0, r1))
        return found

    def team_share(self, int64_t n):
        """[(first, end)]: the items of n that each team takes."""
        cdef int64_t a, b
        found = []
        for team in range(len(self.teams.cpus)):
            hd_teams_share((<Teams>self.teams).handle, team, n, &a, &b)
            found.append((a, b))
        return found

    def matrices(self):
        """What products read: (spans, offset in them, rows, row bytes, how, unit) per weight and way of reading it.

        how: "rows" (divided by team_rows), "experts" (as rows, or whole by owner), "heads" (`unit` rows a head, divided by
        team_share of the heads).
        """
        ways = {"matmul": ("rows", range(4)), "experts": ("experts", range(3)), "lookahead": ("rows", range(1, 2)),
                "heads_matmul": ("heads", range(1))}
        of = {OPERATIONS[kind]: way for kind, way in ways.items()}
        found = {}
        for kind, _, _, _, weights, ints, _, _ in self.ops:
            how, slots = of.get(kind, ("", ()))
            for slot in slots:
                if slot < len(weights) and weights[slot] >= 0:
                    found[weights[slot], how] = ints[7] if how == "heads" else 1
        result = []
        for (number, how), unit in found.items():
            _, rows, _, row_bytes, spans, offset, _ = self.weights[number]
            result.append((spans, offset, rows, row_bytes, how, unit))
        return result

    cdef int32_t take_block(self):
        """A block of the pool, of which there is one; each of its pages on the node of the team that will read it."""
        cdef int32_t block = hd_pool_take(&self.pool.c)
        cdef uint8_t *base
        cdef uint8_t *page
        cdef size_t size, at
        cdef int h
        if not self.p.node_mask or self.pool.c.touched[block]:
            return block
        base = hd_pool_at(&self.pool.c, block)
        teams = len(self.nodes)
        for team, node in enumerate(self.nodes):
            hd_thread_policy(HD_POLICY_PREFERRED, <uint64_t>1 << <int>node)
            for heads, width, offset in self.streams:
                size = width * 2 * HD_KV_BLOCK
                first, end = self.team_share(heads * teams)[team]
                for h in range(-(-first // teams), -(-end // teams)):
                    page = base + <size_t>offset + <size_t>h * size
                    at = (4096 - <uintptr_t>page % 4096) % 4096
                    while at < size:
                        page[at] = 0
                        at += 4096
        hd_thread_policy(HD_POLICY_DEFAULT, 0)
        self.pool.c.touched[block] = 1
        return block

    def pool_layout(self):
        """Where a KV block lies: (address of the pool, bytes of a block, [(heads, bytes of a head, offset)])."""
        return <uintptr_t>self.p.pool, self.p.block_bytes, [(h, w * 2 * HD_KV_BLOCK, o) for h, w, o in self.streams]

    def finish(self, int n_blocks):
        """Lay out memory: buffers, and a pool of so many blocks. Nothing of it is touched yet."""
        cdef int32_t[::1] ids
        cdef double[::1] inverse
        cdef const float[::1] scales
        cdef int i, k
        p = &self.p
        p.n_weights = <int32_t>len(self.weights)
        p.weights = <hd_weight *>calloc(max(p.n_weights, 1), sizeof(hd_weight))
        for i, (type, rows, cols, row_bytes, spans, offset, scale) in enumerate(self.weights):
            ids = spans
            p.weights[i].type, p.weights[i].rows, p.weights[i].cols = type, rows, cols
            p.weights[i].row_bytes, p.weights[i].offset = row_bytes, offset
            p.weights[i].spans, p.weights[i].n_spans = &ids[0], <int32_t>len(spans)
            if scale is not None:
                scales = scale
                p.weights[i].scale = &scales[0]
        p.n_buffers = <int32_t>len(self.buffers)
        p.buffers = <hd_buffer *>calloc(max(p.n_buffers, 1), sizeof(hd_buffer))
        for i, width in enumerate(self.buffers):
            p.buffers[i].width = width
            p.buffers[i].stride = (width + 15) & ~15
            p.buffers[i].data = <float *>hd_program_memory(p, p.buffers[i].stride * p.max_rows * sizeof(float))
            if p.buffers[i].data is NULL:
                raise MemoryError(f"no memory for {p.max_rows} rows of {width} values")
        p.n_streams = <int32_t>len(self.streams)
        p.streams = <hd_stream *>calloc(max(p.n_streams, 1), sizeof(hd_stream))
        for i, (heads, width, offset) in enumerate(self.streams):
            p.streams[i].heads, p.streams[i].width, p.streams[i].offset = heads, width, offset
        p.n_ropes = <int32_t>len(self.ropes)
        p.ropes = <hd_rope *>calloc(max(p.n_ropes, 1), sizeof(hd_rope))
        for i, (angles, magnitude) in enumerate(self.ropes):
            inverse = angles
            p.ropes[i].n_rot = 2 * <int32_t>len(angles)
            p.ropes[i].inverse, p.ropes[i].magnitude = &inverse[0], magnitude
            p.ropes[i].cosine = <float *>hd_memory_new(len(angles) * p.max_rows * sizeof(float))
            p.ropes[i].sine = <float *>hd_memory_new(len(angles) * p.max_rows * sizeof(float))
            if p.ropes[i].cosine is NULL or p.ropes[i].sine is NULL:
                raise MemoryError("rope tables")
        p.n_ops = <int32_t>len(self.ops)
        p.ops = <hd_op *>calloc(max(p.n_ops, 1), sizeof(hd_op))
        for i, (kind, layer, ins, outs, weights, ints, floats, selected) in enumerate(self.ops):
            o = &p.ops[i]
            o.kind, o.layer, o.selected = kind, layer, selected
            for k in range(HD_OP_BUFFERS):
                o.in_[k] = ins[k] if k < len(ins) else -1
                o.out[k] = outs[k] if k < len(outs) else -1
            for k in range(HD_OP_WEIGHTS):
                o.w[k] = weights[k] if k < len(weights) else -1
            for k in range(len(ints)):
                o.i[k] = ints[k]
            for k in range(len(floats)):
                o.f[k] = floats[k]
        self.token_bytes = sum(h * w * 2 for h, w, _ in self.streams)
        self.pool = Pool(n_blocks, <size_t>self.token_bytes * HD_KV_BLOCK)
        p.pool, p.block_bytes = self.pool.c.base, self.pool.c.block_bytes
        if p.node_mask and p.pool is not NULL:
            hd_memory_small_pages(p.pool)
        cdef uint64_t[:, ::1] counts = self.expert_counts
        cdef uint64_t[:, ::1] touched = self.expert_touched
        p.expert_counts = <void *>&counts[0, 0]
        p.expert_touched = <void *>&touched[0, 0]
        self.step = hd_step_new(p)
        if self.step is NULL:
            raise MemoryError("step")
        self.rows = <int32_t *>malloc(4 * sizeof(int32_t) * p.max_rows)
        self.sessions = <hd_session *>malloc(sizeof(hd_session) * p.max_rows)
        self.logits = <float **>malloc(sizeof(float *) * p.max_rows)
        self.step.lost = <int32_t *>malloc(sizeof(int32_t) * p.max_rows)
        if self.rows is NULL or self.sessions is NULL or self.logits is NULL or self.step.lost is NULL:
            raise MemoryError("rows of a step")
        self.step.sessions, self.step.logits = self.sessions, self.logits
        self.step.stop = <void *>&self.stop_flag
        self.step.layer = <void *>&self.layer_now
        self.ahead.every = 16
        for k in range(2):
            self.ahead.guess[k].layer = -1
            self.ahead.guess[k].guessed = <uint8_t *>calloc(max(p.n_experts, 1), 1)
            self.ahead.guess[k].asked = <uint8_t *>calloc(max(p.n_experts, 1), 1)
        self.step.lookahead = &self.ahead

    @property
    def recurrent(self):
        """Whether sessions keep recurrent state."""
        return self.p.tail_floats + self.p.state_floats > 0

    @property
    def session_bytes(self):
        """Most that a session's recurrent state takes, however long it is: both copies of both kinds."""
        return 2 * (self.p.tail_floats + self.p.state_floats) * sizeof(float)

    def resident(self):
        """Bytes of the step's buffers that are in memory, as the kernel tells."""
        cdef int i, k
        cdef size_t found = hd_memory_resident(self.scratch_memory)
        for i in range(self.p.n_buffers):
            found += hd_memory_resident(self.p.buffers[i].data)
            for k in range(HD_ACT_COUNT):
                found += hd_memory_resident(self.p.buffers[i].packed[k].data)
        s = self.step
        found += hd_memory_resident(s.pair_hidden) + hd_memory_resident(s.pair_gate)
        return found + hd_memory_resident(s.pair_out) + hd_memory_resident(s.pair_packed)

    def session(self):
        return State(self)

    # --- running ---

    def run(self, list parts):
        """One step of parts (state, tokens int32 [n], position of the first, logits: float32 [of the last rows, vocabulary] to
        be written, or None). Of each part the span of an expert that its rows needed and that could not be read, or -1.
        Raises Failed for what all parts share."""
        cdef State state
        cdef hd_session *session
        cdef const int32_t[::1] tokens
        cdef float[:, ::1] out
        cdef int64_t first
        cdef int32_t i, k, n = 0, rows, wanted, block, selected = 0, count = <int32_t>len(parts), result
        cdef int32_t most = self.p.max_rows
        cdef int32_t *token = self.rows
        cdef int32_t *position = token + most
        cdef int32_t *owner = position + most
        cdef int32_t *want = owner + most
        if count > most:
            raise ValueError(f"{count} parts in a step of at most {most} rows")
        for i in range(count):
            state, row_tokens, first, where = parts[i]
            tokens = row_tokens
            rows = <int32_t>tokens.shape[0]
            if rows == 0 or n + rows > most:
                raise ValueError(f"part {i} of a step: {rows} rows after {n}, of at most {most}")
            if state.program is not self:
                raise ValueError(f"part {i} of a step: a state of another program")
            if first < 0 or first + rows > <int64_t>state.n_blocks * HD_KV_BLOCK:
                raise ValueError(f"part {i} of a step: position {first + rows - 1} has no block")
            for block in range(<int32_t>(first // HD_KV_BLOCK), <int32_t>((first + rows - 1) // HD_KV_BLOCK) + 1):
                if not hd_pool_alone(&self.pool.c, state.blocks[block]):
                    raise ValueError(f"part {i} of a step: others hold block {block} as well")
            for k in range(rows):
                if not 0 <= tokens[k] < self.p.vocabulary:
                    raise ValueError(f"part {i} of a step: token {tokens[k]}")
                token[n + k], position[n + k], owner[n + k] = tokens[k], <int32_t>first + k, i
            n += rows
            if where is not None:
                out = where
                wanted = <int32_t>out.shape[0]
                if wanted > rows or out.shape[1] != self.p.vocabulary:
                    raise ValueError(f"part {i} of a step: shape of its logits")
                for k in range(wanted):
                    want[selected], self.logits[selected] = n - wanted + k, &out[k, 0]
                    selected += 1
            session = &self.sessions[i]
            session.blocks, session.n_blocks = state.blocks, state.n_blocks
            session.tail, session.tail_next = state.kept.tail, state.kept.tail_next
            session.state, session.state_next = state.kept.state, state.kept.state_next
        if n == 0:
            return []
        s = self.step
        s.n, s.n_selected, s.n_sessions = n, selected, count
        s.token, s.pos, s.session, s.selected = token, position, owner, want
        with nogil:
            result = hd_step_run(s)
        if result == HD_STOPPED:
            raise Failed("stopped")
        if result == HD_FAULT:
            raise Failed("fault", self.span_at(<uintptr_t>self.step.fault_address))
        if result == HD_SPAN_FAILED:
            raise Failed("span", self.step.failed_span)
        if result != 0 and result != HD_ALL_LOST:
            raise Failed("memory")
        return [s.lost[i] for i in range(count)]

    def span_at(self, uintptr_t address):
        """The span that holds an address of the mapping, -1 when none does."""
        cdef int32_t i
        for i in range(self.p.spans.n):
            if <uintptr_t>self.p.spans.home[i] <= address < <uintptr_t>self.p.spans.home[i] + self.p.spans.nbytes[i]:
                return i
        return -1

    def scratch_logits(self, int n):
        """float32 [n, vocabulary] for logits that nobody keeps: the same memory each time, until more is asked for."""
        cdef float *memory
        cdef Py_ssize_t rows = n, width = self.p.vocabulary
        if self.scratch is None or n > self.scratch.shape[0]:
            self.scratch = None
            hd_memory_free(self.scratch_memory)
            self.scratch_memory = hd_memory_new(rows * width * sizeof(float))
            if self.scratch_memory is NULL:
                raise MemoryError(f"logits of {n} rows")
            memory = <float *>self.scratch_memory
            self.scratch = np.asarray(<float[:rows, :width]>memory)
        return self.scratch[:n]

    def stop(self, bint on=True):
        """End the running step at its next operation; stays until stop(False)."""
        self.stop_flag = on

    def trim(self):
        """Give back the pages of all buffers; they come back, zeroed, with the next step. Not while one runs."""
        cdef int i, k
        for i in range(self.p.n_buffers):
            hd_memory_release(self.p.buffers[i].data)
            for k in range(HD_ACT_COUNT):
                hd_memory_release(self.p.buffers[i].packed[k].data)
        s = self.step
        hd_memory_release(s.pair_hidden)
        hd_memory_release(s.pair_gate)
        hd_memory_release(s.pair_out)
        hd_memory_release(s.pair_packed)
        hd_memory_release(self.scratch_memory)

    # --- what it learnt ---

    def set_lookahead(self, bint read, int every):
        self.ahead.read, self.ahead.every = read, every

    def lookahead(self):
        """Counts since the start: experts guessed, of them used, used at all; bytes asked for on a guess, of them wasted."""
        return {"guessed": self.ahead.n_guessed, "right": self.ahead.n_right, "used": self.ahead.n_used,
                "read_bytes": self.ahead.read_bytes, "wasted_bytes": self.ahead.wasted_bytes, "reading": bool(self.ahead.read)}

    def trace_begin(self, int64_t capacity):
        """Record routing from now on: int32 records (step, layer, row, experts...)."""
        cdef int32_t[::1] view
        self.trace_records = np.zeros(capacity, dtype=np.int32)
        view = self.trace_records
        self.trace.records, self.trace.used, self.trace.capacity = &view[0], 0, capacity
        self.step.trace = &self.trace

    @property
    def trace_used(self):
        """int32 numbers recorded so far; 0 when nothing is recorded."""
        return self.trace.used if self.step.trace != NULL else 0

    def trace_peek(self):
        """The records so far; recording goes on. From any thread: what a running step adds may be missing."""
        return self.trace_records[: self.trace.used].copy()

    def trace_take(self):
        """The records so far; recording ends."""
        self.step.trace = NULL
        return self.trace_records[: self.trace.used].copy()

    def __dealloc__(self):
        cdef int i, k
        if self.step is not NULL:
            free(self.step.lost)
        hd_step_free(self.step)
        free(self.rows)
        free(self.sessions)
        free(self.logits)
        hd_memory_free(self.scratch_memory)
        for i in range(self.p.n_buffers):
            hd_memory_free(self.p.buffers[i].data)
            for k in range(HD_ACT_COUNT):
                hd_memory_free(self.p.buffers[i].packed[k].data)
        for i in range(self.p.n_ropes):
            hd_memory_free(self.p.ropes[i].cosine)
            hd_memory_free(self.p.ropes[i].sine)
        free(self.p.weights)
        free(self.p.buffers)
        free(self.p.streams)
        free(self.p.ropes)
        free(self.p.ops)
        for k in range(2):
            free(self.ahead.guess[k].guessed)
            free(self.ahead.guess[k].asked)
