"""Copies of model files with other metadata and other tensors: what a test changes, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# Values [rows, columns] as numpy has them, or a quantised tensor's bytes [rows, bytes of a row] with its type.
Data = np.ndarray | tuple[gguf.GGMLQuantizationType, np.ndarray]


def rewritten(
    source: str | PathLike[str],
    target: Path,
    *,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Data | None] | None = None,
    last: str = "",
) -> Path:
    """Write `source` with these keys (ARCH. may stand for the architecture's name) and tensors to `target`; None takes
    one away. Python's int becomes uint32, float float32, a list an array. last: the tensor that lies at the end."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    changed = {name.replace("ARCH.", f"{architecture}.", 1): value for name, value in (keys or {}).items()}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changed:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for name, value in changed.items():
        if value is not None:
            kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(name, value, kind)
    data: dict[str, Data | None] = {
        tensor.name: (tensor.tensor_type, tensor.data) for tensor in reader.tensors
    } | dict(tensors or {})
    for name, found in sorted(data.items(), key=lambda item: item[0] == last):
        if isinstance(found, tuple):
            writer.add_tensor(name, found[1], raw_dtype=found[0])
        elif found is not None:
            writer.add_tensor(name, found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def values_of(source: str | PathLike[str]) -> dict[str, np.ndarray]:
    """float32 values [..., rows, columns] of every tensor of a file."""
    return {
        tensor.name: np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(
            [int(n) for n in reversed(tensor.shape)]
        )
        for tensor in gguf.GGUFReader(source).tensors
    }
