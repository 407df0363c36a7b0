"""Many processes, threads, forks and other programs on one file: runs wait for one another, and none is lost."""

from __future__ import annotations

import contextlib
import select
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash_actors import Actor
from tests.support.crash_forks import Forks, Journal, Switchboard, Wire
from tests.support.crash_pipeline import STEPS

HELD_S = 1.5  # how long another program holds the file locked
ALL = [0, 1, 2, 3]


def query(store: Path, sql: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute(sql).fetchall()


def indexes(journal: Journal, what: str) -> dict[str, list[int]]:
    """Return the steps of each run that the journal tells of, in order."""
    found: dict[str, list[int]] = {}
    for line in journal.read():
        if line["what"] == what:
            found.setdefault(line["run"], []).append(line["index"])
    return found


def all_completed(store: Path, journal: Journal, names: list[str]) -> None:
    """Each run was done once and is in the store as it was acknowledged."""
    assert indexes(journal, "effect") == indexes(journal, "ack") == dict.fromkeys(names, ALL)
    found = query(store, "SELECT run_id, current_step_index, status FROM workflow_state")
    assert sorted(found) == sorted((name, 4, "completed") for name in names)


def same_runs(journal: Journal, store: Path) -> None:
    """Every acknowledged save is in the store, and no step of a run was done twice."""
    acknowledged = indexes(journal, "ack")
    assert all(found == ALL for found in acknowledged.values())
    assert indexes(journal, "effect").keys() == acknowledged.keys()
    all_completed(store, journal, list(acknowledged))


@pytest.mark.slow
def test_eight_processes_open_a_new_file_at_the_same_moment(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """The schema is made once, every run of every process completes, and a run that all want is done by one."""
    store, journal = tmp_path / "new.db", Journal(tmp_path / "journal")
    own = [[f"run {process}.{n}" for n in range(6)] for process in range(8)]
    shared = ["shared 1", "shared 2", "shared 3"]
    pids = [
        forks.fork(
            "crash_processes:crowd",
            store=str(store),
            journal=journal.path,
            wire=board.path,
            names=names,
            shared=shared,
        )
        for names in own
    ]
    wires = [board.answer() for _ in pids]
    for wire in wires:
        assert wire.hear() == "ready"
    for wire in wires:
        wire.say("go")
    forks.join(*pids)
    # What all of them want is in no certain order among the processes, but in each of the runs.
    all_completed(store, journal, [name for names in own for name in names] + shared)


class Locker:
    """The test's end of another program, which can hold the file locked."""

    def __init__(self, forks: Forks, board: Switchboard, store: Path, statement: str) -> None:
        self.pid = forks.fork("crash_processes:locker", store=str(store), wire=board.path, statement=statement)
        self._wire = board.answer()

    def lock(self) -> None:
        self._wire.say("lock")
        assert self._wire.hear() == "locked"

    def free(self) -> None:
        self._wire.say("free")
        assert self._wire.hear() == "free"


def hold(locker: Locker, forks: Forks, actors: list[Actor], seconds: float) -> None:
    """See that nobody gets anywhere while the file is locked."""
    ready, _, _ = select.select([actor.socket for actor in actors], [], [], seconds)
    assert not ready, forks.errors()
    locker.free()


def runs_wait(forks: Forks, board: Switchboard, folder: Path, statement: str, seconds: float) -> None:
    store, journal = folder / "runs.db", Journal(folder / "journal")
    actors = [Actor(forks, board, store, journal) for _ in range(4)]
    locker = Locker(forks, board, store, statement)
    for number, actor in enumerate(actors[:3]):
        actor.run(f"run {number}", stall=3, how="async" if number else "inline")
        actor.hear("stalled")
    locker.lock()
    for actor in actors[:3]:
        actor.go()
    actors[3].run("run 3")  # a new run, of a process that opens the file only now
    hold(locker, forks, actors, seconds)
    for actor in actors:
        assert actor.answer()["status"] == "completed"
    done_once(journal, store, 4)


def done_once(journal: Journal, store: Path, runs: int) -> None:
    assert indexes(journal, "effect") == {f"run {n}": [0, 1, 2, 2, 3, 4, 5] for n in range(runs)}
    assert indexes(journal, "ack") == {f"run {n}": list(range(STEPS)) for n in range(runs)}
    found = query(store, "SELECT run_id, current_step_index, status FROM workflow_state")
    assert sorted(found) == [(f"run {n}", STEPS, "completed") for n in range(runs)]


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_runs_wait_for_another_program(forks: Forks, board: Switchboard, tmp_path: Path, statement: str) -> None:
    """While it holds the file locked nothing is saved and nothing begins; then all go on, and no step runs again."""
    runs_wait(forks, board, tmp_path, statement, HELD_S)


@pytest.mark.torture
def test_runs_wait_ten_seconds_for_another_program(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """As above, for ten seconds."""
    runs_wait(forks, board, tmp_path, "BEGIN EXCLUSIVE", 10.0)


@pytest.mark.slow
def test_a_new_file_that_another_program_holds_locked(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """The first process to open the store finds the file locked, in SQLite's rollback mode: it waits and makes it."""
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    locker = Locker(forks, board, store, "BEGIN EXCLUSIVE")
    locker.lock()
    actors = [Actor(forks, board, store, journal) for _ in range(3)]
    for number, actor in enumerate(actors):
        actor.run(f"run {number}")
    hold(locker, forks, actors, HELD_S)
    for actor in actors:
        assert actor.answer()["status"] == "completed"
    done_once(journal, store, 3)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["inline", "async"])
def test_who_waits_too_long_is_told_and_can_go_on(forks: Forks, board: Switchboard, tmp_path: Path, how: str) -> None:
    """After busy_timeout the save fails with StoreBusyError; the run goes on later, with the step that was not saved.

    It goes on in another process too, though the one that failed is alive.
    """
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    first, second = (Actor(forks, board, store, journal, busy_timeout=0.2) for _ in range(2))
    locker = Locker(forks, board, store, "BEGIN IMMEDIATE")
    for number, actor in enumerate((first, second)):
        actor.run(f"run {number}", stall=3, how=how)
        actor.hear("stalled")
    locker.lock()
    for actor in (first, second):
        actor.go()
        answer = actor.answer()
        assert answer["error"] == "StoreBusyError"
        assert "another program" in answer["text"].lower() and str(store) in answer["text"]
    locker.free()
    first.run("run 0", how=how)
    assert first.answer()["status"] == "completed"
    first.run("run 1", wait=True, how=how)
    assert first.answer(attached=True)["status"] == "completed"
    assert indexes(journal, "effect") == {f"run {n}": [0, 1, 2, 2, 3, 3, 4, 5] for n in range(2)}


@pytest.mark.slow
def test_a_program_beside_flujo_in_the_same_process(forks: Forks, tmp_path: Path) -> None:
    """With runs committing, sqlite3 opens the same file, reads, writes a table of its own and closes, again and again.

    The process then ends without closing anything: another one sees every acknowledged save and every row.
    """
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    names = [f"run {n}" for n in range(60)]
    forks.join(forks.fork("crash_processes:beside", store=str(store), journal=journal.path, names=names))
    all_completed(store, journal, names)
    mine = [line["number"] for line in journal.read() if line["what"] == "mine"]
    assert len(mine) >= 20
    assert query(store, "SELECT number FROM mine ORDER BY number") == [(number,) for number in mine]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["os.fork", "multiprocessing"])
def test_forks_while_the_backend_is_in_use(forks: Forks, tmp_path: Path, how: str) -> None:
    """Children and parent go on with the very same backend object, and with another thread's runs in between."""
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    forks.join(forks.fork("crash_processes:forking", store=str(store), journal=journal.path, children=6, how=how))
    same_runs(journal, store)
    assert len(indexes(journal, "ack")) >= 6 * 4 + 8 + 10 + 2


@pytest.mark.slow
def test_a_fork_while_another_thread_opens_the_store(forks: Forks, tmp_path: Path) -> None:
    """No lock that the other thread holds at that moment stays locked in the child for ever."""
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    forks.join(forks.fork("crash_processes:forking_in_opening", store=str(store), journal=journal.path))
    same_runs(journal, store)


@pytest.mark.slow
def test_a_fork_in_the_middle_of_a_transaction(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """A fork waits a while for the transaction's end; where it does not come, the child may not use that store."""
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    pid = forks.fork("crash_processes:forking_in_waiting", store=str(store), journal=journal.path, wire=board.path)
    line = board.answer()
    assert line.hear() == "opened"
    locker = Locker(forks, board, store, "BEGIN IMMEDIATE")
    locker.lock()
    line.say("go")
    assert line.hear() == "forked", forks.errors()
    locker.free()
    forks.join(pid)
    all_completed(store, journal, ["before", "parent"])


@pytest.mark.slow
def test_a_forked_child_outlives_the_backend_of_its_parent(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """The parent closes, a third process opens and closes: nothing that the child saves meanwhile is lost.

    It would be if the child's SQLite took the parent's locks for its own.
    """
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    parent_pid = forks.fork("crash_processes:outliving", store=str(store), journal=journal.path, wire=board.path)
    parent, child = board.answer(), board.answer()
    assert parent.hear() == "forked"
    told(child, "child 0")
    parent.say("close")
    assert parent.hear() == "closed"
    told(child, "child 1")
    for number in range(3):
        pid = forks.fork("crash_processes:obeying", store=str(store), journal=journal.path, wire=board.path)
        other = board.answer()
        told(other, f"other {number}")
        told(child, f"child {number + 2}")
        other.say("")
        forks.join(pid)
    found = query(store, "SELECT run_id FROM workflow_state WHERE status = 'completed'")
    child.say("")
    forks.join(parent_pid)
    names = ["parent", *(f"child {n}" for n in range(5)), *(f"other {n}" for n in range(3))]
    assert sorted(name for (name,) in found) == sorted(names)
    same_runs(journal, store)


def told(wire: Wire, name: str) -> None:
    wire.say(name)
    assert wire.hear() == "completed"


@pytest.mark.slow
def test_a_backend_that_closes_does_not_unlock_the_next_one(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """Closing one backend while another one on the same file opens leaves the second's runs owned.

    POSIX locks belong to the process: the descriptor that the first closes would take the second's locks with it.
    """
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    pid = forks.fork("crash_processes:reopening", store=str(store), journal=journal.path, wire=board.path)
    wire = board.answer()
    assert wire.hear() == "stalled"
    other = forks.fork("crash_processes:obeying", store=str(store), journal=journal.path, wire=board.path)
    line = board.answer()
    line.say("second")
    answered, _, _ = select.select([line.socket], [], [], 30.0)
    assert answered and line.hear() == "", "a live run was taken"
    assert forks.wait(other)[0] == 1 and "RunInProgressError" in forks.errors()
    wire.say("go")
    forks.join(pid)


@pytest.mark.slow
def test_the_lock_file_is_deleted_while_in_use(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """Another process cannot tell then that the owner lives: it takes the run over, and the owner saves no more."""
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    owner, other = (Actor(forks, board, store, journal) for _ in range(2))
    owner.run("run 0", stall=3)
    owner.hear("stalled")
    Path(f"{store}-flujo").unlink()
    other.run("run 0", stall=4)
    other.hear("stalled")
    owner.go()
    answer = owner.answer()
    assert answer["error"] == "StoreUnavailableError" and "removed or replaced" in answer["text"]
    owner.run("run 0")
    assert owner.answer()["error"] == "StoreUnavailableError"
    other.go()
    assert other.answer()["status"] == "completed"
    assert indexes(journal, "ack") == {"run 0": list(range(STEPS))}
    saved = query(store, "SELECT idx, count(*) FROM flujo_log GROUP BY idx")
    assert saved == [(index, 1) for index in range(1, STEPS + 1)]
