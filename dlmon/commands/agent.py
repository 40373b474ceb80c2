"""Run the agent of this node: a daemon that watches every DataLoader without their cooperation.

It looks once a second and serves what it saw: /metrics for Prometheus, a page at /, the same as
JSON at /api/v1/snapshot, and /-/healthy and /-/ready for whoever keeps it running. SIGTERM and
SIGINT end it. A lock file in each directory, where it may make one, keeps `dlmon run --serve` from
starting another agent beside it.
"""

from __future__ import annotations

import argparse

from dlmon.agent import assembly, log
from dlmon.agent.config import FLAGS, load
from dlmon.agent.lock import AgentLocks
from dlmon.agent.settings import Setting
from dlmon.observe.snapshot import Snapshot


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: the file, and the settings that have a flag."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of the settings in docs/configuration.md; flags win over it",
    )
    for flag, setting in FLAGS.items():
        if setting.rule.kind == "list":
            parser.add_argument(
                flag, dest=flag, metavar="DIR", action="append", help=_help(setting)
            )
        else:
            parser.add_argument(flag, dest=flag, metavar=_metavar(setting), help=_help(setting))


def _metavar(setting: Setting) -> str:
    if setting.rule.choices:
        return "|".join(setting.rule.choices)
    return "DURATION" if setting.rule.kind == "float" else "ADDRESS"


def _help(setting: Setting) -> str:
    default = setting.default
    shown = ", ".join(default) if isinstance(default, tuple) else default
    unit = "s" if setting.path[-1].endswith("_seconds") else ""
    text = f"{setting.description.replace('`', '')} (default: {shown}{unit})"
    return text.replace("%", "%%")


def main(args: argparse.Namespace) -> int:
    """Run the agent until a signal ends it.

    Raises:
        ConfigError, UsageError: A setting is wrong, or it cannot listen.
    """
    given = {flag: vars(args)[flag] for flag in FLAGS if vars(args)[flag] is not None}
    config = load(args.config, given)
    log.configure()
    daemon = assembly.daemon(config)
    locks = AgentLocks(config.dirs, daemon.address)

    def is_over(_: Snapshot | None) -> bool:
        locks.take()
        return False

    try:
        locks.take()
        daemon.run(is_over)
    finally:
        locks.release()
    return 0
