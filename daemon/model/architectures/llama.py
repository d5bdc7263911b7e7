"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783) and Mixtral (arXiv 2401.04088): rotated in consecutive pairs."""

from __future__ import annotations

from hearthd.daemon.model import blocks, decoder
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.n_ff_expert = h.n_ff_expert or h.n_ff
    h.more["gating"] = blocks.gating(keys)
    return h


def tensors(h: Hyper, t: Tensors) -> decoder.Weights:
    return decoder.tensors(h, t)


def graph(h: Hyper, w: decoder.Weights, g: Graph) -> None:
    decoder.graph(h, w, g, neox=False, gating=h.more["gating"])
