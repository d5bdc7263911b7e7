"""Qwen3 mixture of experts (arXiv 2505.09388): grouped-query attention with normed heads, then routed experts."""

from __future__ import annotations

from hearthd.daemon.model import blocks, decoder
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.more["gating"] = blocks.gating(keys)
    return h


def tensors(h: Hyper, t: Tensors) -> decoder.Weights:
    return decoder.tensors(h, t, qk_norm="head")


def graph(h: Hyper, w: decoder.Weights, g: Graph) -> None:
    decoder.graph(h, w, g, gating=h.more["gating"])
