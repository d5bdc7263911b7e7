"""From logits to the next token: penalties, filters, a seeded draw, log-probabilities, stop strings.

Owns what a request's parameters mean and what is said of bad ones; the arithmetic is cyext.sampling's, without the GIL.
It does not change the logits that it is given, and log-probabilities are always those of the model's own distribution,
before temperature, penalties and filters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from hearthd.cyext import sampling as cy

from ..protocol import Sampling

if TYPE_CHECKING:
    from hearthd.cyext.teams import Teams
    from numpy.typing import NDArray

    Mask = NDArray[np.uint32]  # a bit per token: bit i % 32 of word i // 32, 1 where token i may come


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

    The order: repetition penalty, frequency and presence penalties, logit bias, forbidden tokens and mask, top-k,
    top-p, min-p, temperature, draw. It is llama.cpp's, but for the bias, which there comes before the penalties: here a
    bias is worth what it says, whatever was there. The repetition penalty counts the last `repeat_last` tokens, prompt
    and answer; frequency and presence count what was chosen (OpenAI's definition; llama.cpp counts the same last tokens
    for all three). Zero or less switches top-k off, 1 top-p, 0 min-p, 1 the repetition penalty. Among equal logits the
    lower id counts as likelier.

    The draw is by seed and position alone (Philox, one number a position): a request that is computed again from
    anywhere draws the same.
    """

    def __init__(
        self, sampling: Sampling, n_vocab: int, *, forbidden: Collection[int] = (), isa: str | None = None
    ) -> None:
        """`forbidden` tokens are never chosen (for ignore_eos: the tokenizer's end_of_generation). isa: the instruction
        set of the arithmetic (None: HEARTHD_ISA, else the best).

        Raises SamplingError for a parameter out of range.
        """
        _check(sampling, n_vocab)
        self.n_vocab = n_vocab
        self.seed: int = sampling.seed if sampling.seed is not None else random.SystemRandom().getrandbits(32)
        self.told = sampling.logprobs > 0  # whether choices come with log-probabilities
        self.inner = cy.Sampler(
            n_vocab,
            top_k=max(sampling.top_k, 0),
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            temperature=sampling.temperature,
            greedy=sampling.temperature == 0 or sampling.top_k == 1 or sampling.top_p == 0,
            repeat=sampling.repeat_penalty,
            repeat_last=sampling.repeat_last,
            presence=sampling.presence_penalty,
            frequency=sampling.frequency_penalty,
            seed=self.seed & (1 << 64) - 1,
            likeliest=sampling.logprobs,
            bias=sampling.logit_bias,
            forbidden=sorted({token for token in forbidden if 0 <= token < n_vocab}),
            isa=isa,
        )
        self._mask: Mask | None = None
        self._ask: Callable[[int], Mask | None] | None = None

    def begin(self, prompt: NDArray[np.int32]) -> None:
        """Tell of the prompt's tokens [n], for the repetition penalty."""
        self.inner.begin(np.ascontiguousarray(prompt, dtype=np.int32))

    def accept(self, token: int) -> None:
        """Tell of a chosen token, for the penalties. Choosing does not do it."""
        self.inner.accept(token)

    def set_mask(self, words: Mask | None) -> None:
        """From now on only tokens whose bit is set may come; None: all. Words: uint32 [n_vocab / 32, rounded up]."""
        self._mask = None if words is None else self._checked(words)

    def constrain(self, ask: Callable[[int], Mask | None] | None) -> None:
        """Before each choice `ask` is called with the position, and answers the mask for it (None: as set_mask says).

        On the step's thread; what it raises is the SamplingError of this row."""
        self._ask = ask

    def mask(self, position: int) -> Mask | None:
        """The mask for the token of a position. Raises SamplingError."""
        if self._ask is None:
            return self._mask
        try:
            words = self._ask(position)
            return self._mask if words is None else self._checked(words)
        except Exception as error:
            raise SamplingError(f"no mask for the token at {position}: {error}") from error

    def _checked(self, words: Mask) -> Mask:
        if words.dtype != np.uint32 or words.shape != ((self.n_vocab + 31) // 32,):
            raise ValueError(f"a mask of {words.dtype} {words.shape} for {self.n_vocab} tokens")
        return np.ascontiguousarray(words)

    def sample(self, logits: NDArray[np.float32], position: int) -> Choice:
        """Choose the token of a position from logits [n_vocab], in this thread. Raises SamplingError."""
        (found,) = choose(None, logits[None], [(0, self, position)])
        if isinstance(found, SamplingError):
            raise found
        return found


def choose(
    teams: Teams | None, logits: NDArray[np.float32], picks: Sequence[tuple[int, Sampler, int]]
) -> list[Choice | SamplingError]:
    """For each (row of logits, sampler, position of the token that is chosen) a choice, or why there is none.

    logits: [rows, n_vocab]. Rows are shared out by the teams, who run nothing else meanwhile; without teams they are
    done in this thread. What is chosen from a row does not depend on them, nor on other rows.
    """
    found: list[Choice | SamplingError | None] = []
    asked = []
    for row, sampler, position in picks:
        try:
            if logits.shape[1] != sampler.n_vocab:
                raise SamplingError(f"{logits.shape[1]} logits for a vocabulary of {sampler.n_vocab}")
            asked.append((row, sampler.inner, position, sampler.mask(position)))
            found.append(None)
        except SamplingError as error:
            found.append(error)
    chosen = iter(cy.choose(teams, logits, asked) if asked else ())
    return [
        _outcome(sampler, logits[row], *next(chosen)) if one is None else one
        for one, (row, sampler, _) in zip(found, picks, strict=True)
    ]


def _outcome(
    sampler: Sampler,
    logits: NDArray[np.float32],
    status: int,
    token: int,
    logprob: float,
    likeliest: list[tuple[int, float]],
) -> Choice | SamplingError:
    if status == cy.NOT_FINITE:
        return SamplingError(
            f"the model gave {logits[token]} as logit of token {token}: no token can be chosen from that"
        )
    if status == cy.NONE_LEFT:
        return SamplingError("no token is left to choose from: mask, bias and forbidden tokens exclude every one")
    if status != cy.CHOSEN:
        return SamplingError("out of memory for choosing a token")
    return Choice(token, logprob, likeliest) if sampler.told else Choice(token)


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


def score(logits: NDArray[np.float32], tokens: Sequence[int], teams: Teams | None = None) -> list[float]:
    """Log-probabilities of `tokens` [n] under the first n of logits [n or more, n_vocab].

    teams: as for `choose`. Raises SamplingError when any logits are not finite or a token lies outside the vocabulary.
    """
    if len(tokens) > len(logits):
        raise ValueError(f"{len(tokens)} tokens for {len(logits)} rows of logits")
    n_vocab = logits.shape[1]
    wanted = np.full(len(logits), -1, dtype=np.int32)
    for at, token in enumerate(tokens):
        if not 0 <= token < n_vocab:
            raise SamplingError(f"token {token} is outside the vocabulary of {n_vocab}", "tokens")
        wanted[at] = token
    scores, bad = cy.score(teams, logits, wanted)
    if bad >= 0:
        where = f"where token {tokens[bad]} is scored" if bad < len(tokens) else "after the last token"
        raise SamplingError(f"the model gave logits that are not finite {where}")
    found: list[float] = scores[: len(tokens)].tolist()
    return found


def _check(sampling: Sampling, n_vocab: int) -> None:
    bounds: tuple[tuple[str, float, bool, str], ...] = (
        ("temperature", sampling.temperature, sampling.temperature >= 0, "0 (greedy) or more"),
        ("top_p", sampling.top_p, 0 <= sampling.top_p <= 1, "from 0 to 1"),
        ("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "from 0 to 1"),
        ("repeat_penalty", sampling.repeat_penalty, sampling.repeat_penalty > 0, "more than 0"),
        ("repeat_last", sampling.repeat_last, sampling.repeat_last >= -1, "-1 (all), 0 (none) or more"),
        ("presence_penalty", sampling.presence_penalty, True, "a number"),
        ("frequency_penalty", sampling.frequency_penalty, True, "a number"),
        ("logprobs", sampling.logprobs, sampling.logprobs >= 0, "0 or more"),
    )
    for name, value, good, wanted in bounds:
        if not good or not math.isfinite(value):
            raise SamplingError(f"{name} is {value}; it has to be {wanted}", name)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < n_vocab:
            raise SamplingError(f"logit_bias: {token} is no token of a vocabulary of {n_vocab}", "logit_bias")
        if math.isnan(bias) or bias == math.inf:
            raise SamplingError(f"logit_bias: of token {token} it is {bias}; it has to be a number", "logit_bias")


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop` the length of its longest proper prefix that is also its suffix."""
    borders, length = [0] * len(stop), 0
    for at in range(1, len(stop)):
        while length and stop[length] != stop[at]:
            length = borders[length - 1]
        length += stop[length] == stop[at]
        borders[at] = length
    return borders
