"""What a store says of many runs at once: the code that they need, what they failed of; and of one, who has it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

MOST_FAILURES = 10_000  # failed runs that are looked at, the newest
_LONGEST = 2000  # characters of a message that count
_TYPE = re.compile(r"[^\W\d][\w.]*")
_VARIABLE = (
    re.compile(r"(?<!\w)(?:[A-Za-z]:)?[/\\][\w.~@%+/\\-]+"),  # a path, also the one of a URL
    re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"),
    re.compile(r"\b\w*\d\w*\b"),  # a number, a digest, an id with a digit in it
)
_JOINED = re.compile(r"#(?:[.,:+/-]*#)+")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has a run: a process, `since` when, and whether it is `alive` (else the next runner takes the run over)."""

    who: str
    since: datetime | None
    alive: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """The code that unfinished runs need: a pipeline and version, and what its structure was when they started.

    `fingerprint` is None for states that were saved by hand; `runs` is how many need it, `example` the run_id of one.
    """

    pipeline_id: str
    pipeline_name: str
    pipeline_version: str
    fingerprint: str | None
    runs: int
    example: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Runs that failed alike.

    `error` is the type, `message` the whole text of the newest, `runs` how many there are, `newest` when the last of
    them failed, and `example` its run_id.
    """

    error: str
    message: str
    runs: int
    newest: datetime
    example: str


def counted(runs: Iterable[tuple[tuple[str, str, str, str | None], str]]) -> list[Shape]:
    """Return the shapes, the most runs first, from (id, name, version and fingerprint; run_id) of each run."""
    counts: dict[tuple[str, str, str, str | None], int] = {}
    examples: dict[tuple[str, str, str, str | None], str] = {}
    for facts, run_id in runs:
        counts[facts] = counts.get(facts, 0) + 1
        examples[facts] = run_id
    shapes = [Shape(*facts, count, examples[facts]) for facts, count in counts.items()]
    return sorted(shapes, key=lambda shape: -shape.runs)


def alike(message: str) -> str:
    """Return the message with "#" for whatever tells one failure from another like it: numbers, ids, paths."""
    head, text = _parts(message[:_LONGEST])
    for pattern in _VARIABLE:
        text = pattern.sub("#", text)
    return f"{head}: {_JOINED.sub('#', text)}"


def grouped(failed: Iterable[tuple[str, str | None, datetime]], limit: int) -> list[Failure]:
    """Return what the runs failed of, the newest first, from (run_id, message, time), the newest first."""
    found: dict[str, Failure] = {}
    known: dict[str, str] = {}
    for run_id, said, moment in failed:
        message = said or ""
        if message not in known:
            known[message] = alike(message)
        group = found.get(known[message])
        if group is None:
            found[known[message]] = Failure(_parts(message)[0], message, 1, moment, run_id)
        else:
            found[known[message]] = replace(group, runs=group.runs + 1)
    return list(found.values())[:limit]


def _parts(message: str) -> tuple[str, str]:
    """Return the error's type, or "" where the message names none, and the text."""
    head, colon, text = message.partition(": ")
    if not colon and message.endswith(":"):
        head, text = message[:-1], ""
    return (head, text) if _TYPE.fullmatch(head) and (colon or head != message) else ("", message)
