"""GLM-4.5 to 4.7 (arXiv 2508.06471): biased, partly rotated attention, leading dense layers, a shared expert.

Routing is by sigmoid with a bias that only chooses. The norm before the feed-forward is named post_attention_norm.
"""

from __future__ import annotations

from hearthd.daemon.model import blocks, decoder
from hearthd.daemon.model.graph import SIGMOID_GATING, Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys) -> Hyper:
    h = common(keys)
    h.more["dense"] = keys.whole("leading_dense_block_count", 0, most=h.n_block)
    h.more["routing"] = blocks.routing(keys, h, SIGMOID_GATING, normalise=True)
    return h


def tensors(h: Hyper, t: Tensors) -> decoder.Weights:
    return decoder.tensors(h, t, qk_norm="head", norm="post_attention_norm", dense=h.more["dense"])


def graph(h: Hyper, w: decoder.Weights, g: Graph) -> None:
    decoder.graph(h, w, g, **h.more["routing"])
