"""The Jinja environment in which a model's chat template runs, and how much it may do there.

A template comes with a model file from anywhere. It sees copies, reaches nothing of Python, and has a budget: loops and
calls are counted against processor time, no text or list may grow beyond a size, and what Python walks through in one
go (to compare, sort, hash or write it) is walked through here before: lists in lists may be few in memory and endless
on the way. What this does not bound is a single filter's work on a list of the greatest size: some seconds; and how
much a template keeps in all. jinja2 is imported when a template is first rendered.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import datetime
from functools import wraps
from typing import Any, TypeGuard, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import concat as join_texts

Thing = TypeVar("Thing")

SECONDS = 2.0  # of processor time, for all attempts at one conversation; usual ones take milliseconds
SIZE = 16 << 20  # characters or elements: more than a request can bring
_POWER = 1 << 16  # bits of a whole number
_ARGUMENT = 4096  # a width, or characters that a filter repeats for every line or word
_WIDTH = re.compile(r"\d{5}|%[^a-z]*\*|\{[^{}]*\{")  # of a formatted field


class OutOfBudget(jinja2.TemplateError):
    """The template asks for more than a conversation can need."""


class _Budget(threading.local):
    """Of the rendering that this thread is at."""

    ends = 0.0
    steps = 0


class _Counting(CodeGenerator):
    """Loops count their turns; what is compared, a key, or put together as text is measured."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        parts = nodes.List(list(node.nodes), lineno=node.lineno)
        self.visit(nodes.Call(nodes.EnvironmentAttribute("joined"), [parts], [], None, None, lineno=node.lineno), frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        node.expr = self._measured(node.expr)
        for operand in node.ops:
            operand.expr = self._measured(operand.expr)
        super().visit_Compare(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            node.arg = self._measured(node.arg)
        super().visit_Getitem(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        for pair in node.items:
            pair.key = self._measured(pair.key)
        super().visit_Dict(node, frame)

    @staticmethod
    def _measured(node: nodes.Expr) -> nodes.Expr:
        if isinstance(node, nodes.Const):
            return node
        measured = nodes.EnvironmentAttribute("measured", lineno=node.lineno)
        return nodes.Call(measured, [node], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """{% generation %} marks what an assistant wrote, for training; here it means its content."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """As transformers' utils/chat_template_utils.py sets it up, within a budget."""

    code_generator_class = _Counting
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, now: Callable[[], datetime]) -> None:
        """`now`: the clock of `strftime_now`."""
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=self.measured
        )
        self._budget = _Budget()
        del self.globals["lipsum"]
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = self._tojson
        tests: dict[str, Any] = self.tests
        self.tests = {name: self._compared(test) if name in _COMPARING else test for name, test in tests.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: now().strftime(form)

    # --- the budget

    def begin(self) -> None:
        """A conversation's rendering begins in this thread."""
        self._budget.ends = time.thread_time() + SECONDS
        self._budget.steps = 0

    def _tick(self) -> None:
        self._budget.steps += 1
        if not self._budget.steps & 0xFF and time.thread_time() > self._budget.ends:
            raise OutOfBudget(f"it takes more than {SECONDS:g} seconds")

    def counted(self, items: Iterable[Thing]) -> Iterator[Thing]:
        """The items of a loop."""
        for item in items:
            self._tick()
            yield item

    def joined(self, parts: list[object]) -> str:
        """Jinja's `a ~ b`."""
        return self.concat([str(self.measured(part)) for part in parts])

    @staticmethod
    def concat(texts: Iterable[str]) -> str:  # jinja2 puts everything that a template writes together by this
        kept = list(texts)
        _check_size(sum(map(len, kept)))
        return join_texts(kept)

    def measured(self, value: Thing) -> Thing:
        """A value about to be walked through whole."""
        if isinstance(value, list | tuple | dict):
            self._measure(value, [0])
        return value

    def _measure(self, value: object, total: list[int]) -> None:
        self._tick()
        total[0] += len(value) if isinstance(value, str) else 1
        _check_size(total[0])
        if isinstance(value, Mapping):
            for key, item in value.items():
                self._measure(key, total)
                self._measure(item, total)
        elif isinstance(value, list | tuple):
            for item in value:
                self._measure(item, total)

    # --- what a template may do

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        # Templates made for llama.cpp keep lists (Kimi K2 with tools); what they see is a copy.
        return (attr in ("append", "pop") and type(obj) is list) or super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """jinja2's stand-in for a text's `format` methods."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def measured(*args: object, **kwargs: object) -> str:
            self._check_form(getattr(value, "__self__", ""), [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return measured

    def call(self, context: Context, obj: object, /, *args: object, **kwargs: object) -> object:
        self._tick()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, getattr(obj, "__name__", ""), args, kwargs)
        elif isinstance(owner, list | tuple | dict):  # it may look for what it is given
            for argument in args:
                if isinstance(argument, list | tuple | dict):
                    self.measured(owner)
                    self.measured(argument)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        if operator == "+" and _sized(left) and _sized(right):
            _check_size(len(left) + len(right))
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if _sized(many) and isinstance(times, int):
                    _check_size(len(many) * times)
            if isinstance(left, int) and isinstance(right, int):
                _check_power(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_power(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            self._check_form(left, right)
        return super().call_binop(context, operator, left, right)

    def _check_form(self, form: str, values: object) -> None:
        """Before values are put into a form: `%5d`, `{:5}`. No conversation needs widths that are values themselves."""
        if _WIDTH.search(form):
            raise OutOfBudget("a formatted field is too wide")
        self.measured(values)

    def _bounded(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        """A filter whose arguments cannot make its result grow without end."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def bounded(*args: object, **kwargs: object) -> object:
            self._tick()
            before, (value, *more) = args[:skipped], args[skipped:]
            given = (*more, *kwargs.values())
            if name not in _SHALLOW:
                value = list(value) if isinstance(value, Iterator) else value
                self.measured(value)
            if name == "sum" and any(_sized(argument) for argument in given):
                raise OutOfBudget("sum adds numbers only")
            if name == "join" and given and _sized(value):
                _check_size(len(value) * len(str(given[0])))
            elif name == "replace":
                _check_method(str(value), "replace", given, {})
            elif name == "format":
                self._check_form(str(value), list(given))
            for argument in given:
                if name in _WIDENING and isinstance(argument, int) and abs(argument) > _ARGUMENT:
                    raise OutOfBudget(f"{name} by {argument}")
                if name in _REPEATING and isinstance(argument, str) and len(argument) > _ARGUMENT:
                    raise OutOfBudget(f"{name} with a text of {len(argument)} characters")
            return function(*before, value, *more, **kwargs)

        return bounded

    def _compared(self, test: Callable[..., object]) -> Callable[..., object]:
        """A test that looks into its values."""

        @wraps(test)
        def compared(*values: object) -> object:
            for value in values:
                self.measured(value)
            return test(*values)

        return compared

    def _tojson(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own escapes <, > and & for HTML, which no model was trained on.
        value = list(value) if isinstance(value, Iterator) else value
        self.measured(value)
        if isinstance(indent, int | str) and (indent > 64 if isinstance(indent, int) else len(indent) > 64):
            raise OutOfBudget("tojson indents too far")
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# Filters that do not look into what a list holds, or do so by other filters and tests.
_SHALLOW = frozenset(
    """
    attr batch count d default first items last length list map random reject rejectattr reverse select selectattr slice
    """.split()  # noqa: SIM905
)
_COMPARING = frozenset("== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in".split())  # noqa: SIM905
_WIDENING = frozenset(("center", "indent", "batch", "slice", "wordwrap"))
_REPEATING = frozenset(("indent", "wordwrap", "urlize"))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _sized(value: object) -> TypeGuard[Sized]:
    return isinstance(value, str | bytes | list | tuple)


def _check_size(size: int) -> None:
    if size > SIZE:
        raise OutOfBudget(f"it makes a text or list of {size} elements")


def _check_power(bits: int) -> None:
    if bits > _POWER:
        raise OutOfBudget(f"it makes a number of {bits} bits")


def _check_method(text: str, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Before a method of a text runs whose result may be much longer than the text."""
    given = (*args, *kwargs.values())
    if name == "replace" and len(given) > 1 and isinstance(given[0], str) and isinstance(given[1], str):
        _check_size(len(text) + text.count(given[0]) * len(given[1]))
    elif name == "join" and given:
        parts = list(given[0]) if isinstance(given[0], list | tuple) else []
        _check_size(sum(len(part) + len(text) for part in parts if isinstance(part, str)))
    else:
        for argument in given:
            if isinstance(argument, int):
                _check_size(argument * max(len(text) if name == "expandtabs" else 1, 1))


__all__ = ["OutOfBudget", "Sandbox"]
