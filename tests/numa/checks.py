"""Every placement check in one process, on the nodes of the machine that it runs on: prints one JSON object.

    checks.py MODEL EXT4_DIRECTORY TMPFS_DIRECTORY

Decides nothing: tests/numa/test_guest.py says what the numbers have to be.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import built  # noqa: F401
import numpy as np
from hearthd.cyext.mapping import Mapping
from hearthd.cyext.placement import PREFERRED, Arena, page_counts, thread_policy
from hearthd.cyext.populate_queue import CURSOR, PopulateQueue
from hearthd.cyext.spans import READY, Spans
from hearthd.daemon import topology
from hearthd.daemon.model.engine import Engine
from hearthd.daemon.model.gguf import open_model
from hearthd.daemon.model.spans import SpanTable
from hearthd.daemon.model.turn import Part
from hearthd.daemon.residency.numa_plan import balance, load, pages_of
from hearthd.daemon.residency.placement import Placement, choose

MACHINE = topology.read()
RANDOM = np.random.default_rng(5)
PROMPT = RANDOM.integers(1, 4000, 24).astype(np.int32)
OTHER = RANDOM.integers(1, 4000, 48).astype(np.int32)
STARTED = time.monotonic()


class Placed:
    """A model opened in a mode, populated in the background as the daemon does it."""

    def __init__(self, path: Path, mode: str, budget: str = "100%", heat: np.ndarray | None = None) -> None:
        self.model = open_model(str(path))
        self.table = table = SpanTable.build(self.model)
        self.choice = choose(mode, MACHINE, nbytes=self.model.nbytes)
        self.mapping = Mapping(self.model.paths)
        self.spans = Spans(self.mapping, table.file, table.offset, table.nbytes, table.layer, len(self.choice.teams))
        self.queue = PopulateQueue(self.spans, workers=1, **self.choice.queue_options(MACHINE))
        self.placement = Placement(self.choice, table, self.mapping, self.spans, self.queue, budget)
        self.engine = Engine(self.model, table, self.spans, self.queue, teams=self.choice.teams,
                             nodes=self.choice.memory, context=128, sequences=1, batch=64, spin=1)  # fmt: skip
        self.placement.attach(self.engine, np.zeros((0, 0)) if heat is None else heat)

    def populate(self) -> None:
        self.queue.submit(CURSOR, np.arange(len(self.spans)))
        assert self.queue.drain(CURSOR, 60.0)
        assert (self.spans.state == READY).all()
        while self.placement.copy_ready():
            pass

    def say(self, tokens: np.ndarray, more: int = 3) -> tuple[list[int], bytes]:
        """Greedy tokens after a prompt, and the bits of all logits on the way."""
        session, bits, said = self.engine.new_session(), b"", []
        logits = self.engine.step([Part(session, tokens, "all")])[0].rows()
        for _ in range(more):
            bits += logits.tobytes()
            said.append(int(logits[-1].argmax()))
            logits = self.engine.step([Part(session, np.array(said[-1:], np.int32), "last")])[0].rows()
        bits += logits.tobytes()
        self.session = session
        return said, bits

    def placed(self) -> dict[str, Any]:
        """Where the pages of weights lie, counted twice: page by page, and by /proc/self/numa_maps."""
        assert self.placement.look(force=True)
        rows = self.placement.rows()
        mapped, wrong = sum(row.mapped for row in rows), sum(row.wrong_node or 0 for row in rows)
        segments = self.placement.segments
        memory = np.array(self.choice.memory)
        _, nbytes = pages_of(segments)
        planned = {int(n): int(nbytes[memory[segments.team] == n].sum()) for n in set(self.choice.memory)}
        found = self.mapping.numa_maps()[0]
        apart = sum(abs(planned.get(n, 0) - found.get(n, 0)) for n in set(planned) | set(found)) / 2
        return {"right": 1 - wrong / mapped, "by_numa_maps": 1 - apart / sum(planned.values()), "mapped": mapped,
                "settled": self.queue.settled(), "nodes": found}  # fmt: skip

    def close(self) -> None:
        self.engine.close()
        self.queue.close()
        self.placement.close()
        self.mapping.close()


def elsewhere(path: Path) -> None:
    """Have a process on the last node read the file into the page cache."""
    child = os.fork()
    if child == 0:
        try:
            thread_policy(PREFERRED, [MACHINE.nodes[-1].number])
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass
            os._exit(0)
        finally:
            os._exit(1)  # whatever it is: not two of us
    assert os.waitpid(child, 0)[1] == 0


def cold(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def kv_share(placed: Placed) -> float:
    """Share of the KV pool's touched pages that lie with the team that reads their head."""
    pool, _, streams = placed.engine.program.pool_layout()
    right = total = 0
    teams = len(placed.choice.teams)
    for heads, size, offset in streams:
        for team, (first, end) in enumerate(placed.engine.program.team_share(heads * teams)):
            for head in range(-(-first // teams), -(-end // teams)):
                counts = page_counts([pool + offset + head * size], [size], 8)[0]
                right += counts[placed.choice.memory[team]]
                total += counts[:-1].sum()
    return right / total


def main(source: Path, ext4: Path, tmpfs: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"nodes": len(MACHINE.nodes), "teams": MACHINE.teams(), "seconds": {}}

    def note(name: str) -> None:
        found["seconds"][name] = round(time.monotonic() - STARTED, 1)

    files = {}
    for name, folder in (("ext4", ext4), ("tmpfs", tmpfs)):
        files[name] = folder / "model.gguf"
        files[name].write_bytes(source.read_bytes())
    memory = os.memfd_create("model")
    os.write(memory, source.read_bytes())
    files["anonymous"] = Path(f"/proc/self/fd/{memory}")
    path = files["ext4"]
    note("files")

    off = Placed(path, "off")
    off.populate()
    expected = off.say(PROMPT)
    counts = off.engine.expert_counts.astype(np.float64)
    off.close()
    found["said"] = expected[0]
    found["same"] = {}
    note("off")

    found["distribute"] = {}
    for name, file in files.items():
        cold(file)
        placed = Placed(file, "distribute")
        placed.populate()
        found["distribute"][name] = placed.placed()
        if name == "ext4":
            found["same"]["distribute"] = placed.say(PROMPT) == expected
            found["kv"] = kv_share(placed)
            placed.placement.look(force=True)
            found["distribute"][name]["local"] = placed.placement.local_share()
        placed.close()
    note("distribute")

    cold(path)
    elsewhere(path)
    plain = Mapping([str(path)])
    plain.populate(0, 0, path.stat().st_size)
    found["cached_elsewhere"] = {"before": plain.numa_maps()[0]}
    plain.close()
    placed = Placed(path, "distribute")
    placed.populate()
    found["cached_elsewhere"] |= placed.placed()
    placed.close()
    note("cached elsewhere")

    found["mirror"] = {}
    for budget in ("100%", "50%"):
        placed = Placed(path, "mirror", budget, counts)
        placed.populate()
        same = placed.say(PROMPT) == expected
        placement = placed.placement
        placement.look(force=True)
        reads = placed.engine.program.reads
        inside = reads[:, placement.mirrored].sum() / reads.sum()
        found["mirror"][budget] = {
            "local": placement.local_share(), "mirrored_bytes": int(placed.table.nbytes[placement.mirrored].sum()),
            "of_bytes": int(placed.table.nbytes.sum()), "read_from_mirrored": float(inside),
            "right": 1 - placement.wrong_bytes() / sum(row.mapped for row in placement.rows()),
        }  # fmt: skip
        found["same"][f"mirror {budget}"] = same
        placed.close()
    note("mirror")

    placed = Placed(path, "experts")
    placed.populate()
    placement = placed.placement
    first = placed.placed()
    same = placed.say(PROMPT) == expected
    teams = [len(team) for team in placed.choice.teams]
    # Heat that has come to lie on the first team's experts alone, as unevenly as in large models (Zipf).
    order = np.argsort(placement.owner, axis=1, kind="stable")
    heat = np.zeros(order.shape)
    np.put_along_axis(heat, order, 1000 / (1 + np.arange(order.shape[1]))[None, :], axis=1)
    before, owner = load(placement.owner, heat, teams), placement.owner.copy()
    did = placement.follow(heat, even=False)
    assert placed.queue.drain(4, 60.0)
    same &= placed.say(PROMPT) == expected
    base = placed.engine.expert_counts.copy()
    placed.say(OTHER, 1)
    fresh = (placed.engine.expert_counts - base).astype(np.float64)
    expert_rows = [row for row in (placement.look(force=True), placement.rows())[1] if row.role == "expert"]
    found["experts"] = {
        "right_before": first["right"], "did": did, "load_before": before, "load": load(placement.owner, heat, teams),
        "moved": int((owner != placement.owner).sum()), "load_by_text": load(balance(counts, teams), counts, teams),
        "load_other_text": load(balance(counts, teams), fresh, teams),
        "right": 1 - sum(row.wrong_node or 0 for row in expert_rows) / sum(row.mapped for row in expert_rows),
        "local": placement.local_share(), "busiest": float((counts.max(axis=1) / counts.sum(axis=1)).max()),
    }  # fmt: skip
    found["same"]["experts"] = same
    placed.close()
    note("experts")

    cold(path)
    placed = Placed(path, "interleave")
    placed.populate()
    found["same"]["interleave"] = placed.say(PROMPT) == expected
    found["interleave"] = placed.mapping.numa_maps()[0]
    placed.close()

    arena = Arena(8 << 20, MACHINE.nodes[-1].number)
    mapping = Mapping([str(path)])
    at = arena.copy(mapping, 0, 0, 8 << 20)
    found["arena"] = page_counts([at], [8 << 20], 8)[0].tolist()
    note("end")
    return found


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:4]))), flush=True)
