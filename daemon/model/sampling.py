"""From logits to the next token: penalties, filters, a seeded draw, log-probabilities, stop strings.

Owns one request's sampling state. It does not change the logits that it is given, and log-probabilities are always
those of the model's own distribution, before temperature, penalties and filters.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..protocol import Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIRST_CANDIDATES = 512  # how many of the likeliest are sorted first when only top-p bounds their number


class SamplingError(ValueError):
    """A sampling parameter out of range (`field` names it), or logits that are no numbers (`field` is empty)."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Choice:
    """A token; with `Sampling.logprobs` > 0 also its log-probability and the likeliest tokens with theirs."""

    token: int
    logprob: float | None = None
    alternatives: list[tuple[int, float]] = field(default_factory=list)


class Sampler:
    """One request's sampler.

    The order is llama.cpp's: repetition penalty, top-k, top-p, min-p, temperature, draw. Zero or less switches top-k
    off, 1 top-p, 0 min-p, 1 the penalty. Among equal logits the lower id counts as likelier. The same seed and logits
    give the same tokens (Python's `random.Random`, one number a draw).
    """

    def __init__(self, sampling: Sampling, n_vocab: int, *, forbidden: Collection[int] = ()) -> None:
        """`forbidden` tokens are never chosen (for ignore_eos: the tokenizer's end_of_generation).

        Raises SamplingError for a parameter out of range.
        """
        _check(sampling)
        self.n_vocab = n_vocab
        self.seed: int = sampling.seed if sampling.seed is not None else random.SystemRandom().getrandbits(32)
        self._sampling = sampling
        self._greedy = sampling.temperature == 0 or sampling.top_k == 1 or sampling.top_p == 0
        self._random = random.Random(self.seed)
        self._forbidden = np.array(sorted(token for token in forbidden if 0 <= token < n_vocab), dtype=np.int64)
        self._recent: _Recent | None = None
        if sampling.repeat_penalty != 1 and sampling.repeat_last:
            self._recent = _Recent(n_vocab, sampling.repeat_last)

    def begin(self, prompt: NDArray[np.int32]) -> None:
        """Tell of the prompt's tokens [n], for the repetition penalty."""
        if self._recent is not None:
            self._recent.begin(prompt)

    def accept(self, token: int) -> None:
        """Tell of a chosen token, for the repetition penalty. `sample` does not do it."""
        if self._recent is not None:
            self._recent.add(token)

    def sample(self, logits: NDArray[np.float32]) -> Choice:
        """Choose from logits [n_vocab]. Raises SamplingError if any is not finite or their number is wrong."""
        if logits.shape != (self.n_vocab,):
            raise SamplingError(f"logits of shape {logits.shape} for a vocabulary of {self.n_vocab}")
        top = int(logits.argmax())  # a NaN, where there is one
        if not math.isfinite(logits[top]) or not math.isfinite(logits.min()):
            bad = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise SamplingError(
                f"the model gave {logits[bad]} as logit of token {bad}: no token can be chosen from that"
            )
        adjusted = self._adjusted(logits)
        if adjusted is not logits:
            top = int(adjusted.argmax())
        token = top if self._greedy else self._draw(adjusted, top)
        count = self._sampling.logprobs
        if count <= 0:
            return Choice(token)
        total = log_sum_exp(logits)
        best = _likeliest(logits, min(count, self.n_vocab))
        return Choice(token, float(logits[token]) - total, [(int(i), float(logits[i]) - total) for i in best])

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits after the repetition penalty (Keskar et al. 2019, CTRL, section 4.1) and without forbidden tokens."""
        penalty = self._sampling.repeat_penalty
        seen = self._recent.seen() if self._recent is not None else self._forbidden[:0]
        if not seen.size and not self._forbidden.size:
            return logits
        adjusted = logits.copy()
        if seen.size:
            values = adjusted[seen].astype(np.float64)
            limit = np.finfo(np.float32).max  # a wild penalty must not make infinities
            adjusted[seen] = np.clip(np.where(values > 0, values / penalty, values * penalty), -limit, limit)
        adjusted[self._forbidden] = -np.inf
        return adjusted

    def _draw(self, logits: NDArray[np.float32], top: int) -> int:
        tokens = self._candidates(logits, top)
        kept = logits if tokens is None else logits[tokens]
        with np.errstate(over="ignore", divide="ignore"):  # towards temperature zero it becomes greedy
            sums = _weights(kept, float(logits[top]), self._sampling.temperature)
        np.cumsum(sums, out=sums)
        # Strictly below the sum, else rounding could end at a last token of weight zero.
        drawn = min(self._random.random() * sums[-1], np.nextafter(sums[-1], 0))
        at = int(np.searchsorted(sums, drawn, side="right"))
        return at if tokens is None else int(tokens[at])

    def _candidates(self, logits: NDArray[np.float32], top: int) -> NDArray[np.int64] | None:
        """The tokens that the filters leave; None for all."""
        sampling = self._sampling
        highest = float(logits[top])
        everything = 0.0
        if 0 < sampling.top_k < self.n_vocab:
            tokens = _likeliest(logits, sampling.top_k)
        elif sampling.min_p > 0:
            # The share kept by top-p is one of all, so the sum is made before min-p drops most of them.
            everything = float(_weights(logits, highest).sum()) if sampling.top_p < 1 else 0.0
            tokens = _descending(logits, np.flatnonzero(logits >= highest + math.log(sampling.min_p)))
        else:
            return self._nucleus(logits, highest) if sampling.top_p < 1 else None
        weights = _weights(logits[tokens], highest)
        keep = len(tokens)
        if sampling.top_p < 1:
            keep = _share(weights, sampling.top_p * (everything or float(weights.sum())))
        if sampling.min_p > 0:
            keep = min(keep, int(np.count_nonzero(weights >= sampling.min_p)))
        return tokens[: max(keep, 1)]

    def _nucleus(self, logits: NDArray[np.float32], highest: float) -> NDArray[np.int64]:
        """Top-p alone (Holtzman et al. 2020): a few of the likeliest if they reach the share, else all are sorted."""
        wanted = self._sampling.top_p * float(_weights(logits, highest).sum())
        tokens = _likeliest(logits, _FIRST_CANDIDATES)
        weights = _weights(logits[tokens], highest)
        if len(tokens) == self.n_vocab or weights.sum() >= wanted:
            return tokens[: _share(weights, wanted)]
        # Values sort much faster than indices do; the last value kept then tells the tokens.
        values = np.sort(logits)[::-1]
        keep = _share(_weights(values, highest), wanted)
        above = np.flatnonzero(logits > values[keep - 1])
        return np.concatenate((above, np.flatnonzero(logits == values[keep - 1])[: keep - len(above)]))


def choose(
    teams: Any, logits: NDArray[np.float32], picks: Sequence[tuple[int, Sampler, int]]
) -> list[Choice | SamplingError]:
    """For each (row of logits, sampler, position of the token that is chosen) a choice, or why there is none."""
    found: list[Choice | SamplingError] = []
    for row, sampler, _ in picks:
        try:
            found.append(sampler.sample(logits[row]))
        except SamplingError as error:
            found.append(error)
    return found


class _Recent:
    """Which tokens are among the last ones: counts by token, so that a long look back costs a step no more."""

    def __init__(self, n_vocab: int, last: int) -> None:
        self._last = last  # negative: all
        self._order: deque[int] = deque()  # the last ones, oldest first; empty where all count
        self._counts = np.zeros(n_vocab + 1, dtype=np.int64)  # one more for what has no logit

    def begin(self, tokens: NDArray[np.int32]) -> None:
        kept = np.minimum(tokens[-self._last if self._last > 0 else 0 :], len(self._counts) - 1)
        self._counts += np.bincount(kept, minlength=len(self._counts))
        if self._last > 0:
            self._order.extend(kept.tolist())

    def add(self, token: int) -> None:
        token = min(token, len(self._counts) - 1)
        self._counts[token] += 1
        if self._last > 0:
            self._order.append(token)
            if len(self._order) > self._last:
                self._counts[self._order.popleft()] -= 1

    def seen(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._counts[:-1])


class StopMatcher:
    """Finds stop strings in a stream of text, over the borders of its pieces.

    Text that may be the beginning of a stop string is held back until it is clear. Matching is Knuth, Morris and
    Pratt's, so a long stop string costs no more than a short one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise SamplingError("a stop string is empty", "stop")
        self._stops = list(stops)
        self._fallbacks: list[list[int]] = []  # made where the first text comes: not on the event loop's thread
        self._matched = [0] * len(stops)  # how much of each stop string the text so far ends with
        self._held = ""
        self.found: str | None = None  # the stop string that was met

    def push(self, text: str) -> str:
        """The text that may be shown now. Once `found` is set there is no more: the match and what follows are cut."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        if not self._fallbacks:
            self._fallbacks = [_borders(stop) for stop in self._stops]
        pending = self._held + text
        for at in range(len(self._held), len(pending)):
            for index, stop in enumerate(self._stops):
                length, fallback = self._matched[index], self._fallbacks[index]
                while length and stop[length] != pending[at]:
                    length = fallback[length - 1]
                length += stop[length] == pending[at]
                self._matched[index] = length
                if length == len(stop) and (self.found is None or length > len(self.found)):
                    self.found = stop
            if self.found is not None:
                self._held = ""
                return pending[: at + 1 - len(self.found)]
        clear = len(pending) - max(self._matched)
        self._held = pending[clear:]
        return pending[:clear]

    def flush(self) -> str:
        """What was held back, when the stream ends without a stop string."""
        held, self._held = self._held, ""
        return held


def log_sum_exp(logits: NDArray[np.float32]) -> float:
    """log of the sum of exp over logits [n], in float64."""
    highest = float(logits.max())
    return highest + math.log(float(_weights(logits, highest).sum()))


def score(logits: NDArray[np.float32], tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of `tokens` [n] under the first n of logits [n or more, n_vocab], each in float64.

    Raises SamplingError when any logits are not finite or a token lies outside the vocabulary.
    """
    if len(tokens) > len(logits):
        raise ValueError(f"{len(tokens)} tokens for {len(logits)} rows of logits")
    scores = []
    for at, row in enumerate(logits):
        where = f"where token {tokens[at]} is scored" if at < len(tokens) else "after the last token"
        if not math.isfinite(row.max()) or not math.isfinite(row.min()):
            raise SamplingError(f"the model gave logits that are not finite {where}")
        if at >= len(tokens):
            continue
        token = tokens[at]
        if not 0 <= token < len(row):
            raise SamplingError(f"token {token} is outside the vocabulary of {len(row)}", "tokens")
        scores.append(float(row[token]) - log_sum_exp(row))
    return scores


def _check(sampling: Sampling) -> None:
    bounds: Iterable[tuple[str, Any, bool, str]] = (
        ("temperature", sampling.temperature, sampling.temperature >= 0, "0 (greedy) or more"),
        ("top_p", sampling.top_p, 0 <= sampling.top_p <= 1, "from 0 to 1"),
        ("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "from 0 to 1"),
        ("repeat_penalty", sampling.repeat_penalty, sampling.repeat_penalty > 0, "more than 0"),
        ("repeat_last", sampling.repeat_last, sampling.repeat_last >= -1, "-1 (all), 0 (none) or more"),
        ("logprobs", sampling.logprobs, sampling.logprobs >= 0, "0 or more"),
    )
    for name, value, good, wanted in bounds:
        if not good or not math.isfinite(value):
            raise SamplingError(f"{name} is {value}; it has to be {wanted}", name)


def _weights(logits: NDArray[np.float32], highest: float, temperature: float = 1.0) -> NDArray[np.float64]:
    """exp of the logits over the temperature, in float64, where the highest becomes 1."""
    weights = logits.astype(np.float64)
    weights -= highest
    if temperature != 1.0:
        weights /= temperature
    return np.exp(weights, out=weights)


def _likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` highest, highest first. A partition finds the limit, so that only those at it or above are sorted."""
    if count >= len(logits):
        return _descending(logits, np.arange(len(logits)))
    limit = np.partition(logits, len(logits) - count)[len(logits) - count]
    return _descending(logits, np.flatnonzero(logits >= limit))[:count]


def _descending(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    return tokens[np.argsort(-logits[tokens], kind="stable")]


def _share(weights: NDArray[np.float64], wanted: float) -> int:
    """How many of the descending weights make up `wanted`."""
    return min(int(np.searchsorted(np.cumsum(weights), wanted)) + 1, len(weights))


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop` the length of its longest proper prefix that is also its suffix."""
    borders, length = [0] * len(stop), 0
    for at in range(1, len(stop)):
        while length and stop[length] != stop[at]:
            length = borders[length - 1]
        length += stop[length] == stop[at]
        borders[at] = length
    return borders
