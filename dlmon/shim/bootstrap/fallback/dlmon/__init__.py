"""Stands in for dlmon in a job whose own environment has none, and turns into the one beside it.

`dlmon run` must not put the whole of its site-packages before the job, so this directory is all
that `sys.path` gets: it has nothing in it but this name.

Runs in: rank, worker. On failure: ImportError, as without dlmon.
"""

import importlib.util
import os
import sys

_REAL = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 4))

_spec = importlib.util.spec_from_file_location(
    "dlmon", os.path.join(_REAL, "__init__.py"), submodule_search_locations=[_REAL]
)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["dlmon"] = _module  # what `import dlmon` returns
_spec.loader.exec_module(_module)
