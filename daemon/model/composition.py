"""Unicode's form NFC of any text, in time that grows as the text does.

Owns the places where text may be divided before it is composed. unicodedata's own call sorts a run of combining marks
by insertion and keeps the GIL: half a million marks in a row would stop the process for minutes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING
from unicodedata import combining, normalize

if TYPE_CHECKING:
    import regex

# Nothing before these characters composes with them, and they combine with nothing before them: Latin to Cyrillic
# letters, kana, Han, Hangul syllables, emoji.
_STARTERS = "\u0000-\u02ff\u0370-\u0482\u3000-\u3029\u3041-\u3096\u3400-\u9fff\uac00-\ud7a3\U0001f000-\U0001faff"
_PIECE = re.compile(f".{{1,16384}}[^{_STARTERS}]*", re.DOTALL)  # some milliseconds
_RUN = 32  # marks in a row that insertion sorts well; real text has three or four


def composed(text: str) -> str:
    """NFC of `text`: é as one character, however it was typed."""
    if text.isascii():
        return text
    return "".join(normalize("NFC", _marks().sub(_ordered, piece)) for piece in _PIECE.findall(text))


@lru_cache(maxsize=1)
def _marks() -> regex.Pattern[str]:
    import regex

    return regex.compile(rf"\p{{M}}{{{_RUN},}}")


def _ordered(match: regex.Match[str]) -> str:
    """Marks as NFD orders them: between those of class 0 by their classes, and else as they came."""
    apart = "".join(normalize("NFD", mark) for mark in match.group())
    parts = []
    for _, run in groupby(apart, lambda mark: combining(mark) == 0):
        parts += sorted(run, key=combining)
    return "".join(parts)
