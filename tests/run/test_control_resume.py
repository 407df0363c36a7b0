"""A run that was stopped inside of a composite step goes on there, and what was decided is not decided again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, Merge, Step, once, step
from flujo._ids import path_text
from flujo.errors import SaveError
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths, stopping


def tenfold(notes: Notes, name: str = "work") -> Step[Any, Any]:
    return notes.step(name, lambda given: given * 10)


def test_cancellation_in_the_middle_of_a_parallel(place: Place) -> None:
    """The run stays `running` and belongs to nobody; branches that were done are not done again, the others go on at
    the step where they were."""
    notes = Notes()
    fan = Step.parallel(
        "fan",
        done=tenfold(notes, "a") >> tenfold(notes, "b"),
        half=tenfold(notes, "a") >> tenfold(notes, "b"),
        begun=tenfold(notes, "a"),
    )
    pipeline = tenfold(notes, "first") >> fan
    runner = Flujo(pipeline, state_backend=place.open())
    notes.interrupt(runner, 1, at={"fan.half.b", "fan.begun.a"})
    assert sorted(notes.cancelled) == ["fan.begun.a", "fan.half.b"]
    stored = place.load()
    assert (stored["status"], stored["current_step_index"], stored["last_step_output"]) == ("running", 1, 10)
    done = set(notes.taken()) - {"fan.half.b", "fan.begun.a"}
    result = Flujo(pipeline, state_backend=place.open()).run(run_id="r")
    assert result.output == {"done": 1000, "half": 1000, "begun": 100}
    again = notes.taken()
    assert {"fan.half.b", "fan.begun.a"} <= set(again)
    assert not {"first", "fan.half.a", "fan.done.a"} & set(again)
    assert sorted(done | set(again)) == sorted(
        ["first", "fan.done.a", "fan.done.b", "fan.half.a", "fan.half.b", "fan.begun.a"]
    )


def test_a_failure_waits_for_what_it_stops(place: Place) -> None:
    """When a run has failed nothing of it goes on: the branches that were stopped have tidied up before that."""
    told: list[str] = []

    @step
    async def slow(n: int) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            told.append("tidied up")
        return n

    @step
    async def broken(n: int) -> int:
        raise ValueError("out of order")

    async def main() -> None:
        fan = Step.parallel("fan", slow=slow, broken=broken)
        result = await Flujo(fan, state_backend=place.open()).run_async(1, run_id="r")
        told.append(result.status)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert told == ["tidied up", "failed"]


@pytest.mark.slow
def test_cancellation_in_the_middle_of_a_map(place: Place) -> None:
    """At item 60 of 100, four at a time: the four in flight are done again, and nothing else."""
    notes = Notes()
    runner = Flujo(Step.map_over("enrich", tenfold(notes), max_concurrency=4), state_backend=place.open())
    notes.interrupt(runner, list(range(100)), at={"enrich[60].work"})
    first = notes.taken()
    assert 61 <= len(first) <= 100
    result = Flujo(Step.map_over("enrich", tenfold(notes)), state_backend=place.open()).run(run_id="r")
    assert result.output == [10 * n for n in range(100)]
    again = notes.taken()
    assert "enrich[60].work" in again
    assert len(set(first) & set(again)) <= 4
    assert len(set(first) | set(again)) == 100


def test_a_choice_is_not_made_again(place: Place) -> None:
    """A resumed run takes the case that was chosen, whatever the function would answer now."""
    notes = Notes()
    answers = ["big"]
    body = tenfold(notes, "a") >> tenfold(notes, "b")
    route = Step.branch_on("route", by=lambda n: answers.pop(), big=body, small=body)
    notes.interrupt(Flujo(route, state_backend=place.open()), 1, at={"route.big.a"})
    assert Flujo(route, state_backend=place.open()).run(run_id="r").output == 100
    assert notes.calls == ["route.big.a", "route.big.a", "route.big.b"]


def test_an_exit_test_is_not_made_again(place: Place) -> None:
    """A resumed loop is in the iteration in which it was, and ends where it was said to."""
    notes = Notes()
    asked: list[int] = []

    async def until(n: int) -> bool:
        asked.append(n)
        return n >= 1000

    loop = Step.loop_until("again", tenfold(notes), until=until) >> tenfold(notes, "last")
    notes.interrupt(Flujo(loop, state_backend=place.open()), 1, at={"again#3.work"})
    notes.interrupt(Flujo(loop, state_backend=place.open()), at={"last"})
    assert asked == [10, 100, 1000]
    assert Flujo(loop, state_backend=place.open()).run(run_id="r").output == 10_000
    assert asked == [10, 100, 1000]
    assert notes.calls == ["again#1.work", "again#2.work", *["again#3.work"] * 2, "last", "last"]


@dataclass(frozen=True)
class Bag:
    """Gives its items in another order, and other items, each time."""

    items: list[int]

    def __iter__(self) -> Iterator[int]:
        TURNS.append(len(TURNS))
        yield from [item + 1000 * TURNS[-1] for item in self.items[:: -1 if len(TURNS) % 2 == 0 else 1]]


TURNS: list[int] = []


def test_the_items_of_a_map_are_those_of_its_first_look(place: Place) -> None:
    """What is no list, tuple or range is looked through once; a resumed map has the same items, in the same order."""
    TURNS.clear()
    notes = Notes()

    @step
    async def collect(n: int) -> Bag:
        return Bag(list(range(n)))

    pipeline = collect >> Step.map_over("enrich", tenfold(notes), max_concurrency=1)
    notes.interrupt(Flujo(pipeline, state_backend=place.open()), 4, at={"enrich[2].work"})
    assert len(TURNS) == 1
    result = Flujo(pipeline, state_backend=place.open()).run(run_id="r")
    assert result.output == [0, 10, 20, 30]
    assert len(TURNS) == 1
    assert notes.calls == [f"enrich[{i}].work" for i in (0, 1, 2, 2, 3)]


def test_what_the_state_says_meanwhile(place: Place) -> None:
    """Inside of a composite step index and output are those of the top-level steps that are saved, and the context is
    that of the last save; with its last sub-step nothing changes, with its own end they do."""
    seen: list[Any] = []
    backend = place.open()

    @step
    async def look(n: int) -> int:
        state = await backend.load_state("r")
        assert state is not None
        seen.append((state["current_step_index"], state["last_step_output"], state["status"]))
        return n + 1

    @step
    async def first(n: int) -> int:
        return n * 100

    pipeline = first >> Step.loop_until("again", look, until=lambda n: n > 102) >> look
    assert Flujo(pipeline, state_backend=backend).run(1, run_id="r").output == 104
    assert seen == [(1, 100, "running")] * 3 + [(2, 103, "running")]


class Trail(BaseModel):
    """A context that branches add to."""

    lines: Annotated[list[str], Merge.APPEND] = []
    total: Annotated[int, Merge.ADD] = 0


def everything(notes: Notes) -> Any:
    """Return a pipeline of all kinds, all of whose steps change the context."""

    def noting(name: str) -> Step[Any, Any]:
        @step(name=name)
        async def work(n: int, *, context: Trail) -> int:
            path = await notes.call()
            context.lines.append(path)
            context.total += n
            return n + 1

        return work

    @step
    async def crawl(n: int, *, context: Trail) -> int:
        pages = [await once(f"page-{page}", page_of, page) for page in range(2)]
        context.lines.append(f"crawled {pages}")
        return n + sum(pages)

    async def page_of(page: int) -> int:
        await notes.call()
        return page

    @step
    async def broken(n: int, *, context: Trail) -> int:
        context.lines.append("never seen")
        raise ValueError("out of order")

    @step
    async def total(outputs: dict[str, list[int]]) -> int:
        return sum(map(sum, outputs.values()))

    @step
    async def numbers(n: int) -> list[int]:
        return [n, n + 1, n + 2]

    inner = Step.parallel("fork", x=noting("a"), y=noting("b") >> noting("c"))

    @step
    async def added(outputs: dict[str, int]) -> int:
        return sum(outputs.values())

    items = numbers >> Step.map_over("items", inner >> added >> noting("d"), max_concurrency=2)
    loop = Step.loop_until("again", noting("e"), until=lambda n, *, context: len(context.lines) % 2 == 0)
    route = Step.branch_on("route", by=lambda n: "odd" if n % 2 else "even", odd=noting("f"), even=noting("g") >> loop)
    return (
        Step.parallel("fan", left=items, right=items)
        >> total
        >> route
        >> broken.fallback((noting("h") >> crawl).as_step("nested"))
        >> noting("last")
    )


@pytest.mark.slow
def test_stopped_after_any_save(place: Place) -> None:
    """A run that ends right after any of its saves, those of joins and decisions among them, is resumed to the same
    output and context: nothing is merged twice, and nothing is called again but what was in flight."""
    unkilled = Notes()
    right = Flujo(everything(unkilled), context_model=Trail, state_backend=place.open()).run(1, run_id="whole")
    assert len(set(unkilled.calls)) == len(unkilled.calls)
    number = 0
    while True:
        number += 1
        left = [number]

        def is_last(records: Any, left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] == 0

        notes = Notes()
        backend = stopping(place.open(), is_last)
        run_id = f"run {number}"
        stopped = Flujo(everything(notes), context_model=Trail, state_backend=backend)
        try:
            stopped.run(1, run_id=run_id)
            break
        except SaveError:
            pass
        finally:
            del backend.save_state  # type: ignore[method-assign]
        first = notes.taken()
        result = Flujo(everything(notes), context_model=Trail, state_backend=place.open()).run(run_id=run_id)
        assert (result.output, result.final_pipeline_context) == (right.output, right.final_pipeline_context), number
        again = notes.taken()
        assert sorted({*first, *again}) == sorted(unkilled.calls)
        assert len(set(first) & set(again)) <= 8, (number, first, again)  # two branches of two items of two branches
        assert sorted(paths(result)) == sorted(paths(right))
    assert number > 30


@pytest.mark.slow
def test_the_history_of_nested_steps(place: Place) -> None:
    """Steps stand in it in the order in which they were saved, each under its path; decisions and joins do not."""
    notes = Notes()
    result = Flujo(everything(notes), context_model=Trail, state_backend=place.open()).run(1, run_id="r")
    shown = paths(result)
    assert len(set(shown)) == len(shown)
    assert not [path for path in shown if path.split(">")[-1] in ("choice", "exit", "join", "items")]
    assert [path for path in shown if "." not in path and ">" not in path] == [
        "fan", "total", "route", "broken", "last",
    ]  # fmt: skip
    own = [path_text(record.path) for record in result.step_history if record.path[0] == "broken"]
    assert own == [
        "broken.primary.broken", "broken.fallback.nested.h", "broken.fallback.nested.crawl>page-0",
        "broken.fallback.nested.crawl>page-1", "broken.fallback.nested.crawl", "broken",
    ]  # fmt: skip
    left = [path for path in shown if path.startswith("fan.left.items[1]")]
    assert left[-2:] == ["fan.left.items[1].added", "fan.left.items[1].d"]
    assert left.index("fan.left.items[1].fork.y.b") < left.index("fan.left.items[1].fork.y.c")
    later = Flujo(everything(notes), context_model=Trail, state_backend=place.open()).run(run_id="r")
    assert paths(later) == shown


def test_a_run_that_is_iterated(place: Place) -> None:
    """`async for` gives each top-level step when it is saved; what is in it is in the result's history."""
    notes = Notes()
    pipeline = (
        Step.map_over("enrich", tenfold(notes), max_concurrency=1) >> tenfold(notes, "last") >> tenfold(notes, "z")
    )

    async def main(most: int) -> list[Any]:
        found: list[Any] = []
        async for result in Flujo(pipeline, state_backend=place.open()).run_async([1, 2], run_id="r"):
            found.append(result)
            if len(found) == most:
                break
        return found

    assert [path_text(record.path) for record in asyncio.run(main(1))] == ["enrich"]
    *rest, result = asyncio.run(main(99))
    assert [path_text(record.path) for record in rest] == ["last", "z"]
    assert paths(result) == ["enrich[0].work", "enrich[1].work", "enrich", "last", "z"]
    assert notes.calls == ["enrich[0].work", "enrich[1].work", "last", "z"]
