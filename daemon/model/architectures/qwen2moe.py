"""Qwen1.5 and Qwen2 mixture of experts (arXiv 2407.10671): biased projections, a gated shared expert."""

from __future__ import annotations

from hearthd.daemon.model import blocks, decoder
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.more["gating"] = blocks.gating(keys)
    return h


def tensors(h: Hyper, t: Tensors) -> decoder.Weights:
    return decoder.tensors(h, t)


def graph(h: Hyper, w: decoder.Weights, g: Graph) -> None:
    decoder.graph(h, w, g, gating=h.more["gating"], normalise=False)
