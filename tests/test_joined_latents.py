"""DeepSeek files from before April 2025: keys' and values' projections in one tensor, lengths of plain heads."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
from hearthd.cyext import kernels
from hearthd.daemon.model.gguf import ModelError, open_model
from hearthd.daemon.model.plan import Machine, plan

from tests.opened import Opened, logits_of, nmse
from tests.rewritten import rewritten, values_of

HEADS, RANK, PLAIN, ROTARY, VALUE = 4, 64, 32, 16, 64
OLD = {"key_length_mla": None, "value_length_mla": None, "key_length": PLAIN + ROTARY, "value_length": VALUE,
       "head_count_kv": HEADS}  # fmt: skip
TYPES = {"BF16": 1e-5, "F32": 1e-5, "Q8_0": 1e-3}


def joined(source, target, kind="BF16", *, keys=OLD, more=None):
    """`source` as its converter would have written it then; more: other tensors and their values."""
    values, tensors = values_of(source), dict(more or {})
    for name in values:
        if not name.endswith("attn_k_b.weight"):
            continue
        other = name.replace("attn_k_b", "attn_v_b")
        both = np.concatenate([values[name].transpose(0, 2, 1), values[other]], 1).reshape(-1, RANK)
        number = gguf.GGMLQuantizationType[kind]
        data = gguf.quantize(np.ascontiguousarray(both), number)
        tensors |= {name: None, other: None, name.replace("attn_k_b", "attn_kv_b"): (number, data)}
    return rewritten(source, target, keys={f"ARCH.attention.{k}": v for k, v in keys.items()}, tensors=tensors)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("kind", TYPES)
def test_the_same_logits_as_from_todays_layout(models_dir, tmp_path, kind, isa):
    folder = models_dir / "arch"
    exact = np.load(folder / "reference.npz")
    limit = max(1.5 * json.loads((folder / "reference.json").read_text())["deepseek2"]["llamacpp_median_position_nmse"],
                TYPES[kind])  # fmt: skip
    tokens = exact["deepseek2/tokens"].astype(np.int32)
    with Opened(joined(folder / "deepseek2.gguf", tmp_path / "model.gguf", kind), isa=isa) as engine:
        for chunk in (None, 7, 1):
            assert nmse(logits_of(engine, tokens, chunk)[0], exact["deepseek2/logits"]) <= limit, chunk
        if "deepseek2/long_tokens" in exact and isa != "c":
            long = exact["deepseek2/long_tokens"].astype(np.int32)
            tail = exact["deepseek2/long_tail_logits"]
            assert nmse(logits_of(engine, long)[0][-len(tail) :], tail) <= 10 * limit


def test_without_a_latent_of_the_queries(models_dir, tmp_path):
    """As in DeepSeek-V2-Lite: one matrix for the queries, in both layouts."""
    source = models_dir / "arch" / "deepseek2.gguf"
    rng = np.random.default_rng(3)
    more = {}
    for layer in range(2):
        p = f"blk.{layer}.attn_q"
        whole = rng.standard_normal((HEADS * (PLAIN + ROTARY), 256)).astype(np.float32) / 16
        more |= {f"{p}_a.weight": None, f"{p}_a_norm.weight": None, f"{p}_b.weight": None, f"{p}.weight": whole}
    today = rewritten(source, tmp_path / "today.gguf", keys={"ARCH.attention.q_lora_rank": None}, tensors=more)
    old = joined(source, tmp_path / "old.gguf", keys=OLD | {"q_lora_rank": None}, more=more)
    tokens = np.arange(5, 45, dtype=np.int32)
    with Opened(today) as one, Opened(old) as other:
        expected = logits_of(one, tokens)[0]
        assert nmse(logits_of(other, tokens)[0], expected) < 1e-6


def test_the_cache_is_as_small_as_todays(models_dir, tmp_path):
    source = models_dir / "arch" / "deepseek2.gguf"
    machine = Machine(ram=1 << 34, available=1 << 34, budget=1 << 34, budget_reason="")
    path = joined(source, tmp_path / "model.gguf")
    planned = plan(open_model(path), machine, context=4096)["cache"]
    todays = plan(open_model(source), machine, context=4096)["cache"]
    of_steps = {"bytes", "step_bytes"}  # their buffers are those of another graph
    for key in (planned.keys() | todays.keys()) - of_steps:
        assert planned[key] == todays[key], key
    assert planned["bytes"] <= todays["bytes"]
    with Opened(path) as engine:
        assert engine.kv_bytes_per_token == planned["bytes_per_token"] == 2 * 2 * (RANK + ROTARY)


def test_lengths_that_do_not_fit_the_tensor_are_refused(models_dir, tmp_path):
    path = joined(models_dir / "arch" / "deepseek2.gguf", tmp_path / "model.gguf", keys=OLD | {"value_length": 32})
    with pytest.raises(ModelError, match=r"attn_kv_b\.weight"):
        Opened(path)
