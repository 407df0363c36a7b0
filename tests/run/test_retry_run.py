"""`retry`: a failed run is tried again, and it is known who did that; `retry_all`: all that failed alike."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, SQLiteBackend, Step, step
from flujo.errors import (
    ConfigurationError,
    FencedError,
    RunEndedError,
    RunInProgressError,
    RunNotFailedError,
    RunNotFoundError,
)  # fmt: skip
from tests.support.backends import THEIRS, Place

down: dict[str, str] = {}
done: list[str] = []


@step(name="a")
async def first(name: str) -> str:
    done.append(f"a {name}")
    return name


@step(name="b")
async def second(name: str) -> str:
    done.append(f"b {name}")
    if name in down:
        raise OSError(down[name])
    return name.upper()


def runner(place: Place, pipeline: Any = None) -> Flujo[Any, Any]:
    """Return a runner on the store, as another process would have."""
    return Flujo(pipeline or first >> second, pipeline_name="ab", state_backend=place.open())


@pytest.fixture(autouse=True)
def _all_is_well() -> None:
    down.clear()
    done.clear()


def test_a_failed_run_is_tried_again(place: Place) -> None:
    """The failed step is done again, and no other; who retried it and why is on record."""
    down["x"] = "no line"
    assert runner(place).run("x", run_id="r").status == "failed"
    again = runner(place).retry("r", by="ada", reason="the line is back")
    assert again.status == "failed"  # it was not
    down.clear()
    assert runner(place).retry("r", by="bob").output == "X"
    assert done == ["a x", "b x", "b x", "b x"]
    found = [(message.kind, message.by, message.reason) for message in runner(place).messages("r")]
    assert found == [("retry", "ada", "the line is back"), ("retry", "bob", None)]
    assert place.load()["mail_seen"] == 2 or place.kind == "sqlite"


def test_what_has_not_failed_is_not_retried(place: Place) -> None:
    """A run that completed has ended; one that waits has not failed; of none of them is anything stored."""
    with pytest.raises(RunNotFoundError):
        runner(place).retry("never")
    runner(place).run("x", run_id="r")
    with pytest.raises(RunEndedError):
        runner(place).retry("r")
    waits = first >> Step.human_in_the_loop("ask", "Go on?", str)
    runner(place, waits).run("x", run_id="w")
    with pytest.raises(RunNotFailedError, match="paused") as caught:
        runner(place, waits).retry("w")
    assert (caught.value.status, caught.value.code) == ("paused", "run-not-failed")
    assert runner(place).messages("r") == runner(place, waits).messages("w") == []


def test_an_undone_run_is_final(place: Place) -> None:
    """It has ended; one whose undo failed is retried, and goes on undoing."""
    undone: list[str] = []

    def undo(name: str) -> None:
        undone.append(name)
        if "undo" in down:
            raise OSError("cannot")

    @step(name="a", undo=undo)
    async def undoable(name: str) -> str:
        return name

    down.update(x="no line", undo="")
    pipeline = undoable >> second
    assert runner(place, pipeline).run("x", run_id="r").phase == "undoing"
    del down["undo"]
    assert runner(place, pipeline).retry("r", by="ada").phase == "undone"
    assert undone == ["x", "x"]
    with pytest.raises(RunEndedError):
        runner(place, pipeline).retry("r")


def test_all_that_failed_alike(place: Place) -> None:
    """They are tried again, each with its own outcome; others are left alone."""
    down.update({f"n{n}": f"host 10.0.0.{n} is down (request {n * 77})" for n in range(5)}, y="no such customer")
    for name in (*down, "z"):
        runner(place).run(name, run_id=name)
    del down["n1"], down["n3"], down["y"]
    done.clear()
    if place.kind in THEIRS:
        with pytest.raises(ConfigurationError, match="no listing"):
            runner(place).retry_all("n0")
        return
    found = runner(place).retry_all("n0", by="ada", reason="the hosts are up")
    results = {run_id: result.status for run_id, result in found.items() if isinstance(result, PipelineResult)}
    assert results == {"n0": "failed", "n1": "completed", "n2": "failed", "n3": "completed", "n4": "failed"}
    assert sorted(done) == [f"b n{n}" for n in range(5)]
    assert [m.by for m in runner(place).messages("n2")] == ["ada"] and runner(place).messages("y") == []
    down.clear()
    assert sorted(runner(place).retry_all()) == ["n0", "n2", "n4", "y"]
    assert runner(place).retry_all() == {}
    with pytest.raises(RunNotFailedError):
        runner(place).retry_all("z")
    with pytest.raises(RunNotFoundError):
        runner(place).retry_all("never")


def test_one_that_cannot_be_tried_does_not_stop_the_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error stands where its result would; the others have their results."""
    if place.kind in THEIRS:
        return
    down.update(x="no line", y="no line")
    for name in ("x", "y"):
        runner(place).run(name, run_id=name)
    down.clear()
    flujo = runner(place)
    post = flujo.backend.post

    async def refusing(run_id: str, message: Any) -> int:
        if run_id == "x":
            raise FencedError("The store says no.")
        return await post(run_id, message)

    monkeypatch.setattr(flujo.backend, "post", refusing)
    found = flujo.retry_all("x")
    assert isinstance(found["x"], FencedError) and isinstance(found["y"], PipelineResult)
    assert found["y"].output == "Y"


def test_two_that_retry_at_once(place: Place) -> None:
    """The step is done again once: one retries it, and the others are told that somebody does, or has."""
    down["x"] = "no line"
    flujo = runner(place)
    flujo.run("x", run_id="r")
    down.clear()
    done.clear()

    async def main() -> list[Any]:
        return await asyncio.gather(*[flujo.retry_async("r", by=str(n)) for n in range(4)], return_exceptions=True)

    found = asyncio.run(main())
    others = [other for other in found if not isinstance(other, PipelineResult)]
    assert all(isinstance(other, RunInProgressError | RunNotFailedError | RunEndedError) for other in others)
    assert done == ["b x"] and place.load()["status"] == "completed"


@pytest.mark.slow
def test_a_process_that_dies_in_a_retry(tmp_path: Path) -> None:
    """The record of it is there, the run has failed as before, and can be retried."""
    file = tmp_path / "runs.db"
    program = f"""
        import os, signal
        from pathlib import Path
        from flujo import Flujo, SQLiteBackend
        from tests.run import test_retry_run as shared

        class Dying(SQLiteBackend):
            async def post(self, *args):
                await super().post(*args)
                os.kill(os.getpid(), signal.SIGKILL)

        shared.down["x"] = "no line"
        runner = Flujo(shared.first >> shared.second, pipeline_name="ab", state_backend=Dying(Path({str(file)!r})))
        runner.run("x", run_id="r")
        runner.retry("r", by="ada")
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True)
    assert died.returncode == -9, died.stderr.decode()
    flujo: Flujo[Any, Any] = Flujo(first >> second, pipeline_name="ab", state_backend=SQLiteBackend(file))
    (run,) = asyncio.run(flujo.backend.list_runs({"status": "failed"}))  # type: ignore[attr-defined]
    assert (run.run_id, [message.by for message in flujo.messages("r")]) == ("r", ["ada"])
    assert flujo.retry("r", by="bob").output == "X"
    asyncio.run(flujo.backend.close())
