"""Choosing tokens in plain numpy and float64, one plain step after the other: what cyext.sampling is held against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from hearthd.daemon.protocol import Sampling
from numpy.typing import NDArray

LIMIT = float(np.finfo(np.float32).max)


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox 4x32-10 (Salmon et al., SC 2011)."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def uniform(seed: int, position: int) -> float:
    words = philox([position & 0xFFFFFFFF, position >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    return float((words[0] << 32 | words[1]) >> 11) / (1 << 53)


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def adjusted(
    logits: NDArray[np.float32],
    sampling: Sampling,
    *,
    prompt: Sequence[int] = (),
    chosen: Sequence[int] = (),
    forbidden: Collection[int] = (),
    allowed: Collection[int] | None = None,
) -> NDArray[np.float32]:
    """After penalties, bias, forbidden tokens and mask; a token that cannot come has minus infinity."""
    x, last = logits.copy(), sampling.repeat_last
    recent = [*prompt, *chosen]
    seen = set(recent[-last:] if last > 0 else recent if last < 0 else []) if sampling.repeat_penalty != 1 else set()
    counts = Counter(chosen)
    for token in seen | set(counts):
        if token >= len(x):
            continue
        value = float(x[token])
        if token in seen:
            value = value / sampling.repeat_penalty if value > 0 else value * sampling.repeat_penalty
        if counts[token]:
            value -= counts[token] * sampling.frequency_penalty + sampling.presence_penalty
        x[token] = np.clip(value, -LIMIT, LIMIT)
    for token, bias in sampling.logit_bias.items():
        x[token] = np.clip(float(x[token]) + np.float32(bias), -LIMIT, LIMIT) if bias > -np.inf else -np.inf
    x[list(forbidden)] = -np.inf
    if allowed is not None:
        x[[token for token in range(len(x)) if token not in allowed]] = -np.inf
    return x


@dataclass
class Kept:
    """What the filters leave, in the order of ids. near: how near top-p came to another answer, relative to its sum."""

    tokens: NDArray[np.int64]
    near: float


def kept(x: NDArray[np.float32], sampling: Sampling) -> Kept:
    tokens = np.argsort(-x, kind="stable")
    tokens = tokens[x[tokens] > -np.inf]
    if sampling.top_k > 0:
        tokens = tokens[: sampling.top_k]
    weights = np.exp(x[tokens].astype(np.float64) - float(x[tokens[0]]))
    count, near = len(tokens), 1.0
    if sampling.top_p < 1:
        sums = np.cumsum(weights)
        wanted = sampling.top_p * sums[-1]
        count = min(int(np.searchsorted(sums, wanted)) + 1, len(tokens))
        gaps = np.abs(sums[max(count - 2, 0) : count + 1] / wanted - 1) if wanted else np.ones(1)
        near = float(min(gaps[gaps > 0], default=1.0))
    if sampling.min_p > 0:
        count = min(count, int(np.count_nonzero(weights >= sampling.min_p)))
    return Kept(np.sort(tokens[: max(count, 1)]), near)


def draw(x: NDArray[np.float32], tokens: NDArray[np.int64], sampling: Sampling, position: int) -> tuple[int, float]:
    """The token of a position, and how near the draw came to another one."""
    assert sampling.seed is not None
    if sampling.temperature == 0 or sampling.top_k == 1 or sampling.top_p == 0:
        return int(tokens[np.argmax(x[tokens])]), 1.0
    with np.errstate(over="ignore"):
        steps = (x[tokens].astype(np.float64) - float(x[tokens].max())) / sampling.temperature
    sums = np.cumsum(np.exp(steps))
    share = uniform(sampling.seed, position)
    at = min(int(np.searchsorted(sums, share * sums[-1], side="right")), len(tokens) - 1)
    return int(tokens[at]), float(np.abs(sums[max(at - 1, 0) : at + 1] / sums[-1] - share).min())
