"""What a model's metadata declares of its tokenizer: read once, checked whole, believed afterwards.

Owns the keys tokenizer.ggml.*, their types and lengths, and how they agree with each other. It looks at no string of an
array: a header says all this at once, and a daemon asks before it says READY. What text becomes is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from .pretokenizers import KNOWN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .hyper import Array, Metadata

# Values of tokenizer.ggml.token_type (gguf's TokenType); 0 is written for what was not said.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

PREFIX = "tokenizer.ggml."
MODELS = {"gpt2": "byte-level BPE", "llama": "SentencePiece"}
ROLES = ("bos", "eos", "eot", "eom", "unknown")  # special tokens that mean something here

_NO_TOKEN = (-1, 0xFFFFFFFF)  # how some files say that there is none
_WHOLE = frozenset(("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"))
_REAL = frozenset(("f32", "f64"))


class TokenizerError(ValueError):
    """Metadata that makes no tokenizer, a token id outside the vocabulary, or text that it cannot express."""


@dataclass(frozen=True, slots=True)
class Declared:
    """The keys of one model, of the right types and lengths. Arrays may have tolist(), strings maybe bytes()."""

    model: str
    pre: str | None
    tokens: Array  # strings
    types: Array | None  # whole numbers, one a token, or None
    scores: Array  # numbers, one a token; SentencePiece only, else empty
    merges: Array  # strings; byte-level BPE only, else empty
    ids: dict[str, int | None]  # by role
    add_bos: bool | None
    space_prefix: bool

    @staticmethod
    def read(metadata: Metadata) -> Declared:
        """Raises TokenizerError naming the key that is missing, of the wrong type, or at odds with another."""
        model = metadata.get(PREFIX + "model")
        if not isinstance(model, str) or model not in MODELS:
            known = ", ".join(f"{name} ({what})" for name, what in MODELS.items())
            raise TokenizerError(f"{PREFIX}model is {model!r:.80}; known: {known}")
        tokens = _array(metadata, "tokens", strings=True)
        n = len(tokens)
        if not 0 < n < 1 << 29:
            raise TokenizerError(f"{PREFIX}tokens has {n} elements")
        byte_level = model == "gpt2"
        return Declared(
            model=model,
            pre=_pre(metadata) if byte_level else None,
            tokens=tokens,
            types=_types(metadata, n) if PREFIX + "token_type" in metadata else None,
            scores=() if byte_level else _scores(metadata, n),
            merges=_array(metadata, "merges", strings=True) if byte_level else (),
            ids={role: _token(metadata, role, n) for role in ROLES},
            add_bos=_flag(metadata, "add_bos_token", None),
            space_prefix=_flag(metadata, "add_space_prefix", True) is not False,
        )


def check(metadata: Metadata) -> None:
    """All that a header can tell of its tokenizer, in a millisecond for 250,000 tokens. Raises TokenizerError."""
    Declared.read(metadata)


def _pre(metadata: Metadata) -> str | None:
    name = metadata.get(PREFIX + "pre")
    if name is not None and (not isinstance(name, str) or name not in KNOWN):
        raise TokenizerError(f"{PREFIX}pre is {name!r:.80}: unknown pre-tokenizer; known: {', '.join(sorted(KNOWN))}")
    return name


def _array(metadata: Metadata, name: str, *, strings: bool = False, length: int | None = None) -> Array:
    array = metadata.get(PREFIX + name)
    if not _listed(array):
        raise TokenizerError(f"the metadata holds no array {PREFIX}{name}")
    found = _elements(array)
    if found != "nothing" and strings != (found == "string"):
        raise TokenizerError(f"{PREFIX}{name} holds {found}, not {'strings' if strings else 'numbers'}")
    if length is not None and len(array) != length:
        raise TokenizerError(f"{PREFIX}{name} has {len(array)} elements for {length} tokens")
    return array


def _listed(value: object) -> TypeGuard[Array]:
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return sized and not isinstance(value, str | bytes | Mapping)


def _elements(array: Array) -> str:
    """The type of an array's elements, in a GGUF header's words. `mixed` is no type at all."""
    if isinstance(word := getattr(array, "element", None), str):
        return word
    if (kind := getattr(getattr(array, "dtype", None), "kind", None)) is not None:
        return {"i": "i64", "u": "u64", "f": "f64", "b": "bool"}.get(kind, "mixed")
    if not len(array):
        return "nothing"
    words = {str: "string", int: "i64", float: "f64", bool: "bool"}
    kinds = {type(item) for item in array} if isinstance(array, list | tuple) else {type(array[0])}
    found = {words.get(kind, "mixed") for kind in kinds}
    return found.pop() if len(found) == 1 else "f64" if found == {"i64", "f64"} else "mixed"


def _numbers(array: Array) -> NDArray[np.number | np.bool_]:
    import numpy

    if hasattr(array, "numpy"):
        return numpy.asarray(array.numpy())
    return numpy.asarray(array.tolist() if hasattr(array, "tolist") else array)


def _types(metadata: Metadata, n: int) -> Array:
    array = _array(metadata, "token_type", length=n)
    if _elements(array) not in _WHOLE:
        raise TokenizerError(f"{PREFIX}token_type holds {_elements(array)}, not whole numbers")
    values = _numbers(array)
    wrong = (values < 0) | (values > BYTE)
    if wrong.any():
        at = int(wrong.argmax())
        raise TokenizerError(f"{PREFIX}token_type[{at}] is {int(values[at])}: no type of a token")
    return array


def _scores(metadata: Metadata, n: int) -> Array:
    array = _array(metadata, "scores", length=n)
    if _elements(array) not in _WHOLE | _REAL:
        raise TokenizerError(f"{PREFIX}scores holds {_elements(array)}, not numbers")
    import numpy

    wrong = numpy.isnan(_numbers(array))  # has no place in an order
    if wrong.any():
        raise TokenizerError(f"{PREFIX}scores[{int(wrong.argmax())}] is not a number")
    return array


def _token(metadata: Metadata, role: str, n: int) -> int | None:
    key = f"{PREFIX}{role}_token_id"
    token = metadata.get(key)
    if token is None:
        return None
    if not isinstance(token, int) or isinstance(token, bool):
        raise TokenizerError(f"{key} is {token!r:.80}, not a token id")
    if token in _NO_TOKEN:
        return None
    if not 0 <= token < n:
        raise TokenizerError(f"{key} is {token}, outside the vocabulary of {n}")
    return token


def _flag(metadata: Metadata, name: str, default: bool | None) -> bool | None:
    value = metadata.get(PREFIX + name, default)
    if value is default or (isinstance(value, int) and value in (0, 1)):
        return None if value is None else bool(value)
    raise TokenizerError(f"{PREFIX}{name} is {value!r:.80}, not true or false")
