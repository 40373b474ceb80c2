"""What was: the paths /api/v1/history and /api/v1/deaths."""

from __future__ import annotations

import dataclasses
from http import HTTPStatus
from urllib.parse import parse_qsl

from dlmon.agent.api import encoded
from dlmon.agent.deaths import Deaths
from dlmon.agent.history import History
from dlmon.agent.routes import JSON, Request, Response

SUBJECT = ("run", "rank", "loader", "worker")
MOST_LISTED = 20


def history(past: History, request: Request) -> Response:
    """Answer with the last minutes of a rank, of one of its loaders, or of one of its workers.

    The query has `run` and `rank`, then `loader`, then `worker`, as in the labels. The answer has
    these and `points`, columns of equal length.
    """
    given, problem = _subject(request.query)
    if problem:
        return _error(HTTPStatus.BAD_REQUEST, problem)
    subject = (given["run"], given["rank"], given.get("loader", ""), given.get("worker", ""))
    points = past.points(subject)
    if points is None:
        known = [_named(one) for one in past.subjects()]
        more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
        listed = "; ".join(known[:MOST_LISTED]) or "none of anybody yet"
        message = f"no history of {_named(subject)}; there is {listed}{more}"
        return _error(HTTPStatus.NOT_FOUND, message)
    values = dict(zip(SUBJECT, subject, strict=True))
    return Response(HTTPStatus.OK, encoded({**values, "points": points}), JSON)


def deaths(past: Deaths, request: Request) -> Response:
    """Answer with the last words that are kept, the newest first; paths for trusted clients."""
    known = past.known()
    if not request.trusted:
        known = [dataclasses.replace(death, private={}) for death in known]
    return Response(HTTPStatus.OK, encoded({"deaths": known}), JSON)


def _subject(query: str) -> tuple[dict[str, str], str]:
    """Return what a query asks for, and what is wrong with it, "" if nothing."""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), errors="strict"
        )
    except (ValueError, UnicodeError):
        return {}, f"query {query!r} is not of the form run=…&rank=…&loader=…&worker=…"
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in SUBJECT:
            return {}, f"unknown parameter {name!r}; there are {', '.join(SUBJECT)}"
        if name in given:
            return {}, f"parameter {name!r} is given twice"
        given[name] = value
    for name in ("run", "rank"):
        if name not in given:
            return {}, f"parameter {name!r} is missing; run and rank are needed"
    if given.get("worker") and not given.get("loader"):
        return {}, "parameter 'worker' needs 'loader'"
    return given, ""


def _named(subject: tuple[str, ...]) -> str:
    return ", ".join(f"{n}={v}" for n, v in zip(SUBJECT, subject, strict=True) if v)


def _error(status: HTTPStatus, message: str) -> Response:
    return Response(status, encoded({"error": message}), JSON)
