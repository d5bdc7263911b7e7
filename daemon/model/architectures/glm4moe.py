"""GLM-4.5 to 4.7 (arXiv 2508.06471): biased, partly rotated attention, leading dense layers, a shared expert.

Routing is by sigmoid with a bias that only chooses. The norm before the feed-forward is named post_attention_norm.
"""

from __future__ import annotations

from hearthd.daemon.model import blocks, decoder
from hearthd.daemon.model.graph import SIGMOID_GATING, Graph, Tensors
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys, n_vocab: int) -> Hyper:
    h = common(keys, n_vocab)
    h.more["dense"] = int(keys("leading_dense_block_count", 0))
    h.more["routing"] = {
        "gating": blocks.gating(keys, SIGMOID_GATING),
        "normalise": bool(keys("expert_weights_norm", True)),
        "scale": float(keys("expert_weights_scale", 1.0)) or 1.0,
    }
    h.more["scaling"] = blocks.rope_scaling(keys)
    return h


def tensors(h: Hyper, t: Tensors) -> decoder.Weights:
    return decoder.tensors(h, t, qk_norm="head", norm="post_attention_norm", dense=h.more["dense"])


def graph(h: Hyper, w: decoder.Weights, g: Graph) -> None:
    rope = g.rope(h.rope_width, h.rope_base, **h.more["scaling"])
    decoder.graph(h, w, g, rope, **h.more["routing"])
