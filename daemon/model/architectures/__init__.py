"""The architectures, one file each, and the registry that finds them by name."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..hyper import Hyper

KNOWN: dict[str, str] = {
    "deepseek2": "deepseek2",
    "glm4moe": "glm4moe",
    "gpt-oss": "gpt_oss",
    "llama": "llama",
    "minimax-m2": "minimax_m2",
    "olmoe": "olmoe",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen35moe": "qwen35moe",
    "qwen3moe": "qwen3moe",
    "qwen3next": "qwen35moe",
    "step35": "step35",
}


def find(name: str) -> ModuleType:
    """The module with hyperparameters(keys, n_vocab), tensors(h, t) and graph(h, w, g). KeyError when unknown."""
    return importlib.import_module(f"{__name__}.{KNOWN[name]}")


def describe(model: Any) -> tuple[ModuleType, Hyper]:
    """A model's architecture and hyperparameters. Raises ModelError when either is not understood."""
    from ..gguf import ModelError
    from ..hyper import Keys

    name = model.metadata.get("general.architecture", "")
    if name not in KNOWN:
        known = ", ".join(sorted(KNOWN))
        raise ModelError(model.paths[0], f"architecture {name!r} is unknown; known are {known}")
    module = find(name)
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(model.paths[0], "the tensor is missing", tensor="token_embd.weight")
    try:
        return module, module.hyperparameters(Keys(model.metadata), int(embedding.shape[1]))
    except KeyError as error:
        raise ModelError(model.paths[0], f"metadata key {error.args[0]} is missing") from error
    except (ValueError, TypeError) as error:
        raise ModelError(model.paths[0], f"metadata: {error}") from error


def check(model: Any, table: Any) -> None:
    """Hold every tensor that the architecture names against the hyperparameters. Raises ModelError."""
    from ..graph import Tensors

    class Nowhere:
        """Takes weights and keeps none: nothing is run here."""

        def weight(self, *parts: Any) -> int:
            return 0

    module, hyper = describe(model)
    module.tensors(hyper, Tensors(model, table, Nowhere()))
