"""A run that is interrupted stays as it was last saved, belongs to nobody, and goes on with the next `run`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from flujo import FileBackend, Flujo, SQLiteBackend, step
from flujo.errors import SaveError
from flujo.state.backends.file.format import file_name
from tests.support.backends import query
from tests.support.crash_forks import ROOT, Forks, Journal, Switchboard
from tests.support.crash_interruption import (
    KINDS,
    NAMES,
    STEPS,
    CancelledAt,
    Trouble,
    Work,
    awaited,
    backend_of,
    consumed,
    driven,
    faulty,
    sqlite_error,
)

HOW = {"awaited": awaited, "iterated": consumed}


class Bench:
    """One backend, a runner on it, and what they did."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.work = Work()
        self.backend = backend_of(kind, self.work, folder)
        self.runner = self.work.runner(self.backend, hooked="subclass" not in kind)
        self.file = folder / "runs.db"

    def acknowledged(self, run_id: str) -> list[int]:
        return [index for run, index in self.work.acknowledged if run == run_id]

    def started(self, run_id: str) -> list[int]:
        return [index for run, index, _ in self.work.started if run == run_id]

    async def belongs_to_nobody(self, run_id: str) -> None:
        """Whatever was still to be written is written, and the run's row names no owner."""
        await self.backend.delete_state("nobody's")  # queued behind it
        if isinstance(self.backend, SQLiteBackend):
            assert query(self.file, "SELECT fence, owner FROM flujo_run WHERE run_id = ?", run_id) in (
                [],
                [(None, None)],
            )
        elif isinstance(self.backend, FileBackend) and (file := self.backend.path / file_name(run_id)).exists():
            data = json.loads(file.read_text(encoding="utf-8"))
            assert (data["owner"], data["run"]["owner"], data["run"]["fence"]) == (None, None, None)

    async def left_well(self, run_id: str) -> int:
        """Check what an interruption has left, and return how many steps are saved."""
        acknowledged = self.acknowledged(run_id)
        assert acknowledged == list(range(len(acknowledged)))
        state = await self.backend.load_state(run_id)
        if state is None:
            assert not acknowledged
            return 0
        index: int = state["current_step_index"]
        assert index in (len(acknowledged), len(acknowledged) + 1)
        assert state["status"] == ("completed" if index == STEPS else "running")
        await self.belongs_to_nobody(run_id)
        return index

    async def goes_on(self, run_id: str, n: int, saved: int) -> None:
        """The next run does what is left, the one after that nothing."""
        before = len(self.started(run_id))
        result = await self.runner.run_async(n, run_id=run_id)
        assert result.output == self.work.output(n)
        after = self.started(run_id)[before:]
        assert sorted(set(after)) == list(range(saved, STEPS))
        assert [record.name for record in result.step_history] == NAMES
        assert (await self.runner.run_async(n, run_id=run_id)).output == result.output
        assert self.started(run_id)[before:] == after
        assert len(set(self.acknowledged(run_id))) == len(self.acknowledged(run_id))

    def run(self, how: str, run_id: str = "run") -> Any:
        """Run in an event loop of its own."""
        if how == "run":
            return self.runner.run(5, run_id=run_id)
        return asyncio.run(HOW[how](self.runner, run_id, 5))

    def close(self) -> None:
        asyncio.run(self.backend.close())


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Bench, None, None]:
    made = Bench(request.param, tmp_path)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("bench", KINDS, indirect=True)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
def test_a_task_may_be_cancelled_at_every_await(bench: Bench, how: str, again: bool) -> None:
    """Cancelled at its first, second, ... await: CancelledError comes out, nothing acknowledged is lost, the run is
    neither completed nor cancelled, belongs to nobody, and goes on in the same event loop."""
    saved_at: list[int] = []

    async def cancelled(at: int) -> bool:
        run_id = f"run {at}"
        inner = HOW[how](bench.runner, run_id, 5)
        watched = CancelledAt(inner, at, again=again)
        task = asyncio.get_running_loop().create_task(watched)  # type: ignore[arg-type]
        try:
            result = await task
        except asyncio.CancelledError:
            assert asyncio.all_tasks() == {asyncio.current_task()}, "a save was abandoned"
            saved = await bench.left_well(run_id)
            saved_at.append(saved)
            await bench.goes_on(run_id, 5, saved)
            return True
        assert watched.awaits < at
        assert result.output == bench.work.output(5)
        return False

    at = 1
    while asyncio.run(cancelled(at)):
        at += 1
    assert at > 6
    assert set(saved_at) >= set(range(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("bench", KINDS, indirect=True)
@pytest.mark.parametrize("how", HOW)
def test_a_coroutine_may_be_closed_at_every_await(bench: Bench, how: str) -> None:
    """A coroutine that is closed, as one is whose loop is gone, gives its run back without waiting for anything."""

    async def closed(at: int) -> bool:
        run_id = f"run {at}"
        if not await driven(HOW[how](bench.runner, run_id, 5), at):
            return False
        await bench.belongs_to_nobody(run_id)
        await bench.goes_on(run_id, 5, await bench.left_well(run_id))
        return True

    at = 1
    while asyncio.run(closed(at)):
        at += 1
    assert at > 6


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_a_task_that_was_never_started(bench: Bench) -> None:
    """Cancelled before it begins, a run does not exist."""

    async def main() -> None:
        task = asyncio.create_task(bench.runner.run_async(5, run_id="run"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await bench.backend.load_state("run") is None
        await bench.goes_on("run", 5, 0)

    asyncio.run(main())


@pytest.mark.parametrize("bench", KINDS, indirect=True)
@pytest.mark.parametrize("way", ["break", "raise", "drop"])
@pytest.mark.parametrize("steps", range(1, STEPS))
def test_leaving_an_iteration_early_gives_the_run_back(bench: Bench, way: str, steps: int) -> None:
    """By `break`, by an exception in the loop's body, or by dropping the iterator: the same task goes on at once."""

    async def left() -> None:
        if way == "drop":
            iterator = aiter(bench.runner.run_async(5, run_id="run"))
            for _ in range(steps):
                await anext(iterator)
            return
        seen = 0
        async for _ in bench.runner.run_async(5, run_id="run"):
            seen += 1
            if seen == steps and way == "break":
                break
            if seen == steps:
                raise LookupError("enough")

    async def main() -> None:
        with contextlib.suppress(LookupError):
            await left()
        await bench.goes_on("run", 5, await bench.left_well("run"))

    asyncio.run(main())


@pytest.mark.slow
def test_a_run_left_early_can_go_on_in_another_process(forks: Forks, board: Switchboard, tmp_path: Path) -> None:
    """While the process that left it is alive."""
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    pid = forks.fork("crash_interruption:leaving", store=str(store), wire=board.path)
    line = board.answer()
    assert line.hear() == "left"
    forks.join(forks.fork("crash_interruption:resuming", store=str(store), journal=journal.path))
    assert [line["index"] for line in journal.read() if line["what"] == "effect"] == [1, 2, 2, 3]
    line.say("go")
    forks.join(pid)


@pytest.mark.parametrize("bench", KINDS, indirect=True)
@pytest.mark.parametrize("how", ["run", *HOW])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=["KeyboardInterrupt", "SystemExit"])
@pytest.mark.parametrize("at", range(STEPS))
def test_what_ends_the_program_does_not_end_the_run(
    bench: Bench, how: str, error: BaseException, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """KeyboardInterrupt and SystemExit, raised in an async step or in a plain one, come out and record nothing."""

    def inside(index: int) -> None:
        if index == at:
            bench.work.inside = lambda index: None
            raise error

    bench.work.inside = inside
    with pytest.raises(type(error)):
        bench.run(how)
    assert bench.work.started[-1][1:] == (at, 1)

    async def after() -> None:
        saved = await bench.left_well("run")
        assert saved == at
        await bench.goes_on("run", 5, saved)

    asyncio.run(after())
    resumed = next(attempt for _, index, attempt in bench.work.started[at + 1 :] if index == at)
    assert resumed == 1  # an interruption is no crash
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("bench", ["memory", "sqlite", "file"], indirect=True)
@pytest.mark.parametrize("answer", ["another error", "a result"])
def test_a_step_cannot_turn_an_interruption_into_an_outcome(bench: Bench, answer: str) -> None:
    """A step that catches its cancellation and raises something else has not failed; one that returns is saved, and
    the run stops after it."""
    entered = asyncio.Event()

    @step(retries=2)
    async def stubborn(n: int) -> int:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if answer == "another error":
                raise RuntimeError("cleaning up failed") from None
        return n

    @step
    async def after(n: int) -> int:
        return n + 1

    async def main() -> None:
        runner = Flujo(stubborn >> after, state_backend=bench.backend)
        task = asyncio.create_task(runner.run_async(1, run_id="run"))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        state = await bench.backend.load_state("run")
        if answer == "another error":
            assert state is None
        else:
            assert state is not None and (state["current_step_index"], state["status"]) == (1, "running")
        await bench.belongs_to_nobody("run")

    asyncio.run(main())


# Signals


@pytest.mark.slow
@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGINT, "KeyboardInterrupt", None), (signal.SIGTERM, "SystemExit", 143)]
)
def test_signals_interrupt_a_run(
    forks: Forks, board: Switchboard, tmp_path: Path, at: int, number: int, error: str, code: int | None
) -> None:
    """Ctrl-C and SIGTERM in a step of `run`, on the event loop or in a thread: the run is running, given back, and
    goes on in another process with the same attempt."""
    store, journal = tmp_path / "runs.db", Journal(tmp_path / "journal")
    pid = forks.fork("crash_interruption:signalled", store=str(store), journal=journal.path, wire=board.path, at=at)
    assert board.answer().hear() == "inside"
    assert forks.kill(pid, number) == 0, forks.errors()
    raised = [line for line in journal.read() if line["what"] == "raised"]
    assert [(line["error"], line["code"]) for line in raised] == [(error, code)]
    assert query(store, "SELECT status, fence, owner, crashes FROM flujo_run") == [("running", None, None, 0)]
    assert query(store, "SELECT max(idx) FROM flujo_log") == [(at or None,)]
    forks.join(forks.fork("crash_interruption:resuming", store=str(store), journal=journal.path))
    lines = journal.read()
    assert lines[-1] == {**lines[-1], "status": "completed", "output": Work().output(5)}
    effects = [(line["index"], line["attempt"]) for line in lines if line["what"] == "effect"]
    assert effects.count((at, 1)) == 2
    assert all(effects.count((index, 1)) == 1 for index in range(STEPS) if index != at)


SCRIPT = """
import sys
from flujo import Flujo, SQLiteBackend, step

@step
async def hang(n: int) -> int:
    import asyncio
    print("inside", flush=True)
    await asyncio.Event().wait()
    return n

Flujo(hang, state_backend=SQLiteBackend(sys.argv[1])).run(1, run_id="run")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_program_that_is_interrupted_ends_as_programs_do(tmp_path: Path, number: int, code: int) -> None:
    """Its exit code says which signal it was; Ctrl-C shows KeyboardInterrupt; nothing else is printed."""
    store = tmp_path / "runs.db"
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"inside\n"
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == code
    last = errors.decode().splitlines()[-1:]
    assert last == (["KeyboardInterrupt"] if number == signal.SIGINT else []), errors.decode()
    assert b"never retrieved" not in errors
    assert query(store, "SELECT status, fence, owner FROM flujo_run") == [("running", None, None)]


# The disk


def troubled(folder: Path) -> tuple[Trouble, Bench]:
    """Return a bench on SQLite that has trouble when it is told to."""
    trouble, bench = Trouble(), Bench("memory", folder)
    bench.backend = SQLiteBackend(bench.file, connect=faulty(trouble))
    bench.runner = bench.work.runner(bench.backend, hooked=True)
    bench.run("run", "first")  # from now on `run` saves on the event loop's thread
    return trouble, bench


@pytest.mark.slow
@pytest.mark.parametrize("how", ["run", *HOW])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(STEPS))
def test_the_outcome_of_a_failed_commit_is_read_not_guessed(tmp_path: Path, how: str, when: str, at: int) -> None:
    """The disk fails in the save of a step. Where the commit is there all the same, the run simply goes on; where it is
    not, SaveError comes out, the run belongs to nobody, and the next `run` does that step again and no other."""
    trouble, bench = troubled(tmp_path)
    single = how == "run" and at < STEPS - 1  # a save that is one statement is its own commit

    def inside(index: int) -> None:
        if index == at and (index != 2 or len(bench.started("run")) == 4):  # step 2 fails once before it succeeds
            bench.work.inside = lambda index: None
            trouble.comes(1, when, "INTO flujo_log" if single else "COMMIT")

    bench.work.inside = inside
    if when == "after":
        assert bench.run(how).output == bench.work.output(5)
        assert bench.started("run") == [0, 1, 2, 2, 3]
    else:
        with pytest.raises(SaveError) as caught:
            bench.run(how)
        assert "disk I/O error" in str(caught.value)
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert bench.started("run") == [0, 1, 2, 2, 3][: len(bench.started("run"))]
        assert asyncio.run(bench.left_well("run")) == at
        asyncio.run(bench.goes_on("run", 5, at))
    assert trouble.left is None, "it never failed"
    assert bench.acknowledged("run") == list(range(STEPS))
    assert query(bench.file, "SELECT count(*) FROM flujo_log") == [(2 * STEPS,)]
    bench.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["run", *HOW])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_claim_whose_commit_fails_holds_nothing(tmp_path: Path, how: str, when: str) -> None:
    """SaveError comes out before any step has begun, nobody owns the run, and the next `run` does it all."""
    trouble, bench = troubled(tmp_path)
    trouble.comes(2, when, "COMMIT")  # the first one ends the look whether there is anything to do
    with pytest.raises(SaveError):
        bench.run(how)
    assert bench.started("run") == []
    assert asyncio.run(bench.left_well("run")) == 0
    assert query(bench.file, "SELECT fence, owner FROM flujo_run WHERE run_id = 'run'") in ([], [(None, None)])
    asyncio.run(bench.goes_on("run", 5, 0))
    bench.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["run", *HOW])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_release_whose_commit_fails_is_made_up_for(
    tmp_path: Path, how: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The interruption comes out as it was, the failure is logged, and in the end the run belongs to nobody."""
    trouble, bench = troubled(tmp_path)

    def inside(index: int) -> None:
        if index == 1:
            bench.work.inside = lambda index: None
            trouble.comes(1, when, "COMMIT")
            raise KeyboardInterrupt

    bench.work.inside = inside
    with pytest.raises(KeyboardInterrupt):
        bench.run(how)
    assert [record.getMessage() for record in caplog.records if "could not be released" in record.getMessage()]
    assert asyncio.run(bench.left_well("run")) == 1
    asyncio.run(bench.goes_on("run", 5, 1))
    bench.close()


@pytest.mark.parametrize("how", ["run", *HOW])
@pytest.mark.parametrize("after", [False, True], ids=["unsaved", "saved"])
@pytest.mark.parametrize("at", range(STEPS))
def test_what_a_backend_raises_stops_the_run(tmp_path: Path, how: str, after: bool, at: int) -> None:
    """An error of a third-party backend's save comes out as it was raised; what that save did is found by the next."""
    bench = Bench("third-party subclass", tmp_path)
    save = bench.backend.save_state

    async def failing(run_id: str, state: dict[str, Any]) -> None:
        if state["current_step_index"] == at + 1:
            bench.backend.save_state = save  # type: ignore[method-assign]
            if after:
                await save(run_id, state)
            raise ConnectionResetError("the network is gone")
        await save(run_id, state)

    bench.backend.save_state = failing  # type: ignore[method-assign]
    with pytest.raises(ConnectionResetError, match="the network is gone"):
        bench.run(how)
    saved = asyncio.run(bench.left_well("run"))
    assert saved == at + after
    asyncio.run(bench.goes_on("run", 5, saved))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_exception_out_of_nowhere_leaves_no_transaction(tmp_path: Path, when: str) -> None:
    """A signal handler that raises (a second Ctrl-C does) may do so at any statement of `run`: the file is not left
    locked, nothing acknowledged is lost, and the run goes on."""
    trouble, bench = troubled(tmp_path)
    number = 0
    while True:
        number += 1
        run_id = f"run {number}"
        trouble.comes(number, when, "", KeyboardInterrupt())
        try:
            bench.run("run", run_id)
        except KeyboardInterrupt:
            with contextlib.closing(sqlite3.connect(bench.file, timeout=2, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # whatever is still being given back is so within two seconds
                other.execute("ROLLBACK")
            saved = asyncio.run(bench.left_well(run_id))
            asyncio.run(bench.goes_on(run_id, 5, saved))
            continue
        break
    assert number > 12
    bench.close()


@pytest.mark.parametrize("how", ["run", *HOW])
def test_a_read_that_meets_a_busy_file_waits(tmp_path: Path, how: str) -> None:
    """A reader is told that the file is busy while another process recovers what a dead one has left."""
    trouble, bench = troubled(tmp_path)
    busy = sqlite_error(sqlite3.SQLITE_BUSY_RECOVERY, "database is locked")
    trouble.comes(1, "before", "SELECT", busy)  # does the run exist?
    assert bench.run(how).output == bench.work.output(5)
    assert trouble.left is None
    trouble.comes(1, "before", "SELECT", busy)
    state = asyncio.run(bench.backend.load_state("run"))
    assert state is not None and state["status"] == "completed"
    assert bench.started("run") == [0, 1, 2, 2, 3]
    bench.close()
