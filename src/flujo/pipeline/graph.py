"""The structure of a pipeline: what must not change under a run that is still to be resumed.

It holds kinds, names, keys and their order, and nothing of functions, options or types: those may be mended
while runs are in flight. A step is the text "kind:name"; one that contains pipelines is a list of that text
and a [key, structure] for each of them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import from_json, to_json

from flujo.pipeline.pipeline import Pipeline, Step

Place = tuple[str, ...]
"""Where a step stands in a pipeline: its path, in which items and iterations have no part."""


@dataclass(frozen=True, slots=True)
class StepChange:
    """What became of a step: it is the "same", "new", "changed" or "moved"; `was` is its place before, from 0."""

    what: Literal["same", "new", "changed", "moved"]
    note: str = ""
    was: int | None = None


@dataclass(slots=True)
class Comparison:
    """Two structures side by side: each step that there is `now`, and the kinds of those that are `gone`."""

    now: dict[Place, StepChange] = field(default_factory=dict)
    gone: dict[Place, str] = field(default_factory=dict)


def structure(pipeline: Pipeline[Any, Any]) -> list[Any]:
    """Return the structure as JSON values, one a step."""
    return [_entry(found) for found in pipeline.steps]


def fingerprint(pipeline: Pipeline[Any, Any]) -> str:
    """Return the structure as compact JSON; the text is made once for a pipeline."""
    known = pipeline._fingerprint
    if known is None:
        known = to_json(structure(pipeline)).decode()
        object.__setattr__(pipeline, "_fingerprint", known)
    return known


def difference(stored: str, now: str) -> str:
    """Say in words how two fingerprints differ; empty if they do not."""
    if stored == now:
        return ""
    try:
        before, after = from_json(stored), from_json(now)
        return "; ".join(_compare(before, after, ""))
    except (ValueError, TypeError, LookupError, AttributeError):
        return "the stored structure cannot be read"


def entries(stored: str) -> list[Any] | None:
    """Return the structure in a fingerprint, or None where it cannot be read."""
    try:
        found = from_json(stored)
    except ValueError:
        return None
    return found if isinstance(found, list) else None


def kind_and_name(entry: Any) -> tuple[str, str]:
    """Return the kind and the name of a step, given its entry in a structure."""
    kind, _, name = _head(entry).partition(":")
    return kind, name


def compare(before: list[Any], after: list[Any]) -> Comparison:
    """Compare two structures step by step; `difference` says it in words."""
    found = Comparison()
    _compare_steps(before, after, (), found)
    return found


def _compare_steps(before: list[Any], after: list[Any], around: Place, found: Comparison) -> None:
    old = {kind_and_name(entry)[1]: (place, entry) for place, entry in enumerate(before)}
    heads, now = [_head(entry) for entry in before], [_head(entry) for entry in after]
    shared = set(heads) & set(now)
    sequences = [head for head in heads if head in shared], [head for head in now if head in shared]
    blocks = difflib.SequenceMatcher(None, *sequences, autojunk=False).get_matching_blocks()
    stay = {sequences[1][place] for block in blocks for place in range(block.b, block.b + block.size)}
    names = set()
    for entry in after:
        kind, name = kind_and_name(entry)
        names.add(name)
        place = (*around, name)
        was, other = old.get(name, (None, []))
        if was is None:
            found.now[place] = StepChange("new")
        elif _head(other) != _head(entry):
            found.now[place] = StepChange("changed", f"was a {_called(kind_and_name(other)[0])}", was)
        elif other != entry:
            found.now[place] = StepChange("changed", "; ".join(_inside(other, entry, "")), was)
        else:
            moved = _head(entry) not in stay
            found.now[place] = StepChange("moved", f"was step {was + 1}", was) if moved else StepChange("same", "", was)
        _compare_bodies(_bodies(other), _bodies(entry), place, found)
    for entry in before:
        kind, name = kind_and_name(entry)
        if name not in names:
            found.gone[(*around, name)] = kind
            _compare_bodies(_bodies(entry), {}, (*around, name), found)


def _compare_bodies(before: dict[str, Any], after: dict[str, Any], place: Place, found: Comparison) -> None:
    for key in {**after, **before}:
        _compare_steps(before.get(key, []), after.get(key, []), (*place, key) if key else place, found)


def _bodies(entry: Any) -> dict[str, Any]:
    return dict(entry[1:]) if isinstance(entry, list) else {}


def _called(kind: str) -> str:
    return "function" if kind == "step" else kind


def _entry(found: Step[Any, Any]) -> Any:
    head = f"{found.kind}:{found.name}"
    return [head, *([key, structure(body)] for key, body in found.bodies)] if found.bodies else head


def _compare(before: list[Any], after: list[Any], where: str) -> list[str]:
    """Compare two sequences of steps, whose places are counted from 1."""
    old, now = [_head(entry) for entry in before], [_head(entry) for entry in after]
    changes: list[str] = []
    gone: list[int] = []
    new: list[int] = []
    for tag, start, end, at, to in difflib.SequenceMatcher(None, old, now, autojunk=False).get_opcodes():
        if tag == "equal":
            for one, other in zip(range(start, end), range(at, to), strict=True):
                changes += _inside(before[one], after[other], where)
            continue
        paired = min(end - start, to - at)
        for one, other in zip(range(start, start + paired), range(at, at + paired), strict=True):
            if old[one] in now or now[other] in old:  # moved, and not replaced
                gone.append(one)
                new.append(other)
            else:
                was, new_one = _shown(before[one]), _shown(after[other])
                changes.append(f"{where}step {one + 1} was {was}, is now {new_one}")
        gone += range(start + paired, end)
        new += range(at + paired, to)
    return changes + _moves(before, after, gone, new, where)


def _moves(before: list[Any], after: list[Any], gone: list[int], new: list[int], where: str) -> list[str]:
    places = {_head(after[place]): place for place in new}
    changes = []
    for place in gone:
        target = places.pop(_head(before[place]), None)
        if target is None:
            changes.append(f"{where}step {place + 1} {_shown(before[place])} is gone")
        else:
            changes.append(f"{where}step {place + 1} {_shown(before[place])} is now step {target + 1}")
            changes += _inside(before[place], after[target], where)
    added = sorted(places.values())
    return changes + [f"{where}step {place + 1} {_shown(after[place])} is new" for place in added]


def _inside(before: Any, after: Any, where: str) -> list[str]:
    """Compare what two steps of one name contain, key by key."""
    bodies, others = _bodies(before), _bodies(after)
    inner = f"{where}in {_shown(before)}"
    changes = []
    for key, body in bodies.items():
        if key not in others:
            changes.append(f"{inner} {key!r} is gone")
        else:
            changes += _compare(body, others[key], f"{inner}, {key!r}: " if key else f"{inner}: ")
    changes += [f"{inner} {key!r} is new" for key in others if key not in bodies]
    if not changes and list(bodies) != list(others):
        changes.append(f"{inner} the order was {', '.join(bodies)}, is now {', '.join(others)}")
    return changes


def _head(entry: Any) -> str:
    return str(entry[0] if isinstance(entry, list) else entry)


def _shown(entry: Any) -> str:
    kind, _, name = _head(entry).partition(":")
    return repr(name) if kind == "step" else f"{name!r} ({kind})"
