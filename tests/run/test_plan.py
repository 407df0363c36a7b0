"""`plan`: what would happen if a run were resumed; it is compared with what then happens."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flujo import (
    Flujo,
    InMemoryBackend,
    MigratingState,
    Pipeline,
    PipelineRegistry,
    Plan,
    SQLiteBackend,
    Step,
    check,
)
from flujo.errors import (
    DeadlineExceededError,
    FlujoError,
    MigrationError,
    PipelineChangedError,
    RunInsideLoopError,
    RunNotFoundError,
    UnknownTypeError,
)
from flujo.testing import VirtualClock
from tests.support.backends import Place
from tests.support.changed_pipelines import built, changed, places, specs
from tests.support.nested_runs import Notes
from tests.support.undo_steps import Ledger
from tests.support.waiting_runs import Held, at_once, one_backend


def runner(backend: Any, made: PipelineRegistry, **options: Any) -> Flujo[Any, Any]:
    return Flujo(registry=made, pipeline_name="shop", state_backend=backend, clock=VirtualClock(), **options)


def registry(**versions: Pipeline[Any, Any] | Step[Any, Any]) -> PipelineRegistry:
    made = PipelineRegistry()
    for version, pipeline in versions.items():
        made.register(pipeline, "shop", version.removeprefix("v").replace("_", "."))
    return made


def chain(notes: Notes, names: str) -> Pipeline[Any, Any]:
    """Return the pipeline of steps with these names; one that ends with "*" has pipelines inside."""

    def made(name: str) -> Step[Any, Any]:
        if not name.endswith("*"):
            return notes.step(name, lambda given: [1, 2])
        body = notes.step("x", lambda given: given) >> notes.step("y", lambda given: given)
        return Step.map_over(name[:-1], body, max_concurrency=1)

    return Pipeline.of(*map(made, names.split()))  # type: ignore[call-overload, no-any-return]


def agrees(plan: Plan, backend: Any, made: PipelineRegistry, notes: Notes) -> str:
    """Resume the run; compare what happens with the plan and with `check`. Return the plan's code."""
    reading = not hasattr(backend, "data")
    misfits = check(made, backend) if reading else []
    notes.taken()
    if not plan.resumable:
        assert plan.executes == ()
        error: type[FlujoError] = MigrationError if plan.code == "migration" else PipelineChangedError
        with pytest.raises(error) as caught:
            runner(backend, made).run(run_id="r")
        assert (caught.value.message, notes.calls) == (plan.reason, [])
        if reading and plan.status != "completed":
            assert [(found.run_id, found.code, found.text) for found in misfits] == [("r", plan.code, plan.reason)]
        return plan.code
    assert misfits == []
    result = runner(backend, made).run(run_id="r")
    assert (result.status, result.pipeline_version) == ("completed", plan.goes_on_with)
    ran = places(notes.taken())
    functions = {step.path: step for step in plan.steps if step.kind == "step"}
    assert ran <= {path for path, step in functions.items() if step.executes}
    assert {path for path, step in functions.items() if step.executes and not step.perhaps} <= ran
    return plan.code


TABLE = [
    ("a b c d", "a b c d", "b", {}),
    ("a b c d", "a x b c d", "b", {"x": "new"}),
    ("a b c d", "a b c x d", "b", {"x": "new"}),
    ("a b c d", "a b d", "b", {"c": "gone"}),
    ("a b c d", "b c d", "b", {"a": "gone"}),
    ("a b c d", "a b cc d", "b", {"cc": "new", "c": "gone"}),
    ("a b c d", "a b d c", "b", {"d": "moved"}),
    ("a b c d", "a b c* d", "b", {"c": "changed", "c.x": "new", "c.y": "new"}),
    ("a b* c", "a b* c", "b[1].x", {}),
    ("a b* c", "a b* x c", "b[1].x", {"x": "new"}),
    ("a b* c", "a b c", "b[1].x", {"b": "changed", "b.x": "gone", "b.y": "gone"}),
    ("a b* c", "a c b*", "b[1].x", {"c": "moved"}),
]


@pytest.mark.parametrize("way", ["same version", "old kept", "migration"])
@pytest.mark.parametrize(("old", "new", "stop", "differs"), TABLE)
def test_plan_and_check_agree_with_what_happens(
    place: Place, way: str, old: str, new: str, stop: str, differs: dict[str, str]
) -> None:
    """For steps that were added, removed, renamed, reordered, retyped and nested: under the same version, under a new
    one beside the old, and with a migration."""
    notes = Notes()
    backend = one_backend(place)
    notes.failing = {stop}
    assert runner(backend, registry(v1=chain(notes, old))).run(0, run_id="r").status == "failed"
    notes.failing = set()
    if way == "same version":
        made = registry(v1=chain(notes, new))
    elif way == "old kept":
        made = registry(v1=chain(notes, old), v2=chain(notes, new))
    else:
        made = registry(v2=chain(notes, new))
        made.migration("shop", "1", "2")(lambda state: None)
    before = place.contents()
    plan = runner(backend, made).plan("r")
    assert place.contents() == before
    told = {step.path: step.does for step in plan.steps if step.does not in ("skipped", "runs")}
    code = agrees(plan, backend, made, notes)
    if way == "same version":
        assert code == ("pipeline-changed" if differs else "")
        assert told == differs
    elif way == "old kept":
        assert (code, told) == ("", {})
    else:
        assert code == ("migration" if stop == "b[1].x" and "b" in differs else "")
        assert set(told.items()) <= set(differs.items())


@pytest.mark.slow
@settings(max_examples=120)
@given(st.integers(0, 1 << 48))
def test_plan_and_check_agree_for_any_change(seed: int) -> None:
    """For random nested pipelines, stopped anywhere, and changed anywhere: under one version, and with a migration."""
    dice = random.Random(seed)
    notes, before = Notes(), specs(dice)
    how, after = changed(dice, before)
    old, new = built(notes, before), built(notes, after)
    backend = InMemoryBackend()
    Flujo(old).run(0)
    notes.failing = {dice.choice(notes.taken())}
    status = runner(backend, registry(v1=old)).run(0, run_id="r").status
    notes.failing = set()
    if dice.random() < 0.5:
        made = registry(v1=new)
        code = agrees(runner(backend, made).plan("r"), backend, made, notes)
        assert code == ("" if how == "same" else "pipeline-changed")
        return
    made, names = registry(v1=old, v2=new), [step.name for step in new.steps]
    otherwise = dice.choice(names)

    @made.migration("shop", "1", "2")
    def carry(state: MigratingState) -> None:
        if state.next_step not in names:
            state.next_step = otherwise

    plan = runner(backend, made).plan("r")
    assert plan.goes_on_with == ("2" if status == "failed" and plan.resumable else "1")
    agrees(plan, backend, made, notes)


def test_a_run_that_somebody_executes() -> None:
    """Nothing is claimed or written, and its owner goes on."""

    async def main() -> None:
        notes = Notes()
        held = Held(notes)
        backend = InMemoryBackend()
        flow = Flujo(notes.step("a") >> held.step >> notes.step("b"), state_backend=backend)
        task = asyncio.ensure_future(flow.run_async(1, run_id="r"))
        await held.begun.wait()
        before = repr(await backend.load_state("r"))
        plan = await Flujo(notes.step("a") >> held.step >> notes.step("b"), state_backend=backend).plan_async("r")
        assert plan.executes == ("work", "b")
        with pytest.raises(RunInsideLoopError):
            flow.plan("r")
        assert repr(await backend.load_state("r")) == before
        held.go.set()
        assert (await task).status == "completed"
        assert (await flow.plan_async("r")).executes == ()

    at_once(main())


def test_a_run_that_is_not_there(place: Place) -> None:
    """There is nothing to foresee."""
    flow = Flujo(chain(Notes(), "a"), state_backend=place.open())
    with pytest.raises(RunNotFoundError):
        flow.plan("nowhere")
    with pytest.raises(RunNotFoundError):
        flow.why("nowhere")


def test_code_that_is_not_there(place: Place) -> None:
    """The plan says what is missing, as the error says it that a resume would raise."""
    notes = Notes()
    notes.failing = {"b"}
    runner(place.open(), registry(v1=chain(notes, "a b"))).run(0, run_id="r")
    gone = runner(place.open(), registry(v2=chain(notes, "a b"))).plan("r")
    assert (gone.code, gone.steps, gone.executes) == ("version-missing", (), ())
    assert "'1'" in gone.reason and "'2'" in gone.hint
    other = Flujo(chain(notes, "a b"), state_backend=place.open(), pipeline_name="other").plan("r")
    assert other.code == "other-pipeline"
    empty = runner(place.open(), PipelineRegistry()).plan("r")
    assert empty.code == "pipeline-missing"


def test_a_run_that_is_being_undone(place: Place) -> None:
    """What is left to be undone is what then is undone."""
    ledger = Ledger()
    flow = Flujo(ledger.does("a") >> ledger.does("b") >> ledger.step("c"), state_backend=place.open())
    ledger.failing = {"c", "a>undo"}
    flow.run(1, run_id="r")
    plan = flow.plan("r")
    ledger.failing = set()
    ledger.taken()
    flow.run(run_id="r")
    assert plan.executes == tuple(ledger.taken()) == ("a>undo",)
    assert flow.plan("r").executes == ()


def test_a_deadline_that_has_passed(place: Place) -> None:
    """The next run fails of it, and executes nothing."""
    notes, clock = Notes(), VirtualClock()
    flow = Flujo(chain(notes, "a b"), state_backend=place.open(), clock=clock)
    notes.failing = {"b"}
    flow.run(1, run_id="r", deadline=timedelta(seconds=60))
    notes.failing = set()
    assert flow.plan("r").executes == ("b",)
    asyncio.run(clock.sleep(61))
    plan = flow.plan("r")
    assert (plan.code, plan.executes) == ("deadline", ())
    notes.taken()
    assert isinstance(flow.run(run_id="r").error, DeadlineExceededError)
    assert notes.calls == []


def test_a_context_that_does_not_fit(place: Place) -> None:
    """The plan says so, and names the field."""
    notes = Notes()
    notes.failing = {"b"}
    Flujo(chain(notes, "a b"), state_backend=place.open(), context_model=One).run(1, run_id="r")
    plan = Flujo(chain(notes, "a b"), state_backend=place.open(), context_model=Two).plan("r")
    assert (plan.code, plan.executes) == ("context-changed", ())
    assert "'more'" in plan.reason or "more" in plan.reason


class One(BaseModel):
    n: int = 0


class Two(BaseModel):
    n: int = 0
    more: str


CHILD = """
import sys
from dataclasses import dataclass
from pathlib import Path
from flujo import Flujo, SQLiteBackend, step

@dataclass
class Elsewhere:
    n: int

@step
async def a(n: int) -> Elsewhere:
    return Elsewhere(n)

@step
async def b(given: Elsewhere) -> int:
    raise OSError("down")

flow = Flujo(a >> b, pipeline_name="shop", state_backend=SQLiteBackend(Path(sys.argv[1])))
assert flow.run(1, run_id="r").status == "failed"
"""


@pytest.mark.slow
def test_a_type_that_this_process_does_not_know(tmp_path: Path) -> None:
    """The plan says that the run cannot go on here, as the run itself does."""
    file = tmp_path / "runs.db"
    subprocess.run([sys.executable, "-c", CHILD, str(file)], check=True)
    backend = SQLiteBackend(file)
    flow = Flujo(chain(Notes(), "a b"), pipeline_name="shop", state_backend=backend)
    plan = flow.plan("r")
    assert (plan.code, plan.executes) == ("type-missing", ())
    assert flow.why("r").code == "type-missing"
    with pytest.raises(UnknownTypeError):
        flow.run(run_id="r")
    asyncio.run(backend.close())
