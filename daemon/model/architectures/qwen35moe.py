"""Qwen3-Next and Qwen3.5 mixtures of experts: gated delta nets, every few layers gated full attention, a shared expert.

Linear attention: arXiv 2412.06464 as in transformers, models/qwen3_next/modeling_qwen3_next.py. Of the two
architectures that live here, qwen3next keeps beta and alpha in one tensor by key head, and gives neighbouring value
heads one key head.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearthd.daemon.model import blocks
from hearthd.daemon.model.calls import Value, Weight
from hearthd.daemon.model.graph import SIGMOID_GATE, SILU, Graph, Tensors
from hearthd.daemon.model.hyper import MOST_WHOLE, Hyper, Keys, common

L2_EPSILON = 1e-6


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.more = {
        "interval": keys.whole("full_attention_interval", 4, least=1),
        "taps": keys.whole("ssm.conv_kernel", least=1),
        "dk": keys.whole("ssm.state_size", least=1),
        "key_heads": keys.whole("ssm.group_count", least=1),
        "value_heads": keys.whole("ssm.time_step_rank", least=1),
        "inner": keys.whole("ssm.inner_size", least=1),
        "gating": blocks.gating(keys),
    }
    values, inner = h.more["value_heads"], h.more["inner"]
    if values % h.more["key_heads"]:
        raise keys.bad("ssm.group_count", f"so many keys cannot be shared by {values} values (ssm.time_step_rank)")
    if inner % values:
        raise keys.bad("ssm.inner_size", f"so many values do not divide into {values} heads (ssm.time_step_rank)")
    if inner * h.more["dk"] * h.n_layer > MOST_WHOLE:
        raise keys.bad("ssm.state_size", f"with {inner} values (ssm.inner_size) the state of a sequence is too large")
    if h.head_v > h.head_k:
        raise keys.bad("attention.value_length", f"a head has {h.head_k} gates for its values (attention.key_length)")
    return h


@dataclass
class Full:
    q: Weight  # [query, gate] of each head
    k: Weight
    v: Weight
    o: Weight
    q_norm: Weight
    k_norm: Weight


@dataclass
class Linear:
    qkv: Weight
    z: Weight
    conv: Weight
    a: Weight
    dt: Weight
    beta: Weight
    alpha: Weight | None  # None: beta holds both, by key head
    norm: Weight
    out: Weight


@dataclass
class Layer:
    attention_norm: Weight
    attention: Full | Linear
    norm: Weight
    experts: blocks.Routed


@dataclass
class Weights:
    ends: blocks.Ends
    layers: list[Layer]


def tensors(h: Hyper, t: Tensors) -> Weights:
    layers = [
        Layer(
            attention_norm=t.vector(f"blk.{i}.attn_norm.weight", h.n_embd),
            attention=full(h, t, i) if (i + 1) % h.more["interval"] == 0 else linear(h, t, i),
            norm=t.vector(f"blk.{i}.post_attention_norm.weight", h.n_embd),
            experts=blocks.routed_tensors(h, t, i),
        )
        for i in range(h.n_layer)
    ]
    return Weights(blocks.end_tensors(h, t), layers)


def full(h: Hyper, t: Tensors, i: int) -> Full:
    p, (heads, kv) = f"blk.{i}.attn_", h.heads(i)
    return Full(
        q=t.matrix(p + "q.weight", 2 * heads * h.head_k, h.n_embd),
        k=t.matrix(p + "k.weight", kv * h.head_k, h.n_embd),
        v=t.matrix(p + "v.weight", kv * h.head_v, h.n_embd),
        o=t.matrix(p + "output.weight", h.n_embd, heads * h.head_v),
        q_norm=t.vector(p + "q_norm.weight", h.head_k),
        k_norm=t.vector(p + "k_norm.weight", h.head_k),
    )


def linear(h: Hyper, t: Tensors, i: int) -> Linear:
    p, m = f"blk.{i}.", h.more
    heads, channels = m["value_heads"], 2 * m["key_heads"] * m["dk"] + m["inner"]
    merged = p + "ssm_ba.weight" in t
    return Linear(
        qkv=t.matrix(p + "attn_qkv.weight", channels, h.n_embd),
        z=t.matrix(p + "attn_gate.weight", m["inner"], h.n_embd),
        conv=t.table(p + "ssm_conv1d.weight", channels, m["taps"]),
        a=t.vector(p + "ssm_a", heads),
        dt=t.vector(p + "ssm_dt.bias", heads),
        beta=t.matrix(p + "ssm_ba.weight", 2 * heads, h.n_embd)
        if merged
        else t.matrix(p + "ssm_beta.weight", heads, h.n_embd),
        alpha=None if merged else t.matrix(p + "ssm_alpha.weight", heads, h.n_embd),
        norm=t.vector(p + "ssm_norm.weight", m["inner"] // heads),
        out=t.matrix(p + "ssm_out.weight", h.n_embd, m["inner"]),
    )


def attend_full(g: Graph, h: Hyper, i: int, w: Full, x: Value, rope: int) -> Value:
    heads, kv, dk, dv = h.n_head[i], h.n_head_kv[i], h.head_k, h.head_v
    keys, values = g.cache(kv, dk), g.cache(kv, dv)
    q, k, v = g.matmul(x, w.q, w.k, w.v)  # q [heads, (query, gate), dk]
    g.rotate(g.norm_heads(q, w.q_norm, h.epsilon, heads, dk, stride=2 * dk), rope, heads, 2 * dk)
    g.rotate(g.norm_heads(k, w.k_norm, h.epsilon, kv, dk), rope, kv, dk)
    g.store(keys, k, kv, dk)
    g.store(values, v, kv, dv)
    a = g.attention(q, keys, values, heads=heads, kv_heads=kv, dk=dk, dv=dv, scale=dk**-0.5, q_stride=2 * dk)
    a = g.activate(SIGMOID_GATE, q, a, pieces=heads, width=dv, gate_at=(dk, 2 * dk), up_at=(0, dv))
    return g.matmul(a, w.o)


def attend_linear(g: Graph, h: Hyper, w: Linear, x: Value) -> Value:
    m = h.more
    key_heads, value_heads, dk = m["key_heads"], m["value_heads"], m["dk"]
    dv, group = m["inner"] // value_heads, value_heads // key_heads
    qkv, z = g.matmul(x, w.qkv, w.z)
    if w.alpha is None:
        ba = g.matmul(x, w.beta, exact=True)  # per key head: beta of its value heads, then alpha
        gates = g.decay(
            ba, ba, w.a, w.dt, value_heads, group=group, alpha_at=(group, 2 * group), beta_at=(0, 2 * group)
        )
    else:
        beta, alpha = g.matmul(x, w.beta, w.alpha, exact=True)
        gates = g.decay(alpha, beta, w.a, w.dt, value_heads)
    qkv = g.convolve(qkv, w.conv)
    g.norm_heads(qkv, None, L2_EPSILON, 2 * key_heads, dk, l2=True)
    out = g.delta(
        qkv, gates, value_heads=value_heads, key_heads=key_heads, dk=dk, dv=dv, interleaved=w.alpha is not None
    )
    out = g.scale(out, dk**-0.5)  # of the queries, taken out of the sum
    g.norm_heads(out, w.norm, h.epsilon, value_heads, dv)
    return g.matmul(g.activate(SILU, z, out), w.out)


def graph(h: Hyper, w: Weights, g: Graph) -> None:
    rope = blocks.rope(g, h, w.ends)
    x = g.embed(w.ends.embedding)  # [n_embd]
    for i, layer in enumerate(w.layers):
        g.layer(i)
        a = g.rms_norm(x, layer.attention_norm, h.epsilon)
        if isinstance(layer.attention, Full):
            x = g.add(x, attend_full(g, h, i, layer.attention, a, rope))
        else:
            x = g.add(x, attend_linear(g, h, layer.attention, a))
        f = g.rms_norm(x, layer.norm, h.epsilon)
        x = g.add(x, blocks.feed_routed(g, h, layer.experts, f, gating=h.more["gating"]))
    blocks.finish(g, h, w.ends, x)
