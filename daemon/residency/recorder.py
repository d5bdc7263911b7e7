"""Writes the routing of a running daemon to a trace file, with what the run itself read. Owns the file while it runs.

Decides nothing and replays nothing: see replay.py.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..trust import distrust
from .replay import Trace

if TYPE_CHECKING:
    from .parts import Engine, Table

log = logging.getLogger(__name__)

CAPACITY = 1 << 25  # int32: some 60,000 tokens of 48 layers with 8 experts; pages are taken as they fill


class Recorder:
    """Records from construction on. Raises OSError when the file cannot be written."""

    def __init__(self, path: Path | str, engine: Engine, table: Table) -> None:
        self.path = Path(path)
        self._program = engine.program
        self._used = int(engine.hyper.n_expert_used)
        self.nbytes = expert_bytes(table)
        self._width = 3 + self._used
        self._progress: list[tuple[int, int, int]] = []
        if why := distrust(self.path):
            raise PermissionError(errno.EPERM, why, str(self.path))
        with open(self.path, "ab"):
            pass  # now rather than after an hour of recording
        self._program.trace_begin(CAPACITY)

    def note(self, read_bytes: int, budget: int) -> None:
        """What the run has read so far, and how many bytes of experts it may hold."""
        row = (int(self._program.trace_used) // self._width, read_bytes, budget)
        if not self._progress or row[0] != self._progress[-1][0]:
            self._progress.append(row)

    def save(self) -> None:
        """Everything so far, atomically. Blocks; a full disk is said in the log."""
        trace = trace_of(self._program.trace_peek(), self._used, self.nbytes, self._progress)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            trace.save(temporary)
            os.replace(temporary, self.path)
        except OSError as error:
            log.warning("the trace cannot be saved in %s: %s", self.path, error.strerror)
        finally:
            temporary.unlink(missing_ok=True)


def expert_bytes(table: Table) -> NDArray[np.int64]:
    """int64 [layers, experts]: bytes of all spans of an expert."""
    layer, expert = np.asarray(table.layer), np.asarray(table.expert)
    sizes = np.zeros((int(layer.max(initial=-1)) + 1, int(table.n_expert)), dtype=np.int64)
    chosen = expert >= 0
    np.add.at(sizes, (layer[chosen], expert[chosen]), np.asarray(table.nbytes, dtype=np.int64)[chosen])
    return sizes


def trace_of(
    records: NDArray[np.int32], used: int, nbytes: NDArray[np.int64], progress: list[tuple[int, int, int]]
) -> Trace:
    """A trace from the program's records (step, layer, row, experts...); progress counts records, not tokens."""
    rows = records[: len(records) // (3 + used) * (3 + used)].reshape(-1, 3 + used)
    token_key = rows[:, 0].astype(np.int64) << 20 | rows[:, 2]
    steps, token = np.unique(token_key, return_inverse=True)
    choices = np.full((len(steps), nbytes.shape[0], used), -1, dtype=np.int16)
    choices[token, rows[:, 1]] = rows[:, 3:]
    # How many tokens had begun by each record: tokens are numbered in the order in which their steps ran.
    begun = np.concatenate(([0], np.maximum.accumulate(token) + 1)) if len(rows) else np.zeros(1, dtype=np.int64)
    samples = [(int(begun[min(at, len(rows))]), read, budget) for at, read, budget in progress]
    return Trace(choices, nbytes, (steps >> 20).astype(np.int32), np.array(samples, dtype=np.int64).reshape(-1, 3))
