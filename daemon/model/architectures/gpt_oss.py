"""gpt-oss (OpenAI, arXiv 2508.10925): attention sinks, every other layer windowed, biases, clamped SwiGLU experts.

The last act follows openai/gpt-oss, gpt_oss/torch/model.py; the norm before the experts is named post_attention_norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearthd.daemon.model import blocks
from hearthd.daemon.model.graph import SOFTMAX_CHOSEN, SWIGLU_OAI, Graph, Tensors, Weight
from hearthd.daemon.model.hyper import Hyper, Keys, common

LIMIT, ALPHA = 7.0, 1.702


def hyperparameters(keys: Keys, n_vocab: int) -> Hyper:
    h = common(keys, n_vocab)
    h.more["scaling"] = blocks.rope_scaling(keys)
    h.more["window"] = int(keys("attention.sliding_window"))
    return h


@dataclass
class Layer:
    attention: blocks.Attention
    sinks: Weight
    norm: Weight
    experts: blocks.Routed


@dataclass
class Weights:
    ends: blocks.Ends
    layers: list[Layer]


def tensors(h: Hyper, t: Tensors) -> Weights:
    layers = [
        Layer(
            attention=blocks.attention_tensors(h, t, i),
            sinks=t.vector(f"blk.{i}.attn_sinks.weight", h.n_head[i]),
            norm=t.vector(f"blk.{i}.post_attention_norm.weight", h.n_embd),
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
        window = h.more["window"] if i % 2 == 0 else 0
        x = blocks.attend(g, h, i, layer.attention, x, rope, window=window, sinks=layer.sinks)
        f = g.rms_norm(x, layer.norm, h.epsilon)
        routed = blocks.feed_routed(
            g, h, layer.experts, f, activation=SWIGLU_OAI, limit=LIMIT, alpha=ALPHA, gating=SOFTMAX_CHOSEN
        )
        x = g.add(x, routed)
    blocks.finish(g, h, w.ends, x)
