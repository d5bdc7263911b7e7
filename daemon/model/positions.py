"""How positions become angles: rotary embeddings, and what metadata says of contexts longer than the first training's.

Owns the formulas and the keys and tensors that they take. Refuses scalings that it does not know, and factors without
the scaling that they belong to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from hearthd.daemon.model.graph import Tensors
    from hearthd.daemon.model.hyper import Keys

Kind = Literal["none", "linear", "yarn", "longrope"]
KINDS: tuple[Kind, ...] = ("none", "linear", "yarn", "longrope")
EVER, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What the metadata says: how many times longer contexts became, tokens of context before that (`original`), the
    magnitude of cosine and sine (`attention`; 0: it follows from the others). named: the file itself names the kind."""

    kind: Kind = "none"
    factor: float = 1.0
    original: int = 0
    attention: float = 0.0
    stretch: float = 1.0  # factor, else context_length / original
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    extrapolation: float = 1.0
    named: bool = False

    @property
    def stretches(self) -> bool:
        """Whether it changes any angle or magnitude."""
        return self.kind in ("yarn", "longrope") or self.attention not in (0.0, 1.0) or (
            self.kind == "linear" and self.factor != 1.0
        )


@dataclass(frozen=True)
class Factors:
    """What the angles of each pair are divided by, float64 [pairs]: in contexts of at most `original` tokens, and in
    longer ones. longrope: these are that kind's."""

    short: np.ndarray
    long: np.ndarray
    original: int = 0
    longrope: bool = False

    def of(self, context: int) -> np.ndarray:
        return self.long if context > self.original else self.short


def scaling(keys: Keys) -> Scaling:
    """From `rope.scaling.*`, as llama.cpp reads them: a factor without a type is linear, so is the old key
    `rope.scale_linear`, and a factor of 0 is none. Raises BadKey."""
    kind: Kind = keys.choice("rope.scaling.type", {kind: kind for kind in KINDS}, "linear")
    name = "rope.scaling.factor" if "rope.scaling.factor" in keys else "rope.scale_linear"
    factor = keys.real(name, 0.0, least=0.0, most=1e6)
    if 0.0 < factor < (1.0 if kind == "yarn" else 1e-3):
        raise keys.bad(name, "positions are stretched, not shrunk")
    trained = keys.whole("context_length", 0)
    original = keys.whole("rope.scaling.original_context_length", 0) or trained
    if kind in ("yarn", "longrope") and not original:
        raise keys.bad("rope.scaling.original_context_length", "is missing")
    extrapolation = keys.real("rope.scaling.yarn_ext_factor", 1.0, least=-1.0, most=1.0)
    return Scaling(
        kind=kind,
        factor=factor or 1.0,
        original=original,
        attention=keys.real("rope.scaling.attn_factor", 0.0, least=0.0, most=1e3),
        stretch=factor or (trained / original if original else 1.0),
        beta_fast=keys.real("rope.scaling.yarn_beta_fast", 32.0, least=1e-3, most=1e6),
        beta_slow=keys.real("rope.scaling.yarn_beta_slow", 1.0, least=1e-3, most=1e6),
        extrapolation=extrapolation if extrapolation >= 0.0 else 1.0,  # below zero: not said
        named="rope.scaling.type" in keys,
    )


def factors(t: Tensors, scaling: Scaling, width: int) -> Factors | None:
    """Of a rope over `width` values: one tensor for every context, or LongRoPE's two, which are enough to say that it
    is meant. None: the file has none. Raises ModelError for factors that do not go with the scaling, or cannot be."""
    both = [name for name in (LONG, SHORT) if name in t]
    if scaling.kind != "longrope" and not (both and not scaling.named):
        if both:
            raise t.fail(both[0], f"these factors are longrope's, and rope.scaling.type is {scaling.kind}")
        found = _divisors(t, EVER, width) if EVER in t else None
        return None if found is None else Factors(found, found)
    if EVER in t:
        raise t.fail(EVER, f"there cannot be these factors and {LONG}")
    return Factors(_divisors(t, SHORT, width), _divisors(t, LONG, width), scaling.original, longrope=True)


def _divisors(t: Tensors, name: str, width: int) -> np.ndarray:
    found = t.values(name, width // 2)[: width // 2].astype(np.float64)
    if not (found > 0).all():
        raise t.fail(name, "angles cannot be divided by factors of zero or less")
    return found


def angles(
    width: int, base: float, scaling: Scaling, factors: Factors | None = None, *, context: int = 0
) -> tuple[np.ndarray, float]:
    """Of a rope over `width` values: radians per position of each pair, float64 [width / 2] (Su et al., arXiv
    2104.09864), and the magnitude of cosine and sine. context: tokens of the longest sequence."""
    inverse = base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    if factors is not None:
        inverse = inverse / factors.of(context)[: width // 2]
    if factors is not None and factors.longrope:
        return inverse, scaling.attention or _longrope_magnitude(scaling)
    if scaling.kind == "yarn" and scaling.extrapolation:
        magnitude = (1.0 + 0.1 * math.log(scaling.factor)) * (scaling.attention or 1.0)
        return _yarn(inverse, width, base, scaling), magnitude
    return inverse / (1.0 if scaling.kind == "none" else scaling.factor), scaling.attention or 1.0


def _longrope_magnitude(scaling: Scaling) -> float:
    """LongRoPE's (Ding et al., arXiv 2402.13753, as transformers, modeling_rope_utils.py has it)."""
    if scaling.stretch <= 1.0 or scaling.original < 2:
        return 1.0
    return math.sqrt(1.0 + math.log(scaling.stretch) / math.log(scaling.original))


def _yarn(inverse: np.ndarray, width: int, base: float, s: Scaling) -> np.ndarray:
    """Angles blended between interpolation and extrapolation by wavelength (YaRN: Peng et al., arXiv 2309.00071)."""

    def dimension(rotations: float) -> float:
        return width * math.log(s.original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension(s.beta_fast)), 0)
    high = min(math.ceil(dimension(s.beta_slow)), width - 1)
    j = np.arange(width // 2, dtype=np.float64)
    extrapolate = (1.0 - np.clip((j - low) / max(high - low, 0.001), 0.0, 1.0)) * s.extrapolation
    return inverse / s.factor * (1 - extrapolate) + inverse * extrapolate
