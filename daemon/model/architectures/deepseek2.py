"""DeepSeek V2, V3, R1 and Kimi K2: multi-head latent attention in its absorbed form, shared experts, routing by groups.

Attention: arXiv 2405.04434, section 2.1, with the key's up-projection moved to the query and the value's behind the
sum, so that the cache holds one compressed row per token. Files from before April 2025 keep both projections in one
tensor, head by head, and give the lengths of plain heads: the same is done with them. Routing: arXiv 2412.19437,
section 2.1.2. YaRN's temperature on the scores: deepseek-ai/DeepSeek-V3, inference/model.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from hearthd.daemon.model import blocks
from hearthd.daemon.model.calls import Value, Weight
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common, rope_width


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    latent = "_mla" if "attention.key_length_mla" in keys else ""  # else the lengths are the true ones as they stand
    whole = keys.whole(f"attention.key_length{latent}", least=2)
    rotary = rope_width(keys, whole - 1)  # beside them at least one value that is not rotated
    h.rope_width = rotary
    temperature, s = 1.0, h.scaling
    log_multiplier = keys.real("rope.scaling.yarn_log_multiplier", 0.0, least=0.0, most=10.0)
    if s.kind == "yarn" and log_multiplier:  # the scores are sharpened, cosine and sine are not
        temperature = 1.0 + log_multiplier * math.log(s.factor)
        h.scaling = replace(s, attention=(s.attention or 1.0) / (1.0 + 0.1 * math.log(s.factor)))
    h.more = {
        "dense": keys.whole("leading_dense_block_count", 0, most=h.n_block),
        "q_lora": keys.whole("attention.q_lora_rank", 0),
        "kv_lora": keys.whole("attention.kv_lora_rank", least=1),
        "rotary": rotary,
        "joined": not latent,
        "plain": whole - rotary,
        "value": keys.whole(f"attention.value_length{latent}", least=1),
        "scale": whole**-0.5 * temperature**2,
        "routing": blocks.routing(keys, h, normalise=False),
    }
    return h


@dataclass
class Latent:
    norm: Weight
    q_a: Weight | None
    q_a_norm: Weight | None
    q: Weight
    kv_a: Weight
    kv_a_norm: Weight
    k_b: Weight  # [heads, kv_lora, plain]; joined: the same as v_b, [heads, (plain, value), kv_lora]
    v_b: Weight  # [heads, value, kv_lora]
    o: Weight


@dataclass
class Layer:
    attention: Latent
    norm: Weight
    feed: blocks.Feed | blocks.Routed


@dataclass
class Weights:
    ends: blocks.Ends
    layers: list[Layer]


def tensors(h: Hyper, t: Tensors) -> Weights:
    m, layers = h.more, []
    for i in range(h.n_layer):
        p, (heads, _) = f"blk.{i}.", h.heads(i)
        rows, rank = heads * (m["plain"] + m["rotary"]), m["q_lora"]
        if m["joined"]:
            k_b = v_b = t.matrix(p + "attn_kv_b.weight", heads * (m["plain"] + m["value"]), m["kv_lora"])
        else:
            k_b = t.matrix(p + "attn_k_b.weight", m["kv_lora"], m["plain"], depth=heads)
            v_b = t.matrix(p + "attn_v_b.weight", m["value"], m["kv_lora"], depth=heads)
        latent = Latent(
            norm=t.vector(p + "attn_norm.weight", h.n_embd),
            q_a=t.matrix(p + "attn_q_a.weight", rank, h.n_embd) if rank else None,
            q_a_norm=t.vector(p + "attn_q_a_norm.weight", rank) if rank else None,
            q=t.matrix(p + "attn_q_b.weight", rows, rank) if rank else t.matrix(p + "attn_q.weight", rows, h.n_embd),
            kv_a=t.matrix(p + "attn_kv_a_mqa.weight", m["kv_lora"] + m["rotary"], h.n_embd),
            kv_a_norm=t.vector(p + "attn_kv_a_norm.weight", m["kv_lora"]),
            k_b=k_b,
            v_b=v_b,
            o=t.matrix(p + "attn_output.weight", h.n_embd, heads * m["value"]),
        )
        dense = i < m["dense"] or not h.n_expert
        layers.append(
            Layer(
                attention=latent,
                norm=t.vector(p + "ffn_norm.weight", h.n_embd),
                feed=blocks.feed_tensors(h, t, i, h.n_ff) if dense else blocks.routed_tensors(h, t, i),
            )
        )
    return Weights(blocks.end_tensors(h, t), layers)


def attend(g: Graph, h: Hyper, i: int, w: Latent, x: Value, rope: int) -> Value:
    m, heads = h.more, h.n_head[i]
    rank, rotary, plain = m["kv_lora"], m["rotary"], m["plain"]
    width = rank + rotary
    cache = g.cache(1, width)  # per token: the compressed row, then the rotated part that all heads share
    a = g.rms_norm(x, w.norm, h.epsilon)

    kv = g.matmul(a, w.kv_a)
    g.norm_heads(kv, w.kv_a_norm, h.epsilon, 1, rank)
    g.rotate(kv, rope, 1, width, offset=rank, neox=False)
    g.store(cache, kv, 1, width)

    if w.q_a is not None:
        a = g.rms_norm(g.matmul(a, w.q_a), w.q_a_norm, h.epsilon)
    q = g.matmul(a, w.q)  # [heads, plain + rotary]
    g.rotate(q, rope, heads, plain + rotary, offset=plain, neox=False)
    pitch = plain + m["value"]
    keys: dict[str, Any] = {"pitch": pitch, "turned": True} if m["joined"] else {}
    values: dict[str, Any] = {"pitch": pitch, "first": plain} if m["joined"] else {}
    absorbed = g.heads_matmul(q, w.k_b, heads, rank, plain, in_stride=plain + rotary, out_stride=width, **keys)
    g.copy(q, absorbed, heads, rotary, (plain, plain + rotary), (rank, width))

    out = g.attention(absorbed, cache, cache, heads=heads, kv_heads=1, dk=width, dv=rank, scale=m["scale"])
    out = g.heads_matmul(out, w.v_b, heads, m["value"], rank, **values)
    return g.add(x, g.matmul(out, w.o))


def graph(h: Hyper, w: Weights, g: Graph) -> None:
    rope = blocks.rope(g, h, w.ends)
    x = g.embed(w.ends.embedding)  # [n_embd]
    for i, layer in enumerate(w.layers):
        g.layer(i)
        x = attend(g, h, i, layer.attention, x, rope)
        f = g.rms_norm(x, layer.norm, h.epsilon)
        if isinstance(layer.feed, blocks.Feed):
            x = g.add(x, blocks.feed(g, layer.feed, f))
        else:
            x = g.add(x, blocks.feed_routed(g, h, layer.feed, f, **h.more["routing"]))
    blocks.finish(g, h, w.ends, x)
