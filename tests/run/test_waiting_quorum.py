"""A question that several people answer: who may, how often, and what comes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flujo import Step
from flujo.errors import AlreadyAnsweredError, InvalidAnswerError, NoVoteError, StoreBusyError
from tests.support.backends import OURS, Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import YES, Approval, Clock, ask, at_once, runner, until

NO = Approval(approved=False)
BOARD = ["ann", "bob", "cid"]


def voting(notes: Notes, **options: Any) -> Any:
    return notes.step("draw") >> ask("vote", **{"quorum": 2, "voters": BOARD, **options}) >> notes.step("count")


def refused(place: Place, pipeline: Any, answer: Any, by: str | None, error: Any, **options: Any) -> None:
    """Try to answer, and prove that nothing has come of it."""
    before = place.contents()
    with pytest.raises(error):
        runner(place, pipeline).resume("r", answer, by=by, **options)
    assert place.contents() == before


def test_two_of_three(place: Place) -> None:
    """The run goes on with the second vote; the output is the list of votes in the order in which they came."""
    notes, clock = Notes(), Clock()
    pipeline = voting(notes)
    question = runner(place, pipeline, clock).run(1, run_id="r").waiting_for
    assert question is not None and (question.quorum, question.voters) == (2, BOARD)
    clock.jump(10)
    assert runner(place, pipeline, clock).resume("r", NO, by="cid").status == "paused"
    before = place.contents()
    for _ in range(3):
        assert runner(place, pipeline, clock).run(1, run_id="r").status == "paused"
    assert place.contents() == before
    clock.jump(10)
    result = runner(place, pipeline, clock).resume("r", YES, by="ann")
    assert result.output == [NO, YES]
    record = result.step_history[1]
    assert (record.by, record.output, record.latency_s) == ("cid, ann", [NO, YES], 20)
    assert paths(result) == ["draw", "vote", "count"] and notes.calls == ["draw", "count"]
    assert [(m.kind, m.by) for m in runner(place, pipeline).messages("r")] == [("answer", "cid"), ("answer", "ann")]


def test_who_has_no_vote(place: Place) -> None:
    """Nobody votes twice, without a name, or without being a voter; what is of the wrong type is no vote."""
    pipeline = voting(Notes())
    runner(place, pipeline).run(1, run_id="r")
    refused(place, pipeline, YES, None, NoVoteError)
    refused(place, pipeline, YES, "dan", NoVoteError)
    refused(place, pipeline, "yes", "ann", InvalidAnswerError)
    runner(place, pipeline).resume("r", YES, by="ann")
    refused(place, pipeline, NO, "ann", NoVoteError)
    refused(place, pipeline, YES, "ann", NoVoteError)
    refused(place, pipeline, {"approved": 1}, "bob", InvalidAnswerError)
    assert runner(place, pipeline).resume("r", NO, by="bob").output == [YES, NO]
    refused(place, pipeline, NO, "cid", AlreadyAnsweredError)


def test_no_vote_is_left(place: Place) -> None:
    """When there are as many as are needed, one more is too many, also before the run has gone on."""
    pipeline = voting(Notes())
    runner(place, pipeline).run(1, run_id="r")

    async def busy(*_: Any, **__: Any) -> Any:
        raise StoreBusyError("Somebody is at it.")

    for by in ("bob", "ann"):
        voter = runner(place, pipeline)
        voter.backend.claim = busy  # type: ignore[method-assign]
        with pytest.raises(StoreBusyError):
            voter.resume("r", YES, by=by)
        del voter.backend.claim  # type: ignore[method-assign]
    refused(place, pipeline, YES, "cid", AlreadyAnsweredError)
    result = runner(place, pipeline).run(1, run_id="r")
    assert result.output == [YES, YES] and result.step_history[1].by == "bob, ann"


def test_one_of_some(place: Place) -> None:
    """Voters without a quorum say who may answer; a quorum of one makes a list of one."""
    pipeline = ask("one", voters=BOARD) >> ask("two", quorum=1) >> ask("three", quorum=1, voters=BOARD)
    runner(place, pipeline).run(1, run_id="r")
    refused(place, pipeline, YES, None, NoVoteError)
    refused(place, pipeline, YES, "dan", NoVoteError)
    result = runner(place, pipeline).resume("r", YES, by="bob")
    assert result.step_history[0].output == YES
    result = runner(place, pipeline).resume("r", YES)
    assert result.step_history[1].output == [YES]
    assert runner(place, pipeline).resume("r", NO, by="bob").output == [NO]


def test_anybody_may_vote_once(place: Place) -> None:
    """Where no voters are named, each name counts once."""
    pipeline = ask("vote", quorum=3, tp=int)
    runner(place, pipeline).run(1, run_id="r")
    for number, by in enumerate(["ann", "Ann", "ann "]):
        refused(place, pipeline, number, None, NoVoteError)
        result = runner(place, pipeline).resume("r", number, by=by)
    assert result.output == [0, 1, 2]


def test_each_question_has_votes_of_its_own(place: Place) -> None:
    """The same people vote again in the next iteration of a loop, and for another item of a map."""
    loop = Step.loop_until("again", ask("vote", quorum=2, tp=int), until=lambda votes: sum(votes) > 2)
    runner(place, loop).run([], run_id="r")
    for vote, by in ((0, "ann"), (1, "bob"), (2, "bob"), (1, "ann")):
        result = runner(place, loop).resume("r", vote, by=by)
    assert result.output == [2, 1]
    many = Step.map_over("many", ask("vote", quorum=2, tp=int))
    runner(place, many).run([1, 2], run_id="s")
    for item, vote, by in ((1, 5, "ann"), (0, 6, "ann"), (0, 7, "bob"), (1, 8, "bob")):
        result = runner(place, many).resume("s", vote, by=by, at=f"many[{item}].vote")
    assert result.output == [[6, 7], [5, 8]]


@pytest.mark.slow
@pytest.mark.parametrize("place", OURS, indirect=True)
def test_votes_at_the_same_time(place: Place) -> None:
    """Each counts, in the order in which they were stored; one more than is needed is told so."""
    pipeline = ask("vote", quorum=5, tp=int)

    async def vote(number: int) -> Any:
        try:
            return await runner(place, pipeline).resume_async("r", number, by=f"voter {number}", wait=True)
        except AlreadyAnsweredError as error:
            return error

    async def main() -> list[Any]:
        await runner(place, pipeline).run_async(1, run_id="r")
        return await asyncio.gather(*map(vote, range(7)))

    found = at_once(main())
    assert sum(isinstance(each, AlreadyAnsweredError) for each in found) == 2
    result = runner(place, pipeline).run(run_id="r")
    messages = runner(place, pipeline).messages("r")
    assert [f"voter {n}" for n in result.output] == [message.by for message in messages]
    assert result.step_history[0].by == ", ".join(message.by or "" for message in messages)


@pytest.mark.parametrize("place", OURS, indirect=True)
def test_a_vote_to_a_run_that_is_executed(place: Place) -> None:
    """It is stored at once, and counts; who gave it waits for how the run comes out, as its owner does."""

    async def main() -> Any:
        begun, go = asyncio.Event(), asyncio.Event()

        async def decide(n: int) -> str:
            begun.set()
            await go.wait()
            return "a"

        vote = ask("vote", quorum=2, tp=int)
        fan = Step.parallel("fan", held=Step.branch_on("route", by=decide, a=vote), other=vote)
        task = asyncio.ensure_future(runner(place, fan).run_async(1, run_id="r"))
        await begun.wait()
        await until(lambda: place.open().load_state("r"))  # before that the question is not known
        voting = asyncio.ensure_future(runner(place, fan).resume_async("r", 7, by="ann"))
        await until(lambda: place.open().mail("r"))
        with pytest.raises(NoVoteError):
            await runner(place, fan).resume_async("r", 8, by="ann")
        assert not voting.done()
        go.set()
        assert [(await task).status, (await voting).status] == ["paused", "paused"]
        for by in ("bob", "ann"):
            await runner(place, fan).resume_async("r", 9, by=by, at="fan.held.route.a.vote")
        return await runner(place, fan).resume_async("r", 8, by="bob")

    assert at_once(main()).output == {"held": [9, 9], "other": [7, 8]}
