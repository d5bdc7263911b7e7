"""The daemon's settings: flags, then environment, then a TOML file, then defaults. An unknown key is an error.

Checks forms only; whether a setting can take effect on this machine is for those who use it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from . import endpoints

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
    batch: int = 512  # rows of a step at most
    step_ms: int = 200  # what a step may take while answers run
    sessions: int = 4  # answers in progress at a time
    queue: int = 64  # requests waiting for their turn, over all clients
    numa: Literal["off", "interleave", "distribute", "mirror", "experts", "auto"] = "off"
    mirror_budget: str = "100%"  # of the model's bytes, or a size: what a node may hold in copies
    state_directory: str = ""
    trace: str = ""  # file for the routing of all tokens, for `hearthctl replay`
    drain_seconds: float = 3.0  # what answers in progress get after SIGTERM
    log_level: Literal["debug", "info", "warning", "error"] = "info"


FIELDS = {field.name: field for field in msgspec.structs.fields(Config)}
RANGES = {"threads": (0, 4096), "context": (0, 1 << 24), "batch": (1, 8192), "step_ms": (1, 600_000),
          "sessions": (1, 1024), "queue": (1, 65536), "drain_seconds": (0, 3600)}  # fmt: skip
BUDGETS = ("memory_budget", "mirror_budget")
PREFIX = "HEARTHD_"
OTHER_VARIABLES = ("HEARTHD_CONFIG", "HEARTHD_ISA", "HEARTHD_TEST_MODELS")


def flag(key: str) -> str:
    """A field's name on the command line."""
    return key.upper() if key == "model" else "--" + key.replace("_", "-")


def variable(key: str) -> str:
    """A field's name in the environment."""
    return PREFIX + key.upper()


def parse_budget(text: str, total: int, name: str = "memory_budget") -> int | None:
    """Bytes for `51.2G` or `80%` (of `total` bytes of RAM); None for `auto`. A number alone could be meant in any unit
    and is refused, but for 0. Raises ConfigError, which begins with `name`."""
    if text == "auto":
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        if not 0 < (share := float(match[1])) <= 100:
            raise ConfigError(f"{name}: {text} is not between 0 and 100 %")
        return int(total * share / 100)
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)", text.lower()):
        return int(float(match[1]) * UNITS[match[2] or ""])
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        if float(text) == 0:
            return 0
        example = text + ("G" if float(text) < 10_000 else "B")
        raise ConfigError(f"{name}: {text} has no unit: {example}, for instance")
    raise ConfigError(f"{name}: {text!r} is neither auto, a size such as 51.2G nor a share such as 80%")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, or ''."""
    import difflib  # only somebody who mistyped pays for it

    return next(iter(difflib.get_close_matches(name, list(known), 1)), "")


def read_file(path: str) -> dict[str, Any]:
    """The settings of a TOML file; keys may be written with dashes. Raises ConfigError."""
    try:
        found = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    settings: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in FIELDS:
            meant = nearest(name, FIELDS).replace("_", "-")
            raise ConfigError(f"{path}: unknown key {key!r}" + f" (meant: {meant}?)" * bool(meant))
        if name in settings:
            raise ConfigError(f"{path}: {name.replace('_', '-')} is there twice")
        settings[name] = value
    return settings


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`HEARTHD_MODEL`, `HEARTHD_MEMORY_BUDGET` and so on: every field's name in capitals."""
    return {name: value for name in FIELDS if (value := environ.get(variable(name)))}


def strange_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A text for each `HEARTHD_` variable that nothing reads, with the one that was probably meant."""
    known = {*map(variable, FIELDS), *OTHER_VARIABLES}
    found = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            meant = nearest(name, known)
            found.append(name + f" (meant: {meant}?)" * bool(meant))
    return found


def _convert(settings: Mapping[str, Any], place: Callable[[str], str], *, strict: bool) -> dict[str, Any]:
    """Checked values. place: how a key is called where it was given, for errors."""
    checked: dict[str, Any] = {}
    for key, given in settings.items():
        where, kind = place(key), FIELDS[key].type
        value = str(given) if key in BUDGETS and isinstance(given, int | float) else given
        choices = get_args(kind)
        if choices and value not in choices:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(choices)}")
        try:
            checked[key] = value = msgspec.convert(value, kind, strict=strict)
        except msgspec.ValidationError:
            expected = {int: "a whole number", float: "a number", str: "a text"}[kind]
            raise ConfigError(f"{where}: {value!r} is not {expected}") from None
        if key in RANGES and not RANGES[key][0] <= value <= RANGES[key][1]:
            raise ConfigError(f"{where}: {value} is not between {RANGES[key][0]} and {RANGES[key][1]}")
        if key in BUDGETS:
            parse_budget(value, 1, where)
        if key == "mirror_budget" and value == "auto":
            raise ConfigError(f"{where}: 'auto' is neither a size such as 51.2G nor a share such as 80%")
        if key == "name" and not re.fullmatch(r"[\w.@-]{1,64}", value, re.ASCII):
            raise ConfigError(f"{where}: {value!r} cannot be part of a socket's path: letters, digits and . _ @ - can")
        if key in ("control", "telemetry") and value:
            try:
                endpoints.check(endpoints.normal(value))
            except endpoints.EndpointError as error:
                raise ConfigError(f"{where}: {error}") from None
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{where}: {value!r} has a zero byte")
    return checked


def load(
    flags: Mapping[str, Any], *, file: str = "", environ: Mapping[str, str] = os.environ
) -> Config:
    """Merge the sources. `flags` holds only what was given on the command line. Raises ConfigError, which names the
    flag, the variable or the file and key that a value came from."""
    merged: dict[str, Any] = {}
    if path := file or environ.get("HEARTHD_CONFIG", ""):
        merged |= _convert(read_file(path), lambda key: f"{path}: {key.replace('_', '-')}", strict=True)
    merged |= _convert(from_environment(environ), variable, strict=False)
    merged |= _convert(flags, flag, strict=False)
    return Config(**merged)
