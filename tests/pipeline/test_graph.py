from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo.pipeline import Pipeline, Step, difference, fingerprint, step, structure

LEAF: Step[Any, Any] = step(name="leaf")(lambda given: given)


def of(*entries: str | Step[Any, Any]) -> Pipeline[Any, Any]:
    steps: list[Any] = [LEAF.named(entry) if isinstance(entry, str) else entry for entry in entries]
    return Pipeline.of(*steps)


def holder(kind: str, name: str, **bodies: Pipeline[Any, Any]) -> Step[Any, Any]:
    return dataclasses.replace(LEAF, name=name, kind=kind, bodies=tuple(bodies.items()))


def told(before: Pipeline[Any, Any], after: Pipeline[Any, Any]) -> str:
    return difference(fingerprint(before), fingerprint(after))


def test_the_structure_is_kinds_and_names_in_order() -> None:
    """Nothing of functions, types or options is in it."""
    assert structure(of("fetch", "load")) == ["step:fetch", "step:load"]
    assert fingerprint(of("fetch", "load")) == '["step:fetch","step:load"]'
    plain = Pipeline.of(step(name="größe")(len))
    other = Pipeline.of(step(name="größe", retries=3, timeout=3)(lambda text: text)).named("other")
    assert fingerprint(plain) == fingerprint(other) == '["step:größe"]'


def test_the_structure_nests() -> None:
    """A step that contains pipelines is a list of itself and each key with its structure, in order."""
    pipeline = of("a", holder("branch", "route", big=of("approve", "charge"), small=of("charge")))
    assert structure(pipeline) == [
        "step:a",
        ["branch:route", ["big", ["step:approve", "step:charge"]], ["small", ["step:charge"]]],
    ]


def test_the_fingerprint_is_made_once() -> None:
    """It is asked at every resume."""
    pipeline = of("a")
    assert fingerprint(pipeline) is fingerprint(pipeline)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("a b c", "a b c", ""),
        ("a fetch c", "a load c ship", "step 2 was 'fetch', is now 'load'; step 4 'ship' is new"),
        ("a b c", "a c", "step 2 'b' is gone"),
        ("a b", "x a b", "step 1 'x' is new"),
        ("a b c", "b c a", "step 1 'a' is now step 3"),
        ("a b", "c d", "step 1 was 'a', is now 'c'; step 2 was 'b', is now 'd'"),
        ("a b c", "x", "step 1 was 'a', is now 'x'; step 2 'b' is gone; step 3 'c' is gone"),
    ],
)
def test_a_difference_is_spelled_out(before: str, after: str, words: str) -> None:
    """Replaced, new, gone and moved steps, counted from 1."""
    assert told(of(*before.split()), of(*after.split())) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            {"big": of("a"), "small": of("b")},
            {"big": of("c"), "small": of("b")},
            "'big': step 1 was 'a', is now 'c'",
        ),
        ({"big": of("a")}, {"big": of("a"), "small": of("b")}, "'small' is new"),
        ({"big": of("a"), "small": of("b")}, {"small": of("b")}, "'big' is gone"),
        ({"a": of("a"), "b": of("b")}, {"b": of("b"), "a": of("a")}, "the order was a, b, is now b, a"),
    ],
)
def test_a_difference_inside_a_step_says_where(before: Any, after: Any, words: str) -> None:
    """The step and the key lead to it."""
    found = told(of("x", holder("branch", "route", **before)), of("x", holder("branch", "route", **after)))
    assert found in (f"in 'route' (branch), {words}", f"in 'route' (branch) {words}")


def test_a_step_of_another_kind_is_another_step() -> None:
    """Also where the name is the same."""
    assert told(of("a"), of(holder("map", "a", body=of("b")))) == "step 1 was 'a', is now 'a' (map)"


@pytest.mark.parametrize("stored", ["", "{", "3", "null", '{"a":1}', "[[]]", '[["a:b",3]]'])
def test_a_stored_structure_that_is_none_is_said_to_be_unreadable(stored: str) -> None:
    """It comes from a store, so it can be anything; it never raises and never reads as no difference."""
    assert difference(stored, '["step:a",["a:b",["c",[]]]]')


names = st.lists(st.text("abcdef", min_size=1, max_size=1), min_size=1, max_size=6, unique=True)


@given(names, names)
def test_a_difference_is_empty_only_if_there_is_none(before: list[str], after: list[str]) -> None:
    """Whatever was added, taken out or moved."""
    assert (told(of(*before), of(*after)) == "") == (before == after)
    assert json.loads(fingerprint(of(*before))) == structure(of(*before))


def _by(given: object) -> str:
    return "big"


def _until(given: object) -> bool:
    return True


def shop(**changes: Any) -> Pipeline[Any, Any]:
    """Return a pipeline of every kind of step; `changes` puts others in their places."""
    parts: dict[str, Any] = {
        "fan": Step.parallel("fan", left=of("a"), right=of("b", "c")),
        "each": Step.map_over("each", of("fetch", "score")),
        "route": Step.branch_on("route", by=lambda given: "big", big=of("ask", "charge"), default=of("charge")),
        "refine": Step.loop_until("refine", of("draft", "critic"), until=lambda given: True),
        "sub": of("x", "y").as_step("sub"),
        "pay": LEAF.named("pay").fallback(of("wire", "tell")),
    }
    return Pipeline.of(*(parts | changes).values())  # type: ignore[call-overload]


def test_the_structure_of_every_kind() -> None:
    """Kinds, names and keys; a body that is the only one has the key ""."""
    assert structure(shop()) == [
        ["parallel:fan", ["left", ["step:a"]], ["right", ["step:b", "step:c"]]],
        ["map:each", ["", ["step:fetch", "step:score"]]],
        ["branch:route", ["big", ["step:ask", "step:charge"]], ["default", ["step:charge"]]],
        ["loop:refine", ["", ["step:draft", "step:critic"]]],
        ["pipeline:sub", ["", ["step:x", "step:y"]]],
        ["fallback:pay", ["primary", ["step:pay"]], ["fallback", ["step:wire", "step:tell"]]],
    ]


def test_options_functions_and_types_are_no_part_of_the_structure() -> None:
    """They may be mended while runs are in flight: limits, policies, what decides, defaults, time limits, undos."""
    other = shop(
        each=Step.map_over(
            "each", of("fetch", "score"), max_concurrency=2, on_error="collect", tolerated_failures=3
        ).with_timeout(3),
        route=Step.branch_on(
            "route",
            by=step(name="x", retries=3)(_by),
            big=of("ask", step(name="charge", undo=lambda given: None)(len)),
            default=of("charge"),
        ),
        refine=Step.loop_until("refine", of("draft", "critic"), until=_until, max_iterations=3),
    )
    assert fingerprint(other) == fingerprint(shop())
    chosen = Step.branch_on("route", by=lambda given: "a", a=of("a"), b=of("b"))
    assert told(of(chosen), of(Step.branch_on("route", by=_by, a=of("a"), b=of("b"), default="b"))) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"fan": Step.parallel("fan", left=of("a"), right=of("b"))},
            "in 'fan' (parallel), 'right': step 2 'c' is gone",
        ),
        (
            {"fan": Step.parallel("fan", right=of("b", "c"), left=of("a"))},
            "in 'fan' (parallel) the order was left, right, is now right, left",
        ),
        (
            {"each": Step.map_over("each", of("fetch", Step.map_over("score", of("leaf"))))},
            "in 'each' (map): step 2 was 'score', is now 'score' (map)",
        ),
        (
            {"route": Step.branch_on("route", by=_by, big=of("ask", "charge"), small=of("charge"))},
            "in 'route' (branch) 'default' is gone; in 'route' (branch) 'small' is new",
        ),
        (
            {"refine": Step.map_over("refine", of("draft", "critic"))},
            "step 4 was 'refine' (loop), is now 'refine' (map)",
        ),
        (
            {"sub": of("x", "y")},
            "step 5 was 'sub' (pipeline), is now 'x'; step 6 'y' is new",
        ),
        ({"pay": of("pay")}, "step 6 was 'pay' (fallback), is now 'pay'"),
        (
            {"pay": LEAF.named("pay").fallback(of("wire", "told"))},
            "in 'pay' (fallback), 'fallback': step 2 was 'tell', is now 'told'",
        ),
    ],
)
def test_a_difference_in_every_kind_is_spelled_out(changes: Any, words: str) -> None:
    """The way to it, and what it is."""
    assert told(shop(), shop(**changes)) == words


def test_a_difference_deep_inside_says_the_whole_way() -> None:
    """Kind, name and key of each level."""

    def deep(name: str) -> Pipeline[Any, Any]:
        return of(Step.parallel("fan", left=Step.map_over("each", of(name)), right=of("b")))

    assert told(deep("a"), deep("z")) == "in 'fan' (parallel), 'left': in 'each' (map): step 1 was 'a', is now 'z'"
