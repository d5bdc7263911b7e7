"""What a model would take on a machine, as data: bytes by role and type, cache, what the budget admits, each option.

Owns the arithmetic and says of every number whether it was measured or assumed; opens no weights, changes nothing and
prints nothing. Works for a model file as for a real model that is known only by name.
"""
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import Config
from . import architectures
from .gguf import TYPE_NAMES, ModelFile, Tensor, open_model
from .hyper import Hyper
from .need import need
from .shapes import Shape, find_shape
from .spans import SpanTable
from .synth import plan_tensors
from .synth.write import padded

ASSUMED_DISK_RATE = 1e9  # bytes a second, where there is no file to measure with
USUAL = Config()
CONTEXT = 4096           # tokens of a session, where nobody says
PROMPT = 512             # tokens of the first prompt that the options are compared by


@dataclass(frozen=True)
class Machine:
    """ram, available, budget in bytes; disk_rate in bytes a second."""

    ram: int
    available: int
    budget: int
    budget_reason: str
    disk_rate: float = ASSUMED_DISK_RATE
    disk_measured: bool = False


def plan(model: ModelFile | Shape | str, machine: Machine, *, recipe: str | None = None,
         context: int = CONTEXT, sessions: int = USUAL.sessions,
         batch: int = USUAL.batch) -> dict[str, Any]:  # fmt: skip
    """What `model` takes on `machine`.

    model: a str is a file, a Hugging Face cache name or, if there is no such file, the name of a shape. recipe: the
    types that a shape is planned with (MXFP4 for gpt-oss, which is published so, else Q4_K_M). sessions: how many
    answer at a time, of `context` tokens at most; batch: rows of a step.

    ModelError, KeyError, ValueError: no such model, shape or recipe.
    """
    from ..residency.budget import Sessions

    if isinstance(model, str):
        model = find_model(model)
    if isinstance(model, Shape):
        recipe = recipe or ("MXFP4" if model.architecture == "gpt-oss" else "Q4_K_M")
        made = imagine(model, recipe)
    else:
        made, recipe = model, None
    checked = architectures.check(made)
    hyper, table = checked.hyper, checked.table
    expert = table.is_expert
    dense_bytes = int(table.nbytes[~expert].sum())
    expert_bytes = int(table.nbytes[expert].sum())
    left_out = {reason: sum(made.tensors[name].nbytes for name in names) for reason, names in checked.left_out.items()}
    cache = _cache(made, checked, context, sessions, batch)
    aside = int(Sessions(cache["bytes"]).aside(machine.budget))
    admitted = min(max(machine.budget - dense_bytes - aside, 0), expert_bytes)
    per_token = _per_token(made, table, hyper)
    return {
        "model": {
            "name": made.name, "architecture": made.architecture, "files": made.paths if made.headers else [],
            "recipe": recipe, "parameters": sum(prod(tensor.shape) for tensor in made.tensors.values()),
            "layers": hyper.n_layer, "layers_in_file": architectures.layers_of(made), "experts": table.n_expert,
            "experts_used": hyper.n_expert_used, "spans": len(table),
        },
        "machine": asdict(machine),
        "bytes": {"total": made.nbytes, "dense": dense_bytes, "experts": expert_bytes,
                  "unused": sum(left_out.values()), "left_out": left_out},
        "types": {"dense": _by_type(made, table, ~expert), "experts": _by_type(made, table, expert)},
        "layers": _by_layer(table),
        "per_token": per_token,
        "cache": cache,
        "budget": {
            "bytes": machine.budget, "reason": machine.budget_reason, "sessions": aside,
            "fits": machine.budget >= dense_bytes + expert_bytes + aside,
            "experts_admitted": admitted, "experts_left_out": expert_bytes - admitted,
            "share_admitted": admitted / expert_bytes if expert_bytes else 1.0,
        },
        "options": [_option(experts, warm, machine, dense_bytes, expert_bytes, admitted, per_token)
                    for experts in ("defer", "eager") for warm in ("auto", "background", "before-ready", "off")],
        "warnings": _warnings(checked, machine, dense_bytes, expert_bytes, aside, cache["bytes"]),
    }


def find_model(name: str) -> ModelFile | Shape:
    """A model by file or cache name, else a shape. The error is that of the file when the name looks like one."""
    if not os.path.exists(name) and not name.endswith(".gguf") and ":" not in name:
        try:
            return find_shape(name)
        except KeyError:
            if "/" not in name:
                raise
    return open_model(name)


def imagine(shape: Shape, recipe: str) -> ModelFile:
    """The model file that the shape would have: tensors with their places, no headers."""
    tensors, at = {}, 0
    for entry in plan_tensors(shape, recipe):
        tensors[entry.name] = Tensor(entry.name, entry.type, entry.shape, 0, at, entry.nbytes)
        at += padded(entry.nbytes)
    metadata = {"general.architecture": shape.architecture, "general.name": shape.title, **shape.metadata()}
    return ModelFile([shape.name], [], metadata, tensors)


def this_machine(paths: Iterable[str] = (), memory_budget: str = "auto") -> Machine:
    """This machine's memory and limits, and the rate of the disk that the first of `paths` lies on."""
    from ..residency.budget import Budgeter

    budget = Budgeter(memory_budget).read()
    memory = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, value = line.split(":")
            memory[name] = int(value.split()[0]) * 1024
    rate = next((measured for path in paths if (measured := disk_rate(path))), None)
    return Machine(memory["MemTotal"], memory["MemAvailable"], budget.bytes, budget.reason,
                   rate or ASSUMED_DISK_RATE, rate is not None)


def disk_rate(path: str, amount: int = 96 << 20, piece: int = 4 << 20) -> float | None:
    """Bytes a second of reading `path` past the page cache, in pieces spread over the file; None where it cannot be
    measured (a small file, a file system without direct reads)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        size = os.fstat(descriptor).st_size
        if size < 2 * piece:
            return None
        import mmap

        buffer = mmap.mmap(-1, piece)  # aligned as direct reads need it
        count = min(amount, size) // piece
        start = time.perf_counter()
        for i in range(count):
            os.preadv(descriptor, [buffer], (size - piece) * i // count // 4096 * 4096)
        return count * piece / (time.perf_counter() - start)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _by_type(model: ModelFile, table: SpanTable, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
    types = np.array([model.tensors[name].type for name in table.names], np.int64)[table.tensor[chosen]]
    found = {TYPE_NAMES[int(t)]: int(table.nbytes[chosen][types == t].sum()) for t in np.unique(types)}
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _by_layer(table: SpanTable) -> list[dict[str, int]]:
    """Bytes of each layer; number -1 stands for what no layer owns."""
    dense, expert = ~table.is_expert, table.is_expert
    return [{"layer": layer, "dense": int(table.nbytes[dense & (table.layer == layer)].sum()),
             "experts": int(table.nbytes[expert & (table.layer == layer)].sum())}
            for layer in [-1, *range(table.n_layer)]]


def _per_token(model: ModelFile, table: SpanTable, hyper: Hyper) -> dict[str, Any]:
    """Bytes of weights that one generated token reads, and the share of the experts that PROMPT tokens use between
    them if all experts are chosen alike often (uneven routing uses fewer)."""
    share = hyper.n_expert_used / table.n_expert if table.n_expert else 0.0
    embedding = model.tensors.get("token_embd.weight")
    tied = "output.weight" not in model.tensors
    looked_up = 0 if embedding is None or tied else embedding.nbytes - embedding.row_bytes
    return {
        "dense": int(table.nbytes[~table.is_expert].sum()) - looked_up,
        "experts": int(int(table.nbytes[table.is_expert].sum()) * share),
        "prompt_tokens": PROMPT, "prompt_share": 1 - (1 - share) ** PROMPT if share else 0.0,
    }


def _cache(model: ModelFile, checked: architectures.Checked, context: int, sessions: int,
           batch: int) -> dict[str, Any]:
    """What sessions and steps take: bytes of keys and values per token, of a session's recurrent state (as it is and as
    a step makes it), of a full step's buffers; of one session of that context, and of all of them."""
    hyper = checked.hyper
    longest = min(context, hyper.n_context_train) if hyper.n_context_train else context
    found = need(model, hyper, checked.table, context=longest, sessions=sessions, batch=batch)
    return {
        "bytes_per_token": found.token_bytes, "bytes_per_1k": found.token_bytes * 1000,
        "state_bytes": found.session_bytes, "context": longest, "sessions": sessions,
        "blocks": found.blocks, "block_bytes": found.block_bytes,
        "bytes_at_context": found.blocks // sessions * found.block_bytes + found.session_bytes,
        "step_bytes": found.step_bytes, "bytes": found.bytes,
    }


def _option(experts: str, warm: str, machine: Machine, dense: int, expert: int, admitted: int,
            per_token: dict[str, Any]) -> dict[str, Any]:
    """What one combination does: what is read before READY, before the first answer at least, and in the background;
    what is resident in the end. Seconds are what the disk alone takes."""
    fits = admitted == expert
    populated = 0 if experts == "defer" and warm == "off" else expert if experts == "eager" else admitted
    before = dense + populated if warm == "before-ready" else 0
    # Whatever is not read yet when a prompt comes must be read for it: all dense spans and the experts it uses.
    asked = dense + int(expert * per_token["prompt_share"])
    first = max(asked - before, 0) if warm == "before-ready" else asked
    when = "before READY" if warm == "before-ready" else "in the background"
    if not expert:
        what = f"everything is dense and populated {when}"
    elif experts == "eager":
        what = f"dense spans, then all experts in the file's order, {when}"
    elif warm == "off":
        what = "dense spans at the start; an expert when a token is routed to it"
    else:
        amount = "all experts" if fits else f"the hottest {admitted / expert:.0%} of the experts"
        what = f"dense spans at the start; {amount} {when}"
    return {
        "experts": experts, "warm": warm, "what": what, "before_ready": before,
        "seconds_to_ready": before / machine.disk_rate, "before_first_answer": first,
        "seconds_to_first_answer": first / machine.disk_rate, "background": dense + populated - before,
        "seconds_to_warm": (dense + populated) / machine.disk_rate if populated else None,
        "resident": dense + populated, "over_budget": dense + populated > machine.budget,
    }


def _warnings(checked: architectures.Checked, machine: Machine, dense: int, expert: int, aside: int,
              sessions: int) -> list[dict[str, str]]:
    found = []
    if not expert:
        found.append({"code": "no-experts", "text": "this model has no expert spans: --experts changes nothing"})
    if dense + aside > machine.budget:
        found.append({"code": "dense-over-budget",
                      "text": "dense spans and sessions alone exceed the budget: every token will read from disk"})
    elif dense + sessions > machine.budget:
        found.append({"code": "sessions-over-budget",
                      "text": "sessions as long as the context allows do not fit beside the dense spans"})
    if "prediction" in checked.left_out:
        found.append({"code": "unused-layers", "text": "layers that only predict further tokens are never read"})
    found += [{"code": code, "text": text} for code, text in checked.warnings()]
    if not machine.disk_measured:
        found.append({"code": "disk-rate-assumed", "text": "seconds rest on an assumed disk rate"})
    return found
