"""What parallels and maps are given and give, and how much of them goes on at a time."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from flujo import Flujo, InMemoryBackend, Step, current_step, step
from flujo.errors import NotSerializableError
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths


@step
async def tenfold(n: Any) -> Any:
    return n * 10


def test_an_empty_map(place: Place) -> None:
    """Its output is an empty list, and nothing is called."""
    notes = Notes()
    pipeline = Step.map_over("enrich", notes.step("work")) >> notes.step("last", len)
    result = Flujo(pipeline, state_backend=place.open()).run([], run_id="r")
    assert result.output == 0
    assert notes.calls == ["last"]
    assert paths(result) == ["enrich", "last"]


def test_a_parallel_of_one_branch(place: Place) -> None:
    """Its output is a dict of one."""
    result = Flujo(Step.parallel("fan", only=tenfold), state_backend=place.open()).run(1, run_id="r")
    assert result.output == {"only": 10}
    assert paths(result) == ["fan.only.tenfold", "fan"]


def test_the_output_of_a_parallel_is_in_the_order_of_its_branches(place: Place) -> None:
    """Whichever of them is done first."""

    def late(turns: int) -> Step[Any, Any]:
        @step(name="late")
        async def work(n: int) -> int:
            for _ in range(turns):
                await asyncio.sleep(0)
            return turns

        return work

    fan = Step.parallel("fan", zero=late(9), alpha=late(1), mid=late(5))
    result = Flujo(fan, state_backend=place.open()).run(1, run_id="r")
    assert list(result.output.items()) == [("zero", 9), ("alpha", 1), ("mid", 5)]
    assert list(place.load()["last_step_output"]) == ["zero", "alpha", "mid"]


@dataclass(frozen=True)
class Order:
    """An item of a type of its own."""

    number: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Something that can be iterated over and is no collection."""

    orders: list[Order]

    def __iter__(self) -> Iterator[Order]:
        return iter(self.orders)


ORDERS = [Order(1, ("a",)), Order(2, ())]
INPUTS: list[tuple[Any, list[Any]]] = [
    ([1, 2], [1, 2]),
    ((1, 2), [1, 2]),
    ({"b": 1, "a": 2}, ["b", "a"]),
    ({3}, [3]),
    (frozenset({3}), [3]),
    ("xy", ["x", "y"]),
    (b"ab", [97, 98]),
    (Batch(ORDERS), ORDERS),
    ([[1], [2, 3]], [[1], [2, 3]]),
]


@pytest.mark.parametrize(("given", "items"), INPUTS, ids=lambda value: type(value).__name__)
def test_what_a_map_goes_over(place: Place, given: Any, items: list[Any]) -> None:
    """Anything that can be iterated over: the items are given to the body in order, each with its exact type, also by
    a process that goes on with the map."""
    notes = Notes()

    @step
    async def make() -> Batch | Any:
        return given

    @step
    async def same(item: Order | Any) -> Order | Any:
        seen.append(item)
        await notes.call()
        return item

    seen: list[Any] = []
    pipeline = make >> Step.map_over("each", same, max_concurrency=1)
    last = f"each[{len(items) - 1}].same"
    notes.interrupt(Flujo(pipeline, state_backend=place.open()), at={last})
    result = Flujo(pipeline, state_backend=place.open()).run(run_id="r")
    assert result.output == items
    assert [type(item) for item in result.output] == [type(item) for item in items]
    assert seen == [*items, items[-1]]


def test_a_map_over_what_has_no_items(place: Place) -> None:
    """The step fails with a TypeError that says so."""
    result = Flujo(Step.map_over("each", tenfold), state_backend=place.open()).run(5, run_id="r")  # type: ignore[arg-type]
    assert result.status == "failed"
    assert isinstance(result.error, TypeError)
    assert "int" in str(result.error)


def test_maps_in_maps(place: Place) -> None:
    """Each keeps its order; paths tell the items of all levels."""
    pipeline = Step.map_over("rows", Step.map_over("cells", tenfold))
    result = Flujo(pipeline, state_backend=place.open()).run([[1, 2], [], [3]], run_id="r")
    assert result.output == [[10, 20], [], [30]]
    assert sorted(paths(result)) == [
        "rows", "rows[0].cells[0].tenfold", "rows[0].cells[1].tenfold", "rows[2].cells[0].tenfold",
    ]  # fmt: skip


class Gauge:
    """Counts what goes on at a time."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def within(self, what: str, turns: int = 3) -> None:
        self.now[what] += 1
        self.most[what] = max(self.most[what], self.now[what])
        for _ in range(turns):
            await asyncio.sleep(0)
        self.now[what] -= 1


@pytest.mark.parametrize(("limit", "items", "most"), [(1, 9, 1), (4, 9, 4), (50, 9, 9)])
def test_max_concurrency(place: Place, limit: int, items: int, most: int) -> None:
    """So many items are in work at a time, and never more: one is begun when another is done and saved."""
    gauge = Gauge()

    @step
    async def first(n: int) -> int:
        await gauge.within("items", 3 + n % 3)
        return n

    @step
    async def second(n: int) -> int:
        await gauge.within("items", 2)
        return n

    pipeline = Step.map_over("each", first >> second, max_concurrency=limit)
    result = Flujo(pipeline, state_backend=place.open()).run(list(range(items)), run_id="r")
    assert result.output == list(range(items))
    assert gauge.most["items"] == most


def test_all_branches_at_once(place: Place) -> None:
    """A parallel begins all of its branches, however many."""
    gauge = Gauge()

    @step
    async def work(n: int) -> int:
        await gauge.within("branches")
        return n

    fan = Step.parallel("fan", **{f"b{i}": work for i in range(30)})
    result = Flujo(fan, state_backend=place.open()).run(1, run_id="r")
    assert len(result.output) == 30
    assert gauge.most["branches"] == 30


def test_plain_functions_run_at_once() -> None:
    """Each in a thread of its own: all of them meet at a barrier."""
    barrier = threading.Barrier(4, timeout=30)

    @step
    def meet(n: int) -> int:
        return n + 0 * barrier.wait()

    assert Flujo(Step.map_over("each", meet, max_concurrency=4)).run([1, 2, 3, 4]).output == [1, 2, 3, 4]


def test_one_body_in_several_places() -> None:
    """Steps and pipelines may be used again and again: what tells them apart is their path."""
    both = tenfold >> tenfold.named("again")
    fan = Step.parallel("fan", left=both, right=both)
    assert Flujo(fan >> Step.map_over("each", tenfold)).run(1).output == ["left" * 10, "right" * 10]


def test_branches_do_not_share_their_input(place: Place) -> None:
    """What one of them does to it is not seen by another, nor by a further attempt."""

    @step(retries=[0.0])
    async def spoil(items: list[int]) -> int:
        items.append(9)
        await asyncio.sleep(0)
        if current_step().attempt == 1:
            raise ValueError("not yet")
        return len(items)

    @step
    async def count(items: list[int]) -> int:
        await asyncio.sleep(0)
        return len(items)

    fan = Step.parallel("fan", a=spoil, b=count, c=spoil)
    assert Flujo(fan, state_backend=place.open()).run([1, 2], run_id="r").output == {"a": 3, "b": 2, "c": 3}


def test_each_nested_step_has_a_key_of_its_own() -> None:
    """The idempotency key tells items, branches and iterations apart, and is the same on every attempt."""
    keys: dict[str, set[str]] = {}

    @step(retries=[0.0, 0.0])
    async def work(n: int) -> int:
        current = current_step()
        keys.setdefault("/".join(current.path), set()).add(current.idempotency_key)
        if current.attempt < 3:
            raise ValueError("not yet")
        return n + 1

    loop = Step.loop_until("loop", work, until=lambda n: n > 8)
    result = Flujo(Step.map_over("both", Step.parallel("fan", a=work, b=loop))).run([6, 7], run_id="r")
    assert result.output == [{"a": 7, "b": 9}, {"a": 8, "b": 9}]
    assert len(keys) == 2 + 3 + 2
    assert all(len(found) == 1 for found in keys.values())
    assert len(set().union(*keys.values())) == len(keys)


def test_runs_with_nested_steps_side_by_side() -> None:
    """Fifty runs at once on one backend keep to themselves."""
    backend = InMemoryBackend()
    runner = Flujo(
        Step.map_over("each", tenfold, max_concurrency=3) >> Step.parallel("fan", a=tenfold), state_backend=backend
    )

    async def main() -> list[Any]:
        return await asyncio.gather(*[runner.run_async([n, n + 1], run_id=f"run {n}") for n in range(50)])

    outputs = [result.output for result in asyncio.run(main())]
    assert outputs == [{"a": [10 * n, 10 * n + 10] * 10} for n in range(50)]


def test_what_a_body_does_to_its_item(place: Place) -> None:
    """It changes neither what is saved of the step before, nor what another process gives to the items that are left;
    the output of the step before is what it was."""
    notes = Notes()
    seen: list[Any] = []

    @step
    async def spoil(item: list[int]) -> int:
        seen.append(list(item))
        item.append(99)
        await notes.call()
        return len(item)

    @step
    async def make(n: int) -> list[list[int]]:
        return [[i] for i in range(n)]

    pipeline = make >> Step.map_over("each", spoil, max_concurrency=2)
    notes.interrupt(Flujo(pipeline, state_backend=place.open()), 5, at={"each[2].spoil", "each[3].spoil"})
    assert place.load()["last_step_output"] == [[0], [1], [2], [3], [4]]
    result = Flujo(pipeline, state_backend=place.open()).run(run_id="r")
    assert result.output == [2] * 5
    assert sorted(seen) == [[0], [1], [2], [2], [3], [3], [4]]
    assert [record.output for record in result.step_history if record.name == "make"] == [[[0], [1], [2], [3], [4]]]


def test_a_decision_may_be_a_step(place: Place) -> None:
    """With retries of its own; an attempt that fails decides nothing."""
    asked: list[int] = []

    @step(retries=[0.0])
    async def which(n: int) -> str:
        asked.append(current_step().attempt)
        if len(asked) == 1:
            raise ValueError("not yet")
        return "big"

    route = Step.branch_on("route", by=which, big=tenfold, small=tenfold)
    result = Flujo(route, state_backend=place.open()).run(1, run_id="r")
    assert result.output == 10
    assert asked == [1, 2]
    assert paths(result) == ["route.big.tenfold", "route"]


def test_thirty_levels(place: Place) -> None:
    """Composite steps may stand in one another to a depth of 32, and a run that was stopped at the bottom goes on."""
    notes = Notes()
    body: Any = notes.step("a", lambda n: n + 1) >> notes.step("b", lambda n: n + 1)
    for level in range(16):
        body = Step.loop_until("loop", body, until=lambda n: True)
        body = Step.branch_on("route", by=lambda n: "only", only=body) if level % 2 else body.fallback(tenfold)
    bottom = "".join(".only.loop#1" if level % 2 else ".primary.loop#1" for level in reversed(range(16)))
    path = f"route{bottom}.b".replace("#1.only", "#1.route.only").replace("#1.primary", "#1.loop.primary")
    notes.interrupt(Flujo(body, state_backend=place.open()), 0, at={path})
    assert Flujo(body, state_backend=place.open()).run(run_id="r").output == 2
    assert [call[-1] for call in notes.calls] == ["a", "b", "b"]


@pytest.mark.parametrize("collect", [False, True])
def test_an_item_whose_output_cannot_be_saved(place: Place, collect: bool) -> None:
    """That item has failed, with a NotSerializableError; what was saved together with it is not concerned."""

    @step
    async def work(n: int) -> Any:
        return object() if n == 1 else n

    each = Step.map_over("each", work, on_error="collect") if collect else Step.map_over("each", work)
    result = Flujo(each, state_backend=place.open()).run([0, 1, 2], run_id="r")
    if collect:
        assert [item if isinstance(item, int) else item.index for item in result.output] == [0, 1, 2]
        assert result.output[1].error.startswith("NotSerializableError: ")
        assert sorted(paths(result)) == ["each", "each[0].work", "each[2].work"]
    else:
        assert isinstance(result.error, NotSerializableError)
        assert place.load()["status"] == "failed"
    assert paths(result, success=False) == ["each[1].work"]
