"""The architectures, one file each, and the registry that finds them by name."""

from __future__ import annotations

import importlib
from types import ModuleType

KNOWN: dict[str, str] = {
    "qwen3moe": "qwen3moe",
}


def find(name: str) -> ModuleType:
    """The module with hyperparameters(keys, n_vocab), tensors(h, t) and graph(h, w, g). KeyError when unknown."""
    return importlib.import_module(f"{__name__}.{KNOWN[name]}")
