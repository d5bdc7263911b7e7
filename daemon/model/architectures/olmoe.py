"""OLMoE (Muennighoff et al., arXiv 2409.02060): norms over whole projections; expert weights not renormalised."""

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
    return decoder.tensors(h, t, qk_norm="whole")


def graph(h: Hyper, w: decoder.Weights, g: Graph) -> None:
    decoder.graph(h, w, g, gating=h.more["gating"], normalise=False)
