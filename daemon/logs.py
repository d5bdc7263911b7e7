"""Log lines on stderr: with `<N>` priorities when the journal reads them, with the time when a person does."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

# syslog(3) priorities
PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class JournalFormatter(logging.Formatter):
    """One priority prefix per line, also for the lines of a traceback, or the journal files those as notices."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up(level: str = "info", environ: Mapping[str, str] = os.environ) -> None:
    """Once, at the start of a daemon. The journal is behind stderr when `$JOURNAL_STREAM` is set (systemd.exec(5))."""
    handler = logging.StreamHandler(sys.stderr)
    if environ.get("JOURNAL_STREAM"):
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("hearthd")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
