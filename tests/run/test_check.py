"""`check`: the gate of a deploy, which names every unfinished run that the registered code could not resume."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import (
    Flujo,
    InMemoryBackend,
    MigratingState,
    Misfit,
    Pipeline,
    PipelineRegistry,
    Step,
    check,
    check_async,
)
from flujo.errors import ConfigurationError, ResumeError, RunInsideLoopError
from flujo.state.backends.base import Reading, Shape, State
from tests.support.backends import OURS, THEIRS, Place, query
from tests.support.nested_runs import Notes
from tests.support.pipelines import by_hand
from tests.support.undo_steps import Ledger


@pytest.fixture(params=OURS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A store of each kind that can list its runs."""
    found = Place(request.param, tmp_path)
    yield found
    found.close()


def chain(notes: Notes, names: str) -> Pipeline[Any, Any]:
    return Pipeline.of(*map(notes.step, names.split()))  # type: ignore[call-overload, no-any-return]


def registry(**pipelines: Pipeline[Any, Any] | Step[Any, Any]) -> PipelineRegistry:
    """Register pipelines by name and version: shop_1, shop_2_0, mail_1."""
    made = PipelineRegistry()
    for called, pipeline in pipelines.items():
        name, version = called.split("_", 1)
        made.register(pipeline, name, version.replace("_", "."))
    return made


def leave(place: Place, made: PipelineRegistry, run_id: str, name: str = "shop", **options: Any) -> None:
    """Run something, whatever becomes of it."""
    Flujo(registry=made, pipeline_name=name, state_backend=place.open(), **options).run(1, run_id=run_id)


def codes(found: list[Misfit]) -> dict[str, str]:
    return {misfit.run_id: misfit.code for misfit in found}


def test_a_store_without_misfits(place: Place) -> None:
    """An empty one, and one whose unfinished runs all find their code; finished ones need none."""
    notes = Notes()
    made = registry(shop_1=chain(notes, "a b"), gone_1=chain(notes, "x"))
    assert check(made, place.open()) == []
    leave(place, made, "done", "gone")
    notes.failing = {"b"}
    leave(place, made, "failed")
    before = place.contents()
    assert check(registry(shop_1=chain(notes, "a b"), shop_2=chain(notes, "z")), place.open()) == []
    assert place.contents() == before


def test_each_kind_of_misfit(place: Place) -> None:
    """With what is missing, and the difference, as the error says it that a resume raises."""
    notes, ledger = Notes(), Ledger()
    made = registry(
        shop_1=chain(notes, "a b"), mail_1=chain(notes, "a b"), ask_1=Step.human_in_the_loop("ask", "?", bool),
        undo_1=ledger.does("u") >> ledger.step("v"), fine_1=chain(notes, "a b"),
    )  # fmt: skip
    notes.failing, ledger.failing = {"b"}, {"v"}
    for name in ("shop", "mail", "ask", "undo", "fine"):
        leave(place, made, name, name)
    place.put(by_hand(run_id="hand", pipeline_id="shop", pipeline_name="shop", current_step_index=7))
    place.put(by_hand(run_id="id", pipeline_id="other", pipeline_name="shop"))
    now = registry(shop_1=chain(notes, "a c"), ask_2=chain(notes, "a"), fine_1=chain(notes, "a b"))
    found = check(now, place.open())
    assert codes(found) == {
        "shop": "pipeline-changed", "mail": "pipeline-missing", "ask": "version-missing",
        "hand": "invalid-state", "id": "other-pipeline",
    }  # fmt: skip
    misfits = {misfit.run_id: misfit for misfit in found}
    assert "step 2 was 'b', is now 'c'" in str(misfits["shop"])
    assert (misfits["ask"].status, misfits["ask"].pipeline_version) == ("paused", "1")
    for run_id, misfit in misfits.items():
        runner = Flujo(registry=now, pipeline_name=misfit.pipeline_name, state_backend=place.open())
        with pytest.raises(ResumeError) as caught:
            runner.run(run_id=run_id)
        assert (caught.value.message, caught.value.hint) == (misfit.text, misfit.hint)


class One(BaseModel):
    n: int = 0


class Two(BaseModel):
    n: int = 0
    more: str


def test_contexts(place: Place) -> None:
    """They are looked at where a model is given for the pipeline."""
    notes = Notes()
    notes.failing = {"b"}
    made = registry(shop_1=chain(notes, "a b"))
    leave(place, made, "r", context_model=One)
    assert check(made, place.open()) == check(made, place.open(), context_models={"shop": One}) == []
    (found,) = check(made, place.open(), context_models={"shop": Two, "none": One})
    assert (found.code, "more" in found.text) == ("context-changed", True)


def test_migrations_are_tried(place: Place) -> None:
    """On every run that they would carry: some may be refused, and nothing is written."""
    notes = Notes()
    notes.failing = {"b"}
    made = registry(shop_1=chain(notes, "a b"))
    for run_id in ("good", "bad"):
        leave(place, made, run_id)
    now = registry(shop_2=chain(notes, "a b c"))

    @now.migration("shop", "1", "2")
    def carry(state: MigratingState) -> None:
        if state.run_id == "bad":
            raise LookupError("no such customer")
        state.context["tried"] = True

    before = place.contents()
    (found,) = check(now, place.open())
    assert (found.run_id, found.code) == ("bad", "migration")
    assert "raised LookupError: no such customer" in found.text
    assert place.contents() == before
    assert codes(check(now, place.open(), versions={"shop": "1.5"})) == {
        "good": "version-missing",
        "bad": "version-missing",
    }


def test_runs_that_were_carried(place: Place) -> None:
    """They are at their newer version: the older one and its migration may go."""
    notes = Notes()
    notes.failing = {"b"}
    leave(place, registry(shop_1=chain(notes, "a b")), "r")
    both = registry(shop_2=chain(notes, "a b c"))
    both.migration("shop", "1", "2")(lambda state: None)
    leave(place, both, "r")
    assert place.load()["pipeline_version"] == "2"
    assert check(registry(shop_2=chain(notes, "a b c")), place.open()) == []
    (found,) = check(registry(shop_3=chain(notes, "a b")), place.open())
    assert (found.code, found.pipeline_version) == ("version-missing", "2")


def test_a_deploy_that_is_rolled_back(place: Place) -> None:
    """The version that carried runs have come to is not registered any more, though the one that they began with is."""
    notes = Notes()
    notes.failing = {"b"}
    old = chain(notes, "a b")
    leave(place, registry(shop_1=old), "r")
    both = registry(shop_1=old, shop_2=chain(notes, "a b c"))
    both.migration("shop", "1", "2")(lambda state: None)
    leave(place, both, "r")
    (found,) = check(registry(shop_1=old), place.open())
    assert (found.code, found.pipeline_version) == ("version-missing", "2")


def test_a_run_that_is_damaged(tmp_path: Path) -> None:
    """It is a misfit, and the others are looked at all the same."""
    place, notes = Place("sqlite", tmp_path), Notes()
    notes.failing = {"b"}
    made = registry(shop_1=chain(notes, "a b"))
    for run_id in ("r", "s"):
        leave(place, made, run_id)
    query(place.file, "UPDATE flujo_log SET idx = 9 WHERE seq = (SELECT max(seq) FROM flujo_log)")
    assert codes(check(registry(shop_1=chain(notes, "a c")), place.open())) == {"r": "pipeline-changed", "s": "damaged"}
    place.close()


def test_inside_of_a_loop(place: Place) -> None:
    """There is a coroutine for that."""

    async def main() -> None:
        assert await check_async(registry(), place.open()) == []
        with pytest.raises(RunInsideLoopError):
            check(registry(), place.open())

    asyncio.run(main())


@pytest.mark.parametrize("kind", THEIRS)
def test_a_backend_that_cannot_list_its_runs(kind: str, tmp_path: Path) -> None:
    """It is an error, and not an empty list."""
    with pytest.raises(ConfigurationError, match="cannot list its runs"):
        check(registry(), Place(kind, tmp_path).open())


class Counting(InMemoryBackend):
    """Counts the states that are read."""

    loads = 0

    async def load_at(self, run_id: str, rev: int | None = None, *, head: bool = True) -> State | None:
        type(self).loads += 1
        return await super().load_at(run_id, rev, head=head)


def test_runs_that_fit_are_not_read() -> None:
    """Whole groups are let pass by the code that they need, and one that does not fit costs its own runs."""
    notes, backend = Notes(), Counting()
    notes.failing = {"b"}
    made = registry(shop_1=chain(notes, "a b"), mail_1=chain(notes, "a b"))
    for number in range(20):
        Flujo(registry=made, pipeline_name="shop", state_backend=backend).run(1, run_id=f"shop{number}")
    Flujo(registry=made, pipeline_name="mail", state_backend=backend).run(1, run_id="mail")
    Counting.loads = 0
    assert (check(made, backend), Counting.loads) == ([], 0)
    assert codes(check(registry(shop_1=chain(notes, "a b")), backend)) == {"mail": "pipeline-missing"}
    assert Counting.loads == 1


def test_more_runs_than_a_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named once."""
    monkeypatch.setattr("flujo.runner.foresight._PAGE", 3)
    notes = Notes()
    notes.failing = {"b"}
    made = registry(shop_1=chain(notes, "a b"))
    for number in range(10):
        leave(place, made, f"r{number}")
    found = check(registry(shop_2=chain(notes, "a b")), place.open())
    assert sorted(misfit.run_id for misfit in found) == [f"r{number}" for number in range(10)]


RUNS = 100_000
MANY = f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {RUNS}) "


@pytest.mark.slow
def test_a_hundred_thousand_runs(tmp_path: Path) -> None:
    """Where all of them fit, it takes under a second of this process's time."""
    place, notes = Place("sqlite", tmp_path), Notes()
    notes.failing = {"b"}
    made = registry(shop_1=chain(notes, "a b"))
    leave(place, made, "first")
    columns = [row[1] for row in query(place.file, "PRAGMA table_info(flujo_run)")]
    others = [name for name in columns if name not in ("key", "run_id")]
    listed, values = ", ".join(others), ", ".join(f"r.{name}" for name in others)
    query(
        place.file,
        f"INSERT INTO flujo_run (key, run_id, {listed}) {MANY} "
        f"SELECT r.key + n, 'run' || n, {values} FROM numbers, flujo_run AS r",
    )
    query(
        place.file,
        f"INSERT INTO flujo_start {MANY} SELECT s.key + n, s.fingerprint, s.input FROM numbers, flujo_start AS s",
    )
    backend = place.open()
    assert isinstance(backend, Reading)
    (shape,) = asyncio.run(backend.shapes())
    assert isinstance(shape, Shape) and shape.runs == RUNS + 1
    start = time.process_time()
    assert check(made, backend) == []
    assert time.process_time() - start < 1
    place.close()
