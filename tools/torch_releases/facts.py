"""Say whether a release's sources have what dlmon's table of names says, without running them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dlmon.shim import _torch, _torch_names
from dlmon.shim._torch_names import Name, Place


def entries() -> list[Place | Name]:
    """Return the rows of dlmon's tables that are about torch itself."""
    tables = (
        _torch_names.PLACES,
        _torch_names.NAMES,
        _torch_names.CALLS,
        _torch_names.MESSAGES,
    )
    return [row for table in tables for row in table if row.module != _torch_names.TORCHDATA]


def place(entry: Place | Name) -> str:
    """Return where an entry's name is."""
    return ".".join(part for part in (entry.module, entry.owner, entry.name) if part)


def holds(release: Path, entry: Place | Name) -> bool:
    """Return whether a release has a name as the shim uses it.

    Args:
        release: A folder in which modules are found by their paths.
        entry: One of `entries`.
    """
    if isinstance(entry, Place):
        return _takes(release, entry)
    inside = _find(release, entry.module, entry.owner)
    if entry in _torch_names.NAMES:
        return entry.name in _attributes(inside)
    if entry in _torch_names.CALLS:
        return any(isinstance(node, ast.Attribute) and node.attr == entry.name for node in inside)
    return any(_text(node).startswith(entry.name) for node in inside)


def _takes(release: Path, place: Place) -> bool:
    """Return what the shim itself would say of the function's signature."""
    path = f"{place.owner}.{place.name}" if place.owner else place.name
    found = next(_find(release, place.module, path), None)
    if not isinstance(found, ast.FunctionDef):
        return False
    return _torch.fits(place, _of_signature(ast.unparse(_bare(found.args))))


@cache
def _of_signature(arguments: str) -> Callable[..., Any]:
    """Return a function that takes these arguments."""
    names: dict[str, Any] = {}
    exec(f"def function({arguments}): pass", names)  # noqa: S102  # names and None alone, see _bare
    function: Callable[..., Any] = names["function"]
    return function


def _bare(arguments: ast.arguments) -> ast.arguments:
    """Return arguments without annotations, their defaults all None."""
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for one in (*every, arguments.vararg, arguments.kwarg):
        if one is not None:
            one.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [default and ast.Constant(None) for default in arguments.kw_defaults]
    return arguments


def _find(release: Path, module: str, path: str) -> Iterator[ast.AST]:
    """Yield a class or function of a module, then all that is in it; nothing if it is not there.

    Args:
        release: See `holds`.
        module: Its whole name.
        path: Names of classes and functions, one in the other, with dots between.
    """
    file = release / f"{module.replace('.', '/')}.py"
    found: ast.AST | None = ast.parse(file.read_text()) if file.is_file() else None
    for name in path.split("."):
        body = getattr(found, "body", [])
        named = [
            n for n in body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name
        ]
        found = named[-1] if named else None
    yield from ast.walk(found) if found is not None else ()


def _attributes(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield what is set on `self`, or declared in the class."""
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                yield target.attr
            elif isinstance(target, ast.Name) and isinstance(node, ast.AnnAssign):
                yield target.id


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
