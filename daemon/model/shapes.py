"""Shapes of real models by name: hyperparameters as GGUF metadata, without weights.

Owns the numbers; layouts.py turns them into tensors.
"""
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .layouts import tensor_list


@dataclass(frozen=True)
class Shape:
    """A model without weights. `hyper` has the metadata keys without the architecture's prefix."""

    name: str
    title: str
    architecture: str
    hyper: Mapping[str, Any]
    vocabulary: int
    source: str
    pre: str = "qwen2"
    tied: bool = False
    context: int = field(default=0)

    @property
    def n_layer(self) -> int:
        return int(self.hyper["block_count"])

    @property
    def n_expert(self) -> int:
        return int(self.hyper.get("expert_count", 0))

    @property
    def n_expert_used(self) -> int:
        return int(self.hyper.get("expert_used_count", 0))

    @property
    def lead(self) -> int:
        """Leading layers without experts."""
        return int(self.hyper.get("leading_dense_block_count", 0))

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, shape with columns first) of every tensor, in the order of the file."""
        return tensor_list(self.architecture, self.hyper, self.vocabulary, self.tied)

    def metadata(self) -> dict[str, Any]:
        """The metadata about the architecture, with prefixes."""
        return {f"{self.architecture}.{key}": value for key, value in self.hyper.items()}

    def cut(self, layers: int, experts: int | None = None) -> "Shape":
        """The same model with its first `layers` layers only, and perhaps fewer experts. Layers that only predict
        further tokens go first."""
        hyper = dict(self.hyper)
        hyper["block_count"] = layers
        hyper.pop("nextn_predict_layers", None)
        for key, value in hyper.items():
            if isinstance(value, list) and len(value) >= self.n_layer:
                hyper[key] = value[:layers]
        if experts is not None and experts != self.n_expert:
            hyper["expert_count"] = experts
        return replace(self, hyper=hyper)


def _qwen3moe(name: str, title: str, source: str, layers: int, n: int, heads: int, kv: int, ff: int, expert_ff: int,
              experts: int, used: int, **other: Any) -> Shape:
    hyper = {
        "block_count": layers, "context_length": 40960, "embedding_length": n, "feed_forward_length": ff,
        "attention.head_count": heads, "attention.head_count_kv": kv, "attention.key_length": 128,
        "attention.value_length": 128, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6,
        "rope.dimension_count": 128, "expert_count": experts, "expert_used_count": used,
        "expert_feed_forward_length": expert_ff,
    }
    vocabulary = other.pop("vocabulary", 151936)
    return Shape(name, title, "qwen3moe", {**hyper, **other}, vocabulary, source)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _qwen3moe("qwen3-30b-a3b", "Qwen3-30B-A3B", "config.json of Qwen/Qwen3-30B-A3B",
                  48, 2048, 32, 4, 6144, 768, 128, 8),
        _qwen3moe("qwen3-235b-a22b", "Qwen3-235B-A22B", "config.json of Qwen/Qwen3-235B-A22B",
                  94, 4096, 64, 4, 12288, 1536, 128, 8),
        _qwen3moe("tiny-moe", "Tiny MoE", "made up for tests", 2, 256, 4, 2, 256, 256, 16, 4,
                  vocabulary=1024, **{"attention.key_length": 64, "attention.value_length": 64,
                                      "rope.dimension_count": 64, "context_length": 4096}),
    )
}


def find_shape(name: str) -> Shape:
    """The shape called `name`, whatever its capitals and a maker's prefix. KeyError with the known names."""
    wanted = name.lower().rsplit("/", 1)[-1].removesuffix(".gguf").replace("_", "-")
    if wanted in SHAPES:
        return SHAPES[wanted]
    raise KeyError(f"no shape called {name}; known are {', '.join(SHAPES)}")
