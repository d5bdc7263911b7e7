"""gpt-oss (OpenAI, arXiv 2508.10925): attention sinks, every other layer windowed, biases, clamped SwiGLU experts.

The last act follows openai/gpt-oss, gpt_oss/torch/model.py; the norm before the experts is named post_attention_norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearthd.daemon.model import blocks, decoder
from hearthd.daemon.model.calls import Weight
from hearthd.daemon.model.graph import SOFTMAX_CHOSEN, SWIGLU_OAI, Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common

LIMIT, ALPHA = 7.0, 1.702


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.more["window"] = keys.whole("attention.sliding_window", least=1)
    h.more["gating"] = blocks.gating(keys, SOFTMAX_CHOSEN)
    return h


@dataclass
class Weights:
    decoder: decoder.Weights
    sinks: list[Weight]


def tensors(h: Hyper, t: Tensors) -> Weights:
    sinks = [t.vector(f"blk.{i}.attn_sinks.weight", h.n_head[i]) for i in range(h.n_layer)]
    return Weights(decoder.tensors(h, t, norm="post_attention_norm"), sinks)


def graph(h: Hyper, w: Weights, g: Graph) -> None:
    def attention(layer: int) -> blocks.Own:
        return {"window": h.more["window"] if layer % 2 == 0 else 0, "sinks": w.sinks[layer]}

    experts: blocks.Feeding = {"activation": SWIGLU_OAI, "limit": LIMIT, "alpha": ALPHA, "gating": h.more["gating"]}
    decoder.graph(h, w.decoder, g, attention=attention, **experts)
