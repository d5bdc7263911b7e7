"""The command `hearthctl`: a client on the command line. Owns parser and exit codes; the commands are in `commands`.

Data goes to stdout, everything else to stderr. A new group of commands is a module with `register(add)`.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from . import exit_codes
from .cli import parse, version

GROUPS = ("answers", "reading", "actions", "offline", "bench", "demo")



def parser() -> argparse.ArgumentParser:
    """All commands. Light: a command's own imports happen when it runs."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--control", metavar="ENDPOINT", default="", help="of the daemon, or its name (default: "
                        "HEARTHD_CONTROL, else the one in the runtime directory)")  # fmt: skip
    common.add_argument("--keys", metavar="FILE", default="", help="a client's .key_secret, for TCP endpoints")
    common.add_argument("--timeout", metavar="S", type=float, default=None, help="longest silence to wait for")
    made = argparse.ArgumentParser(prog="hearthctl", description="Talk to a hearthd, or look at a model without one.")
    made.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, run: object, *, json: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help[:1].upper() + help[1:] + ".", parents=[common])
        if json:
            command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)
        return command

    for group in GROUPS:
        import_module(f".commands.{group}", __package__).register(add)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    from .client import ClientError, RequestError, Unreachable
    from .commands import CommandError
    from .config import ConfigError
    from .endpoints import EndpointError
    from .model.gguf import ModelError
    from .security import KeyTrouble

    made = parser()
    if "--print-completion" in (sys.argv if arguments is None else arguments):
        import shtab

        shtab.add_argument_to(made, ["--print-completion"])
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal or its locale cannot show is shown as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        given = parse(made, arguments)
        code = given.run(given)
        sys.stdout.flush()
        return exit_codes.OK if code is None else int(code)
    except KeyboardInterrupt:
        return exit_codes.for_signal(2)
    except BrokenPipeError:
        # Who read us has gone: nothing more to say, also not when Python flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.for_signal(13)
    except Unreachable as error:
        usual = not (given.control or os.environ.get("HEARTHD_CONTROL"))
        hint = ": `hearthd MODEL` starts one, --control names another" if usual else ""
        return _complain(f"{error}{hint}", exit_codes.UNAVAILABLE)
    except RequestError as error:
        return _complain(f"{error.message} ({error.code})", exit_codes.FAILURE)
    except (EndpointError, KeyTrouble, ConfigError) as error:
        return _complain(error, exit_codes.CONFIG)
    except ModelError as error:
        return _complain(error, exit_codes.DATA)
    except (ClientError, CommandError) as error:
        return _complain(error, getattr(error, "exit_code", exit_codes.FAILURE))
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else error, exit_codes.FAILURE)


def _complain(error: object, code: int) -> int:
    print(f"hearthctl: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
