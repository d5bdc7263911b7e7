"""The daemon on the packaged model, end to end: same answers however it warms, totals that add up, errors that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hearthd.daemon import client, ctl

PROMPT = "Once upon a time"


def test_answers_do_not_depend_on_warming(start_daemon: Callable[..., Any]) -> None:
    answers = set()
    for options in (["--warm", "off"], ["--experts", "eager", "--threads", "1"], ["--warm", "before-ready"]):
        daemon = start_daemon("--demo", *options)
        with client.Client(daemon.endpoint, timeout=60) as hearth:
            done = hearth.generate(PROMPT, max_tokens=24, temperature=0).done
            assert done.reason == "length" and done.text == hearth.detokenize(done.tokens)
            answers.add(done.text)
        assert daemon.stop() == 0
    assert len(answers) == 1


def test_a_seed_gives_the_same_answer_from_anywhere(start_daemon: Callable[..., Any]) -> None:
    daemon = start_daemon("--demo")
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        prompt = hearth.tokenize(PROMPT)

        def tokens(given: list[int], count: int, **sampling: Any) -> list[int]:
            stream = hearth.generate(tokens=given, max_tokens=count, ignore_eos=True, **sampling)
            return list(stream.done.tokens)

        whole = tokens(prompt, 24, seed=5, temperature=1.5, top_k=0)
        assert tokens(prompt, 24, seed=6, temperature=1.5, top_k=0) != whole
        for done in (0, 1, 10):
            assert tokens(prompt + whole[:done], 24 - done, seed=5, temperature=1.5, top_k=0) == whole[done:]
        assert set(tokens(prompt, 5, logit_bias={whole[0]: 1e6})) == {whole[0]}
        assert len(set(tokens(prompt, 9, temperature=0, presence_penalty=100))) == 9
        with pytest.raises(client.RequestError, match="4096 is no token of a vocabulary of 4096") as refused:
            tokens(prompt, 1, logit_bias={4096: 1})
        assert (refused.value.code, refused.value.field) == ("bad-field", "sampling.logit_bias")


def test_what_it_says_of_itself(start_daemon: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    daemon = start_daemon("--demo", "--context", "64")
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        tokens = hearth.tokenize(PROMPT)
        assert hearth.detokenize(tokens) == PROMPT
        data, body = hearth.score(tokens, logits=True)
        assert data["shape"] == [len(tokens), 4096] and body is not None and len(body) == 4 * len(tokens) * 4096
        status = hearth.status()
        assert (status.model.layers, status.model.experts, status.model.context) == (5, 16, 64)
        rows = hearth.residency()["rows"]
        assert sum(row["total"] for row in rows) == status.model.bytes
        for row in rows:
            assert row["total"] == sum(row[state] for state in ("mapped", "arena", "cached", "deferred", "unknown"))
        assert ctl.main(["status", "--control", daemon.endpoint]) == 0
        assert f": {status.arena['reason']}\n" in capsys.readouterr().out
        assert ctl.main(["residency", "--control", daemon.endpoint]) == 0
        assert capsys.readouterr().out.split()[:5] == ["node", "role", "total", "mapped", "arena"]
        layers = hearth.experts()["layers"]
        assert [sum(layer["counts"]) for layer in layers] == [2 * len(tokens)] * 5
        for layer in layers:
            used = sum(count > 0 for count in layer["counts"])  # in the one step there was, too
            found = [(row["used"], row["total"], row["used_per_step"]) for row in layer["tensors"]]
            assert found == [(used, 16, used)] * 3
        with pytest.raises(client.RequestError, match=r"65 tokens.* 64"):
            list(hearth.generate(tokens=[5] * 65))
        assert hearth.generate(tokens=[5] * 60, max_tokens=20, ignore_eos=True).done.reason == "context"
        assert hearth.plan()["bytes"]["total"] == status.model.bytes
        assert hearth.defer()["spans"] > 0
        assert hearth.warm(wait=True)["failed"] == 0
        assert hearth.pin()["pinned"] > 0
