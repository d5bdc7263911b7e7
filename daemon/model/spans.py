"""The span table: every byte range of a model that can be needed by itself, as parallel numpy arrays.

Owns the roles (dense, or which expert of which layer and part) that tensor names give; refuses expert tensors that do
not divide into their experts. Holds no state: what is resident, hot or planned belongs to others.
"""
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .gguf import ModelError, ModelFile, Tensor

PARTS = ("gate", "up", "down", "gate_up")
DENSE = -1

# Layer; then part of a merged expert tensor, or part and number of a split expert.
_NAME = re.compile(r"blk\.(\d+)\.(?:ffn_(?:(gate|up|down|gate_up)_exps|(gate|up|down)\.(\d+))\.weight$)?")
_ORDINAL = {part: i for i, part in enumerate(PARTS)}

Ints = npt.NDArray[np.int32]
Number = TypeVar("Number", bound=np.integer)


@dataclass(frozen=True)
class SpanTable:
    """Spans in the order in which a step needs them: what no layer owns and comes first (embeddings), then layer by
    layer the dense ones before the experts, then the output. Arrays of one value per span:

    file int32; offset, nbytes uint64; layer int32 (-1 none); expert int32 (-1 dense); part int8 (index of PARTS, -1
    dense); tensor int32 (index of `names`, the names of all the files' tensors). A tensor that is left out, or has no
    bytes, has no span: nothing populates, locks or counts it.
    """

    file: Ints
    offset: npt.NDArray[np.uint64]
    nbytes: npt.NDArray[np.uint64]
    layer: Ints
    expert: Ints
    part: npt.NDArray[np.int8]
    tensor: Ints
    names: list[str]
    n_layer: int
    n_expert: int
    _dense: dict[str, int] = field(repr=False)
    _experts: dict[str, Ints] = field(repr=False)

    def __len__(self) -> int:
        return len(self.file)

    @property
    def is_expert(self) -> npt.NDArray[np.bool_]:
        return self.expert >= 0

    def dense(self, name: str) -> int:
        """Span of the dense tensor `name`. KeyError when there is none."""
        return self._dense[name]

    @property
    def rows_only(self) -> Ints:
        """Dense spans of which a step reads its tokens' rows and no more: an embedding that is not the output too."""
        names = ("token_embd.weight", "output.weight")
        return np.array([self._dense[names[0]]] if all(name in self._dense for name in names) else [], np.int32)

    def experts(self, name: str) -> Ints:
        """Spans [n_expert] of the expert tensor `blk.N.ffn_PART_exps.weight`, merged or split in the file alike."""
        return self._experts[name]

    def expert_tensors(self, layer: int) -> list[tuple[str, Ints]]:
        """Name `blk.N.ffn_PART_exps.weight` and spans [n_expert] of each expert tensor of a layer."""
        names = [f"blk.{layer}.ffn_{part}_exps.weight" for part in PARTS]
        return [(name, self._experts[name]) for name in names if name in self._experts]

    def expert_spans(self, layer: int, expert: int) -> Ints:
        """Spans of all parts of one expert; empty in a layer without experts."""
        rows = (self._experts.get(f"blk.{layer}.ffn_{part}_exps.weight") for part in PARTS)
        return np.array([row[expert] for row in rows if row is not None], np.int32)

    def describe(self, span: int) -> str:
        """The span in words, for messages."""
        name = self.names[self.tensor[span]]
        return f"{name}, expert {self.expert[span]}" if self.expert[span] >= 0 else name

    def failure(self, span: int, found: tuple[int, int] | None, paths: Sequence[str]) -> str:
        """The sentence about a span that could not be read; found: errno and byte as the populate queue has them."""
        text = f"{self.describe(span)} could not be read"
        if found is None:
            return text
        text += f": {os.strerror(found[0])} at byte {found[1]}"
        return text + (f" of {os.path.basename(paths[self.file[span]])}" if len(paths) > 1 else "")

    def expert_layers(self) -> list[int]:
        """Layers that have experts, in order."""
        return sorted({int(name.split(".")[1]) for name in self._experts})

    @classmethod
    def build(cls, model: ModelFile, left_out: Collection[str] = ()) -> "SpanTable":
        """Classify every tensor of the model but those `left_out`. ModelError for experts that do not divide or are not
        complete."""
        return _Builder(model, left_out).build()


class _Group(NamedTuple):
    """Consecutive spans of equal size: one dense tensor, one merged expert tensor, or one split expert."""

    tensor: Tensor
    layer: int
    part: int
    expert: int  # the first one's; DENSE
    spans: int


class _Builder:
    def __init__(self, model: ModelFile, left_out: Collection[str]):
        self.model = model
        self.names = list(model.tensors)
        self.number = {name: number for number, name in enumerate(self.names)}
        kept = [tensor for tensor in model.tensors.values() if tensor.nbytes and tensor.name not in left_out]
        self.groups = [self._classify(tensor) for tensor in kept]
        self.n_layer = 1 + max((group.layer for group in self.groups), default=-1)

    def _classify(self, tensor: Tensor) -> _Group:
        name = _NAME.match(tensor.name)
        if not name:
            return _Group(tensor, -1, -1, DENSE, 1)
        layer, merged, split, number = int(name[1]), name[2], name[3], int(name[4] or 0)
        if layer >= 1 << 20 or number >= 1 << 20:
            raise self._bad(tensor, f"there is no layer number {layer} or expert number {number}")
        if merged:
            count = tensor.shape[2] if len(tensor.shape) == 3 else 0
            if count == 0 or tensor.nbytes % count:
                raise self._bad(tensor, f"an expert tensor has three dimensions, this one {list(tensor.shape)}")
            return _Group(tensor, layer, _ORDINAL[merged], 0, count)
        if split:
            return _Group(tensor, layer, _ORDINAL[split], number, 1)
        return _Group(tensor, layer, -1, DENSE, 1)

    def _bad(self, tensor: Tensor, reason: str) -> ModelError:
        return ModelError(self.model.paths[tensor.file], reason, tensor.name, tensor.offset)

    def _order(self, i: int) -> tuple[int, bool, int, int, int]:
        group = self.groups[i]
        layer = group.layer
        if layer < 0 and group.tensor.name.startswith("output"):
            layer = self.n_layer
        # Split experts lie part by part in the table as merged ones do, whatever their order in the file.
        return layer, group.expert >= 0, group.part, group.expert, i

    def build(self) -> SpanTable:
        order = sorted(range(len(self.groups)), key=self._order)
        groups = [self.groups[i] for i in order]
        count = np.array([group.spans for group in groups], np.int64)
        first = np.concatenate(([0], np.cumsum(count)[:-1])) if groups else np.zeros(0, np.int64)
        within = np.arange(int(count.sum())) - np.repeat(first, count)

        def spread(values: list[int], dtype: type[Number]) -> npt.NDArray[Number]:
            return np.repeat(np.array(values, dtype), count)

        nbytes = spread([group.tensor.nbytes // group.spans for group in groups], np.uint64)
        expert = spread([group.expert for group in groups], np.int32)
        layer = spread([group.layer for group in groups], np.int32)
        dense, experts = self._names(groups, first)
        return SpanTable(
            file=spread([group.tensor.file for group in groups], np.int32),
            offset=spread([group.tensor.offset for group in groups], np.uint64) + nbytes * within.astype(np.uint64),
            nbytes=nbytes,
            layer=layer,
            expert=np.where(expert >= 0, expert + within, DENSE).astype(np.int32),
            part=spread([group.part for group in groups], np.int8),
            tensor=spread([self.number[group.tensor.name] for group in groups], np.int32),
            names=self.names,
            n_layer=self.n_layer,
            n_expert=max((len(ids) for ids in experts.values()), default=0),
            _dense=dense,
            _experts=experts,
        )

    def _names(self, groups: list[_Group], first: npt.NDArray[np.int64]) -> tuple[dict[str, int], dict[str, Ints]]:
        dense: dict[str, int] = {}
        experts: dict[str, Ints] = {}
        split: dict[str, list[tuple[int, _Group]]] = {}
        for group, span in zip(groups, first.tolist(), strict=True):
            name = group.tensor.name
            if group.expert == DENSE:
                dense[name] = span
            elif group.spans > 1 or name.endswith("_exps.weight"):
                experts[name] = np.arange(span, span + group.spans, dtype=np.int32)
            else:
                logical = f"blk.{group.layer}.ffn_{PARTS[group.part]}_exps.weight"
                split.setdefault(logical, []).append((span, group))
        for logical, members in split.items():
            if logical in experts:
                raise self._bad(members[0][1].tensor, f"the experts are there merged, as {logical}, as well")
            for number, (_, group) in enumerate(members):
                if group.expert != number:
                    raise self._bad(members[-1][1].tensor, f"expert {number} of {logical} is missing")
                if (group.tensor.shape, group.tensor.type) != (members[0][1].tensor.shape, members[0][1].tensor.type):
                    raise self._bad(group.tensor, f"its shape or type differs from expert 0's of {logical}")
            experts[logical] = np.array([span for span, _ in members], np.int32)
        return dense, experts
