"""How often each expert of a layer has been routed to, decayed, kept across restarts.

Owns the counts and their file. Says of itself how uneven routing is, and when it is too even to be of use.
"""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..trust import new_file

HALF_LIFE_TOKENS = 20_000.0
HALF_LIFE_DAYS = 14.0  # between one run and the next
BUSY_SHARE, BUSY_CHOICES = 0.25, 0.85  # a guess before anything is known: that share of experts, of choices
LEAST_TOKENS = 32.0  # before the counts mean anything
NEAR_UNIFORM = 0.85  # effective experts / experts: above, the order by heat is noise
FORMAT = 1


class Heat:
    """counts float64 [layers, experts], an array of its own after each update: threads look at the one before;
    `per_token` is how many experts a token uses in a layer."""

    def __init__(self, layers: int, experts: int, per_token: int, half_life: float = HALF_LIFE_TOKENS) -> None:
        self.counts = np.zeros((layers, experts))
        self.per_token = max(per_token, 1)
        self.half_life = half_life
        self.saved_tokens = 0.0
        self._seen: NDArray[np.uint64] | None = None

    def update(self, routed: NDArray[np.uint64]) -> float:
        """Take the engine's running totals [layers, experts]; the tokens since the last time (busiest layer)."""
        now = np.zeros(self.counts.shape, dtype=np.uint64)
        layers = min(len(now), len(routed))  # the file may have layers that no step runs
        now[:layers] = routed[:layers]
        fresh = now if self._seen is None else now - self._seen
        self._seen = now
        if not fresh.any():
            return 0.0
        tokens = float(fresh.sum(axis=1).max()) / self.per_token
        self.counts = self.counts * 0.5 ** (tokens / self.half_life) + fresh
        return tokens

    def counts_seen(self) -> NDArray[np.uint64]:
        """The engine's totals at the last update."""
        return np.zeros(self.counts.shape, dtype=np.uint64) if self._seen is None else self._seen

    def effective(self) -> NDArray[np.float64]:
        """Effective number of experts per layer, exp(entropy) [layers]; 0 where nothing has been counted."""
        counts = self.counts
        total = counts.sum(axis=1, keepdims=True)
        share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
        logs = np.log(share, out=np.zeros_like(share), where=share > 0)
        return np.where(total[:, 0] > 0, np.exp(-(share * logs).sum(axis=1)), 0.0)

    def tokens(self) -> float:
        """Decayed number of tokens that the counts stand for."""
        return float(self.counts.sum(axis=1).max(initial=0.0)) / self.per_token

    def verdict(self) -> tuple[bool, str]:
        """Is the order by heat worth following, and why (not)?"""
        if self.counts.size == 0:
            return False, "no experts"
        if self.tokens() < LEAST_TOKENS:
            return False, f"fewer than {LEAST_TOKENS:.0f} tokens counted"
        effective = self.effective()
        # Few choices look uneven by chance: the entropy of a sample of N among K is short of the true one by
        # (K - 1) / 2N (Miller, Information Theory in Psychology, 1955).
        experts = self.counts.shape[1]
        chance = float(np.exp((experts - 1) / (2 * self.tokens() * self.per_token)))
        share = min(float(effective[effective > 0].mean()) * chance / experts, 1.0)
        if share > NEAR_UNIFORM:
            return False, f"routing is near uniform ({share:.0%} of the experts in effect)"
        return True, f"routing is uneven ({share:.0%} of the experts in effect)"

    def shares(self) -> NDArray[np.float64]:
        """Chance that a token uses each expert [layers, experts]; even where nothing is known or heat stands aside."""
        even = np.full_like(self.counts, min(self.per_token / max(self.counts.shape[1], 1), 1.0))
        if not self.verdict()[0]:
            return even
        counts = self.counts
        total = counts.sum(axis=1, keepdims=True)
        known = np.divide(counts * self.per_token, total, out=even.copy(), where=total > 0)
        shares: NDArray[np.float64] = np.minimum(known, 1.0)
        return shares

    def chance(self, tokens: int) -> NDArray[np.float64]:
        """Chance that a prompt of so many tokens uses each expert [layers, experts].

        Before routing is known, that of an unknown expert where a quarter of them gets most choices, as trained models
        route: most of a short prompt's experts are then not worth reading on a guess.
        """
        if self.tokens() >= LEAST_TOKENS or not self.counts.size:
            return 1.0 - (1.0 - self.shares()) ** tokens
        even = self.per_token / max(self.counts.shape[1], 1)
        hot, cold = min(BUSY_CHOICES / BUSY_SHARE * even, 1.0), (1 - BUSY_CHOICES) / (1 - BUSY_SHARE) * even
        mean = BUSY_SHARE * (1.0 - (1.0 - hot) ** tokens) + (1 - BUSY_SHARE) * (1.0 - (1.0 - cold) ** tokens)
        return np.full_like(self.counts, mean)

    def save(self, path: Path, identity: str) -> None:
        """Atomic: a reader (or the next start after SIGKILL) finds the file before or after, never half of it."""
        head = {"format": FORMAT, "identity": identity, "time": time.time(), "shape": list(self.counts.shape)}
        body = io.BytesIO()
        body.write(json.dumps(head).encode() + b"\n")
        body.write(self.counts.astype("<f4").tobytes())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        for left in path.parent.glob(f".{path.name}.*"):
            # By a daemon that was killed while it wrote.
            if not Path("/proc", left.suffix[1:]).exists():
                left.unlink(missing_ok=True)
        try:
            with new_file(temporary) as file:
                file.write(body.getvalue())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def load(self, path: Path, identity: str) -> str:
        """Add what an earlier run saved, aged by the time since; the reason when nothing was taken, or ''."""
        try:
            head_bytes, _, body = path.read_bytes().partition(b"\n")
            head: dict[str, Any] = json.loads(head_bytes)
            if head.get("format") != FORMAT or head.get("identity") != identity:
                return "it belongs to another model or version"
            if head.get("shape") != list(self.counts.shape) or len(body) != 4 * self.counts.size:
                return "its size does not match"
            counts = np.frombuffer(body, dtype="<f4").reshape(self.counts.shape).astype(np.float64)
            days = max(time.time() - float(head["time"]), 0.0) / 86400
        except FileNotFoundError:
            return "there is none yet"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"it cannot be read: {error}"
        if not np.isfinite(counts).all() or (counts < 0).any():
            return "it holds impossible numbers"
        self.counts = self.counts + counts * 0.5 ** (days / HALF_LIFE_DAYS)
        self.saved_tokens = self.tokens()
        return ""
