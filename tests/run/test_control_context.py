"""The context inside of composite steps: copies for branches and items, brought together where these end."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, ItemError, Merge, Step, step
from flujo.errors import ContextConflictError, SaveError
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths, stopping


def the_longest(before: str, values: list[str]) -> str:
    return max([before, *values], key=len)


class Shop(BaseModel):
    """A context with every declared merge, and two fields without one."""

    lines: Annotated[list[str], Merge.APPEND] = []
    total: Annotated[int, Merge.ADD] = 0
    seen: Annotated[set[str], Merge.UNION] = set()
    last: Annotated[str, Merge.LAST] = ""
    longest: Annotated[str, Merge.of(the_longest)] = ""
    left: str = ""
    right: str = ""


def shop(place: Place, pipeline: Any, **options: Any) -> Flujo[Any, Any]:
    return Flujo(pipeline, context_model=Shop, state_backend=place.open(), **options)


def writing(name: str, *fields: str, seen: list[Any] | None = None, turns: int = 0) -> Step[Any, Any]:
    """Return a step that changes fields of the context, notes what it sees there first, and is done after some turns
    of the loop."""

    @step(name=name)
    async def work(n: int, *, context: Shop) -> int:
        if seen is not None:
            seen.append((name, list(context.lines), context.total))
        for _ in range(turns):
            await asyncio.sleep(0)
        for field in fields:
            change(context, field, name, n)
        return n

    return work


def change(context: Shop, field: str, name: str, n: int) -> None:
    if field == "lines":
        context.lines.append(name)
    elif field == "total":
        context.total += n
    elif field == "seen":
        context.seen.add(name)
    else:
        setattr(context, field, name)


ALL = ("lines", "total", "seen", "last", "longest")


def test_declared_merges(place: Place) -> None:
    """Each field is brought together as declared, in the order of the branches, whichever of them ends first."""
    fan = Step.parallel(
        "fan", a=writing("slow", *ALL, turns=9), b=writing("quick", *ALL), c=writing("mid", *ALL, turns=3)
    )
    result = shop(place, writing("first", *ALL) >> fan).run(5, run_id="r")
    assert result.final_pipeline_context == Shop(
        lines=["first", "slow", "quick", "mid"],
        total=20,
        seen={"first", "slow", "quick", "mid"},
        last="mid",
        longest="first",
    )
    assert place.load()["current_step_index"] == 2


def test_branches_do_not_see_one_another(place: Place) -> None:
    """Each works on a copy of what the step began with, and sees its own changes; who comes after sees all."""
    seen: list[Any] = []
    one = writing("a1", "lines", "total", seen=seen) >> writing("a2", "lines", seen=seen)
    other = writing("b1", "lines", seen=seen, turns=5) >> writing("b2", "lines", "total", seen=seen)

    @step
    async def after(outputs: dict[str, int], *, context: Shop) -> int:
        seen.append(("after", list(context.lines), context.total))
        return sum(outputs.values())

    result = shop(place, writing("first", "lines") >> Step.parallel("fan", a=one, b=other) >> after).run(1, run_id="r")
    assert result.output == 2
    assert sorted(seen) == sorted(
        [
            ("a1", ["first"], 0),
            ("a2", ["first", "a1"], 1),
            ("b1", ["first"], 0),
            ("b2", ["first", "b1"], 0),
            ("after", ["first", "a1", "a2", "b1", "b2"], 2),
        ]
    )


def test_a_conflict(place: Place) -> None:
    """Two branches that change one field without a merge: an error that names the field and both branches. Run again
    with a merge declared, nothing is done again but the merging."""
    seen: list[Any] = []
    fan = Step.parallel(
        "fan", one=writing("a", "left", seen=seen), two=writing("b", "lines"), three=writing("c", "left")
    )
    result = shop(place, fan).run(1, run_id="r")
    error = result.error
    assert isinstance(error, ContextConflictError)
    assert (error.step, error.field, error.branches) == ("fan", "left", ["one", "three"])
    assert all(word in str(error) for word in ("'left'", "'fan.one'", "'fan.three'"))
    assert place.load()["pipeline_context"]["left"] == ""
    result = shop(place, fan, context_merges={"left": Merge.LAST}).run(run_id="r")
    assert (result.final_pipeline_context.left, result.final_pipeline_context.lines) == ("c", ["b"])
    assert len(seen) == 1


def test_what_one_branch_alone_changed(place: Place) -> None:
    """It needs no merge, and a branch that puts a field to what it was has changed nothing."""

    @step
    async def undecided(n: int, *, context: Shop) -> int:
        context.left = "changed my mind"
        context.left = ""
        return n

    fan = Step.parallel("fan", a=writing("a", "left"), b=writing("b", "right"), c=undecided)
    context = shop(place, fan).run(1, run_id="r").final_pipeline_context
    assert (context.left, context.right) == ("a", "b")


def test_a_merge_that_cannot_be_done(place: Place) -> None:
    """A branch that rewrote what others append to: an error that names step and field, and nothing is changed."""

    @step
    async def rewrite(n: int, *, context: Shop) -> int:
        context.lines = ["new"]
        return n

    pipeline = writing("first", "lines") >> Step.parallel("fan", a=rewrite, b=writing("b", "lines"))
    result = shop(place, pipeline).run(1, run_id="r")
    assert isinstance(result.error, ContextConflictError)
    assert "'lines'" in str(result.error) and "'fan'" in str(result.error)
    assert result.final_pipeline_context.lines == ["first"]


def test_a_dict_as_context(place: Place) -> None:
    """Fields may come and go; merges are declared with the runner."""

    @step
    async def first(n: int, *, context: dict[str, Any]) -> int:
        context.update(names=["first"], old=1, kept=2)
        return n

    @step
    async def one(n: int, *, context: dict[str, Any]) -> int:
        context["names"].append("one")
        del context["old"]
        return n

    @step
    async def two(n: int, *, context: dict[str, Any]) -> int:
        context["names"].append("two")
        context["new"] = n
        return n

    def run(**options: Any) -> Any:
        pipeline = first >> Step.parallel("fan", one=one, two=two)
        return Flujo(pipeline, state_backend=place.open(), **options).run(7, run_id="r")

    assert isinstance(run().error, ContextConflictError)
    result = run(context_merges={"names": Merge.APPEND})
    assert result.final_pipeline_context == {"names": ["first", "one", "two"], "kept": 2, "new": 7}


def test_items_are_merged_in_their_order(place: Place) -> None:
    """Whichever is done first; a failed item changes nothing, whatever was done in it, nor a failed attempt."""

    @step
    async def begin(n: int, *, context: Shop) -> int:
        context.lines.append(f"{n} begun")
        return n

    @step(retries=[0.0])
    async def work(n: int, *, context: Shop) -> int:
        failed = n in tried
        tried.add(n)
        context.total += 1
        context.lines.append(f"{n}")
        for _ in range(20 - 2 * n):
            await asyncio.sleep(0)
        if n == 3 or (n % 2 == 0 and not failed):
            raise ValueError("not now")
        return n

    @step
    async def more(n: int, *, context: Shop) -> int:
        context.lines.append(f"{n} again")
        return n

    tried: set[int] = set()
    pipeline = Step.map_over("items", begin >> work >> more, on_error="collect")
    result = shop(place, pipeline).run([0, 1, 2, 3, 4], run_id="r")
    assert isinstance(result.output[3], ItemError)
    assert result.final_pipeline_context.total == 4
    assert result.final_pipeline_context.lines == [
        line for n in (0, 1, 2, 4) for line in (f"{n} begun", f"{n}", f"{n} again")
    ]  # fmt: skip


def nested(seen: list[Any] | None = None) -> Any:
    """Return a parallel in a map in a parallel, all of which append to one field."""

    @step
    async def added(outputs: dict[str, int]) -> int:
        return sum(outputs.values())

    def body(name: str) -> Any:
        fork = Step.parallel("fork", x=writing(f"{name}x", "lines", "total", turns=3), y=writing(f"{name}y", "lines"))
        return writing(f"{name}0", "lines", seen=seen) >> fork >> added >> writing(f"{name}1", "lines", seen=seen)

    left = Step.map_over("items", body("l"), max_concurrency=2)
    return Step.parallel("fan", left=left, right=Step.map_over("items", body("r"), max_concurrency=1))


def test_nested_joins(place: Place) -> None:
    """Inner branches are joined into the item, items into the branch, branches into the run: in the declared order."""
    result = shop(place, nested()).run([1, 2], run_id="r")
    assert result.output == {"left": [2, 4], "right": [2, 4]}
    item = ["0", "x", "y", "1"]
    assert result.final_pipeline_context.lines == [f"{side}{part}" for side in "lr" for _ in range(2) for part in item]
    assert result.final_pipeline_context.total == 6


@pytest.mark.slow
def test_no_join_is_made_twice(place: Place) -> None:
    """A run that ends right after a join was saved has its changes once when it is resumed."""
    joins = 5
    for number in range(1, joins + 1):
        left = [number]

        def wanted(records: Any, left: list[int] = left) -> bool:
            left[0] -= sum(record.path[-1] == ">join" for record in records)
            return left[0] <= 0

        backend = stopping(place.open(), wanted)
        with pytest.raises(SaveError):
            Flujo(nested(), context_model=Shop, state_backend=backend).run([1, 2], run_id=f"run {number}")
        del backend.save_state  # type: ignore[method-assign]
        result = shop(place, nested()).run(run_id=f"run {number}")
        assert result.final_pipeline_context.total == 6
        assert len(result.final_pipeline_context.lines) == 16


def test_a_copy_is_what_the_branch_began_with_on_resume_too(place: Place) -> None:
    """A resumed branch sees its own saved changes and those from before, not those of other branches."""
    seen: list[Any] = []
    notes = Notes()

    @step
    async def gate(n: int) -> int:
        await notes.call()
        return n

    one = writing("a1", "lines", "total") >> gate >> writing("a2", "lines", seen=seen)
    fan = Step.parallel("fan", one=one, two=writing("b1", "lines", "total"))
    pipeline = writing("first", "lines") >> fan
    notes.interrupt(shop(place, pipeline), 1, at={"fan.one.gate"})
    assert place.load()["pipeline_context"]["lines"] == ["first"]  # nothing is joined yet
    result = shop(place, pipeline).run(run_id="r")
    assert seen == [("a2", ["first", "a1"], 1)]
    assert result.final_pipeline_context.lines == ["first", "a1", "a2", "b1"]
    assert result.final_pipeline_context.total == 2


def test_other_composites_share_the_context(place: Place) -> None:
    """Branches of a choice, iterations, nested pipelines and fallbacks work on the context that surrounds them, each
    step's changes being saved with it; of a primary that failed, what its finished steps did stays."""

    @step
    async def broken(n: int, *, context: Shop) -> int:
        context.lines.append("never")
        raise ValueError("out of order")

    loop = Step.loop_until("loop", writing("b", "lines", "total"), until=lambda n, *, context: context.total >= 3)
    route = Step.branch_on("route", by=lambda n, *, context: context.lines[-1], a=loop, b=writing("c", "lines"))
    primary = (writing("d", "lines") >> broken).as_step("primary")
    nested = (route >> primary.fallback(writing("e", "lines"))).as_step("nested")
    result = shop(place, writing("a", "lines") >> nested).run(1, run_id="r")
    assert result.final_pipeline_context.lines == ["a", "b", "b", "b", "d", "e"]
    assert place.load()["pipeline_context"]["lines"] == ["a", "b", "b", "b", "d", "e"]


def test_a_decision_inside_of_a_branch_sees_its_copy(place: Place) -> None:
    """`by` and `until` with a context get that of the branch that they stand in."""
    seen: list[Any] = []

    def until(n: int, *, context: Shop) -> bool:
        seen.append(list(context.lines))
        return len(context.lines) >= 2

    fan = Step.parallel(
        "fan",
        a=Step.loop_until("loop", writing("a", "lines"), until=until),
        b=writing("b", "lines") >> writing("c", "lines"),
    )
    result = shop(place, fan).run(1, run_id="r")
    assert seen == [["a"], ["a", "a"]]
    assert result.final_pipeline_context.lines == ["a", "a", "b", "c"]


def test_a_conflict_inside_of_an_item(place: Place) -> None:
    """It fails the item, and a collecting map goes on."""
    fork = Step.parallel("fork", x=writing("x", "left"), y=writing("y", "left"))

    @step
    async def choose(n: int) -> int:
        return n

    route = Step.branch_on("route", by=lambda n: "bad" if n == 1 else "good", bad=fork, good=choose)
    result = shop(place, Step.map_over("items", route, on_error="collect")).run([0, 1, 2], run_id="r")
    assert [item if isinstance(item, int) else item.index for item in result.output] == [0, 1, 2]
    assert result.output[1].error.startswith("ContextConflictError: ")
    assert result.final_pipeline_context == Shop()
    assert "items[1].route.bad.fork.x.x" in paths(result)


@pytest.mark.parametrize("inside", [False, True])
def test_what_a_stopped_step_did_is_gone(place: Place, inside: bool) -> None:
    """A composite step runs out of its time: what the step in it had done to the context until then does not stay,
    neither for the fallback nor for the run; what its finished steps did does."""
    seen: list[Any] = []

    @step
    async def endless(n: int, *, context: Shop) -> int:
        context.lines.append("dirty")
        context.left = "dirty"
        try:
            await asyncio.Event().wait()
        finally:
            context.right = "dirty"
        return n

    slow = (writing("done", "lines") >> endless).as_step("slow").with_timeout(0.05)
    step_ = slow.fallback(writing("other", "lines", seen=seen))
    pipeline = writing("first", "lines") >> (Step.parallel("fan", a=step_, b=writing("b", "last")) if inside else step_)
    context = shop(place, pipeline).run(1, run_id="r").final_pipeline_context
    assert seen == [("other", ["first", "done"], 0)]
    assert (context.lines, context.left, context.right) == (["first", "done", "other"], "", "")
