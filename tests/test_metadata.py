"""What a file says of itself is not true until checked: refusals before READY, and an account of every tensor."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hearthd.cyext.gguf_header import Array, parse
from hearthd.daemon import client, exit_codes
from hearthd.daemon.cli import demo_model
from hearthd.daemon.config import Config
from hearthd.daemon.hearth import Hearth
from hearthd.daemon.model.gguf import ModelError, open_model
from hearthd.daemon.model.plan import Machine, plan
from hearthd.daemon.model.synth.write import encode_header, padded

from tests.opened import Opened, logits_of

PACKAGED = demo_model()
F32 = 0
NAN = math.nan
MACHINE = Machine(8 << 30, 8 << 30, 8 << 30, "test")


def changed(
    source: str | os.PathLike[str],
    target: Path,
    keys: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    shapes: Mapping[str, tuple[tuple[int, ...], int]] | None = None,
    more: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """A copy with other metadata (None takes a key away; ARCH stands for the architecture), other names of tensors,
    other shapes and types of them, and more F32 tensors of these shapes, full of ones."""
    header = parse(source)
    metadata = {k: v.tolist() if isinstance(v, Array) else v for k, v in header.metadata.items()}
    metadata |= {k.replace("ARCH", metadata["general.architecture"], 1): v for k, v in keys.items()}
    tensors = [((names or {}).get(n, n), *(shapes or {}).get(n, (shape, kind)), size)
               for n, kind, shape, _, size in header.tensors]  # fmt: skip
    data = Path(source).read_bytes()[header.data_offset :]
    data += bytes(padded(len(data)) - len(data))
    for name, shape in (more or {}).items():
        body = np.ones(math.prod(shape), "<f4").tobytes()
        tensors.append((name, shape, F32, len(body)))
        data += body + bytes(padded(len(body)) - len(body))
    target.write_bytes(encode_header({k: v for k, v in metadata.items() if v is not None}, tensors) + data)
    return target


def refusal(path: Path) -> ModelError:
    """What the daemon says of the file before READY."""
    with pytest.raises(ModelError) as caught:
        Hearth(Config(model=str(path), threads=1))
    return caught.value


# Of the packaged model: 5 layers of 256 values, 8 heads of 32, 4 of keys and values, 2 of 16 experts.
IMPOSSIBLE: dict[str, list[Any]] = {
    "block_count": [0, -1, 60_000_000, 4, 6, "5", 5.0, True, [5], None],
    "nextn_predict_layers": [1, 5, -1, 1 << 40],
    "embedding_length": [0, 128, 1 << 40],
    "attention.head_count": [0, 7, [8] * 4, "8", NAN],
    "attention.head_count_kv": [0, 3, -4, [4, 4, 4, 4, 0]],
    "attention.key_length": [0, 33, "32"],
    "rope.dimension_count": [0, -2, 31, 34, 1_000_000, [32]],
    "rope.freq_base": [NAN, math.inf, 0.0, -1.0, "10000", False],
    "rope.scaling.type": ["nobody-knows", 1],
    "attention.layer_norm_rms_epsilon": [NAN, 0.0, -1e-6, "1e-6"],
    "expert_count": [0, 15, 17, -1, 1 << 31],
    "expert_used_count": [None, 0, -1, 17, 100, 2.0, [2]],
    "expert_gating_func": [9, -1, "sigmoid", 1.0],
    "context_length": [-7, 1 << 40, "many"],
}
OTHERS: list[tuple[str, str, list[Any]]] = [
    ("deepseek2", "expert_group_count", [3, 1 << 40]),
    ("deepseek2", "expert_group_used_count", [0, 99, -1]),
    ("deepseek2", "expert_weights_scale", [NAN, -1.0, math.inf]),
    ("deepseek2", "leading_dense_block_count", [99, -1]),
    ("deepseek2", "rope.dimension_count", [0, 1 << 20]),
    ("glm4moe", "nextn_predict_layers", [0, 3, 9]),
    ("gpt-oss", "attention.sliding_window", [0, -1, None]),
    ("qwen35moe", "full_attention_interval", [0, -1]),
    ("qwen35moe", "ssm.group_count", [0, 3]),
    ("qwen35moe", "ssm.inner_size", [0, 1, 1 << 31]),
    ("qwen35moe", "ssm.time_step_rank", [0, 1 << 20]),
    ("step35", "attention.sliding_window_pattern", [[True], "no", [0.5, 0.5, 0.5]]),
    ("step35", "moe_every_n_layers", [0]),
    ("step35", "rope.dimension_count", [6, 2]),
    ("step35", "swiglu_clamp_exp", [[0.0, NAN, 0.0], [1.0]]),
]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_number_is_refused_by_its_key(tmp_path: Path, name: str) -> None:
    for value in IMPOSSIBLE[name]:
        error = refusal(changed(PACKAGED, tmp_path / "m.gguf", {f"ARCH.{name}": value}))
        assert name in str(error), (value, str(error))


def test_an_impossible_number_of_any_architecture_is_refused_by_its_key(tmp_path: Path, models_dir: Path) -> None:
    for model, name, values in OTHERS:
        for value in values:
            path = changed(models_dir / "arch" / f"{model}.gguf", tmp_path / "m.gguf", {f"ARCH.{name}": value})
            assert name in str(refusal(path)), (model, name, value)


def test_general_keys_of_another_type_are_refused_or_do_not_matter(tmp_path: Path) -> None:
    for key, value in (
        ("general.architecture", 3),
        ("general.architecture", "mamba"),
        ("general.alignment", "32"),
        ("split.count", "1"),
        ("split.count", 2),
        ("split.no", 7),
        ("split.tensors.count", 1.5),
    ):
        assert key in str(refusal(changed(PACKAGED, tmp_path / "m.gguf", {key: value})))
    assert open_model(changed(PACKAGED, tmp_path / "m.gguf", {"general.name": 7})).name == "m"


def test_values_that_angles_are_made_of_are_checked(tmp_path: Path, models_dir: Path) -> None:
    source = models_dir / "arch" / "llama3.gguf"
    for values in ((8,), (0,)):
        path = changed(
            source, tmp_path / "m.gguf", {}, names={"rope_freqs.weight": "old"}, more={"rope_freqs.weight": values}
        )
        assert refusal(path).tensor == "rope_freqs.weight"


def test_tensors_that_no_kernel_can_read_are_refused(tmp_path: Path) -> None:
    router, norm = "blk.0.ffn_gate_inp.weight", "blk.0.attn_norm.weight"
    i8, i16 = 24, 25
    for name, shape, kind in (
        (router, (256, 16), i8),
        (router, (256, 16), i16),
        (norm, (128,), F32),
        (norm, (256, 0), F32),
    ):
        error = refusal(changed(PACKAGED, tmp_path / "m.gguf", {}, shapes={name: (shape, kind)}))
        assert error.tensor == name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("merges", None),
        ("merges", [1, 2]),
        ("model", "no_vocab"),
        ("pre", "no-such"),
        ("token_type", [1] * 100),
        ("token_type", [1] * 4097),
        ("tokens", [1, 2]),
        ("eos_token_id", 4096),
        ("bos_token_id", "0"),
    ],
)
def test_a_tokenizer_that_cannot_be_made_is_refused_before_ready(tmp_path: Path, key: str, value: Any) -> None:
    path = changed(PACKAGED, tmp_path / "m.gguf", {f"tokenizer.ggml.{key}": value})
    assert f"tokenizer.ggml.{key}" in refusal(path).reason


def test_a_chat_template_that_is_no_text_is_told(tmp_path: Path, start_daemon: Callable[..., Any]) -> None:
    daemon = start_daemon(str(changed(PACKAGED, tmp_path / "m.gguf", {"tokenizer.chat_template": 7})))
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        assert hearth.generate("Once", max_tokens=1).done.tokens
        told = {warning.code: warning.message for warning in hearth.status().warnings}
        assert "tokenizer.chat_template is no text" in told["chat-template"]
        with pytest.raises(client.RequestError, match="no chat template") as refused:
            hearth.chat([{"role": "user", "content": "hi"}]).done  # noqa: B018
        assert refused.value.code == "no-template"


def test_the_command_ends_with_65_before_it_says_ready(tmp_path: Path) -> None:
    path = changed(PACKAGED, tmp_path / "m.gguf", {"ARCH.block_count": 1})
    ended = subprocess.run(
        [sys.executable, "-m", "hearthd.daemon.cli", path, "--control", f"ipc://{tmp_path}/c"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert ended.returncode == exit_codes.DATA
    assert "key qwen3moe.block_count: 1: " in ended.stderr
    assert "ready after" not in ended.stderr and "Traceback" not in ended.stderr


def test_foreign_tensors_are_told_and_left_alone(tmp_path: Path, start_daemon: Callable[..., Any]) -> None:
    foreign = {"v.blk.0.attn.weight": (1024, 256), "blk.0.nobody.weight": (64,), "logit_scale": (), "marker": (0, 4)}
    path = changed(PACKAGED, tmp_path / "m.gguf", {}, more=foreign)
    before = plan(PACKAGED, MACHINE)
    after = plan(str(path), MACHINE)
    assert after["bytes"]["dense"] == before["bytes"]["dense"]
    assert after["bytes"]["left_out"] == {"senses": 4 * 1024 * 256, "unknown": 4 * 64 + 4}
    daemon = start_daemon(str(path), "--warm", "before-ready")
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        told = {warning.code: warning.message for warning in hearth.status().warnings}
        for name in ("blk.0.nobody.weight", "logit_scale", "marker"):
            assert name in told["tensors-unknown"]
        assert "v.blk.0.attn.weight" in told["tensors-senses"]
        rows = hearth.residency("tensor")["rows"]
        assert {row["tensor"] for row in rows}.isdisjoint(foreign)
        assert sum(row["total"] for row in rows) == before["bytes"]["total"]
        assert len(hearth.generate("Once", max_tokens=3, temperature=0).done.tokens) == 3


def test_layers_that_only_predict_are_no_layers_that_run(models_dir: Path) -> None:
    path = models_dir / "arch" / "glm4moe.gguf"
    hearth = Hearth(Config(model=str(path), threads=1))
    try:
        assert (hearth.info.layers, hearth.info.layers_in_file) == (2, 3)
        assert sorted(set(hearth.table.layer.tolist())) == [-1, 0, 1]
        assert not any(warning.code.startswith("tensors-") for warning in hearth.warnings)
    finally:
        hearth.close()
    found = plan(str(path), MACHINE)
    assert (found["model"]["layers"], found["model"]["layers_in_file"]) == (2, 3)
    assert found["bytes"]["left_out"].keys() == {"prediction"}


def test_tokens_beyond_the_embedding_are_told_and_refused(tmp_path: Path, start_daemon: Callable[..., Any]) -> None:
    metadata = parse(PACKAGED).metadata
    tokens = [*metadata["tokenizer.ggml.tokens"].tolist(), "<|extra|>"]
    kinds = [*metadata["tokenizer.ggml.token_type"].tolist(), 4]
    keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    daemon = start_daemon(str(changed(PACKAGED, tmp_path / "m.gguf", keys)))
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        assert "vocabulary-over-embedding" in {warning.code for warning in hearth.status().warnings}
        assert hearth.tokenize("<|extra|>") == [4096]
        with pytest.raises(client.RequestError) as caught:
            hearth.generate("a<|extra|>b", max_tokens=1).done  # noqa: B018
        assert (caught.value.code, caught.value.field) == ("bad-field", "prompt")
        with pytest.raises(client.RequestError) as caught:
            hearth.score(text="a<|extra|>b")
        assert (caught.value.code, caught.value.field) == ("bad-field", "text")
        assert hearth.generate("Once", max_tokens=1, temperature=0).done.tokens


def test_operations_that_reach_beyond_what_is_there_are_refused() -> None:
    with Opened(PACKAGED) as engine:
        expected, _ = logits_of(engine, np.arange(5))
        program = engine.program
        narrow, wide, choice = program.buffer(8), program.buffer(64), program.buffer(17)
        short, stream = program.rope(np.ones(2)), program.stream(1, 8)
        for kind, operands in {
            "norm": {"ins": [narrow], "outs": [narrow], "ints": [2, 8, 8, 0, 0]},
            "rope": {"ins": [narrow], "outs": [narrow], "ints": [short, 2, 8, 0, 0]},
            "store": {"ins": [wide], "ints": [stream, 2, 8, 0, 8, 0]},
            "attend": {"ins": [wide], "outs": [wide], "weights": [-1], "ints": [3, 2, 8, 8, 0, stream, stream, 8, 0]},
            "add": {"ins": [narrow, wide], "outs": [wide]},
            "scale": {"ins": [wide, -1], "outs": [wide], "ints": [0]},
            "copy": {"ins": [narrow], "outs": [wide], "ints": [1, 8, 1, 8, 0, 8]},
            "route": {"ins": [choice], "outs": [wide, wide], "weights": [-1], "ints": [2, 0, 0, 0, 1]},
            "delta": {"ins": [wide, wide], "outs": [wide], "ints": [3, 2, 8, 8, 0, 0, 0]},
            "select": {"ins": [1000], "outs": [wide]},
        }.items():
            with pytest.raises(ValueError, match=kind):
                program.op(kind, 0, **operands)
        assert np.array_equal(logits_of(engine, np.arange(5))[0], expected)
