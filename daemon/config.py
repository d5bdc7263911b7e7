"""The daemon's settings: flags, then environment, then a TOML file, then defaults. An unknown key is an error.

Checks forms only; whether a setting can take effect on this machine is for those who use it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class ConfigError(ValueError):
    """A setting that is unknown or impossible, with the place it came from (exit code 78)."""


class Config(Struct, kw_only=True, forbid_unknown_fields=True):
    """One daemon's settings. Zero or an empty text means: decided at the start."""

    model: str = ""
    name: str = "default"  # of the sockets when no endpoint is given
    control: str = ""
    telemetry: str = ""
    keys: str = ""  # directory with the CURVE keys that TCP endpoints need
    experts: Literal["defer", "eager"] = "defer"
    warm: Literal["auto", "background", "before-ready", "off"] = "auto"
    short_memory: Literal["auto", "arena", "mapping"] = "auto"  # where experts lie when not all of them fit
    memory_budget: str = "auto"  # auto, bytes with a unit (51.2G), or a share of RAM (80%)
    threads: int = 0
    context: int = 0  # tokens of one session; 0: as many as the model was trained for, at most 4096
    batch: int = 512  # tokens of a prompt per step
    sessions: int = 4  # answers in progress at a time
    queue: int = 64  # requests waiting for their turn, over all clients
    numa: Literal["off", "interleave", "distribute", "mirror", "experts", "auto"] = "off"
    mirror_budget: str = "100%"  # of the model's bytes, or a size: what a node may hold in copies
    state_directory: str = ""
    trace: str = ""  # file for the routing of all tokens, for `hearthctl replay`
    drain_seconds: float = 3.0  # what answers in progress get after SIGTERM
    log_level: Literal["debug", "info", "warning", "error"] = "info"


FIELDS = {field.name: field for field in msgspec.structs.fields(Config)}
RANGES = {"threads": (0, 4096), "context": (0, 1 << 24), "batch": (1, 8192), "sessions": (1, 1024),
          "queue": (1, 65536), "drain_seconds": (0, 3600)}  # fmt: skip


def parse_budget(text: str, total: int, name: str = "memory_budget") -> int | None:
    """Bytes for `51.2G`, `80%` (of `total` bytes of RAM) or a plain number; None for `auto`. Raises ConfigError."""
    if text == "auto":
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        if not 0 < (share := float(match[1])) <= 100:
            raise ConfigError(f"{name}: {text} is not between 0 and 100 %")
        return int(total * share / 100)
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.lower()):
        return int(float(match[1]) * UNITS[match[2]])
    raise ConfigError(f"{name}: {text!r} is neither auto, a size such as 51.2G nor a share such as 80%")


def read_file(path: str) -> dict[str, Any]:
    """The settings of a TOML file; keys may be written with dashes. Raises ConfigError."""
    try:
        found = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    settings = {key.replace("-", "_"): value for key, value in found.items()}
    for key in settings:
        if key not in FIELDS:
            raise ConfigError(f"{path}: unknown key {key!r}")
    return settings


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`HEARTHD_MODEL`, `HEARTHD_MEMORY_BUDGET` and so on: every field's name in capitals."""
    return {name: value for name in FIELDS if (value := environ.get("HEARTHD_" + name.upper()))}


def _convert(settings: Mapping[str, Any], source: str, *, strict: bool) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for key, given in settings.items():
        value = str(given) if key in ("memory_budget", "mirror_budget") and isinstance(given, int) else given
        try:
            checked[key] = msgspec.convert(value, FIELDS[key].type, strict=strict)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{source}: {key}: {error}") from None
        if key in RANGES and not RANGES[key][0] <= checked[key] <= RANGES[key][1]:
            raise ConfigError(f"{source}: {key}: {checked[key]} is not between {RANGES[key][0]} and {RANGES[key][1]}")
    return checked


def load(
    flags: Mapping[str, Any], *, file: str = "", environ: Mapping[str, str] = os.environ
) -> Config:
    """Merge the sources. `flags` holds only what was given on the command line. Raises ConfigError."""
    merged: dict[str, Any] = {}
    if path := file or environ.get("HEARTHD_CONFIG", ""):
        merged |= _convert(read_file(path), path, strict=True)
    merged |= _convert(from_environment(environ), "environment", strict=False)
    merged |= _convert(flags, "command line", strict=False)
    config = Config(**merged)
    if not re.fullmatch(r"[\w.@-]{1,64}", config.name):
        raise ConfigError(f"name: {config.name!r} cannot be part of a socket's path")
    parse_budget(config.memory_budget, 1)
    parse_budget(config.mirror_budget, 1, "mirror_budget")
    return config
