"""Steps on a Dask cluster: a scheduler and a worker process of their own, on this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

from flujo import Flujo, Pipeline, Step, step
from flujo.errors import NotPicklableError, RecordedError, StepTimeoutError, WorkerDiedError
from flujo.execution import shipping
from flujo.execution.current import CurrentStep
from flujo.execution.events import Event, StepRetrying
from flujo.testing import VirtualClock
from tests.support import executor_steps as steps
from tests.support.executor_steps import ANSWER, Point, Shop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One worker process. That it dies counts at once: by itself Dask would run the task again, three times."""
    settings = {"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": "30s"}
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": True, "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(settings), LocalCluster(**options, silence_logs=logging.CRITICAL) as found:
        yield found


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A connection to it."""
    with Client(cluster) as found:
        yield found


def run(made: Step[Any, Any] | Pipeline[Any, Any], given: Any, client: Client, **options: Any) -> Any:
    executors = {"cpu": client.get_executor()}
    return Flujo(made, executors=executors, clock=VirtualClock(), **options).run(given, run_id="r")


def test_a_worker_of_the_cluster(client: Client) -> None:
    """The function runs there, with values of the user's own classes and a context that comes back."""
    assert run(steps.where, 1, client).output == client.run(os.getpid).popitem()[1]
    assert run(steps.move, Point(3, (1,)), client).output == Point(4, (1, 3))
    there, here = run(steps.myself, 1, client).output, run(step(name="myself")(steps.myself.fn), 1, client).output
    assert there == here
    result = run(steps.sell, 3, client, context_model=Shop)
    assert result.final_pipeline_context == Shop(sold=3, log=["attempt 2"])


def test_functions_without_a_name_there(client: Client) -> None:
    """Dask can send a function whole: lambdas, local functions and what they enclose."""
    by = 3

    @step(executor="cpu")
    def local(n: int) -> int:
        return n * by

    assert run(local, 2, client).output == 6
    assert run(step(executor="cpu", name="f")(lambda n: n + by), 2, client).output == 5
    assert run(step(executor="cpu")(partial(steps.scaled, by=by)), 2, client).output == 6


def test_errors(client: Client) -> None:
    """They arrive as themselves, or as text, and each attempt is a call of its own: Dask remembers none."""
    error = run(steps.fail, "value", client).error
    assert (type(error), error.args) == (ValueError, ("wrong", 7))
    assert "in raising" in str(error.__cause__)
    assert isinstance(run(steps.fail, "locked", client).error, RecordedError)
    result = run(steps.fail, "attempt", client)
    assert (result.output, result.step_history[0].attempts) == (ANSWER, 2)


def test_the_same_call_twice(client: Client, tmp_path: Path) -> None:
    """Two runs of one run_id, in stores of their own, are two calls, though everything about them is equal."""

    @step(executor="cpu")
    def note(file: str) -> int:
        with open(file, "a") as notes:
            return notes.write("called\n")

    async def main() -> None:
        runners = [Flujo(note, executors={"cpu": client.get_executor()}) for _ in range(2)]
        await asyncio.gather(*(runner.run_async(str(tmp_path / "notes"), run_id="r") for runner in runners))

    asyncio.run(main())
    assert (tmp_path / "notes").read_text() == "called\n" * 2


def test_a_function_of_main_goes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `__main__` of a worker is another one, so that a step's name would not be found there."""

    def shown(n: int) -> int:
        return n + 1

    shown.__module__, shown.__qualname__ = "__main__", "shown"
    made = step(executor="cpu")(shown)
    monkeypatch.setattr(sys.modules["__main__"], "shown", made, raising=False)
    call = shipping.pack(made, 1, None, CurrentStep("r", ("shown",), 1, None), by_value=True)
    monkeypatch.undo()
    assert shipping.unpack(shipping.perform(*call), None) == 2


@pytest.mark.parametrize(
    ("how", "says"), [("lock", "cannot pickle '_thread.lock'"), ("coroutine", "it is a coroutine")]
)
def test_what_cannot_be_pickled(client: Client, how: str, says: str) -> None:
    """Not even by Dask: the error names the step, the part and the reason."""
    error = run(steps.fail, how, client).error
    assert isinstance(error, NotPicklableError)
    assert (error.part, error.step) == ("output", "fail")
    assert says in str(error)


def test_a_function_that_holds_what_cannot_be_pickled(client: Client) -> None:
    """It is refused before anything is sent."""
    lock = threading.Lock()

    @step(executor="cpu")
    def local(n: int) -> bool:
        return lock.locked()

    error = run(local, 1, client).error
    assert isinstance(error, NotPicklableError)
    assert error.part == "function" and "lock" in str(error)


def test_a_worker_is_killed(client: Client) -> None:
    """The attempt has failed; Dask starts another worker, and the next attempt runs there."""
    errors: list[BaseException] = []

    def hook(event: Event) -> None:
        if isinstance(event, StepRetrying):
            errors.append(event.error)

    result = run(steps.fail, "kill once", client, hooks=[hook])
    assert (result.output, result.step_history[0].attempts) == (ANSWER, 2)
    assert isinstance(errors[0], WorkerDiedError) and "KilledWorker" in str(errors[0])
    assert isinstance(run(steps.fail, "kill", client).error, WorkerDiedError)


def test_nothing_is_kept_on_the_cluster(client: Client) -> None:
    """What is kept there Dask would compute again when a worker dies: a step that has succeeded would run twice."""
    results = [run(steps.fail, how, client) for how in ("value", "attempt", "locked", "exit")]
    client.sync(asyncio.sleep, 0)
    assert list(client.futures) == []
    assert len(results) == 4


def test_a_time_out_and_a_cancelled_run(client: Client, gates: tuple[str, str]) -> None:
    """The call is taken back; nobody hears of what it came to, though its loop and its client are gone by then."""
    patient = step(executor="cpu", timeout=0.3)(steps.late.fn)
    assert isinstance(run(patient, gates, client).error, StepTimeoutError)
    steps.pass_on(gates[1])

    async def main() -> None:
        runner = Flujo(steps.late.with_timeout(60), executors={"cpu": client.get_executor()})
        task = asyncio.create_task(runner.run_async(gates, run_id="r"))
        await asyncio.to_thread(steps.wait_at, gates[0])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    steps.pass_on(gates[1])
    assert run(steps.fine, 1, client).output == ANSWER


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Where a step says that it has begun, and where it waits."""
    with steps.two_gates(tmp_path) as names:
        yield names


def test_an_executor_that_is_shut_down(client: Client, gates: tuple[str, str]) -> None:
    """The step in flight is given back, and later ones are not taken: both are failures of the attempt."""
    executor = client.get_executor()
    alone = step(executor="cpu")(steps.late.fn)

    async def main() -> Any:
        task = asyncio.create_task(Flujo(alone, executors={"cpu": executor}).run_async(gates))
        await asyncio.to_thread(steps.wait_at, gates[0])
        await asyncio.to_thread(executor.shutdown, wait=False)
        return await task

    error = asyncio.run(main()).error
    steps.pass_on(gates[1])
    assert isinstance(error, WorkerDiedError) and "gave step 'late' back" in str(error)
    error = Flujo(steps.fine, executors={"cpu": executor}).run(1).error
    assert isinstance(error, WorkerDiedError) and "did not take step 'fine'" in str(error)


def test_a_client_that_is_closed(client: Client) -> None:
    """It takes no steps, and says so."""
    executor = client.get_executor()
    client.close()
    error = Flujo(steps.fine, executors={"cpu": executor}).run(1).error
    assert isinstance(error, WorkerDiedError)
    assert "did not take step 'fine'" in str(error) and "Client is closed" in str(error)
