"""Kills the processes that start, answer and finish a run, and looks at what came of it."""

from __future__ import annotations

import collections
import random
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.answered_check import Lines, faults
from tests.support.answered_child import ACTIONS, RUN, Kill, is_whole
from tests.support.answered_expected import WITHOUT_KILLS
from tests.support.crash_forks import Forks, Journal
from tests.support.file_crash import lying

MOST = 12  # processes that one action may take


class Points:
    """The points of a run that nobody kills, in their order, each with its number of passes."""

    def __init__(self, lines: Lines) -> None:
        passes = collections.Counter(line["name"] for line in lines if line["what"] == "point")
        self.passes = dict(passes)
        self.left: dict[int, list[str]] = {action: [] for action in range(len(ACTIONS) - 1)}  # the last one looks
        for name in passes:
            if int(name.split()[0]) in self.left:
                self.left[int(name.split()[0])].append(name)
        self.number = sum(map(len, self.left.values()))

    def draw(self, action: int, rng: random.Random) -> Kill | None:
        """Take one out, of a kind (claim, post, save, step) that is drawn first."""
        by_kind: dict[str, list[str]] = {}
        for name in self.left[action]:
            by_kind.setdefault(name.split()[1], []).append(name)
        if not by_kind:
            return None
        name = rng.choice(by_kind[rng.choice(sorted(by_kind))])
        self.left[action].remove(name)
        return name, rng.randint(1, (self.passes[name] + 1) // 2)

    def deal(self, rng: random.Random, most: int) -> list[list[Kill]]:
        """Take out the kills of one run: up to `most` an action, in the order of their points."""
        places = {name: place for place, name in enumerate(self.passes)}
        found = []
        for action in self.left:
            drawn = [self.draw(action, rng) for _ in range(rng.randint(1, most))]
            found.append(sorted((kill for kill in drawn if kill is not None), key=lambda kill: places[kill[0]]))
        return found


class Answering:
    """Runs of one kind. `killed` counts deaths by their points; `faults` is what was wrong."""

    def __init__(
        self, forks: Forks, folder: Path, kind: str = "sqlite", mode: str = "async", variant: str = ""
    ) -> None:
        self._forks, self._folder = forks, folder
        self._options = {"kind": kind, "mode": mode, "variant": variant}
        self.killed: collections.Counter[str] = collections.Counter()
        self.missed: list[Kill] = []  # points that no process passed
        self.faults: list[str] = []

    def trace(self) -> Points:
        """Do it once without a kill, and return the points that were passed."""
        lines = self._play([], tell=True)
        assert faults(lines, WITHOUT_KILLS) == []
        return Points(lines)

    def play(self, kills: Sequence[Sequence[Kill]]) -> Lines:
        """Do all actions in their order, each of them again after each of its kills; check and return the journal."""
        lines = self._play(kills)
        self.faults += [f"{kills}: {fault}" for fault in faults(lines, WITHOUT_KILLS)]
        return lines

    def _play(self, kills: Sequence[Sequence[Kill]], *, tell: bool = False) -> Lines:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        journal = Journal(folder / "journal")
        try:
            for action in range(len(ACTIONS)):
                self._do(folder, journal, action, list(kills[action]) if action < len(kills) else [], tell)
            self._look(folder)
            return journal.read()
        finally:
            journal.close()
            shutil.rmtree(folder)

    def _do(self, folder: Path, journal: Journal, action: int, kills: list[Kill], tell: bool) -> None:
        for _ in range(MOST):
            kill = kills.pop(0) if kills else None
            pid = self._forks.fork(
                "answered_child:act", store=str(folder / "store"), journal=journal.path, action=action, kill=kill,
                tell=tell, **self._options,
            )  # fmt: skip
            code, _ = self._forks.wait(pid)
            if code == 0:
                self.missed += [found for found in (kill, *kills) if found is not None]
                return
            if kill is None or code != -signal.SIGKILL:
                self.faults.append(f"action {action} ended with {code}: {self._forks.errors()[-2000:]}")
                return
            journal.write("killed", child=pid, action=action)
            self.killed[kill[0]] += 1
        raise AssertionError(f"action {action} does not come to its end")

    def _look(self, folder: Path) -> None:
        """What lies there is whole."""
        store = folder / "store"
        if store.is_dir():
            found = [(run_id, status) for run_id, _, status in lying(store)]
            if found != [(RUN, "completed")]:
                self.faults.append(f"the directory has {found}")
        elif not is_whole(store):
            self.faults.append("the file is damaged")
