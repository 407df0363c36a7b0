"""Migrations: a run is carried to the version that its runner is asked for, or is left as it was."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, MigratingState, Pipeline, PipelineRegistry, SQLiteBackend, Step, check
from flujo.errors import (
    InvalidStateError,
    MigrationError,
    RegistryError,
    SaveError,
    VersionNotRegisteredError,
)
from flujo.runner.opening import InputIgnoredWarning
from flujo.state.backends.base import Reading
from flujo.testing import VirtualClock
from tests.support.backends import OURS, Place
from tests.support.nested_runs import Notes, paths, stopping
from tests.support.undo_steps import Ledger

OLD, NEW = "1.0.0", "2.0.0"


def registry(**versions: Pipeline[Any, Any] | Step[Any, Any]) -> PipelineRegistry:
    """Register pipelines "shop" by version: v1_0_0."""
    made = PipelineRegistry()
    for version, pipeline in versions.items():
        made.register(pipeline, "shop", version.removeprefix("v").replace("_", "."))
    return made


def runner(made: PipelineRegistry, place: Place, **options: Any) -> Flujo[Any, Any]:
    return Flujo(registry=made, pipeline_name="shop", state_backend=place.open(), clock=VirtualClock(), **options)


def adds(notes: Notes, name: str, **options: Any) -> Step[Any, Any]:
    """Return a step that adds its name to a list."""
    return notes.step(name, lambda given: [*given, name], **options)


def chain(notes: Notes, names: str) -> Pipeline[Any, Any]:
    """Return the pipeline of steps with these names."""
    return Pipeline.of(*[adds(notes, name) for name in names.split()])  # type: ignore[call-overload, no-any-return]


def failed_at(place: Place, notes: Notes, name: str, names: str = "a b", **options: Any) -> None:
    """Leave a run of version 1.0.0 that has failed at the step of that name."""
    notes.failing = {name}
    assert runner(registry(v1_0_0=chain(notes, names)), place, **options).run(["in"], run_id="r").status == "failed"
    notes.failing = set()
    notes.taken()


def to_new(made: PipelineRegistry, function: Any = lambda state: None) -> PipelineRegistry:
    made.migration("shop", OLD, NEW)(function)
    return made


@pytest.mark.parametrize("keeps_old", [False, True])
def test_a_run_is_carried(place: Place, keeps_old: bool) -> None:
    """It goes on with the newer version, whether or not its own is still registered; what it then is, is saved."""
    notes = Notes()
    failed_at(place, notes, "b")
    versions = {"v2_0_0": chain(notes, "a x b c")} | ({"v1_0_0": chain(notes, "a b")} if keeps_old else {})
    made, seen = registry(**versions), list[Any]()

    @made.migration("shop", OLD, NEW)
    def carry(state: MigratingState) -> None:
        seen.append((state.run_id, state.from_version, state.to_version, state.next_step, state.input))
        state.next_step = "x"
        state.last_output.append("carried")
        state.context["kept"] = {"by": [OLD]}

    result = runner(made, place).run(["in"], run_id="r")
    assert (result.output, result.pipeline_version) == (["in", "a", "carried", "x", "b", "c"], NEW)
    assert (notes.taken(), seen) == (["x", "b", "c"], [("r", OLD, NEW, "b", ["in"])])
    assert result.final_pipeline_context == {"kept": {"by": [OLD]}}
    stored = place.load()
    assert (stored["pipeline_version"], stored["total_steps"], stored["current_step_index"]) == (NEW, 4, 4)
    assert stored["fingerprint"] == '["step:a","step:x","step:b","step:c"]'
    assert stored["migrated"]["from"] == OLD
    again = runner(made, place).run(["in"], run_id="r")
    assert (again.output, notes.taken(), len(seen)) == (result.output, [], 1)


def test_a_carried_run_goes_on_in_another_process(place: Place) -> None:
    """What the migration made is saved before anything runs: it is not migrated again, and a retry finds it."""
    notes = Notes()
    failed_at(place, notes, "b")
    count = list[int]()
    made = to_new(
        registry(v2_0_0=chain(notes, "a b c")), lambda state: count.append(1) or state.last_output.append("m")
    )
    notes.failing = {"b"}
    result = runner(made, place).run(run_id="r")
    assert (result.status, result.pipeline_version, count) == ("failed", NEW, [1])
    assert place.load()["last_step_output"] == ["in", "a", "m"]
    notes.failing = set()
    only_new = registry(v2_0_0=chain(notes, "a b c"))
    assert runner(only_new, place).run(run_id="r").output == ["in", "a", "m", "b", "c"]
    with pytest.raises(VersionNotRegisteredError, match=r"'2\.0\.0'"):
        runner(registry(v1_0_0=chain(notes, "a b")), place).run(run_id="r")


def test_the_store_keeps_what_it_was_born_as(place: Place) -> None:
    """Its checksums still hold, and a state that is loaded and saved by hand is the same run's."""
    notes = Notes()
    failed_at(place, notes, "b")

    def carry(state: MigratingState) -> None:
        state.input = {"list": state.input}

    notes.failing = {"c"}
    made = to_new(registry(v2_0_0=chain(notes, "a b c")), carry)
    assert runner(made, place).run(["in"], run_id="r").status == "failed"
    backend = place.open()
    if isinstance(backend, SQLiteBackend):
        assert asyncio.run(backend.check_integrity()) == []
    stored = place.load()
    assert stored["input"] == {"list": ["in"]}
    place.put(stored)
    again = place.load()
    assert {k: v for k, v in again.items() if k not in ("rev", "step_history")} == {
        k: v for k, v in stored.items() if k not in ("rev", "step_history")
    }
    if place.kind in OURS:
        assert again["rev"] == stored["rev"] + 1
        backend = place.open()
        assert isinstance(backend, Reading)
        first = asyncio.run(backend.load_at("r", 1))
        assert first is not None and (first["pipeline_version"], first["input"]) == (OLD, ["in"])
    notes.failing = set()
    assert runner(made, place).run(["in"], run_id="r").output == ["in", "a", "b", "c"]
    place.put({**place.load(), "input": ["another"]})
    assert place.load()["input"] == ["another"]


def test_the_input_of_the_first_step(place: Place) -> None:
    """A migration may change it; later runs that are given the first one are not told that it is another."""
    notes = Notes()
    failed_at(place, notes, "a")

    def carry(state: MigratingState) -> None:
        assert (state.next_step, state.last_output) == ("a", None)
        state.input = [*state.input, "more"]

    made = to_new(registry(v2_0_0=chain(notes, "a")), carry)
    notes.failing = {"a"}
    assert runner(made, place).run(["in"], run_id="r").status == "failed"
    notes.failing = set()
    assert runner(made, place).run(["in"], run_id="r").output == ["in", "more", "a"]
    other = runner(registry(v1_0_0=chain(notes, "a b")), place)
    other.run(["in"], run_id="s")
    with pytest.warns(InputIgnoredWarning):
        other.run(["other"], run_id="s")


def test_a_chain(place: Place) -> None:
    """The fewest migrations are taken, through versions that need not be registered; another state may be returned."""
    notes = Notes()
    failed_at(place, notes, "b")
    made, order = registry(v3_0=chain(notes, "a b c"), v1_1=chain(notes, "a b")), list[str]()

    def hop(source: str, target: str) -> None:
        @made.migration("shop", source, target)
        def carry(state: MigratingState) -> MigratingState:
            order.append(f"{state.from_version} -> {state.to_version}")
            versions = (state.from_version, state.to_version)
            output = [*state.last_output, target]
            return MigratingState(
                state.run_id, versions, context=state.context, last_output=output, input=None, next_step=state.next_step
            )

    for source, target in (
        ("1.0", "1.1"),
        ("1.1", "1.2"),
        ("1.1", "2.0"),
        ("1.2", "2.0"),
        ("2.0", "3.0"),
        ("2.0", "4"),
    ):
        hop(source, target)
    result = runner(made, place).run(run_id="r")
    assert order == ["1.0 -> 1.1", "1.1 -> 2.0", "2.0 -> 3.0"]
    assert result.output == ["in", "a", "1.1", "2.0", "3.0", "b", "c"]


@pytest.mark.parametrize("asked", ["1.0.0", "1.1.0", "9.9.9"])
def test_no_way_to_the_version_asked_for(place: Place, asked: str) -> None:
    """A run goes on with its own version where no migration leads to the one that the runner is asked for."""
    notes = Notes()
    failed_at(place, notes, "b")
    made = to_new(registry(v1_0_0=chain(notes, "a b"), v1_1_0=chain(notes, "a"), v2_0_0=chain(notes, "a")))
    result = runner(made, place, pipeline_version=asked).run(run_id="r")
    assert (result.output, result.pipeline_version) == (["in", "a", "b"], OLD)


def test_the_end(place: Place) -> None:
    """A migration may say that nothing is left to do."""
    notes = Notes()
    failed_at(place, notes, "b")

    def carry(state: MigratingState) -> None:
        state.next_step = None

    result = runner(to_new(registry(v2_0_0=chain(notes, "a z")), carry), place).run(run_id="r")
    assert (result.status, result.output, notes.calls) == ("completed", ["in", "a"], [])


class First(BaseModel):
    total: int = 0


class Second(BaseModel):
    total: int = 0
    currency: str


def test_a_context_model_that_has_changed(place: Place) -> None:
    """The migration makes the fields of the new one; where it does not, the run is left as it was."""
    notes = Notes()
    failed_at(place, notes, "b", context_model=First)
    before = place.load()

    def carry(state: MigratingState) -> None:
        assert state.context == {"total": 0}
        state.context["currency"] = "EUR"

    plain = to_new(registry(v2_0_0=chain(notes, "a b")))
    with pytest.raises(MigrationError, match="currency"):
        runner(plain, place, context_model=Second).run(run_id="r")
    assert place.load() == before
    made = to_new(registry(v2_0_0=chain(notes, "a b")), carry)
    result = runner(made, place, context_model=Second).run(run_id="r")
    assert result.final_pipeline_context == Second(currency="EUR")


def spoils(state: MigratingState) -> None:
    """Change everything, and then fail."""
    state.last_output.append("spoilt")
    state.context["spoilt"] = True
    raise KeyError("no such thing")


def gives(**changes: Any) -> Any:
    def carry(state: MigratingState) -> None:
        for name, value in changes.items():
            setattr(state, name, value)

    return carry


@pytest.mark.parametrize(
    ("carry", "names", "match"),
    [
        (spoils, "a b", "raised KeyError: 'no such thing'"),
        (gives(next_step="bb"), "a b", r"step 'bb'.*its steps are 'a', 'b'"),
        (gives(), "a c", r"step 'b'.*its steps are 'a', 'c'"),
        (gives(context=[1]), "a b", "made the context a list"),
        (gives(last_output=object()), "a b", r"cannot be saved: output"),
        (gives(context={"x": object()}), "a b", r"cannot be saved: context\.x"),
        (lambda state: 3, "a b", "returned 3"),
        (gives(run_id="other"), "a b", "AttributeError"),
        (gives(last_outptu=1), "a b", "AttributeError"),
    ],
)
def test_a_migration_that_gives_what_cannot_go_on(place: Place, carry: Any, names: str, match: str) -> None:
    """The taking up stops with MigrationError, as plan and check say before; the run is as it was."""
    notes = Notes()
    failed_at(place, notes, "b")
    before = place.load()
    made = to_new(registry(v1_0_0=chain(notes, "a b"), v2_0_0=chain(notes, names)), carry)
    plan = runner(made, place).plan("r")
    assert (plan.resumable, plan.code, plan.executes) == (False, "migration", ())
    assert runner(made, place).why("r").code == "migration"
    if place.kind in OURS:
        assert [(misfit.run_id, misfit.code, misfit.text) for misfit in check(made, place.open())] == [
            ("r", "migration", plan.reason)
        ]
    with pytest.raises(MigrationError, match=match) as caught:
        runner(made, place).run(run_id="r")
    assert (caught.value.run_id, caught.value.source, caught.value.target) == ("r", OLD, NEW)
    assert caught.value.message == plan.reason
    assert place.load() == before and notes.calls == []
    pinned = runner(made, place, pipeline_version=OLD)
    assert pinned.run(run_id="r").output == ["in", "a", "b"]


def nested(notes: Notes, *names: str) -> Pipeline[Any, Any]:
    """Return a pipeline with a composite step "fan" between two steps."""
    body = Pipeline.of(*[notes.step(name, lambda n: n + 1) for name in names])  # type: ignore[call-overload]
    return notes.step("list", lambda n: [n, n]) >> Step.map_over("fan", body) >> notes.step("sum", sum)


def test_a_run_inside_of_a_step_that_is_the_same(place: Place) -> None:
    """It goes on inside of it: nothing that is saved there is done again."""
    notes = Notes()
    notes.failing = {"fan[1].y"}
    runner(registry(v1_0_0=nested(notes, "x", "y")), place).run(1, run_id="r")
    notes.failing = set()
    notes.taken()
    new = notes.step("new", lambda n: n) >> nested(notes, "x", "y") >> notes.step("ship", lambda n: n)
    result = runner(to_new(registry(v2_0_0=new)), place).run(run_id="r")
    assert (result.output, notes.taken()) == (6, ["fan[1].y", "sum", "ship"])
    assert place.load()["current_step_index"] == 5


@pytest.mark.parametrize("keeps_old", [False, True])
@pytest.mark.parametrize("change", ["changed", "elsewhere", "gone"])
def test_a_run_inside_of_a_step_that_has_changed(place: Place, keeps_old: bool, change: str) -> None:
    """It is refused, naming the step; the run is as it was."""
    notes = Notes()
    old = nested(notes, "x", "y")
    notes.failing = {"fan[1].y"}
    runner(registry(v1_0_0=old), place).run(1, run_id="r")
    notes.failing = set()
    new = {"changed": nested(notes, "x", "z", "y"), "elsewhere": old, "gone": notes.step("list") >> notes.step("sum")}
    carry = gives() if change == "changed" else gives(next_step="sum")
    made = to_new(registry(v2_0_0=new[change], **({"v1_0_0": old} if keeps_old else {})), carry)
    before = place.load()
    with pytest.raises(MigrationError, match=r"stands inside of step 'fan'"):
        runner(made, place).run(run_id="r")
    assert place.load() == before
    assert runner(made, place).plan("r").code == "migration"


WAITS = [Step.human_in_the_loop("ask", "Ship it?", bool), Step.wait_for("ask", bool)]


def waiting(place: Place, notes: Notes, waits: Step[Any, Any]) -> PipelineRegistry:
    """Leave a run of version 1.0.0 that waits; return a registry that has only the next version, and the way there."""
    old = adds(notes, "a") >> waits >> notes.step("b")
    runner(registry(v1_0_0=old), place).run([], run_id="r")
    return to_new(registry(v2_0_0=old >> notes.step("c", lambda given: [given])))


@pytest.mark.parametrize("waits", WAITS)
def test_a_run_that_waits(place: Place, waits: Step[Any, Any]) -> None:
    """It is looked at as the new version has it, and nothing is saved of that."""
    made = waiting(place, Notes(), waits)
    before = place.load()
    for _ in range(2):
        assert runner(made, place).run(run_id="r").status == "paused"
    assert runner(made, place).plan("r").executes == ("ask", "b", "c")
    assert runner(made, place).why("r").code.startswith("waits-for-")
    assert place.load() == before


@pytest.mark.parametrize("waits", WAITS)
def test_what_a_run_waits_for_comes(place: Place, waits: Step[Any, Any]) -> None:
    """It is answered as the new version asks, and goes on with that."""
    made = waiting(place, Notes(), waits)
    if waits.kind == "signal":
        runner(made, place).signal("r", "ask", True)
        result = runner(made, place).run(run_id="r")
    else:
        result = runner(made, place).resume("r", True)
    assert (result.output, result.pipeline_version) == ([True], NEW)
    assert paths(result) == ["a", "ask", "b", "c"]


def test_a_run_that_waits_at_a_step_that_is_gone(place: Place) -> None:
    """It is refused: the question would have nobody to answer to."""
    notes = Notes()
    old = adds(notes, "a") >> Step.human_in_the_loop("ask", "Ship it?", bool) >> adds(notes, "b")
    runner(registry(v1_0_0=old), place).run([], run_id="r")
    made = to_new(registry(v2_0_0=chain(notes, "a b")), gives(next_step="b"))
    with pytest.raises(MigrationError, match="stands inside of step 'ask'"):
        runner(made, place).run(run_id="r")


def test_a_run_that_is_over_is_not_carried(place: Place) -> None:
    """Its result is that of its own version; nor is one that is being undone."""
    notes = Notes()
    old = chain(notes, "a b")
    runner(registry(v1_0_0=old), place).run([], run_id="r")
    made = to_new(registry(v1_0_0=old, v2_0_0=chain(notes, "c")), spoils)
    result = runner(made, place).run(run_id="r")
    assert (result.output, result.pipeline_version) == (["a", "b"], OLD)


def test_a_run_that_is_being_undone_is_not_carried(place: Place) -> None:
    """Its undos are those of its own version."""
    ledger = Ledger()
    old = ledger.does("a") >> ledger.does("b") >> ledger.step("c")
    ledger.failing = {"c", "a>undo"}
    result = runner(registry(v1_0_0=old), place).run([], run_id="r")
    assert (result.status, result.phase) == ("failed", "undoing")
    ledger.failing = set()
    made = to_new(registry(v1_0_0=old, v2_0_0=ledger.step("a")), spoils)
    assert runner(made, place).plan("r").executes == ("a>undo",)
    ledger.taken()
    result = runner(made, place).run(run_id="r")
    assert (result.phase, ledger.taken()) == ("undone", ["a>undo"])


def test_an_undo_that_would_be_lost(place: Place) -> None:
    """A run that has done a step with an undo is not carried to a version that could not take it back."""
    ledger = Ledger()
    old = ledger.does("pay") >> ledger.step("ship", on_crash="retry")
    lost = ledger.step("pay") >> ledger.step("ship")
    kept = ledger.does("pay") >> ledger.step("check") >> ledger.step("ship")
    # Without an undo of the run's: it is interrupted, and not failed.
    ledger.interrupt(runner(registry(v1_0_0=old), place), 1, at={"ship"})
    made = to_new(registry(v1_0_0=old, v2_0_0=lost))
    with pytest.raises(MigrationError, match="step 'pay' was done, and its undo is not in"):
        runner(made, place).run(run_id="r")
    assert runner(to_new(registry(v1_0_0=old, v2_0_0=kept)), place).run(run_id="r").status == "completed"


@pytest.mark.parametrize("retry", [False, True])
def test_a_step_that_changes_the_context_and_fails(place: Place, retry: bool) -> None:
    """What it changed is taken back to what the migration made, and not to what was there before."""
    notes = Notes()
    failed_at(place, notes, "b")
    attempts = list[dict[str, Any]]()

    async def spend(given: list[Any], *, context: dict[str, Any]) -> Any:
        attempts.append(dict(context))
        context["left"] -= 1
        given.append("spent")
        if len(attempts) == 1:
            raise OSError("down")
        return given

    base = adds(notes, "b")
    spends = dataclasses.replace(base, fn=spend, takes_context=True, context_type=dict[str, Any])
    if retry:
        spends = dataclasses.replace(spends, retry=adds(notes, "x", retries=1).retry)
    made = to_new(registry(v2_0_0=adds(notes, "a") >> spends), gives(context={"left": 3}, last_output=["new"]))
    result = runner(made, place).run(run_id="r")
    if not retry:
        assert result.status == "failed"
        result = runner(made, place).run(run_id="r")
    assert (attempts, result.output) == ([{"left": 3}] * 2, ["new", "spent"])
    assert result.final_pipeline_context == {"left": 2}


@pytest.mark.parametrize("written", [False, True])
def test_the_save_of_what_a_migration_made_fails(place: Place, written: bool) -> None:
    """Whether it was written or not, the run goes on with the next try, and is carried once."""
    notes = Notes()
    failed_at(place, notes, "b")
    made = to_new(registry(v2_0_0=chain(notes, "a b c")), lambda state: state.last_output.append("m"))
    backend = stopping(place.open(), lambda records: True)
    if not written:

        async def save_state(run_id: str, state: dict[str, Any]) -> None:
            raise SaveError("The disk is gone.")

        backend.save_state = save_state  # type: ignore[method-assign]  # of this instance
    stops = Flujo(registry=made, pipeline_name="shop", state_backend=backend, clock=VirtualClock())
    with pytest.raises(SaveError):
        stops.run(run_id="r")
    assert notes.calls == []
    if place.kind == "memory":  # it is the same object
        del backend.save_state
    assert place.load()["pipeline_version"] == (NEW if written else OLD)
    assert runner(made, place).run(run_id="r").output == ["in", "a", "m", "b", "c"]


def test_a_state_by_hand_without_a_fingerprint(place: Place) -> None:
    """It is carried by its index where nothing says what its steps were called."""
    notes = Notes()
    failed_at(place, notes, "b")
    stored = place.load()
    asyncio.run(place.open().delete_state("r"))
    place.put({name: stored[name] for name in stored if name in ("run_id", "pipeline_id", "pipeline_name",
        "pipeline_version", "current_step_index", "pipeline_context", "last_step_output", "status", "created_at",
        "updated_at")})  # fmt: skip
    result = runner(to_new(registry(v2_0_0=chain(notes, "z y x"))), place).run(run_id="r")
    assert result.output == ["in", "a", "y", "x"]


def test_an_index_beyond_the_end(place: Place) -> None:
    """A migrated state is checked like any other."""
    notes = Notes()
    failed_at(place, notes, "b")
    place.put({**place.load(), "current_step_index": 7})
    with pytest.raises((MigrationError, InvalidStateError)):
        runner(registry(v1_0_0=chain(notes, "a b")), place).run(run_id="r")


@pytest.mark.parametrize(
    ("source", "target", "match"),
    [
        ("2.0", "1.0", "not newer"),
        ("1.0", "1.0.0", "not newer"),
        ("one", "2.0", "cannot lead"),
        ("1.0", None, "cannot"),
    ],
)
def test_versions_that_no_migration_can_lead_between(source: Any, target: Any, match: str) -> None:
    """They are refused where the migration is declared."""
    with pytest.raises(RegistryError, match=match):
        PipelineRegistry().migration("shop", source, target)(lambda state: None)


def test_functions_that_are_no_migration() -> None:
    """A coroutine function does I/O, or would; and there is one migration between two versions."""
    made = PipelineRegistry()

    async def carry(state: MigratingState) -> None: ...

    with pytest.raises(RegistryError, match="not async"):
        made.migration("shop", "1", "2")(carry)  # type: ignore[arg-type]
    made.migration("shop", "1.0", "2")(spoils)
    assert made.migration("shop", "1", "2.0")(spoils) is spoils
    with pytest.raises(RegistryError, match="registered already"):
        made.migration("shop", "1", "2")(gives())
