"""Qwen2 and Qwen2.5, dense (arXiv 2407.10671): biased projections, then a gated feed-forward."""

from __future__ import annotations

from dataclasses import dataclass

from hearthd.daemon.model import blocks
from hearthd.daemon.model.graph import Graph, Tensors, Weight
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys, n_vocab: int) -> Hyper:
    h = common(keys, n_vocab)
    h.more["scaling"] = blocks.rope_scaling(keys)
    return h


@dataclass
class Layer:
    attention: blocks.Attention
    norm: Weight
    feed: blocks.Feed


@dataclass
class Weights:
    ends: blocks.Ends
    layers: list[Layer]


def tensors(h: Hyper, t: Tensors) -> Weights:
    layers = [
        Layer(
            attention=blocks.attention_tensors(h, t, i),
            norm=t.vector(f"blk.{i}.ffn_norm.weight", h.n_embd),
            feed=blocks.feed_tensors(h, t, i, h.n_ff),
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
        x = g.add(x, blocks.feed(g, layer.feed, f))
    blocks.finish(g, h, w.ends, x)
