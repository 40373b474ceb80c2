"""Grafana dashboards, generated: `dashboards/*.json` come from here."""

from __future__ import annotations

from dlmon.errors import UsageError


def render() -> dict[str, str]:
    """Return the JSON of every dashboard by its path in the repository.

    Raises:
        UsageError: grafanalib, which only who generates dashboards needs, is not installed.
    """
    try:
        from dlmon.gen.dashboards import cluster, loader, node, run  # noqa: PLC0415  # they need grafanalib
    except ModuleNotFoundError as error:
        raise UsageError(
            f"dashboards are made with {error.name}, which is not installed;"
            " `pip install -e '.[dev]'` installs it"
        ) from error
    boards = {"cluster": cluster, "run": run, "loader": loader, "node": node}
    return {f"dashboards/dlmon-{name}.json": module.render() for name, module in boards.items()}
