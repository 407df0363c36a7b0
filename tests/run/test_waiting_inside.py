"""Waits inside of other steps: several at once, each answered for itself, and nothing around them is repeated."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, ItemError, Merge, Pipeline, Step, step
from flujo.errors import AlreadyAnsweredError, NoVoteError, RunNotWaitingError, StepTimeoutError, WaitTimeoutError
from tests.support.backends import OURS, Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import YES, Approval, Clock, Held, ask, at_once, runner, until

NO = Approval(approved=False)


def asked(result: Any) -> list[str]:
    """Return the paths of what a paused run waits for."""
    assert result.status == "paused", result
    return [waiting.step for waiting in result.waiting]


@pytest.mark.parametrize("order", [["left", "right"], ["right", "left"]])
def test_two_at_once(place: Place, order: list[str]) -> None:
    """Both are asked; `at` says which one an answer is for, and without it none is taken. The other branches, and what
    comes before in the same one, are done once."""
    notes = Notes()
    left = notes.step("before") >> ask("left") >> notes.step("after", lambda answer: answer.note)
    fan = Step.parallel("fan", left=left, right=ask("right"), work=notes.step("a") >> notes.step("b"))
    pipeline = notes.step("first") >> fan >> notes.step("last")
    result = runner(place, pipeline).run(1, run_id="r")
    assert sorted(asked(result)) == ["fan.left.left", "fan.right.right"]
    done = ["fan.left.before", "fan.work.a", "fan.work.b", "first"]
    assert sorted(notes.taken()) == done
    before = place.contents()
    for run in ("r", result):
        with pytest.raises(RunNotWaitingError, match="waits for several answers: at") as caught:
            runner(place, pipeline).resume(run, YES)
        assert "`at=`" in str(caught.value)
    for at in ("fan", "fan.work.a", "left", "fan.left.left@0"):
        with pytest.raises(RunNotWaitingError):
            runner(place, pipeline).resume("r", YES, at=at)
    assert place.contents() == before
    first, second = (f"fan.{name}.{name}" for name in order)
    result = runner(place, pipeline).resume("r", Approval(approved=True, note=first), by="ann", at=first)
    assert asked(result) == [second]
    result = runner(place, pipeline).resume("r", Approval(approved=True, note=second), by="bob", at=second)
    assert result.output["left"] == "fan.left.left" and result.output["right"].note == "fan.right.right"
    assert notes.taken() == ["fan.left.after", "last"]
    assert sorted(paths(result)) == sorted([*done, "fan", "fan.left.after", "fan.left.left", "fan.right.right", "last"])
    by = {record.where: record.by for record in result.step_history if record.by}
    assert by == {first: "ann", second: "bob"}


def test_a_path_that_is_none(place: Place) -> None:
    """An empty `at` names no step, whatever was answered before."""
    runner(place, ask()).run(1, run_id="r")
    with pytest.raises(RunNotWaitingError):
        runner(place, ask()).resume("r", YES, at="")


def test_the_others_go_on(place: Place) -> None:
    """While one branch waits all others come as far as they can, a failure among them too."""
    notes = Notes()
    fan = Step.parallel("fan", wait=ask(), work=notes.step("a") >> notes.step("b") >> Step.sleep("nap", 60))
    clock = Clock()
    assert sorted(asked(runner(place, fan, clock).run(1, run_id="r"))) == ["fan.wait.ask", "fan.work.nap"]
    assert notes.taken() == ["fan.work.a", "fan.work.b"]
    clock.jump(60)
    assert asked(runner(place, fan, clock).run(run_id="r")) == ["fan.wait.ask"]
    assert runner(place, fan, clock).resume("r", YES).output == {"wait": YES, "work": 1}
    assert notes.calls == []


def test_a_failure_beside_it(place: Place) -> None:
    """The run has failed, and waits for nothing; when it is run again it asks anew, and the old question is none."""
    notes = Notes()
    notes.failing = {"fan.work.b"}
    fan = Step.parallel("fan", wait=notes.step("q") >> ask(), work=notes.step("a") >> notes.step("b"))
    result = runner(place, fan).run(1, run_id="r")
    assert (result.status, result.waiting) == ("failed", [])
    before = place.contents()
    with pytest.raises(RunNotWaitingError):
        runner(place, fan).resume("r", YES, at="fan.wait.ask")
    assert place.contents() == before
    notes.failing = set()
    again = runner(place, fan).run(1, run_id="r")
    assert asked(again) == ["fan.wait.ask"]
    assert runner(place, fan).resume(again, YES).output == {"wait": YES, "work": 1}
    assert sorted(notes.calls) == ["fan.wait.q", "fan.work.a", "fan.work.b", "fan.work.b"]


@pytest.mark.parametrize("place", OURS, indirect=True)
def test_a_failure_beside_a_question_that_is_known(place: Place) -> None:
    """Where somebody could have answered already, a failed run takes no answer either; when it is run again it asks."""
    notes = Notes()

    async def main() -> None:
        held = Held(notes, does=lambda n: 1 / 0)
        fan = Step.parallel("fan", wait=ask(), work=held.step)
        task = asyncio.ensure_future(runner(place, fan).run_async(1, run_id="r"))
        await held.begun.wait()
        await until(lambda: place.open().load_state("r"))
        held.go.set()
        assert (await task).status == "failed"
        with pytest.raises(RunNotWaitingError):
            await runner(place, fan).resume_async("r", YES, at="fan.wait.ask")
        assert await runner(place, fan).messages_async("r") == []

    at_once(main())
    fan = Step.parallel("fan", wait=ask(), work=notes.step("work"))
    result = runner(place, fan).run(run_id="r")
    assert runner(place, fan).resume(result, YES).output == {"wait": YES, "work": 1}


def test_votes_outlive_a_failure_elsewhere(place: Place) -> None:
    """Those who have voted need not do it again when the run is tried again, since something else has failed."""
    clock = Clock()
    fan = Step.parallel("fan", vote=ask("vote", quorum=2), wait=ask(timeout=60))
    runner(place, fan, clock).run(1, run_id="r")
    runner(place, fan, clock).resume("r", NO, by="ann", at="fan.vote.vote")
    clock.jump(60)
    assert runner(place, fan, clock).run(run_id="r").status == "failed"
    assert sorted(asked(runner(place, fan, clock).run(run_id="r"))) == ["fan.vote.vote", "fan.wait.ask"]
    with pytest.raises(NoVoteError):
        runner(place, fan, clock).resume("r", YES, by="ann", at="fan.vote.vote")
    runner(place, fan, clock).resume("r", YES, by="bob", at="fan.vote.vote")
    assert runner(place, fan, clock).resume("r", YES).output == {"vote": [NO, YES], "wait": YES}


@pytest.mark.parametrize("place", OURS, indirect=True)
def test_answered_while_the_others_go_on(place: Place) -> None:
    """An answer to a run that somebody executes is taken at once: what follows in that branch begins before the other
    has come to its end. Who waits for the run gets its result."""
    notes = Notes()

    async def main() -> list[Any]:
        held = Held(notes)
        after = asyncio.Event()

        @step
        async def follow(answer: Approval) -> str:
            after.set()
            return answer.note

        fan = Step.parallel("fan", wait=ask() >> follow, work=held.step)
        task = asyncio.ensure_future(runner(place, fan).run_async(1, run_id="r"))
        await until(lambda: place.open().load_state("r"))
        answer = runner(place, fan).resume_async("r", Approval(approved=True, note="x"), by="ann", wait=True)
        answering = asyncio.ensure_future(answer)
        await after.wait()
        held.go.set()
        return list(await asyncio.gather(task, answering))

    for result in at_once(main()):
        assert result.output == {"wait": "x", "work": 1}
    assert notes.calls == ["fan.work.work"]


def test_items_of_a_map(place: Place) -> None:
    """As many are asked as may go on at once; each answer lets the next item begin, in whichever order they come."""
    notes = Notes()
    body = notes.step("draw") >> ask("vote", tp=int) >> notes.step("count", lambda vote: vote * 10)
    pipeline = Step.map_over("many", body, max_concurrency=2)
    result = runner(place, pipeline).run([5, 6, 7, 8], run_id="r")
    assert asked(result) == ["many[0].vote", "many[1].vote"]
    assert notes.taken() == ["many[0].draw", "many[1].draw"]
    for item, left in ((1, [0, 2]), (2, [0, 3]), (3, [0])):
        result = runner(place, pipeline).resume("r", item, at=f"many[{item}].vote")
        assert sorted(asked(result)) == [f"many[{other}].vote" for other in left]
    result = runner(place, pipeline).resume("r", 0)
    assert result.output == [0, 10, 20, 30]
    assert sorted(notes.calls) == sorted([f"many[{i}].count" for i in range(4)] + ["many[2].draw", "many[3].draw"])


def test_items_that_nobody_answers(place: Place) -> None:
    """Where failures are collected, a time that has run out is one of them, and the others wait on."""
    clock = Clock()
    body = Step.branch_on("who", by=lambda n: str(n), **{"0": ask(timeout=60), "1": ask(timeout=90), "2": ask()})
    pipeline = Step.map_over("many", body, on_error="collect", tolerated_failures=1)
    runner(place, pipeline, clock).run([0, 2], run_id="r")
    clock.jump(60)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert asked(result) == ["many[1].who.2.ask"]
    error, answer = runner(place, pipeline, clock).resume("r", YES).output
    assert isinstance(error, ItemError) and error.index == 0 and error.error.startswith("WaitTimeoutError: ")
    assert answer == YES
    runner(place, pipeline, clock).run([0, 1, 2], run_id="s")  # two are one too many
    clock.jump(60)
    assert len(asked(runner(place, pipeline, clock).run(run_id="s"))) == 2
    clock.jump(60)
    assert runner(place, pipeline, clock).run(run_id="s").status == "failed"


def test_a_case_of_a_branch(place: Place) -> None:
    """The choice is made once, and only the case that was chosen asks."""
    choices = ["big"]
    route = Step.branch_on("route", by=lambda n: choices.pop(), big=ask("sure", tp=bool), small=ask("maybe", tp=bool))
    result = runner(place, route).run(1, run_id="r")
    assert asked(result) == ["route.big.sure"]
    assert runner(place, route).run(run_id="r").status == "paused"
    assert runner(place, route).resume("r", True).output is True


def test_each_iteration_of_a_loop(place: Place) -> None:
    """It asks again and again, each time for another answer, until one will do."""
    notes, seen = Notes(), list[int]()

    def will_do(n: int) -> bool:
        seen.append(n)
        return n > 2

    loop = Step.loop_until("again", notes.step("draw") >> ask("vote", tp=int), until=will_do, max_iterations=5)
    results = [runner(place, loop).run(0, run_id="r")]
    for vote in (1, 2, 3):
        assert asked(results[-1]) == [f"again#{vote}.vote"]
        results.append(runner(place, loop).resume(results[-1], vote))
        with pytest.raises(AlreadyAnsweredError):
            runner(place, loop).resume(results[0], 9)
    assert (results[-1].output, seen) == (3, [1, 2, 3])
    assert notes.calls == ["again#1.draw", "again#2.draw", "again#3.draw"]


def test_a_pipeline_as_a_step(place: Place) -> None:
    """The path leads to the question, at any depth."""
    inner = (ask("sure", tp=int) >> Notes().step("add", lambda n: n + 1)).as_step("inner")
    pipeline = (Notes().step("first") >> inner).as_step("outer") >> Notes().step("last")
    assert asked(runner(place, pipeline).run(1, run_id="r")) == ["outer.inner.sure"]
    assert runner(place, pipeline).resume("r", 5, at="outer.inner.sure").output == 6


def test_a_fallback_for_who_does_not_answer(place: Place) -> None:
    """A question whose time has run out takes the fallback, with the input that it was given itself; that may ask,
    too."""
    notes, clock = Notes(), Clock()
    pipeline = notes.step("first", lambda n: n + 1) >> ask("boss", tp=int, timeout=60).fallback(
        notes.step("other") >> ask("deputy", tp=int, timeout=60).fallback(notes.step("machine", lambda n: n * 100))
    )
    first = runner(place, pipeline, clock).run(1, run_id="r")
    runner(place, pipeline, clock).run(1, run_id="s")
    clock.jump(60)
    second = runner(place, pipeline, clock).run(run_id="r")
    name = first.waiting[0].step.partition(".")[0]
    assert asked(first) == [f"{name}.primary.boss"]
    assert asked(second) == [f"{name}.fallback.deputy.primary.deputy"]
    assert runner(place, pipeline, clock).resume("s", 7).output == 7  # nobody had looked at the clock
    clock.jump(60)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.output == 200
    failed = [record for record in result.step_history if not record.success]
    assert [record.name for record in failed] == ["boss", "deputy"]
    assert all("WaitTimeoutError" in (record.feedback or "") for record in failed)
    assert notes.calls == ["first", "first", f"{name}.other", f"{name}.machine"] or len(notes.calls) == 4


def test_a_question_that_is_the_fallback(place: Place) -> None:
    """What failed is not tried again while the person is asked, nor after that."""
    notes = Notes()
    notes.failing = {"charge.primary.charge"}
    pipeline = notes.step("charge").fallback(ask("manually", tp=int))
    assert asked(runner(place, pipeline).run(1, run_id="r")) == ["charge.fallback.manually"]
    notes.failing = set()
    assert runner(place, pipeline).resume("r", 7).output == 7
    assert notes.calls == ["charge.primary.charge"]


class Trail(BaseModel):
    """A context that branches add to."""

    lines: Annotated[list[str], Merge.APPEND] = []


def test_the_context_of_branches_that_wait(place: Place) -> None:
    """What was changed in a branch before it waited is there when it goes on, in another process, and is joined."""

    def noting(name: str) -> Step[Any, Any]:
        @step(name=name)
        async def note(given: Any, *, context: Trail) -> Any:
            context.lines.append(f"{name} {len(context.lines)}")
            return given

        return note

    one = noting("a") >> ask("x") >> noting("b")
    fan = Step.parallel("fan", one=one, two=noting("c") >> ask("y") >> noting("d")) >> ask("z") >> noting("e")

    def using() -> Flujo[Any, Any]:
        return runner(place, noting("0") >> fan, context_model=Trail)

    assert using().run(1, run_id="r").final_pipeline_context.lines == ["0 0"]
    using().resume("r", YES, at="fan.two.y")
    result = using().resume("r", YES)
    assert asked(result) == ["z"]
    assert result.final_pipeline_context.lines == ["0 0", "a 1", "b 2", "c 1", "d 2"]
    assert using().resume("r", YES).final_pipeline_context.lines == ["0 0", "a 1", "b 2", "c 1", "d 2", "e 5"]


def test_nobody_answers_inside(place: Place) -> None:
    """A time that runs out where nothing catches it fails the run, with the path of the step."""
    clock = Clock()
    pipeline = Pipeline.of(Step.parallel("fan", one=ask("x", timeout=60), two=ask("y"))).as_step("outer")
    runner(place, pipeline, clock).run(1, run_id="r")
    clock.jump(60)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert isinstance(result.error, WaitTimeoutError) and result.error.step == "outer.fan.one.x"
    assert sorted(asked(runner(place, pipeline, clock).run(run_id="r"))) == ["outer.fan.one.x", "outer.fan.two.y"]


def test_a_time_limit_around_a_wait(place: Place) -> None:
    """The limit of a step that contains the wait goes on while the run is paused: a sleep has none of its own, and is
    to be given one by a step around it."""
    clock = Clock()
    for number, wait in enumerate([ask(), Step.sleep("nap", 3600), Step.wait_for("go")]):
        pipeline = (Notes().step("a") >> wait).as_step("outer").with_timeout(60)
        runner(place, pipeline, clock).run(1, run_id=f"{number}")
        clock.jump(50)
        assert runner(place, pipeline, clock).run(run_id=f"{number}").status == "paused"
        clock.jump(10)
        result = runner(place, pipeline, clock).run(run_id=f"{number}")
        assert result.status == "failed" and isinstance(result.error, StepTimeoutError), result
