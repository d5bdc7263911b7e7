"""Headers whose values were changed: each file is refused by naming a key or a tensor, or answers alike three times.

    python -m tests.fuzz.headers --count 200000 --seed 1 [--jobs 2] [--tensors]

from the repository's root, with any installed hearthd. Case N of a seed changes one to three metadata values of one of
the small models (types, ranges, lengths, names; with --tensors also entries of the tensor directory). Each is opened
and asked in a forked process, as the daemon does it; a death by a signal, an exception that is no refusal, answers that
differ or are not finite, a refusal that names nothing, more than --seconds, and memory beyond --megabytes are faults.
Every thousandth (--command) goes through the command `hearthd` as well: exit code 65 before READY, or answers on its
socket. It prints a table, and of each kind of fault the first case; `--one N` runs that case alone and says more
(--keep FILE keeps its file). The exit code is 1 if there were faults. Some 40 files a second on one core.

Under AddressSanitizer and UndefinedBehaviorSanitizer: see tests/fuzz/sanitized, which builds and runs this.

Models: HEARTHD_TEST_MODELS, else ../shared/models, else the packaged one.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import mmap
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .daemon import PACKAGED, QUESTION, Daemon, NoAnswer, essence, models
from .mutations import Change, Corpus, Model, collect
from .trial import GOOD, Outcome, ours, refusal, trial

FOLDERS = ("tiny", "arch", "tiny-ik", "arch2")
BATCH = 200  # files before a process of its own ends
POLL = 0.1


class Fault(NamedTuple):
    """A case that went wrong."""

    number: int
    words: str
    outcome: Outcome

    def signature(self) -> str:
        return f"{self.outcome.kind} {self.outcome.where}"


class Files:
    """The changed files on disk: the data of each model once, headers written in front of it as they are needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, model: Model) -> Path:
        """The first file of the model, ready to be opened."""
        folder = self._directory / model.name.replace("/", "+")
        folder.mkdir(exist_ok=True)
        for file in model.files:
            path = folder / file.path.name
            header = file.header()
            length = len(header) + file.path.stat().st_size - file.data
            if not path.exists() or path.stat().st_size != length:
                with file.path.open("rb") as source, path.open("wb") as copy:
                    source.seek(file.data)
                    copy.seek(len(header))
                    shutil.copyfileobj(source, copy, 1 << 20)
            with path.open("r+b") as copy:
                copy.write(header)
        return folder / model.files[0].path.name


class Shared:
    """What a process tells its parent without words: which case it is at, since when, and how many ended how."""

    _LAYOUT = struct.Struct("<qd2q")

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 4096)
        self.counts = [0] * len(GOOD)
        self.begin(-1)

    def begin(self, number: int) -> None:
        self._LAYOUT.pack_into(self._map, 0, number, time.monotonic(), *self.counts)

    def read(self) -> tuple[int, float, list[int]]:
        number, since, *counts = self._LAYOUT.unpack_from(self._map, 0)
        return number, since, counts


class Run:
    """Cases from `start` to `stop` in processes of their own, one after the other."""

    def __init__(self, corpus: Corpus, options: argparse.Namespace, directory: Path) -> None:
        self._corpus, self._options = corpus, options
        self._files = Files(directory)
        self._log = directory / "log"
        self.counts = dict.fromkeys(GOOD, 0)
        self.faults: list[Fault] = []

    def change(self, number: int) -> Change:
        return self._corpus.change(self._options.seed, number, tensors=self._options.tensors)

    def cases(self, start: int, stop: int) -> None:
        while start < stop:
            start = self._batch(start, min(start + BATCH, stop))

    def _batch(self, start: int, stop: int) -> int:
        """Until the process ends, by itself or not; the next case."""
        shared = Shared()
        reading, writing = os.pipe()
        if (process := os.fork()) == 0:
            os.close(reading)
            self._child(shared, writing, start, stop)
        os.close(writing)
        said = b""
        killed: Outcome | None = None
        while True:
            with contextlib.suppress(ValueError):
                if select.select([reading], [], [], POLL)[0]:
                    if not (more := os.read(reading, 1 << 16)):
                        break
                    said += more
            if killed is None and (killed := self._overrun(process, shared)):
                os.kill(process, signal.SIGKILL)
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        for line in said.splitlines():
            number, *outcome = json.loads(line)
            self._found(number, Outcome(*outcome))
        number, _, counts = shared.read()
        for kind, count in zip(GOOD, counts, strict=True):
            self.counts[kind] += count
        if status == 0 and killed is None:
            return stop
        self._found(max(number, start), killed or self._death(status))
        return max(number, start) + 1

    def _overrun(self, process: int, shared: Shared) -> Outcome | None:
        number, since, _ = shared.read()
        seconds = time.monotonic() - since
        if number >= 0 and seconds > self._options.seconds:
            return Outcome("slow", f"{seconds:.1f} s\n{self._stacks(process)}", _last_place(self._stacks(process)))
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            if pages * mmap.PAGESIZE > self._options.megabytes << 20:
                stacks = self._stacks(process)
                return Outcome("memory", f"{pages * mmap.PAGESIZE >> 20} MiB\n{stacks}", _last_place(stacks))
        return None

    def _stacks(self, process: int) -> str:
        """What the process is doing, in Python's words."""
        self._log.write_text("")
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGUSR2)
            time.sleep(0.3)
        return self._log.read_text(errors="replace")[-4000:]

    def _death(self, status: int) -> Outcome:
        log = self._log.read_text(errors="replace")
        name = signal.Signals(-status).name if status < 0 else f"exit {status}"
        return Outcome("signal", f"{name}\n{log[-6000:]}", f"{name} {_last_place(log)}")

    def _found(self, number: int, outcome: Outcome) -> None:
        change = self.change(number)
        outcome = outcome._replace(where=outcome.where or " ".join(sorted(change.touched)))
        fault = Fault(number, f"{change.model.name}: {'; '.join(change.words)}", outcome)
        if not any(fault.signature() == known.signature() for known in self.faults):
            first = outcome.text.partition("\n")[0]
            print(f"case {number}: {fault.signature()}\n    {fault.words}\n    {first}", flush=True)
        self.faults.append(fault)

    def _child(self, shared: Shared, writing: int, start: int, stop: int) -> None:
        code = 1
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.dup2(log, 2)
            faulthandler.enable(2)
            faulthandler.register(signal.SIGUSR2, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            quiet()
            for number in range(start, stop):
                change = self.change(number)
                path = self._files.write(change.model)
                shared.begin(number)
                outcome = trial(path)
                if outcome.kind == "not finite" and any(words.startswith("tensor ") for words in change.words):
                    outcome = Outcome("served")  # other bytes as weights: what was said of them is true
                if outcome.kind in GOOD:
                    shared.counts[GOOD.index(outcome.kind)] += 1
                else:
                    os.write(writing, json.dumps([number, *outcome]).encode() + b"\n")
                if self._options.command and number % self._options.command == 0:
                    shared.begin(-1)  # the command takes its time
                    outcome = command(path)
                    if outcome.kind not in GOOD:
                        os.write(writing, json.dumps([number, *outcome]).encode() + b"\n")
            shared.begin(stop)
            code = 0
        except BaseException:
            faulthandler.dump_traceback(2)
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)


def command(path: Path) -> Outcome:
    """The file given to the command `hearthd`, which exits with 65 before it says READY, or answers."""
    try:
        with Daemon(path, "--context", "64") as daemon:
            try:
                alike = [essence(daemon.ask(QUESTION)) for _ in range(2)]
            except NoAnswer:
                code = daemon.process.wait(20)
                return Outcome("signal", f"READY, then exit {code}: {daemon.log[-500:]}", "exit after READY")
            if alike[0] != alike[1]:
                return Outcome("unequal", f"the daemon answered {alike}", "the daemon's answers")
            if daemon.tracebacks():
                return Outcome("traceback", daemon.log[-2000:], "in the daemon's log")
    except NoAnswer as error:
        text = str(error)
        if "(exit 65)" not in text or "Traceback" in text:
            return Outcome("signal", text, "no exit 65")
        return refusal(text.partition("\n")[2], path)
    return Outcome("served")


def quiet() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _last_place(text: str) -> str:
    """Where a stack of faulthandler or a sanitizer's report ends, in our code."""
    for line in text.splitlines():
        if line.startswith("SUMMARY:") or "runtime error:" in line:
            return line.removeprefix("SUMMARY: ").partition(" (")[0][-120:]
    for line in text.splitlines():
        name = line.partition('File "')[2].partition('"')[0]
        if ours(name):
            return f"{os.path.basename(name)}:{line.rpartition(' in ')[2]}"
    return ""


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A directory in memory where there is one: files are written thousands of times."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hearthd-headers-", dir=memory) as made:
        yield Path(made)


def corpus_of(folders: Path | None, *, only: str = "") -> Corpus:
    """The models that the installed hearthd serves when nothing is changed."""
    with workspace() as made:
        files = Files(made)

        def accepted(path: Path) -> bool:
            return only.lower() in f"{path.parent.name}/{path.name}".lower()

        found = collect([folders / name for name in FOLDERS] if folders else [], accepted)
        found += collect([PACKAGED.parent], accepted)
        return Corpus([model for model in found if trial(files.write(model)).kind == "served"])


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--count", type=int, default=2000)
    made.add_argument("--start", type=int, default=0, help="first case")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--jobs", type=int, default=1)
    made.add_argument("--tensors", action="store_true", help="change the tensor directory as well")
    made.add_argument("--only", default="", help="models whose name has this")
    made.add_argument("--one", type=int, help="run one case in this process and say all about it")
    made.add_argument("--keep", type=Path, help="with --one: copy the file there")
    made.add_argument("--command", type=int, default=1000, help="every so many through the command; 0: none")
    made.add_argument("--seconds", type=float, default=5.0)
    made.add_argument("--megabytes", type=int, default=1500)
    made.add_argument("--json", type=Path, help="write all faults there")
    return made


def one(corpus: Corpus, options: argparse.Namespace) -> int:
    change = corpus.change(options.seed, options.one, tensors=options.tensors)
    print(f"{change.model.name}: " + "\n    ".join(change.words), flush=True)
    with workspace() as made:
        path = Files(made).write(change.model)
        if options.keep:
            shutil.copyfile(path, options.keep)
        began = time.monotonic()
        outcome = trial(path)
        print(f"{outcome.kind} after {time.monotonic() - began:.3f} s: {outcome.text}")
        print(f"the command: {command(path)}")
    return outcome.kind not in GOOD


def table(counts: dict[str, int], faults: list[Fault], options: argparse.Namespace, seconds: float) -> None:
    total = sum(counts.values()) + len(faults)
    cases = f"cases {options.start} to {options.start + options.count - 1}" + ", tensors too" * options.tensors
    print(f"\nseed {options.seed}, {cases}: {total} in {seconds:.0f} s ({total / seconds:.0f}/s)\n")
    print("| outcome | files |\n| --- | --- |")
    for kind, count in counts.items():
        print(f"| {kind} | {count} |")
    by: dict[str, list[Fault]] = {}
    for fault in faults:
        by.setdefault(fault.signature(), []).append(fault)
    for signature, alike in sorted(by.items(), key=lambda pair: -len(pair[1])):
        print(f"| {signature} | {len(alike)}, first {alike[0].number} |")
    print(f"| faults | {len(faults)}, {len(by)} different |")


def main(given: list[str] | None = None) -> int:
    options = arguments().parse_args(given)
    quiet()
    corpus = corpus_in_child(options)
    print(f"{len(corpus.models)} models in {len(corpus.groups)} groups", flush=True)
    if options.one is not None:
        return one(corpus, options)
    began = time.monotonic()
    counts, faults = run(corpus, options)
    table(counts, faults, options, time.monotonic() - began)
    if options.json:
        options.json.write_text(json.dumps([[f.number, f.words, *f.outcome] for f in faults], indent=1))
    return 1 if faults else 0


def corpus_in_child(options: argparse.Namespace) -> Corpus:
    """Made in a process that ends: this one must have no threads when it forks."""
    import pickle

    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(corpus_of(models(), only=options.only), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        corpus: Corpus = pickle.load(pipe)
    os.waitpid(process, 0)
    if not corpus.models:
        raise SystemExit("there are no models")
    return corpus


def run(corpus: Corpus, options: argparse.Namespace) -> tuple[dict[str, int], list[Fault]]:
    """All cases, shared out to --jobs processes; what they found."""
    import multiprocessing

    ranges = []
    per = -(-options.count // options.jobs)
    for at in range(options.start, options.start + options.count, per):
        ranges.append((at, min(at + per, options.start + options.count)))
    if len(ranges) == 1:
        return _part(corpus, options, *ranges[0])
    with multiprocessing.get_context("fork").Pool(len(ranges)) as pool:
        parts: list[Any] = pool.starmap(_part, [(corpus, options, *bounds) for bounds in ranges])
    return {kind: sum(part[0][kind] for part in parts) for kind in GOOD}, [fault for part in parts for fault in part[1]]


def _part(corpus: Corpus, options: argparse.Namespace, start: int, stop: int) -> tuple[dict[str, int], list[Fault]]:
    with workspace() as made:
        part = Run(corpus, options, made)
        part.cases(start, stop)
        return part.counts, part.faults


if __name__ == "__main__":
    sys.exit(main())
