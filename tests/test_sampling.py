"""Choosing tokens: which can come, that a draw depends on seed and position alone, log-probabilities, stop strings."""

import math

import numpy as np
import pytest
from hearthd.cyext import kernels
from hearthd.cyext import sampling as cy
from hearthd.cyext.teams import Teams
from hearthd.daemon.model.sampling import Choice, Sampler, SamplingError, StopMatcher, choose, score
from hearthd.daemon.protocol import Sampling
from hypothesis import given, settings
from hypothesis import strategies as st

from . import plain_sampling as plain

ALL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 7}
ISAS = [isa for isa in kernels.available() if isa in ("c", "avx2", "avx512")]


def logits_of(probabilities):
    return np.log(np.array(probabilities, dtype=np.float64)).astype(np.float32)


P = logits_of([0.05, 0.4, 0.1, 0.25, 0.2])


def words_of(tokens, n_vocab):
    """The mask that lets these tokens come."""
    bits = np.zeros((n_vocab + 31) // 32 * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def drawn(logits, draws=400, *, forbidden=(), mask=None, isa=None, **sampling):
    """The set of tokens that come up over so many positions."""
    sampler = Sampler(Sampling(**{**ALL, **sampling}), len(logits), forbidden=forbidden, isa=isa)
    sampler.set_mask(mask)
    return {choice.token for choice in choose(None, logits[None], [(0, sampler, at) for at in range(draws)])}


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
        ({"top_p": 1e-9}, {1}),
        ({"logit_bias": {0: -1e6, 1: -1e6}}, {2, 3, 4}),
        ({"logit_bias": {0: 1e6}, "forbidden": [1, 3]}, {0}),
        ({"forbidden": [1, 3, 7]}, {0, 2, 4}),
        ({"mask": words_of([0, 2], 5)}, {0, 2}),
        # The mask comes before top-k: of what it leaves there are two again.
        ({"mask": words_of([0, 2, 4], 5), "top_k": 2}, {2, 4}),
        ({"mask": words_of([0], 5), "temperature": 0.0}, {0}),
    ],
)
def test_filters(sampling, tokens):
    assert drawn(P, **sampling) == tokens


def a_row(rng):
    n = int(rng.choice([1, 2, 5, 33, 64, 65, 300, 1500, 5000], p=[0.05, 0.1, 0.15, 0.1, 0.1, 0.1, 0.2, 0.15, 0.05]))
    x = rng.standard_normal(n) * rng.choice([0.0, 0.01, 1, 4, 30])
    x = np.round(x) if rng.random() < 0.3 else x  # ties
    x = np.sort(x)[:: rng.choice([-1, 1])] if rng.random() < 0.2 else x
    return (x + rng.choice([0, -50, 1000])).astype(np.float32)


def a_request(rng, n):
    """Parameters, and what is told of tokens."""
    sampling = {
        "temperature": rng.choice([0, 1e-6, 0.3, 0.8, 1, 1.7, 1e6, 1e6]),
        "top_k": int(rng.choice([0, 0, 1, 2, 40, 100, 1000, 1025, 2000])),
        "top_p": rng.choice([1, 1, 0.95, 0.5, rng.random(), 1e-9]),
        "min_p": rng.choice([0, 0, 0.05, rng.random(), 1]),
    }
    sampling = {name: value.item() if hasattr(value, "item") else value for name, value in sampling.items()}
    told = {}
    if rng.random() < 0.3:
        sampling |= {"repeat_penalty": float(rng.choice([0.5, 1.3, 1e2]))}
        sampling |= {"repeat_last": int(rng.choice([-1, 0, 1, 7, 64]))}
        sampling |= {"presence_penalty": float(rng.normal()), "frequency_penalty": float(rng.choice([0, rng.normal()]))}
        told = {"prompt": rng.integers(0, n + 3, 30).tolist(), "chosen": rng.integers(0, min(n, 6), 90).tolist()}
    if rng.random() < 0.2:
        biased = rng.integers(0, n, 5).tolist()
        sampling["logit_bias"] = {token: float(rng.choice([-math.inf, -3, 2, 1e6])) for token in biased if token}
    if rng.random() < 0.2:
        told["forbidden"] = [token for token in rng.integers(0, n, 3).tolist() if token]
    if rng.random() < 0.2:
        told["allowed"] = {0, *rng.integers(0, n, int(rng.choice([1, 5, n]))).tolist()}  # 0: one is always left
    return Sampling(**sampling, seed=int(rng.integers(-1 << 63, 1 << 63))), told


@pytest.mark.parametrize("isa", ISAS)
def test_the_same_tokens_as_plain_numpy(isa):
    """1,500 requests, 8 positions each; next to the border of a set or a draw float32 may round to the other side."""
    rng = np.random.default_rng(11)
    near = 0
    for _ in range(1500):
        x = a_row(rng)
        sampling, told = a_request(rng, len(x))
        sampler = Sampler(sampling, len(x), forbidden=told.get("forbidden", ()), isa=isa)
        sampler.begin(np.array(told.get("prompt", ()), np.int32))
        for token in told.get("chosen", ()):
            sampler.accept(token)
        sampler.set_mask(words_of(told["allowed"], len(x)) if "allowed" in told else None)
        found = choose(None, x[None], [(0, sampler, 1000 * at) for at in range(8)])
        y = plain.adjusted(x, sampling, **told)
        left = plain.kept(y, sampling)
        for at, choice in enumerate(found):
            expected, gap = plain.draw(y, left.tokens, sampling, 1000 * at)
            if choice.token != expected and min(gap, left.near) < 2e-6:
                near += 1
            else:
                assert choice.token == expected, (sampling, told, len(x))
    assert near < 8


def test_log_probabilities_are_the_models_own():
    rng = np.random.default_rng(3)
    for _ in range(200):
        x = a_row(rng)
        sampling = Sampling(logprobs=int(rng.integers(1, 100)), temperature=1.3, repeat_penalty=3.0, seed=1)
        choice = Sampler(sampling, len(x), forbidden=range(1, len(x), 2)).sample(x, 5)
        expected = plain.log_probabilities(x)
        likeliest = np.argsort(-x, kind="stable")[: sampling.logprobs]
        assert choice.token % 2 == 0
        assert choice.logprob == pytest.approx(expected[choice.token], abs=1e-5)
        assert [token for token, _ in choice.alternatives] == likeliest.tolist()
        assert [value for _, value in choice.alternatives] == pytest.approx(expected[likeliest].tolist(), abs=1e-5)
    assert Sampler(Sampling(temperature=0), 5).sample(P, 0) == Choice(1)


def test_frequencies_follow_the_temperature():
    """Chi-square over positions against the probabilities; 18.5 at 4 degrees of freedom comes once in a thousand."""
    for temperature in (0.5, 2.0):
        for top_k in (0, 5):  # by pieces of the row, and by a list
            sampler = Sampler(Sampling(**{**ALL, "temperature": temperature, "top_k": top_k}), len(P))
            found = choose(None, P[None], [(0, sampler, at) for at in range(8000)])
            counts = np.bincount([choice.token for choice in found], minlength=len(P))
            expected = np.exp(P.astype(np.float64) / temperature)
            expected *= counts.sum() / expected.sum()
            assert ((counts - expected) ** 2 / expected).sum() < 18.5


def test_the_draw_is_philox_of_seed_and_position():
    # The known answers that come with Random123.
    assert plain.philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert plain.philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    for seed in (0, 1, 1 << 40, (1 << 64) - 1):
        for position in (0, 1, 77, (1 << 40) + 3):
            assert cy.uniform(seed, position) == plain.uniform(seed, position)
    unseeded = Sampler(Sampling(), 5)
    again = Sampler(Sampling(seed=unseeded.seed), 5)
    assert [unseeded.sample(P, at) for at in range(50)] == [again.sample(P, at) for at in reversed(range(50))][::-1]
    assert len({Sampler(Sampling(), 5).seed for _ in range(9)}) == 9


REQUESTS = [
    {},
    {"top_k": 0},
    {"top_k": 0, "min_p": 0.0},
    {**ALL},
    {"logprobs": 5, "repeat_penalty": 1.2},
    {"top_k": 3000, "top_p": 0.7},
    {"temperature": 0.0},
    {"logit_bias": {5: 4.0}, "top_p": 0.5, "top_k": 0},
]


@pytest.mark.parametrize("threads", [[[-1]], [[-1, -1]], [[-1] * 3], [[-1, -1], [-1, -1]]])
def test_a_choice_does_not_depend_on_threads_or_neighbours(threads):
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((16, 20011)) * 3).astype(np.float32)
    rows[5, 77] = math.nan
    samplers = [Sampler(Sampling(**{"seed": at, **REQUESTS[at % len(REQUESTS)]}), 20011) for at in range(16)]
    for sampler in samplers:
        sampler.begin(np.arange(100, dtype=np.int32))
    picks = [(at, samplers[at], 30 + at) for at in range(16)]
    alone = [choose(None, rows[at : at + 1], [(0, samplers[at], 30 + at)])[0] for at in range(16)]
    teams = Teams(threads)
    try:
        beside = choose(teams, rows, picks)
        some = choose(teams, rows, picks[3:6])
    finally:
        teams.close()
    assert isinstance(alone[5], SamplingError) and "token 77" in str(alone[5])
    assert str(beside[5]) == str(alone[5])
    assert [one for one in beside if isinstance(one, Choice)] == [one for one in alone if isinstance(one, Choice)]
    assert [some[0], str(some[1]), str(some[2])] == [alone[3], str(alone[4]), str(alone[5])]


def test_logits_are_left_as_they_are():
    logits = P.copy()
    sampler = Sampler(Sampling(repeat_penalty=2.0, logit_bias={1: 3.0}), 5, forbidden=[2])
    sampler.begin(np.array([1, 3], np.int32))
    sampler.set_mask(words_of([0, 1, 3], 5))
    sampler.sample(logits, 0)
    assert (logits == P).all()


def test_penalties():
    def likeliest(logits, accepted=(), prompt=(), **sampling):
        sampler = Sampler(Sampling(temperature=0.0, **sampling), len(logits))
        sampler.begin(np.array(prompt, np.int32))
        for token in accepted:
            sampler.accept(token)
        return sampler.sample(logits, 0).token

    logits = np.array([1.0, 2.0, -1.0, 1.5], np.float32)
    assert likeliest(logits, [1], repeat_penalty=2.0) == 3
    assert likeliest(logits, prompt=[1], repeat_penalty=2.0) == 3
    # Out of the window, forgotten; the same token twice counts once.
    assert likeliest(logits, [1, 1, 0], repeat_penalty=1.2, repeat_last=3) == 1
    assert likeliest(logits, [1, 2], repeat_penalty=2.0, repeat_last=1) == 1
    assert likeliest(logits, [1], repeat_penalty=2.0, repeat_last=0) == 1
    # A negative logit is multiplied, so that it falls too.
    assert likeliest(-logits - 3, [2], repeat_penalty=3.0) == 0
    assert likeliest(logits, [1], repeat_penalty=1e300) == 3
    # Presence counts once, frequency each time; the prompt is not counted, nor is the window heeded.
    assert likeliest(logits, [1, 1, 1], presence_penalty=0.4) == 1
    assert likeliest(logits, [1], presence_penalty=0.6) == 3
    assert likeliest(logits, [1], frequency_penalty=0.3) == 1
    assert likeliest(logits, [1, 0, 2, 1], frequency_penalty=0.3, repeat_last=1) == 3
    assert likeliest(logits, prompt=[1, 1, 1], frequency_penalty=0.6, presence_penalty=0.6) == 1
    assert likeliest(logits, [0], presence_penalty=-1.1) == 0


@pytest.mark.parametrize("last", [-1, 0, 1, 3, 100])
def test_the_penalty_looks_back_at_the_last_tokens(last):
    rng = np.random.default_rng(1)
    prompt, more = rng.integers(0, 50, 40).astype(np.int32), rng.integers(0, 50, 300).tolist()
    logits = np.ones((1, 40), np.float32)  # ids from 40 on are of a vocabulary that is larger than the model's
    sampler = Sampler(Sampling(**{**ALL, "repeat_penalty": 1e9, "repeat_last": last, "temperature": 1e-3}), 40)
    sampler.begin(prompt)
    for count, token in enumerate(more, 41):
        sampler.accept(token)
        every = [*prompt.tolist(), *more][:count]
        seen = {token for token in every[-last if last > 0 else 0 if last else count :] if token < 40}
        found = choose(None, logits, [(0, sampler, at) for at in range(600 if count % 50 == 0 else 0)])
        assert not found or len(seen) == 40 or {choice.token for choice in found} == set(range(40)) - seen


def test_a_mask_is_asked_for_before_each_choice():
    asked = []

    def ask(position):
        asked.append(position)
        if position == 9:
            raise RuntimeError("no such state")
        return words_of([position], 70) if position != 5 else None

    sampler = Sampler(Sampling(**ALL), 70)
    sampler.set_mask(words_of([69], 70))
    sampler.constrain(ask)
    logits = np.zeros((1, 70), np.float32)
    found = choose(None, logits, [(0, sampler, at) for at in (0, 33, 5, 9, 64)])
    assert asked == [0, 33, 5, 9, 64]
    assert [one.token for one in found if isinstance(one, Choice)] == [0, 33, 69, 64]
    assert isinstance(found[3], SamplingError) and "no such state" in str(found[3])
    with pytest.raises(ValueError, match="mask"):
        sampler.set_mask(np.zeros(2, np.uint32))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {**ALL}, {**ALL, "top_p": 0.5}, {**ALL, "top_k": 2000}])
def test_a_mask_that_leaves_no_token_is_an_error(sampling):
    sampler = Sampler(Sampling(**sampling), 5)
    sampler.set_mask(words_of([], 5))
    with pytest.raises(SamplingError, match="mask"):
        sampler.sample(P, 0)


@pytest.mark.parametrize("isa", ISAS)
def test_score(isa):
    rng = np.random.default_rng(4)
    rows = np.stack([P, P * 3 - 700, *(rng.standard_normal((4, 5)) * 20).astype(np.float32)])
    tokens = [3, 2, 0, 1, 4]
    expected = [plain.log_probabilities(row)[token] for row, token in zip(rows, tokens, strict=False)]
    assert score(rows, tokens) == pytest.approx(expected, abs=1e-5)
    teams = Teams([[-1, -1], [-1]])
    try:
        assert score(rows, tokens, teams) == score(rows, tokens)
    finally:
        teams.close()
    large = (rng.standard_normal((3, 70001)) * 8).astype(np.float32)
    found, _ = cy.score(None, large, np.array([0, 70000, 5], np.int32), isa)
    expected = [plain.log_probabilities(row)[token] for row, token in zip(large, (0, 70000, 5), strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)
    with pytest.raises(SamplingError, match="outside"):
        score(rows, [0, 5])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad, temperature, isa):
    for n, at in ((5, 2), (200, 199), (200, 3), (1000, 512)):
        logits = np.zeros(n, np.float32)
        logits[at] = bad
        with pytest.raises(SamplingError, match=f"gave {bad} as logit of token {at}:"):
            Sampler(Sampling(temperature=temperature), n, forbidden=[at], isa=isa).sample(logits, 0)
        with pytest.raises(SamplingError, match="finite where token 2 is scored"):
            score(logits[None], [2])
        with pytest.raises(SamplingError, match="finite after the last token"):
            score(np.stack([np.zeros(n, np.float32), logits]), [2])


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
        ("presence_penalty", math.inf),
        ("frequency_penalty", math.nan),
        ("logit_bias", {5: 1.0}),
        ("logit_bias", {1: math.nan}),
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
