"""Undoing that is interrupted or has to wait, and undoing on backends of other makes."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, SQLiteBackend, StateBackend, Step, step
from flujo.errors import RunEndedError, UndoFailedError
from flujo.execution import attempt
from flujo.execution.events import Event, StepFailed
from flujo.state.models import StepRecord
from tests.support.backends import Place
from tests.support.nested_runs import PATIENCE_S, paths
from tests.support.reference_backends import FencedReadable, Live, LiveFencedReadable, Text
from tests.support.undo_steps import Ledger, orders, runner

# --- undoing that is interrupted ---


@pytest.mark.parametrize("at", ["pack>undo", "pay>undo"])
@pytest.mark.parametrize("cancelled", [False, True])
def test_undoing_that_is_interrupted(place: Place, at: str, cancelled: bool) -> None:
    """The run stays `running`, in phase `undoing`; the next run goes on with the undo that was stopped."""
    ledger = Ledger()
    if cancelled:
        ledger.interrupt(runner(place, orders(ledger)), 1, at={"ship"})
    else:
        ledger.failing = {"ship"}
    kind: type[Flujo[Any, Any]] = _Cancelling if cancelled else Flujo
    ledger.interrupt(kind(orders(ledger), state_backend=place.open()), 1, at={at})
    stored = place.load()
    assert (stored["status"], stored["phase"], stored["current_step_index"]) == ("running", "undoing", 2)
    assert ledger.taken()[3:] == ["pack>undo", "pay>undo"][: 1 if at == "pack>undo" else 2]
    result = runner(place, orders(ledger)).run(1, run_id="r")
    assert ledger.taken() == ["pack>undo", "pay>undo"][0 if at == "pack>undo" else 1 :]
    assert result.status == ("cancelled" if cancelled else "failed")
    assert (result.error is None) is cancelled
    assert ledger.keys[at] and len(ledger.keys[at]) == 1
    assert paths(result) == ["pay", "pack", "pack>undo", "pay>undo"]


class _Cancelling(Flujo[Any, Any]):
    """A runner whose `run_async` cancels the run."""

    def run_async(self, *given: Any, run_id: str | None = None, **options: Any) -> Any:
        assert run_id is not None
        return self.cancel_async(run_id)


def test_leaving_the_iteration_interrupts_undoing(place: Place) -> None:
    """What was undone by then stays, and the run goes on from there."""
    ledger = Ledger()
    ledger.failing = {"ship"}

    async def main() -> None:
        async for record in runner(place, orders(ledger)).run_async(1, run_id="r"):
            if isinstance(record, StepRecord) and record.name == "pack>undo":
                break

    asyncio.run(main())
    assert place.load()["phase"] == "undoing"
    ledger.taken()
    assert runner(place, orders(ledger)).run(run_id="r").status == "failed"
    assert ledger.taken() == ["pay>undo"]


# --- plain functions that cannot be stopped ---


LIMIT_S = 0.1  # in which a thread begins, also on a busy machine


class Stuck:
    """A plain function that goes on after its time is up, until it is let go; `log` says what happened."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.over = threading.Event()

    def step(self, **options: Any) -> Step[Any, Any]:
        """Return the step."""

        @step(name="stuck", **options)
        def stuck(n: Any) -> Any:
            self.begun.set()
            assert self.go.wait(PATIENCE_S)
            self.log.append("ended")
            self.over.set()
            return n

        return stuck

    def undoable(self) -> Step[Any, Any]:
        """Return a step whose undo is noted."""
        return step(name="pay", undo=lambda _: self.log.append("undo"))(lambda n: n)

    def let_go(self, event: Event) -> None:
        """Let it go some time after the failure is known, when an undo that does not wait has long begun."""
        if isinstance(event, StepFailed):
            asyncio.get_running_loop().call_later(0.05, self.go.set)


@pytest.mark.parametrize("sibling", [False, True])
def test_undos_wait_for_a_function_that_was_abandoned(sibling: bool) -> None:
    """One that timed out, or whose sibling failed, comes to its end before anything is undone."""
    stuck = Stuck()

    @step
    def bad(n: int) -> int:
        assert stuck.begun.wait(PATIENCE_S)
        raise ValueError("no")

    broken = Step.parallel("fan", a=stuck.step(), b=bad) if sibling else stuck.step(timeout=LIMIT_S)
    result = Flujo(stuck.undoable() >> broken, hooks=[stuck.let_go]).run(1)
    assert result.status == "failed"
    assert stuck.log == ["ended", "undo"]


def test_undos_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """When the grace is over the undo begins all the same, and the log says so."""
    monkeypatch.setattr(attempt, "GRACE_S", 0.01)
    stuck = Stuck()
    with caplog.at_level(logging.WARNING, "flujo"):
        Flujo(stuck.undoable() >> stuck.step(timeout=LIMIT_S)).run(1, run_id="r")
    assert stuck.log == ["undo"]
    assert "run r: pay>undo begins while an abandoned attempt of step stuck is still running" in caplog.text
    stuck.go.set()
    assert stuck.over.wait(PATIENCE_S)


# --- backends of other makes ---


class Deep(SQLiteBackend):
    """Saves copies of what it is handed."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        await super().save_state(run_id, copy.deepcopy(state))


MAKES: dict[str, Callable[[Path], StateBackend]] = {
    "three methods": lambda _: Text(),
    "a codec": lambda _: Live(),
    "claims and Reading": lambda _: FencedReadable(),
    "everything": lambda _: LiveFencedReadable(),
    "copies": lambda folder: Deep(folder / "runs.db", durability="process"),
}


@pytest.fixture(params=MAKES)
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateBackend]:
    """A backend of each make in turn."""
    backend = MAKES[request.param](tmp_path)
    yield backend
    if isinstance(backend, Deep):
        asyncio.run(backend.close())


def test_on_backends_of_other_makes(foreign: StateBackend) -> None:
    """Whatever of the port a backend has: undone, gone on with after a failed undo, final, cancelled."""
    backend = foreign
    ledger = Ledger()
    ledger.failing = {"ship", "pay>undo"}
    found = Flujo(orders(ledger), state_backend=backend).run(1, run_id="r")
    assert isinstance(found.error, UndoFailedError)
    ledger.failing = set()
    for _ in range(2):
        found = Flujo(orders(ledger), state_backend=backend).run(1, run_id="r")
        assert str(found.error) == "ValueError: ship is out of order"
        assert paths(found) == ["pay", "pack", "pack>undo", "pay>undo"]
    with pytest.raises(RunEndedError):
        Flujo(orders(ledger), state_backend=backend).cancel("r")
    assert ledger.taken() == ["pay", "pack", "ship", "pack>undo", "pay>undo", "pay>undo"]
    ledger.interrupt(Flujo(orders(ledger), state_backend=backend), 1, at={"ship"}, run_id="s")
    for _ in range(2):
        assert Flujo(orders(ledger), state_backend=backend).cancel("s").status == "cancelled"
    assert ledger.undone() == ["pack>undo", "pay>undo"]


def test_a_failed_undo_leaves_the_context_alone_there(foreign: StateBackend) -> None:
    """What it has changed is not saved, though the backend writes whatever it is handed."""
    seen: list[list[str]] = []
    fails = True

    async def refund(n: int, *, context: dict[str, Any]) -> None:
        seen.append(list(context["log"]))
        context["log"].append("spoilt")
        if fails:
            raise OSError("down")

    @step(undo=refund)
    async def pay(n: int, *, context: dict[str, Any]) -> int:
        context["log"] = ["pay"]
        return n

    ledger = Ledger()
    ledger.failing = {"bad"}
    for _ in range(2):
        found = Flujo(pay >> ledger.step("bad"), state_backend=foreign).run(1, run_id="r")
        assert isinstance(found.error, UndoFailedError) and found.final_pipeline_context == {"log": ["pay"]}
        assert asyncio.run(foreign.load_state("r"))["pipeline_context"] == {"log": ["pay"]}  # type: ignore[index]
    fails = False
    Flujo(pay >> ledger.step("bad"), state_backend=foreign).run(1, run_id="r")
    assert seen == [["pay"]] * 3
