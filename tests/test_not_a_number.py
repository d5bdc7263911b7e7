"""A NaN or an infinity in a weight ends as an error of the request that used it: no kernel makes a number of it again,
on any way, and nobody else notices.
"""

from __future__ import annotations

import numpy as np
import pytest
from hearthd.cyext import kernels
from hearthd.daemon.client import Client, RequestError

from tests.opened import Opened, logits_of, stepped
from tests.rewritten import rewritten, values_of
from tests.test_kernels import ACT_F32, ACT_Q8, HALVES, TYPES, blocks_of, columns

BAD = (np.nan, np.inf, -np.inf)
FEW_AND_MANY = (1, 2, 5, 13)
TOKENS = np.array([5, 6, 7, 8, 9, 3], np.int32)


@pytest.mark.parametrize("isa", kernels.available())
def test_packing_keeps_them_in_the_scale_of_their_block(isa):
    rng = np.random.default_rng(1)
    for bad in BAD:
        for place in (0, 15, 31, 32 + 7, 64 + 24):
            x = rng.standard_normal(96).astype(np.float32)
            good = kernels.act_pack(ACT_Q8, x, isa)[96 : 96 + 12].view(np.float32)
            x[place] = bad
            packed = kernels.act_pack(ACT_Q8, x, isa)
            np.testing.assert_array_equal(packed, kernels.act_pack(ACT_Q8, x, "c"))
            scales = packed[96 : 96 + 12].view(np.float32)
            assert not np.isfinite(scales[place // 32])
            assert [s for b, s in enumerate(scales) if b != place // 32] == [
                s for b, s in enumerate(good) if b != place // 32
            ]


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", TYPES)
def test_a_token_that_has_one_gets_no_numbers_and_its_neighbours_the_same(name, isa):
    rows, k = 35, columns(name, 3)
    weights = blocks_of(name, rows * k)
    for n in FEW_AND_MANY:
        x = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
        for act in {ACT_F32, kernels.act_for(TYPES[name], isa)}:
            whole = kernels.product(TYPES[name], weights, rows, k, x, isa, act=act)
            for bad in BAD:
                spoilt = x.copy()
                spoilt[n // 2, k // 2 + 1] = bad
                got = kernels.product(TYPES[name], weights, rows, k, spoilt, isa, act=act)
                assert not np.isfinite(got[n // 2]).any(), (n, act, bad)
                others = np.arange(n) != n // 2
                np.testing.assert_array_equal(got[others], whole[others])


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", HALVES)
def test_a_block_without_a_number_for_scale_spoils_its_row_only(name, isa):
    rows, k = 35, columns(name, 3)
    block, width = kernels.types()[TYPES[name]][1:]
    good = blocks_of(name, rows * k)
    for half in (b"\x00\x7e", b"\x00\x7c"):  # NaN, infinity
        weights = good.copy()
        at = (17 * (k // block) + 1 % (k // block)) * width + HALVES[name][0]
        weights[at : at + 2] = np.frombuffer(half, np.uint8)
        for n in FEW_AND_MANY:
            x = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
            whole = kernels.product(TYPES[name], good, rows, k, x, isa)
            got = kernels.product(TYPES[name], weights, rows, k, x, isa)
            assert not np.isfinite(got[:, 17]).any(), (n, half)
            others = np.arange(rows) != 17
            np.testing.assert_array_equal(got[:, others], whole[:, others])


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("kind", range(7))
def test_no_activation_makes_a_number_of_them(kind, isa):
    takes_up = kind not in (5, 6)  # sigmoid and silu of the gate alone
    for bad in BAD:
        for n in (1, 8, 21):
            gate, up = np.ones(n, np.float32), np.ones(n, np.float32)
            for spoilt in (gate, up) if takes_up else (gate,):
                spoilt[-1] = bad
                got = kernels.activate(kind, gate, up, isa=isa)
                assert not np.isfinite(got[-1]) and np.isfinite(got[:-1]).all(), (bad, n)
                spoilt[-1] = 1


@pytest.mark.parametrize("isa", kernels.available())
def test_a_norm_is_of_numbers_or_none(isa):
    x = np.random.default_rng(2).standard_normal(70).astype(np.float32)
    for bad in BAD:
        spoilt = x.copy()
        spoilt[33] = bad
        assert np.isnan(kernels.rms_norm(spoilt, isa=isa)).all()
    large = kernels.rms_norm(x * np.float32(1e30), isa=isa)  # squares that no float holds
    np.testing.assert_allclose(large, kernels.rms_norm(x, eps=0.0, isa=isa), rtol=1e-5)


# --- whole models ----------------------------------------------------------------------------------------------------


def spoilt(source, target, name, place):
    """A copy with one NaN, in the values of `name` at `place`; that tensor becomes F32 or F16 as it was, or F16."""
    values = values_of(source)[name].copy()
    values[place] = np.nan
    return rewritten(source, target, tensors={name: values if values.ndim == 1 else values.astype(np.float16)})


# Where a NaN could be passed over: a choice, a clamp, a maximum, a sigmoid; and an ordinary matrix.
PLACES = [
    ("tiny/moe-q8_0.gguf", "blk.1.attn_norm.weight", 3),
    ("tiny/moe-q4_k_s.gguf", "blk.0.ffn_gate_inp.weight", (3, 5)),  # an expert that would never be chosen
    ("tiny/moe-q6_k.gguf", "blk.1.ffn_down_exps.weight", (slice(None), 7, 9)),
    ("arch/step35-q8_0.gguf", "blk.1.ffn_gate_exps.weight", (slice(None), 7, 9)),
    ("arch/step35-q8_0.gguf", "blk.1.exp_probs_b.bias", 4),
    ("arch/deepseek2-q4_k_m.gguf", "blk.1.ffn_gate_inp.weight", (6, 5)),
    ("arch/gpt-oss-mxfp4_moe.gguf", "blk.0.attn_sinks.weight", 2),
    ("arch/gpt-oss-mxfp4_moe.gguf", "blk.0.attn_v.weight", (5, 5)),
    ("arch/qwen35moe-q4_k_m.gguf", "blk.0.ssm_dt.bias", 3),
]


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize(("file", "name", "place"), PLACES)
def test_a_weight_that_is_no_number_shows_in_the_logits(models_dir, tmp_path, file, name, place, isa):
    with Opened(spoilt(models_dir / file, tmp_path / "model.gguf", name, place), isa=isa) as engine:
        for chunk in (None, 1):
            assert not np.isfinite(logits_of(engine, TOKENS, chunk)[0][-1]).any(), chunk


@pytest.mark.parametrize("isa", kernels.available())
def test_whoever_does_not_use_it_gets_the_same_bits(models_dir, tmp_path, isa):
    """The token 9 has no numbers; a session without it shares steps and, afterwards, memory with one that has it."""
    source = models_dir / "tiny" / "moe-q8_0.gguf"
    clean = TOKENS[:4]
    with Opened(spoilt(source, tmp_path / "model.gguf", "token_embd.weight", (9, slice(None))), isa=isa) as engine:
        expected, session = logits_of(engine, clean)
        session.close()
        sessions = [engine.new_session() for _ in range(3)]
        together = stepped(engine, *((s, t, "all") for s, t in zip(sessions, (clean, TOKENS, clean), strict=True)))
        assert not np.isfinite(together[1][-1]).any()
        single = [stepped(engine, (s, clean[:1], "last"))[0] for s in sessions]  # one row each
        for session in sessions:
            session.close()
        again, session = logits_of(engine, clean)  # in blocks that held the others' keys
        more = stepped(engine, (session, clean[:1], "last"))[0]
    np.testing.assert_array_equal(again, expected)
    for k in (0, 2):
        assert np.isfinite(together[k]).all()
        np.testing.assert_allclose(together[k], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(single[k], more, rtol=1e-4, atol=1e-4)


def test_the_request_fails_and_the_daemon_answers_others(models_dir, tmp_path, start_daemon):
    source = models_dir / "tiny" / "moe-q8_0.gguf"
    daemon = start_daemon(str(spoilt(source, tmp_path / "model.gguf", "token_embd.weight", (9, slice(None)))))
    with Client(daemon.endpoint) as client:
        with pytest.raises(RequestError, match="nan") as generating:
            list(client.generate(tokens=[5, 9]))
        assert generating.value.code == "failed"
        for tokens in ([5, 9, 6], [5, 9]):  # of the last token only the logits are wanted
            with pytest.raises(RequestError, match="not finite") as scoring:
                client.score(tokens, logits=True)
            assert scoring.value.code == "failed"
        assert client.score([5, 6, 7])[0]["logprobs"][1] < 0
