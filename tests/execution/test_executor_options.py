"""Which executors a runner has: what it is given, what makes them and when, thread pools, whole programs."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from flujo import Flujo, PipelineRegistry, Step, current_step, step
from flujo.errors import ConfigurationError, StepTimeoutError, WorkerDiedError
from flujo.execution.executors import Executors, Pool
from flujo.testing import VirtualClock
from tests.support import executor_program
from tests.support import executor_steps as steps

VARIABLE: ContextVar[str] = ContextVar("variable", default="nothing")


@step(executor="cpu")
def count(n: int) -> int:
    return n + 1


class Noted(ThreadPoolExecutor):
    """Notes that it was shut down, and how."""

    def __init__(self) -> None:
        super().__init__(1)
        self.told: list[bool] = []
        self.ended = threading.Event()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        self.told.append(wait)
        self.ended.set()


# --- what a runner is given ---


def nested(inner: Step[Any, Any]) -> list[Step[Any, Any]]:
    @step
    def plain(n: Any) -> Any:
        return n

    return [
        inner,
        Step.parallel("p", left=plain, right=plain >> inner),
        Step.map_over("m", inner),
        Step.branch_on("b", by=lambda n: "x", x=plain, y=inner),
        Step.loop_until("l", plain >> Step.map_over("m", inner), until=lambda n: True),
        (plain >> inner).as_step("n"),
        plain.fallback(inner),
        step(undo=inner)(lambda_free),
    ]


def lambda_free(n: Any) -> Any:
    return n


@pytest.mark.parametrize("made", nested(count), ids=lambda made: str(made.kind))
def test_a_name_that_is_not_there(made: Step[Any, Any]) -> None:
    """Wherever it is used, the runner says so before anything runs, with what is there, and what was meant."""
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ConfigurationError) as caught:
            Flujo(made, executors={"cpus": pool, "gpu": pool})
        Flujo(made, executors={"cpu": pool})
    assert "Step 'count' runs in executor 'cpu', but this runner has only 'cpus', 'gpu'." in str(caught.value)
    assert "Did you mean 'cpus'?" in str(caught.value)
    assert (caught.value.executor, caught.value.executors) == ("cpu", ["cpus", "gpu"])


def test_no_executors_at_all() -> None:
    """A step that names one needs it: it does not run just anywhere. Others need none."""
    with pytest.raises(ConfigurationError, match="but this runner has no executors"):
        Flujo(count)
    assert Executors().get(None) is None


def test_a_pipeline_that_was_registered_later() -> None:
    """Its steps are looked at before the run begins."""
    registry = PipelineRegistry()
    registry.register(step(name="first")(lambda n: n), "p", "1.0.0")
    runner = Flujo(registry=registry, pipeline_name="p")
    registry.register(count, "p", "2.0.0")
    with pytest.raises(ConfigurationError, match="has no executors"):
        runner.run(1)


async def make_async() -> Executor:
    return ThreadPoolExecutor(1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cpu": 4}, "Executor 'cpu' is 4, which is neither"),
        ({"cpu": None}, "Executor 'cpu' is None, which is neither"),
        ({"cpu": make_async}, "which is neither a concurrent.futures.Executor nor makes one"),
        ({"": ThreadPoolExecutor}, "'' cannot name an executor"),
        ({3: ThreadPoolExecutor}, "3 cannot name an executor"),
        ([ThreadPoolExecutor], "executors is a dict of executors by name, not list"),
    ],
)
def test_what_is_no_executor(given: Any, says: str) -> None:
    """Neither an Executor nor a plain function, or no name, or no dict."""
    with pytest.raises(ConfigurationError) as caught:
        Flujo(count, executors=given)
    assert says in str(caught.value)
    assert caught.value.hint


def test_what_makes_no_executor() -> None:
    """The step fails, and the error says which executor could not be made."""
    error = Flujo(count, executors={"cpu": dict}).run(1).error  # type: ignore[dict-item]
    assert isinstance(error, ConfigurationError)
    assert "What makes executor 'cpu' returned {}" in str(error)


def test_an_executor_that_cannot_be_made_now() -> None:
    """A cluster out of reach, say, is a failure of the attempt."""
    answers: list[Callable[[], Executor]] = [lambda: steps.raising(OSError("no route")), Noted]  # type: ignore[list-item, return-value]
    made = step(executor="cpu", retries=[0])(lambda_free)
    result = Flujo(made, executors={"cpu": lambda: answers.pop(0)()}).run(1)
    assert (result.output, result.step_history[0].attempts) == (1, 2)


def test_what_makes_an_executor_says_which() -> None:
    """Its error has a note of the executor's name."""
    error = Flujo(count, executors={"far": Noted, "cpu": lambda: steps.raising(OSError("no route"))}).run(1).error  # type: ignore[dict-item]
    assert isinstance(error, OSError)
    assert error.__notes__ == ["Raised by what makes executor 'cpu'."]


# --- when they are made, and who shuts them down ---


def test_made_once_and_off_the_event_loop() -> None:
    """When a step needs it. While it is made the event loop goes on; steps that ask meanwhile get the same one."""
    made: list[Noted] = []
    free = threading.Event()

    def make() -> Noted:
        assert free.wait(20)
        made.append(Noted())
        return made[-1]

    async def main() -> None:
        runner = Flujo(count, executors={"cpu": make})
        assert made == []
        tasks = [asyncio.create_task(runner.run_async(n)) for n in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
        free.set()
        assert [(await task).output for task in tasks] == [1, 2, 3]

    asyncio.run(main())
    assert len(made) == 1


def test_a_broken_one_is_replaced_once() -> None:
    """Of all who lost a step in it, the first to say so; who comes later does not take the new one from the others."""

    async def main() -> None:
        pool = Pool("cpu", Noted)
        broken = await pool.ready()
        pool.replace(broken)
        new = await pool.ready()
        pool.replace(broken)
        assert await pool.ready() is new is not broken
        assert isinstance(broken, Noted) and broken.told == [False]

    asyncio.run(main())


def test_shut_down_with_the_runner() -> None:
    """What was made for the runner is shut down when the runner is gone, and nobody waits for that."""
    made: list[Noted] = []

    def make() -> Noted:
        made.append(Noted())
        return made[-1]

    runner = Flujo(count, executors={"cpu": make})
    assert runner.run(1).output == 2
    assert not made[0].ended.is_set()
    del runner
    gc.collect()
    assert made[0].ended.wait(20)
    assert made[0].told == [False]


def test_an_executor_of_the_callers_is_left_alone() -> None:
    """It was there before the runner, and is there after it."""
    pool = Noted()
    runner = Flujo(count, executors={"cpu": pool})
    assert runner.run(1).output == 2
    del runner
    gc.collect()
    assert pool.submit(abs, -1).result(20) == 1
    pool.shutdown()
    assert pool.told == [True]


class Losing(ThreadPoolExecutor):
    """Takes calls, and gives them back undone."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()
        return future


class Inventive(ThreadPoolExecutor):
    """Has errors of its own."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(LookupError("no worker has a GPU"))
        return future


def test_an_executor_that_gives_the_step_back() -> None:
    """A failed attempt, and not a cancelled run."""
    with Losing(1) as pool:
        error = Flujo(count, executors={"cpu": pool}).run(1).error
    assert isinstance(error, WorkerDiedError)
    assert "Executor 'cpu' gave step 'count' back" in str(error)


def test_an_error_of_the_executor_itself() -> None:
    """It arrives as it is, with a note that it is not the step's."""
    with Inventive(1) as pool:
        error = Flujo(count, executors={"cpu": pool}).run(1).error
    assert isinstance(error, LookupError)
    assert error.__notes__ == ["Raised by executor 'cpu', not by step 'count'."]


# --- threads ---


def test_a_thread_pool() -> None:
    """It gets the function itself: local functions, any value, the context, context variables, and what is awaited."""
    lock = threading.Lock()
    names: list[str] = []

    @step(executor="pool")
    def local(n: int, *, context: dict[str, Any]) -> Any:
        names.append(threading.current_thread().name)
        assert VARIABLE.get() == "the caller's"
        context["lock"] = lock.locked()
        return current_step().run_id

    async def real(text: str) -> str:
        return text + "!"

    @step(executor="pool")
    def wrapper(text: str) -> Any:
        return real(text)

    async def main(pool: Executor) -> Any:
        VARIABLE.set("the caller's")
        return await Flujo(local >> wrapper, executors={"pool": pool}).run_async(1, run_id="r")

    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        result = asyncio.run(main(pool))
    assert (result.output, result.final_pipeline_context) == ("r!", {"lock": False})
    assert names == ["mine_0"]


def test_an_error_in_a_thread_pool() -> None:
    """It is the object that was raised, also where it looks like one of the executor's own."""
    error = WorkerDiedError("my own")

    @step(executor="cpu")
    def fail(n: int) -> int:
        raise error

    with ThreadPoolExecutor(1) as pool:
        assert Flujo(fail, executors={"cpu": pool}).run(1).error is error


def test_a_time_out_in_a_thread_pool() -> None:
    """The function is told that nobody waits for it any more."""
    told = threading.Event()

    @step(executor="cpu", timeout=0.02)
    def slow(n: int) -> int:
        me = current_step()
        for _ in range(4000):
            if me.cancelled:
                told.set()
                break
            threading.Event().wait(0.005)
        return n

    with ThreadPoolExecutor(1) as pool:
        assert isinstance(Flujo(slow, executors={"cpu": pool}).run(1).error, StepTimeoutError)
        assert told.wait(20)


def test_a_call_that_has_not_begun_is_taken_back() -> None:
    """Its place in the queue is given up with the attempt, and the function is never called."""
    busy, calls = threading.Event(), 0

    @step(executor="cpu", timeout=0.02, retries=[0])
    def waiting(n: int) -> int:
        nonlocal calls
        calls += 1
        return n

    with ThreadPoolExecutor(1) as pool:
        pool.submit(busy.wait, 20)
        result = Flujo(waiting, executors={"cpu": pool}, clock=VirtualClock()).run(1)
        busy.set()
    assert isinstance(result.error, StepTimeoutError)
    assert calls == 0


# --- whole programs ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("fork-and-die", "2\n"),  # the attempt that succeeded, and no exit by a SIGTERM that was the workers'
        ("fork-and-terminate", "40\n"),
        ("forked", "True\nTrue\n"),
        ("fork", "True\n"),
        ("spawn", "True\n"),
        ("forkserver", "True\n"),
    ],
)
def test_a_program(task: str, says: str) -> None:
    """See the program. Each ends by itself, with its pool idle, and says nothing more."""
    done = subprocess.run(
        [sys.executable, "-W", "error", executor_program.__file__, task],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, says), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_import_loads_no_processes() -> None:
    """`import flujo` does not load what process pools stand on."""
    code = (
        "import sys, flujo; print({'multiprocessing', 'concurrent.futures.process', 'cloudpickle'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
