"""hearthtop against a daemon without a model: what it shows, and how it takes a daemon that goes and comes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hearthd.daemon.protocol import ResidencyNow, Stats
from hearthd.tui import marks, units
from hearthd.tui.app import HearthTop, main
from hearthd.tui.collector import Collector, Curve, History
from hearthd.tui.header import headlines
from hearthd.tui.link import Link
from hearthd.tui.requests import RequestPanel
from textual.pilot import Pilot

from .fake_daemon import BIRTH, GIB, FakeDaemon, Scenario, feed

SMALL = (80, 24)
LARGE = (120, 40)
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "120x40"])


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# Screens -------------------------------------------------------------------------------------------------------------


def frozen(scenario: Scenario, at: float) -> HearthTop:
    """The monitor `at` seconds into the scenario, its clock standing."""
    app = HearthTop(scenario.control, clock=lambda: BIRTH + at, link=None)
    feed(app.collector, scenario, at)
    return app


def press(*keys: str) -> Callable[[Pilot[None]], Awaitable[None]]:
    async def run(pilot: Pilot[None]) -> None:
        await pilot.press(*keys)
        await pilot.pause()

    return run


@SIZES
def test_screen_warming(snap_compare, size) -> None:
    assert snap_compare(frozen(Scenario(), 38.0), terminal_size=size)


@SIZES
def test_screen_two_nodes(snap_compare, size) -> None:
    assert snap_compare(frozen(Scenario(nodes=2), 38.0), terminal_size=size)


@SIZES
def test_screen_away(snap_compare, size) -> None:
    app = frozen(Scenario(), 20.0)
    app.collector.lost(BIRTH + 23.0)
    app.clock = lambda: BIRTH + 95.0
    assert snap_compare(app, terminal_size=size)


@SIZES
def test_screen_before_any_daemon(snap_compare, size) -> None:
    app = HearthTop("ipc:///run/hearthd/default.control", clock=lambda: BIRTH + 7, link=None)
    app.collector.since = BIRTH
    assert snap_compare(app, terminal_size=size)


@SIZES
def test_screen_help(snap_compare, size) -> None:
    assert snap_compare(frozen(Scenario(), 38.0), terminal_size=size, run_before=press("question_mark"))


@SIZES
def test_screen_paused(snap_compare, size) -> None:
    assert snap_compare(frozen(Scenario(), 38.0), terminal_size=size, run_before=press("p"))


def test_screen_unknown(snap_compare) -> None:
    assert snap_compare(frozen(Scenario(unknown=True), 12.0), terminal_size=SMALL)


def test_what_the_state_does_not_tell_stands_beside_it() -> None:
    scenario = Scenario()
    stats = scenario.stats(200.0)
    stats.state, stats.warm_percent, stats.state_note = "serving-cold", 62.9, "3.65 GiB deferred by order"
    collector = Collector("ipc:///x", BIRTH)
    collector.take_stats(stats, BIRTH + 200)
    line = headlines(collector.snapshot(BIRTH + 200), 100, None).plain.splitlines()[1]
    assert "● serving-cold 62 %" in line and line.endswith(stats.state_note) and len(line) == 100


def noted(stats: Stats, width: int) -> tuple[str, str]:
    """Title and note of the requests' panel."""
    collector = Collector("ipc:///x", BIRTH)
    collector.take_stats(stats, BIRTH)
    panel, snapshot = RequestPanel(id="requests"), collector.snapshot(BIRTH)
    return panel.title(snapshot), panel.note(snapshot, width).plain


def test_the_requests_say_what_their_steps_carry() -> None:
    stats = Stats(sessions=16, waiting=48, steps_rate=5.13, prompt_rows=96.4, answer_rows=15.04)
    title, note = noted(stats, 60)
    assert title == "Requests 64"
    assert note == "5.1 steps/s of 96 prompt + 15 answer rows  48 waiting"
    assert noted(stats, 40)[1] == "48 waiting"
    alone = Stats(sessions=1, steps_rate=30.2, answer_rows=1.0)
    assert noted(alone, 60)[1] == "30 steps/s of 1 answer row"
    assert noted(Stats(), 60) == ("Requests", "")


def test_screen_prompt_beside_an_answer(snap_compare) -> None:
    assert snap_compare(frozen(Scenario(), 22.0), terminal_size=SMALL)


def test_screen_small_model_warm(snap_compare) -> None:
    small = Scenario(layers=5, experts=16, dense=2 << 20, deferred=9 << 20, disk=4 << 20, name="tinystories")
    assert snap_compare(frozen(small, 30.0), terminal_size=LARGE)


def text_of(app: HearthTop) -> str:
    """The characters on the screen, read back from the picture."""
    import html

    lines = re.findall(r"<text[^>]*>(.*?)</text>", app.export_screenshot())
    return html.unescape(" ".join(lines)).replace("\xa0", " ")


def test_no_color_leaves_the_terminal_its_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = frozen(Scenario(), 38.0)

    async def run() -> set[str]:
        async with app.run_test(size=SMALL) as pilot:
            await pilot.pause()
            styles = {
                segment.style
                for strip in app.screen._compositor.render_strips()
                for segment in strip.apply_filter(app._filters[-1], app.screen.background_colors[1])
            }
            return {str(color.name) for s in styles if s for color in (s.color, s.bgcolor) if color is not None}

    assert asyncio.run(run()) == {"default"}


# Behaviour, over real sockets ----------------------------------------------------------------------------------------


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return Scenario(control=f"ipc://{tmp_path}/a.control", telemetry=f"ipc://{tmp_path}/a.telemetry")


@asynccontextmanager
async def watching(endpoint: str, patience: float = 10.0) -> AsyncIterator[tuple[HearthTop, Pilot[None]]]:
    app = HearthTop(endpoint, link=lambda collector: Link(collector, ask=0.05, patience=patience))
    async with app.run_test(size=SMALL) as pilot:
        yield app, pilot


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


def test_comes_back_after_the_daemon_restarts(scenario: Scenario, tmp_path: Path) -> None:
    other = replace(scenario, pid=777, name="another-model", deferred=GIB, telemetry=f"ipc://{tmp_path}/b.telemetry")

    async def run() -> None:
        async with watching(scenario.control, patience=0.4) as (app, _):
            assert app.collector.link == "connecting"
            with FakeDaemon(scenario, start=20, pace=0.05):
                await until(lambda: app.collector.link == "up" and app.collector.snapshot(0).stats is not None, "up")
            await until(lambda: app.collector.link == "away", "away")
            await until(lambda: "AWAY" in text_of(app) and scenario.control[-12:] in text_of(app), "says so")
            with FakeDaemon(other, start=3, pace=0.05) as daemon:
                await until(lambda: app.collector.pid == 777, "the new process")
                # Its telemetry has another endpoint: stats must come from there.
                seen = daemon.published
                await until(lambda: daemon.published > seen + 3 and "another-model" in text_of(app), "the new model")
                await until(lambda: app.collector.snapshot(0).histories.prompt.times != (), "its own history")
            codes = [event.code for event in app.collector.snapshot(0).events]
            assert "restarted" in codes and "away" in codes and "connected" in codes

    asyncio.run(run())


def test_pause_stops_drawing_and_goes_on_collecting(scenario: Scenario) -> None:
    async def run() -> None:
        with FakeDaemon(scenario, start=10, pace=0.05):
            async with watching(scenario.control) as (app, pilot):
                await until(lambda: "chat-7f3a91" in text_of(app), "a first picture")
                await pilot.press("p")
                await pilot.pause()
                drawn, before = app.drawn, app.collector.snapshot(0).stats
                picture = text_of(app)
                assert "PAUSED" in picture
                await until(lambda: app.collector.snapshot(0).stats is not before, "more stats")
                app.take_picture()
                await pilot.pause()
                assert app.drawn == drawn and text_of(app) == picture
                await pilot.press("p")
                await pilot.pause()
                assert app.drawn > drawn and "PAUSED" not in text_of(app)

    asyncio.run(run())


def test_warm_and_defer_ask_before_they_act(scenario: Scenario) -> None:
    async def run() -> None:
        with FakeDaemon(scenario, start=10, pace=0.05) as daemon:
            async with watching(scenario.control) as (app, pilot):
                await until(lambda: app.collector.link == "up", "up")
                await pilot.press("d", "n")
                await pilot.press("w", "y")
                await until(lambda: "warm" in daemon.asked, "the operation")
                assert "defer" not in daemon.asked
                await until(lambda: any(e.message == "warm" for e in app.collector.snapshot(0).events), "its outcome")

    asyncio.run(run())


def test_quits_with_and_without_a_daemon(scenario: Scenario) -> None:
    async def run() -> None:
        async with watching(scenario.control) as (app, pilot):
            await pilot.press("q")
            await pilot.pause()
        assert app.return_code == 0

    asyncio.run(run())


def test_garbage_on_the_telemetry_is_an_event_not_an_end(scenario: Scenario) -> None:
    collector = Collector(scenario.control, BIRTH)

    async def run() -> None:
        link = Link(collector, ask=0.05, patience=5)
        task = asyncio.create_task(link.run())
        with FakeDaemon(scenario, pace=0.02, garbage=True):
            await until(lambda: any(e.code == "bad-message" for e in collector.snapshot(0).events), "an event")
            await until(lambda: collector.snapshot(0).histories.prompt.times != (), "stats after it")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


# The command ---------------------------------------------------------------------------------------------------------


def test_a_picture_of_a_running_daemon_needs_no_terminal(scenario: Scenario, tmp_path: Path) -> None:
    picture = tmp_path / "screen.svg"
    with FakeDaemon(scenario, start=20, pace=0.05):
        arguments = ["--control", scenario.control, "--picture", str(picture), "--size", "90x30", "--seconds", "0.5"]
        assert main(arguments) == 0
    assert scenario.name.split()[0] in picture.read_text(encoding="utf-8")


def test_exit_codes(scenario: Scenario, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = ["--control", scenario.control]
    assert main([*nobody, "--picture", str(tmp_path / "x.svg"), "--seconds", "0.1"]) == 69
    assert scenario.control in capsys.readouterr().err
    assert main(nobody) == 2 and "terminal" in capsys.readouterr().err
    assert main(["--control", "tcp://localhost:5555"]) == 78
    assert main(["--control", "http://x"]) == 78
    with pytest.raises(SystemExit) as ended:
        main(["--size", "big"])
    assert ended.value.code == 2


# Numbers -------------------------------------------------------------------------------------------------------------


def test_bars_add_up_and_hide_nothing() -> None:
    assert marks.apportion((0, 0, 0, 0), 10) == [0, 0, 0, 0]
    assert marks.apportion((1, 0, 10**12, 0), 10) == [1, 0, 9, 0]
    for parts in ((5, 3, 2, 0), (1, 1, 1, 0), (999, 1, 1, 1), (0, 0, 0, 7)):
        cells = marks.apportion(parts, 13)
        assert sum(cells) == 13
        assert all((part > 0) == (cell > 0) for part, cell in zip(parts, cells, strict=True))


def test_numbers_never_round_a_part_to_the_whole() -> None:
    assert units.share(999_999, 1_000_000) == "99 %"
    assert units.share(1, 1_000_000) == "<1 %"
    assert (units.share(0, 5), units.share(5, 5), units.share(0, 0)) == ("0 %", "100 %", "—")
    assert [units.size(n) for n in (0, 999, 1010 << 20, 8_482_560_410, 123_810_000_000)] == [
        "0 B", "999 B", "0.99 GiB", "7.90 GiB", "115.3 GiB",
    ]  # fmt: skip
    assert [units.count(n, 4) for n in (0, 9999, 10_000, 999_999, 1_000_000)] == ["0", "9999", "10k", "999k", "1M"]
    assert [units.mean(n) for n in (0, 0.01, 1.0, 4.24, 9.96, 96.5)] == ["0", "0.1", "1", "4.2", "10", "96"]
    assert marks.shade(0.999)[0] != "█" and marks.shade(0.001)[0] != "·"


def test_a_history_has_gaps_where_nothing_was_measured() -> None:
    history = History()
    for at, value in ((100.0, 2.0), (100.5, 4.0), (101.2, 6.0), (104.0, 8.0)):
        history.add(at, value)
    curve = history.curve()
    assert curve == Curve((100, 101, 104), (3.0, 6.0, 8.0))
    assert curve.columns(5, 5, 104.9) == [3.0, 6.0, None, None, 8.0]
    assert curve.columns(2, 6, 104.9) == [4.5, 8.0]


def test_an_unmeasured_residency_leaves_no_trace_in_the_history() -> None:
    collector = Collector("ipc:///x", BIRTH)
    collector.take_residency(Scenario(unknown=True).residency(5), BIRTH + 5)
    collector.take_residency(ResidencyNow(), BIRTH + 6)
    assert collector.snapshot(BIRTH + 6).histories.deferred.times == ()
