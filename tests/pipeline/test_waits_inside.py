"""Steps that wait, among other steps: types, structure, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel

from flujo.errors import PipelineDefinitionError, StepDefinitionError, StepTypeError
from flujo.pipeline import WAITS, Pipeline, Step, fingerprint, step

ask, wait_for = Step.human_in_the_loop, Step.wait_for


class Approval(BaseModel):
    approved: bool


@dataclass
class Order:
    total: int
    due: datetime


def ship(approval: Approval) -> str:
    return str(approval)


def question(order: Order) -> str:
    return f"Ship {order.total}?"


def due(order: Order) -> datetime:
    return order.due


def test_neighbours_fit() -> None:
    """What follows takes the answer; what a sleep gives is not told."""
    checked = step(ship)
    assert len(checked >> ask("a", "?", Approval) >> Step.sleep("b", 1) >> checked.named("again")) == 4
    with pytest.raises(StepTypeError, match=r"'a' returns bool, but the next step, 'ship', takes Approval"):
        ask("a", "?", bool) >> checked
    with pytest.raises(StepTypeError, match=r"'a' returns list\[Approval\], but the next step, 'ship', takes Approval"):
        ask("a", "?", Approval, quorum=1) >> checked
    with pytest.raises(StepTypeError, match=r"'a' returns int, but the next step, 'ship', takes Approval"):
        wait_for("a", int) >> checked


def test_inside_of_other_steps() -> None:
    """They are bodies like any other; a decision and an undo they are not."""
    one, two = ask("one", "?", Approval), wait_for("two", int)
    assert Step.parallel("fan", one=one, two=two >> Step.sleep("z", 1)).output_type == dict[str, Any]
    assert Step.parallel("fan", one=one, two=two).output_type == dict[str, Approval | int]
    assert Step.map_over("each", one).output_type == list[Approval]
    assert Step.branch_on("route", by=str, one=one, default=two).output_type == Approval | int
    assert Step.loop_until("again", one, until=lambda answer: answer.approved).output_type is Approval
    assert (one >> step(ship)).as_step("all").output_type is str
    fallen = one.fallback(wait_for("other", Approval))
    assert (fallen.kind, fallen.output_type, fallen.with_timeout(3).timeout) == ("fallback", Approval, 3.0)
    with pytest.raises(StepDefinitionError, match=r"`by` cannot be <Step one"):
        Step.branch_on("route", by=one, one=two)  # type: ignore[arg-type]
    with pytest.raises(StepDefinitionError, match=r"its undo 'one' is of kind 'human'"):
        step(undo=one)(ship)


def test_names_are_checked_first() -> None:
    """As those of all steps."""
    for make in (lambda: ask("a.b", ""), lambda: wait_for("a.b"), lambda: Step.sleep("a.b", 1)):
        with pytest.raises(StepDefinitionError, match=r"A step cannot be called 'a\.b'"):
            make()
    with pytest.raises(PipelineDefinitionError, match=r"Steps 1 and 2 are both called 'a'"):
        wait_for("a") >> wait_for("a")


def test_the_structure_is_kind_and_name() -> None:
    """Messages, types, time limits and voters may change under a run; its kinds are known to everybody."""
    steps = ask("a", "?", bool) >> wait_for("b") >> Step.sleep("c", 1)
    others = ask("a", "!", int, quorum=2, timeout=1) >> wait_for("b", Order, signal="x") >> Step.sleep_until("c", due)
    assert fingerprint(steps) == fingerprint(others) == '["human:a","signal:b","sleep:c"]'
    assert {found.kind for found in steps.steps} == WAITS


def test_the_codec_is_told_of_the_answers() -> None:
    """A process that has made none itself can read them."""
    steps = ask("a", question, Approval, quorum=2) >> wait_for("b", Order) >> Step.sleep("c", 1)
    assert list(steps.annotations()) == [Order, list[Approval], Order]


# --- drawn ---


def test_each_kind_is_drawn_in_its_own_shape() -> None:
    """And says what it waits for; what a user has named is no part of the diagram's syntax."""
    steps = (
        ask("approve", "Ship it?", bool)
        >> ask("board", "Ship it?", quorum=2)
        >> wait_for("paid")
        >> wait_for("sent", signal='"]x')
        >> Step.sleep("pause", 1)
    )
    assert [line.strip() for line in steps.to_mermaid().splitlines()[1:6]] == [
        'n1[/"approve: a person answers"/]',
        'n2[/"board: 2 people answer"/]',
        'n3>"paid: signal"]',
        'n4>"sent: signal #34;#93;x"]',
        'n5{{"pause"}}',
    ]


def classes(drawn: str) -> list[str]:
    return [line.strip() for line in drawn.splitlines() if line.startswith("    class ")]


def test_what_waits_is_coloured() -> None:
    """In a parallel of a run that goes on one branch waits, while the other is at work."""
    steps = Pipeline.of(Step.parallel("fan", one=ask("one", "?") >> Step.sleep("z", 1), two=step(ship)))
    waits = [{"kind": "human", "path": ["fan", "one", "one"], "n": 1}]
    state = {"status": "running", "current_step_index": 0, "waiting": {"waits": waits}}
    assert classes(steps.to_mermaid(state)) == ["class n1,n5 running", "class n3 waiting"]
    assert classes(steps.to_mermaid({**state, "status": "paused"})) == ["class n1,n3,n5 waiting"]
    assert classes(steps.to_mermaid({**state, "waiting": None})) == ["class n1,n3,n5 running"]


def test_a_step_at_the_top_and_one_that_waits_for_a_retry() -> None:
    """Any kind of wait is one."""
    steps = ask("one", "?") >> step(ship)
    state = {"status": "running", "current_step_index": 1, "step_history": [{"path": ["one"]}]}
    wait = {"kind": "retry", "path": ["ship"], "n": 1}
    assert classes(steps.to_mermaid({**state, "waiting": {"waits": [wait]}})) == ["class n1 done", "class n2 waiting"]
    assert classes(steps.to_mermaid(state)) == ["class n1 done", "class n2 running"]


def test_items_that_wait() -> None:
    """Where some wait and none is at work the step waits."""
    steps = Pipeline.of(Step.map_over("each", ask("one", "?")))
    waits = [{"kind": "human", "path": ["each", f"[{index}]", "one"], "n": 1} for index in range(2)]
    state = {"status": "paused", "current_step_index": 0, "input": [1, 2], "waiting": {"waits": waits}}
    assert classes(steps.to_mermaid(state)) == ["class n1,n2 waiting"]
    assert classes(steps.to_mermaid({**state, "status": "running"})) == ["class n1 running", "class n2 waiting"]
