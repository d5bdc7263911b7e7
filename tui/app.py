"""hearthtop: a live picture of one hearthd, in a terminal.

Owns the screen, its keys and the pace of drawing. It measures nothing and decides nothing for the daemon.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

import zmq
from hearthd.daemon import protocol
from hearthd.tui.collector import Collector, Snapshot
from hearthd.tui.dialogs import Confirm, Help
from hearthd.tui.events import EventPanel
from hearthd.tui.experts import ExpertPanel
from hearthd.tui.flow import PopulatePanel, ThroughputPanel
from hearthd.tui.header import Header
from hearthd.tui.link import Link
from hearthd.tui.panel import Panel
from hearthd.tui.requests import RequestPanel
from hearthd.tui.residency import ResidencyPanel
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.css.query import NoMatches
from textual.message import Message
from textual.widgets import Footer

DRAW_SECONDS = 0.25


class SnapshotTaken(Message):
    """A frozen snapshot to draw; one that still waits is replaced by a newer one."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, SnapshotTaken)


class HearthTop(App[None]):
    CSS_PATH = "hearthtop.tcss"
    TITLE = "hearthtop"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - as the base declares it
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall"), (50, "-huge")]  # noqa: RUF012 - as the base declares it
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "help", key_display="?", id="help", tooltip="This page"),
        Binding("p", "pause", "pause", id="pause", tooltip="Stop drawing; collecting goes on"),
        Binding("w", "warm", "warm", id="warm", tooltip="Ask the daemon to warm all experts"),
        Binding("d", "defer", "defer", id="defer", tooltip="Ask the daemon to give all experts' memory back"),
        Binding("r", "panel('requests')", "requests", show=False, id="requests", tooltip="To the requests"),
        Binding("e", "panel('experts')", "experts", show=False, id="experts", tooltip="To the experts"),
        Binding("v", "panel('events')", "events", show=False, id="events", tooltip="To the events"),
        Binding("q,ctrl+c", "quit", "quit", key_display="q", id="quit", tooltip="Quit; the daemon goes on"),
    ]

    def __init__(
        self,
        endpoint: str,
        *,
        clock: Callable[[], float] = time.time,
        link: Callable[[Collector], Link] | None = Link,
    ) -> None:
        """`link` None: nobody is asked; whoever holds the app feeds `collector` and calls `take_picture`."""
        # With native colours Textual can leave colour out altogether, which is what NO_COLOR asks for.
        super().__init__(ansi_color=bool(os.environ.get("NO_COLOR")))
        self.clock = clock
        self.collector = Collector(endpoint, clock())
        self.paused_since: float | None = None
        self.drawn = 0
        self._latest: Snapshot | None = None
        self._link = link
        self._line: Link | None = None

    def compose(self) -> ComposeResult:
        yield Header()
        yield ResidencyPanel(id="residency")
        with Horizontal(id="middle"):
            yield ExpertPanel(id="experts")
            with Vertical(id="flow"):
                yield ThroughputPanel(id="throughput")
                yield PopulatePanel(id="populate")
        yield RequestPanel(id="requests")
        yield EventPanel(id="events")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.take_picture()
        if self._link is not None:
            self._line = self._link(self.collector)
            self.run_worker(self._line.run(), exit_on_error=True, group="link")
            self.set_interval(DRAW_SECONDS, self.take_picture)

    # Pictures ------------------------------------------------------------------------------------------------------

    def take_picture(self) -> None:
        self.post_message(SnapshotTaken(self.collector.snapshot(self.clock())))

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        self._latest = message.snapshot
        if self.paused_since is None:
            self._draw(message.snapshot)

    def _draw(self, snapshot: Snapshot) -> None:
        self.drawn += 1
        if not (screens := self.screen_stack):  # it ends
            return
        try:
            main = screens[0]
            main.query_one(Header).show(snapshot, self.paused_since)
            for panel in main.query(Panel):
                panel.show(snapshot)
        except NoMatches:  # a snapshot that arrives while the screen is taken down
            return

    # Keys ----------------------------------------------------------------------------------------------------------

    def action_help(self) -> None:
        keys = []
        for binding in self.BINDINGS:
            assert isinstance(binding, Binding)
            if binding.show:
                keys.append((binding.key_display or binding.key.split(",")[0], binding.tooltip))
        keys.append(("r e v", "To the requests, the experts, the events"))
        keys.append(("tab", "To the next panel (shift+tab: back); ↑ ↓ scroll it"))
        self.push_screen(Help(keys))

    def action_pause(self) -> None:
        self.paused_since = self.clock() if self.paused_since is None else None
        snapshot = self._latest
        if snapshot is not None:
            self._draw(snapshot)

    def action_panel(self, name: str) -> None:
        self.query_one(f"#{name}").focus()

    def action_warm(self) -> None:
        self._ask("Warm", "Warm all experts in the background, as far as the budget allows?", protocol.Warm(), "warm")

    def action_defer(self) -> None:
        question = "Give the memory of all experts back? The next tokens will read them from the disk again."
        self._ask("Defer", question, protocol.Defer(), "defer")

    def _ask(self, title: str, question: str, request: protocol.Request, what: str) -> None:
        async def answered(yes: bool | None) -> None:
            if yes and self._line is not None:
                await self._line.act(request, what)
                self.take_picture()

        self.push_screen(Confirm(title, question), answered)


def _parser() -> argparse.ArgumentParser:
    from hearthd import __version__

    parser = argparse.ArgumentParser(
        prog="hearthtop",
        description="Watch a running hearthd: what is resident, how fast it answers, what it waits for.",
        epilog="Without --control: HEARTHD_CONTROL, then the usual sockets. Press ? for the keys.",
    )
    parser.add_argument("--control", metavar="ENDPOINT", default="", help="the daemon's control endpoint, or its name")
    parser.add_argument("--keys", metavar="FILE", default="", help="this client's .key_secret, for tcp:// endpoints")
    parser.add_argument("--picture", metavar="FILE", help="save one screen as SVG instead, and end")
    parser.add_argument("--size", metavar="CxR", default="120x40", help="columns and rows of the picture (120x40)")
    parser.add_argument("--seconds", type=float, default=5.0, help="to watch before the picture is taken (5)")
    parser.add_argument("--version", action="version", version=f"hearthtop {__version__}")
    return parser


def _save_picture(app: HearthTop, path: str, width: int, height: int, seconds: float) -> int:
    import asyncio

    from hearthd.tui.picture import draw

    svg = asyncio.run(draw(app, width, height, seconds=seconds))
    if app.collector.link != "up":
        print(f"hearthtop: no daemon at {app.collector.endpoint}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    with open(path, "w", encoding="utf-8") as file:
        file.write(svg)
    return 0


def main(arguments: list[str] | None = None) -> int:
    from hearthd.daemon import cli, client, endpoints

    parser = _parser()
    options = cli.parse(parser, arguments)
    try:
        width, height = (int(part) for part in options.size.split("x"))
    except ValueError:
        parser.error(f"--size {options.size}: expected COLUMNSxROWS, such as 120x40")
    try:
        endpoint = endpoints.control_to_connect(options.control)
    except endpoints.EndpointError as error:
        print(f"hearthtop: {error}", file=sys.stderr)
        return os.EX_CONFIG

    def secure(socket: zmq.Socket[Any], where: str) -> None:
        client.security.secure_client(socket, where, options.keys)

    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as probe:
            secure(probe, endpoint)
    except client.security.KeyTrouble as error:
        print(f"hearthtop: {error}", file=sys.stderr)
        return os.EX_CONFIG
    app = HearthTop(endpoint, link=lambda collector: Link(collector, secure=secure))
    if options.picture:
        return _save_picture(app, options.picture, width, height, options.seconds)
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # the picture goes to stderr
        print("hearthtop: needs a terminal; hearthctl status --json prints the same for programs", file=sys.stderr)
        return 2
    app.run()
    return app.return_code or 0


if __name__ == "__main__":
    sys.exit(main())
