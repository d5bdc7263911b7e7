"""Which tensors an architecture's GGUF file has, and their shapes, from its hyperparameters alone.

Owns names and shapes as llama.cpp's conversion writes them (gguf-py/gguf/tensor_mapping.py, llama.cpp's
llama-arch.cpp and the load_tensors of each model); knows no values and no types. Shapes have columns first.
"""
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Tensors = Iterator[tuple[str, tuple[int, ...]]]
Hyper = Mapping[str, Any]


def tensor_list(architecture: str, hyper: Hyper, vocabulary: int, tied: bool) -> list[tuple[str, tuple[int, ...]]]:
    """All tensors in the order of the file. KeyError for an architecture without a layout."""
    layer = LAYOUTS[architecture]
    n = hyper["embedding_length"]
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (n, vocabulary))]
    for i in range(hyper["block_count"]):
        tensors += [(f"blk.{i}.{name}", shape) for name, shape in layer(hyper, i)]
    tensors.append(("output_norm.weight", (n,)))
    if not tied:
        tensors.append(("output.weight", (n, vocabulary)))
    return tensors


def at(hyper: Hyper, key: str, layer: int) -> Any:
    """A hyperparameter that may be one number or a list of one per layer."""
    value = hyper[key]
    return value[layer] if isinstance(value, list) else value


def _attention(h: Hyper, i: int, bias: str = "", out_bias: bool = False, gated: bool = False) -> Tensors:
    """Projections q, k, v, output; `bias`: which of "qkv" have one; `gated`: q holds a gate of its size as well."""
    n, heads, kv = h["embedding_length"], at(h, "attention.head_count", i), at(h, "attention.head_count_kv", i)
    key = h.get("attention.key_length", n // heads)
    value = h.get("attention.value_length", key)
    rows = {"q": heads * key * (2 if gated else 1), "k": kv * key, "v": kv * value}
    yield "attn_norm.weight", (n,)
    for part, count in rows.items():
        yield f"attn_{part}.weight", (n, count)
        if part in bias:
            yield f"attn_{part}.bias", (count,)
    yield "attn_output.weight", (heads * value, n)
    if out_bias:
        yield "attn_output.bias", (n,)


def _qk_norms(q: int, k: int) -> Tensors:
    yield "attn_q_norm.weight", (q,)
    yield "attn_k_norm.weight", (k,)


def _ffn(h: Hyper) -> Tensors:
    n, ff = h["embedding_length"], h["feed_forward_length"]
    yield "ffn_gate.weight", (n, ff)
    yield "ffn_up.weight", (n, ff)
    yield "ffn_down.weight", (ff, n)


def _experts(h: Hyper, bias: bool = False, selection_bias: bool = False) -> Tensors:
    n, ff, count = h["embedding_length"], h["expert_feed_forward_length"], h["expert_count"]
    yield "ffn_gate_inp.weight", (n, count)
    if bias:
        yield "ffn_gate_inp.bias", (count,)
    if selection_bias:
        yield "exp_probs_b.bias", (count,)
    for name, rows, columns in (("gate", ff, n), ("up", ff, n), ("down", n, ff)):
        yield f"ffn_{name}_exps.weight", (columns, rows, count)
        if bias:
            yield f"ffn_{name}_exps.bias", (rows, count)


def _shared(h: Hyper, ff: int, gated: bool) -> Tensors:
    n = h["embedding_length"]
    if gated:
        yield "ffn_gate_inp_shexp.weight", (n,)
    yield "ffn_gate_shexp.weight", (n, ff)
    yield "ffn_up_shexp.weight", (n, ff)
    yield "ffn_down_shexp.weight", (ff, n)


def _qwen3moe(h: Hyper, i: int) -> Tensors:
    yield from _attention(h, i)
    yield from _qk_norms(h["attention.key_length"], h["attention.key_length"])
    yield "ffn_norm.weight", (h["embedding_length"],)
    yield from _experts(h)


def _qwen3(h: Hyper, i: int) -> Tensors:
    yield from _attention(h, i)
    yield from _qk_norms(h["attention.key_length"], h["attention.key_length"])
    yield "ffn_norm.weight", (h["embedding_length"],)
    yield from _ffn(h)


LAYOUTS: dict[str, Callable[[Hyper, int], Tensors]] = {
    "qwen3moe": _qwen3moe,
    "qwen3": _qwen3,
}
