"""What a graph is made of: matrices of the file, values, and the calls that make values of values. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Weight:
    """A matrix, or one per expert: number in the program, [experts] x rows x cols."""

    number: int
    name: str
    rows: int
    cols: int
    experts: int = 0


@dataclass(eq=False)
class Value:
    """Rows of `width` floats that an operation makes. `selected`: only the rows that want logits."""

    width: int
    selected: bool = False
    buffer: int = -1
    made_by: Call | None = None


@dataclass(eq=False)
class Call:
    kind: str
    layer: int
    ins: list[Value | None]
    outs: list[Value]
    weights: list[Weight | None] = field(default_factory=list)
    ints: list[int] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)
    changes: list[Value] = field(default_factory=list)  # values changed in place
    selected: bool = False

    def values(self) -> set[Value]:
        """What it reads and writes."""
        return {value for value in [*self.ins, *self.outs] if value is not None}
