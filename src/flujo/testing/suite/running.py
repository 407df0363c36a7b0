"""Runs on the backend: what a runner relies on, at every backend."""

from __future__ import annotations

import asyncio
import threading
import warnings
from pathlib import Path
from typing import Any

from flujo.errors import NotSerializableError, PipelineChangedError, RecordedError
from flujo.pipeline import step
from flujo.runner.opening import InputIgnoredWarning
from flujo.state.backends.base import State
from flujo.testing.suite import values
from flujo.testing.suite.base import (
    NAME,
    PATIENCE_S,
    SuiteBase,
    expect_saved,
    finish,
    load,
    not_applicable,
    runner,
    state_of,
)
from flujo.testing.suite.expect import expect, refused, same, shown
from flujo.testing.suite.steps import NAMES, CancelledAt, Save, abc, adding, overriding, sampling

_RUN = "run"
_MANY = 200


class RunningTests(SuiteBase):
    """`Flujo` on the backend."""

    def test_each_step_is_saved_before_the_next_one_starts(self, tmp_path: Path) -> None:
        """What a step finds in the store is the state after the step before it, with the output of that."""
        backend = self.open(tmp_path)
        other = self.reopen(tmp_path, backend)
        found: list[Any] = []

        async def look() -> None:
            for looked in (backend, other):
                state = await looked.load_state(_RUN)
                found.append(None if state is None else state["current_step_index"])

        pipeline = adding("a", [], look) >> adding("b", [], look) >> adding("c", [], look)
        result = runner(pipeline, backend).run([], run_id=_RUN)
        same(result.output, ["a", "b", "c"], "the output of the run")
        same(found, [None, None, 1, 1, 2, 2], "current_step_index in the store when steps 0, 1 and 2 began")
        state = finish(load(other, _RUN))
        same([state["current_step_index"], state["status"]], [3, "completed"], "index and status after the run")
        same(state["last_step_output"], ["a", "b", "c"], "last_step_output after the run")

    def test_a_completed_run_is_not_executed_again(self, tmp_path: Path) -> None:
        """The second `run` of a run_id gives the recorded result, and leaves the state as it is."""
        backend = self.open(tmp_path)
        executed: list[str] = []
        first = runner(abc(executed), backend).run(["in"], run_id=_RUN)
        before = finish(load(backend, _RUN))
        for _ in range(2):
            backend = self.reopen(tmp_path, backend)
            again = runner(abc(executed), backend).run(["in"], run_id=_RUN)
            same(again.output, first.output, "the output of a run that was completed before")
            same([r.name for r in again.step_history], list(NAMES), "the history of a run that was completed before")
        same(executed, list(NAMES), "the steps executed by three calls of run")
        finish(expect_saved(backend, before, "the state of a completed run, after looking at it"))

    def test_a_failed_run_goes_on_where_it_failed(self, tmp_path: Path) -> None:
        """The failure is on record; the next run tries that step again, with its own input, and none before it."""
        backend = self.open(tmp_path)
        executed: list[str] = []
        down = True

        async def maybe() -> None:
            if down:
                raise OSError("the line is down")

        for attempts in (1, 2):
            backend = self.reopen(tmp_path, backend)
            result = runner(abc(executed, at_b=maybe), backend).run(["in"], run_id=_RUN)
            same(result.status, "failed", "the status of a run whose second step raises")
            same([(r.name, r.attempts) for r in result.step_history], [("a", 1), ("b", attempts)], "its history")
            state = finish(load(backend, _RUN))
            same([state["current_step_index"], state["status"]], [1, "failed"], "index and status of a failed run")
            same(state["last_step_output"], ["in", "a"], "the last output of a failed run")
        down = False
        backend = self.reopen(tmp_path, backend)
        result = runner(abc(executed, at_b=maybe), backend).run(["in"], run_id=_RUN)
        same(result.output, ["in", *NAMES], "the output of a run that failed twice on its way")
        same([r.name for r in result.step_history], list(NAMES), "its history")
        same(executed, ["a", "b", "b", "b", "c"], "the steps executed by three calls of run")

    def test_what_a_run_began_with_is_kept(self, tmp_path: Path) -> None:
        """A run that failed at its first step has its input, structure and failure on record in the store."""
        backend = self.open(tmp_path)
        executed: list[str] = []

        async def fail() -> None:
            raise OSError("the line is down")

        runner(adding("a", executed, fail), backend).run([1, (2,)], run_id=_RUN)
        backend = self.reopen(tmp_path, backend)
        error = RecordedError(f"OSError: {(finish(load(backend, _RUN)).get('error') or {}).get('text')}")
        same(str(error), "OSError: the line is down", "the failure that is on record")
        with refused(PipelineChangedError, "resuming with another structure (is the fingerprint kept?)"):
            runner(adding("other", executed), backend).run([1, (2,)], run_id=_RUN)
        backend = self.reopen(tmp_path, backend)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = runner(adding("a", executed), backend).run(["another"], run_id=_RUN)
        same(result.output, [1, (2,), "a"], "the output of a run that kept its own input")
        same([w.category for w in caught], [InputIgnoredWarning], "the warnings of a run called with another input")

    def test_a_run_that_waits_or_is_cancelled_is_left_alone(self, tmp_path: Path) -> None:
        """`run` gives how it stands; nothing is executed and nothing is changed."""
        backend = self.open(tmp_path)
        executed: list[str] = []
        for status in ("paused", "cancelled"):
            state = state_of(status, 1, status=status, last_step_output=["a"])
            finish(backend.save_state(status, dict(state)))
            for _ in range(2):
                backend = self.reopen(tmp_path, backend)
                result = runner(abc(executed), backend).run([], run_id=status)
                same(result.status, status, f"what run() says of a run that is {status}")
                finish(expect_saved(backend, state, f"the state of a {status} run, after run()"))
        same(executed, [], f"the steps executed of {NAME} runs that wait or are cancelled")

    def test_a_state_saved_by_hand_goes_on_at_its_index(self, tmp_path: Path) -> None:
        """The ten fields alone are enough to go on with."""
        backend = self.open(tmp_path)
        executed: list[str] = []
        finish(backend.save_state(_RUN, state_of(_RUN, 1, last_step_output=["by hand"], pipeline_context={})))
        backend = self.reopen(tmp_path, backend)
        result = runner(abc(executed), backend).run([], run_id=_RUN)
        same(result.output, ["by hand", "b", "c"], "the output of a run that was put there by hand at index 1")
        same(executed, ["b", "c"], "the steps executed of it")

    def test_values_come_back_exactly_from_a_run(self, tmp_path: Path) -> None:
        """Input, outputs and context are what they were, of every type that flujo stores, after each resume."""
        values.register()
        backend = self.open(tmp_path)
        executed: list[str] = []
        received: list[Any] = []
        failures = iter([True, False, True, False])

        def gate() -> None:
            if next(failures, False):
                raise OSError("try again")

        for _ in range(3):
            backend = self.reopen(tmp_path, backend)
            result = runner(sampling(executed, received, gate), backend).run(values.samples(), run_id=_RUN)
        same(executed, ["make", "make", "take", "take"], "the steps executed by three calls of run")
        for value, what in zip(received[1:], ("input", "output", "context", "output", "context"), strict=True):
            same(value, values.samples(), f"the {what} that a step got, in a run that was resumed")
        backend = self.reopen(tmp_path, backend)
        result = runner(sampling(executed, received, gate), backend).run(values.samples(), run_id=_RUN)
        same(result.output, values.samples(), "the output of a completed run")
        same(result.final_pipeline_context, {"made": values.samples()}, "the context of a completed run")
        for record in result.step_history:
            same(record.output, values.samples(), f"the output of step {record.name} in the history")

    def test_values_come_back_exactly_by_hand(self, tmp_path: Path) -> None:
        """`save_state` and `load_state` are enough, without any pipeline, where the backend has a codec."""
        values.register()
        backend = self.open(tmp_path)
        if backend.codec is None:
            not_applicable("the backend has no codec, so that it is handed plain JSON only")
        state = state_of(_RUN, pipeline_context={"it": values.samples()}, last_step_output=values.samples())
        finish(backend.save_state(_RUN, state))
        found = finish(load(self.reopen(tmp_path, backend), _RUN))
        same(found["last_step_output"], values.samples(), "last_step_output")
        same(found["pipeline_context"], {"it": values.samples()}, "pipeline_context")

    def test_a_value_that_cannot_be_restored_fails_the_run(self, tmp_path: Path) -> None:
        """It is refused at the save, with the path to it; the run is `failed`, and the steps before it are kept."""
        backend = self.open(tmp_path)
        executed: list[str] = []

        @step(name="b")
        async def opening(items: list[Any]) -> dict[str, Any]:
            return {"items": [1, object()]}

        for _ in range(2):
            result = runner(adding("a", executed) >> opening, backend).run([], run_id=_RUN)
            same(result.status, "failed", "the status of a run whose output cannot be restored")
            expect(
                isinstance(result.error, NotSerializableError) and "items" in result.error.path,
                f"its error is {result.error!r}, not a NotSerializableError with the path to the value.",
            )
            backend = self.reopen(tmp_path, backend)
            state = finish(load(backend, _RUN))
            same([state["current_step_index"], state["status"]], [1, "failed"], "index and status of that run")
            same(state["last_step_output"], ["a"], "the last output of that run")
        same(executed, ["a"], "the steps executed of that run, but for the one that fails")

    def test_a_subclass_sees_every_checkpoint(self, tmp_path: Path) -> None:
        """An override of save_state that awaits `super()` sees index 1 before the second step starts, and so on."""
        backend = self.open(tmp_path)
        events: list[Any] = []

        async def watching(save: Save, run_id: str, state: State) -> None:
            await save(run_id, state)
            events.append((run_id, state["current_step_index"], state["status"]))
            same((await load(backend, run_id))["current_step_index"], state["current_step_index"], "index after a save")

        overriding(backend, watching)
        same(runner(abc(events), backend).run([], run_id=_RUN).output, list(NAMES), "the output")
        seen = ["a", (_RUN, 1, "running"), "b", (_RUN, 2, "running"), "c", (_RUN, 3, "completed")]
        same(events, seen, "the steps and the saves, in order")

    def test_an_error_in_a_save_stops_the_run(self, tmp_path: Path) -> None:
        """What save_state raises comes out of `run`; nothing more is executed, and the next run goes on from there."""
        backend = self.open(tmp_path)
        executed: list[str] = []
        broken = True

        async def failing(save: Save, run_id: str, state: State) -> None:
            if broken and state["current_step_index"] == 2:
                raise ConnectionError("the store is gone")
            await save(run_id, state)

        overriding(backend, failing)
        for _ in range(2):
            with refused(ConnectionError, "a run whose save fails"):
                runner(abc(executed), backend).run([], run_id=_RUN)
            same(finish(load(backend, _RUN))["current_step_index"], 1, "the index after a save that failed")
        broken = False
        same(runner(abc(executed), backend).run([], run_id=_RUN).output, list(NAMES), "the output in the end")
        same(executed, ["a", "b", "b", "b", "c"], "the steps executed by three calls of run")

    def test_a_run_cancelled_at_any_await_goes_on(self, tmp_path: Path) -> None:
        """Wherever a run is cancelled, what was saved stays, and the next run does the rest and nothing twice."""
        backend = self.open(tmp_path)
        for number in range(1, _MANY):
            executed: list[str] = []
            flujo, run_id = runner(abc(executed), backend), f"cancelled at its await {number}"
            cancelled = finish(_cancelled_at(flujo.run_async([], run_id=run_id), number, run_id))
            state = finish(backend.load_state(run_id))
            index = state["current_step_index"] if state is not None else 0
            expect(
                index <= len(executed) <= index + 1,
                f"run {run_id!r} executed {executed}, and its state is at index {index}.",
            )
            try:
                result = flujo.run([], run_id=run_id)
            except Exception as error:
                raise AssertionError(f"run {run_id!r} does not go on: {type(error).__name__}: {error}") from error
            same(result.output, list(NAMES), f"the output of run {run_id!r}")
            same(executed[-(3 - index) :] if index < 3 else [], list(NAMES[index:]), f"what was executed of {run_id!r}")
            if not cancelled:
                return
        raise AssertionError(f"a run of three steps waits more than {_MANY} times.")

    def test_many_runs_at_once(self, tmp_path: Path) -> None:
        """Runs in several threads, each with event loops of its own, and several in one loop, on one backend."""
        backend = self.open(tmp_path)
        problems: list[str] = []

        def one(number: int, run: int) -> tuple[Any, list[Any], str]:
            return runner(abc([]), backend), [number, run], f"run {number}/{run}"

        def serial(number: int) -> None:
            try:
                for run in range(3):
                    flujo, given, run_id = one(number, run)
                    same(flujo.run(given, run_id=run_id).output, [*given, *NAMES], f"the output of {run_id!r}")
            except BaseException as error:
                problems.append(f"{type(error).__name__}: {error}")

        async def together() -> None:
            runs = [one(99, run) for run in range(20)]
            results = await asyncio.gather(*(flujo.run_async(given, run_id=run_id) for flujo, given, run_id in runs))
            for result, (_, given, run_id) in zip(results, runs, strict=True):
                same(result.output, [*given, *NAMES], f"the output of {run_id!r}, one of 20 in one event loop")

        threads = [threading.Thread(target=serial, args=(number,), daemon=True) for number in range(6)]
        for thread in threads:
            thread.start()
        finish(together())
        for thread in threads:
            thread.join(PATIENCE_S)
        expect(not any(thread.is_alive() for thread in threads), "a run in a thread of its own does not end.")
        expect(not problems, f"a run in a thread of its own went wrong: {problems[:1]}")
        for number in (*range(6), 99):
            for run in range(3):
                _, given, run_id = one(number, run)
                state = finish(load(backend, run_id))
                same(state["last_step_output"], [*given, *NAMES], f"the stored output of {run_id!r}, one of many")

    def test_created_at_is_set_once(self, tmp_path: Path) -> None:
        """`created_at` is of the run's first call, `updated_at` of its newest save; both are aware, in UTC."""
        backend = self.open(tmp_path)
        times: list[tuple[Any, Any]] = []

        async def fail() -> None:
            raise OSError("down")

        for at_b in (fail, fail, None):
            backend = self.reopen(tmp_path, backend)
            runner(abc([], at_b=at_b), backend).run([], run_id=_RUN)
            state = finish(load(backend, _RUN))
            times.append((state["created_at"], state["updated_at"]))
        same([created for created, _ in times], [times[0][0]] * 3, "created_at after each of three calls of run")
        updates = [times[0][0], *(updated for _, updated in times)]
        expect(updates == sorted(updates), f"updated_at goes back: {shown([str(time) for time in updates])}.")


async def _cancelled_at(run: Any, number: int, run_id: str) -> bool:
    """Cancel a run at its `number`-th await; return False where it has not so many."""
    waiting = CancelledAt(run, number)

    async def go() -> Any:
        return await waiting

    try:
        await asyncio.ensure_future(go())
    except asyncio.CancelledError:
        return True
    expect(not waiting.done, f"run {run_id!r} was cancelled and ended as if nothing had happened.")
    return False
