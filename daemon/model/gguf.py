"""A model as files: finds all parts of it, reads their headers and puts their tensors and metadata together.

Owns names (plain paths, any shard of a split model, Hugging Face cache names) and the agreement of the parts; refuses,
as ModelError, whatever is no complete GGUF model. Does not map weights and does not know what a tensor is for.
"""
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from hearthd.cyext import gguf_header

from .hyper import Metadata, Scalar, is_array, shown

SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
CACHE_NAME = re.compile(r"^(?P<org>[\w.-]+)/(?P<repo>[\w.-]+)(?::(?P<file>[^:]+))?$")

TYPE_NAMES = {number: name for number, name, _, _ in gguf_header.tensor_types()}
TYPE_BLOCKS = {number: (block, size) for number, _, block, size in gguf_header.tensor_types()}

# What each shard says of itself; all other keys are the model's, and those that stand in several shards must agree.
OWN_KEYS = ("split.", "general.alignment", "general.name")

# What a foreign file starts with, so that the refusal can say what it is.
FOREIGN = (
    (b"\x7fELF", "an ELF program"),
    (b"PK\x03\x04", "a ZIP archive or a PyTorch checkpoint"),
    (b"version https://git-lfs", "a Git LFS pointer: the model itself has not been downloaded"),
    (b"tjgg", "a GGML file of before August 2023"),
    (b"fmgg", "a GGML file of before August 2023"),
    (b"lmgg", "a GGML file of before August 2023"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
)


class ModelError(Exception):
    """A model that cannot be opened: which file, why, and at which tensor or key and byte where that is known."""

    def __init__(self, path: str | os.PathLike[str], reason: str, tensor: str | None = None, byte: int | None = None,
                 key: str | None = None):
        self.path = os.fspath(path)
        self.reason = reason
        self.tensor = tensor
        self.byte = byte
        self.key = key
        place = "" if byte is None else f" (byte {byte})"
        subject = f"tensor {tensor}: " if tensor else f"key {key}: " if key else ""
        super().__init__(f"{self.path}: {subject}{reason}{place}")


class Tensor(NamedTuple):
    """One tensor: its type by ggml's number, its shape with columns first, and its bytes in file number `file`."""

    name: str
    type: int
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (shape[0] values; a scalar is a row of one)."""
        block, size = TYPE_BLOCKS[self.type]
        return (self.shape[0] if self.shape else 1) // block * size

    @property
    def type_name(self) -> str:
        return TYPE_NAMES[self.type]


@dataclass(frozen=True)
class ModelFile:
    """An opened model: all its files, in order, with their metadata and tensors merged."""

    paths: list[str]
    headers: list[gguf_header.Header]
    metadata: Metadata
    tensors: dict[str, Tensor]

    @cached_property
    def sizes(self) -> list[int]:
        """Length of each file in bytes."""
        return [header.file_size for header in self.headers]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        """general.name, or the file's name without its ending and shard number."""
        given = self.metadata.get("general.name")
        if isinstance(given, str) and given:
            return given
        base = os.path.basename(self.paths[0])
        shard = SHARD.match(base)
        return shard["stem"] if shard else base.removesuffix(".gguf")

    @cached_property
    def identity(self) -> str:
        """32 hexadecimal digits that differ between any two models: over all headers' bytes and all files' sizes."""
        from hashlib import blake2b

        digest = blake2b(digest_size=16)
        for header in self.headers:
            digest.update(header.file_size.to_bytes(8, "little"))
            digest.update(header.raw)
        return digest.hexdigest()

    def hyper(self, key: str, default: Scalar | None = None) -> Scalar | None:
        """The metadata value ARCHITECTURE.key, where it is a single one."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, bool | int | float | str) else default


def open_model(name: str | os.PathLike[str]) -> ModelFile:
    """Open the model that `name` means: see find_files. Every tensor is known to lie within its file afterwards.

    ModelError: not found, not GGUF, truncated, a shard missing, foreign to the others or at odds with them, no
    architecture named.
    """
    paths = find_files(name)
    headers = [_read_header(path) for path in paths]
    _check_shards(paths, headers)
    metadata: dict[str, object] = {}
    tensors: dict[str, Tensor] = {}
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        for key, value in header.metadata.items():
            if not _same(metadata.setdefault(key, value), value) and not key.startswith(OWN_KEYS):
                raise ModelError(path, f"{shown(value)}, but {shown(metadata[key])} in another shard", key=key)
        for tensor, type_, shape, offset, nbytes in header.tensors:
            if tensor in tensors:
                raise ModelError(path, f"is in {paths[tensors[tensor].file]} as well", tensor, offset)
            tensors[tensor] = Tensor(tensor, type_, shape, number, offset, nbytes)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelError(paths[0], "the metadata names no architecture", key="general.architecture")
    return ModelFile(paths, headers, metadata, tensors)


def _same(a: object, b: object) -> bool:
    """Whether two shards say the same of a key."""
    return a is b or bool(list(a) == list(b) if is_array(a) and is_array(b) else a == b)


def find_files(name: str | os.PathLike[str]) -> list[str]:
    """All files, in order, of the model named by a path (any shard will do) or by `org/repo[:file-or-quant]`.

    A path that exists is taken first. Else the Hugging Face cache is searched ($HF_HUB_CACHE, $HF_HOME/hub,
    ~/.cache/huggingface/hub; layout: huggingface_hub's guide "Understand caching").
    """
    text = os.fspath(name)
    if os.path.isdir(text):
        return _shards(_choose(text, _models_below(Path(text)), None))
    if os.path.exists(text):
        return _shards(text)
    cached = CACHE_NAME.match(text)
    if cached and not text.startswith((".", "/")):
        found = _find_cached(text, cached["org"], cached["repo"], cached["file"])
        if found:
            return _shards(found)
    shard = SHARD.match(os.path.basename(text))
    if shard:
        others = [other for other in _shard_names(text) if os.path.exists(other)]
        if others:
            raise ModelError(text, f"shard {int(shard['number'])} of {int(shard['count'])} is missing")
    where = f", and not in the Hugging Face cache {_cache_directory()} either" if cached else ""
    raise ModelError(text, f"there is no such file{where}")


def _shard_names(path: str) -> list[str]:
    directory, base = os.path.split(path)
    shard = SHARD.match(base)
    if not shard:
        return [path]
    count = shard["count"]
    return [os.path.join(directory, f"{shard['stem']}-{number:05d}-of-{count}.gguf")
            for number in range(1, int(count) + 1)]


def _shards(path: str) -> list[str]:
    """All shards of the model that `path` is one of; every one must be there."""
    shard = SHARD.match(os.path.basename(path))
    if shard and not 1 <= int(shard["number"]) <= int(shard["count"]):
        raise ModelError(path, f"shard number {int(shard['number'])} is not within 1 to {int(shard['count'])}")
    names = _shard_names(path)
    missing = [name for name in names if not os.path.exists(name)]
    if missing and len(names) == 1:
        raise ModelError(path, "it points to a file that is not there")
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(path, f"shard {os.path.basename(missing[0])} is missing{more} ({len(names)} belong together)")
    return names


def _read_header(path: str) -> gguf_header.Header:
    try:
        return gguf_header.parse(path)
    except gguf_header.HeaderError as error:
        raise ModelError(path, _foreign(path) or error.what, error.tensor, error.byte, error.key) from error
    except IsADirectoryError as error:
        raise ModelError(path, "this is a directory") from error
    except OSError as error:
        raise ModelError(path, error.strerror or str(error)) from error


def _foreign(path: str) -> str | None:
    """What a file that does not start like GGUF is, if it can be told."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return None
    if head.startswith(b"GGUF"):
        return None
    for magic, what in FOREIGN:
        if head.startswith(magic):
            return f"this is no GGUF file but {what}"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "this is no GGUF file but a safetensors file: convert it first"
    return None


def _check_shards(paths: list[str], headers: list[gguf_header.Header]) -> None:
    """The files must say of themselves what their names say: split.no, split.count and split.tensors.count."""
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        count = _number(path, header, "split.count", len(paths) if len(paths) > 1 else 0)
        if len(paths) == 1 and count > 1:
            raise ModelError(path, f"this is one of {count} shards, but its name does not end in "
                                   f"-0000N-of-{count:05d}.gguf, so the others cannot be found", key="split.count")
        if len(paths) > 1 and count != len(paths):
            raise ModelError(path, f"it says that {count} shards belong together, its name says {len(paths)}",
                             key="split.count")
        own = _number(path, header, "split.no", number)
        if own != number:
            raise ModelError(path, f"it says that it is shard number {own} (from 0), its name says {number}",
                             key="split.no")
    total = _number(paths[0], headers[0], "split.tensors.count", -1)
    found = sum(header.n_tensors for header in headers)
    if len(paths) > 1 and total not in (-1, found):
        raise ModelError(paths[0], f"the shards hold {found} tensors together, {total} are promised",
                         key="split.tensors.count")


def _number(path: str, header: gguf_header.Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(path, f"{shown(value)} is no whole number", key=key)
    return value


def _cache_directory() -> Path:
    hub = os.environ.get("HF_HUB_CACHE")
    if hub:
        return Path(hub)
    home = os.environ.get("HF_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "hub") if home else Path(base, "huggingface", "hub")


def _models_below(directory: Path) -> list[str]:
    """First shards of all models below a directory; projectors of images are no models."""
    found: list[str] = []
    for path in sorted(directory.rglob("*.gguf")):
        shard = SHARD.match(path.name)
        if (shard and int(shard["number"]) != 1) or path.name.lower().startswith("mmproj"):
            continue
        found.append(str(path))
    return found


def _snapshots(repository: Path) -> Iterator[Path]:
    """Snapshots of a cached repository: the one that refs/main names first, then the newest."""
    try:
        main = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
    except OSError:
        main = None
    if main and main.is_dir():
        yield main
    others = [path for path in repository.glob("snapshots/*") if path.is_dir() and path != main]
    yield from sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)


def _find_cached(name: str, org: str, repo: str, file: str | None) -> str | None:
    repository = _cache_directory() / f"models--{org}--{repo}"
    for snapshot in _snapshots(repository):
        if file and (snapshot / file).is_file():
            return str(snapshot / file)
        models = _models_below(snapshot)
        if file:
            # A quantisation's name stands between separators: Q4_K_M must not match Q4_K_M_L, nor Q8_0 IQ8_01.
            tag = re.compile(rf"(?:^|[-._/ ]){re.escape(file)}(?:[-./ ]|$)", re.IGNORECASE)
            models = [model for model in models if tag.search(os.path.relpath(model, snapshot))]
        if models:
            return _choose(name, models, file)
    return None


def _choose(name: str, models: list[str], file: str | None) -> str:
    if not models:
        raise ModelError(name, "this is a directory without any GGUF model")
    if len(models) > 1:
        top = os.path.commonpath([os.path.dirname(model) for model in models])
        shown = ", ".join(os.path.relpath(model, top) for model in models[:8]) + ", ..." * (len(models) > 8)
        hint = "name the file" if file or os.path.isdir(name) else "add :FILE or :QUANTISATION"
        raise ModelError(name, f"{len(models)} models are there, {hint}: {shown}")
    return models[0]
