from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from flujo.errors import PipelineDefinitionError, StepDefinitionError, StepTypeError
from flujo.pipeline import MAX_DEPTH, NO_RETRY, ItemError, Pipeline, Step, step
from flujo.pipeline.control import BranchOn, Fallback, LoopUntil, MapOver, Nested, Parallel
from tests.support.typed_steps import double, enough, length, noted, show, size, untyped


def keys(made: Step[Any, Any]) -> list[str]:
    return [key for key, _ in made.bodies]


def names(body: Pipeline[Any, Any]) -> list[str]:
    return [found.name for found in body.steps]


# --- what is made ---


def test_a_parallel_has_its_branches_as_bodies_in_the_order_they_were_written() -> None:
    """A step becomes a pipeline of one, a pipeline stays what it is."""
    both = length >> double
    made = Step.parallel("fan", short=length, long=both, name=length)
    assert (made.name, made.kind, made.control) == ("fan", "parallel", Parallel())
    assert keys(made) == ["short", "long", "name"]
    assert [names(body) for _, body in made.bodies] == [["length"], ["length", "double"], ["length"]]
    assert made.bodies[1][1] is both
    assert (made.input_type, made.output_type) == (str, dict[str, int])


def test_a_composite_is_no_function() -> None:
    """It takes the input, never the context, is not retried, and what stands for its function is never called."""
    made = Step.parallel("fan", one=noted)
    assert (made.is_async, made.takes_input, made.takes_context) == (False, True, False)
    assert (made.retry, made.timeout, made.decision, made.undo, made.executor) == (NO_RETRY, None, None, None, None)
    with pytest.raises(AssertionError, match="has no function"):
        made.fn(3)


def test_a_map_has_its_body_and_its_options() -> None:
    """The body's key is empty: there is one."""
    made = Step.map_over("each", length >> double, max_concurrency=3)
    assert (made.kind, made.control) == ("map", MapOver(max_concurrency=3))
    assert [(key, names(body)) for key, body in made.bodies] == [("", ["length", "double"])]
    assert (made.input_type, made.output_type) == (Iterable[str], list[int])
    assert Step.map_over("each", length).control == MapOver(max_concurrency=10)


def test_a_collecting_map_has_errors_among_its_outputs() -> None:
    """So the next step has to take them, and the codec has to know them, also where the body's type is not known."""
    made = Step.map_over("each", length, on_error="collect", min_successful=2, tolerated_failures=0)
    assert made.control == MapOver(max_concurrency=10, collect=True, min_successful=2, tolerated_failures=0)
    assert made.output_type == list[int | ItemError]
    with pytest.raises(StepTypeError, match=r"returns list\[int \| ItemError\], but the next step, 'm', whose items"):
        made >> Step.map_over("m", double)  # type: ignore[arg-type]
    anything = Step.map_over("each", untyped("x"), on_error="collect")
    assert anything.output_type == list[Any]
    assert ItemError in [*Pipeline.of(anything).annotations()]


def test_a_branch_has_its_cases_and_its_decision() -> None:
    """The decision is a step of its own, called `choice`, which the path shows as `route>choice`."""
    made = Step.branch_on("route", by=size, big=double, small=double >> noted)
    assert (made.kind, made.control, keys(made)) == ("branch", BranchOn(), ["big", "small"])
    assert made.decision is not None
    assert (made.decision.kind, made.decision.name, made.decision.fn) == ("decision", "choice", size)
    assert (made.decision.input_type, made.decision.output_type, made.decision.is_async) == (int, str, False)
    assert (made.input_type, made.output_type) == (int, int)


@pytest.mark.parametrize("body", [double, double >> noted])
def test_a_default_may_be_a_case_or_a_body_of_its_own(body: Any) -> None:
    """A body is then the case called `default`, the last."""
    assert Step.branch_on("route", by=size, small=double, default="small").control == BranchOn(default="small")
    made = Step.branch_on("route", by=size, small=double, default=body)
    assert (made.control, keys(made)) == (BranchOn(default="default"), ["small", "default"])
    assert keys(Step.branch_on("route", by=size, default=body)) == ["default"]


def test_a_loop_has_its_body_and_its_decision() -> None:
    """The decision is called `exit`, which the path shows as `refine#3>exit`; it may be async and take the context."""
    made = Step.loop_until("refine", double, until=enough, max_iterations=7)
    assert (made.kind, made.control, keys(made)) == ("loop", LoopUntil(max_iterations=7), [""])
    assert made.decision is not None
    assert (made.decision.kind, made.decision.name, made.decision.takes_context) == ("decision", "exit", True)
    assert (made.decision.is_async, made.decision.context_type) == (True, dict[str, int])
    assert (made.input_type, made.output_type) == (int, int)
    assert Step.loop_until("refine", double, until=enough).control == LoopUntil(max_iterations=100)


def test_a_decision_may_be_a_step_with_its_retries() -> None:
    """One without an undo: a decision has nothing to take back."""
    made = Step.loop_until("refine", double, until=step(retries=2, timeout=3)(enough))
    assert made.decision is not None
    assert (made.decision.kind, made.decision.name) == ("decision", "exit")
    assert (made.decision.retry.max_retries, made.decision.timeout) == (2, 3)
    undone = step(undo=lambda answer: None)(size)
    for wrong in (undone, Step.parallel("fan", a=length), 3, "size"):
        with pytest.raises(StepDefinitionError, match="Step 'route': `by` cannot be") as caught:
            Step.branch_on("route", by=wrong, big=double)  # type: ignore[arg-type]
        assert (caught.value.step, caught.value.option) == ("route", "by")


def test_a_decision_that_could_not_be_called_is_refused() -> None:
    """Like a step's function; the message names it by its path."""

    def by(number: int, rate: int) -> str:
        return "big"

    with pytest.raises(StepDefinitionError, match="Parameter 'rate' of step 'route>choice' has nothing"):
        Step.branch_on("route", by=by, big=double)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", [operator.attrgetter("kind"), operator.itemgetter("kind"), str])
def test_a_decision_that_does_not_tell_its_parameters_takes_one(by: Any) -> None:
    """What is written in C often does not, and is just what decisions are made of."""
    made = Step.branch_on("route", by=by, big=double)
    assert made.decision is not None
    assert (made.decision.takes_input, made.decision.takes_context) == (True, False)
    assert made.decision.fn("big" if by is str else Kind()) == "big"


class Kind(dict[str, str]):
    kind = "big"

    def __missing__(self, key: str) -> str:
        return "big"


def test_a_pipeline_becomes_a_step_under_a_name() -> None:
    """`>>` then keeps it together, so that the outer pipeline has one step more and its names are free."""
    inner = length >> double
    made = inner.as_step("sizes")
    assert (made.kind, made.control, made.bodies) == ("pipeline", Nested(), (("", inner),))
    assert (made.input_type, made.output_type) == (str, int)
    assert names(made >> double) == ["sizes", "double"]


def test_a_fallback_has_the_name_of_what_it_falls_back_from() -> None:
    """Both are bodies, and both fit what comes before and after."""
    made = length.fallback(length.named("again") >> show)
    assert (made.name, made.kind, made.control) == ("length", "fallback", Fallback())
    assert [(key, names(body)) for key, body in made.bodies] == [
        ("primary", ["length"]),
        ("fallback", ["again", "show"]),
    ]
    assert (made.input_type, made.output_type) == (str, int | str)
    assert names(made.fallback(length).bodies[0][1]) == ["length"]


@pytest.mark.parametrize("made", [double, double.fallback(double), Step.map_over("m", double)])
def test_every_step_can_have_a_time_limit(made: Step[Any, Any]) -> None:
    """In seconds or as a timedelta; the step itself stays as it was."""
    assert made.with_timeout(3).timeout == 3.0
    assert made.with_timeout(timedelta(minutes=1)).timeout == 60.0
    assert made.timeout is None
    assert dataclasses.replace(made.with_timeout(3), timeout=None).kind == made.kind


@pytest.mark.parametrize("timeout", [0, -1, True, "3", None, float("nan"), timedelta(0)])
def test_a_time_limit_that_is_none_is_refused(timeout: Any) -> None:
    """The message names the step."""
    with pytest.raises(StepDefinitionError, match="Step 'double': `timeout` cannot be") as caught:
        double.with_timeout(timeout)
    assert (caught.value.step, caught.value.option) == ("double", "timeout")


def test_a_composite_keeps_what_it_is_under_another_name() -> None:
    """So it can be used twice in a pipeline."""
    made = Step.map_over("each", double, on_error="collect")
    again = made.named("again")
    assert (again.name, again.kind, again.control, again.bodies) == ("again", "map", made.control, made.bodies)


# --- what is refused ---


def test_no_branches_and_no_cases_are_refused() -> None:
    """There would be nothing to do."""
    with pytest.raises(PipelineDefinitionError, match="Step 'fan' has no branches"):
        Step.parallel("fan")
    with pytest.raises(PipelineDefinitionError, match="Step 'route' has no cases"):
        Step.branch_on("route", by=size)


@pytest.mark.parametrize("name", ["", "a.b", "a[0]", "#1", "a>b", "a\nb", "x" * 201])
def test_branches_and_cases_are_called_like_steps(name: str) -> None:
    """Their names become parts of paths."""
    bodies: dict[str, Any] = {name: double}
    with pytest.raises(StepDefinitionError, match="branch of step 'fan' cannot be called") as caught:
        Step.parallel("fan", **bodies)
    assert (caught.value.step, caught.value.key) == ("fan", name)
    with pytest.raises(StepDefinitionError, match="case of step 'route' cannot be called"):
        Step.branch_on("route", by=size, **bodies)
    with pytest.raises(StepDefinitionError, match="A step cannot be called"):
        Step.map_over(name, double)


def test_a_body_that_is_a_plain_function_is_refused_with_the_remedy() -> None:
    """Wherever it stands; the message says where."""
    made: Any = Step
    hint = r"is neither a step nor a pipeline\. Decorate the function with `@step`"
    with pytest.raises(PipelineDefinitionError, match=f"print, branch 'a' of step 'fan', {hint}"):
        made.parallel("fan", a=print)
    with pytest.raises(PipelineDefinitionError, match=f"print, case 'a' of step 'route', {hint}"):
        made.branch_on("route", by=size, a=print)
    with pytest.raises(PipelineDefinitionError, match=f"print, case 'default' of step 'route', {hint}"):
        made.branch_on("route", by=size, a=double, default=print)
    with pytest.raises(PipelineDefinitionError, match=f"print, the body of step 'each', {hint}"):
        made.map_over("each", print)
    with pytest.raises(PipelineDefinitionError, match=f"print, the body of step 'refine', {hint}"):
        made.loop_until("refine", print, until=enough)
    with pytest.raises(PipelineDefinitionError, match=f"print, fallback of step 'double', {hint}"):
        double.fallback(print)  # type: ignore[arg-type]


def test_a_default_that_is_no_case_is_refused() -> None:
    """The message tells the cases."""
    with pytest.raises(PipelineDefinitionError, match=r"'small', which is no case of it\. The cases are big, huge;"):
        Step.branch_on("route", by=size, big=double, huge=double, default="small")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "3", None])
def test_counts_that_make_no_sense_are_refused(wrong: Any) -> None:
    """Whole numbers, 1 or more."""
    with pytest.raises(StepDefinitionError, match="`max_concurrency` cannot be"):
        Step.map_over("each", double, max_concurrency=wrong)
    with pytest.raises(StepDefinitionError, match="`max_iterations` cannot be") as caught:
        Step.loop_until("refine", double, until=enough, max_iterations=wrong)
    assert caught.value.data == {"step": "refine", "option": "max_iterations", "value": wrong}


@pytest.mark.parametrize("option", ["min_successful", "tolerated_failures"])
def test_limits_of_a_map_are_whole_numbers_and_need_collect(option: str) -> None:
    """With "fail" they would say nothing, so they are refused."""
    made: Any = Step.map_over
    for wrong in (-1, 0.5, True, "3"):
        with pytest.raises(StepDefinitionError, match=f"`{option}` cannot be"):
            made("each", double, on_error="collect", **{option: wrong})
    with pytest.raises(StepDefinitionError, match=f'`{option}` says nothing with on_error="fail"'):
        made("each", double, **{option: 3})
    with pytest.raises(StepDefinitionError, match=r'cannot be .ignore.\. It has to be "fail" or "collect"'):
        made("each", double, on_error="ignore")


def nested(levels: int) -> Step[Any, Any]:
    made = untyped("leaf")
    for level in range(levels):
        made = Step.map_over(f"level {level}", made)
    return made


def test_nesting_has_a_limit() -> None:
    """Up to it everything can be asked of the pipeline; one more is refused, by name and number, for every kind."""
    deepest = nested(MAX_DEPTH)
    assert (deepest.depth, Pipeline.of(deepest).depth, untyped("leaf").depth) == (MAX_DEPTH, MAX_DEPTH, 0)
    again: list[Any] = [
        lambda: nested(MAX_DEPTH + 1),
        lambda: Step.parallel("last", shallow=double, deep=deepest),
        lambda: Step.branch_on("last", by=size, deep=deepest),
        lambda: Step.loop_until("last", deepest, until=enough),
        lambda: Pipeline.of(deepest).as_step("last"),
        lambda: untyped("last").fallback(deepest),
        lambda: deepest.named("last").fallback(double),
    ]
    for make in again:
        with pytest.raises(PipelineDefinitionError, match="nested deeper than 32 levels") as caught:
            make()
        assert caught.value.limit == MAX_DEPTH


def test_depth_counts_the_deepest_step_of_a_pipeline() -> None:
    """Also of one that is made longer."""
    assert (nested(2) >> untyped("x") >> nested(3).named("y") >> untyped("z")).depth == 3


def test_names_inside_are_checked_like_any() -> None:
    """Two steps of one name in one body, but not in two."""
    with pytest.raises(PipelineDefinitionError, match="both called 'double'"):
        Step.map_over("each", double >> double)
    assert Step.parallel("double", a=double, b=double) >> untyped("x")
