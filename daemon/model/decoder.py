"""The decoder that most architectures are: blocks of grouped-query attention and feed-forward between two ends.

An architecture that is this one says in its own file what it deviates in; one that is not writes its own acts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Unpack

from hearthd.daemon.model import blocks
from hearthd.daemon.model.calls import Weight
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper


@dataclass
class Layer:
    attention: blocks.Attention
    norm: Weight
    feed: blocks.Feed | blocks.Routed


@dataclass
class Weights:
    ends: blocks.Ends
    layers: list[Layer]


def tensors(
    h: Hyper, t: Tensors, *, qk_norm: Literal["no", "head", "whole"] = "no", norm: str = "ffn_norm", dense: int = 0
) -> Weights:
    """norm: what the file calls the norm before the feed-forward; dense: leading layers without experts."""
    layers = [
        Layer(
            attention=blocks.attention_tensors(h, t, i, qk_norm=qk_norm),
            norm=t.vector(f"blk.{i}.{norm}.weight", h.n_embd),
            feed=(
                blocks.routed_tensors(h, t, i) if h.n_expert and i >= dense else blocks.feed_tensors(h, t, i, h.n_ff)
            ),
        )
        for i in range(h.n_layer)
    ]
    return Weights(blocks.end_tensors(h, t), layers)


def graph(
    h: Hyper,
    w: Weights,
    g: Graph,
    *,
    neox: bool = True,
    attention: Callable[[int], blocks.Own] = lambda layer: {},
    **experts: Unpack[blocks.Feeding],
) -> None:
    """attention: what is a layer's own; experts: how they are chosen and fed."""
    rope = blocks.rope(g, h, w.ends)
    x = g.embed(w.ends.embedding)  # [n_embd]
    for i, layer in enumerate(w.layers):
        g.layer(i)
        x = blocks.attend(g, h, i, layer.attention, x, rope, neox=neox, **attention(i))
        f = g.rms_norm(x, layer.norm, h.epsilon)
        if isinstance(layer.feed, blocks.Routed):
            x = g.add(x, blocks.feed_routed(g, h, layer.feed, f, **experts))
        else:
            x = g.add(x, blocks.feed(g, layer.feed, f))
    blocks.finish(g, h, w.ends, x)
