"""Hooks: what they are told, in which order, and that they cannot do harm."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, current_step, step
from flujo.errors import ConfigurationError
from flujo.execution.events import (
    Event,
    RunEnded,
    RunInterrupted,
    RunStarted,
    StepFailed,
    StepProgress,
    StepRetrying,
    StepSaved,
    StepStarted,
)
from flujo.testing import VirtualClock
from tests.support.backends import Place


@step
async def one(n: int) -> int:
    current_step().progress(1, 2)
    current_step().progress(2)
    return n


@step(retries=[5])
async def two(n: int) -> int:
    if current_step().attempt == 1:
        raise OSError("down")
    return n


@step
async def bad(n: int) -> int:
    raise ValueError("no")


def test_events_in_order(place: Place) -> None:
    """Everything that happens is told as it happens; a step is told as saved when it is in the store."""
    events: list[Event] = []
    Flujo((one >> two).named("p"), state_backend=place.open(), hooks=[events.append], clock=VirtualClock()).run(
        7, run_id="r"
    )
    assert [type(event) for event in events] == [
        RunStarted,
        StepStarted,
        StepProgress,
        StepProgress,
        StepSaved,
        StepStarted,
        StepRetrying,
        StepStarted,
        StepSaved,
        RunEnded,
    ]
    assert {event.run_id for event in events} == {"r"}
    started, _, progress, last, saved, *_, ended = events
    assert isinstance(started, RunStarted) and isinstance(progress, StepProgress) and isinstance(last, StepProgress)
    assert isinstance(saved, StepSaved) and isinstance(ended, RunEnded)
    assert (started.pipeline_name, started.pipeline_version, started.index) == ("p", "1.0.0", 0)
    assert (progress.path, progress.done, progress.total, last.done, last.total) == (("one",), 1, 2, 2, None)
    assert (saved.result.name, saved.result.output) == ("one", 7)
    assert ended.status == "completed"
    events.clear()
    Flujo((one >> two).named("p"), state_backend=place.open(), hooks=[events.append]).run(7, run_id="r")
    assert events == []  # nothing happened


def test_events_of_a_failure_and_a_resume(place: Place) -> None:
    """The failed step is told with its error; a resumed run says where it begins."""
    events: list[Event] = []
    for _ in range(2):
        Flujo((one >> bad), state_backend=place.open(), hooks=[events.append]).run(7, run_id="r")
    kinds = [RunStarted, StepStarted, StepProgress, StepProgress, StepSaved, StepStarted, StepFailed, RunEnded]
    assert [type(event) for event in events] == [*kinds, RunStarted, StepStarted, StepFailed, RunEnded]
    again, begun, failed, ended = events[-4:]
    assert isinstance(again, RunStarted) and isinstance(failed, StepFailed) and isinstance(ended, RunEnded)
    assert isinstance(begun, StepStarted)
    assert (again.index, begun.attempt, str(failed.error), failed.result.attempts) == (1, 2, "no", 2)
    assert (failed.result.success, ended.status) == (False, "failed")


def test_an_interruption_is_told(place: Place) -> None:
    """With what interrupted; the run has not ended."""
    events: list[Event] = []

    @step
    async def stop(n: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Flujo(stop, state_backend=place.open(), hooks=[events.append]).run(1, run_id="r")
    assert [type(event) for event in events] == [RunStarted, StepStarted, RunInterrupted]
    assert isinstance(events[-1], RunInterrupted) and isinstance(events[-1].error, KeyboardInterrupt)


def test_a_hook_that_raises_does_not_touch_the_run(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the hooks after it are told all the same."""
    events: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("broken hook")

    runner = Flujo(one >> bad, state_backend=place.open(), hooks=[broken, events.append])
    assert runner.run(1, run_id="r").status == "failed"
    assert len(events) == 8
    assert sum("hook raised" in record.getMessage() for record in caplog.records) == 8
    assert place.load()["current_step_index"] == 1


def test_events_are_frozen() -> None:
    """A hook cannot change what the next one is told."""
    events: list[Event] = []
    Flujo(one, hooks=[events.append]).run(1)
    for event in events:
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.run_id = "other"  # type: ignore[misc]


@pytest.mark.parametrize("hook", [None, "print", 7])
def test_a_hook_that_cannot_be_called(hook: Any) -> None:
    """It is refused when the runner is made."""
    with pytest.raises(ConfigurationError, match="hook"):
        Flujo(one, hooks=[hook])


def test_an_async_hook_is_refused() -> None:
    """Nobody would await it."""

    async def hook(event: Event) -> None:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="hook"):
        Flujo(one, hooks=[hook])  # type: ignore[list-item]


def test_success_is_silent(place: Place, caplog: pytest.LogCaptureFixture, capfd: Any, tmp_path: Path) -> None:
    """At default settings a run that succeeds logs nothing, prints nothing, and writes no file but the store's."""
    caplog.set_level(logging.INFO)
    runner = Flujo(one, state_backend=place.open())
    assert runner.run(1, run_id="r").output == 1
    assert runner.run(1, run_id="r").output == 1
    assert [record for record in caplog.records if record.name.startswith("flujo")] == []
    assert capfd.readouterr() == ("", "")
    ours = {
        "sqlite": {"runs.db", "runs.db-wal", "runs.db-shm", "runs.db-flujo"},
        "file": {"runs.db"},
    }
    assert {path.name for path in tmp_path.iterdir()} == ours.get(place.kind, set())


def test_failures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A retry and a failure are warnings that name run, step and error."""
    Flujo(one >> two >> bad, clock=VirtualClock()).run(1, run_id="r")
    found = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert found == [
        ("flujo", "WARNING", "run r: step two failed (attempt 1), next attempt in 5 s: OSError('down')"),
        ("flujo", "WARNING", "run r: step bad failed: ValueError('no')"),
    ]


def test_everything_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """Who asks for it gets a line an event."""
    with caplog.at_level(logging.DEBUG, "flujo"):
        Flujo(one).run(1, run_id="r")
    text = "\n".join(record.getMessage() for record in caplog.records)
    for name in ("RunStarted", "StepStarted", "StepProgress", "StepSaved", "RunEnded"):
        assert name in text


def test_the_steps_logger(caplog: pytest.LogCaptureFixture) -> None:
    """Its records begin with run and path, and carry them."""

    @step
    async def talk(n: int) -> int:
        current_step().logger.info("n is %d", n, extra={"n": n})
        return n

    with caplog.at_level(logging.INFO, "flujo.step"):
        Flujo(talk).run(7, run_id="r")
    (record,) = caplog.records
    assert (record.getMessage(), record.name) == ("r talk: n is 7", "flujo.step")
    facts = vars(record)
    assert (facts["run_id"], facts["step"], facts["attempt"], facts["n"]) == ("r", "talk", 1, 7)


def test_current_step_outside_of_a_step() -> None:
    """It is an error that says where to call it."""
    with pytest.raises(ConfigurationError, match="outside of a step"):
        current_step()


def test_progress_without_listeners() -> None:
    """It costs nothing and does nothing."""
    assert Flujo(one).run(1).output == 1


@pytest.mark.parametrize("at", range(10))
def test_ctrl_c_in_a_hook(place: Place, at: int) -> None:
    """Whatever is announced at that moment, the run is given back and goes on with the next `run`."""
    events: list[Event] = []

    def stopping(event: Event) -> None:
        events.append(event)
        if len(events) == at + 1:
            raise KeyboardInterrupt

    pipeline = one >> two
    backend = place.open()
    with pytest.raises(KeyboardInterrupt):
        Flujo(pipeline, state_backend=backend, hooks=[stopping], clock=VirtualClock()).run(7, run_id="r")
    assert len(events) in (at + 1, at + 2)  # the interruption itself may be announced
    result = Flujo(pipeline, state_backend=backend, clock=VirtualClock()).run(7, run_id="r")
    assert result.output == 7
