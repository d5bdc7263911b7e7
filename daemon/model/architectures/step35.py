"""Step 3.5 Flash: window and full layers with their own head counts and ropes, a gate per head, clamped SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

from hearthd.daemon.model import blocks, positions
from hearthd.daemon.model.calls import Weight
from hearthd.daemon.model.graph import SIGMOID_GATING, SILU, SWIGLU_LIMIT, Graph, Tensors
from hearthd.daemon.model.hyper import BASES, Hyper, Keys, common, rope_width


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.rope_width = rope_width(keys, h.head_k, h.head_k, part=2)  # full layers rotate half of what windowed ones do
    if h.scaling.stretches:  # of the full layers only, or of both?
        name = "rope.scaling.type" if h.scaling.named else "rope.scaling.factor"
        raise keys.bad(name, "what a scaling means for two ropes is not known")
    h.more = {
        "dense": keys.whole("leading_dense_block_count", 0, most=h.n_block),
        "every": keys.whole("moe_every_n_layers", 1, least=1),
        "window": keys.whole("attention.sliding_window", least=1),
        "windowed": keys.flags("attention.sliding_window_pattern", h.n_block),
        "window_base": keys.real("rope.freq_base_swa", h.rope_base, **BASES),
        "clamp": keys.reals("swiglu_clamp_exp", h.n_block, 0.0, **LIMITS),
        "clamp_shared": keys.reals("swiglu_clamp_shexp", h.n_block, 0.0, **LIMITS),
        "routing": blocks.routing(keys, h, SIGMOID_GATING, normalise=True),
    }
    return h


LIMITS = {"least": 0.0, "most": 1e6}  # of an activation; 0: none


@dataclass
class Layer:
    attention: blocks.Attention
    head_gate: Weight | None
    norm: Weight
    feed: blocks.Feed | blocks.Routed


@dataclass
class Weights:
    ends: blocks.Ends
    layers: list[Layer]


def tensors(h: Hyper, t: Tensors) -> Weights:
    layers = []
    for i in range(h.n_layer):
        gate = f"blk.{i}.attn_gate.weight"
        dense = i < h.more["dense"] or (i - h.more["dense"]) % h.more["every"] != 0
        layers.append(
            Layer(
                attention=blocks.attention_tensors(h, t, i, qk_norm="head"),
                head_gate=t.matrix(gate, h.n_head[i], h.n_embd) if gate in t else None,
                norm=t.vector(f"blk.{i}.ffn_norm.weight", h.n_embd),
                feed=blocks.feed_tensors(h, t, i, h.n_ff) if dense else blocks.routed_tensors(h, t, i),
            )
        )
    ends = blocks.end_tensors(h, t)
    if ends.factors is not None and ends.factors.longrope:
        raise t.fail(positions.LONG, "what these factors mean for two ropes is not known")
    return Weights(ends, layers)


def clamp(limit: float) -> tuple[int, float]:
    return (SWIGLU_LIMIT, limit) if limit else (SILU, 0.0)


def graph(h: Hyper, w: Weights, g: Graph) -> None:
    m = h.more
    rope_full = g.rope(h.rope_width // 2, h.rope_base, h.scaling, w.ends.factors)
    rope_window = g.rope(h.rope_width, m["window_base"], positions.Scaling())
    x = g.embed(w.ends.embedding)  # [n_embd]
    for i, layer in enumerate(w.layers):
        g.layer(i)
        near = m["windowed"][i]
        x = blocks.attend(
            g,
            h,
            i,
            layer.attention,
            x,
            rope_window if near else rope_full,
            window=m["window"] if near else 0,
            head_gate=layer.head_gate,
        )
        f = g.rms_norm(x, layer.norm, h.epsilon)
        activation, limit = clamp(m["clamp"][i])
        shared_activation, shared_limit = clamp(m["clamp_shared"][i])
        if isinstance(layer.feed, blocks.Feed):
            x = g.add(x, blocks.feed(g, layer.feed, f, activation=shared_activation, limit=shared_limit))
        else:
            x = g.add(
                x,
                blocks.feed_routed(
                    g,
                    h,
                    layer.feed,
                    f,
                    activation=activation,
                    limit=limit,
                    shared_activation=shared_activation,
                    shared_limit=shared_limit,
                    **m["routing"],
                ),
            )
    blocks.finish(g, h, w.ends, x)
