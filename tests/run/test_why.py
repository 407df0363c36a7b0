"""`why`: the one reason why a run does not move, with the facts and what to do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, Reconciled, SQLiteBackend, Step, Why
from flujo.errors import RunNotFoundError
from flujo.testing import VirtualClock
from tests.support.backends import OURS, Place
from tests.support.nested_runs import Notes
from tests.support.pipelines import by_hand
from tests.support.undo_steps import Ledger
from tests.support.waiting_runs import Clock, Held, ask, at_once, one_backend, runner

T = "2026-01-01 00:00:00 UTC"


def asked(flow: Flujo[Any, Any], place: Place) -> Why:
    """Ask, and see that nothing changed."""
    before = place.contents()
    found = flow.why("r")
    assert place.contents() == before
    assert found.run_id == "r" and str(found) == f"{found.text} {found.hint}".rstrip()
    return found


def test_a_run_that_has_completed(place: Place) -> None:
    """There is nothing to do."""
    flow = runner(place, Notes().step("a"))
    flow.run(1, run_id="r")
    why = asked(flow, place)
    assert (why.code, why.text) == ("completed", f"Run 'r' has completed, {T}.")


def test_a_run_that_has_failed(place: Place) -> None:
    """Of what, and when."""
    notes = Notes()
    notes.failing = {"a"}
    flow = runner(place, notes.step("a"))
    flow.run(1, run_id="r")
    why = asked(flow, place)
    assert (why.code, why.data["error"]) == ("failed", "ValueError: a is out of order")
    assert why.text == f"Run 'r' failed, {T}: ValueError: a is out of order."
    assert "run it again" in why.hint


def test_a_run_that_was_cancelled(place: Place) -> None:
    """By whom, and why."""
    flow = runner(place, ask())
    flow.run(1, run_id="r")
    flow.cancel("r", by="ann", reason="a mistake")
    why = asked(flow, place)
    assert (why.code, why.data["by"], why.data["reason"]) == ("cancelled", "ann", "a mistake")
    assert "was cancelled by ann (a mistake)" in why.text


def test_a_run_that_was_undone(place: Place) -> None:
    """It is final; one whose undo failed is not."""
    ledger = Ledger()
    flow = runner(place, ledger.does("a") >> ledger.step("b"))
    ledger.failing = {"b", "a>undo"}
    flow.run(1, run_id="r")
    why = asked(flow, place)
    assert (why.code, "while it was being undone" in why.text) == ("failed", True)
    ledger.failing = {"b"}
    flow.run(run_id="r")
    why = asked(flow, place)
    assert (why.code, "It is final" in why.hint) == ("undone", True)
    assert "ValueError: b is out of order" in why.text


def test_a_run_that_waits_for_a_person(place: Place) -> None:
    """For whom, since when, until when, and what they are asked."""
    clock = Clock()
    flow = runner(place, ask(quorum=2, voters=["ann", "bob", "cy"], timeout=60), clock)
    flow.run(1, run_id="r")
    why = asked(flow, place)
    assert why.code == "waits-for-person"
    assert why.text == (
        f"Run 'r' waits at 'ask' for 2 of ann, bob, cy: Ship it? Since {T}, "
        "until 2026-01-01 00:01:00 UTC at the latest."
    )
    assert (why.data["message"], why.data["voters"]) == ("Ship it?", ["ann", "bob", "cy"])
    clock.jump(61)
    assert asked(flow, place).code == "free"


def test_a_run_that_waits_for_several_things(place: Place) -> None:
    """People come first."""
    fan = Step.parallel("fan", nap=Step.sleep("nap", 60), go=Step.wait_for("go", int), who=ask())
    flow = runner(place, fan)
    flow.run(1, run_id="r")
    why = asked(flow, place)
    assert (why.code, why.data["step"], why.data["waits"]) == ("waits-for-person", "fan.who.ask", 3)
    assert "and for 2 others" in why.text


def test_a_run_that_waits_for_a_signal(place: Place) -> None:
    """Which, and how to send it."""
    flow = runner(place, Step.wait_for("paid", int, signal="money"))
    flow.run(1, run_id="r")
    why = asked(flow, place)
    assert (why.code, why.data["signal"]) == ("waits-for-signal", "money")
    assert why.hint == "Send it: signal('r', 'money', ...)."


def test_a_message_that_nobody_has_read(place: Place) -> None:
    """It was sent, and the run was not taken up since."""
    flow = runner(place, Step.wait_for("paid", int))
    flow.run(1, run_id="r")
    flow.signal("r", "paid", 3)
    why = asked(flow, place)
    assert (why.code, why.data["unread"]) == ("unread", 1)
    assert "A message has come to run 'r' (paused" in why.text and "run(run_id='r')" in why.hint


def test_a_run_that_sleeps(place: Place) -> None:
    """Until when; and when that has come, that nobody executes it."""
    clock = Clock()
    flow = runner(place, Step.sleep("nap", 3600), clock)
    flow.run(1, run_id="r")
    why = asked(flow, place)
    assert (why.code, why.text) == ("sleeps", "Run 'r' sleeps at 'nap' until 2026-01-01 01:00:00 UTC.")
    clock.jump(3600)
    why = asked(flow, place)
    assert why.code == "free"
    assert why.text == "Run 'r' has been due since 2026-01-01 01:00:00 UTC, and nobody executes it."


def test_a_run_that_tries_again_later(place: Place) -> None:
    """When next, after how many attempts, and what has failed."""
    notes = Notes()
    notes.failing = {"a"}
    flow = runner(place, notes.step("a", retries=[60, 60]))
    flow.run(1, run_id="r")
    why = asked(flow, place)
    assert (why.code, why.data["tries"]) == ("retries", 1)
    assert why.text.startswith("Run 'r' tries 'a' again 2026-01-01 00:01:00 UTC, after 1 attempt: ValueError: a is")


def test_a_run_in_doubt(place: Place) -> None:
    """Its process died in a step that is not to be repeated unasked: a person is to say what happened."""
    notes = Notes()
    pipeline = notes.step("a") >> notes.step("pay", on_crash="ask")
    flow = runner(place, pipeline)
    notes.interrupt(flow, 1, at={"pay"})
    stored = place.load()
    if stored["status"] == "running":
        flow.run(run_id="r")
    why = asked(flow, place)
    assert (why.code, why.data["step"]) == ("in-doubt", "pay")
    assert flow.resume("r", Reconciled(happened=True, output=7)).status == "completed"


def test_a_run_that_is_held(place: Place) -> None:
    """By whom, why, and how to go on; a message after that is one that nobody has read."""
    flow = runner(place, ask())
    flow.run(1, run_id="r")
    flow.pause("r", by="ann", reason="audit")
    why = asked(flow, place)
    assert (why.code, why.data["by"], why.data["reason"]) == ("held", "ann", "audit")
    assert why.text == f"Run 'r' was paused by ann (audit), {T}." and "resume('r')" in why.hint


def test_a_run_that_nobody_executes(place: Place) -> None:
    """Since when it has stood still."""
    notes = Notes()
    flow = runner(place, notes.step("a") >> notes.step("b"))
    notes.interrupt(flow, 1, at={"b"})
    why = asked(flow, place)
    assert (why.code, why.text) == ("free", f"Run 'r' has stood still since {T}, and nobody executes it.")


def test_a_deadline(place: Place) -> None:
    """It has passed, and would fail the run at the next step."""
    clock = Clock()
    flow = runner(place, ask(), clock)
    flow.run(1, run_id="r", deadline=timedelta(seconds=60))
    assert asked(flow, place).code == "waits-for-person"
    clock.jump(60)
    why = asked(flow, place)
    assert (why.code, why.text) == ("deadline", "The deadline of run 'r' has passed, 2026-01-01 00:01:00 UTC.")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pipeline_version": "2.0"}, "version-missing"),
        ({"pipeline_name": "other"}, "other-pipeline"),
        ({"pipeline_id": "other"}, "other-pipeline"),
        ({"fingerprint": '["step:z"]'}, "pipeline-changed"),
        ({"current_step_index": 9}, "invalid-state"),
    ],
)
def test_code_that_does_not_fit(place: Place, changes: dict[str, Any], code: str) -> None:
    """That counts for more than that it waits, or has failed: nothing can be done before."""
    place.put(by_hand(**({"pipeline_id": "p", "pipeline_name": "p"} | changes)))
    why = asked(runner(place, Notes().step("a") >> Notes().step("b"), pipeline_version="1.0.0"), place)
    assert why.code == code and why.hint


def test_a_run_that_this_process_executes(place: Place) -> None:
    """Which process, and which step since when; one whose step takes three times as long as usual is slow."""

    async def main() -> None:
        notes, clock = Notes(), Clock()
        one_backend(place)
        held = Held(notes)
        flow = runner(place, notes.step("a") >> held.step, clock)
        if place.kind in OURS:  # what is usual: 2 s
            for number in range(3):
                usual = Held(notes)
                before = runner(place, notes.step("a") >> usual.step, clock)
                task = asyncio.ensure_future(before.run_async(1, run_id=f"before{number}"))
                await usual.begun.wait()
                clock.jump(2)
                usual.go.set()
                await task
        task = asyncio.ensure_future(flow.run_async(1, run_id="r"))
        await held.begun.wait()
        why = await flow.why_async("r")
        assert (why.code, why.data["step"]) == ("owned", "work")
        assert why.text.startswith("Run 'r' is executed by ") and "step 'work' is under way since" in why.text
        clock.jump(5.5)
        assert (await flow.why_async("r")).code == "owned"
        clock.jump(22.5)
        why = await flow.why_async("r")
        if place.kind in OURS:
            assert (why.code, why.data["seconds"], why.data["usual_seconds"]) == ("slow", 28, 2)
            assert "step 'work' has run 14 times its usual time: 28.0 s instead of 2 s" in why.text
        else:
            assert why.code == "owned"
        held.go.set()
        await task

    at_once(main())


def test_a_run_of_which_nothing_is_saved() -> None:
    """Somebody executes its first step; when nobody does, there is no such run."""

    async def main() -> None:
        held = Held(Notes())
        flow = Flujo(held.step, clock=VirtualClock())
        task = asyncio.ensure_future(flow.run_async(1, run_id="r"))
        await held.begun.wait()
        why = await flow.why_async("r")
        assert (why.code, "has saved no step yet" in why.text) == ("owned", True)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RunNotFoundError):
            await flow.why_async("r")

    at_once(main())


CHILD = """
import os, signal, sys, time
from pathlib import Path
from flujo import Flujo, SQLiteBackend, step

@step
async def a(n: int) -> int:
    return n

@step
async def b(n: int) -> int:
    print("begun", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
    return n

Flujo(a >> b, pipeline_name="p", state_backend=SQLiteBackend(Path(sys.argv[1]))).run(1, run_id="r")
"""


@pytest.mark.slow
def test_a_run_of_another_process(tmp_path: Path) -> None:
    """Which process on which host, while it lives; when it is dead, that it is gone and the run is free."""
    file, notes = tmp_path / "runs.db", Notes()
    flow = Flujo(notes.step("a") >> notes.step("b"), pipeline_name="p", state_backend=SQLiteBackend(file))
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == "begun\n"
        why = flow.why("r")
        assert why.code == "owned"
        assert f"is executed by process {child.pid} on {os.uname().nodename}" in why.text
        assert flow.plan("r").executes == ("b",)
        child.stdin.write("\n")
        child.stdin.flush()
        child.wait()
    why = flow.why("r")
    assert (why.code, f"process {child.pid}" in why.text) == ("free", True)
    assert "had it, and is gone" in why.text
    assert flow.run(run_id="r").status == "completed"
    asyncio.run(flow.backend.close())
