"""Hyperparameters: the one place where a model's metadata becomes numbers that the rest may trust.

Owns the readers, each of which holds a key's value against its type and its bounds, and what holds between the keys
that nearly all architectures share. Refuses (BadKey, which names the key) whatever is missing, of another type, out of
range or at odds with another key. Whether tensors have the shapes that these numbers promise is checked where they are
named (graph.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeGuard, TypeVar, cast

from hearthd.daemon.model import positions
from hearthd.daemon.model.positions import Scaling

Found = TypeVar("Found")
Word = TypeVar("Word", bound=str | int)

Scalar = bool | int | float | str
Metadata = Mapping[str, object]  # of a file that anybody may have made: who reads a value looks at what it is

MOST_WHOLE: Final = 2**31 - 1  # the kernels count in 32 bits
SHOWN = 40  # characters of a refused text


class _Required:
    """In place of a default: the key must be there."""


REQUIRED: Final = _Required()


class BadKey(ValueError):
    """A value of the metadata that cannot be used: its key, and why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"key {key}: {reason}")
        self.key = key
        self.reason = reason


class Keys:
    """Metadata of one architecture: readers take `block_count` for the key `ARCH.block_count`, and remember it.

    Every reader raises BadKey for a value of another type or out of its bounds, and for a missing key without default;
    a default is the caller's own and is not checked. n_vocab, n_embd: rows and columns of the embedding; layers: of
    which the file has tensors, without a gap; predicting: those with tensors for predicting further tokens.
    """

    def __init__(
        self, metadata: Metadata, n_vocab: int, n_embd: int, layers: int, predicting: list[int]
    ) -> None:
        self._metadata = metadata
        self.architecture = str(metadata["general.architecture"])
        self.n_vocab = n_vocab
        self.n_embd = n_embd
        self.layers = layers
        self.predicting = predicting
        self.seen: dict[str, int] = {}  # whole numbers that were read: what shapes are made of

    def __contains__(self, name: str) -> bool:
        return self.name(name) in self._metadata

    def name(self, name: str) -> str:
        """The key's whole name."""
        return f"{self.architecture}.{name}"

    def bad(self, name: str, reason: str) -> BadKey:
        """The error for a value that contradicts another: to be raised by who compares them."""
        value = self._metadata.get(self.name(name))
        return BadKey(self.name(name), f"{shown(value)}: {reason}" if value is not None else reason)

    def said(self) -> str:
        """The whole numbers that were read, in words: what the shapes of tensors are made of."""
        return ", ".join(f"{name} {value}" for name, value in self.seen.items())

    # -- one value ---------------------------------------------------------------------------------------------------

    def whole(self, name: str, default: int | _Required = REQUIRED, *, least: int = 0, most: int = MOST_WHOLE) -> int:
        """A whole number within least to most."""
        if name not in self:
            return self._default(name, default)
        self.seen[name] = found = self._whole(name, self._value(name), least, most)
        return found

    def real(
        self, name: str, default: float | _Required = REQUIRED, *, least: float = -1e30, most: float = 1e30
    ) -> float:
        """A finite number within least to most. A whole number is one, too."""
        return self._real(name, self._value(name), least, most) if name in self else self._default(name, default)

    def flag(self, name: str, default: bool | _Required = REQUIRED) -> bool:
        """True or false; the numbers 1 and 0 say the same."""
        return self._flag(name, self._value(name)) if name in self else self._default(name, default)

    def choice(self, name: str, known: Mapping[Word, Found], default: Found | _Required = REQUIRED) -> Found:
        """What `known` has for the value, a text or a whole number; any other is refused, and the known ones named."""
        if name not in self:
            return self._default(name, default)
        value = self._value(name)
        # True == 1 in a mapping, and arrays are no keys of one.
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value not in known:
            raise BadKey(self.name(name), f"{shown(value)} is not known; known are {', '.join(map(str, known))}")
        return known[cast(Word, value)]

    # -- one for each layer ------------------------------------------------------------------------------------------

    def wholes(
        self, name: str, layers: int, default: int | _Required = REQUIRED, *, least: int = 0, most: int = MOST_WHOLE
    ) -> list[int]:
        """A whole number per layer, from one value for all or an array of exactly so many."""
        if name not in self:
            return [self._default(name, default)] * layers
        found = [self._whole(name, value, least, most) for value in self._each(name, layers)]
        self.seen[name] = found[0]
        return found

    def reals(
        self,
        name: str,
        layers: int,
        default: float | _Required = REQUIRED,
        *,
        least: float = -1e30,
        most: float = 1e30,
    ) -> list[float]:
        """A finite number per layer."""
        if name not in self:
            return [self._default(name, default)] * layers
        return [self._real(name, value, least, most) for value in self._each(name, layers)]

    def flags(self, name: str, layers: int, default: bool | _Required = REQUIRED) -> list[bool]:
        """True or false per layer."""
        if name not in self:
            return [self._default(name, default)] * layers
        return [self._flag(name, value) for value in self._each(name, layers)]

    # -- how -----------------------------------------------------------------------------------------------------------

    def _value(self, name: str) -> object:
        return self._metadata[self.name(name)]

    def _default(self, name: str, default: Found | _Required) -> Found:
        if isinstance(default, _Required):
            raise BadKey(self.name(name), "is missing")
        return default

    def _each(self, name: str, layers: int) -> Sequence[object]:
        value = self._value(name)
        if is_array(value):
            if len(value) != layers:
                raise BadKey(self.name(name), f"{len(value)} values for {layers} layers")
            return list(value)
        return [value] * layers

    def _whole(self, name: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadKey(self.name(name), f"{shown(value)} is no whole number")
        if not least <= value <= most:
            raise BadKey(self.name(name), f"{value} is not within {least} to {most}")
        return value

    def _real(self, name: str, value: object, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadKey(self.name(name), f"{shown(value)} is no number")
        if not least <= value <= most:  # NaN is not, either
            raise BadKey(self.name(name), f"{value} is not within {least:g} to {most:g}")
        return float(value)

    def _flag(self, name: str, value: object) -> bool:
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            raise BadKey(self.name(name), f"{shown(value)} is neither true nor false")
        return bool(value)


class Array(Protocol):
    """A list of the metadata, as the header's reader gives it (cyext.gguf_header.Array) or as Python has it."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[object]: ...
    def __getitem__(self, i: int, /) -> object: ...


def is_array(value: object) -> TypeGuard[Array]:
    """An array of the metadata, as the header's reader gives it or as a list."""
    return hasattr(value, "tolist") or isinstance(value, list)


def shown(value: object) -> str:
    """A value of the metadata for a message: short, whatever it is."""
    if is_array(value):
        return f"an array of {len(value)}"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@dataclass(kw_only=True)
class Hyper:
    """What every architecture has; an architecture keeps its own extras in `more`.

    Widths in elements; per-layer lists have one entry for each layer that runs.
    """

    architecture: str
    n_layer: int
    n_block: int  # layers that the metadata counts: those that run, and those that only predict further tokens
    n_embd: int
    n_vocab: int
    n_context_train: int
    n_head: list[int]
    n_head_kv: list[int]
    head_k: int  # width of a query or key head
    head_v: int
    n_ff: int = 0  # of a dense layer
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int = 0
    n_ff_shared: int = 0
    epsilon: float = 1e-6
    rope_base: float = 10000.0
    rope_width: int = 0
    scaling: Scaling = field(default_factory=Scaling)  # of positions
    more: dict[str, Any] = field(default_factory=dict)

    def heads(self, layer: int) -> tuple[int, int]:
        """Heads of queries, and of keys and values, of a layer that attends. BadKey when they do not go together."""
        heads, kv = self.n_head[layer], self.n_head_kv[layer]
        if heads < 1:
            raise BadKey(f"{self.architecture}.attention.head_count", f"layer {layer} attends with {heads} heads")
        if kv < 1 or heads % kv:
            reason = f"{kv} heads of keys cannot be shared by {heads} (attention.head_count) of queries, layer {layer}"
            raise BadKey(f"{self.architecture}.attention.head_count_kv", reason)
        return heads, kv


BASES = {"least": 1.0001, "most": 1e15}  # of a rotation: at 1 and below the angles no longer tell positions apart
EPSILONS = {"least": 1e-20, "most": 1.0}  # of a norm: below, a row of zeros divides by zero in 32 bits


def common(keys: Keys) -> Hyper:
    """The keys that nearly all architectures share, with GGUF's defaults."""
    blocks = keys.whole("block_count", least=1)
    predicting = keys.whole("nextn_predict_layers", 0)  # the last layers serve multi-token prediction only
    if predicting >= blocks:
        raise keys.bad("nextn_predict_layers", f"of {blocks} layers (block_count) at least one must run")
    layers = blocks - predicting
    # Before any list of that length is made. Files exist that have left the predicting layers out.
    if not layers <= keys.layers <= blocks:
        raise keys.bad("block_count", f"there are tensors of {keys.layers} layers, {layers} are to run")
    if keys.predicting != list(range(layers, keys.layers)):
        which = ", ".join(map(str, keys.predicting)) or "none"
        raise keys.bad("nextn_predict_layers", f"of {blocks} layers (block_count), {which} have tensors for it")
    embd = keys.whole("embedding_length", least=1)
    if embd != keys.n_embd:
        raise keys.bad("embedding_length", f"rows of token_embd.weight have {keys.n_embd} values")
    heads = keys.wholes("attention.head_count", blocks)
    head_k = keys.whole("attention.key_length", embd // max(heads[0], 1), least=1)
    experts = keys.whole("expert_count", 0)
    h = Hyper(
        architecture=keys.architecture,
        n_layer=layers,
        n_block=blocks,
        n_embd=embd,
        n_vocab=keys.n_vocab,
        n_context_train=keys.whole("context_length", 0),
        n_head=heads[:layers],
        n_head_kv=keys.wholes("attention.head_count_kv", blocks, heads[0])[:layers],
        head_k=head_k,
        head_v=keys.whole("attention.value_length", head_k, least=1),
        n_ff=keys.wholes("feed_forward_length", blocks, 0)[0],
        n_expert=experts,
        n_expert_used=keys.whole("expert_used_count", 0, least=1 if experts else 0),
        n_ff_expert=keys.whole("expert_feed_forward_length", 0),
        n_ff_shared=keys.whole("expert_shared_feed_forward_length", 0),
        epsilon=keys.real("attention.layer_norm_rms_epsilon", 1e-6, **EPSILONS),
        rope_base=keys.real("rope.freq_base", 10000.0, **BASES),
        rope_width=rope_width(keys, head_k, head_k),
        scaling=positions.scaling(keys),
    )
    if experts and not 1 <= h.n_expert_used <= experts:
        raise keys.bad(
            "expert_used_count", f"of {experts} experts (expert_count) at least one must be used, at most all"
        )
    return h


def rope_width(keys: Keys, most: int, default: int | _Required = REQUIRED, *, part: int = 1) -> int:
    """Elements of a head that are rotated, in pairs: at most so many. part: a rope that takes only the first of so many
    equal parts must find pairs there, too."""
    width = keys.whole("rope.dimension_count", default)
    name = "rope.dimension_count" if "rope.dimension_count" in keys else "attention.key_length"
    if not 2 <= width <= most:
        raise keys.bad(name, f"not within 2 to the {most} values that can be rotated")
    if width % (2 * part):
        raise keys.bad(name, f"{width // part} values of a head cannot be rotated in pairs")
    return width
