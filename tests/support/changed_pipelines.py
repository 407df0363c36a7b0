"""Pipelines as lists of descriptions, how people change them, and runs of them that stop somewhere."""

from __future__ import annotations

import random
import re
from typing import Any

from flujo import Pipeline, Step, current_step
from tests.support.nested_runs import Notes

Spec = dict[str, Any]
KINDS = ("parallel", "map", "branch", "loop", "pipeline", "fallback")
KEYS = {"parallel": ("left", "right"), "branch": ("big", "small"), "fallback": ("primary", "fallback")}


def specs(dice: random.Random, depth: int = 2, around: str = "") -> list[Spec]:
    """Return the descriptions of a pipeline's steps, with names of their own."""
    return [spec(dice, f"{around}s{number}", depth) for number in range(dice.randint(1, 4 if depth == 2 else 2))]


def spec(dice: random.Random, name: str, depth: int = 2) -> Spec:
    """Return the description of a step."""
    kind = dice.choice(("step", "step", *KINDS)) if depth else "step"
    keys = KEYS.get(kind, ("",)) if kind != "step" else ()
    return {"name": name, "kind": kind, "bodies": {key: specs(dice, depth - 1, f"{name}{key}") for key in keys}}


def built(notes: Notes, found: list[Spec]) -> Pipeline[Any, Any]:
    """Make the pipeline. Each function gives two items, branches take "big", loops go round twice."""
    steps = [_step(notes, one) for one in found]
    return Pipeline.of(*steps)  # type: ignore[call-overload, no-any-return]


def _step(notes: Notes, found: Spec) -> Step[Any, Any]:
    name, kind = found["name"], found["kind"]
    bodies: dict[str, Any] = {key: built(notes, body) for key, body in found["bodies"].items()}
    match kind:
        case "step":
            made: Step[Any, Any] = notes.step(name, lambda given: [1, 2])
        case "parallel":
            made = Step.parallel(name, **bodies)
        case "map":
            made = Step.map_over(name, notes.step("in", lambda given: [1, 2]) >> bodies[""], max_concurrency=1)
            made = made if found.get("ends") else _listed(notes, made)
        case "branch":
            made = Step.branch_on(name, by=lambda given: "big", **bodies)
        case "loop":
            made = Step.loop_until(name, bodies[""], until=lambda given: current_step().path[-2] == "#2")
        case "pipeline":
            made = bodies[""].as_step(name)
        case _:
            made = bodies["primary"].as_step(name).fallback(bodies["fallback"])
    return made


def _listed(notes: Notes, mapped: Step[Any, Any]) -> Step[Any, Any]:
    """Give a map a list, whatever came before it, and be a step of its name all the same."""
    return Pipeline.of(notes.step("list", lambda given: [1, 2]), mapped).as_step(mapped.name)


def changed(dice: random.Random, found: list[Spec]) -> tuple[str, list[Spec]]:
    """Return what somebody has done to a pipeline, and what it then is: at the top, or anywhere inside."""
    inner = [(one, key) for one in found for key in one["bodies"]]
    if inner and dice.random() < 0.4:
        one, key = dice.choice(inner)
        how, body = changed(dice, one["bodies"][key])
        after = {**one, "bodies": {**one["bodies"], key: body}}
        return how, [after if other is one else other for other in found]
    place = dice.randrange(len(found))
    one = found[place]
    how = dice.choice(("same", "added", "removed", "renamed", "reordered", "retyped"))
    if how == "added":
        at = dice.randint(0, len(found))
        return how, [*found[:at], spec(dice, "added", 1), *found[at:]]
    if how == "removed" and len(found) > 1:
        return how, [other for other in found if other is not one]
    if how == "renamed":
        return how, [{**one, "name": "renamed"} if other is one else other for other in found]
    if how == "reordered" and len(found) > 1:
        rest = [other for other in found if other is not one]
        at = dice.choice([number for number in range(len(found)) if number != place])
        return how, [*rest[:at], one, *rest[at:]]
    if how == "retyped":
        after = spec(dice, one["name"], 1)
        return ("same" if after == one else how), [after if other is one else other for other in found]
    return "same", found


def places(calls: list[str]) -> set[str]:
    """Return where calls were made, without items and iterations."""
    return {re.sub(r"\[\d+\]|#\d+", "", call) for call in calls}
