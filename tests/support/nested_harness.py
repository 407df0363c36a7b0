"""Kills runs of described pipelines, lets other processes finish them, and says what went wrong."""

from __future__ import annotations

import collections
import contextlib
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from tests.support.crash_forks import Forks, Journal
from tests.support.nested_check import faults
from tests.support.nested_child import INPUT, Death
from tests.support.nested_interpreter import Expected, interpret
from tests.support.nested_pipelines import Sequence

ENDINGS = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
Lines = list[dict[str, Any]]
Drawn = tuple[str, int, int]  # what, how far on in percent, the signal


class Harness:
    """Runs descriptions with deaths; `killed` counts those that came about, by the kind of point."""

    def __init__(self, forks: Forks, folder: Path, kind: str = "sqlite", mode: str = "async") -> None:
        self.kind = kind
        self._forks, self._folder, self._options = forks, folder, {"kind": kind, "mode": mode}
        self.killed: collections.Counter[str] = collections.Counter()
        self.runs = 0
        self.within = 0  # deaths in the middle of a composite step

    def run(self, spec: Sequence, deaths: list[Drawn]) -> list[str]:
        """Run it until it has completed, through deaths drawn from what is left each time; say what is wrong."""
        expected = interpret(spec, INPUT)
        waiting = list(deaths)
        with self._journal() as (folder, journal):
            most = len(deaths) + expected.failures + 1
            for _ in range(most):
                death = self._placed(waiting.pop(0), expected, journal.read()) if waiting else None
                if self._process(folder, journal, spec, death):
                    return faults(journal.read(), expected)
            return [f"after {most} processes the run is not completed: {journal.read()[-3:]}"]

    def play(self, spec: Sequence, deaths: list[Death]) -> Lines:
        """Run it with exactly these deaths, one a process, and once more; return the journal, proven faultless."""
        with self._journal() as (folder, journal):
            for death in deaths:
                assert not self._process(folder, journal, spec, death), "it completed before it died"
            assert self._process(folder, journal, spec, None), journal.read()[-3:]
            lines = journal.read()
        assert faults(lines, interpret(spec, INPUT)) == []
        return lines

    def _placed(self, drawn: Drawn, expected: Expected, lines: Lines) -> Death:
        """Return at the how-manieth point of its kind a death comes, which was drawn in percent of what is left."""
        what, percent, number = drawn
        if self.kind == "stock" and what in ("save", "saved"):  # it has no such points
            what = "line"
        saved = sum(line["what"] == "ack" for line in lines)
        calls = sum(call.most for call in expected.calls.values())
        left = max(1, calls + len(expected.tops) - saved)
        return what, 1 + left * (3 if what == "line" else 1) * percent // 100, number

    @contextlib.contextmanager
    def _journal(self) -> Generator[tuple[Path, Journal], None, None]:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        journal = Journal(folder / "journal")
        self.runs += 1
        try:
            yield folder, journal
        finally:
            journal.close()
            shutil.rmtree(folder)

    def _process(self, folder: Path, journal: Journal, spec: Sequence, death: Death | None) -> bool:
        """Let one process have the run, and return whether it has completed it."""
        pid = self._forks.fork(
            "nested_child:attempt",
            store=str(folder / "store"), journal=journal.path, spec=spec, death=death, **self._options,
        )  # fmt: skip
        code, _ = self._forks.wait(pid)
        assert code in ENDINGS, f"a process ended with {code}:\n{self._forks.errors()}"
        lines = journal.read()
        completed = any(
            line["what"] == "result" and line["pid"] == pid and line["status"] == "completed" for line in lines
        )
        journal.write("over", completed=completed, code=code)
        if death is not None and code:
            self.killed[death[0]] += 1
            newest = next((line for line in reversed(lines) if line["what"] == "ack"), {"path": ()})
            self.within += len(newest["path"]) > 1
        return completed


def processes(lines: Lines) -> list[Lines]:
    """Return the lines of each process, in order."""
    found: list[Lines] = []
    for line in lines:
        if line["what"] == "process":
            found.append([])
        if line["what"] != "over" and found:
            found[-1].append(line)
    return found


def paths(lines: Lines, what: str) -> list[tuple[str, ...]]:
    """Return the paths of all lines of a kind."""
    return [tuple(line["path"]) for line in lines if line["what"] == what]
