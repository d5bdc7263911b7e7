"""Sizes as people read them. Owns nothing else."""


def gib(nbytes: float) -> str:
    """`51.2 GiB`, `7.90 GiB`, `512 MiB`, `3 KiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size:
            value = nbytes / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{nbytes:.0f} B"
