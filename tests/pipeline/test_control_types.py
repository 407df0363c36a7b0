from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pytest

from flujo.errors import PipelineDefinitionError, StepTypeError
from flujo.pipeline import Pipeline, Step, shares_context, step
from tests.support.typed_steps import double, enough, length, noted, show, size, untyped, words


@pytest.mark.parametrize(
    ("following", "taker"),
    [
        (Step.parallel("fan", left=double, right=untyped("x") >> double.named("y")), "'double' in 'fan.left'"),
        (Step.branch_on("route", by=lambda number: "a", a=untyped("x"), b=double), "'double' in 'route.b'"),
        (Step.branch_on("route", by=size, a=untyped("x")), "`by` of 'route'"),
        (Step.loop_until("refine", double, until=enough), "'double' in 'refine'"),
        ((double >> noted).as_step("sub"), "'double' in 'sub'"),
        (double.fallback(untyped("x")), "'double' in 'double.primary'"),
        (untyped("x").fallback(double), "'double' in 'x.fallback'"),
        (
            Step.parallel("fan", a=Step.branch_on("b", by=lambda number: "c", c=double.fallback(double)).named("b")),
            "'double' in 'fan.a.b.c.double.primary'",
        ),
    ],
)
def test_what_comes_before_has_to_fit_everything_that_it_goes_to(following: Any, taker: str) -> None:
    """However deep that is; the error names who gives and who takes, with both types."""
    with pytest.raises(StepTypeError) as caught:
        show >> following
    message = f"Step 'show' returns str, but the next step, {taker}, takes int. Change one"
    assert str(caught.value).startswith(message)
    assert caught.value.data == {
        "step": "show",
        "next_step": following.name,
        "output_type": str,
        "input_type": int,
    }
    assert double.named("before") >> following


def test_what_comes_before_a_map_has_to_have_items_that_fit() -> None:
    """Also through two maps."""
    with pytest.raises(StepTypeError) as caught:
        words >> Step.map_over("each", double)  # type: ignore[arg-type]
    assert "'each', whose items go to 'double' in 'each', takes Iterable[int]" in str(caught.value)
    with pytest.raises(StepTypeError):
        length >> Step.map_over("each", untyped("x"))
    assert words >> Step.map_over("each", length)
    twice = Step.map_over("all", Step.map_over("each", length))
    with pytest.raises(StepTypeError, match=r"takes Iterable\[Iterable\[str\]\]"):
        step(name="numbers")(_numbers) >> twice  # type: ignore[operator]
    assert step(name="rows")(_rows) >> twice


def _numbers() -> list[int]:
    return []


def _rows() -> list[list[str]]:
    return []


@pytest.mark.parametrize(
    ("before", "given"),
    [
        (Step.parallel("fan", a=double, b=show), "dict[str, int | str]"),
        (Step.map_over("each", double), "list[int]"),
        (Step.branch_on("route", by=size, a=double, b=show), "int | str"),
        (Step.loop_until("refine", double, until=enough), "int"),
        ((double >> show).as_step("sub"), "str"),
        (double.fallback(show), "int | str"),
    ],
)
def test_the_output_of_a_composite_has_to_fit_what_comes_next(before: Any, given: str) -> None:
    """The error shows the type that comes of the bodies'."""
    with pytest.raises(StepTypeError) as caught:
        before >> step(name="last")(_of_bytes)
    assert f"Step {before.name!r} returns {given}, but the next step, 'last', takes bytes." in str(caught.value)
    assert before >> untyped("last")


def _of_bytes(given: bytes) -> bytes:
    return given


def test_the_input_type_is_what_all_bodies_take() -> None:
    """The narrowest, where they differ; Any, where none fits all of the others."""
    assert Step.parallel("fan", a=double, b=show, c=untyped("x")).input_type is int
    assert Step.parallel("fan", a=double, b=length).input_type is Any
    assert Step.parallel("fan", a=untyped("x")).input_type is Any
    assert Step.map_over("each", Step.parallel("fan", a=double, b=show)).input_type == Iterable[int]
    assert Step.branch_on("route", by=size, a=untyped("x")).input_type is int


@pytest.mark.parametrize("unknown", [Any, "Later", Annotated[int, []], 3])
def test_outputs_of_which_one_is_unknown_are_unknown(unknown: Any) -> None:
    """Nothing is refused for what cannot be told."""
    strange = dataclasses.replace(untyped("x"), output_type=unknown)
    made = Step.branch_on("route", by=size, a=double, b=strange)
    assert made >> double.named("last")
    assert Step.map_over("each", strange, on_error="collect") >> untyped("last")
    assert Step.branch_on("route", by=size, a=double, b=untyped("x")).output_type is Any
    assert Step.parallel("fan", a=double, b=untyped("x")).output_type == dict[str, Any]


def test_the_output_of_a_loop_has_to_fit_its_own_input() -> None:
    """The error names the body's last step and the one that takes it again, and both types."""
    with pytest.raises(StepTypeError) as caught:
        Step.loop_until("refine", double >> show, until=lambda text: True)  # type: ignore[misc]
    assert str(caught.value).startswith(
        "The body of loop 'refine' is given its own output again: its last step, 'show', returns str, "
        "but 'double' in 'refine' takes int. Let the body"
    )
    assert caught.value.data == {
        "step": "show",
        "next_step": "refine",
        "output_type": str,
        "input_type": int,
    }
    with pytest.raises(StepTypeError, match="but `until` of 'refine' takes str"):
        Step.loop_until("refine", double, until=_good_text)  # type: ignore[arg-type]
    with pytest.raises(StepTypeError, match=r"'double' in 'refine\.fan\.a' takes int"):
        Step.loop_until("refine", Step.parallel("fan", a=double), until=lambda both: True)  # type: ignore[misc]


def _good_text(text: str) -> bool:
    return bool(text)


def test_decisions_are_declared_to_answer_what_decides() -> None:
    """The name of a case, and whether the loop is done."""
    with pytest.raises(StepTypeError, match="`by` of step 'route' returns int, and has to return str"):
        Step.branch_on("route", by=double, a=double)  # type: ignore[arg-type]
    with pytest.raises(StepTypeError, match="`until` of step 'refine' returns str, and has to return bool"):
        Step.loop_until("refine", double, until=size)  # type: ignore[arg-type]


class Size(enum.StrEnum):
    BIG = "big"
    SMALL = enum.auto()


class OldSize(str, enum.Enum):  # noqa: UP042  # how it was written before StrEnum
    BIG = "big"
    SMALL = "small"


def test_a_decision_whose_answers_are_declared_needs_a_case_for_each() -> None:
    """Unless there is a default, which takes the rest."""

    def by(number: int) -> Literal["big", "small"]:
        return "big"

    def by_enum(number: int) -> Size:
        return Size.BIG

    def by_old_enum(number: int) -> OldSize:
        return OldSize.BIG

    for decides in (by, by_enum, by_old_enum):
        with pytest.raises(PipelineDefinitionError, match="may answer 'small', which is no case of it") as caught:
            Step.branch_on("route", by=decides, big=double)
        assert caught.value.data == {"step": "route", "case": "small", "cases": ["big"]}
        assert Step.branch_on("route", by=decides, big=double, small=double)
        assert Step.branch_on("route", by=decides, big=double, default="big")


# --- what is asked of all that is inside ---


def test_annotations_hold_what_decides_and_undoes() -> None:
    """The codec has to know every type that a run can store."""

    def undo(paid: float, *, context: dict[str, bytes]) -> complex:
        return 1j

    paid = step(undo=undo)(_pay)
    made = Step.loop_until("refine", Step.branch_on("route", by=size, a=paid >> untyped("round")), until=enough)
    found = [*Pipeline.of(made).annotations()]
    assert {int, str, bool, float, complex} <= {one for one in found if isinstance(one, type)}
    assert dict[str, int] in found and dict[str, bytes] in found
    assert Any not in found


def _pay(number: int) -> float:
    return 1.0


def test_whether_the_context_is_shared_is_known_of_all_that_is_inside() -> None:
    """Of functions and decisions, however deep; not of an undo, which runs when nothing is shared any more."""
    assert shares_context(noted) and not shares_context(double)
    for made in (
        Step.parallel("fan", a=double, b=double >> noted),
        Step.map_over("each", Step.map_over("each", noted)),
        Step.loop_until("refine", double, until=enough),
        double.fallback(noted),
        (double >> noted).as_step("sub"),
    ):
        assert shares_context(made)
        assert shares_context(untyped("first") >> made.named("made") >> untyped("last"))
    for made in (Step.map_over("each", double), Step.branch_on("route", by=size, a=double)):
        assert not shares_context(made)
        assert not shares_context(untyped("first") >> made.named("made"))
    assert not shares_context(step(undo=_undo_with_context)(_pay))


def _undo_with_context(paid: float, *, context: dict[str, int]) -> None: ...
