"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783) and Mixtral (arXiv 2401.04088): rotated in consecutive pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hearthd.daemon.model import blocks, decoder
from hearthd.daemon.model.graph import Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.n_ff_expert = h.n_ff_expert or h.n_ff
    h.more["scaling"] = blocks.rope_scaling(keys)
    h.more["gating"] = blocks.gating(keys)
    return h


@dataclass
class Weights:
    decoder: decoder.Weights
    rope_factors: np.ndarray | None  # of Llama 3's scaling


def tensors(h: Hyper, t: Tensors) -> Weights:
    return Weights(decoder.tensors(h, t), blocks.rope_factors(t, h.rope_width))


def graph(h: Hyper, w: Weights, g: Graph) -> None:
    rope = g.rope(h.rope_width, h.rope_base, factors=w.rope_factors, **h.more["scaling"])
    decoder.graph(h, w.decoder, g, rope, neox=False, gating=h.more["gating"])
