"""Heat from one run to the next: where its file lies, loaded once, saved on the way and at the end.

Owns when and where. The counts and the file's format are heat.py's.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from ..tending import described
from ..trust import distrust
from .heat import Heat

log = logging.getLogger(__name__)

SAVE_SECONDS = 60.0


class KeptHeat:
    """source: where the counts came from, for people. warn: told once, from any thread, why they cannot be kept."""

    def __init__(self, heat: Heat, state_directory: str, identity: str, warn: Callable[[str], None]) -> None:
        self._heat, self._directory, self._identity, self._warn = heat, state_directory, identity, warn
        self._path: Path | None = None
        self._loading = threading.Lock()
        self._warned = False
        self._not_ours = ""  # why the place is not to be trusted
        self.source = "not looked for yet"

    def load(self) -> None:
        """What an earlier run saved, if it has not been looked for. Blocks, also while another thread looks."""
        with self._loading:
            if self._path is None:
                try:
                    self._load()
                except Exception as error:  # then heat is counted from nothing
                    self.source = f"not loaded: {described(error)}"
                    log.warning("heat is %s", self.source, exc_info=error)

    def _load(self) -> None:
        if not self._heat.counts.size:
            self.source = "no experts"
            return
        self._path = heat_path(self._directory, self._identity)
        self._not_ours = distrust(self._path)
        reason = self._not_ours or self._heat.load(self._path, self._identity)
        self.source = f"not loaded: {reason}" if reason else f"loaded from {self._path}"
        if reason := self._not_ours or unwritable(self._path):
            self._unsaved(reason)

    def save(self) -> None:
        """To the state directory. Blocks; never raises for want of a place to write."""
        if self._path is None or self._not_ours or self._heat.tokens() < 1:
            return
        try:
            self._heat.save(self._path, self._identity)
        except OSError as error:
            self._unsaved(error.strerror or str(error))

    def _unsaved(self, reason: str) -> None:
        if self._path is not None and not self._warned:
            self._warned = True
            self._warn(f"heat cannot be saved in {self._path.parent}: {reason}")


def heat_path(state_directory: str, identity: str) -> Path:
    """Where a model's heat is kept: the directory given, systemd's, or the XDG state directory."""
    base = state_directory or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if not base:
        base = os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "hearthd")
    return Path(base) / f"heat-{identity}"


def unwritable(path: Path) -> str:
    """Why a file cannot be made there, as far as permissions tell, or ''."""
    there = next(directory for directory in path.parents if directory.exists())
    if not there.is_dir():
        return os.strerror(errno.ENOTDIR)
    if os.access(there, os.W_OK | os.X_OK):
        return ""
    return os.strerror(errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES)
