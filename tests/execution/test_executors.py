"""Steps that run in executors: what they find there, what comes back, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, NonRetryableError, Pipeline, Step, step
from flujo.errors import NotPicklableError, RecordedError, StepTimeoutError, WorkerDiedError
from flujo.execution import attempt as attempting
from flujo.execution import shipping
from flujo.execution.current import CurrentStep
from flujo.execution.events import Event, StepProgress, StepRetrying, StepStarted
from flujo.testing import VirtualClock
from tests.support import executor_steps as steps
from tests.support.executor_steps import ANSWER, Point, Shop

pytestmark = pytest.mark.slow  # a worker process takes its time to start


# The server has imported what its workers need, so that they are there at once.
multiprocessing.set_forkserver_preload([steps.__name__])


def processes(workers: int = 1, method: str = "forkserver") -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))


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


def run(made: Step[Any, Any] | Pipeline[Any, Any], given: Any, pool: Any, **options: Any) -> Any:
    return Flujo(made, executors={"cpu": pool}, clock=VirtualClock(), **options).run(given, run_id="r")


# --- what a step finds in another process ---


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_another_process(method: str) -> None:
    """The function runs there; its input and output are values of the user's own classes."""
    with processes(method=method) as pool:
        assert run(steps.where, 1, pool).output not in (None, os.getpid())
        assert run(steps.move, Point(3, (1,)), pool).output == Point(4, (1, 3))


@pytest.mark.parametrize(
    ("made", "given", "expected"),
    [
        (steps.fine.named("again").with_timeout(60), 1, ANSWER),
        (steps.by_four, 3, 12),
        (steps.by_five, 3, 15),
        (step(executor="cpu")(len), "four", 4),
        (steps.Steps.double, 4, 8),
    ],
    ids=["renamed", "partial", "bound", "built-in", "in-a-class"],
)
def test_kinds_of_functions(pool: ProcessPoolExecutor, made: Step[Any, Any], given: Any, expected: Any) -> None:
    """Whatever a worker can find by its name, though a step stands in the function's place there."""
    assert run(made, given, pool).output == expected


def test_a_class_as_a_step(pool: ProcessPoolExecutor) -> None:
    """Its instances come back, though the step stands where a worker would look for their class."""
    output = run(steps.Parsed, "some text", pool).output
    assert type(output) is steps.Parsed.fn
    assert output.text == "some text"


def test_current_step(pool: ProcessPoolExecutor) -> None:
    """It is what it would be here; only progress is not reported, and nobody can say that the attempt is cancelled."""
    events: list[Event] = []
    there = run(steps.myself, 1, pool, hooks=[events.append]).output
    local = step(name="myself")(steps.myself.fn)
    here = run(local, 1, pool).output
    assert there == here
    assert (there["run_id"], there["path"], there["attempt"], there["cancelled"]) == ("r", ("myself",), 1, False)
    assert not any(isinstance(event, StepProgress) for event in events)


def test_the_generation() -> None:
    """It goes along, as the idempotency key depends on it."""
    current = CurrentStep("r", ("myself",), 2, None)
    current.generation = 3
    call = shipping.pack(steps.myself, 1, None, current, by_value=False)
    there = shipping.unpack(shipping.perform(*call), None)
    assert (there["generation"], there["attempt"], there["idempotency_key"]) == (3, 2, current.idempotency_key)


def test_a_context_model(pool: ProcessPoolExecutor) -> None:
    """What the function changes becomes the step's change; what a failed attempt changed does not."""
    result = run(steps.sell, 3, pool, context_model=Shop)
    assert result.output == 3
    assert result.final_pipeline_context == Shop(sold=3, log=["attempt 2"])


def test_the_context_is_changed_in_place(pool: ProcessPoolExecutor) -> None:
    """A step that follows, and whoever holds the context, sees the changes in the very object."""
    held: list[Any] = []

    @step
    def hold(n: int, *, context: dict[str, Any]) -> int:
        held.append(context)
        return n

    result = run(hold >> steps.count, 5, pool, initial_context_data={"seen": [1], "old": 1, "kept": "k"})
    assert result.final_pipeline_context == {"seen": [1, 5], "kept": "k", "new": Point(5, ())}
    assert held[0] is result.final_pipeline_context


def test_two_at_work(gates: tuple[str, str]) -> None:
    """Two runs have two workers at work at the same time, and neither holds up the event loop."""

    async def main(pool: ProcessPoolExecutor) -> list[Any]:
        runner = Flujo(steps.meet, executors={"cpu": pool})
        return await asyncio.gather(runner.run_async(gates), runner.run_async(gates[::-1]))

    with processes(2) as pool:
        one, other = asyncio.run(main(pool))
    assert one.output != other.output


# --- what cannot be sent ---


@pytest.mark.parametrize(
    ("made", "given", "part", "says"),
    [
        (step(executor="cpu", name="f", retries=[0])(lambda n: n), 1, "function", "Can't pickle <function <lambda>"),
        (steps.first_hidden, 1, "function", "it's not the same object as tests.support.executor_steps.hidden"),
        (steps.fail, "lock", "output", "cannot pickle '_thread.lock' object"),
        (steps.fail, "lambda", "output", "Can't pickle local object"),
        (steps.fail, "coroutine", "output", "it is a coroutine"),
        (steps.fail, "unloadable", "output", "invalid literal for int()"),
        (steps.spoil, 1, "context", "cannot pickle '_thread.lock' object"),
    ],
    ids=["lambda", "hidden", "lock", "returned-lambda", "coroutine", "unloadable", "context"],
)
def test_what_cannot_be_pickled(
    pool: ProcessPoolExecutor, made: Step[Any, Any], given: Any, part: str, says: str
) -> None:
    """The error names the step, the part and the reason. It is not tried again, and the pool is as good as before."""
    options = {"context_model": Shop} if made.takes_context else {}
    result = run(made, given, pool, **options)
    assert isinstance(result.error, NotPicklableError)
    assert (result.error.part, result.error.step, result.error.run_id) == (part, made.name, "r")
    assert f"The {part} of step {made.name!r} cannot be sent" in str(result.error)
    assert says in str(result.error)
    assert result.step_history[0].attempts == 1
    assert run(steps.fine, 1, pool).output == ANSWER


def test_a_local_function(pool: ProcessPoolExecutor) -> None:
    """It has no name under which a worker could find it."""

    @step(executor="cpu")
    def local(n: int) -> int:
        return n

    error = run(local, 1, pool).error
    assert isinstance(error, NotPicklableError)
    assert "local object" in str(error) and "top level of a module" in str(error)


def test_an_input_that_cannot_be_pickled(pool: ProcessPoolExecutor) -> None:
    """A value of a local class, say, which can be saved all the same."""

    @dataclass
    class Local:
        x: int

    @step
    def make(n: int) -> Any:
        return Local(n)

    error = run(make >> steps.fine, 1, pool).error
    assert isinstance(error, NotPicklableError)
    assert (error.part, error.step) == ("input", "fine")
    assert "Local" in str(error)


def test_an_input_that_does_not_arrive(pool: ProcessPoolExecutor) -> None:
    """What cannot be made again on the other side is the same error, and no broken pool."""
    error = run(steps.fine, steps.Fragile(1), pool).error
    assert isinstance(error, NotPicklableError)
    assert error.part == "input" and "ValueError: broken on the way" in str(error)
    assert run(steps.fine, 1, pool).output == ANSWER


# --- errors ---


def test_an_error_arrives_as_itself(pool: ProcessPoolExecutor) -> None:
    """With its arguments, and with the traceback of the other process for a cause."""
    error = run(steps.fail, "value", pool).error
    assert (type(error), error.args) == (ValueError, ("wrong", 7))
    assert "executor_steps.py" in str(error.__cause__) and "in raising" in str(error.__cause__)
    assert "shipping.py" not in str(error.__cause__)


def test_an_error_with_a_note(pool: ProcessPoolExecutor) -> None:
    """Notes come along."""
    error = run(steps.fail, "noted", pool).error
    assert (type(error), error.args, error.__notes__) == (KeyError, ("k",), ["look there"])


def test_an_error_whose_init_pickle_cannot_call(pool: ProcessPoolExecutor) -> None:
    """It arrives as itself all the same."""
    error = run(steps.fail, "two parts", pool).error
    assert isinstance(error, steps.TwoParts)
    assert (str(error), error.why) == ("no delivery because of snow", "snow")
    error = run(steps.fail, "prefixed", pool).error
    assert (type(error), str(error)) == (steps.Prefixed, "no stock")


def test_an_error_that_cannot_be_pickled(pool: ProcessPoolExecutor) -> None:
    """Its type and text arrive, and the pool is as good as before."""
    result = run(steps.fail, "locked", pool)
    assert isinstance(result.error, RecordedError)
    assert (result.error.type_name, result.error.text) == ("tests.support.executor_steps.Locked", "holds a lock")
    assert "in raising" in result.error.traceback
    assert result.step_history[0].attempts == 2
    assert run(steps.fine, 1, pool).output == ANSWER


def test_an_error_that_is_final_and_cannot_be_pickled(pool: ProcessPoolExecutor) -> None:
    """It ends the retrying here as well."""
    result = run(steps.fail, "locked for good", pool)
    assert isinstance(result.error, NonRetryableError) and "never again" in str(result.error)
    assert result.step_history[0].attempts == 1


def test_a_failure_there_is_retried(pool: ProcessPoolExecutor) -> None:
    """The function is told which attempt it is."""
    result = run(steps.fail, "attempt", pool)
    assert (result.output, result.step_history[0].attempts) == (ANSWER, 2)


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
