"""What lies over the monitor for a moment: the help and the question before an action."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from hearthd.tui import marks
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

_MARKS = (
    ("█", marks.MAPPED, "mapped", "cached, and in the daemon's page table"),
    ("▚", marks.ARENA, "arena", "in neither, but in memory of the daemon's own"),
    ("▓", marks.CACHED, "cached", "in the page cache only: the kernel may take it"),
    ("░", marks.DEFERRED, "deferred", "nowhere; read from the disk when needed"),
    ("?", marks.UNKNOWN, "unknown", "the kernel does not say; never guessed"),
    ("▸", marks.MAPPED, "layer", "where the running step is, on the map of experts"),
)
_QUEUE = (
    ("demand", "an operation waits for it now"),
    ("routed", "chosen by the router of the current layer"),
    ("lookahead", "likely to be chosen by the next layer"),
    ("cursor", "ahead of the prompt that is being read"),
    ("sweep", "everything else that the budget allows"),
)


class Help(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss", "close", id="close", tooltip="Close the help"),
    ]

    def __init__(self, keys: Iterable[tuple[str, str]]) -> None:
        super().__init__()
        self._keys = list(keys)

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog") as dialog:
            dialog.border_title = "hearthtop"
            dialog.border_subtitle = "esc closes"
            yield Static(self._text(), markup=False)

    def _text(self) -> Text:
        text = marks.span("Keys\n", marks.STRONG)
        for key, what in self._keys:
            text.append(f"  {key:<10}", f"bold {marks.MAPPED}").append(f" {what}\n", marks.TEXT)
        text.append("Marks\n", marks.STRONG)
        for mark, style, name, what in _MARKS:
            text.append(f"  {mark} ", style).append(f"{name:<9} ", marks.TEXT).append(f"{what}\n", marks.DIM)
        text.append("Populate queue, served in this order\n", marks.STRONG)
        for name, what in _QUEUE:
            text.append(f"  {name[0].upper()} ", marks.TEXT).append(f"{name:<9} ", marks.TEXT)
            text.append(f"{what}\n", marks.DIM)
        text.right_crop(1)
        return text


class Confirm(ModalScreen[bool]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "answer(True)", "yes", id="yes", tooltip="Do it"),
        Binding("n,escape,q", "answer(False)", "no", id="no", tooltip="Leave it"),
    ]

    def __init__(self, title: str, question: str) -> None:
        super().__init__()
        self._title = title
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="question") as dialog:
            dialog.border_title = self._title
            dialog.border_subtitle = "y yes · n no"
            yield Static(self._question, markup=False)

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
