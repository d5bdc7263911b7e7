"""The parts that most architectures share: grouped-query attention, a gated feed-forward, routed experts.

An architecture names what it deviates in; what no second architecture needs stays in its own file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

from hearthd.daemon.model import positions
from hearthd.daemon.model.calls import Value, Weight
from hearthd.daemon.model.graph import (
    SIGMOID,
    SIGMOID_GATING,
    SILU,
    SOFTMAX,
    SOFTMAX_CHOSEN,
    Graph,
    Tensors,
)
from hearthd.daemon.model.hyper import Hyper, Keys
from hearthd.daemon.model.positions import Factors

Bias = tuple[Weight | None, Weight | None, Weight | None]


# --- attention -------------------------------------------------------------------------------------------------------


@dataclass
class Attention:
    norm: Weight
    q: Weight
    k: Weight
    v: Weight
    o: Weight
    bias: Bias
    o_bias: Weight | None
    q_norm: Weight | None
    k_norm: Weight | None
    whole: bool  # the norms span the projection, not a head


def attention_tensors(h: Hyper, t: Tensors, i: int, *, qk_norm: Literal["no", "head", "whole"] = "no") -> Attention:
    """Biases are optional everywhere: their being in the file decides."""
    p = f"blk.{i}."
    heads, kv = h.heads(i)
    q, k, v = heads * h.head_k, kv * h.head_k, kv * h.head_v
    normed = qk_norm != "no" and p + "attn_q_norm.weight" in t
    whole = qk_norm == "whole"
    return Attention(
        norm=t.vector(p + "attn_norm.weight", h.n_embd),
        q=t.matrix(p + "attn_q.weight", q, h.n_embd),
        k=t.matrix(p + "attn_k.weight", k, h.n_embd),
        v=t.matrix(p + "attn_v.weight", v, h.n_embd),
        o=t.matrix(p + "attn_output.weight", h.n_embd, heads * h.head_v),
        bias=(
            t.optional_vector(p + "attn_q.bias", q),
            t.optional_vector(p + "attn_k.bias", k),
            t.optional_vector(p + "attn_v.bias", v),
        ),
        o_bias=t.optional_vector(p + "attn_output.bias", h.n_embd),
        q_norm=t.vector(p + "attn_q_norm.weight", q if whole else h.head_k) if normed else None,
        k_norm=t.vector(p + "attn_k_norm.weight", k if whole else h.head_k) if normed else None,
        whole=whole,
    )


class Own(TypedDict, total=False):
    """What may be one layer's own of its attention: arguments of attend."""

    window: int
    sinks: Weight | None
    head_gate: Weight | None


def attend(
    g: Graph,
    h: Hyper,
    i: int,
    w: Attention,
    x: Value,
    rope: int,
    *,
    neox: bool = True,
    window: int = 0,
    sinks: Weight | None = None,
    head_gate: Weight | None = None,
) -> Value:
    """x + attention of its norm; head_gate: a sigmoid per head (Step 3.5)."""
    heads, kv, dk, dv = h.n_head[i], h.n_head_kv[i], h.head_k, h.head_v
    keys, values = g.cache(kv, dk), g.cache(kv, dv)
    a = g.rms_norm(x, w.norm, h.epsilon)
    q, k, v = g.matmul(a, w.q, w.k, w.v, bias=w.bias)
    if w.q_norm is not None:
        g.norm_heads(q, w.q_norm, h.epsilon, *((1, q.width) if w.whole else (heads, dk)))
        g.norm_heads(k, w.k_norm, h.epsilon, *((1, k.width) if w.whole else (kv, dk)))
    g.rotate(q, rope, heads, dk, neox=neox)
    g.rotate(k, rope, kv, dk, neox=neox)
    g.store(keys, k, kv, dk)
    g.store(values, v, kv, dv)
    out = g.attention(
        q, keys, values, heads=heads, kv_heads=kv, dk=dk, dv=dv, scale=dk**-0.5, window=window, sinks=sinks
    )
    if head_gate is not None:
        out = g.scale(out, per_piece=g.activate(SIGMOID, g.matmul(a, head_gate, exact=True)), pieces=heads)
    return g.add(x, g.matmul(out, w.o, bias=(w.o_bias,)))


# --- feed-forward ----------------------------------------------------------------------------------------------------


@dataclass
class Feed:
    gate: Weight
    up: Weight
    down: Weight


def feed_tensors(h: Hyper, t: Tensors, i: int, width: int, *, suffix: str = "") -> Feed:
    p = f"blk.{i}.ffn_"
    return Feed(
        gate=t.matrix(f"{p}gate{suffix}.weight", width, h.n_embd),
        up=t.matrix(f"{p}up{suffix}.weight", width, h.n_embd),
        down=t.matrix(f"{p}down{suffix}.weight", h.n_embd, width),
    )


def feed(g: Graph, w: Feed, x: Value, *, activation: int = SILU, limit: float = 0.0) -> Value:
    gate, up = g.matmul(x, w.gate, w.up)
    return g.matmul(g.activate(activation, gate, up, limit=limit), w.down)


@dataclass
class Routed:
    router: Weight
    router_bias: Weight | None
    choice_bias: Weight | None
    gate: Weight
    up: Weight
    down: Weight
    bias: Bias
    shared: Feed | None
    shared_gate: Weight | None


def routed_tensors(h: Hyper, t: Tensors, i: int) -> Routed:
    """Experts of a layer, with what the file has beside them: biases, a shared expert, its gate."""
    p = f"blk.{i}.ffn_"
    n, ff = h.n_expert, h.n_ff_expert
    gate, up = t.gate_up(i, n, ff, h.n_embd)
    shared = None
    if p + "up_shexp.weight" in t:
        shared = feed_tensors(h, t, i, t.rows(p + "up_shexp.weight"), suffix="_shexp")

    def table(name: str, width: int) -> Weight | None:
        return t.table(p + name, n, width) if p + name in t else None

    return Routed(
        router=t.matrix(p + "gate_inp.weight", n, h.n_embd),
        router_bias=t.optional_vector(p + "gate_inp.bias", n),
        choice_bias=t.optional_vector(f"blk.{i}.exp_probs_b.bias", n),
        gate=gate,
        up=up,
        down=t.experts(p + "down_exps.weight", n, h.n_embd, ff),
        bias=(table("gate_exps.bias", ff), table("up_exps.bias", ff), table("down_exps.bias", h.n_embd)),
        shared=shared,
        shared_gate=t.matrix(p + "gate_inp_shexp.weight", 1, h.n_embd) if p + "gate_inp_shexp.weight" in t else None,
    )


def gating(keys: Keys, usual: int = SOFTMAX) -> int:
    """`expert_gating_func`: 1 softmax, 2 sigmoid, 3 softmax of the chosen; 0 or absent: the architecture's own."""
    known = {0: usual, 1: SOFTMAX, 2: SIGMOID_GATING, 3: SOFTMAX_CHOSEN}
    return keys.choice("expert_gating_func", known, usual)


class Routing(TypedDict, total=False):
    """How a router's logits become a choice: arguments of Graph.route."""

    gating: int
    normalise: bool
    scale: float
    groups: int
    groups_used: int


class Feeding(Routing, total=False):
    """What an architecture says of its experts: arguments of feed_routed."""

    activation: int
    limit: float
    shared_activation: int
    shared_limit: float
    alpha: float


def routing(keys: Keys, h: Hyper, usual: int = SOFTMAX, *, normalise: bool) -> Routing:
    """How a router's logits become a choice, as metadata says. usual, normalise: where it is
    silent."""
    groups = keys.whole("expert_group_count", 0)
    chosen = keys.whole("expert_group_used_count", 0)
    if groups > 1:
        each = h.n_expert // groups
        if h.n_expert % groups or each < 2:  # a group is judged by its two best
            raise keys.bad("expert_group_count", f"{h.n_expert} experts (expert_count) do not divide so")
        if not 1 <= chosen <= groups:
            raise keys.bad("expert_group_used_count", f"there are {groups} groups (expert_group_count)")
        if chosen * each < h.n_expert_used:
            raise keys.bad(
                "expert_group_used_count", f"they do not have {h.n_expert_used} experts (expert_used_count)"
            )
    return {
        "gating": gating(keys, usual),
        "normalise": keys.flag("expert_weights_norm", normalise),
        "scale": keys.real("expert_weights_scale", 1.0, least=0.0, most=1000.0) or 1.0,
        "groups": groups,
        "groups_used": chosen,
    }


def feed_routed(
    g: Graph,
    h: Hyper,
    w: Routed,
    x: Value,
    *,
    activation: int = SILU,
    limit: float = 0.0,
    shared_activation: int = SILU,
    shared_limit: float = 0.0,
    alpha: float = 0.0,
    **routing: Unpack[Routing],
) -> Value:
    """The experts that the router chooses, and the shared one if there is one."""
    logits = g.matmul(x, w.router, bias=(w.router_bias,))
    route = g.route(logits, h.n_expert_used, bias=w.choice_bias, **routing)
    out = g.experts(x, route, w.gate, w.up, w.down, activation=activation, limit=limit, alpha=alpha, bias=w.bias)
    if w.shared is None:
        return out
    shared = feed(g, w.shared, x, activation=shared_activation, limit=shared_limit)
    if w.shared_gate is not None:
        shared = g.scale(shared, per_piece=g.activate(SIGMOID, g.matmul(x, w.shared_gate)))
    return g.add(out, shared)


# --- the ends --------------------------------------------------------------------------------------------------------


@dataclass
class Ends:
    embedding: Weight
    norm: Weight
    output: Weight
    factors: Factors | None  # of all layers' angles


def end_tensors(h: Hyper, t: Tensors) -> Ends:
    """What no layer owns: embedding, last norm and output (a file without output ties it to the embedding), and what
    the angles of positions are divided by."""
    embedding = t.matrix("token_embd.weight", h.n_vocab, h.n_embd)
    output = t.matrix("output.weight", h.n_vocab, h.n_embd) if "output.weight" in t else embedding
    norm = t.vector("output_norm.weight", h.n_embd)
    return Ends(embedding, norm, output, positions.factors(t, h.scaling, h.rope_width))


def rope(g: Graph, h: Hyper, w: Ends) -> int:
    """The rope that all layers share."""
    return g.rope(h.rope_width, h.rope_base, h.scaling, w.factors)


def finish(g: Graph, h: Hyper, w: Ends, x: Value) -> None:
    """Logits of the rows that want them."""
    g.logits(g.rms_norm(g.select(x), w.norm, h.epsilon), w.output)
