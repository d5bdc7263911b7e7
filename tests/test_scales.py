"""`NAME.scale`: what a tensor's products are multiplied by, for every matrix of a model, on every way; or a refusal."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hearthd.cyext import kernels
from hearthd.daemon.client import Client
from hearthd.daemon.model import architectures
from hearthd.daemon.model.gguf import ModelError, open_model

from tests.opened import Opened, logits_of
from tests.rewritten import rewritten, values_of

TOKENS = np.array([5, 6, 7, 8, 9, 3, 4, 2], np.int32)
EVERY = {  # of each file the matrices that take part in products, by the end of their names
    "arch/qwen3.gguf": ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "token_embd"],
    "arch/deepseek2.gguf": ["attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "ffn_gate_inp", "output",
                            "ffn_up_shexp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"],
    "arch/gpt-oss.gguf": ["attn_q", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"],
    "arch/qwen35moe.gguf": ["attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_out", "ffn_gate_inp_shexp"],
}  # fmt: skip


def scaled(source, target, kinds):
    """A copy whose matrices are divided by powers of two, exactly, with these in their `.scale`."""
    tensors = {}
    for number, (name, values) in enumerate(values_of(source).items()):
        stem = name.removesuffix(".weight")
        if name == stem or stem.split(".")[-1] not in kinds:
            continue
        experts = len(values) if stem.endswith("_exps") else 1
        scale = (2.0 ** (np.arange(number, number + experts) % 5 - 2)).astype(np.float32)
        divided = values / (scale[:, None, None] if experts > 1 else scale)
        tensors |= {name: divided.astype(np.float32), f"{stem}.scale": scale}
    return rewritten(source, target, tensors=tensors)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("file", EVERY)
def test_every_matrix_is_multiplied_by_its_own(models_dir, tmp_path, file, isa):
    source = models_dir / file
    plain = rewritten(source, tmp_path / "plain.gguf", tensors={
        name: values for name, values in values_of(source).items() if name.split(".")[-2] in EVERY[file]
    })  # fmt: skip
    with Opened(plain, isa=isa) as engine:
        expected = [logits_of(engine, TOKENS, chunk)[0] for chunk in (None, 1)]
    with Opened(scaled(source, tmp_path / "scaled.gguf", EVERY[file]), isa=isa) as engine:
        for chunk, logits in zip((None, 1), expected, strict=True):
            np.testing.assert_array_equal(logits_of(engine, TOKENS, chunk)[0], logits)


def nvfp4(source, target, scale):
    """A copy with experts in NVFP4, gate and up in one tensor, and all with this scale for each expert."""
    tensors = {}
    rng = np.random.default_rng(3)
    for tensor in gguf.GGUFReader(source).tensors:
        stem, _, kind = tensor.name.partition("_exps.")
        if not kind or kind == "bias":
            continue
        cols, rows, experts = (int(n) for n in tensor.shape)
        if stem.endswith("gate"):
            tensors[tensor.name] = None
            continue
        if stem.endswith("up"):
            tensors[tensor.name] = None
            stem, rows = stem.replace("ffn_up", "ffn_gate_up"), 2 * rows
        blocks = rng.integers(0, 256, (experts, rows, cols // 64, 36), dtype=np.uint8)
        blocks[..., :4] = rng.choice(np.array([0x18, 0x20, 0x28], np.uint8), (experts, rows, cols // 64, 4))
        tensors[f"{stem}_exps.weight"] = (gguf.GGMLQuantizationType.NVFP4, blocks.reshape(experts, rows, -1))
        tensors[f"{stem}_exps.scale"] = np.full(experts, scale, np.float32)
        tensors[f"{stem}_exps.input_scale"] = np.ones(experts, np.float32)
    return rewritten(source, target, tensors=tensors)


def test_a_file_with_experts_in_nvfp4(models_dir, tmp_path, start_daemon):
    """As publishers scale them: another scale gives other logits, and what is meant for activations of 4 bits is left
    out without a warning."""
    source, logits = models_dir / "tiny" / "moe-f16.gguf", []
    for number, scale in enumerate((0.5, 1.0)):
        path = nvfp4(source, tmp_path / f"{number}.gguf", scale)
        values = {
            name: v * np.float32(scale) if "_exps." in name else v
            for name, v in values_of(path).items()
            if not name.endswith("scale")
        }
        with Opened(rewritten(source, tmp_path / f"float-{number}.gguf", tensors=split(values))) as engine:
            expected = logits_of(engine, TOKENS)[0]
        with Opened(path) as engine:
            logits.append(logits_of(engine, TOKENS)[0])
        error = ((logits[-1] - expected) ** 2).sum(1) / (expected**2).sum(1)
        assert np.median(error) < 1e-3
    assert np.abs(logits[0] - logits[1]).max() > 0.01
    daemon = start_daemon(str(path))
    with Client(daemon.endpoint) as client:
        assert not any("tensors" in warning.code for warning in client.status().warnings)


def split(values):
    """Gate and up as two tensors again."""
    found = {}
    for name, v in values.items():
        if "gate_up_exps" in name:
            half = v.shape[1] // 2
            found[name.replace("gate_up", "gate")], found[name.replace("gate_up", "up")] = v[:, :half], v[:, half:]
        elif "_exps." in name:
            found[name] = v
    return found


@pytest.mark.parametrize(
    ("file", "name", "values"),
    [
        ("tiny/moe-f16", "blk.0.attn_q.scale", np.ones(2, np.float32)),  # one is wanted
        ("tiny/moe-f16", "blk.0.attn_q.scale", np.ones(1, np.float16)),
        ("tiny/moe-f16", "blk.0.ffn_up_exps.scale", np.ones(1, np.float32)),  # one for each expert is wanted
        ("tiny/moe-f16", "blk.0.attn_norm.scale", np.ones(1, np.float32)),  # no product
        ("arch/qwen3", "output.scale", np.ones(1, np.float32)),  # the output is the embedding
        ("arch/mixtral-oldsplit-q8_0", "blk.0.ffn_up.1.scale", np.ones(1, np.float32)),
    ],
)
def test_a_scale_that_cannot_be_meant_is_refused(models_dir, tmp_path, file, name, values):
    path = rewritten(models_dir / f"{file}.gguf", tmp_path / "model.gguf", tensors={name: values})
    with pytest.raises(ModelError, match=name):
        architectures.check(open_model(path))


def test_a_scale_that_is_no_number_is_refused(models_dir, tmp_path):
    bad = {"blk.0.attn_q.scale": np.full(1, np.nan, np.float32)}
    path = rewritten(models_dir / "tiny" / "moe-f16.gguf", tmp_path / "model.gguf", tensors=bad)
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.scale"):
        Opened(path)
