"""MiniMax-M2: norms over whole projections, partial rotation, sigmoid routing with a bias that only chooses."""

from __future__ import annotations

from dataclasses import dataclass

from hearthd.daemon.model import blocks
from hearthd.daemon.model.graph import SIGMOID_GATING, Graph, Tensors, Weight
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys, n_vocab: int) -> Hyper:
    h = common(keys, n_vocab)
    h.more["gating"] = blocks.gating(keys, SIGMOID_GATING)
    h.more["scaling"] = blocks.rope_scaling(keys)
    return h


@dataclass
class Layer:
    attention: blocks.Attention
    norm: Weight
    experts: blocks.Routed


@dataclass
class Weights:
    ends: blocks.Ends
    layers: list[Layer]


def tensors(h: Hyper, t: Tensors) -> Weights:
    layers = [
        Layer(
            attention=blocks.attention_tensors(h, t, i, qk_norm="whole"),
            norm=t.vector(f"blk.{i}.ffn_norm.weight", h.n_embd),
            experts=blocks.routed_tensors(h, t, i),
        )
        for i in range(h.n_layer)
    ]
    return Weights(blocks.end_tensors(h, t), layers)


def graph(h: Hyper, w: Weights, g: Graph) -> None:
    rope = g.rope(h.rope_width, h.rope_base, **h.more["scaling"])
    x = g.embed(w.ends.embedding)  # [n_embd]
    for i, layer in enumerate(w.layers):
        g.layer(i)
        x = blocks.attend(g, h, i, layer.attention, x, rope)
        f = g.rms_norm(x, layer.norm, h.epsilon)
        x = g.add(x, blocks.feed_routed(g, h, layer.experts, f, gating=h.more["gating"]))
    blocks.finish(g, h, w.ends, x)
