"""A row's logits are the same bits however it came to be computed: few ways of tests/one_order.py over every model
file, and a recurrent session after a step that failed."""

import numpy as np
import pytest
from hearthd.cyext import kernels
from hearthd.daemon.model.turn import Part, StepFailed

from tests.one_order import QUICK, chunks, differing, files_of
from tests.opened import Opened, stepped

# Plain C is slow; it knows one way to multiply, and tiny's files differ in their tensors' types alone.
FEW = {("tiny", "c"): (18, QUICK[:1])}


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("folder", ["tiny", "arch"])
def test_every_way_gives_the_same_bits(models_dir, folder, isa):
    files = files_of(models_dir / folder)
    assert len(files) > 20
    tokens, machines = FEW.get((folder, isa), (70, QUICK))
    found = [line for path in files for line in differing(path, isa, tokens, machines)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("before", [5, 8, 64])
def test_a_recurrent_session_is_as_it_was_after_a_step_that_failed(models_dir, tmp_path, before):
    """Whichever of its tokens the matrices held, and though the failed step had already moved some layers on."""
    source, copy = models_dir / "arch" / "qwen35moe-q4_k_m.gguf", tmp_path / "model.gguf"
    copy.write_bytes(source.read_bytes())
    with Opened(copy, isa="c") as engine:
        tokens = np.random.default_rng(1).integers(0, engine.n_vocab, before + 9).astype(np.int32)
        expected = chunks(before, 9)(engine, tokens)
        session, other = engine.new_session(), engine.new_session()
        stepped(engine, (session, tokens[:before], "none"))
        with open(copy, "r+b") as file:
            file.truncate(copy.stat().st_size * 3 // 4)
        outcomes = engine.step([Part(session, tokens[before:], "all"), Part(other, tokens[:2], "all")])
        assert all(isinstance(outcome.error, StepFailed) for outcome in outcomes)
        copy.write_bytes(source.read_bytes())
        assert session.length == before
        again = stepped(engine, (other, tokens[:1], "none"), (session, tokens[before:], "all"))[1]
        assert np.array_equal(again.view(np.uint32), expected[before:].view(np.uint32))
