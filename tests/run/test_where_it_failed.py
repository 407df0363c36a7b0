"""A failed run says where it failed, also where that was no step of the user's own."""

from __future__ import annotations

from typing import Any

import pytest

from flujo import Flujo, Step, step


@step
async def same(n: Any) -> Any:
    return n


@step
async def note(n: int, *, context: dict[str, Any]) -> int:
    context["note"] = n
    return n


def refuse(n: Any) -> Any:
    raise LookupError("no idea")


@pytest.mark.parametrize(
    ("declared", "where"),
    [
        (Step.branch_on("route", by=refuse, big=same), "route>choice"),
        (Step.loop_until("refine", same, until=refuse), "refine#1>exit"),
        (Step.map_over("enrich", same), "enrich>items"),
        (Step.parallel("fan", left=note, right=note), "fan>join"),
        (Step.parallel("fan", left=Step.branch_on("route", by=refuse, big=same)), "fan.left.route>choice"),
    ],
)
def test_a_decision_that_failed_is_in_the_history(declared: Step[Any, Any], where: str) -> None:
    """Under its path, with the text of its failure; one that succeeded is not."""
    result = Flujo(declared).run(7, run_id="r")
    assert result.status == "failed"
    assert [(found.where, found.success) for found in result.step_history if ">" in found.where] == [(where, False)]
    assert result.step_history[-1].feedback and type(result.error).__name__ in result.step_history[-1].feedback


def test_a_decision_that_was_made_the_next_time_is_not() -> None:
    """As with any step, a failure that was made good is not shown."""
    answers = ["big"]

    def by(n: int) -> str:
        if len(answers) == 1:
            answers.append("big")
            raise LookupError("no idea")
        return answers[0]

    runner = Flujo(Step.branch_on("route", by=by, big=same))
    assert [found.where for found in runner.run(7, run_id="r").step_history] == ["route>choice"]
    assert [found.where for found in runner.run(run_id="r").step_history] == ["route.big.same", "route"]


def test_a_conflict_names_both_places() -> None:
    """The branches by their paths, and the field; items of a map too, with how many more there are."""
    error = Flujo(Step.parallel("fan", left=note, right=note)).run(7).error
    assert str(error).startswith("'fan.left' and 'fan.right' changed the same field 'note' of the context.")
    error = Flujo(Step.map_over("each", note)).run(range(3)).error
    assert str(error).startswith("'each[0]' and 'each[1]' (and 1 more) changed the same field 'note'")
