"""Steps in worker processes that die, and attempts that nobody waits for any more."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo
from flujo.errors import StepTimeoutError, WorkerDiedError
from flujo.execution import attempt as attempting
from flujo.execution.events import Event, StepRetrying, StepStarted
from tests.support import executor_steps as steps
from tests.support.executor_pools import processes, run
from tests.support.executor_steps import ANSWER

pytestmark = pytest.mark.slow  # a worker process takes its time to start


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """One worker process, for the tests that leave it alive."""
    with processes() as found:
        yield found


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Where a step says that it has begun, and where it waits."""
    with steps.two_gates(tmp_path) as names:
        yield names


# --- workers that die ---


def test_a_worker_is_killed() -> None:
    """The attempt has failed; the next one has a new pool, where the runner was told how to make one."""
    made: list[ProcessPoolExecutor] = []

    def make() -> ProcessPoolExecutor:
        made.append(processes())
        return made[-1]

    errors: list[BaseException] = []

    def hook(event: Event) -> None:
        if isinstance(event, StepRetrying):
            errors.append(event.error)

    result = run(steps.fail, "kill once", make, hooks=[hook])
    assert (result.output, result.step_history[0].attempts, len(made)) == (ANSWER, 2, 2)
    assert isinstance(errors[0], WorkerDiedError)
    assert (errors[0].step, errors[0].run_id, errors[0].executor) == ("fail", "r", "cpu")


def test_a_pool_that_broke_and_cannot_be_made_anew() -> None:
    """It stays broken, and the error says what to give instead."""
    with processes() as pool:
        result = run(steps.fail, "kill once", pool)
    assert isinstance(result.error, WorkerDiedError)
    assert "executors={'cpu': lambda: ProcessPoolExecutor(...)}" in result.error.hint
    assert result.step_history[0].attempts == 2


def test_one_new_pool_for_all(gates: tuple[str, str]) -> None:
    """Steps that lose their pool together, whether they had begun in it or not, go on together in one new one."""
    made: list[ProcessPoolExecutor] = []
    begun: list[Event] = []
    all_begun = asyncio.Event()

    def make() -> ProcessPoolExecutor:
        made.append(processes(2))
        return made[-1]

    def hook(event: Event) -> None:
        if isinstance(event, StepStarted):
            begun.append(event)
            if len(begun) == 5:
                all_begun.set()

    async def main() -> list[Any]:
        runner = Flujo(steps.doomed, executors={"cpu": make}, hooks=[hook])
        assert (await runner.run_async("")).output == ANSWER
        tasks = [asyncio.create_task(runner.run_async(gates[0])) for _ in range(4)]
        await all_begun.wait()
        steps.pass_on(gates[0])
        return [await task for task in tasks]

    results = asyncio.run(main())
    assert [result.output for result in results] == [ANSWER] * 4
    assert [result.step_history[0].attempts for result in results] == [2] * 4
    assert len(made) == 2


def test_a_pool_that_broke_while_nobody_used_it() -> None:
    """The step has not begun in it, so that going on in a new one costs no attempt."""
    made: list[ProcessPoolExecutor] = []

    def make() -> ProcessPoolExecutor:
        made.append(processes())
        return made[-1]

    runner = Flujo(steps.fine, executors={"cpu": make})
    assert runner.run(1).output == ANSWER
    with pytest.raises(Exception, match="terminated abruptly"):
        made[0].submit(os._exit, 1).result()
    assert runner.run(1).output == ANSWER
    assert len(made) == 2


@pytest.mark.parametrize(("how", "says"), [("exit", "SystemExit: 3"), ("interrupt", "KeyboardInterrupt")])
def test_a_step_that_ends_its_process(pool: ProcessPoolExecutor, how: str, says: str) -> None:
    """It means the worker's, and does not end the runner's."""
    result = run(steps.fail, how, pool)
    assert isinstance(result.error, WorkerDiedError) and says in str(result.error)
    assert result.step_history[0].attempts == 2


def test_a_pool_that_was_shut_down() -> None:
    """It takes no steps, and says so."""
    with processes() as pool:
        pass
    error = run(steps.fine, 1, pool).error
    assert isinstance(error, WorkerDiedError)
    assert "did not take step 'fine' (RuntimeError: cannot schedule new futures after shutdown)" in str(error)


# --- who stops waiting ---


def test_a_time_out(pool: ProcessPoolExecutor, gates: tuple[str, str]) -> None:
    """The attempt is abandoned. Nothing stops a process, so that the next one waits for its end, up to the grace."""
    run(steps.fine, 1, pool)  # the worker is there
    errors: list[BaseException] = []

    def hook(event: Event) -> None:
        if isinstance(event, StepRetrying):
            errors.append(event.error)
            if len(errors) == 1:
                steps.wait_at(gates[0])
                steps.pass_on(gates[1])

    result = run(steps.late, gates, pool, hooks=[hook])
    assert result.output >= 2
    assert isinstance(errors[0], StepTimeoutError)


def test_an_attempt_that_goes_on(
    gates: tuple[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the grace the next attempt begins all the same, beside it, and the log says so."""
    monkeypatch.setattr(attempting, "GRACE_S", 0.01)
    with processes(2) as pool:
        asyncio.run(_both(pool))
        with caplog.at_level(logging.WARNING, "flujo"):
            assert run(steps.late, gates, pool).output >= 2
        steps.wait_at(gates[0])
        steps.pass_on(gates[1])
    assert "run r: step late: an abandoned attempt is still running" in [r.getMessage() for r in caplog.records]


async def _both(pool: ProcessPoolExecutor) -> None:
    runner = Flujo(steps.fine, executors={"cpu": pool})
    await asyncio.gather(runner.run_async(1), runner.run_async(1))


def test_a_result_that_comes_too_late(
    pool: ProcessPoolExecutor, gates: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """The run was cancelled and its event loop is gone: the result is nobody's, and nothing complains."""

    async def main() -> None:
        runner = Flujo(steps.late.with_timeout(60), executors={"cpu": pool})
        task = asyncio.create_task(runner.run_async(gates, run_id="r"))
        await asyncio.to_thread(steps.wait_at, gates[0])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await runner.backend.load_state("r") is None

    asyncio.run(main())
    steps.pass_on(gates[1])
    assert run(steps.fine, 1, pool).output == ANSWER  # by the same worker, so the other has come to its end
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
