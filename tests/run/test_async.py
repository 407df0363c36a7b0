"""The forms in which a run can be had: awaited, scheduled, iterated, attached to."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, StepResult, current_step, step
from flujo.errors import InvalidRunIdError, RunInProgressError, RunInsideLoopError
from tests.support.backends import Place
from tests.support.pipelines import abc, adding


class Gate:
    """A step that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.calls = 0

        @step
        async def gate(items: list[Any]) -> list[Any]:
            self.calls += 1
            self.entered.set()
            await self.go.wait()
            return [*items, "gate"]

        self.step = gate


def test_every_way_to_wait_for_it(place: Place) -> None:
    """It is a coroutine: await, create_task, gather, wait_for and asyncio.run take it."""
    runner = Flujo(abc([]), state_backend=place.open())

    async def main() -> None:
        assert (await runner.run_async([], run_id="awaited")).output == ["a", "b", "c"]
        task = asyncio.create_task(runner.run_async([], run_id="task"))
        assert "task" in repr(task).lower()
        assert (await task).output == ["a", "b", "c"]
        both = await asyncio.gather(runner.run_async(["x"], run_id="1"), runner.run_async(["y"], run_id="2"))
        assert [result.output[0] for result in both] == ["x", "y"]
        assert (await asyncio.wait_for(runner.run_async([], run_id="limited"), 60)).status == "completed"
        assert (await asyncio.shield(runner.run_async([], run_id="shielded"))).status == "completed"
        async with asyncio.TaskGroup() as group:
            grouped = group.create_task(runner.run_async([], run_id="grouped"))
        assert grouped.result().status == "completed"

    asyncio.run(main())
    assert asyncio.run(runner.run_async([], run_id="whole")).output == ["a", "b", "c"]
    assert asyncio.iscoroutine(runner.run_async([]))


def test_iteration(place: Place) -> None:
    """A StepResult after each step that is saved, and the PipelineResult last."""
    seen: list[Any] = []
    calls: list[str] = []

    async def main() -> list[Any]:
        async for item in Flujo(abc(calls), state_backend=place.open()).run_async([], run_id="r"):
            seen.append((len(calls), type(item)))
            last = item
            if isinstance(item, StepResult):
                state = await place.open().load_state("r")
                assert state is not None and state["current_step_index"] == len(calls)
        return last

    result: Any = asyncio.run(main())
    assert seen == [(1, StepResult), (2, StepResult), (3, StepResult), (3, PipelineResult)]
    assert result.output == ["a", "b", "c"]
    assert [s.name for s in result.step_history] == ["a", "b", "c"]


def test_iteration_over_a_failing_run(place: Place) -> None:
    """The failed step's result comes too, then the failed run's; nothing is raised."""

    @step
    async def fail(items: list[Any]) -> list[Any]:
        raise OSError("down")

    async def main() -> list[Any]:
        pipeline = adding("a", []) >> fail >> adding("c", [])
        return [item async for item in Flujo(pipeline, state_backend=place.open()).run_async([], run_id="r")]

    first, second, result = asyncio.run(main())
    assert (first.name, first.success, second.name, second.success) == ("a", True, "fail", False)
    assert (result.status, str(result.error)) == ("failed", "down")


def test_leaving_the_loop_early_gives_the_run_back(place: Place) -> None:
    """The next run goes on after the last step that was saved, at once."""
    calls: list[str] = []

    async def main() -> None:
        backend = place.open()
        async for item in Flujo(abc(calls), state_backend=backend).run_async([], run_id="r"):
            assert item.name == "a"
            break
        assert calls == ["a"]
        state = await backend.load_state("r")
        assert state is not None and state["status"] == "running"
        result = await Flujo(abc(calls), state_backend=backend).run_async([], run_id="r")
        assert result.output == ["a", "b", "c"]

    asyncio.run(main())
    assert calls == ["a", "b", "c"]


def test_an_error_in_the_loop_gives_the_run_back(place: Place) -> None:
    """What the body of `async for` raises is the caller's, and the run goes on with the next `run`."""
    calls: list[str] = []

    async def main() -> None:
        runner = Flujo(abc(calls), state_backend=place.open())
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async for _ in runner.run_async([], run_id="r"):
                raise ZeroDivisionError
        assert (await runner.run_async([], run_id="r")).output == ["a", "b", "c"]

    asyncio.run(main())
    assert calls == ["a", "b", "c"]


def test_a_cancelled_run_goes_on(place: Place) -> None:
    """Cancelling the task interrupts: the run stays `running`, is given back, and CancelledError comes out."""
    calls: list[str] = []

    async def main() -> None:
        gate = Gate()
        backend = place.open()
        runner = Flujo(adding("a", calls) >> gate.step, state_backend=backend)
        task = asyncio.create_task(runner.run_async([], run_id="r"))
        await gate.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        state = await backend.load_state("r")
        assert state is not None
        assert (state["status"], state["current_step_index"]) == ("running", 1)
        gate.go.set()
        assert (await runner.run_async([], run_id="r")).output == ["a", "gate"]

    asyncio.run(main())
    assert calls == ["a"]


def test_a_timeout_around_the_run_interrupts_it(place: Place) -> None:
    """`asyncio.timeout` raises TimeoutError, and the run goes on with the next `run`."""

    async def main() -> None:
        gate = Gate()
        runner = Flujo(gate.step, state_backend=place.open())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await runner.run_async([], run_id="r")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runner.run_async([], run_id="r"), 0.01)
        gate.go.set()
        assert (await runner.run_async([], run_id="r")).output == ["gate"]

    asyncio.run(main())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("plain", [False, True])
def test_what_ends_the_program_does_not_end_the_run(place: Place, stop: type[BaseException], plain: bool) -> None:
    """KeyboardInterrupt and SystemExit come out of `run`, and are neither completion nor failure."""
    stopping = True

    def work(items: list[Any]) -> list[Any]:
        if stopping:
            raise stop
        return [*items, "worked"]

    async def work_async(items: list[Any]) -> list[Any]:
        return work(items)

    pipeline = adding("a", []) >> step(name="work")(work if plain else work_async)
    for _ in range(2):
        with pytest.raises(stop):
            Flujo(pipeline, state_backend=place.open()).run([], run_id="r")
        state = place.load()
        assert (state["status"], state["current_step_index"], state["error"]) == ("running", 1, None)
    stopping = False
    assert Flujo(pipeline, state_backend=place.open()).run([], run_id="r").output == ["a", "worked"]


def test_run_inside_a_loop(place: Place) -> None:
    """It is an error that says what to call, and there is no warning of a coroutine that was never awaited."""
    runner = Flujo(abc([]), state_backend=place.open())

    async def main() -> None:
        with pytest.raises(RunInsideLoopError, match="run_async"):
            runner.run([], run_id="r")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        gc.collect()
    assert asyncio.run(place.open().load_state("r")) is None


def test_a_run_that_is_never_awaited_does_nothing(place: Place) -> None:
    """It is not begun, and nothing is said of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Flujo(abc([]), state_backend=place.open()).run_async([], run_id="r")
        gc.collect()
    assert asyncio.run(place.open().load_state("r")) is None


def test_a_run_that_is_closed_in_the_middle(place: Place) -> None:
    """`close()` on the coroutine gives the run back, as leaving an iteration early does."""
    calls: list[str] = []

    @step
    async def wait(items: list[Any]) -> list[Any]:
        calls.append("wait")
        await asyncio.sleep(0)
        return [*items, "waited"]

    async def main() -> None:
        runner = Flujo(adding("a", calls) >> wait, state_backend=place.open())
        execution = runner.run_async([], run_id="r")
        while "wait" not in calls:
            future = execution.send(None)
            if future is not None:
                future._asyncio_future_blocking = False
                await asyncio.wait([future])
        execution.close()
        assert (await runner.run_async([], run_id="r")).output == ["a", "waited"]

    asyncio.run(main())
    assert calls == ["a", "wait", "wait"]


def test_a_run_can_be_awaited_once() -> None:
    """A second time is an error, as with any coroutine."""

    async def main() -> None:
        execution = Flujo(abc([])).run_async([])
        await execution
        with pytest.raises(RuntimeError):
            await execution

    asyncio.run(main())


@pytest.mark.parametrize("run_id", ["", " x", "x\n", "a\x00b", "\ud800", "x" * 201, 7, None, b"x"])
def test_an_invalid_run_id(place: Place, run_id: Any) -> None:
    """It is refused at once, before anything is awaited or written."""
    runner = Flujo(abc([]), state_backend=place.open())
    if run_id is None:
        assert runner.run([], run_id=run_id).status == "completed"
        return
    with pytest.raises(InvalidRunIdError):
        runner.run([], run_id=run_id)
    with pytest.raises(InvalidRunIdError):
        runner.run_async([], run_id=run_id)


@pytest.mark.parametrize("run_id", ["daily/2026-01-31", "a b", "ä€😀", "'; DROP TABLE flujo_run; --", "%", "x" * 200])
def test_a_run_id_with_anything_that_is_text(place: Place, run_id: str) -> None:
    """It is kept apart from all others."""
    runner = Flujo(abc([]), state_backend=place.open())
    runner.run(["other"], run_id="other")
    assert runner.run(["x"], run_id=run_id).output[0] == "x"
    assert runner.run(run_id=run_id).output[0] == "x"
    assert runner.run(run_id="other").output[0] == "other"


def test_attaching(place: Place) -> None:
    """With `wait` a second caller gets the first one's result; each step ran once."""

    async def main() -> None:
        gate = Gate()
        backend = place.open()
        first = asyncio.create_task(Flujo(gate.step, state_backend=backend).run_async([], run_id="r"))
        await gate.entered.wait()
        second = asyncio.create_task(Flujo(gate.step, state_backend=backend).run_async([], run_id="r", wait=True))
        third = asyncio.create_task(Flujo(gate.step, state_backend=backend).run_async([], run_id="r", wait=True))
        await asyncio.sleep(0)
        gate.go.set()
        results = await asyncio.gather(first, second, third)
        assert [result.output for result in results] == [["gate"]] * 3
        assert [[s.name for s in result.step_history] for result in results] == [["gate"]] * 3
        assert gate.calls == 1

    asyncio.run(main())


def test_attaching_takes_over_from_an_owner_that_gave_up(place: Place) -> None:
    """When the first caller is cancelled the second one executes the rest."""

    async def main() -> None:
        gate = Gate()
        backend = place.open()
        first = asyncio.create_task(Flujo(gate.step, state_backend=backend).run_async([], run_id="r"))
        await gate.entered.wait()
        gate.entered.clear()
        second = asyncio.create_task(Flujo(gate.step, state_backend=backend).run_async([], run_id="r", wait=True))
        await asyncio.sleep(0)
        first.cancel()
        await gate.entered.wait()
        gate.go.set()
        assert (await second).output == ["gate"]
        assert first.cancelled()

    asyncio.run(main())


def test_waiting_can_be_cancelled(place: Place) -> None:
    """The owner is not disturbed by it."""

    async def main() -> None:
        gate = Gate()
        runner = Flujo(gate.step, state_backend=place.open())
        first = asyncio.create_task(runner.run_async([], run_id="r"))
        await gate.entered.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runner.run_async([], run_id="r", wait=True), 0.02)
        gate.go.set()
        assert (await first).output == ["gate"]

    asyncio.run(main())


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_a_step_that_waits_for_its_own_run(place: Place, wait: bool, plain: bool) -> None:
    """It would wait for ever: it is an error that says so."""
    backend = place.open()

    def again(items: list[Any]) -> Any:
        return Flujo(inner, state_backend=backend).run([], run_id=current_step().run_id, wait=wait)

    async def again_async(items: list[Any]) -> Any:
        return await Flujo(inner, state_backend=backend).run_async([], run_id=current_step().run_id, wait=wait)

    inner = step(name="again")(again if plain else again_async)
    result = Flujo(inner, state_backend=backend).run([], run_id="r")
    assert isinstance(result.error, RunInProgressError)
    assert "its own run" in str(result.error)


def test_a_step_may_run_another_run(place: Place) -> None:
    """A run inside a step has a run_id of its own, and the outer step is the current one again after it."""
    backend = place.open()

    @step
    async def inner(n: int) -> str:
        return current_step().run_id

    @step
    async def outer(n: int) -> Any:
        result = await Flujo(inner, state_backend=backend).run_async(n, run_id="inner")
        return result.output, current_step().run_id, current_step().name

    assert Flujo(outer, state_backend=backend).run(1, run_id="outer").output == ("inner", "outer", "outer")


def test_many_runs_at_once(place: Place) -> None:
    """Runs of one loop on one backend do not mix."""

    @step
    async def yielding(n: int, *, context: dict[str, Any]) -> int:
        context["n"] = n
        await asyncio.sleep(0)
        return n + 1

    @step
    async def check(n: int, *, context: dict[str, Any]) -> tuple[int, int]:
        await asyncio.sleep(0)
        return n, context["n"]

    async def main() -> None:
        runner = Flujo(yielding >> check, state_backend=place.open())
        results = await asyncio.gather(*(runner.run_async(n, run_id=f"r{n}") for n in range(100)))
        assert [result.output for result in results] == [(n + 1, n) for n in range(100)]
        assert [result.run_id for result in results] == [f"r{n}" for n in range(100)]

    asyncio.run(main())


def test_one_backend_in_eight_threads(place: Place) -> None:
    """Each thread has its own event loops; for one run_id there is one owner at a time, and each step runs once."""
    backend = place.open()
    calls: list[str] = []
    runner = Flujo(abc(calls), state_backend=backend)
    results: list[Any] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait(20)
        for turn in range(3):
            results.append(runner.run([number], run_id=f"own {number}.{turn}"))
        results.append(runner.run([0], run_id="shared", wait=True))
        results.append(asyncio.run(runner.run_async([number], run_id=f"async {number}")))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 40
    assert {result.status for result in results} == {"completed"}
    assert all(result.output[1:] == ["a", "b", "c"] for result in results)
    assert len(calls) == 3 * (8 * 4 + 1)


def test_two_runners_of_one_run_at_once(place: Place) -> None:
    """Of many that begin the same run at the same moment, one has it and the others are refused."""
    calls: list[str] = []

    async def main() -> None:
        backend = place.open()
        executions = [Flujo(abc(calls), state_backend=backend).run_async([], run_id="r") for _ in range(10)]
        results = await asyncio.gather(*executions, return_exceptions=True)
        done = [result for result in results if isinstance(result, PipelineResult)]
        assert done and all(result.output == ["a", "b", "c"] for result in done)
        assert {type(result) for result in results} <= {PipelineResult, RunInProgressError}

    asyncio.run(main())
    assert calls == ["a", "b", "c"]
