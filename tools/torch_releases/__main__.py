"""Fetch the data-loading sources of torch releases, and look for dlmon's private names in them.

Without arguments: look, in all releases fetched. The exit status is 1 if a name is missing.
"""

from __future__ import annotations

import argparse
import sys

from tools.torch_releases import facts, sources


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.torch_releases", description=__doc__)
    parser.add_argument(
        "--fetch",
        nargs="*",
        metavar="VERSION",
        help="fetch these releases, or the newest of each minor version since 2.0",
    )
    args = parser.parse_args()
    if args.fetch is None:
        return look()
    with sources.index() as index:
        versions = args.fetch or index.releases().values()
        if not versions:
            sys.exit("the index that pip is configured with offers no torch for this Python")
        for version in versions:
            print(index.fetch(version), flush=True)
    return 0


def look() -> int:
    """Print for every name in which releases it is; return 1 if one is not in all of them."""
    releases = sources.newest_fetched()
    if not releases:
        print("no release has been fetched: run this with --fetch", file=sys.stderr)
        return 2
    print("looked in", ", ".join(releases.values()))
    complete = True
    for entry in facts.entries():
        missing = [
            minor
            for minor, version in releases.items()
            if not facts.holds(sources.CACHE / version, entry)
        ]
        complete &= not missing
        print(f"{'not in ' + ', '.join(missing) if missing else 'in all':<24} {facts.place(entry)}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
