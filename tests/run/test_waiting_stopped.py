"""A run that waits for everything there is, and ends right after any of its saves: it comes to the same end."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, Merge, Reconciled, StateBackend, Step, current_step, once, step
from flujo.errors import AlreadyAnsweredError, NoVoteError, SaveError
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import Clock, ask

MOST = 60  # processes that a run needs at most


class Trail(BaseModel):
    """A context that branches add to."""

    lines: Annotated[list[str], Merge.APPEND] = []


class Everything:
    """The pipeline; `happened` has what its charges have charged, which must be each once."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.happened: list[str] = []
        self.failures = {"first": 1, "fan.retried.flaky": 1}

    def noting(self, name: str, **options: Any) -> Step[Any, Any]:
        """Return a step that adds a line to the context."""

        @step(name=name, **options)
        async def work(given: Any, *, context: Trail) -> Any:
            path = await self.notes.call()
            context.lines.append(f"{path} {given}")
            if self.failures.get(path):
                self.failures[path] -= 1
                raise OSError("down")
            return given

        return work

    def charge(self) -> Step[Any, Any]:
        """Return a step that must not be done twice."""

        async def find_out(key: str) -> Reconciled:
            return Reconciled(happened=key in self.happened, output=7 if key in self.happened else None)

        @step(name="charge", on_crash=find_out)
        async def charge(given: Any) -> int:
            await self.notes.call()
            self.happened.append(current_step().idempotency_key)
            await once("receipt", lambda: "ok")
            return 7

        return charge

    def pipeline(self) -> Any:
        """Return it."""
        boss = ask("boss", tp=int, timeout=600).fallback(self.noting("deputy"))
        fan = Step.parallel(
            "fan",
            votes=self.noting("a") >> ask("vote", tp=int, quorum=2) >> self.noting("b"),
            signals=Step.wait_for("go", int) >> Step.wait_for("more", int, signal="go") >> self.noting("c"),
            slept=Step.sleep("nap", 3600) >> self.noting("d"),
            retried=self.noting("flaky", retries=[60]) >> self.noting("e"),
            late=boss >> self.charge(),
        )
        many = Step.map_over("many", ask("vote", tp=int) >> self.noting("f"), max_concurrency=2)
        items = step(name="items")(lambda found: [1, 2, 3])
        loop = Step.loop_until("again", Step.wait_for("go", int), until=lambda n: n > 13)
        return (
            self.noting("first", retries=[60]) >> fan >> items >> many >> loop >> self.charge() >> self.noting("last")
        )


class Counted:
    """Backends on one store; the save with number `last` is done, and then raises, as do all after it on that one."""

    def __init__(self, place: Place, last: int) -> None:
        self._place, self._last = place, last
        self.saves = 0
        self.stopped = 0

    def open(self) -> StateBackend:
        """Return a backend, as the next process has it."""
        backend = self._place.open()
        save = type(backend).save_state.__get__(backend)  # in memory it is the one that was opened before
        over = False

        async def save_state(run_id: str, state: dict[str, Any]) -> None:
            nonlocal over
            if not over:
                await save(run_id, state)
                self.saves += 1
                over = self.saves == self._last
                if not over:
                    return
                self.stopped += 1
            raise SaveError("The disk is gone.")

        backend.save_state = save_state  # type: ignore[method-assign]
        return backend


def answers(result: Any) -> list[tuple[str, Any, str]]:
    """Return what to answer a paused run: the path, the answer and who gives it."""
    found: list[tuple[str, Any, str]] = []
    for waiting in result.waiting:
        if waiting.kind == "human" and waiting.step.endswith("vote"):
            item = int(waiting.step.partition("[")[2].partition("]")[0] or 5)
            found += [(waiting.step, item + n, by) for n, by in enumerate(["ann", "bob"][: waiting.quorum])]
    return found


def driven(everything: Everything, backends: Counted, run_id: str) -> Any:
    """Bring the run to its end: answer what is asked, send signals, let the time pass; a process a time."""
    clock, sent = Clock(), 0
    pipeline = everything.pipeline()

    def flow() -> Flujo[Any, Any]:
        return Flujo(pipeline, state_backend=backends.open(), clock=clock, context_model=Trail, pipeline_name="p")

    for _ in range(MOST):
        try:
            result = flow().run(1, run_id=run_id)
        except SaveError:
            continue
        if result.status != "paused":
            return result
        with contextlib.suppress(SaveError):
            for at, answer, by in answers(result):
                with contextlib.suppress(AlreadyAnsweredError, NoVoteError):
                    flow().resume(run_id, answer, by=by, at=at)
            if any(waiting.kind == "signal" for waiting in result.waiting):
                flow().signal(run_id, "go", 10 + sent, id=f"{sent}")  # sent again where nobody lived to say it was
                sent += 1
            times = [waiting.until for waiting in result.waiting if waiting.until is not None]
            if times and not answers(result):
                clock.set(max(clock.now(), min(times)))
    raise AssertionError(f"after {MOST} processes it is {result}")


@pytest.mark.slow
def test_stopped_after_any_save(place: Place) -> None:
    """Nothing is asked twice, no vote and no signal is lost or counts twice, no timer fires twice, no charge is charged
    twice, and no step that was saved is done again."""
    unkilled = Everything()
    whole = Counted(place, -1)
    right = driven(unkilled, whole, "whole")
    assert right.status == "completed", right.error
    assert len(unkilled.happened) == len(set(unkilled.happened)) == 2
    calls = unkilled.notes.calls
    counted = {path: calls.count(path) for path in calls}
    assert whole.saves > 50
    for last in range(1, whole.saves + 1, 1 if place.kind == "memory" else 4):
        everything, backends = Everything(), Counted(place, last)
        result = driven(everything, backends, f"run {last}")
        assert backends.stopped == 1, last
        assert (result.status, result.output) == ("completed", right.output), (last, result)
        assert sorted(result.final_pipeline_context.lines) == sorted(right.final_pipeline_context.lines), last
        assert sorted(paths(result)) == sorted(paths(right)), last
        assert len(everything.happened) == len(set(everything.happened)) == 2, last
        again = everything.notes.calls
        more = {path for path in counted if again.count(path) > counted[path]}
        assert set(again) == set(counted) and len(more) <= 5, (last, more)
        assert all(again.count(path) <= counted[path] + 1 for path in more), (last, more)
