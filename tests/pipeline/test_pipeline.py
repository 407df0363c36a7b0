from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flujo.errors import PipelineDefinitionError, StepTypeError
from flujo.pipeline import Pipeline, Step, step


@step
async def parse(text: str) -> int:
    return int(text)


@step
def double(number: int) -> int:
    return number * 2


@step
def show(number: float, *, context: dict[str, int]) -> str:
    return str(number)


def names(pipeline: Pipeline[Any, Any]) -> list[str]:
    return [found.name for found in pipeline.steps]


def test_joining_flattens() -> None:
    """Steps and pipelines joined in any grouping are one sequence of steps."""
    expected = ["parse", "double", "show"]
    assert names(parse >> double >> show) == expected
    assert names(parse >> (double >> show)) == expected
    assert names((parse >> double) >> show.named("show")) == expected
    assert names(Pipeline.of(parse >> double, show)) == expected
    assert len(parse >> double) == 2


def test_a_pipeline_has_the_types_of_its_ends() -> None:
    """The input of the first step and the output of the last; `annotations` yields all of them."""
    pipeline = parse >> double >> show
    assert (pipeline.input_type, pipeline.output_type) == (str, str)
    assert list(pipeline.annotations()) == [str, int, int, int, float, str, dict[str, int]]


def test_annotations_reach_into_bodies_and_leave_out_any() -> None:
    """A step that contains pipelines yields their types too."""
    outer = dataclasses.replace(step(len), bodies=(("", Pipeline.of(parse)),))
    assert list(Pipeline.of(outer).annotations()) == [str, int]


def test_a_name_is_given_by_named_and_lost_in_a_longer_pipeline() -> None:
    """`named` returns another pipeline; what is made of a named one is no longer that one."""
    pipeline = parse >> double
    named = pipeline.named("numbers")
    assert (pipeline.name, named.name, (named >> show).name) == (None, "numbers", None)
    assert Pipeline.of(parse, name="numbers").name == "numbers"
    assert named.steps == pipeline.steps
    assert repr(named) == "<Pipeline numbers: parse >> double>"
    with pytest.raises(PipelineDefinitionError, match="cannot name a pipeline"):
        pipeline.named("a\nb")


def test_a_long_pipeline_is_shown_short() -> None:
    """The text names the first six steps."""
    pipeline = Pipeline.of(*[double.named(f"s{n}") for n in range(9)])
    assert repr(pipeline) == "<Pipeline s0 >> s1 >> s2 >> s3 >> s4 >> s5 >> ...>"


def test_a_pipeline_never_changes() -> None:
    """Neither its steps nor its name can be set."""
    pipeline = parse >> double
    with pytest.raises(dataclasses.FrozenInstanceError):
        pipeline.name = "x"  # type: ignore[misc]
    assert not hasattr(pipeline, "__dict__")


def test_an_empty_pipeline_is_refused() -> None:
    """There would be nothing to save."""
    with pytest.raises(PipelineDefinitionError, match="at least one step"):
        Pipeline.of()  # type: ignore[call-overload]


def test_two_steps_of_one_name_are_refused() -> None:
    """The error names both places, and the way out works."""
    with pytest.raises(PipelineDefinitionError) as caught:
        parse >> double >> double
    assert str(caught.value) == (
        "Steps 2 and 3 are both called 'double'. Rename one of them: `double.named('double_again')`."
    )
    assert caught.value.data == {"step": "double", "positions": (1, 2)}
    assert names(parse >> double >> double.named("double_again")) == ["parse", "double", "double_again"]


def test_neighbours_whose_types_do_not_fit_are_refused() -> None:
    """The error names both steps and both types, and holds them."""
    with pytest.raises(StepTypeError) as caught:
        double >> parse  # type: ignore[operator]
    assert str(caught.value).startswith("Step 'double' returns int, but the next step, 'parse', takes str. Change one")
    assert caught.value.data == {
        "step": "double",
        "next_step": "parse",
        "output_type": int,
        "input_type": str,
    }


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_joint_is_checked(place: int) -> None:
    """Also where pipelines that were checked before are joined."""
    good: list[Step[Any, Any]] = [double.named(f"s{n}") for n in range(4)]
    bad: Any = [*good[: place + 1], parse, *good[place + 1 :]]
    with pytest.raises(StepTypeError):
        Pipeline.of(*bad)
    left: Any = Pipeline.of(*bad[: place + 1])
    right: Any = Pipeline.of(parse, *good[place + 1 :])
    with pytest.raises(StepTypeError):
        left >> right


def test_two_types_of_one_name_are_told_apart_by_their_modules() -> None:
    """ "Order does not fit Order" would help nobody."""

    class Order:
        pass

    other = type("Order", (), {"__module__": "shop.models"})
    first: Any = dataclasses.replace(parse, output_type=Order)
    second: Any = dataclasses.replace(double, input_type=list[other])  # type: ignore[valid-type]
    with pytest.raises(StepTypeError, match=r"returns Order, but .* takes list\[Order\]"):
        first >> second
    second = dataclasses.replace(double, input_type=other)
    with pytest.raises(StepTypeError, match=r"takes shop\.models\.Order"):
        first >> second


def test_a_plain_function_in_a_pipeline_is_refused_with_the_remedy() -> None:
    """The decorator is what is forgotten most."""

    def plain(number: int) -> int:
        return number

    with pytest.raises(PipelineDefinitionError, match=r"plain is neither a step nor a pipeline\. Decorate"):
        parse >> plain  # type: ignore[operator]
    with pytest.raises(PipelineDefinitionError, match="'text' is neither"):
        Pipeline.of("text")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unsupported operand"):
        parse >> 3  # type: ignore[operator]


def test_a_step_that_takes_nothing_follows_anything() -> None:
    """Its input is dropped, so every type fits."""

    @step
    def start() -> int:
        return 1

    assert names(show >> start >> double) == ["show", "start", "double"]
