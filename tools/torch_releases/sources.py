"""Fetch the sources of `torch.utils.data` of a release out of its wheel, and nothing else of it.

A wheel is a zip file: its list of members and single members can be asked for by ranges of bytes.
pip can do that, from the index that it is configured with and under the rules that it is configured
with; its modules are private, so that this is no part of dlmon, and tests that need it skip where
it fails. A few hundred kilobytes a release are fetched, once.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE = Path(__file__).resolve().parents[2] / ".tools" / "torch"
"""One folder per release, in which paths are those in the wheel."""

DATA = Path("torch/utils/data")
_WANTED = re.compile(r"torch/utils/data/.*\.py|torch/_utils\.py")
_RELEASE = re.compile(r"[2-9]\.\d+\.\d+")


def cached(version: str) -> Path | None:
    """Return the folder of a release that has been fetched, None if it has not."""
    folder = CACHE / version
    return folder if folder.is_dir() else None


def newest_fetched() -> dict[str, str]:
    """Return the newest release fetched of each minor version ("2.9": "2.9.1"), oldest first."""
    found = [path.name for path in CACHE.glob("*") if _RELEASE.fullmatch(path.name)]
    return _newest(found)


class Index:
    """The package index that pip is configured with."""

    def __init__(self, session: Any, finder: Any) -> None:
        self._session = session
        self._urls = {
            str(candidate.version): candidate.link.url_without_fragment
            for candidate in finder.find_all_candidates("torch")
            if candidate.link.is_wheel and not candidate.link.is_file
        }

    def releases(self) -> dict[str, str]:
        """Return the newest release of each minor version that has a wheel for this Python."""
        return _newest([version for version in self._urls if _RELEASE.fullmatch(version)])

    def fetch(self, version: str) -> Path:
        """Return the folder with a release's sources, fetched if it was not.

        Raises:
            LookupError: The index has no wheel of it for this Python.
        """
        from pip._internal.network.lazy_wheel import LazyZipOverHTTP  # noqa: PLC0415  # as below

        folder = cached(version)
        if folder is not None:
            return folder
        if version not in self._urls:
            raise LookupError(f"the index has no wheel of torch {version} for this Python")
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=CACHE, prefix="fetching-"))
        try:
            with (
                LazyZipOverHTTP(self._urls[version], self._session) as remote,
                zipfile.ZipFile(remote) as wheel,
            ):
                members = [one for one in wheel.infolist() if _WANTED.fullmatch(one.filename)]
                for member in sorted(members, key=lambda one: one.header_offset):
                    wheel.extract(member, scratch)
            scratch.chmod(0o755)
            scratch.rename(CACHE / version)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return CACHE / version


@contextmanager
def index() -> Iterator[Index]:
    """Open the index that pip is configured with.

    Raises:
        Exception: pip is not there, or not as it was, or its index cannot be reached.
    """
    from pip._internal.commands import create_command  # noqa: PLC0415  # reading needs no pip

    command: Any = create_command("download")
    options, _ = command.parse_args(["--only-binary=:all:", "torch"])
    with command.main_context():
        session = command.get_default_session(options)
        yield Index(session, command._build_package_finder(options, session))  # noqa: SLF001


def _newest(versions: list[str]) -> dict[str, str]:
    ordered = sorted(versions, key=lambda version: tuple(map(int, version.split("."))))
    return {version.rpartition(".")[0]: version for version in ordered}
