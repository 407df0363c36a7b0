"""What holds of SQLite when processes die, race or are interrupted holds of a directory of files."""

from __future__ import annotations

import collections
import os
import random
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flujo import FlujoError
from tests.support.crash_actors import Actor
from tests.support.crash_check import faults
from tests.support.crash_forks import Forks, Journal, Switchboard, switchboard
from tests.support.crash_pipeline import STEPS, digest, long_text
from tests.support.file_crash import lying, saves

pytestmark = pytest.mark.slow
MODES = ("inline", "inline-stock", "async", "iterated-stock")
KILLS_A_RUN = 8
AT_ONCE_S = 5.0  # a whole process; nothing here waits for a lease
ALL_SAVES = [(index, "running") for index in range(1, STEPS)] + [(STEPS, "completed")]
RANKED = [300, digest(long_text(4))]
OUTPUT = {
    "lines": ["gathered 7", "weighed 21", "ranked 300", "reported"],
    "ranked": RANKED,
    "text": RANKED[1],
    "tries": 1,
}
WITHIN_A_SAVE = [
    "called", "lock before", "open before", "open after", "write before", "write within", "write after",
    "fsync file before", "fsync file after", "rename before", "rename after", "fsync directory before",
    "fsync directory after", "unlock after", "unacknowledged",
]  # fmt: skip
RELEASED = ("rename after", "fsync directory before", "fsync directory after", "unlock after")


@pytest.fixture
def board() -> Iterator[Switchboard]:
    with switchboard() as found:
        yield found


class Killer:
    """Kills runs of the six-step pipeline on files, in one mode, and checks each of them."""

    def __init__(self, forks: Forks, folder: Path, mode: str, **options: Any) -> None:
        self._forks, self._folder, self._options = forks, folder, {"mode": mode, **options}
        self._runs = 0
        self.killed: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.slowest = 0.0
        store, journal = self._new()
        forks.join(self._start(store, journal, trace=True))
        lines = journal.read()
        self.points = list(collections.Counter(line["name"] for line in lines if line["what"] == "point").items())
        self._expected = [line for line in lines if line["what"] != "point"]

    def _new(self) -> tuple[Path, Journal]:
        self._runs += 1
        return self._folder / f"{self._runs}", Journal(self._folder / f"{self._runs}.jsonl")

    def _start(self, store: Path, journal: Journal, **options: Any) -> int:
        given = {**self._options, **options, "store": str(store), "journal": journal.path, "run_id": "run"}
        return self._forks.fork("file_crash:attempt", **given)

    def everywhere(self, rng: random.Random, *, only: str = "", every: int = 1) -> None:
        """Kill at each point: each run at a few, which go forward, so that a run is resumed again and again."""
        points = [(name, rng.randint(1, (passes + 1) // 2)) for name, passes in self.points if only in name][::every]
        runs = -(-len(points) // KILLS_A_RUN)
        for first in range(runs):
            self.run(points[first::runs])

    def run(self, kills: list[tuple[str, int]], interrupt: int | None = None) -> None:
        """Kill a new run at one point after the other, and let the last process finish it."""
        store, journal = self._new()
        for kill in kills:
            released = interrupt is not None and kill[0].endswith(RELEASED)
            pid = self._start(store, journal, kill=kill, interrupt=interrupt)
            if self._ended(pid, journal, released=released) < 0:
                self.killed[kill[0]] += 1
                self._look(store, journal)
            elif _finished(journal):  # it did not pass the point this time
                self._finish(store, journal, kills)
                store, journal = self._new()
        self._finish(store, journal, kills)

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
        """What lies there after the kill: whole files, and every step that was known to be saved."""
        known = {"ack": 1, "effect": 0, "claim": 0}  # who begins a step has seen those before it
        saved = max(
            (line["index"] + known[line["what"]] for line in journal.read() if line["what"] in known), default=0
        )
        try:
            found = lying(store)
        except FlujoError as error:
            self.faults.append(str(error))
            return
        (_, index, status) = found[0] if found else ("", 0, "running")
        right = "completed" if index == STEPS else "running"
        if len(found) > 1 or index not in (saved, saved + 1) or status != right:
            self.faults.append(f"{saved} steps are known to be saved, the store has {found}")

    def _finish(self, store: Path, journal: Journal, how: object) -> None:
        """Let a last process finish the run, and look at all that happened and at all that is left."""
        if not _finished(journal):
            code, _ = self._forks.wait(self._start(store, journal))
            if code:
                self.faults.append(f"{how}: the last process ended with {code}")
                return
        self.faults += [f"{how}: {fault}" for fault in faults(journal.read(), self._expected)]
        if lying(store) != [("run", STEPS, "completed")]:
            self.faults.append(f"{how}: the store has {lying(store)}")
        if {path.name for path in store.iterdir()} != {"run.json", ".flujo-locks"}:
            self.faults.append(f"{how}: there lie {sorted(store.iterdir())}")
        journal.close()


def _finished(journal: Journal) -> bool:
    return any(line["what"] == "result" for line in journal.read())


@pytest.mark.parametrize("mode", ["inline", "async"])
def test_a_process_may_die_anywhere(forks: Forks, tmp_path: Path, mode: str) -> None:
    """Before, in and after each step, and at every system call of its save and of its claim: the next process goes on
    at once, the run ends as if nothing had happened, and the dead leave nothing lying about."""
    killer = Killer(forks, tmp_path, mode)
    killer.everywhere(random.Random(20260131))
    assert killer.faults == []
    assert killer.slowest < AT_ONCE_S
    print(f"{mode}: {killer.killed.total()} kills at {len(killer.killed)} points, slowest {killer.slowest:.2f} s")
    assert len(killer.killed) >= 120
    for index in range(STEPS):
        assert all(killer.killed[f"step@{index} {place}"] for place in ("before", "inside", "end"))
        for place in WITHIN_A_SAVE:
            assert killer.killed[f"save@{index} {place}"], place


@pytest.mark.parametrize("mode", ["inline-stock", "iterated-stock"])
def test_a_process_may_die_anywhere_without_a_subclass(forks: Forks, tmp_path: Path, mode: str) -> None:
    """As above with FileBackend itself, where an event or the iteration tells that a step is saved."""
    killer = Killer(forks, tmp_path, mode)
    killer.everywhere(random.Random(20260201), every=4)
    assert killer.faults == []
    assert len(killer.killed) >= 30


def test_a_process_may_die_while_it_gives_a_run_back(forks: Forks, tmp_path: Path) -> None:
    """A step is interrupted, and its process is killed at each system call of the release."""
    killer = Killer(forks, tmp_path, "async")
    for index in (0, 3):
        for place in WITHIN_A_SAVE[1:-1]:
            killer.run([(f"release@{index} {place}", 1)], interrupt=index)
    assert killer.faults == []
    assert len(killer.killed) == 2 * len(WITHIN_A_SAVE[1:-1]), sorted(killer.killed)


def test_the_checker_catches_a_store_that_acknowledges_too_early(forks: Forks, tmp_path: Path) -> None:
    """The control: where the acknowledgement comes before the save, a kill between the two is found out."""
    killer = Killer(forks, tmp_path, "async", hasty=True)
    killer.everywhere(random.Random(1), only="save@", every=4)
    assert any("an effect of step" in fault for fault in killer.faults)


def test_the_checker_catches_a_store_that_writes_in_place(forks: Forks, tmp_path: Path) -> None:
    """The control: without the temporary file, a kill within a write leaves a torn file."""
    killer = Killer(forks, tmp_path, "async", careless=True)
    for point in killer.points:
        if point[0].endswith("write within"):
            killer.run([point])
    assert any("is damaged" in fault for fault in killer.faults)


def test_a_process_may_be_killed_from_outside(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """SIGKILL from another process, at no point in particular."""
    rng = random.Random(6)
    kills = 0
    for mode in MODES:
        (tmp_path / mode).mkdir()
        killer = Killer(forks, tmp_path / mode, mode)
        killer.from_outside(board, rng)
        kills += killer.killed["outside"]
        assert killer.faults == []
        assert killer.slowest < AT_ONCE_S
    assert kills >= 12


def test_a_fleet_on_one_directory_loses_members_at_random(forks: Forks, tmp_path: Path) -> None:
    """Three processes work on the same runs, attached to one another's; each that is killed is replaced."""
    rng = random.Random(9)
    store, journal, alone = tmp_path / "fleet", Journal(tmp_path / "fleet.jsonl"), tmp_path / "alone.jsonl"
    forks.join(
        forks.fork("file_crash:attempt", store=str(tmp_path / "a"), journal=str(alone), run_id="alone", mode="async")
    )
    names = [f"run {number}" for number in range(30)]

    def member() -> int:
        mine = rng.sample(names, len(names))
        return forks.fork("file_crash:fleet", store=str(store), journal=journal.path, runs=mine)

    pids = [member() for _ in range(3)]
    for _ in range(12):
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
    assert sorted(lying(store)) == sorted((name, STEPS, "completed") for name in names)
    assert several >= 1  # else the kills have hit nothing


# --- races --------------------------------------------------------------------------------------------------


class FileActor(Actor):
    """An actor on files."""

    def __init__(self, forks: Forks, board: Switchboard, store: Any, journal: Journal, **options: Any) -> None:
        self.pid = forks.fork("file_crash:act", store=str(store), journal=journal.path, wire=board.path, **options)
        self._wire = board.answer()
        self._forks = forks


class Stage:
    """Actors on one directory, with one journal."""

    def __init__(self, forks: Forks, board: Switchboard, folder: Path) -> None:
        self._forks, self._board = forks, board
        self.store, self.journal = folder / "runs", Journal(folder / "journal")

    def actor(self, **options: Any) -> FileActor:
        return FileActor(self._forks, self._board, self.store, self.journal, **options)

    def strangers(self, number: int, **options: Any) -> list[FileActor]:
        """Actors that take one another for dead: as if the machine had been switched off in between."""
        return [self.actor(boot=f"machine {n}", **options) for n in range(number)]

    def lines(self, what: str) -> list[dict[str, Any]]:
        return [line for line in self.journal.read() if line["what"] == what]


@pytest.fixture
def stage(forks: Forks, board: Switchboard, tmp_path: Path) -> Stage:
    return Stage(forks, board, tmp_path)


@pytest.mark.parametrize("how", ["inline", "async"])
@pytest.mark.parametrize("at", [0, 2, STEPS - 1])
def test_an_owner_wrongly_presumed_dead_is_refused(stage: Stage, at: int, how: str) -> None:
    """Each of three stalls in the same step and is robbed by the next; the last one's save counts, the others get
    FencedError and write nothing."""
    first, second, third = stage.strangers(3)
    for actor in (first, second, third):
        actor.run("run", stall=at, how=how)
        actor.hear("stalled")
    first.go()
    assert first.answer()["error"] == "FencedError"
    third.go()
    assert third.answer() == {"status": "completed", "output": OUTPUT}
    second.go()
    assert second.answer()["error"] == "FencedError"
    assert saves(stage.store) == ALL_SAVES
    assert [line["index"] for line in stage.lines("ack")] == list(range(STEPS))
    first.run("run", how=how)
    assert first.answer() == {"status": "completed", "output": OUTPUT}


def test_without_the_fence_a_robbed_owner_would_save(stage: Stage) -> None:
    """The control: with the fence left out, the late save of a robbed owner goes through."""
    first, second = stage.strangers(2, unfenced="fence")
    for actor in (first, second):
        actor.run("run", stall=1)
        actor.hear("stalled")
    first.go()
    assert first.answer()["status"] == "completed"


@pytest.mark.parametrize("at", [0, 3, 5])
def test_attached_to_a_run_one_takes_over_when_its_owner_is_killed(stage: Stage, forks: Forks, at: int) -> None:
    """The owner is named to whoever asks, is never robbed while it lives, and is replaced as soon as it is dead."""
    owner, other, third = stage.actor(), stage.actor(), stage.actor()
    owner.run("run", stall=at)
    owner.hear("stalled")
    third.run("run")
    refused = third.answer()
    assert refused["error"] == "RunInProgressError" and f"process {owner.pid} on " in refused["text"]
    other.run("run", wait=True)
    other.hear("attached")
    assert forks.kill(owner.pid) == -signal.SIGKILL
    assert other.answer() == {"status": "completed", "output": OUTPUT}
    effects = [(line["pid"], line["index"], line["attempt"]) for line in stage.lines("effect")]
    assert (owner.pid, at, 1) in effects and (other.pid, at, 2) in effects
    assert saves(stage.store) == ALL_SAVES


def test_a_lock_file_that_was_put_back_to_an_older_state(stage: Stage) -> None:
    """The number of a live owner is given to nobody else, so neither takes the other for itself or for dead."""
    first, second = stage.actor(), stage.actor()
    first.run("run", stall=2)
    first.hear("stalled")
    (stage.store / ".flujo-locks").write_bytes(b"%020d" % 0)
    second.run("other")
    assert second.answer()["status"] == "completed"
    second.run("run")
    assert second.answer()["error"] == "RunInProgressError"
    first.go()
    assert first.answer() == {"status": "completed", "output": OUTPUT}


@pytest.mark.parametrize("strangers", [True, False], ids=["presumed dead", "known to live"])
def test_three_processes_race_for_the_same_runs(
    forks: Forks, board: Switchboard, tmp_path: Path, strangers: bool
) -> None:
    """However they rob one another, each step of each run is saved once, and acknowledged to one of them; where they
    know that the others live, each step runs once."""
    journal, refused = race(forks, board, tmp_path, strangers=strangers)
    assert (refused > 0) == strangers
    assert doubles(journal) == []
    for run_id in {line["run"] for line in journal.read()}:
        assert saves(tmp_path / "runs", run_id) == ALL_SAVES
        told = [line for line in journal.read() if line["run"] == run_id]
        assert [line["output"] for line in told if line["what"] == "result"] == [OUTPUT] * 3
        if not strangers:
            assert [line["index"] for line in told if line["what"] == "effect"] == [0, 1, 2, 2, 3, 4, 5]


def test_the_check_of_the_race_catches_double_saves(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """The control: without fence and rev, the same race saves steps twice."""
    journal, _ = race(forks, board, tmp_path, strangers=True, unfenced="all")
    assert doubles(journal)


def race(forks: Forks, board: Switchboard, folder: Path, *, strangers: bool, **options: Any) -> tuple[Journal, int]:
    """Let three processes run the same runs, each in an order of its own; return their journal and the refusals."""
    journal = Journal(folder / "journal")
    names = [f"run-{chr(97 + number)}" for number in range(10)]
    pids = [
        forks.fork(
            "file_crash:race",
            store=str(folder / "runs"),
            journal=journal.path,
            wire=board.path,
            runs=random.Random(n // 2).sample(names, len(names)),  # two of them in the same order, so that they meet
            seed=n,
            boot=f"machine {n}" if strangers else None,
            **options,
        )
        for n in range(3)
    ]
    wires = [board.answer() for _ in pids]
    for wire in wires:
        assert wire.hear() == "ready"
    for wire in wires:
        wire.say("go")
    forks.join(*pids)
    return journal, sum(line["what"] == "fenced" for line in journal.read())


def doubles(journal: Journal) -> list[tuple[str, int]]:
    """Return the steps whose save was acknowledged more than once."""
    acknowledged = collections.Counter((line["run"], line["index"]) for line in journal.read() if line["what"] == "ack")
    return [done for done, times in acknowledged.items() if times > 1]
