"""`takeover`: a run is taken from an owner that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, SQLiteBackend, step
from flujo.errors import FencedError, RunEndedError, RunInProgressError, RunNotFoundError
from tests.support.backends import Place


@step(name="a")
async def first(number: int) -> int:
    return number + 1


@step(name="b")
async def second(number: int) -> int:
    return number * 10


def test_an_owner_that_hangs_is_replaced(place: Place) -> None:
    """The run goes on elsewhere, at once; what the old owner saves is refused; who did it and why is on record."""
    held, go = asyncio.Event(), asyncio.Event()

    @step(name="b")
    async def hanging(number: int) -> int:
        held.set()
        await go.wait()
        return -1

    backend = place.open()
    old: Flujo[Any, Any] = Flujo(first >> hanging, pipeline_name="ab", state_backend=backend)
    new: Flujo[Any, Any] = Flujo(first >> second, pipeline_name="ab", state_backend=backend)

    async def main() -> None:
        running = asyncio.create_task(old.run_async(1, run_id="r"))
        await held.wait()
        with pytest.raises(RunInProgressError):
            await new.run_async(run_id="r")
        result = await new.takeover_async("r", by="ada", reason="it hangs")
        assert (result.status, result.output) == ("completed", 20)
        go.set()
        with pytest.raises(FencedError):
            await running
        (message,) = await new.messages_async("r")
        assert (message.kind, message.by, message.reason) == ("takeover", "ada", "it hangs")

    asyncio.run(main())
    assert place.load()["last_step_output"] == 20


def test_a_run_that_nobody_has_is_gone_on_with(place: Place) -> None:
    """That is the run that it would have been; one that has ended, or is not there, is refused."""

    async def main() -> None:
        async for _ in Flujo(first >> second, pipeline_name="ab", state_backend=place.open()).run_async(1, run_id="r"):
            break

    asyncio.run(main())
    flujo: Flujo[Any, Any] = Flujo(first >> second, pipeline_name="ab", state_backend=place.open())
    assert flujo.takeover("r").output == 20
    with pytest.raises(RunEndedError):
        flujo.takeover("r")
    with pytest.raises(RunNotFoundError):
        flujo.takeover("never")


def test_two_takeovers_at_once(place: Place) -> None:
    """One of them brings the run to its end; the other's saves are refused, or it finds the run ended."""
    held = asyncio.Event()

    @step(name="b")
    async def hanging(number: int) -> int:
        held.set()
        await asyncio.Event().wait()
        return -1

    backend = place.open()
    flujo: Flujo[Any, Any] = Flujo(first >> second, pipeline_name="ab", state_backend=backend)

    async def main() -> list[Any]:
        hung: Flujo[Any, Any] = Flujo(first >> hanging, pipeline_name="ab", state_backend=backend)
        running = asyncio.create_task(hung.run_async(1, run_id="r"))
        await held.wait()
        found = await asyncio.gather(*[flujo.takeover_async("r", by=n) for n in "xyz"], return_exceptions=True)
        running.cancel()
        with pytest.raises((asyncio.CancelledError, FencedError)):
            await running
        return found

    found = asyncio.run(main())
    ended = [result for result in found if isinstance(result, PipelineResult)]
    assert ended and {result.output for result in ended} == {20}
    others = [error for error in found if not isinstance(error, PipelineResult)]
    assert all(isinstance(error, FencedError | RunEndedError) for error in others), others
    assert place.load()["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_a_run_is_taken_from_another_process(tmp_path: Path, dies: bool) -> None:
    """From one that is stopped as a whole; what it saves when it goes on again is refused."""
    file = tmp_path / "runs.db"
    program = f"""
        import os, signal
        from pathlib import Path
        from flujo import Flujo, SQLiteBackend, step
        from flujo.errors import FencedError
        from tests.run.test_takeover import first

        @step(name="b")
        async def hanging(number: int) -> int:
            print("held", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
            return -1

        runner = Flujo(first >> hanging, pipeline_name="ab", state_backend=SQLiteBackend(Path({str(file)!r})))
        try:
            runner.run(1, run_id="r")
        except FencedError:
            print("refused", flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        flujo: Flujo[Any, Any] = Flujo(first >> second, pipeline_name="ab", state_backend=SQLiteBackend(file))
        owner = asyncio.run(flujo.backend.owner("r"))
        assert owner is not None and owner.alive and f"process {child.pid} on " in owner.who and owner.since
        if dies:
            child.kill()
            child.wait()
            dead = asyncio.run(flujo.backend.owner("r"))
            assert dead is not None and not dead.alive
        assert flujo.takeover("r", by="ada").output == 20
        os.kill(child.pid, signal.SIGCONT) if not dies else None
        assert child.stdout.read() == ("" if dies else "refused\n")
    assert flujo.run(run_id="r").output == 20
    asyncio.run(flujo.backend.close())


def test_one_that_has_saved_nothing_is_left_alone(place: Place) -> None:
    """Its input is with its owner alone: it is not found, its owner keeps it and completes it."""
    held, go = asyncio.Event(), asyncio.Event()

    @step(name="a")
    async def hanging(number: int) -> int:
        held.set()
        await go.wait()
        return number

    backend = place.open()
    runner: Flujo[Any, Any] = Flujo(hanging, pipeline_name="a", state_backend=backend)

    async def main() -> None:
        running = asyncio.create_task(runner.run_async(1, run_id="r"))
        await held.wait()
        with pytest.raises(RunNotFoundError):
            await runner.takeover_async("r")
        go.set()
        assert (await running).output == 1

    asyncio.run(main())
