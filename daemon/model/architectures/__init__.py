"""The architectures, one file each; the registry that finds them by name; what a model must be to be run.

Owns the account of a file's tensors: which the architecture reads, and why any other is there. Refuses, as ModelError,
metadata and tensors that are at odds.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from types import ModuleType

from ..gguf import ModelError, ModelFile
from ..hyper import MOST_WHOLE, BadKey, Hyper, Keys
from ..spans import SpanTable

_LAYER = re.compile(r"blk\.(\d+)\.")
_PREDICTION = re.compile(r"blk\.(\d+)\.nextn\.")
_SENSES = re.compile(r"(v|a|mm|resampler|adapter)\.")  # of encoders, which have files of their own elsewhere

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
    """The module with hyperparameters(keys), tensors(h, t) and graph(h, w, g). KeyError when unknown."""
    return importlib.import_module(f"{__name__}.{KNOWN[name]}")


def describe(model: ModelFile) -> tuple[ModuleType, Hyper]:
    """A model's architecture and hyperparameters. Raises ModelError when either is not understood."""
    module, _, hyper = _read(model)
    return module, hyper


def _read(model: ModelFile) -> tuple[ModuleType, Keys, Hyper]:
    name = model.architecture
    if name not in KNOWN:
        known = ", ".join(sorted(KNOWN))
        raise ModelError(model.paths[0], f"{name!r} is unknown; known are {known}", key="general.architecture")
    module = find(name)
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(model.paths[0], "the tensor is missing", tensor="token_embd.weight")
    if len(embedding.shape) != 2 or embedding.nbytes == 0 or max(embedding.shape) > MOST_WHOLE:
        raise ModelError(model.paths[0], f"shape {list(embedding.shape)} is no vocabulary", tensor="token_embd.weight")
    layers = _numbers(model, _LAYER)
    if layers != list(range(len(layers))):
        gap = next(number for number, found in enumerate(layers) if number != found)
        raise ModelError(model.paths[0], f"layer {gap} has no tensors, layer {layers[-1]} has", tensor=f"blk.{gap}")
    keys = Keys(model.metadata, embedding.shape[1], embedding.shape[0], len(layers), _numbers(model, _PREDICTION))
    try:
        return module, keys, module.hyperparameters(keys)
    except BadKey as error:
        raise ModelError(model.paths[0], error.reason, key=error.key) from None


def layers_of(model: ModelFile) -> int:
    """Layers that the file has tensors of."""
    return len(_numbers(model, _LAYER))


def _numbers(model: ModelFile, pattern: re.Pattern[str]) -> list[int]:
    return sorted({int(found[1]) for name in model.tensors if (found := pattern.match(name))})


@dataclass(frozen=True)
class Checked:
    """A model whose metadata and tensors agree.

    table: spans of the tensors that steps read, and of no others. left_out: names of the tensors that they do not read,
    by reason (a key of REASONS).
    """

    hyper: Hyper
    table: SpanTable
    left_out: dict[str, list[str]]

    def warnings(self) -> list[tuple[str, str]]:
        """Code and text about what somebody may miss in the answers."""
        found = []
        for reason, code in (("unknown", "tensors-unknown"), ("senses", "tensors-senses")):
            if names := self.left_out.get(reason):
                shown = ", ".join(name[:SHOWN] for name in names[:NAMED]) + ", ..." * (len(names) > NAMED)
                found.append((code, f"{len(names)} tensors are not read, {REASONS[reason]}: {shown}"))
        return found


def check(model: ModelFile) -> Checked:
    """Hold every tensor that the architecture names against the hyperparameters, and account for every other. Raises
    ModelError."""
    from ..graph import Tensors

    class Nowhere:
        """Takes weights and keeps none: nothing is run here."""

        def weight(self, *parts: object) -> int:
            return 0

    module, keys, hyper = _read(model)
    table = SpanTable.build(model)
    named = Tensors(model, table, Nowhere(), keys, contents=False)
    try:
        module.tensors(hyper, named)
    except BadKey as error:
        raise ModelError(model.paths[0], error.reason, key=error.key) from None
    left_out: dict[str, list[str]] = {}
    for name in model.tensors:
        if name not in named.read:
            reason = "values" if name in named.looked_at else _reason(model, name, hyper, named.read)
            left_out.setdefault(reason, []).append(name)
    if left_out:
        table = SpanTable.build(model, frozenset(name for names in left_out.values() for name in names))
    return Checked(hyper, table, left_out)


NAMED, SHOWN = 8, 64  # tensors that a warning names, characters of each

# Why a tensor is in the file and read by no step.
REASONS = {
    "values": "what they hold was read when the model was opened",
    "inputs": "they say how activations would be rounded to 4 bits, to which none are",
    "prediction": "layers that only predict further tokens are not run",
    "senses": "pictures and sound are not understood",
    "unknown": "the architecture has no use for them",
}


def _reason(model: ModelFile, name: str, hyper: Hyper, read: set[str]) -> str:
    """Why a tensor that is not read is there. Raises ModelError for a scale that answers would need."""
    layer = _LAYER.match(name)
    if layer and int(layer[1]) >= hyper.n_layer:
        return "prediction"  # beyond block_count there is none: see hyper.common
    stem, _, kind = name.rpartition(".")
    if kind == "scale" and (f"{stem}.weight" in read or stem == "output"):
        raise ModelError(model.paths[0], f"{stem}.weight takes part in no product that could be scaled", tensor=name)
    if kind == "input_scale" and f"{stem}.weight" in read:
        return "inputs"
    return "senses" if _SENSES.match(name) else "unknown"
