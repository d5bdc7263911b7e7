"""What is changed in a header: one to three of its values, by a seed. The same seed and files give the same change.

Owns the choice of keys and values; knows no key's meaning, only which keys the models at hand have.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import gguf_bytes
from .gguf_bytes import ARRAY, BOOL, F32, F64, FLOATS, I32, I64, INTEGERS, SCALARS, STRING, U8, U64, File, Key, List

WHOLE = (0, 1, -1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 64, 100, 127, 128, 255, 256, 1000, 65535, 65536, 1_000_000,
         60_000_000, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63,
         (1 << 64) - 1, -2, -32, -(1 << 15), -(1 << 31), -(1 << 63))  # fmt: skip
REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-38, 1e-30, 1e-6, 1e6, 1e30, 3.4e38, -3.4e38, 1e308, math.nan,
        math.inf, -math.inf)  # fmt: skip
TEXT = (b"", b" ", b"none", b"linear", b"unknown", b"nobody-knows-this", b"\xff\xfe\xfd", b"a\x00b", b"\xed\xa0\x80",
        b"1", b"-1", b"nan", b"../../etc/passwd", b"%s%n", "日本".encode(), b"{{", b"x" * 3000,
        b"x" * 100_000)  # fmt: skip


class Model(NamedTuple):
    """A model's files, whose metadata is to be changed."""

    name: str
    files: tuple[File, ...]


class Change(NamedTuple):
    """A changed model: what was changed, in words; the full names of the keys and tensors concerned."""

    model: Model
    words: list[str]
    touched: list[str]


class Corpus:
    """Models, grouped by what their metadata says, and all that any of them says under a key."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.groups: dict[str, list[Model]] = {}
        self.values: dict[bytes, list[tuple[int, bytes]]] = {}  # of a key without its architecture
        for model in models:
            arch = architecture(model.files[0])
            self.groups.setdefault(f"{arch.decode()} {model.name.split('/')[0]}", []).append(model)
            for key in model.files[0].keys:
                known = self.values.setdefault(_plain(key.name, arch), [])
                if (key.kind, key.raw) not in known:
                    known.append((key.kind, key.raw))

    @property
    def models(self) -> list[Model]:
        return [model for group in self.groups.values() for model in group]

    def change(self, seed: int, number: int, *, tensors: bool = False) -> Change:
        """Case `number` of a seed: one to three changes of one model. tensors: of the directory as well."""
        chance = random.Random(f"{seed}/{number}")
        model = chance.choice(self.groups[chance.choice(sorted(self.groups))])
        words: list[str] = []
        touched: list[str] = []
        for _ in range(chance.choice((1, 1, 1, 1, 2, 2, 3))):
            at = 0 if chance.random() < 0.8 else chance.randrange(len(model.files))
            file = model.files[at]
            made = _change_tensor if tensors and chance.random() < 0.5 else self._change_key
            file, name, said = made(chance, file)
            model = Model(model.name, (*model.files[:at], file, *model.files[at + 1 :]))
            words.append(said)
            touched.append(name.decode(errors="replace"))
        return Change(model, words, touched)

    def _change_key(self, chance: random.Random, file: File) -> tuple[File, bytes, str]:
        arch = architecture(file)
        if chance.random() < 0.15:  # a key that models of other kinds have
            plain = chance.choice(sorted(self.values))
            kind, raw = chance.choice(self.values[plain])
            key = Key(_full(plain, arch), kind, raw)
            if chance.random() < 0.6:
                key = _changed(chance, key, self.values[plain])
            keys = [other for other in file.keys if other.name != key.name]
            return file.with_keys([*keys, key]), key.name, f"{_text(key.name)} added: {key}"
        places = range(len(file.keys))
        key = file.keys[at := chance.choices(places, [_weight(key.name) for key in file.keys])[0]]
        before, after = file.keys[:at], file.keys[at + 1 :]
        way = chance.random()
        if way < 0.07:
            return file.with_keys([*before, *after]), key.name, f"{_text(key.name)} removed"
        if way < 0.10:
            twin = _changed(chance, key, self.values.get(_plain(key.name, arch), []))
            return file.with_keys([*before, key, *after, twin]), key.name, f"{_text(key.name)} twice, also {twin}"
        if way < 0.12:
            name = chance.choice((key.name.upper(), key.name + b".", b"", key.name + b"\xff", key.name[:-1]))
            return file.with_keys([*before, Key(name, key.kind, key.raw), *after]), key.name, (
                f"{_text(key.name)} renamed {_text(name)}")  # fmt: skip
        new = _changed(chance, key, self.values.get(_plain(key.name, arch), []))
        return file.with_keys([*before, new, *after]), key.name, f"{_text(key.name)}: {key} -> {new}"


def architecture(file: File) -> bytes:
    """What the file says of itself; empty for a shard that does not."""
    return next((key.value for key in file.keys if key.name == b"general.architecture" and key.kind == STRING), b"")


def collect(directories: Sequence[Path], accepted: Callable[[Path], bool]) -> list[Model]:
    """The models below directories that `accepted` takes, shards together."""
    models = []
    for directory in directories:
        for path in sorted(directory.glob("*.gguf")):
            if "-of-" in path.name and "-00001-of-" not in path.name:
                continue
            stem = path.name.partition("-00001-of-")[0]
            paths = sorted(directory.glob(f"{stem}-*-of-*.gguf")) if "-00001-of-" in path.name else [path]
            if accepted(path):
                models.append(Model(f"{directory.name}/{path.name}", tuple(gguf_bytes.read(each) for each in paths)))
    return models


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")[:80] or "''"


def _plain(name: bytes, arch: bytes) -> bytes:
    return b"ARCH" + name.removeprefix(arch) if arch and name.startswith(arch + b".") else name


def _full(plain: bytes, arch: bytes) -> bytes:
    return arch + plain.removeprefix(b"ARCH") if plain.startswith(b"ARCH.") else plain


def _weight(name: bytes) -> float:
    """Names, files' types and the like are changed too, but rarely: they hardly mean anything."""
    if name.startswith(b"tokenizer."):
        return 0.8
    if name.startswith((b"general.", b"quantize.")):
        return 1.0 if name.endswith((b"architecture", b"alignment")) else 0.15
    return 1.0


def _changed(chance: random.Random, key: Key, known: list[tuple[int, bytes]]) -> Key:
    """The same key with another value, and perhaps another type."""
    for _ in range(20):
        new = _another(chance, key, known)
        if (new.kind, new.raw) != (key.kind, key.raw):
            return new
    return Key.of(key.name, STRING, b"changed")


def _another(chance: random.Random, key: Key, known: list[tuple[int, bytes]]) -> Key:
    if known and chance.random() < 0.1:
        kind, raw = chance.choice(known)
        return Key(key.name, kind, raw)
    if chance.random() < 0.2:
        return _retyped(chance, key)
    if key.kind in INTEGERS:
        return _number(key.name, key.kind, _whole(chance, key.value))
    if key.kind in FLOATS:
        return _number(key.name, key.kind, _real(chance, key.value))
    if key.kind == BOOL:
        return Key(key.name, BOOL, bytes([chance.choice((0, 1, 2, 255))]))
    if key.kind == STRING:
        return Key.of(key.name, STRING, _string(chance, key.value))
    return Key.of(key.name, ARRAY, _array(chance, key.value))


def _whole(chance: random.Random, value: int) -> int:
    near = (value - 1, value + 1, value * 2, value // 2, -value, value + 2, value * 3, value ^ 1)
    return chance.choice(near) if chance.random() < 0.4 else chance.choice(WHOLE)


def _real(chance: random.Random, value: float) -> float:
    near = (value * 2, value / 2, -value, value + 1, value * 1000, value / 1000)
    return chance.choice(near) if chance.random() < 0.3 else chance.choice(REAL)


def _string(chance: random.Random, value: bytes) -> bytes:
    way = chance.random()
    if way < 0.5 or not value:
        return chance.choice(TEXT)
    at = chance.randrange(len(value))
    if way < 0.7:
        return value[:at]
    if way < 0.85:
        return value[:at] + bytes([chance.randrange(256)]) + value[at + 1 :]
    return value + value


def _number(name: bytes, kind: int, value: float) -> Key:
    """In this type if it can say the value, else in one that can."""
    if kind in FLOATS:
        if kind == F32 and math.isfinite(value) and abs(value) > 3.4028234e38:
            kind = F64
        return Key.of(name, kind, float(value))
    whole = int(value)
    for fitting in (kind, I64, U64):
        low, high = gguf_bytes.bounds(fitting)
        if low <= whole <= high:
            return Key.of(name, fitting, whole)
    return Key.of(name, F64, float(whole))


def _retyped(chance: random.Random, key: Key) -> Key:
    """The same value, as far as can be, in another type."""
    value = key.value
    kind = chance.choice([other for other in range(13) if other != key.kind])
    if isinstance(value, List):
        if kind == ARRAY or not value.values:
            return Key.of(key.name, ARRAY, List(chance.choice(list(SCALARS)), [1] * len(value.values)))
        value = value.values[0]
    if kind == ARRAY:
        if isinstance(value, bytes):
            return Key.of(key.name, ARRAY, List(STRING, [value] * chance.choice((0, 1, 3))))
        return Key.of(key.name, ARRAY, List(key.kind if key.kind in SCALARS else I32,
                                            [value if key.kind in SCALARS else 1] * chance.choice((0, 1, 2, 3, 100))))
    if kind == STRING:
        return Key.of(key.name, STRING, value if isinstance(value, bytes) else str(value).encode())
    if isinstance(value, bytes):
        value = chance.choice((0, 1, 7))
    if kind in FLOATS or kind == BOOL:
        return Key.of(key.name, kind, float(value) if kind in FLOATS else int(bool(value)))
    low, high = gguf_bytes.bounds(kind)
    whole = int(value) if math.isfinite(value) else 0
    return Key.of(key.name, kind, min(max(whole, low), high))


def _array(chance: random.Random, value: List) -> List:
    values = list(value.values)
    way = chance.random()
    if way < 0.08:
        return List(value.element, [])
    if way < 0.45 and values:
        lengths = (values[:-1], values[:1], values[: len(values) // 2], [*values, values[-1]], values * 2, values[::-1],
                   [*values, *[values[0]] * 1000], values[1:], [values[0]] * len(values))  # fmt: skip
        return List(value.element, chance.choice(lengths))
    if way < 0.5:
        return List(value.element, values, chance.choice((len(values) + 1, 1 << 31, 1 << 61, (1 << 64) - 1)))
    if way < 0.55:
        kind = chance.choice(list(SCALARS))
        return List(kind, [0] * len(values))
    if not values:
        return List(U8, [1, 2, 3])
    for _ in range(chance.choice((1, 1, 2, 10))):
        at = chance.randrange(len(values))
        values[at] = _element(chance, value.element, values[at], values)
    return List(value.element, values)


def _element(chance: random.Random, kind: int, value: Any, all_: list[Any]) -> Any:
    if chance.random() < 0.2:
        return chance.choice(all_)
    if kind == STRING:
        return _string(chance, value)
    if kind in FLOATS:
        real = _real(chance, value)
        return real if kind == F64 or not math.isfinite(real) or abs(real) < 3.4028234e38 else math.inf
    if kind == BOOL:
        return chance.choice((0, 1, 2))
    if kind in INTEGERS:
        low, high = gguf_bytes.bounds(kind)
        return min(max(_whole(chance, value), low), high)
    return value


def _change_tensor(chance: random.Random, file: File) -> tuple[File, bytes, str]:
    """A tensor renamed, dropped, twice, of another shape or type, or elsewhere."""
    at = chance.randrange(len(file.tensors))
    old = file.tensors[at]
    others = [*file.tensors[:at], *file.tensors[at + 1 :]]
    way = chance.randrange(6)
    if way == 0:
        return file.with_tensors(others), old.name, f"tensor {_text(old.name)} dropped"
    if way == 1:
        name = chance.choice((old.name + b".scale", b"foreign", old.name.replace(b"blk.0", b"blk.7"), b"",
                              chance.choice(file.tensors).name))  # fmt: skip
        new = old._replace(name=name)
    elif way == 2:
        shape = list(old.shape)
        place = chance.randrange(len(shape))
        shape[place] = max(0, min(_whole(chance, shape[place]), (1 << 64) - 1))
        new = old._replace(shape=tuple(shape))
    elif way == 3:
        shapes: list[tuple[int, ...]] = [old.shape[::-1], old.shape[:-1], (*old.shape, 1), (1, *old.shape), ()]
        new = old._replace(shape=chance.choice(shapes))
    elif way == 4:
        new = old._replace(kind=chance.choice((*range(42), 137, 144, 1 << 31)))
    else:
        new = old._replace(offset=chance.choice((0, old.offset + 32, old.offset + 1, chance.choice(file.tensors).offset,
                                                 (1 << 64) - 32)))  # fmt: skip
    said = f"tensor {_text(old.name)} {list(old.shape)} type {old.kind} at {old.offset} -> {_text(new.name)} " \
           f"{list(new.shape)} type {new.kind} at {new.offset}"  # fmt: skip
    place = min(at, len(others))
    return file.with_tensors([*others[:place], new, *others[place:]]), old.name, said

