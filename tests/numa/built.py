"""Imported first in a guest: keeps an editable install from rebuilding itself, which its read-only root forbids."""

from __future__ import annotations

import sys

for finder in sys.meta_path:
    if getattr(finder, "rebuild_flag", False):
        finder.rebuild_flag = False  # type: ignore[attr-defined]
