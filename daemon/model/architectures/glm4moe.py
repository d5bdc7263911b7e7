"""GLM-4.5 to 4.7 (arXiv 2508.06471): biased, partly rotated attention, leading dense layers, a shared expert.

Routing is by sigmoid with a bias that only chooses. The norm before the feed-forward is named post_attention_norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearthd.daemon.model import blocks
from hearthd.daemon.model.graph import SIGMOID_GATING, Graph, Tensors, Weight
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys, n_vocab: int) -> Hyper:
    h = common(keys, n_vocab)
    h.more["dense"] = int(keys("leading_dense_block_count", 0))
    h.more["routing"] = {
        "gating": blocks.gating(keys, SIGMOID_GATING),
        "normalise": bool(keys("expert_weights_norm", True)),
        "scale": float(keys("expert_weights_scale", 1.0)) or 1.0,
    }
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


def tensors(h: Hyper, t: Tensors) -> Weights:
    layers = [
        Layer(
            attention=blocks.attention_tensors(h, t, i, qk_norm="head"),
            norm=t.vector(f"blk.{i}.post_attention_norm.weight", h.n_embd),
            feed=(blocks.feed_tensors(h, t, i, h.n_ff) if i < h.more["dense"] else blocks.routed_tensors(h, t, i)),
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
        if isinstance(layer.feed, blocks.Feed):
            x = g.add(x, blocks.feed(g, layer.feed, f))
        else:
            x = g.add(x, blocks.feed_routed(g, h, layer.feed, f, **h.more["routing"]))
    blocks.finish(g, h, w.ends, x)
