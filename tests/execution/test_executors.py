"""Steps that run in executors: what they find there, what comes back, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, NonRetryableError, Step, step
from flujo.errors import NotPicklableError, RecordedError
from flujo.execution import shipping
from flujo.execution.current import CurrentStep
from flujo.execution.events import Event, StepProgress
from tests.support import executor_steps as steps
from tests.support.executor_pools import processes, run
from tests.support.executor_steps import ANSWER, Point, Shop

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


def test_the_items_of_a_map(gates: tuple[str, str]) -> None:
    """Two items have two workers at work at the same time."""
    with processes(2) as pool:
        output = run(Step.map_over("both", steps.meet, max_concurrency=2), [gates, gates[::-1]], pool).output
    assert len(set(output)) == 2


def test_branches_with_contexts(pool: ProcessPoolExecutor) -> None:
    """Each branch's copy goes to the worker and back, and what they changed comes together."""

    @step
    def note(n: int, *, context: Shop) -> int:
        context.extra = n
        return n

    result = run(Step.parallel("p", there=steps.sell, here=note), 3, pool, context_model=Shop)
    assert result.output == {"there": 3, "here": 3}
    assert result.final_pipeline_context == Shop(sold=3, log=["attempt 2"], extra=3)


def test_an_undo(pool: ProcessPoolExecutor) -> None:
    """It may run in an executor like any other step."""

    @step(undo=steps.where)
    def pay(n: int) -> int:
        return n * 2

    @step
    def ship(n: int) -> int:
        raise ValueError("nothing on stock")

    result = run(pay >> ship, 2, pool)
    undone = result.step_history[-1]
    assert (undone.path, undone.success) == (("pay", ">undo"), True)
    assert undone.output not in (None, os.getpid())


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
