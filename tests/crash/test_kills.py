"""A process is killed anywhere: the next one goes on at once, and nothing that was acknowledged is done again."""

from __future__ import annotations

import collections
import os
import random
import select
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash_check import faults, recovered
from tests.support.crash_forks import Forks, Journal, Switchboard
from tests.support.crash_pipeline import MODES, STEPS

KILLS_A_RUN = 8
AT_ONCE_S = 5.0  # a whole process, its start and its end included; a lease is 30 s
Point = tuple[str, int]


class Killer:
    """Kills runs of the six-step pipeline in one mode, and checks each of them."""

    def __init__(self, forks: Forks, folder: Path, mode: str, *, hasty: bool = False) -> None:
        self._forks, self._folder, self._options = forks, folder, {"mode": mode, "hasty": hasty}
        self._runs = 0
        self.killed: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.slowest = 0.0
        unkilled, self.points = self._trace()
        self._expected = unkilled

    def _trace(self) -> tuple[list[dict[str, Any]], list[Point]]:
        """Run it whole: what it does then, and the points that it passes, in order, each with its number of passes."""
        store, journal = self._new()
        self._forks.join(self._start(store, journal, trace=True))
        lines = journal.read()
        passes = collections.Counter(line["name"] for line in lines if line["what"] == "point")
        return [line for line in lines if line["what"] != "point"], list(passes.items())

    def _new(self) -> tuple[Path, Journal]:
        self._runs += 1
        return self._folder / f"{self._runs}.db", Journal(self._folder / f"{self._runs}.jsonl")

    def _start(self, store: Path, journal: Journal, **options: Any) -> int:
        return self._forks.fork(
            "crash_pipeline:attempt",
            store=str(store),
            journal=journal.path,
            run_id="run",
            **{**self._options, **options},
        )

    def run(self, kills: list[Point]) -> None:
        """Kill a new run at one point after the other, and let the last process finish it."""
        store, journal = self._new()
        for name, times in kills:
            interrupt = int(name[8:].split()[0]) if name.startswith("release@") else None
            pid = self._start(store, journal, kill=(name, times), interrupt=interrupt)
            if self._ended(pid, journal, released=name.endswith(" commit after") and interrupt is not None) < 0:
                self.killed[name] += 1
                self._look(store, journal)
            elif _finished(journal):  # it did not pass the point this time
                self._finish(store, journal, kills)
                store, journal = self._new()
        self._finish(store, journal, kills)

    def _finish(self, store: Path, journal: Journal, how: object) -> None:
        """Let a last process finish the run, where it is not finished, and look at all that happened."""
        if not _finished(journal):
            self._ended(self._start(store, journal), journal)
        self.faults += [f"{how}: {fault}" for fault in faults(journal.read(), self._expected)]
        found = recovered(store, self._folder / "copy")
        if found != [("run", STEPS, "completed")]:
            self.faults.append(f"{how}: the store has {found}")
        journal.close()

    def from_outside(self, board: Switchboard, rng: random.Random) -> None:
        """Kill a new run from here a few times, each after a number of points and up to 4 ms."""
        store, journal = self._new()
        for _ in range(KILLS_A_RUN):
            pid = self._start(store, journal, wire=board.path)
            wire = board.answer()
            for _ in range(rng.randrange(40)):
                wire.hear()
            select.select([], [], [], rng.random() / 250)
            os.kill(pid, signal.SIGKILL)
            if self._ended(pid, journal) < 0:
                self.killed["outside"] += 1
                self._look(store, journal)
        self._finish(store, journal, "from outside")

    def _ended(self, pid: int, journal: Journal, *, released: bool = False) -> int:
        code, seconds = self._forks.wait(pid)
        assert code in (0, -signal.SIGKILL), self._forks.errors()
        self.slowest = max(self.slowest, seconds)
        journal.write("end", child=pid, killed=code != 0, released=released or code == 0)
        return code

    def _look(self, store: Path, journal: Journal) -> None:
        """What a third program would find after the kill: a whole file, and every step that was known to be saved."""
        known = {"ack": 1, "effect": 0, "claim": 0}  # who begins a step has seen those before it
        saved = max(
            (line["index"] + known[line["what"]] for line in journal.read() if line["what"] in known), default=0
        )
        found = recovered(store, self._folder / "copy") if store.exists() else []
        (_, index, status) = found[0] if found else ("", 0, "running")
        right = "completed" if index == STEPS else "running"
        if len(found) > 1 or index not in (saved, saved + 1) or status != right:
            self.faults.append(f"{saved} steps are known to be saved, the store has {found}")


def _finished(journal: Journal) -> bool:
    return any(line["what"] == "result" for line in journal.read())


def plans(points: list[Point], rng: random.Random) -> list[list[Point]]:
    """Deal the points out to runs, so that each is the place of one kill and a run's kills go forward.

    A resumed process may pass a point less often than a new one, so the pass is one of the first half.
    """
    runs = -(-len(points) // KILLS_A_RUN)
    return [
        [(name, rng.randint(1, (passes + 1) // 2)) for name, passes in points[first::runs]] for first in range(runs)
    ]


def with_releases(points: list[Point]) -> list[Point]:
    """Add the points of a release: the step is interrupted, and its process killed while it gives the run back."""
    parts = ("begin immediate before", "begin immediate after", "update flujo_run before", "update flujo_run within",
             "update flujo_run after", "commit before", "commit after")  # fmt: skip
    found = list(points)
    for index in range(STEPS):
        place = next(i for i, (name, _) in enumerate(found) if name == f"step@{index} end")
        found[place:place] = [(f"release@{index} {part}", 1) for part in parts]
    return found


def killed_everywhere(forks: Forks, folder: Path, mode: str, seed: int) -> collections.Counter[str]:
    """Kill a process at each point of a run, and say how often at which."""
    killer = Killer(forks, folder, mode)
    for kills in plans(with_releases(killer.points), random.Random(seed)):
        killer.run(kills)
    assert killer.faults == []
    assert killer.slowest < AT_ONCE_S
    print(f"{mode}: {killer.killed.total()} kills at {len(killer.killed)} points, slowest {killer.slowest:.2f} s")
    return killer.killed


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_process_may_die_anywhere(forks: Forks, tmp_path: Path, mode: str) -> None:
    """Before, in and after each step, in its save, in claims, in opening, in releases; on the event loop's thread and
    on the store's: the next process goes on at once, and the run ends as if nothing had happened.

    Each of the four modes has at least 150 kills at as many points: 600 kills in all.
    """
    killed = killed_everywhere(forks, tmp_path, mode, seed=20260131)
    assert killed.total() >= 150
    assert len(killed) >= 150
    assert any("insert flujo_snapshot" in name for name in killed)
    for index in range(STEPS):
        for place in ("before", "inside", "end"):
            assert killed[f"step@{index} {place}"]
        for place in ("insert flujo_log before", "insert flujo_log within", "insert flujo_log after", "unacknowledged"):
            assert killed[f"save@{index} {place}"]
        assert killed[f"step@{index} acknowledged"] and killed[f"release@{index} update flujo_run after"]


@pytest.mark.torture
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(10))
def test_a_process_may_die_anywhere_again(forks: Forks, tmp_path: Path, mode: str, seed: int) -> None:
    """As above, at other passes of the points: over 6,000 kills."""
    killed_everywhere(forks, tmp_path, mode, seed)


@pytest.mark.slow
def test_the_checker_catches_a_store_that_acknowledges_too_early(forks: Forks, tmp_path: Path) -> None:
    """The control: where the acknowledgement comes before the commit, a kill between the two is found out."""
    killer = Killer(forks, tmp_path, "async", hasty=True)
    early = [point for point in killer.points if "unacknowledged" not in point[0] and point[0].startswith("save@")]
    for point in early[::4]:
        killer.run([point])
    assert any("an effect of step" in fault for fault in killer.faults)
    assert any("the store has" in fault for fault in killer.faults)


def from_outside(forks: Forks, board: Switchboard, folder: Path, rounds: int, seed: int) -> int:
    """Kill runs of every mode from here, and return how often."""
    rng = random.Random(seed)
    kills = 0
    for number, mode in enumerate(MODES * rounds):
        (folder / f"{number}").mkdir()
        killer = Killer(forks, folder / f"{number}", mode)
        killer.from_outside(board, rng)
        kills += killer.killed["outside"]
        assert killer.faults == []
        assert killer.slowest < AT_ONCE_S
    return kills


@pytest.mark.slow
def test_a_process_may_be_killed_from_outside(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """SIGKILL from another process, at no point in particular."""
    assert from_outside(forks, board, tmp_path, rounds=3, seed=4) >= 36


@pytest.mark.torture
def test_a_process_may_be_killed_from_outside_again(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """As above, over 1,000 times."""
    assert from_outside(forks, board, tmp_path, rounds=60, seed=5) >= 1000


def fleet(forks: Forks, folder: Path, runs: int, kills: int, seed: int) -> int:
    """Let three processes bring runs to their end, kill one again and again, and start another in its place.

    Returns how many runs needed more than one process.
    """
    rng = random.Random(seed)
    store, journal, alone = folder / "fleet.db", Journal(folder / "fleet.jsonl"), folder / "alone.jsonl"
    forks.join(
        forks.fork(
            "crash_pipeline:attempt", store=str(folder / "alone.db"), journal=str(alone), run_id="alone", mode="async"
        )
    )
    names = [f"run {number}" for number in range(runs)]

    def member() -> int:
        mine = rng.sample(names, runs)
        return forks.fork("crash_pipeline:fleet", store=str(store), journal=journal.path, runs=mine)

    pids = [member() for _ in range(3)]
    for _ in range(kills):
        select.select([], [], [], rng.random() / 15)
        forks.kill(pids.pop(0))
        pids.append(member())
    forks.join(*pids)
    lines, expected = journal.read(), Journal(alone).read()
    several = 0
    for name in names:
        told = [line for line in lines if line["run"] == name]
        assert faults(told, expected, kills=1000) == []
        several += len({line["pid"] for line in told if line["what"] == "effect"}) > 1
    assert sorted(recovered(store, folder / "copy")) == sorted((name, STEPS, "completed") for name in names)
    return several


@pytest.mark.slow
def test_a_fleet_on_one_file_loses_members_at_random(forks: Forks, tmp_path: Path) -> None:
    """Three processes work on the same runs, attached to one another's; each that is killed is replaced.

    Whoever is attached takes over at once, and recovers the file that the dead one left while others use it.
    """
    assert fleet(forks, tmp_path, runs=60, kills=24, seed=9) >= 3  # else the kills have hit nothing


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(20))
def test_a_fleet_on_one_file_loses_members_at_random_again(forks: Forks, tmp_path: Path, seed: int) -> None:
    """As above, with more of everything."""
    assert fleet(forks, tmp_path, runs=400, kills=150, seed=seed) >= 20
