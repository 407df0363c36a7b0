"""What must hold of a run whatever killed its processes, told from the journal and from the store itself."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Lines = Sequence[dict[str, Any]]
_SEEN = ("given", "context")


def faults(lines: Lines, expected: Lines, *, kills: int = 0) -> list[str]:
    """Return what is wrong with a run that has come to its end; `expected` is the journal of one that nobody killed.

    Both are the lines of one run: "claim", "effect", "ack" and "result" by its processes, which follow one another,
    and "end" by the test when one of them is gone (`killed` or not, and whether it `released` the run). `kills` is how
    many there may have been that the lines do not tell of.
    """
    return [*_Replay(expected, kills).wrong_in(lines), *_results(lines, expected)]


class _Replay:
    """Goes through a journal and notes what cannot be."""

    def __init__(self, expected: Lines, kills: int) -> None:
        self._right = {e["index"]: {name: e[name] for name in _SEEN} for e in expected if e["what"] == "effect"}
        self._wrong: list[str] = []
        self._done = 0  # steps that are saved for all that the journal can tell
        self._begun = -1  # the step that was begun last
        self._untold = kills
        self._kills = kills  # since the last acknowledgement
        self._dead: set[tuple[int, int]] = set()  # (step, process) of those killed since the last release or save
        self._last: dict[str, Any] = {}  # the last effect
        self._keys: dict[str, int] = {}  # idempotency keys, and the step that each belongs to

    def wrong_in(self, lines: Lines) -> list[str]:
        for line in lines:
            getattr(self, f"_{line['what']}", lambda line: None)(line)
        return self._wrong

    def _goes_on_at(self, index: int, what: str) -> None:
        """A process begins here: after what was acknowledged, or after a save that nobody lived to acknowledge."""
        if index == self._done + 1 and self._begun == self._done:
            self._done = index
        if index != self._done:
            self._wrong.append(f"{what} {index} where {self._done} steps are done")

    def _claim(self, line: dict[str, Any]) -> None:
        self._goes_on_at(line["index"], "a claim at")
        if line["crashes"] > self._kills:
            self._wrong.append(f"{line['crashes']} crashes were counted after {self._kills} kills")

    def _effect(self, line: dict[str, Any]) -> None:
        index, last = line["index"], self._last
        self._goes_on_at(index, "an effect of step")
        if last and (last["pid"], last["index"]) == (line["pid"], index):
            low = high = last["attempt"] + 1
        elif last and last["pid"] == line["pid"]:
            low = high = 1
        else:
            low, high = 1 + sum(step == index for step, _ in self._dead), 1 + self._kills
        if not low <= line["attempt"] <= high:
            self._wrong.append(f"attempt {line['attempt']} of step {index} should be {low} to {high}")
        for name in _SEEN:
            if line[name] != self._right[index][name]:
                self._wrong.append(f"step {index} has {name} {line[name]}, unkilled {self._right[index][name]}")
        if self._keys.setdefault(line["key"], index) != index or len(self._keys) != len(set(self._keys.values())):
            self._wrong.append(f"step {index} has the key {line['key']} among {self._keys}")
        self._begun, self._last = index, line

    def _ack(self, line: dict[str, Any]) -> None:
        if line["index"] != self._done or line["index"] != self._begun:
            self._wrong.append(f"step {line['index']} is acknowledged where {self._done} are done")
        self._done = line["index"] + 1
        self._kills, self._dead = self._untold, set()

    def _end(self, line: dict[str, Any]) -> None:
        self._kills += line["killed"]
        if line["released"]:
            self._dead = set()
        elif self._last and self._last["pid"] == line["child"] and self._begun == self._done:
            self._dead.add((self._begun, line["child"]))


def _results(lines: Lines, expected: Lines) -> list[str]:
    """Every process that came to the end has the output, the context and the history of the run that nobody killed."""
    results, (right,) = ([line for line in some if line["what"] == "result"] for some in (lines, expected))
    wrong = [
        f"{name} is {result[name]}, unkilled it is {right[name]}"
        for result in results
        for name in ("status", "output", "context", "history")
        if result[name] != right[name]
    ]
    return wrong if results else ["there is no result"]


def recovered(store: Path, to: Path) -> list[tuple[str, int, str]]:
    """Recover a copy of a store as it lies there, prove it whole, and return (run_id, index, status) of its runs."""
    to.mkdir(exist_ok=True)
    for end in ("", "-wal"):
        there, here = Path(f"{store}{end}"), Path(f"{to / store.name}{end}")
        here.unlink(missing_ok=True)
        if there.exists():
            shutil.copyfile(there, here)
    with contextlib.closing(sqlite3.connect(to / store.name)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'workflow_state'").fetchone():
            return []
        return connection.execute("SELECT run_id, current_step_index, status FROM workflow_state").fetchall()
