"""The vocabulary in which an architecture is written: tensors by name, operations as calls, values as results.

Owns what each operation is called and takes, and the numbers of tensors. What becomes of the calls is lowering's. Knows
no architecture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from hearthd.cyext import program as cy
from hearthd.daemon.model.calls import Call, Value, Weight
from hearthd.daemon.model.gguf import ModelError
from hearthd.daemon.model.hyper import MOST_WHOLE, Keys
from hearthd.daemon.model.lowering import lower
from hearthd.daemon.model.positions import Factors, Scaling, angles

if TYPE_CHECKING:
    from hearthd.daemon.model.gguf import ModelFile, Tensor
    from hearthd.daemon.model.parts import Matrices
    from hearthd.daemon.model.spans import SpanTable
    from numpy.typing import NDArray

SILU, SWIGLU_OAI, SWIGLU_LIMIT, GELU, SIGMOID_GATE, SIGMOID, SILU_ONLY = range(7)
SOFTMAX, SIGMOID_GATING, SOFTMAX_CHOSEN = range(3)

F32 = 0
MOST_VALUES = 1 << 20  # of a tensor whose values the graph is made of


class Tensors:
    """Names tensors and checks them. A mismatch raises ModelError with tensor, shape found and shape expected.

    table: the model's; program: takes the weights; keys: whose numbers the shapes were made of;
    contents: whether scales are read, too, which lie all over the file. `read`: names that steps read; `looked_at`:
    names whose values the graph itself is made of.
    """

    def __init__(
        self, model: ModelFile, table: SpanTable, program: Matrices, keys: Keys | None = None, *, contents: bool = True
    ) -> None:
        self._contents = contents
        self._model = model
        self._table = table
        self._program = program
        self._keys = keys
        self.read: set[str] = set()
        self.looked_at: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._model.tensors

    def fail(self, name: str, reason: str) -> ModelError:
        """The error about a tensor, to be raised."""
        return ModelError(self._model.paths[0], reason, tensor=name)

    def _at_odds(self, name: str, reason: str) -> ModelError:
        """The error about a tensor that is not what the metadata promises, with the numbers of that promise."""
        said = self._keys.said() if self._keys is not None else ""
        return self.fail(name, f"{reason}; the metadata says {said}" if said else reason)

    def _find(self, name: str) -> Tensor:
        tensor = self._model.tensors.get(name)
        if tensor is None:
            raise self._at_odds(name, "the tensor is missing")
        return tensor

    def _shape(self, name: str, expected: tuple[int, ...]) -> Tensor:
        tensor = self._find(name)
        found = tuple(tensor.shape)
        padded = found + (1,) * (len(expected) - len(found))
        if padded != expected:
            raise self._at_odds(name, f"shape {list(found)} found, {list(expected)} expected (columns first)")
        if max(found, default=0) > MOST_WHOLE or tensor.nbytes == 0:
            raise self.fail(name, f"shape {list(found)} is not one that can be computed with")
        if not cy.computes(tensor.type):
            raise self.fail(name, f"type {tensor.type_name} is not one that can be computed with")
        self.read.add(name)
        return tensor

    def rows(self, name: str) -> int:
        """Rows of a matrix; raises when absent."""
        shape = tuple(self._find(name).shape)
        return shape[1] if len(shape) > 1 else 1

    def matrix(self, name: str, rows: int, cols: int, *, depth: int = 1) -> Weight:
        """A dense matrix; depth > 1: that many of them stacked, as rows * depth."""
        expected = (cols, rows, depth) if depth > 1 else (cols, rows)
        t = self._shape(name, expected)
        return Weight(self._dense(t, rows * depth), name, rows * depth, cols)

    def _dense(self, t: Tensor, rows: int, first: int = 0) -> int:
        spans = [self._table.dense(t.name)]
        cols, scale = t.shape[0], self._scale(t.name)
        return int(self._program.weight(t.type, rows, cols, t.row_bytes, spans, first * t.row_bytes, scale))

    def _scale(self, name: str, count: int = 1) -> NDArray[np.float32] | None:
        """`NAME.scale` of `NAME.weight`, by which the finished product is multiplied: one value, or one for each
        expert, as files with NVFP4 have them (the outer of its two levels; llama.cpp, convert_hf_to_gguf.py)."""
        name = name.removesuffix(".weight") + ".scale"
        return self.values(name, count, count, contents=self._contents) if name in self else None

    def values(
        self, name: str, least: int = 1, most: int = MOST_VALUES, *, contents: bool = True
    ) -> NDArray[np.float32]:
        """So many values of a small F32 tensor, read now, all finite: for what the graph itself is made of. Ones
        without contents, and for a model that is only planned."""
        t = self._find(name)
        if t.type != F32:
            raise self.fail(name, f"type {t.type} found, F32 expected")
        if not least <= math.prod(t.shape) <= most:
            raise self._at_odds(name, f"{math.prod(t.shape)} values found, {least} expected")
        self.looked_at.add(name)
        if not contents or not self._model.headers:
            return np.ones(math.prod(t.shape), dtype=np.float32)
        with open(self._model.paths[t.file], "rb") as file:
            file.seek(t.offset)
            found = np.frombuffer(file.read(t.nbytes), dtype="<f4")
        if len(found) < least or not np.isfinite(found).all():
            raise self.fail(name, "its values are not all finite numbers")
        return found

    def vector(self, name: str, n: int) -> Weight:
        t = self._shape(name, (n,))
        if t.type != F32:
            raise self.fail(name, f"type {t.type} found, F32 expected for a vector")
        return Weight(self._program.weight(t.type, 1, n, t.row_bytes, [self._table.dense(name)]), name, 1, n)

    def optional_vector(self, name: str, n: int) -> Weight | None:
        return self.vector(name, n) if name in self else None

    def rows_view(self, name: str, whole: int, cols: int, first: int, rows: int) -> Weight:
        """Rows [first, first + rows) of a dense matrix of `whole` rows."""
        return Weight(self._dense(self._shape(name, (cols, whole)), rows, first), name, rows, cols)

    def table(self, name: str, rows: int, cols: int) -> Weight:
        """A small F32 matrix that is read row by row (a bias for each expert)."""
        t = self._shape(name, (cols, rows))
        if t.type != F32:
            raise self.fail(name, f"type {t.type} found, F32 expected for a table")
        return Weight(
            self._program.weight(t.type, rows, cols, t.row_bytes, [self._table.dense(name)]), name, rows, cols
        )

    def experts(
        self, name: str, experts: int, rows: int, cols: int, *, first: int = 0, whole: int | None = None
    ) -> Weight:
        """One matrix per expert, merged in `name` or split in one tensor each; first, whole: a view of some rows."""
        whole = rows if whole is None else whole
        try:
            spans = self._table.experts(name)
        except KeyError:
            raise self._at_odds(name, "the tensor is missing") from None
        if len(spans) != experts:
            raise self._at_odds(name, f"{len(spans)} experts found, {experts} expected")
        if name in self:
            t = self._shape(name, (cols, whole, experts))
        else:
            stem, kind = name.split("_exps.", maxsplit=1)[0], name.rsplit(".", 1)[1]
            types = set()
            for e in range(experts):
                t = self._shape(f"{stem}.{e}.{kind}", (cols, whole))
                types.add(t.type)
            if len(types) != 1:
                raise self.fail(name, f"split experts of several types {sorted(types)}")
        scale = self._scale(name, experts)
        number = self._program.weight(t.type, rows, cols, t.row_bytes, spans, first * t.row_bytes, scale)
        return Weight(number, name, rows, cols, experts)

    def gate_up(self, layer: int, experts: int, rows: int, cols: int) -> tuple[Weight, Weight]:
        """Gate and up of a layer's experts, which some files keep as one tensor, gate first."""
        merged = f"blk.{layer}.ffn_gate_up_exps.weight"
        if merged in self:
            return (
                self.experts(merged, experts, rows, cols, first=0, whole=2 * rows),
                self.experts(merged, experts, rows, cols, first=rows, whole=2 * rows),
            )
        return (
            self.experts(f"blk.{layer}.ffn_gate_exps.weight", experts, rows, cols),
            self.experts(f"blk.{layer}.ffn_up_exps.weight", experts, rows, cols),
        )


@dataclass(frozen=True)
class Route:
    chosen: Value
    weights: Value
    used: int
    call: Call


class Graph:
    """Operations in the order in which an architecture calls them. `finish()` makes the program of them. context:
    tokens of the longest sequence."""

    def __init__(self, program: cy.Program, context: int) -> None:
        self._program = program
        self._context = context
        self._calls: list[Call] = []
        self._layer = 0

    def layer(self, number: int) -> None:
        """What follows belongs to this layer."""
        self._layer = number

    def _call(
        self,
        kind: str,
        ins: Sequence[Value | None],
        outs: Sequence[Value],
        *,
        weights: Sequence[Weight | None] = (),
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
        changes: Sequence[Value] = (),
    ) -> Call:
        call = Call(
            kind, self._layer, list(ins), list(outs), list(weights), list(ints), list(floats), list(changes)
        )
        call.selected = any(v.selected for v in ins if v is not None) or (kind == "select")
        for out in outs:
            if out.made_by is None:
                out.made_by = call
        self._calls.append(call)
        return call

    def _new(self, width: int, like: Value | None = None) -> Value:
        return Value(width, selected=like.selected if like else False)

    # --- operations --------------------------------------------------------------------------------------------------

    def embed(self, table: Weight, scale: float = 1.0) -> Value:
        out = Value(table.cols)
        self._call("embed", [], [out], weights=[table], floats=[scale])
        return out

    def rms_norm(self, x: Value, weight: Weight | None, eps: float) -> Value:
        out = self._new(x.width, x)
        self._call("norm", [x], [out], weights=[weight], ints=[1, x.width, x.width, 0, 0], floats=[eps])
        return out

    def norm_heads(
        self,
        x: Value,
        weight: Weight | None,
        eps: float,
        heads: int,
        width: int,
        *,
        stride: int | None = None,
        offset: int = 0,
        l2: bool = False,
    ) -> Value:
        """Norm each head of x by itself, in place."""
        stride = width if stride is None else stride
        self._call(
            "norm", [x], [x], weights=[weight], ints=[heads, width, stride, offset, int(l2)], floats=[eps], changes=[x]
        )
        return x

    @overload
    def matmul(
        self, x: Value, matrix: Weight, /, *, bias: Sequence[Weight | None] = (), exact: bool = False
    ) -> Value: ...
    @overload
    def matmul(
        self, x: Value, one: Weight, two: Weight, /, *more: Weight, bias: Sequence[Weight | None] = (),
        exact: bool = False,
    ) -> tuple[Value, ...]: ...
    def matmul(
        self, x: Value, *matrices: Weight, bias: Sequence[Weight | None] = (), exact: bool = False
    ) -> Value | tuple[Value, ...]:
        """Products with up to four matrices that read the same rows: one value, or a tuple of them. exact: the rows are
        not rounded to 8 bits, for what is narrow and steers much."""
        outs = []
        for m in matrices:
            if m.cols != x.width:
                raise ValueError(f"{m.name}: {m.cols} columns for rows of {x.width}")
            outs.append(self._new(m.rows, x))
        weights: list[Weight | None] = [*matrices, *[None] * (4 - len(matrices)), *bias]
        self._call("matmul", [x], outs, weights=weights, ints=[int(exact), 0, 0, 0])
        return outs[0] if len(outs) == 1 else tuple(outs)

    def heads_matmul(
        self,
        x: Value,
        weight: Weight,
        heads: int,
        rows: int,
        cols: int,
        *,
        in_stride: int | None = None,
        in_offset: int = 0,
        out: Value | None = None,
        out_stride: int | None = None,
        out_offset: int = 0,
        pitch: int | None = None,
        first: int = 0,
        turned: bool = False,
    ) -> Value:
        """For each head its own matrix of rows x cols, which begins `first` rows after each multiple of `pitch` (rows)
        in weight; turned: the file has it transposed."""
        out_stride = rows if out_stride is None else out_stride
        pitch = (cols if turned else rows) if pitch is None else pitch
        in_stride = cols if in_stride is None else in_stride
        fresh = out is None
        if out is None:
            out = self._new(heads * out_stride, x)
        self._call(
            "heads_matmul",
            [x],
            [out],
            weights=[weight],
            changes=[] if fresh else [out],
            ints=[heads, rows, in_stride, in_offset, out_stride, out_offset, cols, pitch, first, int(turned)],
        )
        return out

    def rope(self, width: int, base: float, scaling: Scaling, factors: Factors | None = None) -> int:
        """Angles of a rotary embedding over `width` values (positions.angles), in this program's context. Number of the
        rope."""
        return int(self._program.rope(*angles(width, base, scaling, factors, context=self._context)))

    def rotate(self, x: Value, rope: int, heads: int, stride: int, *, offset: int = 0, neox: bool = True) -> Value:
        """Rotate each head of x in place; stride: floats from head to head."""
        self._call("rope", [x], [x], ints=[rope, heads, stride, offset, int(neox)], changes=[x])
        return x

    def cache(self, heads: int, width: int) -> int:
        """What this layer keeps of each token: heads x width halves. Number of the stream."""
        return self._program.stream(heads, width)

    def store(
        self, stream: int, x: Value, heads: int, width: int, *, offset: int = 0, stride: int | None = None, at: int = 0
    ) -> None:
        self._call("store", [x], [], ints=[stream, heads, width, offset, width if stride is None else stride, at])

    def attention(
        self,
        q: Value,
        keys: int,
        values: int,
        *,
        heads: int,
        kv_heads: int,
        dk: int,
        dv: int,
        scale: float,
        window: int = 0,
        sinks: Weight | None = None,
        softcap: float = 0.0,
        q_stride: int | None = None,
        q_offset: int = 0,
    ) -> Value:
        """Causal attention of q on what the streams hold; window 0: all of it."""
        out = Value(heads * dv)
        self._call(
            "attend",
            [q],
            [out],
            weights=[sinks],
            floats=[scale, softcap],
            ints=[heads, kv_heads, dk, dv, window, keys, values, dk if q_stride is None else q_stride, q_offset],
        )
        return out

    def add(self, a: Value, b: Value) -> Value:
        out = self._new(a.width, a)
        self._call("add", [a, b], [out])
        return out

    def scale(self, x: Value, by: float = 1.0, per_piece: Value | None = None, pieces: int = 1) -> Value:
        """by * x; each of its equal pieces also times its own element of per_piece."""
        out = self._new(x.width, x)
        self._call("scale", [x, per_piece], [out], ints=[pieces], floats=[by])
        return out

    def activate(
        self,
        kind: int,
        gate: Value,
        up: Value | None = None,
        *,
        limit: float = 0.0,
        alpha: float = 0.0,
        pieces: int = 1,
        width: int | None = None,
        gate_at: tuple[int, int] | None = None,
        up_at: tuple[int, int] | None = None,
    ) -> Value:
        """activation(gate) * up, in pieces; gate_at, up_at: offset and stride of the pieces."""
        width = gate.width if width is None else width
        out = self._new(pieces * width, gate)
        g0, gs = gate_at or (0, width)
        u0, us = up_at or (0, width)
        self._call("activate", [gate, up], [out], ints=[kind, pieces, width, g0, gs, u0, us], floats=[limit, alpha])
        return out

    def copy(self, x: Value, out: Value, pieces: int, width: int, at: tuple[int, int], to: tuple[int, int]) -> Value:
        """Pieces of x (offset, stride) into places of out."""
        self._call("copy", [x], [out], ints=[pieces, width, *at, *to], changes=[out])
        return out

    def new(self, width: int, like: Value) -> Value:
        """Rows to be filled by copy or heads_matmul."""
        return self._new(width, like)

    def route(
        self,
        logits: Value,
        used: int,
        *,
        gating: int = SOFTMAX,
        normalise: bool = True,
        scale: float = 1.0,
        bias: Weight | None = None,
        groups: int = 0,
        groups_used: int = 0,
    ) -> Route:
        chosen, weights = Value(used), Value(used)
        call = self._call(
            "route",
            [logits],
            [chosen, weights],
            weights=[bias],
            ints=[used, gating, groups, groups_used, int(normalise)],
            floats=[scale],
        )
        return Route(chosen, weights, used, call)

    def experts(
        self,
        x: Value,
        route: Route,
        gate: Weight | None,
        up: Weight,
        down: Weight,
        *,
        activation: int = SILU,
        limit: float = 0.0,
        alpha: float = 0.0,
        bias: tuple[Weight | None, Weight | None, Weight | None] = (None, None, None),
    ) -> Value:
        out = Value(down.rows)
        self._call(
            "experts",
            [x, route.chosen, route.weights],
            [out],
            weights=[gate, up, down, *bias],
            ints=[route.used, activation],
            floats=[limit, alpha],
        )
        return out

    def convolve(self, x: Value, weight: Weight) -> Value:
        """silu of a causal convolution along the sequence, channel by channel; weight [channels, taps]."""
        out = self._new(x.width, x)
        tail = self._program.tail((weight.cols - 1) * weight.rows)
        self._call("convolve", [x], [out], weights=[weight], ints=[weight.cols, tail])
        return out

    def decay(
        self,
        alpha: Value,
        beta: Value,
        a: Weight,
        bias: Weight,
        heads: int,
        *,
        group: int | None = None,
        alpha_at: tuple[int, int] = (0, 0),
        beta_at: tuple[int, int] = (0, 0),
    ) -> Value:
        """exp(a softplus(alpha + bias)) and sigmoid(beta) of each head. group: heads that stand side by side in
        alpha and beta; at: offset and stride of the groups."""
        out = self._new(2 * heads, alpha)
        group = heads if group is None else group
        self._call("decay", [alpha, beta], [out], weights=[a, bias], ints=[heads, *alpha_at, *beta_at, group])
        return out

    def delta(
        self, x: Value, gates: Value, *, value_heads: int, key_heads: int, dk: int, dv: int, interleaved: bool
    ) -> Value:
        """The gated delta rule (Yang et al., arXiv 2412.06464) over x = [q, k, v]; interleaved: value head h reads key
        head h % key_heads, else h // (value_heads // key_heads)."""
        out = self._new(value_heads * dv, x)
        state = self._program.state(value_heads * dk * dv)
        tail = self._program.delta_tail(value_heads, dk, dv)
        self._call("delta", [x, gates], [out], ints=[value_heads, key_heads, dk, dv, state, int(interleaved), tail])
        return out

    def select(self, x: Value) -> Value:
        out = Value(x.width, selected=True)
        self._call("select", [x], [out])
        return out

    def logits(self, x: Value, output: Weight) -> None:
        self._call("matmul", [x], [], weights=[output], ints=[0, 0, 0, 1])

    def finish(self) -> None:
        """Make the program of all calls so far."""
        lower(self._calls, self._program)
