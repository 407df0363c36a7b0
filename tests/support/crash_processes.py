"""Processes that share one file: crowds, programs that hold it locked, programs beside flujo, forks."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flujo import Flujo, SQLiteBackend, current_step, step
from flujo.errors import StoreUnavailableError
from flujo.state.backends import _service
from flujo.state.backends._stores import stores
from tests.support.crash_forks import Journal, Wire, call


class Recording(SQLiteBackend):
    """Writes each acknowledged save into the journal."""

    journal: Journal

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        await super().save_state(run_id, state)
        self.journal.write("ack", run=run_id, index=state["current_step_index"] - 1)


def runner_on(backend: SQLiteBackend, journal: Journal) -> Flujo[int, int]:
    """Four quick steps, two of them plain; each writes down that it runs."""
    if isinstance(backend, Recording):
        backend.journal = journal

    def note(index: int) -> None:
        journal.write("effect", run=current_step().run_id, index=index)

    @step
    async def first(n: int) -> int:
        note(0)
        return n + 1

    @step
    def second(n: int) -> int:
        note(1)
        return n * 2

    @step
    async def third(n: int) -> int:
        note(2)
        await asyncio.sleep(0)
        return n + 3

    @step
    def fourth(n: int) -> int:
        note(3)
        return n * 4

    return Flujo(first >> second >> third >> fourth, pipeline_name="four", state_backend=backend)


def outcome(n: int) -> int:
    """Return what the four steps make of n."""
    return ((n + 1) * 2 + 3) * 4


async def all_of(runner: Flujo[int, int], names: list[str]) -> None:
    """Do these runs at the same time; run number n of them begins with n."""
    results = await asyncio.gather(*(runner.run_async(n, run_id=name) for n, name in enumerate(names)))
    assert [result.output for result in results] == [outcome(n) for n in range(len(names))]


def crowd(store: str, journal: str, wire: str, names: list[str], shared: list[str]) -> None:
    """Open the store at the same moment as others; do runs of one's own at once, and the shared ones one by one."""
    line = call(wire)
    line.say("ready")
    line.hear()
    runner = runner_on(Recording(store), Journal(journal))
    asyncio.run(all_of(runner, names))
    for name in shared:
        assert runner.run(0, run_id=name, wait=True).output == outcome(0)


def locker(store: str, wire: str, statement: str) -> None:
    """Another program: hold the file locked from one word to the next, until there are no more words."""
    line = call(wire)
    connection = sqlite3.connect(store, isolation_level=None)
    while line.hear():
        connection.execute(statement)
        line.say("locked")
        line.hear()
        connection.execute("ROLLBACK")
        line.say("free")


def beside(store: str, journal: str, names: list[str]) -> None:
    """While runs commit, open the same file with sqlite3, read, write a table, close, again and again; then die."""
    written = Journal(journal)
    runner = runner_on(Recording(store), written)
    runner.run(0, run_id=names[0])
    over = threading.Event()
    errors: list[BaseException] = []

    def program() -> None:
        number = 0
        try:
            while not over.is_set() or number < 20:
                with contextlib.closing(sqlite3.connect(store)) as connection:
                    connection.execute("SELECT count(*) FROM workflow_state").fetchall()
                    with connection:
                        connection.execute("CREATE TABLE IF NOT EXISTS mine (number INTEGER)")
                        connection.execute("INSERT INTO mine VALUES (?)", (number,))
                written.write("mine", number=number)
                number += 1
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=program)
    thread.start()
    asyncio.run(all_of(runner, names[1::2]))
    for name in names[2::2]:
        runner.run(0, run_id=name)
    over.set()
    thread.join()
    assert not errors, errors
    os._exit(0)  # nothing is closed: what is not in the file now is lost


def forking(store: str, journal: str, children: int, how: str) -> None:
    """Fork while the backend is in use by this thread's runs and by those of another; all go on with it."""
    written = Journal(journal)
    runner = runner_on(Recording(store), written)
    runner.run(0, run_id="before")
    over = threading.Event()

    def others() -> Iterator[str]:
        number = 0
        while not over.is_set() or number < 10:
            yield f"thread {number}"
            number += 1

    thread = threading.Thread(target=lambda: [runner.run(0, run_id=name) for name in others()])
    thread.start()
    pids = [
        _forked(lambda child=child: asyncio.run(all_of(runner, [f"child {child}.{n}" for n in range(4)])), how)
        for child in range(children)
    ]
    asyncio.run(all_of(runner, [f"parent {n}" for n in range(8)]))
    codes = [end() for end in pids]
    over.set()
    thread.join()
    runner.run(0, run_id="after")
    assert codes == [0] * children, codes


def _forked(work: Callable[[], None], how: str) -> Callable[[], int | None]:
    """Have the work done in a child; return what waits for its exit code."""
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()

        def end() -> int | None:
            process.join()
            return process.exitcode

        return end
    pid = os.fork()
    if pid == 0:
        _and_exit(work)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _and_exit(work: Callable[[], None]) -> None:
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def outliving(store: str, journal: str, wire: str) -> None:
    """Fork, close the backend in the parent, and let the child go on with it as it is told, run by run."""
    written = Journal(journal)
    backend = Recording(store)
    runner = runner_on(backend, written)
    runner.run(0, run_id="parent")
    line = call(wire)
    pid = os.fork()
    if pid == 0:
        _and_exit(lambda: _obeying(runner, call(wire)))
    line.say("forked")
    line.hear()
    asyncio.run(backend.close())
    line.say("closed")
    os.waitpid(pid, 0)


def _obeying(runner: Flujo[int, int], line: Wire) -> None:
    while name := line.hear():
        line.say(runner.run(0, run_id=name).status)


def obeying(store: str, journal: str, wire: str) -> None:
    """Do run after run as it is told."""
    _obeying(runner_on(Recording(store), Journal(journal)), call(wire))


def forking_in_opening(store: str, journal: str) -> None:
    """Fork while another thread is opening the store for the backend's first run."""
    opening, goes_on = threading.Event(), threading.Event()
    enter = stores.enter

    def slowly(*args: Any) -> Any:
        opening.set()
        goes_on.wait(30)
        return enter(*args)

    runner = runner_on(Recording(store), Journal(journal))
    stores.enter = slowly  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: runner.run(0, run_id="parent"))
    thread.start()
    opening.wait(30)
    stores.enter = enter  # type: ignore[method-assign]
    end = _forked(lambda: all_of_one(runner, "child"), "os.fork")
    goes_on.set()
    thread.join()
    assert end() == 0


def forking_in_waiting(store: str, journal: str, wire: str) -> None:
    """Fork while another thread waits for a lock that another program has on the file."""
    _service._FREEZE_S = 0.1
    waits = threading.Event()

    class Telling(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            try:
                return super().execute(*args)
            except sqlite3.OperationalError:
                if threading.current_thread() is not thread:  # the store's own thread, which will try again
                    waits.set()
                raise

    def connect(path: str) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, factory=Telling)

    line = call(wire)
    runner = runner_on(Recording(store, connect=connect), Journal(journal))
    runner.run(0, run_id="before")
    line.say("opened")
    line.hear()
    thread = threading.Thread(target=lambda: runner.run(0, run_id="parent"))
    thread.start()
    waits.wait(30)

    def refused() -> None:
        with pytest.raises(StoreUnavailableError, match="forked"):
            runner.run(0, run_id="child")

    assert _forked(refused, "os.fork")() == 0
    line.say("forked")
    thread.join()


def all_of_one(runner: Flujo[int, int], name: str) -> None:
    """Do one run."""
    assert runner.run(0, run_id=name).output == outcome(0)


class _Lingering(sqlite3.Connection):
    """A connection that takes its time to close, the first time."""

    begun = threading.Event()
    goes_on = threading.Event()

    def close(self) -> None:
        self.begun.set()
        self.goes_on.wait(30)
        super().close()


def _lingering(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, factory=_Lingering)


def reopening(store: str, journal: str, wire: str) -> None:
    """Close one backend while another one on the same file takes up a run, and stall in that run's step."""
    line = call(wire)
    written = Journal(journal)
    old = SQLiteBackend(store, connect=_lingering)
    runner_on(old, written).run(0, run_id="first")
    closing = threading.Thread(target=lambda: asyncio.run(old.close()))
    closing.start()
    _Lingering.begun.wait(30)
    inside, leave = threading.Event(), threading.Event()

    @step
    def stalling(n: int) -> int:
        inside.set()
        leave.wait(30)
        return n

    runner = Flujo(stalling, pipeline_name="four", state_backend=SQLiteBackend(store, connect=_lingering))
    running = threading.Thread(target=lambda: runner.run(0, run_id="second"))
    running.start()
    inside.wait(0.3)  # either it is taken up now, or not before the old one is closed
    _Lingering.goes_on.set()
    closing.join()
    inside.wait(30)
    line.say("stalled")
    line.hear()
    leave.set()
    running.join()
