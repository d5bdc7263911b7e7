"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783) and Mixtral (arXiv 2401.04088): rotated in consecutive pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hearthd.daemon.model import blocks
from hearthd.daemon.model.graph import Graph, Tensors, Weight
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys, n_vocab: int) -> Hyper:
    h = common(keys, n_vocab)
    h.n_ff_expert = h.n_ff_expert or h.n_ff
    h.more["scaling"] = blocks.rope_scaling(keys)
    return h


@dataclass
class Layer:
    attention: blocks.Attention
    norm: Weight
    feed: blocks.Feed | blocks.Routed


@dataclass
class Weights:
    ends: blocks.Ends
    layers: list[Layer]
    rope_factors: np.ndarray | None


def tensors(h: Hyper, t: Tensors) -> Weights:
    layers = [
        Layer(
            attention=blocks.attention_tensors(h, t, i),
            norm=t.vector(f"blk.{i}.ffn_norm.weight", h.n_embd),
            feed=blocks.routed_tensors(h, t, i) if h.n_expert else blocks.feed_tensors(h, t, i, h.n_ff),
        )
        for i in range(h.n_layer)
    ]
    return Weights(blocks.end_tensors(h, t), layers, blocks.rope_factors(t, h.rope_width))


def graph(h: Hyper, w: Weights, g: Graph) -> None:
    rope = g.rope(h.rope_width, h.rope_base, factors=w.rope_factors, **h.more["scaling"])
    x = g.embed(w.ends.embedding)  # [n_embd]
    for i, layer in enumerate(w.layers):
        g.layer(i)
        x = blocks.attend(g, h, i, layer.attention, x, rope, neox=False)
        f = g.rms_norm(x, layer.norm, h.epsilon)
        if isinstance(layer.feed, blocks.Routed):
            x = g.add(x, blocks.feed_routed(g, h, layer.feed, f))
        else:
            x = g.add(x, blocks.feed(g, layer.feed, f))
    blocks.finish(g, h, w.ends, x)
