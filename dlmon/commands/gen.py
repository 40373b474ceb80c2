"""Regenerate the files that come from code: documents, and rules for Prometheus.

Works in a source checkout. With --check nothing is written: what differs is listed, and the exit
status is 1 if anything does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dlmon.agent.config import SETTINGS
from dlmon.gen import configuration, findings, metrics, segment, torch_versions
from dlmon.gen.files import differing, source_root, write
from dlmon.gen.rules import document as alerts
from dlmon.gen.rules import files as rules


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--check", action="store_true", help="write nothing; list what differs, exit 1 if any does"
    )


def documents() -> dict[str, str]:
    """Return every generated document by its path in the repository."""
    return {
        "docs/metrics.md": metrics.render(),
        "docs/findings.md": findings.render(),
        "docs/segment.md": segment.render(),
        "docs/configuration.md": configuration.render(SETTINGS),
        "docs/torch-versions.md": torch_versions.render(),
        "docs/alerts.md": alerts.render(),
        "deploy/prometheus/rules/dlmon-recording.yml": rules.recording_rules(),
        "deploy/prometheus/rules/dlmon-alerts.yml": rules.alert_rules(),
    }


def main(args: argparse.Namespace) -> int:
    """Write what differs, or list it.

    Returns:
        1 if `--check` found a difference, else 0.

    Raises:
        UsageError: This is no source checkout.
    """
    root = source_root(Path(__file__).parent)
    if args.check:
        changed = differing(root, documents())
        for path in changed:
            print(f"{path} is out of date; run `dlmon gen`")
        return 1 if changed else 0
    for path in write(root, documents()):
        print(f"wrote {path}")
    return 0
