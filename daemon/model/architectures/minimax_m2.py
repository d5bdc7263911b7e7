"""MiniMax-M2: norms over whole projections, partial rotation, sigmoid routing with a bias that only chooses."""

from __future__ import annotations

from hearthd.daemon.model import blocks, decoder
from hearthd.daemon.model.graph import SIGMOID_GATING, Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.more["gating"] = blocks.gating(keys, SIGMOID_GATING)
    return h


def tensors(h: Hyper, t: Tensors) -> decoder.Weights:
    return decoder.tensors(h, t, qk_norm="whole")


def graph(h: Hyper, w: decoder.Weights, g: Graph) -> None:
    decoder.graph(h, w, g, gating=h.more["gating"])
