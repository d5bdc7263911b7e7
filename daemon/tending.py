"""Long-lived tasks that go on after a failure: it is told, and the task begins again after a growing pause.

Owns no task and repairs nothing. What a failure leaves behind is the task's business: each begins by looking anew.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from . import protocol

log = logging.getLogger(__name__)

CODE = "task-failed"
FIRST_SECONDS = 1.0  # before a task begins again; twice as long after each further failure
LONGEST_SECONDS = 60.0
STEADY_SECONDS = 10.0  # a task that has run for so long has recovered

T = TypeVar("T")
Say = Callable[[str, str, protocol.Level], None]


def first_cause(error: BaseException) -> BaseException:
    """What people want to read where nurseries have wrapped it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def described(error: BaseException) -> str:
    """An exception in a line."""
    cause = first_cause(error)
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.filename}: {cause.strerror}" if cause.filename else cause.strerror
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


class Tending:
    """say: code, message and level of an event; called on the event loop's thread."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self._failed: dict[str, str] = {}  # by task: why
        self._steady_at: dict[str, float] = {}  # when a task that begins again will have recovered

    @property
    def warnings(self) -> list[protocol.Warning_]:
        """What has failed and not recovered."""
        return [protocol.Warning_(code=CODE, message=f"{name}: {why}") for name, why in self._failed.items()]

    def failed(self, name: str, error: Exception) -> None:
        """Note a failure; a new one is told, with its traceback in the log."""
        why = described(error)
        self._steady_at[name] = trio.current_time() + STEADY_SECONDS
        if self._failed.get(name) != why:
            self._failed[name] = why
            log.warning("%s has failed and is tried again", name, exc_info=error)
            self.say(CODE, f"{name} has failed and is tried again: {why}", "warning")

    def attempt(self, name: str, call: Callable[[], T], otherwise: T) -> T:
        """What a call returns, or something else where it raises."""
        try:
            return call()
        except Exception as error:
            self.failed(name, error)
            return otherwise

    def look(self) -> None:
        """Tell what has recovered. Cheap: to be called now and then."""
        now = trio.current_time()
        for name in [name for name in self._failed if self._steady_at[name] <= now]:
            del self._failed[name]
            self.say(CODE, f"{name} goes on again", "info")

    async def keep(self, name: str, task: Callable[[], Awaitable[None]], longest: float = LONGEST_SECONDS) -> None:
        """Run a task until it returns or is cancelled, again and again where it raises."""
        pause = FIRST_SECONDS
        while True:
            began = trio.current_time()
            try:
                await task()
                return
            except Exception as error:  # also a group of nothing but such
                if trio.current_time() - began > STEADY_SECONDS:
                    pause = FIRST_SECONDS
                self.failed(name, error)
            self._steady_at[name] += pause
            await trio.sleep(pause)
            pause = min(2 * pause, longest)
