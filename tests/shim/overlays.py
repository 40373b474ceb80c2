"""Other torches for tests: another `torch/utils/data`, on the binary that is installed.

`torch.utils.data` is Python alone, so that a folder with another release's, or with a changed copy,
can stand in for the installed one. `environment` makes every interpreter of a job do so: the job,
and what spawn and forkserver start.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import textwrap
from pathlib import Path

_SITECUSTOMIZE = """
    import sys
    from importlib.util import spec_from_file_location


    class Overlay:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "torch.utils.data":
                return None
            import itertools

            import torch._utils
            import torch.distributed  # up to 2.4 it is imported too late for newer binaries

            if not hasattr(torch._utils, "_accumulate"):  # up to 2.2 random_split needs it
                torch._utils._accumulate = itertools.accumulate
            return spec_from_file_location(
                name, {init!r}, submodule_search_locations=[{folder!r}]
            )


    sys.meta_path.insert(0, Overlay)
"""


def environment(folder: Path, data: Path) -> dict[str, str]:
    """Return the environment in which `data` is imported as `torch.utils.data`.

    Args:
        folder: Where the file goes that sees to it.
        data: A folder with an `__init__.py`, as torch/utils/data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = _SITECUSTOMIZE.format(init=str(data / "__init__.py"), folder=str(data))
    (folder / "sitecustomize.py").write_text(textwrap.dedent(text))
    others = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{others}" if others else str(folder)}


def installed() -> Path:
    """Return the installed torch's `torch/utils/data`."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "utils" / "data"


def copy_of_installed(target: Path) -> Path:
    """Copy the installed `torch/utils/data` to a new folder, to be changed; return that."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(installed(), target, ignore=ignored))


def replace(data: Path, old: str, new: str, *files: str) -> None:
    """Replace what a regular expression matches in the sources.

    Args:
        data: A copy of torch/utils/data.
        old: A regular expression.
        new: What stands there instead.
        files: Only in these, paths in `data`; default everywhere.
    """
    paths = [data / file for file in files] or sorted(data.rglob("*.py"))
    found = 0
    for path in paths:
        text, count = re.subn(old, new, path.read_text())
        found += count
        if count:
            path.write_text(text)
    assert found, f"nothing in {data} matches {old}"


def move_up(data: Path, file: str, owner: str, method: str) -> None:
    """Move a method of a class into a new base class of it: the class itself has it no more.

    The base has the class's name with one underscore more, so that names with two underscores in
    the method mean the same as before.
    """
    path = data / file
    tree = ast.parse(path.read_text())
    at, found = next(
        (i, node)
        for i, node in enumerate(tree.body)
        if isinstance(node, ast.ClassDef) and node.name == owner
    )
    moved = [n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == method]
    assert moved, f"{owner} has no {method}"
    found.body = [node for node in found.body if node not in moved] or [ast.Pass()]
    base = ast.parse(f"class _{owner}: pass").body[0]
    assert isinstance(base, ast.ClassDef)
    base.body = list(moved)
    found.bases.insert(0, ast.Name(base.name, ast.Load()))
    tree.body.insert(at, base)
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
