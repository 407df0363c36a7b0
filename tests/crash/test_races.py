"""Several processes want one run: one of them has it, and nobody ever saves a step of it a second time."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash_actors import Actor
from tests.support.crash_forks import Forks, Journal, Switchboard
from tests.support.crash_pipeline import STEPS, digest, long_text

OUTPUT = {
    "lines": ["gathered 7", "weighed 21", "ranked 300", "reported"],
    "ranked": [300, digest(long_text(4))],
    "text": digest(long_text(4)),
    "tries": 1,
}


def lines_of(journal: Journal, what: str, run_id: str = "run") -> list[dict[str, Any]]:
    return [line for line in journal.read() if line["what"] == what and line["run"] == run_id]


def saves(store: Path, run_id: str = "run") -> list[tuple[int, str]]:
    """Return index and status of every save that lies in the store."""
    with contextlib.closing(sqlite3.connect(store)) as connection:
        found = connection.execute(
            "SELECT idx, l.status FROM flujo_log AS l JOIN flujo_run AS r ON l.seq >> 24 = r.key"
            " WHERE run_id = ? ORDER BY seq",
            (run_id,),
        )
        return found.fetchall()


ALL_SAVES = [(index, "running") for index in range(1, STEPS)] + [(STEPS, "completed")]


class Stage:
    """Actors on one store, with one journal."""

    def __init__(self, forks: Forks, board: Switchboard, folder: Path) -> None:
        self._forks, self._board = forks, board
        self.store, self.journal = folder / "runs.db", Journal(folder / "journal")
        self.actors: list[Actor] = []

    def actor(self, **options: Any) -> Actor:
        actor = Actor(self._forks, self._board, self.store, self.journal, **options)
        self.actors.append(actor)
        return actor

    def strangers(self, number: int, **options: Any) -> list[Actor]:
        """Actors that take one another for processes of other machines, whose leases are over."""
        return [self.actor(boot=f"machine {n}", **options) for n in range(number)]


@pytest.fixture
def stage(forks: Forks, board: Switchboard, tmp_path: Path) -> Stage:
    return Stage(forks, board, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["inline", "async"])
@pytest.mark.parametrize("step", range(STEPS))
def test_an_owner_wrongly_presumed_dead_is_refused(stage: Stage, step: int, how: str) -> None:
    """Each of three stalls in the same step beyond its lease and is robbed by the next; the last one's save counts.

    The two that wake up too late get FencedError, in either order, and write nothing.
    """
    first, second, third = stage.strangers(3)
    for actor in (first, second, third):
        actor.run("run", stall=step, how=how)
        actor.hear("stalled")
    late = [first, second] if how == "inline" else [second, first]
    late[0].go()
    assert late[0].answer()["error"] == "FencedError"
    third.go()
    assert third.answer() == {"status": "completed", "output": OUTPUT}
    late[1].go()
    assert late[1].answer()["error"] == "FencedError"
    assert saves(stage.store) == ALL_SAVES
    assert [line["index"] for line in lines_of(stage.journal, "ack")] == list(range(STEPS))
    first.run("run", how=how)
    assert first.answer() == {"status": "completed", "output": OUTPUT}


@pytest.mark.slow
def test_a_robbed_owner_may_rob_in_its_turn(stage: Stage) -> None:
    """Who got FencedError may run it again: it takes over from the thief, with what the thief has saved."""
    first, second = stage.strangers(2)
    first.run("run", stall=1)
    first.hear("stalled")
    second.run("run", stall=4)
    second.hear("stalled")
    first.go()
    assert first.answer()["error"] == "FencedError"
    first.run("run")
    assert first.answer() == {"status": "completed", "output": OUTPUT}
    second.go()
    assert second.answer()["error"] == "FencedError"
    assert saves(stage.store) == ALL_SAVES
    effects = collections.Counter(line["index"] for line in lines_of(stage.journal, "effect"))
    assert effects == {0: 1, 1: 2, 2: 2, 3: 1, 4: 2, 5: 1}  # step 2 fails once in whoever does it


@pytest.mark.slow
def test_a_robbed_owner_does_not_retry_with_the_input_of_another_step(stage: Stage) -> None:
    """Its attempt fails after the thief has saved: the retry would restore the input from what is saved now."""
    first, second = stage.strangers(2)
    first.run("run", stall=2)
    first.hear("stalled")
    second.run("run", stall=4)
    second.hear("stalled")
    first.go()
    assert first.answer()["error"] == "FencedError"
    second.go()
    assert second.answer() == {"status": "completed", "output": OUTPUT}
    effects = [line for line in lines_of(stage.journal, "effect") if line["index"] == 2]
    assert len({(line["given"], line["context"]) for line in effects}) == 1


@pytest.mark.slow
def test_without_the_fence_a_robbed_owner_would_save(stage: Stage) -> None:
    """The control: with the fence left out of the statement, the late save of a robbed owner goes through."""
    first, second = stage.strangers(2, unfenced="fence")
    for actor in (first, second):
        actor.run("run", stall=1)
        actor.hear("stalled")
    first.go()
    assert first.answer()["status"] == "completed"


@pytest.mark.slow
def test_three_processes_that_presume_one_another_dead(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """However they rob one another, each step of each run is saved once, and acknowledged to one of them."""
    journal, refused = race(forks, board, tmp_path, runs=12, strangers=True)
    assert refused > 0, "they never met"
    assert doubles(journal) == []
    for run_id in {line["run"] for line in journal.read()}:
        assert saves(tmp_path / "runs.db", run_id) == ALL_SAVES
        assert [line["output"] for line in lines_of(journal, "result", run_id)] == [OUTPUT] * 3


@pytest.mark.slow
def test_three_processes_of_one_machine(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """A live owner is never robbed, however long it stalls: each step runs once, and everybody gets the result."""
    journal, refused = race(forks, board, tmp_path, runs=12, strangers=False)
    assert refused == 0
    assert doubles(journal) == []
    for run_id in {line["run"] for line in journal.read()}:
        assert saves(tmp_path / "runs.db", run_id) == ALL_SAVES
        assert [line["index"] for line in lines_of(journal, "effect", run_id)] == [0, 1, 2, 2, 3, 4, 5]
        assert [line["output"] for line in lines_of(journal, "result", run_id)] == [OUTPUT] * 3


@pytest.mark.slow
def test_the_check_of_the_race_catches_double_saves(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """The control: without fence and rev in the statement, the same race saves steps twice."""
    journal, _ = race(forks, board, tmp_path, runs=12, strangers=True, unfenced="all")
    assert doubles(journal)


def race(
    forks: Forks, board: Switchboard, folder: Path, *, runs: int, strangers: bool, unfenced: str = ""
) -> tuple[Journal, int]:
    """Let three processes run the same runs, each in an order of its own; return their journal and the refusals."""
    journal = Journal(folder / "journal")
    names = [f"run {number}" for number in range(runs)]
    pids = [
        forks.fork(
            "crash_actors:race",
            store=str(folder / "runs.db"),
            journal=journal.path,
            wire=board.path,
            runs=random.Random(n // 2).sample(names, runs),  # two of them in the same order, so that they meet
            seed=n,
            boot=f"machine {n}" if strangers else None,
            unfenced=unfenced,
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
    return [step for step, times in acknowledged.items() if times > 1]


@pytest.mark.slow
def test_the_error_says_who_has_the_run(stage: Stage) -> None:
    """RunInProgressError names the process, the machine and the time, and says what to do."""
    owner, other = stage.actor(), stage.actor()
    owner.run("run", stall=2)
    owner.hear("stalled")
    other.run("run")
    answer = other.answer()
    assert answer["error"] == "RunInProgressError"
    assert answer["data"]["owner"] == f"process {owner.pid} on {socket.gethostname()}"
    assert answer["data"]["owner"] in answer["text"]
    assert answer["data"]["since"][:16] in answer["text"]
    assert "wait=True" in answer["text"]
    owner.go()
    assert owner.answer()["status"] == "completed"
    assert [line["pid"] for line in lines_of(stage.journal, "effect")] == [owner.pid] * 7


@pytest.mark.slow
def test_attached_to_a_run_one_gets_its_result(stage: Stage) -> None:
    """With wait=True the second process executes nothing and returns what the first one made."""
    owner, other = stage.actor(), stage.actor()
    owner.run("run", stall=2)
    owner.hear("stalled")
    other.run("run", wait=True)
    other.hear("attached")
    owner.go()
    assert owner.answer() == other.answer() == {"status": "completed", "output": OUTPUT}
    assert {line["pid"] for line in lines_of(stage.journal, "effect")} == {owner.pid}


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 3, 5])
def test_attached_to_a_run_one_takes_over_when_its_owner_is_killed(stage: Stage, forks: Forks, step: int) -> None:
    """The owner gets SIGKILL in a step: whoever is attached goes on with that step, as attempt 2, and finishes."""
    owner, other = stage.actor(), stage.actor()
    owner.run("run", stall=step)
    owner.hear("stalled")
    other.run("run", wait=True)
    other.hear("attached")
    assert forks.kill(owner.pid) == -signal.SIGKILL
    assert other.answer() == {"status": "completed", "output": OUTPUT}
    effects = [(line["pid"], line["index"], line["attempt"]) for line in lines_of(stage.journal, "effect")]
    assert (owner.pid, step, 1) in effects and (other.pid, step, 2) in effects
    assert saves(stage.store) == ALL_SAVES


@pytest.mark.slow
def test_of_many_attached_one_takes_over(stage: Stage, forks: Forks) -> None:
    """When the owner dies, one of those attached gets the run, and the others stay attached to that one."""
    owner, *others = (stage.actor() for _ in range(4))
    owner.run("run", stall=3)
    owner.hear("stalled")
    for other in others:
        other.run("run", wait=True)
        other.hear("attached")
    os.kill(owner.pid, signal.SIGSTOP)  # a stopped owner is alive: its kernel lock is held
    os.kill(owner.pid, signal.SIGCONT)
    forks.kill(owner.pid)
    assert [other.answer()["output"] for other in others] == [OUTPUT] * 3
    after = [line["pid"] for line in lines_of(stage.journal, "effect") if line["pid"] != owner.pid]
    assert len(set(after)) == 1 and len(after) == 3
