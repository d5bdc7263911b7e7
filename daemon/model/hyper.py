"""Hyperparameters as a model's metadata declares them.

Owns the reading and naming of metadata keys; whether the tensors agree is checked where they are named (graph.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MISSING = object()


class Keys:
    """Metadata of one architecture: `keys("block_count")` is `ARCH.block_count`; KeyError without key and default."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.architecture: str = metadata["general.architecture"]

    def __call__(self, name: str, default: Any = _MISSING) -> Any:
        key = f"{self.architecture}.{name}"
        value = self.metadata.get(key, default)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def per_layer(self, name: str, layers: int, default: Any = _MISSING) -> list[Any]:
        """A key that may be one value or an array with one per layer."""
        value = self(name, default)
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list):
            if len(value) != layers:
                raise ValueError(f"{self.architecture}.{name} has {len(value)} values for {layers} layers")
            return value
        return [value] * layers


@dataclass(kw_only=True)
class Hyper:
    """What every architecture has; an architecture keeps its own extras in `more`.

    Widths in elements; per-layer lists have one entry for each layer that runs.
    """

    architecture: str
    n_layer: int
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
    more: dict[str, Any] = field(default_factory=dict)


def common(keys: Keys, n_vocab: int) -> Hyper:
    """The keys that nearly all architectures share, with GGUF's defaults."""
    blocks = int(keys("block_count"))
    layers = blocks - int(keys("nextn_predict_layers", 0))  # the last ones serve multi-token prediction only
    heads = [int(n) for n in keys.per_layer("attention.head_count", blocks)][:layers]
    embd = int(keys("embedding_length"))
    head_k = int(keys("attention.key_length", embd // max(heads[0], 1)))
    return Hyper(
        architecture=keys.architecture,
        n_layer=layers,
        n_embd=embd,
        n_vocab=n_vocab,
        n_context_train=int(keys("context_length", 0)),
        n_head=heads,
        n_head_kv=[int(n) for n in keys.per_layer("attention.head_count_kv", blocks, heads[0])][:layers],
        head_k=head_k,
        head_v=int(keys("attention.value_length", head_k)),
        n_ff=int(keys.per_layer("feed_forward_length", blocks, 0)[0]),
        n_expert=int(keys("expert_count", 0)),
        n_expert_used=int(keys("expert_used_count", 0)),
        n_ff_expert=int(keys("expert_feed_forward_length", 0)),
        n_ff_shared=int(keys("expert_shared_feed_forward_length", 0)),
        epsilon=float(keys("attention.layer_norm_rms_epsilon", 1e-6)),
        rope_base=float(keys("rope.freq_base", 10000.0)),
        rope_width=int(keys("rope.dimension_count", head_k)),
    )
