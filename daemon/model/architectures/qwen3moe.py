"""Qwen3 mixture of experts (arXiv 2505.09388): grouped-query attention with normed heads, then routed experts."""

from __future__ import annotations

from dataclasses import dataclass

from hearthd.daemon.model.graph import Graph, Tensors, Weight
from hearthd.daemon.model.hyper import Hyper, Keys, common


def hyperparameters(keys: Keys, n_vocab: int) -> Hyper:
    return common(keys, n_vocab)


@dataclass
class Layer:
    attn_norm: Weight
    q: Weight
    k: Weight
    v: Weight
    o: Weight
    q_norm: Weight
    k_norm: Weight
    ffn_norm: Weight
    router: Weight
    gate: Weight
    up: Weight
    down: Weight


@dataclass
class Weights:
    embedding: Weight
    layers: list[Layer]
    norm: Weight
    output: Weight


def tensors(h: Hyper, t: Tensors) -> Weights:
    layers = []
    for i in range(h.n_layer):
        p = f"blk.{i}."
        heads, kv = h.n_head[i], h.n_head_kv[i]
        gate, up = t.gate_up(i, h.n_expert, h.n_ff_expert, h.n_embd)
        layers.append(
            Layer(
                attn_norm=t.vector(p + "attn_norm.weight", h.n_embd),
                q=t.matrix(p + "attn_q.weight", heads * h.head_k, h.n_embd),
                k=t.matrix(p + "attn_k.weight", kv * h.head_k, h.n_embd),
                v=t.matrix(p + "attn_v.weight", kv * h.head_v, h.n_embd),
                o=t.matrix(p + "attn_output.weight", h.n_embd, heads * h.head_v),
                q_norm=t.vector(p + "attn_q_norm.weight", h.head_k),
                k_norm=t.vector(p + "attn_k_norm.weight", h.head_k),
                ffn_norm=t.vector(p + "ffn_norm.weight", h.n_embd),
                router=t.matrix(p + "ffn_gate_inp.weight", h.n_expert, h.n_embd),
                gate=gate,
                up=up,
                down=t.experts(p + "ffn_down_exps.weight", h.n_expert, h.n_embd, h.n_ff_expert),
            )
        )
    embedding = t.matrix("token_embd.weight", h.n_vocab, h.n_embd)
    output = t.matrix("output.weight", h.n_vocab, h.n_embd) if "output.weight" in t else embedding
    return Weights(embedding, layers, t.vector("output_norm.weight", h.n_embd), output)


def graph(h: Hyper, w: Weights, g: Graph) -> None:
    rope = g.rope(h.rope_width, h.rope_base)
    x = g.embed(w.embedding)  # [n_embd]
    for i, layer in enumerate(w.layers):
        g.layer(i)
        heads, kv, dk, dv = h.n_head[i], h.n_head_kv[i], h.head_k, h.head_v
        keys, values = g.cache(kv, dk), g.cache(kv, dv)

        q, k, v = g.matmul(g.rms_norm(x, layer.attn_norm, h.epsilon), layer.q, layer.k, layer.v)
        g.rotate(g.norm_heads(q, layer.q_norm, h.epsilon, heads, dk), rope, heads, dk)  # q [heads, dk]
        g.rotate(g.norm_heads(k, layer.k_norm, h.epsilon, kv, dk), rope, kv, dk)  # k [kv, dk]
        g.store(keys, k, kv, dk)
        g.store(values, v, kv, dv)
        a = g.attention(q, keys, values, heads=heads, kv_heads=kv, dk=dk, dv=dv, scale=dk**-0.5)
        x = g.add(x, g.matmul(a, layer.o))

        f = g.rms_norm(x, layer.ffn_norm, h.epsilon)
        route = g.route(g.matmul(f, layer.router), h.n_expert_used)
        x = g.add(x, g.experts(f, route, layer.gate, layer.up, layer.down))
    g.logits(g.rms_norm(g.select(x), w.norm, h.epsilon), w.output)
