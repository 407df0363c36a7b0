"""What every part of the suite stands on: the backend under test, its capabilities, and states to give it."""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Coroutine
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from flujo.errors import InvalidStateError
from flujo.runner.flujo import Flujo
from flujo.state.backends.base import Claim, NewRun, Reading, State, StateBackend
from flujo.state.models import FIELDS, StepRecord, checked_state, record_from
from flujo.testing.suite.expect import expect, same

T = TypeVar("T")
T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NAME = "conformance"
PATIENCE_S = 60.0
_OWNING = ("claim", "release", "abandon", "holds", "post", "mail")


class ReadingBackend(StateBackend, Reading):
    """A backend that has the Reading capability, for the type checker."""


class SuiteBase:
    """The backend under test and what it says of itself. See `BackendSuite`, which is what to derive from."""

    durable: bool = True
    fenced: bool | None = None
    reads: bool | None = None

    def make(self, place: Path) -> StateBackend:
        """Return a backend whose store lies in the empty folder `place`, or is named after it.

        Called again with the same `place` where a second backend, or another process, opens the same store.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define make(self, place).")

    # --- what the tests use ---

    def open(self, place: Path) -> StateBackend:
        """Return a backend that is closed when the test is over."""
        backend = self.make(place)
        expect(
            isinstance(backend, StateBackend),
            f"make() returned {backend!r}: a backend is derived from flujo.state.backends.base.StateBackend.",
        )
        self.__dict__.setdefault("_opened", []).append(backend)
        return backend

    def reopen(self, place: Path, backend: StateBackend) -> StateBackend:
        """Return a second backend on the store where it is durable, else the one that there is."""
        return self.open(place) if self.durable else backend

    def teardown_method(self) -> None:
        """Close what the test opened."""
        for backend in self.__dict__.pop("_opened", ()):
            asyncio.run(backend.close())

    def open_durable(self, place: Path) -> StateBackend:
        """Return a backend, or skip the test where the store is not durable."""
        if not self.durable:
            not_applicable("the suite says durable = False")
        return self.open(place)

    def open_fenced(self, place: Path) -> StateBackend:
        """Return a backend, or skip the test where it has no claims of its own."""
        backend = self.open(place)
        if not owns(backend):
            not_applicable("the backend does not override `claim`: its runs have owners within one process only")
        return backend

    def open_reading(self, place: Path) -> ReadingBackend:
        """Return a backend, or skip the test where it lacks the Reading capability."""
        backend: Any = self.open(place)
        if not isinstance(backend, Reading):
            not_applicable("the backend is not derived from Reading")
        result: ReadingBackend = backend
        return result


def owns(backend: StateBackend) -> bool:
    """Return whether the backend has claims of its own."""
    return type(backend).claim is not StateBackend.claim


def lacks_of_owning(backend: StateBackend) -> list[str]:
    """Return the methods of ownership that a backend with claims of its own has left as they were."""
    return [name for name in _OWNING if getattr(type(backend), name) is getattr(StateBackend, name)]


def not_applicable(why: str) -> None:
    """Skip the test: both pytest and unittest understand this."""
    raise unittest.SkipTest(why)


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in an event loop of its own; more than a minute is too long."""

    async def bounded() -> T:
        return await asyncio.wait_for(coroutine, PATIENCE_S)

    return asyncio.run(bounded())


# --- states by hand ---


def state_of(run_id: str, index: int = 1, **changes: Any) -> State:
    """Return the ten fields of a run after `index` steps, which is also its output, with changes."""
    state = {
        "run_id": run_id,
        "pipeline_id": NAME,
        "pipeline_name": NAME,
        "pipeline_version": "1.0.0",
        "current_step_index": index,
        "pipeline_context": {"count": index},
        "last_step_output": index,
        "status": "running",
        "created_at": T0,
        "updated_at": T0 + timedelta(seconds=index),
    }
    return state | changes


def normal(run_id: str, found: State | None, what: str = "load_state") -> State:
    """Return a loaded state with its times as datetimes; fails the test where it is None, or lacks a field."""
    if found is None:
        raise AssertionError(
            f"{what} gave None for run {run_id!r}, which was saved: save_state returned before the save was made. "
            "Is everything in it awaited?"
        )
    try:
        return checked_state(run_id, found)
    except InvalidStateError as error:
        raise AssertionError(f"{what} gave something that is not the state of run {run_id!r}: {error}") from error


async def load(backend: StateBackend, run_id: str) -> State:
    """Return the newest state of a run that is there."""
    try:
        found = await backend.load_state(run_id)
    except Exception as error:
        raise AssertionError(f"load_state({run_id!r}) raised {type(error).__name__}: {error}") from error
    return normal(run_id, found)


async def expect_saved(backend: StateBackend, state: State, what: str) -> None:
    """Fail the test unless the run's newest state has the ten fields of `state`."""
    same(ten(await load(backend, state["run_id"])), ten(checked_state(state["run_id"], state)), what)


async def expect_nothing(backend: StateBackend, run_id: str, what: str) -> None:
    """Fail the test unless there is no such run."""
    found = await backend.load_state(run_id)
    expect(found is None, f"{what}: load_state({run_id!r}) gave {found!r}, not None.")


def ten(state: State) -> State:
    """Return the ten fields that every backend keeps."""
    return {name: state[name] for name in FIELDS}


def records_of(state: State) -> list[StepRecord]:
    """Return the step records of a loaded state."""
    return [record_from(found) for found in state.get("step_history") or ()]


# --- claims and the saves of an owner ---


def new_run(**changes: Any) -> NewRun:
    """Return what a claim says of a run that does not exist yet."""
    facts: dict[str, Any] = {
        "pipeline_id": NAME,
        "pipeline_name": NAME,
        "pipeline_version": "1.0.0",
        "total_steps": 9,
        "fingerprint": "[]",
        "input": 0,
        "created_at": T0,
    }
    return NewRun(**facts | changes)


async def claim(backend: StateBackend, run_id: str, *, at: datetime = T0, force: bool = False) -> Claim:
    """Claim a run."""
    return await backend.claim(run_id, new_run(), now=at, force=force)


async def owned(backend: StateBackend, run_id: str, *, at: datetime = T0, force: bool = False) -> Any:
    """Claim a run that is not settled and return the fence."""
    found = await claim(backend, run_id, at=at, force=force)
    expect(found.fence is not None, f"claim() said that run {run_id!r} is settled (fence None), which it is not.")
    return found.fence


def fenced_state(backend: StateBackend, run_id: str, fence: Any, rev: int, **changes: Any) -> State:
    """Return what a runner hands to `save_state` as save number `rev`, which is also the index and the output."""
    records = handed(backend, [StepRecord(path=(f"s{n}",), output=n) for n in range(1, rev + 1)])
    known = rev - 1 if isinstance(backend, Reading) else 0
    reserved = {
        "rev": rev,
        "fence": fence,
        "position": None,
        "step_history": records[known:],
        "history_offset": known,
        "fingerprint": "[]",
        "input": 0,
        "error": None,
        "total_steps": 9,
    }
    return state_of(run_id, rev) | reserved | changes


def handed(backend: StateBackend, records: list[StepRecord]) -> list[Any]:
    """Return step records as a runner hands them to the backend."""
    if backend.codec is not None:
        return list(records)
    plain = [asdict(record) | {"path": list(record.path)} for record in records]
    optional = ("context_changes", "by")
    return [{k: v for k, v in record.items() if k not in optional or v is not None} for record in plain]


def sub_steps(rev: int) -> list[StepRecord]:
    """Return the records of save number `rev` of a run that is in its first step: two, one, or none."""
    changes = {"notes": [[rev]], "gone": list[Any]()}
    return [
        StepRecord(path=("m", f"[{rev}]", f"s{n}"), output=[rev, n], context_changes=changes if n else None)
        for n in range(rev % 3)
    ]


def sub_step_state(backend: StateBackend, run_id: str, fence: Any, rev: int) -> State:
    """Return what a runner hands to `save_state` as save number `rev` of that run."""
    before = [record for earlier in range(1, rev) for record in sub_steps(earlier)]
    records, offset = (sub_steps(rev), len(before)) if isinstance(backend, Reading) else (before + sub_steps(rev), 0)
    within = {"current_step_index": 0, "last_step_output": None, "position": {"from": 0}}
    held = {"step_history": handed(backend, records), "history_offset": offset}
    return fenced_state(backend, run_id, fence, rev, **within, **held)


async def save_as_owner(backend: StateBackend, run_id: str, fence: Any, *revs: int, **changes: Any) -> None:
    """Make the owner's saves of these numbers."""
    for rev in revs:
        await backend.save_state(run_id, fenced_state(backend, run_id, fence, rev, **changes))


async def expect_index(backend: StateBackend, run_id: str, index: int, what: str) -> None:
    """Fail the test unless the run's newest state is the one after `index` steps, as `fenced_state` makes it."""
    found = await load(backend, run_id)
    at = found["current_step_index"]
    expect(at == index, f"{what}: the run's newest state ought to be at index {index}, but is at {at}.")
    same(found["last_step_output"], index, f"{what}: the output at index {index}")
    same(found["pipeline_context"], {"count": index}, f"{what}: the context at index {index}")


def runner(pipeline: Any, backend: StateBackend, **options: Any) -> Flujo[Any, Any]:
    """Return a runner of the pipeline, which is called after the suite."""
    return Flujo(pipeline, pipeline_name=NAME, state_backend=backend, **options)
