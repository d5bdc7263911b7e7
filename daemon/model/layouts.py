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
    if "_rope_frequencies" in hyper:
        tensors.append(("rope_freqs.weight", (hyper["_rope_frequencies"],)))
    if not tied:
        tensors.append(("output.weight", (n, vocabulary)))
    return tensors


def at(hyper: Hyper, key: str, layer: int) -> int:
    """A hyperparameter that may be one number or a list of one per layer."""
    value = hyper[key]
    return int(value[layer] if isinstance(value, list) else value)


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


def _head(h: Hyper) -> int:
    return int(h.get("attention.key_length", h["embedding_length"] // at(h, "attention.head_count", 0)))


def _qwen3moe(h: Hyper, i: int) -> Tensors:
    yield from _attention(h, i)
    yield from _qk_norms(_head(h), _head(h))
    yield "ffn_norm.weight", (h["embedding_length"],)
    yield from _experts(h)


def _qwen3(h: Hyper, i: int) -> Tensors:
    yield from _attention(h, i)
    yield from _qk_norms(_head(h), _head(h))
    yield "ffn_norm.weight", (h["embedding_length"],)
    yield from _ffn(h)


def _qwen2moe(h: Hyper, i: int) -> Tensors:
    yield from _attention(h, i, bias="qkv")
    yield "ffn_norm.weight", (h["embedding_length"],)
    yield from _experts(h)
    yield from _shared(h, h["expert_shared_feed_forward_length"], gated=True)


def _qwen2(h: Hyper, i: int) -> Tensors:
    yield from _attention(h, i, bias="qkv")
    yield "ffn_norm.weight", (h["embedding_length"],)
    yield from _ffn(h)


def _llama(h: Hyper, i: int) -> Tensors:
    """Dense, or Mixtral where there are experts; their size is feed_forward_length."""
    yield from _attention(h, i)
    yield "ffn_norm.weight", (h["embedding_length"],)
    sized = {**h, "expert_feed_forward_length": h["feed_forward_length"]}
    yield from _experts(sized) if h.get("expert_count") else _ffn(h)


def _olmoe(h: Hyper, i: int) -> Tensors:
    """Norms of q and k span the whole projection."""
    yield from _attention(h, i)
    yield from _qk_norms(h["embedding_length"], _head(h) * h["attention.head_count_kv"])
    yield "ffn_norm.weight", (h["embedding_length"],)
    yield from _experts({**h, "expert_feed_forward_length": h["feed_forward_length"]})


def _minimax_m2(h: Hyper, i: int) -> Tensors:
    """Norms of q and k span the whole projection; the choice of experts has a bias."""
    yield from _attention(h, i)
    yield from _qk_norms(_head(h) * h["attention.head_count"], _head(h) * h["attention.head_count_kv"])
    yield "ffn_norm.weight", (h["embedding_length"],)
    yield from _experts(h, selection_bias=True)


def _gpt_oss(h: Hyper, i: int) -> Tensors:
    """Biases everywhere, one attention sink per head; the norm before the experts is called post_attention_norm."""
    yield from _attention(h, i, bias="qkv", out_bias=True)
    yield "attn_sinks.weight", (h["attention.head_count"],)
    yield "post_attention_norm.weight", (h["embedding_length"],)
    yield from _experts(h, bias=True)


def _glm4moe(h: Hyper, i: int) -> Tensors:
    """Leading dense layers, then experts beside shared ones; last come layers that predict further tokens."""
    n = h["embedding_length"]
    yield from _attention(h, i, bias="qkv")
    if h.get("_qk_norm", True):
        yield from _qk_norms(_head(h), _head(h))
    yield "post_attention_norm.weight", (n,)
    if i < h["leading_dense_block_count"]:
        yield from _ffn(h)
    else:
        yield from _experts(h, selection_bias=True)
        yield from _shared(h, h["expert_shared_count"] * h["expert_feed_forward_length"], gated=False)
    if i >= h["block_count"] - h.get("nextn_predict_layers", 0):
        yield "nextn.eh_proj.weight", (2 * n, n)
        for name in ("enorm", "hnorm", "shared_head_norm"):
            yield f"nextn.{name}.weight", (n,)


def _deepseek2(h: Hyper, i: int) -> Tensors:
    """Latent attention in its absorbed form: k_b is stored transposed, per head."""
    n, heads, rank = h["embedding_length"], h["attention.head_count"], h["attention.kv_lora_rank"]
    key, value, rope = h["attention.key_length_mla"], h["attention.value_length_mla"], h["rope.dimension_count"]
    yield "attn_norm.weight", (n,)
    query = h.get("attention.q_lora_rank")
    if query:
        yield "attn_q_a.weight", (n, query)
        yield "attn_q_a_norm.weight", (query,)
        yield "attn_q_b.weight", (query, heads * key)
    else:
        yield "attn_q.weight", (n, heads * key)
    yield "attn_kv_a_mqa.weight", (n, rank + rope)
    yield "attn_kv_a_norm.weight", (rank,)
    yield "attn_k_b.weight", (key - rope, rank, heads)
    yield "attn_v_b.weight", (rank, value, heads)
    yield "attn_output.weight", (heads * value, n)
    yield "ffn_norm.weight", (n,)
    if i < h["leading_dense_block_count"]:
        yield from _ffn(h)
    else:
        yield from _experts(h, selection_bias=h.get("expert_gating_func") == 2)
        yield from _shared(h, h["expert_shared_count"] * h["expert_feed_forward_length"], gated=False)


def _delta_net(h: Hyper, merged: bool) -> Tensors:
    """Gated delta net; `merged`: beta and alpha are one tensor (qwen3next), else two (qwen35moe)."""
    n, state, inner = h["embedding_length"], h["ssm.state_size"], h["ssm.inner_size"]
    heads, groups = h["ssm.time_step_rank"], h["ssm.group_count"]
    mixed = 2 * groups * state + inner
    yield "attn_norm.weight", (n,)
    yield "attn_qkv.weight", (n, mixed)
    yield "attn_gate.weight", (n, inner)
    yield "ssm_conv1d.weight", (h["ssm.conv_kernel"], mixed)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (heads,)
    if merged:
        yield "ssm_ba.weight", (n, 2 * heads)
    else:
        yield "ssm_beta.weight", (n, heads)
        yield "ssm_alpha.weight", (n, heads)
    yield "ssm_norm.weight", (inner // heads,)
    yield "ssm_out.weight", (inner, n)


def _hybrid(h: Hyper, i: int, merged: bool) -> Tensors:
    """Every so-many-th layer has full attention, whose q holds a gate; the others are delta nets."""
    if (i + 1) % h["full_attention_interval"]:
        yield from _delta_net(h, merged)
    else:
        yield from _attention(h, i, gated=True)
        yield from _qk_norms(_head(h), _head(h))
    yield "post_attention_norm.weight", (h["embedding_length"],)
    yield from _experts(h)
    yield from _shared(h, h["expert_shared_feed_forward_length"], gated=True)


def _qwen3next(h: Hyper, i: int) -> Tensors:
    yield from _hybrid(h, i, merged=True)


def _qwen35moe(h: Hyper, i: int) -> Tensors:
    yield from _hybrid(h, i, merged=False)


def _step35(h: Hyper, i: int) -> Tensors:
    """Windowed layers have more heads; each head has a gate."""
    n = h["embedding_length"]
    yield from _attention(h, i)
    yield from _qk_norms(_head(h), _head(h))
    yield "attn_gate.weight", (n, at(h, "attention.head_count", i))
    yield "ffn_norm.weight", (n,)
    if i < h["leading_dense_block_count"]:
        yield from _ffn(h)
    else:
        yield from _experts(h, selection_bias=True)
        yield from _shared(h, h["expert_shared_feed_forward_length"], gated=False)


LAYOUTS: dict[str, Callable[[Hyper, int], Tensors]] = {
    "qwen3moe": _qwen3moe,
    "qwen3": _qwen3,
    "qwen2moe": _qwen2moe,
    "qwen2": _qwen2,
    "llama": _llama,
    "olmoe": _olmoe,
    "minimax-m2": _minimax_m2,
    "gpt-oss": _gpt_oss,
    "glm4moe": _glm4moe,
    "deepseek2": _deepseek2,
    "qwen3next": _qwen3next,
    "qwen35moe": _qwen35moe,
    "step35": _step35,
}
