"""The architectures, one file each, and the registry that finds them by name."""

from __future__ import annotations

import importlib
from types import ModuleType

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
