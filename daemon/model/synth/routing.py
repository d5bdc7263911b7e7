"""Routers whose choices are as uneven as asked for.

Owns the lengths of the router's rows; does not need the hidden states. A router's row times a normalised hidden state
is about normal with the row's length as its deviation, so among rows of different lengths the top k of a token are
mostly the long ones: which, differs from token to token, how often, follows from the lengths.
"""
import numpy as np
import numpy.typing as npt

TOP = 4          # the share is that of the busiest quarter of the experts
DEFAULT = 0.85   # of all choices
_TOKENS = 4096


def share_of_top(counts: npt.NDArray[np.integer]) -> float:
    """Share of all choices that the busiest quarter of the experts gets; counts [n_expert]."""
    ordered = np.sort(counts)[::-1]
    return float(ordered[: max(1, len(ordered) // TOP)].sum() / max(1, ordered.sum()))


def _shares(n_expert: int, n_used: int, slope: float, noise: npt.NDArray[np.float32]) -> float:
    logits = noise * row_lengths(n_expert, slope)
    chosen = np.argpartition(-logits, n_used - 1, axis=1)[:, :n_used]
    return share_of_top(np.bincount(chosen.ravel(), minlength=n_expert))


def row_lengths(n_expert: int, slope: float) -> npt.NDArray[np.float32]:
    """Lengths of the routers' rows, longest first: falling evenly in the logarithm by `slope` from first to last."""
    return np.exp(-slope * np.arange(n_expert) / n_expert).astype(np.float32)


def slope_for(n_expert: int, n_used: int, share: float) -> float:
    """The slope at which the busiest quarter gets about `share` of the choices.

    0.25 or less is even routing. A share beyond what k choices among n experts allow gives the steepest sensible one.
    """
    if share <= 1 / TOP or n_expert < 2 * TOP or n_used >= n_expert:
        return 0.0
    noise = np.random.Generator(np.random.SFC64(7)).standard_normal((_TOKENS, n_expert), np.float32)
    low, high = 0.0, 16.0
    for _ in range(18):
        middle = (low + high) / 2
        if _shares(n_expert, n_used, middle, noise) < share:
            low = middle
        else:
            high = middle
    return high


def router(rng: np.random.Generator, n_embd: int, n_expert: int, slope: float,
           spread: float = 1.5) -> npt.NDArray[np.float32]:
    """A router [n_expert, n_embd] whose logits have the deviation `spread` for the longest row, for hidden states of
    unit mean square; which expert is a busy one is drawn."""
    rows = rng.standard_normal((n_expert, n_embd), np.float32)
    rows /= np.sqrt((rows**2).sum(1, keepdims=True))
    lengths = row_lengths(n_expert, slope)
    # Equal lengths should give the same middling logits as unequal ones, not all of the longest.
    scale = spread if slope > 0 else spread / 2
    return rows * (rng.permutation(lengths) * np.float32(scale))[:, None]
