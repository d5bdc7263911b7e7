"""Qwen2 and Qwen2.5, dense (arXiv 2407.10671): biased projections, then a gated feed-forward."""

from __future__ import annotations

from hearthd.daemon.model import decoder
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    return h


def tensors(h: Hyper, t: Tensors) -> decoder.Weights:
    return decoder.tensors(h, t)


def graph(h: Hyper, w: decoder.Weights, g: Graph) -> None:
    decoder.graph(h, w, g)
