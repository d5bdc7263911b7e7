"""What would more memory buy? A recorded routing trace played against policies at several budgets.

Owns the trace's format and the policies' arithmetic. Touches no model: sizes and choices come from the trace.

A trace is an .npz file: `choices` int16 [tokens, layers, used] (expert numbers, -1 where a layer has none), `nbytes`
int64 [layers, experts] (bytes of an expert's spans), `batch` int32 [tokens] (which step a token was part of: an expert
that several tokens of one step use is read once), and `run` int64 [samples, 3]: tokens begun, bytes that the run had
read by then, bytes of experts that it could hold.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..trust import new_file
from .keeper import RECENT_HALF_LIFE

POLICIES = ("lru", "lfu", "heat", "optimal")
NEVER = 1 << 60


@dataclass(frozen=True)
class Trace:
    choices: NDArray[np.int16]
    nbytes: NDArray[np.int64]
    batch: NDArray[np.int32]
    run: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))

    @classmethod
    def load(cls, path: Path | str) -> Trace:
        """Raises ValueError for a file that is no trace, OSError for one that cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as file:
                trace = cls(file["choices"], file["nbytes"], file["batch"], file["run"])
        except (KeyError, EOFError, ValueError, BadZipFile):
            raise ValueError(f"{path}: not a routing trace, as hearthd --trace writes it") from None
        shape, sizes = trace.choices.shape, trace.nbytes.shape
        if len(shape) != 3 or len(sizes) != 2 or sizes[0] != shape[1] or trace.batch.shape != shape[:1]:
            raise ValueError(f"{path}: choices {shape}, nbytes {sizes} and batch {trace.batch.shape} do not match")
        if trace.run.ndim != 2 or trace.run.shape[1] != 3:
            raise ValueError(f"{path}: run {trace.run.shape} is not a list of three numbers each")
        if trace.choices.size and not -1 <= trace.choices.min() <= trace.choices.max() < trace.nbytes.shape[1]:
            raise ValueError(f"{path}: an expert number is out of range")
        return trace

    def save(self, path: Path | str) -> None:
        with new_file(path) as file:
            np.savez_compressed(file, choices=self.choices, nbytes=self.nbytes, batch=self.batch, run=self.run)

    def run_bytes_per_token(self, skip: int = 0) -> float | None:
        """What the recorded run itself read per token after the first `skip`; None without two samples there."""
        run = self.run[self.run[:, 0] >= skip]
        if len(run) < 2 or run[-1, 0] <= run[0, 0]:
            return None
        return float(run[-1, 1] - run[0, 1]) / float(run[-1, 0] - run[0, 0])

    def run_budget(self) -> int:
        """Bytes of experts that the recorded run could hold at its end; 0 when not recorded."""
        return int(self.run[-1, 2]) if len(self.run) else 0

    def accesses(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(key, token) of every read in order: key = layer * experts + expert; once per step, layer and expert."""
        tokens, layers, _ = self.choices.shape
        experts = self.nbytes.shape[1]
        layer = np.broadcast_to(np.arange(layers)[None, :, None], self.choices.shape)
        token = np.broadcast_to(np.arange(tokens)[:, None, None], self.choices.shape)
        step = np.broadcast_to(self.batch[:, None, None], self.choices.shape)
        valid = self.choices >= 0
        key = (layer * experts + self.choices)[valid].astype(np.int64)
        order = np.lexsort((token[valid], layer[valid], step[valid]))
        key, step_of, token_of = key[order], step[valid][order].astype(np.int64), token[valid][order]
        _, first = np.unique(step_of * (layers * experts) + key, return_index=True)
        first.sort()
        return key[first], token_of[first].astype(np.int64)


@dataclass(frozen=True)
class Outcome:
    policy: str
    budget: int
    hits: int
    accesses: int
    read_bytes: int
    tokens: int

    @property
    def hit_rate(self) -> float:
        return self.hits / self.accesses if self.accesses else 1.0

    @property
    def bytes_per_token(self) -> float:
        return self.read_bytes / self.tokens if self.tokens else 0.0


def replay(trace: Trace, budget: int, policy: str, skip: int = 0) -> Outcome:
    """Play a trace from an empty memory of `budget` bytes for experts; the first `skip` tokens only fill it.

    lru: least recently used goes. lfu: least often used goes. heat: as the keeper does it, by a share decayed over
    RECENT_HALF_LIFE tokens plus the long-term share. optimal: what is needed again last goes, and what is needed later
    than all that is held is not kept (Belady, IBM Systems Journal 5(2), 1966; exact for equal sizes).
    """
    if policy not in POLICIES:
        raise ValueError(f"{policy} is none of {', '.join(POLICIES)}")
    keys, tokens = trace.accesses()
    sizes = trace.nbytes.reshape(-1).tolist()
    after = _next_use(keys)
    held: dict[int, float] = {}  # key -> the score with which it stands in the heap
    heap: list[tuple[float, int]] = []
    count = [0.0] * len(sizes)
    recent = [-math.inf] * len(sizes)
    used = hits = read = 0
    for i, (key, token) in enumerate(zip(keys.tolist(), tokens.tolist(), strict=True)):
        count[key] += 1
        # The logarithm of a count of which new ones grow instead of all old ones shrinking: the order stays the same.
        recent[key] = _log2_sum(recent[key], token / RECENT_HALF_LIFE)
        score = _score(policy, i, after[i], count[key], recent[key], token)
        hit = key in held
        counted = token >= skip
        hits += hit and counted
        if not hit:
            read += sizes[key] * counted
            if sizes[key] > budget:
                continue
            used += sizes[key]
        held[key] = score
        heapq.heappush(heap, (score, key))
        while used > budget:
            lowest, victim = heapq.heappop(heap)
            if held.get(victim) == lowest:
                del held[victim]
                used -= sizes[victim]
    tokens_counted = max(trace.choices.shape[0] - skip, 0)
    return Outcome(policy, budget, hits, int((tokens >= skip).sum()), read, tokens_counted)


def _score(policy: str, now: int, after: int, count: float, recent: float, token: int) -> float:
    """Lowest goes first."""
    if policy == "lru":
        return float(now)
    if policy == "lfu":
        return count + now * 1e-12
    if policy == "heat":
        return recent + 0.25 * count / (token + 1)
    return -float(after)


def _log2_sum(a: float, b: float) -> float:
    """log2(2^a + 2^b)."""
    high, low = max(a, b), min(a, b)
    return high + math.log2(1 + 2.0 ** (low - high))


def _next_use(keys: NDArray[np.int64]) -> list[int]:
    """For each access, the number of the next one of the same key."""
    after = [NEVER] * len(keys)
    seen: dict[int, int] = {}
    for i in range(len(keys) - 1, -1, -1):
        key = int(keys[i])
        after[i] = seen.get(key, NEVER)
        seen[key] = i
    return after


def table(trace: Trace, budgets: list[int], policies: tuple[str, ...] = POLICIES, skip: int = 0) -> list[Outcome]:
    """Every policy at every budget."""
    return [replay(trace, budget, policy, skip) for budget in budgets for policy in policies]
