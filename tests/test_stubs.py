"""The type stubs beside the compiled modules say what is there: names, methods and their parameters, both ways."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CYEXT = Path(__file__).parent.parent / "cyext"
MODULES = sorted(path.stem for path in CYEXT.glob("*.pyx"))
DATA = "data"  # a value, a property or an attribute

Shape = dict[str, Any]  # name: parameters of a function, names of a class, or DATA


def parameters(function: ast.FunctionDef) -> list[tuple[str, bool]]:
    """Name and whether there is a default, without self."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    first = len(names) - len(arguments.defaults)
    found = [(name, at >= first) for at, name in enumerate(names)]
    found += [(a.arg, d is not None) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [pair for pair in found if pair[0] != "self"]


def declared(body: list[ast.stmt]) -> Shape:
    """Public names of a stub, or of a class in it."""
    found: Shape = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = declared(node.body)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = DATA if node.decorator_list else parameters(node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = DATA
    return {name: shape for name, shape in found.items() if not name.startswith("_")}


def shape_of(value: Any) -> Any:
    if inspect.isclass(value):
        return {name: shape_of(member) for name, member in vars(value).items() if not name.startswith("_")}
    if type(value).__name__ == "cython_function_or_method":
        given = inspect.signature(value).parameters.values()
        return [(p.name, p.default is not p.empty) for p in given if p.name != "self"]
    return DATA


def compiled(module: ModuleType) -> Shape:
    """Public names that a compiled module makes itself."""
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
        and getattr(value, "__module__", module.__name__) == module.__name__
    }  # fmt: skip
    return {name: shape_of(value) for name, value in own.items()}


@pytest.mark.parametrize("name", MODULES)
def test_a_stub_says_what_its_module_has(name: str) -> None:
    module = importlib.import_module(f"hearthd.cyext.{name}")
    stub, real = declared(ast.parse((CYEXT / f"{name}.pyi").read_text()).body), compiled(module)
    for kind, members in stub.items():
        made = getattr(module, kind, None)
        if isinstance(made, type) and issubclass(made, Exception):
            # Written in Python: its attributes are in its instances, where no class shows them.
            real[kind] |= {member: what for member, what in members.items() if what == DATA}
    assert stub == real


def test_no_stub_is_left_over_from_a_module_that_is_gone() -> None:
    assert sorted(path.stem for path in CYEXT.glob("*.pyi")) == MODULES
