"""Steps in doubt: their process died while they ran, and what follows is to be found out, or asked, or done again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, Pipeline, Reconciled, Step, current_step, step
from flujo._ids import path_text
from flujo.errors import ConfigurationError, InvalidAnswerError, RunNotWaitingError, SaveError
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths, stopping
from tests.support.waiting_runs import Clock, runner

HAPPENED, NOT, UNKNOWN = Reconciled(happened=True, output=77), Reconciled(happened=False), Reconciled(happened=None)


class Charges:
    """A step that notes its calls and keys, and dies or fails when it is to; and what finds out about it."""

    def __init__(self, on_crash: Any = "ask", **options: Any) -> None:
        self.calls: list[str] = []
        self.keys: dict[str, set[str]] = {}
        self.attempts: list[int] = []
        self.asked: list[str] = []
        self.answers: list[Any] = []
        self.stop: Callable[[str], BaseException | None] = lambda path: None
        self.hangs: Callable[[str], bool] = lambda path: False

        async def charge(n: int) -> int:
            current = current_step()
            path = path_text(current.path)
            self.calls.append(path)
            self.keys.setdefault(path, set()).add(current.idempotency_key)
            self.attempts.append(current.attempt)
            await asyncio.sleep(0)
            if self.hangs(path):
                await asyncio.Event().wait()
            error = self.stop(path)
            if error is not None:
                raise error
            return n * 10

        async def find_out(key: str) -> Reconciled:
            self.asked.append(key)
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

        self.find_out = find_out
        told = find_out if on_crash == "find out" else on_crash
        self.step: Step[Any, Any] = step(name="charge", on_crash=told, **options)(charge)

    def die(self, place: Place, pipeline: Any, given: Any = 1, *, at: str = "charge", **options: Any) -> None:
        """Run it in a process that dies at that path, in the middle of the step."""
        self.stop = lambda path: KeyboardInterrupt() if path == at else None
        with pytest.raises(KeyboardInterrupt):
            runner(place, pipeline, **options).run(given, run_id="r")
        self.stop = lambda path: None
        assert self.calls[-1] == at
        self.calls.clear()


def begun(place: Place) -> list[list[str]]:
    """Return the steps in doubt, as the store has them."""
    return list((place.load()["position"] or {}).get("begun", ()))


def test_what_is_saved_before_it(place: Place) -> None:
    """That the step is about to run is in the store when it runs, as the paths of all such steps that do; when it is
    known how it came out, that is not in doubt any more. A step that may simply be done again is not announced."""
    seen: list[Any] = []
    backend = place.open()

    async def look(n: Any) -> Any:
        state = await backend.load_state("r")
        seen.append(None if state is None else sorted((state["position"] or {}).get("begun", ())))
        return n

    careful = step(name="careful", on_crash="ask")(look)
    careless = step(name="careless", on_crash="retry")(look)
    fan = Step.parallel("fan", a=careful, b=careful)
    pipeline = careful >> fan >> Step.loop_until("again", careless >> careful, until=lambda n: True)
    using = Flujo(pipeline, state_backend=backend, pipeline_name="p")
    assert using.run(1, run_id="r").status == "completed"
    assert seen[0] == [["careful"]] and seen[-2:] == [[], [["again", "#1", "careful"]]]
    assert seen[1] and seen[2] and all(path[0] == "fan" for found in seen[1:3] for path in found)
    assert place.load()["position"] is None


def test_an_intention_that_cannot_be_saved(place: Place) -> None:
    """Then the step does not run."""
    charges = Charges()
    backend = stopping(place.open(), lambda records: True)
    with pytest.raises(SaveError):
        Flujo(charges.step, state_backend=backend, pipeline_name="p").run(1, run_id="r")
    assert charges.calls == []


@pytest.mark.parametrize("on_crash", ["retry", "ask", "find out"])
def test_a_step_that_does_not_die(place: Place, on_crash: str) -> None:
    """Nobody is asked about it, also where it fails and is tried again, by itself or by another run."""
    charges = Charges(on_crash, retries=[0.1])
    failures = [OSError("down")] * 3
    charges.stop = lambda path: failures.pop() if failures else None
    pipeline = Notes().step("a") >> charges.step
    assert runner(place, pipeline).run(1, run_id="r").status == "failed"
    assert begun(place) == []
    assert runner(place, pipeline).run(run_id="r").output == 10
    assert (charges.attempts, charges.asked) == ([1, 2, 3, 4], [])
    assert len(charges.keys["charge"]) == 1


def test_doing_it_again(place: Place) -> None:
    """By default the step is simply done again, under the same key."""
    charges = Charges("retry")
    charges.die(place, charges.step)
    assert runner(place, charges.step).run(1, run_id="r").output == 10
    assert (charges.calls, len(charges.keys["charge"])) == (["charge"], 1)


def test_asking(place: Place) -> None:
    """A person is asked whether it happened, and the step does not run before that, however often the run does."""
    charges, clock = Charges(), Clock()
    pipeline = Notes().step("a") >> charges.step
    charges.die(place, pipeline)
    result = runner(place, pipeline, clock).run(1, run_id="r")
    waiting = result.waiting_for
    assert result.status == "paused" and waiting is not None and result.waiting == [waiting]
    assert (waiting.kind, waiting.step, waiting.until, waiting.since) == ("crash", "charge", None, clock.now())
    assert waiting.message is not None and "Step 'charge'" in waiting.message and "Did it happen?" in waiting.message
    assert set(waiting.schema["properties"]) == {"happened", "output"}
    assert "waits at 'charge' for a verdict" in repr(result)
    before = place.contents()
    for _ in range(3):
        assert runner(place, pipeline).run(1, run_id="r", wait=True).status == "paused"
    assert (place.contents(), charges.calls) == (before, [])


@pytest.mark.parametrize("answer", [HAPPENED, {"happened": True, "output": 77}])
def test_it_happened(place: Place, answer: Any) -> None:
    """The step is not done again: its output is what the person says, and who that was is on record."""
    charges = Charges()
    pipeline = charges.step >> Notes().step("after", lambda n: n + 1)
    charges.die(place, pipeline)
    asked = runner(place, pipeline).run(run_id="r")
    result = runner(place, pipeline).resume(asked, answer, by="ann")
    assert (result.output, charges.calls) == (78, [])
    record = result.step_history[0]
    assert (record.where, record.output, record.by, record.success) == ("charge", 77, "ann", True)
    with pytest.raises(RunNotWaitingError):
        runner(place, pipeline).resume("r", NOT, at="after")


@pytest.mark.parametrize("answer", [NOT, {"happened": False}])
def test_it_did_not_happen(place: Place, answer: Any) -> None:
    """The step is done, under the same key, and its attempt counts on."""
    charges = Charges()
    charges.die(place, charges.step)
    runner(place, charges.step).run(run_id="r")
    result = runner(place, charges.step).resume("r", answer)
    assert (result.output, charges.calls) == (10, ["charge"])
    assert len(charges.keys["charge"]) == 1 and place.load()["position"] is None


def test_verdicts_that_are_none(place: Place) -> None:
    """Who does not know is not believed, nor is an output that the step could not have returned. Nothing is stored."""
    charges = Charges()
    charges.die(place, charges.step)
    runner(place, charges.step).run(run_id="r")
    before = place.contents()
    wrong: list[Any] = [
        UNKNOWN, {"happened": None}, {"happened": "yes"}, {}, True, None, 77, {"happened": False, "output": 77},
        {"happened": True, "output": "a text"}, Reconciled(happened=True), Reconciled(happened=True, output=[77]),
    ]  # fmt: skip
    for answer in wrong:
        with pytest.raises(InvalidAnswerError):
            runner(place, charges.step).resume("r", answer)
        assert place.contents() == before, answer
    assert runner(place, charges.step).resume("r", HAPPENED).output == 77


def test_a_step_without_an_output(place: Place) -> None:
    """That it happened is all that there is to say."""
    stop = [KeyboardInterrupt()]

    @step(on_crash="ask")
    async def note(n: int) -> None:
        if stop:
            raise stop.pop()

    with pytest.raises(KeyboardInterrupt):
        runner(place, note).run(1, run_id="r")
    runner(place, note).run(run_id="r")
    result = runner(place, note).resume("r", {"happened": True})
    assert (result.status, result.output) == ("completed", None)


@pytest.mark.parametrize(("answer", "output", "calls"), [(HAPPENED, 77, 0), (NOT, 10, 1)])
def test_finding_out(place: Place, answer: Reconciled, output: int, calls: int) -> None:
    """The function is given the step's key; what it says is so."""
    charges = Charges("find out")
    charges.die(place, charges.step)
    charges.answers = [answer]
    result = runner(place, charges.step).run(run_id="r")
    assert (result.output, len(charges.calls)) == (output, calls)
    assert [{key} for key in charges.asked] == [charges.keys["charge"]]
    assert paths(result) == ["charge"] and result.step_history[0].by is None
    assert runner(place, charges.step).run(run_id="r").output == output
    assert len(charges.asked) == 1


def test_what_cannot_be_found_out(place: Place) -> None:
    """Where the function does not know either, a person is asked; it is not called again then."""
    charges = Charges("find out")
    charges.die(place, charges.step)
    charges.answers = [UNKNOWN]
    for _ in range(2):
        result = runner(place, charges.step).run(run_id="r")
        assert result.status == "paused" and [waiting.kind for waiting in result.waiting] == ["crash"]
    assert runner(place, charges.step).resume("r", HAPPENED, by="ann").output == 77
    assert (charges.calls, len(charges.asked)) == ([], 1)


@pytest.mark.parametrize("wrong", [OSError("the bank is closed"), "yes", None, True])
def test_a_function_that_fails(place: Place, wrong: Any) -> None:
    """The run has failed, and the step is in doubt as before: the next run asks again, and does not just do it."""
    charges = Charges("find out")
    charges.die(place, charges.step)
    charges.answers = [wrong, wrong, HAPPENED]
    for _ in range(2):
        result = runner(place, charges.step).run(run_id="r")
        assert result.status == "failed"
        assert type(result.error) is (OSError if isinstance(wrong, OSError) else ConfigurationError)
        assert paths(result, success=False) == ["charge"]
    assert begun(place) == [["charge"]]
    assert runner(place, charges.step).run(run_id="r").output == 77
    assert charges.calls == []


class Bank(BaseModel):
    """A context."""

    booked: list[str] = []


def test_a_step_that_finds_out(place: Place) -> None:
    """It has its own retries, and is given the context; what happened leaves that as it is."""
    stop, asked = [KeyboardInterrupt()], list[Any]()

    @step(name="ask the bank", retries=[0.1, 0.1])
    async def find_out(key: str, *, context: Bank) -> Reconciled:
        asked.append((current_step().attempt, list(context.booked)))
        if len(asked) < 3:
            raise OSError("closed")
        return HAPPENED

    @step(on_crash=find_out)
    async def charge(n: int, *, context: Bank) -> int:
        context.booked.append(f"charge {n}")
        if stop:
            raise stop.pop()
        return n

    pipeline = charge >> Notes().step("b")
    options: dict[str, Any] = {"context_model": Bank, "initial_context_data": {"booked": ["open"]}}
    with pytest.raises(KeyboardInterrupt):
        runner(place, pipeline, **options).run(1, run_id="r")
    result = runner(place, pipeline, **options).run(run_id="r")
    assert result.output == 77 and asked == [(n, ["open"]) for n in (1, 2, 3)]
    assert result.final_pipeline_context.booked == ["open"]


def nested(charge: Step[Any, Any]) -> dict[str, Any]:
    """Return the step inside of each kind of composite, and its path there."""
    return {
        "fan.a.charge": Step.parallel("fan", a=charge, b=Step.sleep("nap", 0)),
        "many[1].charge": Step.map_over("many", charge, max_concurrency=1),
        "route.yes.charge": Step.branch_on("route", by=lambda n: "yes", yes=charge, no=Step.sleep("nap", 0)),
        "again#1.charge": Step.loop_until("again", charge, until=lambda n: True),
        "all.charge": Pipeline.of(charge).as_step("all"),
        "charge.primary.charge": charge.fallback(Step.sleep("nap", 0)),
    }


@pytest.mark.parametrize("answer", [HAPPENED, NOT])
@pytest.mark.parametrize("on_crash", ["ask", "find out"])
@pytest.mark.parametrize("path", list(nested(Charges().step)))
def test_inside_of_others(place: Place, path: str, on_crash: str, answer: Reconciled) -> None:
    """At any depth it is as at the top; what was done before it is not repeated."""
    charges = Charges(on_crash)
    pipeline = nested(charges.step)[path]
    charges.die(place, pipeline, [1, 1] if path.startswith("many") else 1, at=path)
    charges.answers = [answer]
    result = runner(place, pipeline).run(run_id="r")
    if on_crash == "ask":
        assert [waiting.step for waiting in result.waiting] == [path]
        result = runner(place, pipeline).resume("r", answer, by="ann")
    (record,) = [record for record in result.step_history if record.where == path]
    assert record.output == (77 if answer.happened else 10)
    assert charges.calls == ([] if answer.happened else [path])
    assert result.status == "completed" and all(len(keys) == 1 for keys in charges.keys.values())


def test_several_in_doubt(place: Place) -> None:
    """Each is asked about by itself; one that had come to its end is not in doubt."""
    charges = Charges()
    items = Step.map_over("many", charges.step, max_concurrency=3)
    backend = stopping(place.open(), lambda records: any(record.name == "charge" for record in records))
    charges.hangs = lambda path: path != "many[0].charge"
    with pytest.raises(SaveError):
        Flujo(items, state_backend=backend, pipeline_name="p").run([1, 2, 3], run_id="r")
    del backend.save_state  # type: ignore[method-assign]
    charges.hangs = lambda path: False
    charges.calls.clear()
    result = runner(place, items).run(run_id="r")
    assert sorted(waiting.step for waiting in result.waiting) == ["many[1].charge", "many[2].charge"]
    runner(place, items).resume("r", HAPPENED, at="many[2].charge")
    assert runner(place, items).resume("r", NOT).output == [10, 20, 77]
    assert charges.calls == ["many[1].charge"]
