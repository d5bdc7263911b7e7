"""Sampling: which tokens can come, that seeds repeat, log-probabilities, stop strings over token borders."""

import math

import numpy as np
import pytest
from hearthd.daemon.model.sampling import Sampler, SamplingError, StopMatcher, log_sum_exp, score
from hearthd.daemon.protocol import Sampling
from hypothesis import given, settings
from hypothesis import strategies as st

ALL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}


def logits_of(probabilities):
    return np.log(np.array(probabilities, dtype=np.float64)).astype(np.float32)


def drawn(logits, draws=400, *, accepted=(), forbidden=(), **sampling):
    """The set of tokens that come up."""
    sampler = Sampler(Sampling(**{**ALL, "seed": 7, **sampling}), len(logits), forbidden=forbidden)
    for token in accepted:
        sampler.accept(token)
    return {sampler.sample(logits).token for _ in range(draws)}


P = logits_of([0.05, 0.4, 0.1, 0.25, 0.2])


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"temperature": 0.0}, {1}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.66}, {1, 3, 4}),
        ({"min_p": 0.3}, {1, 3, 4}),
        ({"min_p": 0.6}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        # top-p is a share of what top-k left: 0.4 of 0.65 is not yet 0.7.
        ({"top_k": 2, "top_p": 0.6}, {1}),
        ({"top_k": 2, "top_p": 0.7}, {1, 3}),
        # ... and of everything, not of what min-p will leave.
        ({"top_p": 0.6, "min_p": 0.3}, {1, 3}),
        ({"top_p": 0.9, "min_p": 0.6}, {1, 3}),
        ({"temperature": 1e-300}, {1}),
        ({"top_p": 0.0}, {1}),
    ],
)
def test_filters(sampling, tokens):
    assert drawn(P, **sampling) == tokens


def test_top_p_on_a_flat_distribution_keeps_its_share():
    logits = np.zeros(4000, np.float32)
    sampler = Sampler(Sampling(**{**ALL, "top_p": 0.5, "seed": 1}), 4000)
    assert max(sampler.sample(logits).token for _ in range(2000)) < 2000


def test_frequencies_follow_the_temperature():
    for temperature in (0.5, 1.0, 2.0):
        sampler = Sampler(Sampling(**{**ALL, "temperature": temperature, "seed": 3}), len(P))
        counts = np.bincount([sampler.sample(P).token for _ in range(6000)], minlength=len(P))
        expected = np.exp(P.astype(np.float64) / temperature)
        assert np.abs(counts / 6000 - expected / expected.sum()).max() < 0.03


def test_the_same_seed_gives_the_same_tokens():
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((40, 1000)).astype(np.float32)

    def run(seed):
        sampler = Sampler(Sampling(seed=seed), 1000)
        return [sampler.sample(row).token for row in rows]

    assert run(11) == run(11) != run(12)
    unseeded = Sampler(Sampling(), 1000)
    assert [unseeded.sample(row).token for row in rows] == run(unseeded.seed)


def test_repetition_penalty():
    logits = np.array([1.0, 2.0, -1.0, 1.5], np.float32)
    before = logits.copy()
    assert drawn(logits, accepted=[1], temperature=0.0, repeat_penalty=2.0) == {3}
    # Out of the window, forgotten; the same token twice counts once.
    assert drawn(logits, accepted=[1, 1, 0], temperature=0.0, repeat_penalty=1.2, repeat_last=3) == {1}
    assert drawn(logits, accepted=[1, 2], temperature=0.0, repeat_penalty=2.0, repeat_last=1) == {1}
    assert drawn(logits, accepted=[1], temperature=0.0, repeat_penalty=2.0, repeat_last=0) == {1}
    # A negative logit is multiplied, so that it falls too.
    assert drawn(-logits - 3, accepted=[2], temperature=0.0, repeat_penalty=3.0) == {0}
    assert drawn(logits, accepted=[1], repeat_penalty=1e300) <= {0, 1, 2, 3}
    assert (logits == before).all()


@pytest.mark.parametrize("last", [-1, 0, 1, 3, 100])
def test_the_penalty_looks_back_at_the_last_tokens(last):
    rng = np.random.default_rng(1)
    prompt, more = rng.integers(0, 50, 40).astype(np.int32), rng.integers(0, 50, 40).tolist()
    logits = np.ones(40, np.float32)  # ids from 40 on are of a vocabulary that is larger than the model's
    sampler = Sampler(Sampling(repeat_penalty=2.0, repeat_last=last), 40)
    sampler.begin(prompt)
    for count, token in enumerate(more, 41):
        sampler.accept(token)
        every = [*prompt.tolist(), *more][:count]
        seen = {token for token in every[-last if last > 0 else 0 if last else count :] if token < 40}
        assert set(np.flatnonzero(sampler._adjusted(logits) == 0.5).tolist()) == seen


def test_forbidden_tokens_never_come():
    for sampling in ({}, {"temperature": 0.0}, {"top_k": 4}, {"top_p": 0.99}, {"min_p": 0.01}):
        assert not drawn(P, forbidden=[1, 3], **sampling) & {1, 3}


def test_log_probabilities_are_the_models_own():
    choice = Sampler(Sampling(temperature=0.0, logprobs=3, repeat_penalty=3.0), 5, forbidden=[1, 3]).sample(
        P + np.float32(50)
    )
    assert choice.token == 4
    assert choice.logprob == pytest.approx(math.log(0.2), abs=1e-5)
    assert [token for token, _ in choice.alternatives] == [1, 3, 4]
    assert [math.exp(value) for _, value in choice.alternatives] == pytest.approx([0.4, 0.25, 0.2], abs=1e-5)
    assert Sampler(Sampling(logprobs=99), 5).sample(P).alternatives[-1][0] == 0
    assert Sampler(Sampling(), 5).sample(P).logprob is None


def test_score():
    rows = np.stack([P, P * 3 - 700])
    expected = [math.log(0.25), float(rows[1, 2]) - log_sum_exp(rows[1])]
    assert score(rows, [3, 2]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(SamplingError, match="outside"):
        score(rows, [0, 5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad, temperature):
    logits = P.copy()
    logits[2] = bad
    with pytest.raises(SamplingError, match="token 2"):
        Sampler(Sampling(temperature=temperature), 5).sample(logits)
    with pytest.raises(SamplingError, match="finite"):
        score(logits[None], [2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repeat_penalty", 0.0),
        ("repeat_last", -2),
        ("logprobs", -1),
    ],
)
def test_parameters_out_of_range(field, value):
    with pytest.raises(SamplingError, match=field) as caught:
        Sampler(Sampling(**{field: value}), 5)
    assert caught.value.field == field


def shown(stops, pieces):
    matcher = StopMatcher(stops)
    text = [matcher.push(piece) for piece in pieces]
    return text, matcher.found, matcher.flush()


def test_stop_strings():
    assert shown(["END"], ["a E", "N", "D b"]) == (["a ", "", ""], "END", "")
    assert shown(["END"], ["a E", "N", "x EN"]) == (["a ", "", "ENx "], None, "EN")
    assert shown(["aab"], ["aaab!"]) == (["a"], "aab", "")
    # The first to be complete wins; of several complete at once, the longest.
    assert shown(["abcd", "bc"], ["xabcd"]) == (["xa"], "bc", "")
    assert shown(["c", "abc"], ["xab", "c"]) == (["x", ""], "abc", "")
    assert shown([], ["any", "thing"]) == (["any", "thing"], None, "")
    matcher = StopMatcher(["."])
    assert [matcher.push("a.b"), matcher.push("c")] == ["a", ""]
    with pytest.raises(SamplingError, match="empty"):
        StopMatcher(["x", ""])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_stop_strings_however_text_is_cut(pieces, stops):
    text, found, rest = shown(stops, pieces)
    whole = "".join(pieces)
    ends = [whole.index(stop) + len(stop) for stop in stops if stop in whole]
    assert (found is not None) == bool(ends)
    if ends:
        end = min(ends)
        longest = max((stop for stop in stops if whole[:end].endswith(stop)), key=len)
        assert (found, "".join(text)) == (longest, whole[: end - len(longest)])
    else:
        assert "".join(text) + rest == whole
