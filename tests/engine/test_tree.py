"""The position in a composite step: whatever is on record, what is asked for is what is left, in whatever order."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flujo import ItemError, Pipeline, Step
from flujo.engine import Act, Scope, Tree, sort_out
from flujo.errors import ItemsFailedError, LoopLimitError, NoCaseError
from flujo.pipeline import MAX_DEPTH
from flujo.state.models import StepRecord
from tests.support.tree_model import Play, Spec, built, leaf, specs


@pytest.mark.slow
@settings(max_examples=300)
@given(specs(), st.integers(0, 1 << 32))
def test_the_records_are_the_position(spec: Spec, seed: int) -> None:
    """At every point of any run: what is asked for is what is left, here and in a tree made of the records so far.

    A failure that ends it is tried again, with what failed void, until it succeeds or nothing can be tried.
    """
    step = built(spec)
    records: list[StepRecord] = []
    void: set[int] = set()
    for round_ in range(4):
        play = Play(step, records, void, seed + round_)
        play.to_the_end()
        if play.tree.failure is None:
            break
        if (again := play.voided()) == void:
            break
        void = again


# --- by hand ---


def begin(step: Step[Any, Any], given: Any = 0, records: list[StepRecord] | None = None) -> Tree:
    """Return a tree of that step."""
    return Tree(step, (step.name,), given, sort_out(records or [], ()), copy.deepcopy)


def nested(name: str) -> Step[Any, Any]:
    """Return a pipeline of one step, as a step."""
    return Pipeline.of(leaf(name)).as_step("inner")


def asked(tree: Tree) -> list[str]:
    """Return the paths that are asked for now."""
    return [".".join(act.path) for act in tree.ready()]


def done(tree: Tree, path: str, output: Any = None) -> None:
    tree.succeeded(tuple(path.split(".")), output)


def broke(tree: Tree, path: str) -> None:
    tree.failed(tuple(path.split(".")), ValueError(path), f"ValueError: {path}")


def test_nothing_is_asked_for_twice() -> None:
    """What was asked for is not asked for again, and what is not under way is not listened to."""
    tree = begin((leaf("a") >> leaf("b")).as_step("inner"))
    assert asked(tree) == ["inner.a"]
    assert asked(tree) == []
    done(tree, "inner.b", 1)
    broke(tree, "inner.b")
    assert asked(tree) == [] and not tree.over
    done(tree, "inner.a", 1)
    assert asked(tree) == ["inner.b"]
    done(tree, "inner.b", 2)
    assert tree.over and tree.output == 2


@pytest.mark.slow
def test_a_loop_of_10000_iterations_is_no_depth_of_calls() -> None:
    """Neither when it is run nor when its records lead it to its end."""
    step = Step.loop_until("loop", leaf("a"), until=lambda n: True, max_iterations=10_000)
    tree = begin(step)
    records: list[StepRecord] = []
    for times in range(1, 10_001):
        for act, output in ((f"loop.#{times}.a", times), (f"loop.#{times}.>exit", times == 10_000)):
            assert asked(tree) == [act]
            records.append(StepRecord(path=tuple(act.split(".")), output=output))
            done(tree, act, output)
    assert tree.output == 10_000
    again = begin(step, 0, records[:-1])
    assert asked(again) == ["loop.#10000.>exit"]
    assert begin(step, 0, records).output == 10_000


def test_a_map_of_10000_items_is_no_depth_of_calls() -> None:
    """The same of items that are all on record, and of one that fails among them."""
    step = Step.map_over("map", leaf("a"), max_concurrency=3, on_error="collect")
    records = [StepRecord(path=("map", f"[{i}]", "a"), output=i, success=i != 7) for i in range(10_000)]
    tree = begin(step, list(range(10_000)), records)
    assert tree.over
    assert tree.output[:8] == [*range(7), ItemError(index=7, error="")]
    assert tree.output[8:] == list(range(8, 10_000))


@pytest.mark.parametrize("kind", ["parallel", "map", "branch", "loop", "pipeline", "fallback"])
def test_the_deepest_nesting(kind: str) -> None:
    """As many levels as can be declared: led to the innermost step, to the end, and again from the records."""
    made: dict[str, Any] = {
        "parallel": lambda inner: Step.parallel("p", one=inner, two=leaf("b", context=True)),
        "map": lambda inner: Step.map_over("m", inner),
        "branch": lambda inner: Step.branch_on("r", by=lambda n: "one", one=inner),
        "loop": lambda inner: Step.loop_until("l", inner, until=lambda n: True),
        "pipeline": lambda inner: inner.as_step("n"),
        "fallback": lambda inner: inner.fallback(leaf("b")),
    }
    step: Any = leaf("a")
    for _ in range(MAX_DEPTH):
        step = made[kind](step >> leaf("c") if kind == "pipeline" else step)
    nested: Any = 1
    for _ in range(MAX_DEPTH):
        nested = [nested]
    tree = begin(step, nested)
    records: list[StepRecord] = []
    answers = {">choice": "one", ">exit": True, ">items": [1]}
    due: list[Act] = []
    while not tree.over:
        due += tree.ready()
        path = due.pop(0).path
        record = StepRecord(path=path, output=answers.get(path[-1], 1))
        records.append(record)
        tree.succeeded(record.path, record.output)
    assert begin(step, nested, records).over


# --- failures ---


@pytest.mark.parametrize(
    ("options", "failures", "outcome"),
    [
        ({}, 1, "ValueError"),
        ({"on_error": "collect"}, 3, [0, 1, 2]),
        ({"on_error": "collect", "tolerated_failures": 1}, 1, [0]),
        ({"on_error": "collect", "tolerated_failures": 1}, 2, "ItemsFailedError"),
        ({"on_error": "collect", "min_successful": 2}, 1, [0]),
        ({"on_error": "collect", "min_successful": 2}, 2, "ItemsFailedError"),
        ({"on_error": "collect", "min_successful": 4}, 0, "ItemsFailedError"),
    ],
)
def test_policies(options: dict[str, Any], failures: int, outcome: Any) -> None:
    """As many items of three may fail as was said, and it is known beforehand which failure is one too many."""
    tree = begin(Step.map_over("map", leaf("a"), **options), [1, 2, 3])
    paths = asked(tree)
    for number, path in enumerate(paths):
        if number < failures:
            last = isinstance(outcome, str) and number == failures - 1
            assert tree.absorbs(tuple(path.split("."))) is not last
            broke(tree, path)
        else:
            done(tree, path, number)
    assert tree.over
    if isinstance(outcome, str):
        assert tree.failure is not None and type(tree.failure.error).__name__ == outcome
        assert tree.failure.causes == [tuple(path.split(".")) for path in paths[:failures]]
    else:
        assert [n for n, found in enumerate(tree.output) if isinstance(found, ItemError)] == outcome


def test_siblings_of_a_failure_are_dropped() -> None:
    """What was given out is named, to be cancelled; what was not is not given out; nothing of it matters any more."""
    step = Step.parallel("fan", a=leaf("x") >> leaf("y"), b=leaf("x"), c=leaf("x"))
    tree = begin(step)
    assert asked(tree) == ["fan.a.x", "fan.b.x", "fan.c.x"]
    done(tree, "fan.a.x")  # its next step is due, and was not given out
    broke(tree, "fan.b.x")
    assert tree.over and tree.failure is not None and tree.failure.path == ("fan", "b", "x")
    assert asked(tree) == [] and tree.dropped == [("fan", "c", "x")]
    assert not tree.wants(("fan", "c", "x"))
    done(tree, "fan.c.x")
    assert tree.failure.path == ("fan", "b", "x")


def test_an_item_that_fails_takes_only_its_own_with_it() -> None:
    """The other items of a map that collects go on; the next one begins in its place."""
    fan = Step.parallel("fan", a=leaf("x"), b=leaf("x"))
    tree = begin(Step.map_over("map", fan, max_concurrency=2, on_error="collect"), [1, 2, 3])
    assert asked(tree) == [f"map.[{i}].fan.{key}.x" for i in (0, 1) for key in "ab"]
    broke(tree, "map.[0].fan.a.x")
    assert tree.dropped == [("map", "[0]", "fan", "b", "x")]
    assert asked(tree) == ["map.[2].fan.a.x", "map.[2].fan.b.x"]
    assert tree.wants(("map", "[1]", "fan", "b", "x"))
    assert tree.ended == [Scope(("map", "[0]"), Scope())]


def test_what_failed_begins_nothing_more() -> None:
    """Neither where the failure is on record, nor where it comes at once: what is beside it is not performed."""
    record = StepRecord(path=("map", "[0]", "fan", "a", "x"), success=False)
    deep = nested("x")
    for _ in range(4):
        deep = Pipeline.of(deep).as_step("inner")
    fan = Step.parallel("fan", a=leaf("x"), b=deep)
    tree = begin(Step.map_over("map", fan, on_error="collect", max_concurrency=1), [1, 2], [record])
    assert asked(tree) == ["map.[1].fan.a.x", "map.[1].fan.b" + 5 * ".inner" + ".x"]
    few = Step.map_over("map", leaf("x"), on_error="collect", min_successful=2)
    tree = begin(Step.parallel("fan", a=few, b=deep).fallback(leaf("y")), [1])
    assert asked(tree) == ["fan.fallback.y"]


def test_failures_that_are_the_steps_own() -> None:
    """A loop that is never done, an answer that is no case: errors with names, that a fallback deals with."""
    loop = Step.loop_until("loop", leaf("a"), until=lambda n: True, max_iterations=1)
    tree = begin(loop.fallback(leaf("b")))
    for path in ("loop.primary.loop.#1.a", "loop.primary.loop.#1.>exit"):
        assert asked(tree) == [path]
        done(tree, path, False)
    assert asked(tree) == ["loop.fallback.b"]
    tree = begin(loop, 0, [StepRecord(path=("loop", "#1", name), output=False) for name in ("a", ">exit")])
    assert tree.failure is not None and isinstance(tree.failure.error, LoopLimitError) and tree.failure.causes == []
    (act,) = begin(Step.branch_on("route", by=lambda n: "x", one=leaf("a"))).ready()
    assert act.settle is not None and act.settle("one") == "one"
    with pytest.raises(NoCaseError):
        act.settle("other")
    tree = begin(Step.map_over("map", leaf("a"), on_error="collect", min_successful=1), [])
    assert tree.failure is not None and isinstance(tree.failure.error, ItemsFailedError)


def test_a_time_limit_that_runs_out() -> None:
    """What goes on inside is dropped at once; the failure itself counts when it is saved. One that is late does not."""
    inner = (leaf("a") >> leaf("b")).as_step("inner").with_timeout(60)
    tree = begin(Step.map_over("map", inner, on_error="collect", max_concurrency=2), [1, 2])
    first, second = tree.timed
    assert asked(tree) == ["map.[0].inner.a", "map.[1].inner.a"]
    assert (first.path, first.limit) == (("map", "[0]", "inner"), 60)
    assert tree.expire(first)
    assert tree.dropped == [("map", "[0]", "inner", "a")]
    assert not tree.wants(("map", "[0]", "inner", "a")) and tree.wants(first) and tree.absorbs(first)
    done(tree, "map.[0].inner.a", 1)
    assert asked(tree) == [] and not tree.expire(first)
    for path in ("map.[1].inner.a", "map.[1].inner.b"):
        done(tree, path, 5)
    assert not tree.expire(second) and not tree.over
    tree.broken(first, TimeoutError(), "TimeoutError: ")
    assert tree.output == [ItemError(index=0, error="TimeoutError: "), 5]
    assert not tree.wants(first)


def test_a_time_limit_inside_of_what_is_over() -> None:
    """It says nothing where a sibling has failed, or the step above has run out of time itself."""
    inner = nested("a").with_timeout(60)
    tree = begin(Step.parallel("fan", one=inner, two=leaf("b")).fallback(leaf("c")))
    (frame,) = tree.timed
    assert len(asked(tree)) == 2
    broke(tree, "fan.primary.fan.two.b")
    assert not tree.expire(frame) and not tree.wants(frame)
    assert asked(tree) == ["fan.fallback.c"]
    tree.broken(frame, TimeoutError(), "")
    done(tree, "fan.fallback.c", 1)
    assert tree.output == 1


def test_what_changed_contexts_is_told_again() -> None:
    """Of records that are met on the way, those that changed a context, with its scope; joins ask for every branch."""
    step = Step.parallel("fan", a=leaf("x", context=True) >> leaf("y"), b=leaf("x"))
    records = [
        StepRecord(path=("fan", "a", "x"), context_changes={"n": [1]}),
        StepRecord(path=("fan", "b", "x")),
        StepRecord(path=("fan", "a", "y")),
    ]
    tree = begin(step, 0, records)
    assert [(scope.path, record) for scope, record in tree.restored] == [(("fan", "a"), records[0])]
    assert {scope.path for scope in tree.ended} == {("fan", "a"), ("fan", "b")}
    (join,) = tree.ready()
    assert (join.path, join.step, join.branches) == (("fan", ">join"), None, (("fan", "a"), ("fan", "b")))
    assert asked(begin(step, 0, records)) == ["fan.>join"]  # one that changed nothing is not on record
    tree.succeeded(join.path, None)
    assert tree.output == {"a": None, "b": None}
