"""Numbers as people read them: bytes in binary units, rates, durations, shares, clock times.

Owns rounding and widths. It never rounds a part up to the whole, nor something down to nothing.
"""

from __future__ import annotations

import math
import time

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """Bytes with a binary unit, at most nine characters: `0 B`, `7.90 GiB`, `115.3 GiB`."""
    value = float(max(0.0, count))
    unit = 0
    # 1000, not 1024: 1010 MiB would need a fourth digit before the point.
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    if unit == 0:
        return f"{value:.0f} B"
    return f"{value:.2f} {_UNITS[unit]}" if value < 9.995 else f"{value:.1f} {_UNITS[unit]}"


def rate(bytes_per_second: float) -> str:
    return f"{size(bytes_per_second)}/s"


def tokens(per_second: float) -> str:
    """Tokens per second as `24.1 t/s`; above 1000 without a fraction."""
    return f"{per_second:.1f} t/s" if per_second < 999.95 else f"{per_second:.0f} t/s"


def mean(value: float) -> str:
    """A mean of whole numbers: `0.3`, `4`, `4.2`, `96`; below ten with a tenth where there is one."""
    if value >= 9.95:
        return f"{value:.0f}"
    tenths = f"{max(0.1, value):.1f}" if value > 0 else "0"
    return tenths.removesuffix(".0")


def count(number: int, digits: int = 5) -> str:
    """Whole numbers of up to `digits` digits as they are, longer ones as `123k`, `4M`: never wider than digits >= 4."""
    for divisor, unit in ((1, ""), (1000, "k"), (1_000_000, "M")):
        if number < 10 ** (digits - len(unit)) * divisor:
            return f"{number // divisor}{unit}"
    return f"{number // 10**9}G"


def share(part: float, whole: float) -> str:
    """A percentage that says 100 % only of the whole and 0 % only of nothing; `—` of an empty whole."""
    if whole <= 0:
        return "—"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "<1 %"
    if part < whole:
        percent = math.floor(percent)
    return f"{percent:.0f} %"


def duration(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`, `3d 04:05`."""
    whole = int(max(0.0, seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minutes}:{second:02}"


def clock(at: float) -> str:
    """Local time of day of a Unix time."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def shorten(text: str, width: int) -> str:
    """At most `width` characters; what was cut is marked by `…`."""
    if len(text) <= width:
        return text
    return text[: max(0, width - 1)] + "…" if width > 0 else ""


def shorten_middle(text: str, width: int) -> str:
    """As `shorten`, keeping both ends: for paths and ids, whose last part tells them apart."""
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
