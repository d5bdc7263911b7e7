"""Makes models of real shapes with random weights: same bytes to read, same work to do, no meaning.

Owns the cut to a size, the spread of every tensor and the order of writing; refuses types that cannot be made without
a quantiser. Streams: what it holds is one piece of one tensor.
"""
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ...residency.text import gib
from ..gguf import TYPE_BLOCKS, TYPE_NAMES
from ..shapes import Shape, find_shape
from .blocks import can_make, random_blocks
from .recipes import file_type, tensor_bytes, tensor_type
from .routing import DEFAULT, router, slope_for
from .vocabulary import CHATML, make_vocabulary
from .write import encode_header, new_file, padded

PIECE = 8 << 20

Progress = Callable[[int, int], None]
Piece = bytes | npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Planned:
    """One tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    type: int
    nbytes: int


@dataclass(frozen=True)
class Synthesis:
    """What was made: the cut shape, the file and its length, and what was left out."""

    path: str
    shape: Shape
    nbytes: int
    full_layers: int
    full_experts: int

    @property
    def summary(self) -> str:
        cut = []
        if self.shape.n_layer < self.full_layers:
            cut.append(f"{self.shape.n_layer} of {self.full_layers} layers")
        if self.shape.n_expert < self.full_experts:
            cut.append(f"{self.shape.n_expert} of {self.full_experts} experts")
        return f"{self.shape.title}: {', '.join(cut) or 'whole'}, {gib(self.nbytes)}"


def synthesise(path: str | os.PathLike[str], shape: str | Shape, size: int | None = None, type: str = "Q4_K_M",
               *, unevenness: float = DEFAULT, seed: int = 0, progress: Progress | None = None) -> Synthesis:
    """Write a model of a real shape to `path`.

    shape: a name from shapes.SHAPES; size: at most so many bytes, by leaving out last layers (and experts where too
    few layers would be left), None for the whole model; type: a recipe, see recipes.recipes(); unevenness: share of
    the choices that the busiest quarter of the experts gets, 0.25 or less for even routing; progress: called with
    bytes written and bytes in all. KeyError, ValueError: no such shape or type, or not even one layer fits.
    """
    full = find_shape(shape) if isinstance(shape, str) else shape
    cut = cut_to_size(full, size, type)
    planned = plan_tensors(cut, type)
    for tensor in planned:
        if not can_make(tensor.type):
            raise ValueError(f"random blocks of type {TYPE_NAMES[tensor.type]} cannot be made")
    header = encode_header(metadata(cut, type, seed), [(t.name, t.shape, t.type, t.nbytes) for t in planned])
    total = len(header) + sum(padded(t.nbytes) for t in planned)
    slope = slope_for(cut.n_expert, cut.n_expert_used, unevenness)
    with new_file(path) as file, ThreadPoolExecutor(1) as writer:
        # One thread writes while this one makes the next piece; two pieces are in memory at most.
        done, pending = 0, writer.submit(_write_all, file, header)
        for tensor in planned:
            for piece in _pieces(tensor, cut, seed, slope):
                done += _finish(pending)
                pending = writer.submit(_write_all, file, piece)
                if progress:
                    progress(done, total)
        done += _finish(pending)
        if progress:
            progress(done, total)
    return Synthesis(os.fspath(path), cut, total, full.n_layer, full.n_expert)


def _write_all(file: BinaryIO, data: Piece) -> int:
    view = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
    done = 0
    while done < len(view):
        done += file.write(view[done:])
    return done


def _finish(pending: Future[int]) -> int:
    return pending.result()


def plan_tensors(shape: Shape, recipe: str) -> list[Planned]:
    """Every tensor of the shape with its type and size under a recipe."""
    planned = []
    for name, dims in shape.tensors():
        type_ = tensor_type(recipe, name, dims)
        planned.append(Planned(name, dims, type_, tensor_bytes(type_, dims)))
    return planned


def cut_to_size(shape: Shape, size: int | None, recipe: str) -> Shape:
    """The largest cut of the shape of at most `size` bytes of tensors: the first layers, with all their experts if two
    layers with experts fit so (and, of a hybrid, one with full attention), else with half of the experts, and so on
    down to four times as many as are used."""
    if size is None:
        return shape
    least = min(shape.n_layer, max(shape.lead + 2, int(shape.hyper.get("full_attention_interval", 0))))
    experts = shape.n_expert
    while True:
        low, high = 0, shape.n_layer
        while low < high:
            middle = (low + high + 1) // 2
            if sum(t.nbytes for t in plan_tensors(shape.cut(middle, experts), recipe)) <= size:
                low = middle
            else:
                high = middle - 1
        if low >= least or (low and experts < 8 * max(shape.n_expert_used, 1)):
            return shape.cut(low, experts)
        if experts < 4 * max(shape.n_expert_used, 1) or experts % 2:
            raise ValueError(f"not even one layer of {shape.title} fits {gib(size)} as {recipe}")
        experts //= 2


def metadata(shape: Shape, recipe: str, seed: int) -> dict[str, Any]:
    """All metadata of a made-up model, tokenizer and chat template included."""
    words = make_vocabulary(shape.vocabulary)
    return {
        "general.architecture": shape.architecture,
        "general.name": f"{shape.title} (random weights)",
        "general.description": f"random weights in the shape of {shape.title}, seed {seed}; for measurements only",
        "general.quantization_version": 2,
        "general.file_type": file_type(recipe),
        **shape.metadata(),
        f"{shape.architecture}.vocab_size": shape.vocabulary,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": words.tokens,
        "tokenizer.ggml.token_type": words.types,
        "tokenizer.ggml.merges": words.merges,
        "tokenizer.ggml.bos_token_id": words.bos,
        "tokenizer.ggml.eos_token_id": words.eos,
        "tokenizer.ggml.padding_token_id": words.padding,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def _pieces(tensor: Planned, shape: Shape, seed: int, slope: float) -> Iterator[Piece]:
    """The tensor's bytes, piece by piece, with the padding after it."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
    base = tensor.name.split(".", 2)[-1] if tensor.name.startswith("blk.") else tensor.name
    values = _small(base, tensor, rng, slope, shape)
    if values is not None:
        yield values.astype("<f4").tobytes()
    else:
        size = TYPE_BLOCKS[tensor.type][1]
        left = tensor.nbytes // size
        while left:
            count = min(left, PIECE // size)
            yield random_blocks(rng, tensor.type, count, size, _deviation(base, tensor.shape)).reshape(-1)
            left -= count
    if padded(tensor.nbytes) > tensor.nbytes:
        yield bytes(padded(tensor.nbytes) - tensor.nbytes)


# Rows of deviation 1/sqrt(columns) keep a unit mean square through a product; these stand apart from that. Attention
# over many random tokens is their mean, the same for all: at full strength it would drown, layer by layer, what tells
# one token's routing from another's. The output is larger, so that the logits are not all alike.
_STRENGTH = {"attn_output.weight": 0.3, "output.weight": 4.0}


def _deviation(base: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a tensor's values; embeddings are no product's and have one of 1."""
    if base == "token_embd.weight":
        return 1.0
    return _STRENGTH.get(base, 1.0) / float(np.sqrt(shape[0]))


def _small(
    base: str, tensor: Planned, rng: np.random.Generator, slope: float, shape: Shape
) -> Floats | npt.NDArray[np.float32] | None:
    """Values of the tensors that are no plain product's: router, norms, biases, recurrence; None for the others."""
    n = tensor.shape[0]
    if base == "ffn_gate_inp.weight":
        return router(rng, n, tensor.shape[1], slope)
    if base.endswith("norm.weight"):
        return rng.uniform(0.9, 1.1, n)
    if base == "ssm_a":  # -exp(A_log), A drawn from 1 to 16 as in training
        return -rng.uniform(1.0, 16.0, n)
    if base == "ssm_dt.bias":  # softplus of it: steps of 0.001 to 0.1
        return np.log(np.expm1(np.exp(rng.uniform(np.log(0.001), np.log(0.1), n))))
    if base == "rope_freqs.weight":
        return _rope_factors(n, shape)
    if base in ("exp_probs_b.bias", "ffn_gate_inp.bias"):
        return np.zeros(n)  # the router alone decides how uneven the choice is
    if len(tensor.shape) == 1:
        return rng.standard_normal(n) * (0.02 if base.endswith(".bias") else 1 / np.sqrt(n))
    return None


def _rope_factors(n: int, shape: Shape) -> Floats:
    """What each of the n frequencies is divided by (transformers, modeling_rope_utils: _compute_llama3_parameters)."""
    factor, low, high, original = shape.hyper["_rope_scaling"]
    wavelength = 2 * np.pi * float(shape.hyper["rope.freq_base"]) ** (np.arange(n) / n)
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)
    divisors: Floats = 1 / ((1 - blend) / factor + blend)
    return divisors
