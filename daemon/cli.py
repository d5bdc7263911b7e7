"""The command `hearthd`: flags to settings, errors to exit codes. What is slow is imported after the flags are read."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import exit_codes

if TYPE_CHECKING:
    from .config import Config
    from .parts import Hearth, OpenHearth


def version() -> str:
    import hearthd

    return str(getattr(hearthd, "__version__", "unknown"))


def parser() -> argparse.ArgumentParser:
    """The flags; only those that were given end up in the namespace."""
    made = argparse.ArgumentParser(
        prog="hearthd",
        description="Serve a mixture-of-experts model from a GGUF file: ready at once, warming while it answers.",
        epilog="Settings come from flags, then HEARTHD_* in the environment, then the file of --config, then defaults.",
        argument_default=argparse.SUPPRESS,
    )
    add = made.add_argument
    add("model", nargs="?", metavar="MODEL", help="a GGUF file, any file of a split model, or a name in the HF cache")
    add("--control", metavar="ENDPOINT", help="ipc://PATH (or a path), or tcp://HOST:PORT with --keys")
    add("--telemetry", metavar="ENDPOINT", help="default: beside the control endpoint")
    add("--name", help="of the sockets in the runtime directory (default: default)")
    add("--keys", metavar="DIR", help="CURVE keys for TCP endpoints (hearthctl keys DIR makes them)")
    add("--experts", choices=["defer", "eager"], help="leave experts where they are until needed (default), or not")
    add("--warm", choices=["auto", "background", "before-ready", "off"], help="when to populate experts (auto)")
    add("--memory-budget", metavar="auto|SIZE|PERCENT", help="of model and sessions in memory (default: auto)")
    add("--short-memory", choices=["auto", "arena", "mapping"],
        help="where experts lie if not all fit in RAM (auto: mapping)")  # fmt: skip
    add("--threads", type=int, metavar="N", help="compute threads (default: physical cores)")
    add("--context", type=int, metavar="N", help="tokens of one session (default: 4096)")
    add("--batch", type=int, metavar="N", help="tokens that a step computes at most (default: 512)")
    add("--step-ms", type=int, metavar="MS", help="what a step may take while answers run (default: 200)")
    add("--sessions", type=int, metavar="N", help="answers in progress at a time (default: 4)")
    add("--queue", type=int, metavar="N", help="requests that may wait for their turn (default: 64)")
    add("--numa", choices=["off", "interleave", "distribute", "mirror", "experts", "auto"],
        help="where weights lie on a machine with several nodes (default: off)")  # fmt: skip
    add("--mirror-budget", metavar="SIZE|PERCENT", help="of copies on each node for --numa mirror (default: 100%%)")
    add("--drain-seconds", type=float, metavar="S", help="for answers in progress after SIGTERM (default: 3)")
    add("--state-directory", metavar="DIR", help="where heat is kept")
    add("--trace", metavar="FILE", help="record the routing of all tokens (see hearthctl replay)")
    add("--log-level", choices=["debug", "info", "warning", "error"])
    add("--config", metavar="FILE", help="TOML; the keys are the flags' names")
    add("--demo", action="store_true", help="serve the small model that ships with the package")
    add("--version", action="version", version=f"%(prog)s {version()}")
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was given. Of a flag that is not known the nearest is told, with the usage of the command that has it."""
    given, unknown = made.parse_known_args(arguments)
    if not unknown:
        return given
    from .config import nearest

    groups = (action for action in made._actions if isinstance(action, argparse._SubParsersAction))
    asked: argparse.ArgumentParser = next((group.choices[given.command] for group in groups), made)
    said = []
    for name in unknown:
        meant = nearest(name.partition("=")[0], asked._option_string_actions) if name.startswith("--") else ""
        said.append(name + f" (meant: {meant}?)" * bool(meant))
    asked.error(f"unrecognized arguments: {' '.join(said)}")


def demo_model() -> str:
    """The path of the packaged model."""
    from pathlib import Path

    return str(Path(__file__).with_name("data") / "tinystories-moe-Q4_K_M.gguf")


def open_real(config: Config) -> Hearth:
    from .hearth import Hearth

    return Hearth(config)


def main(arguments: Sequence[str] | None = None, open_hearth: OpenHearth = open_real) -> int:
    """The exit code."""
    made = parser()
    if "--print-completion" in (sys.argv if arguments is None else arguments):
        import shtab  # not on the way of a daemon that starts

        shtab.add_argument_to(made, ["--print-completion"])
    flags = vars(parse(made, arguments))
    file, demo = flags.pop("config", ""), flags.pop("demo", False)

    from . import logs
    from .config import ConfigError, load

    try:
        config = load(flags, file=file)
    except ConfigError as error:
        print(f"hearthd: {error}", file=sys.stderr)
        return exit_codes.CONFIG
    if demo:
        if config.model:
            made.error("--demo and MODEL exclude each other")
        config.model = demo_model()
    if not config.model:
        made.error("MODEL is missing (a GGUF file, or --demo)")
    logs.set_up(config.log_level)
    # numpy's BLAS, which nothing here calls, would start threads that spin on processors that the start needs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # modules and tables are made to stay; the service turns it on when it answers
    try:
        return run(config, open_hearth)
    finally:
        gc.enable()


def run(config: Config, open_hearth: OpenHearth) -> int:
    """Serve, and turn what can go wrong at the start into one line and an exit code."""
    from .config import ConfigError
    from .endpoints import EndpointError
    from .security import KeyTrouble
    from .service import serve
    from .sockets import Taken
    from .tending import first_cause

    try:
        return serve(config, open_hearth, version())
    except KeyboardInterrupt:
        return exit_codes.for_signal(2)
    except Exception as caught:
        from .model.gguf import ModelError

        error = first_cause(caught)
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"hearthd: {told}", file=sys.stderr)
        if isinstance(error, EndpointError | KeyTrouble | ConfigError):
            return exit_codes.CONFIG
        if isinstance(error, Taken):
            return exit_codes.UNAVAILABLE
        if isinstance(error, ModelError):
            return exit_codes.DATA
        if isinstance(error, OSError):
            return exit_codes.FAILURE
        raise


if __name__ == "__main__":
    sys.exit(main())
