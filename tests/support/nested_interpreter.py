"""What a described pipeline comes to, found out by interpreting the description: no flujo, no saves, no concurrency."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from tests.support.nested_pipelines import (
    FIELDS,
    Node,
    Path,
    Sequence,
    breaks,
    canonical,
    case_of,
    change,
    is_done,
    mix,
    output_of,
    part_of,
    shown,
    sight,
    takes_context,
)


@dataclass
class Sheet:
    """The context's fields."""

    lines: list[str] = field(default_factory=list)
    total: int = 0
    last: str = ""
    marks: set[str] = field(default_factory=set)
    f0: str = ""
    f1: str = ""
    f2: str = ""
    f3: str = ""
    f4: str = ""
    f5: str = ""


@dataclass
class ItemError:
    """Stands where a map's item failed."""

    index: int


@dataclass
class Calls:
    """The calls of one function: at least and at most how many, and with what."""

    least: int
    most: int
    given: int
    seen: int | None
    fails: bool = False  # its last call fails for good


@dataclass
class Expected:
    """How a run ends that nobody kills, the calls of each function by its path, the names of the top-level steps, and
    how often the run fails before it completes."""

    output: Any
    context: dict[str, Any]
    calls: dict[Path, Calls]
    tops: list[str]
    failures: int


class Broken(Exception):
    """Something failed for good."""


def interpret(spec: Sequence, given: Any) -> Expected:
    """Interpret a description that does not fail as a whole."""
    found = _Interpreter()
    sheet = Sheet()
    output = found.sequence(spec, given, sheet, ())
    return Expected(canonical(output), shown(sheet), found.calls, [node["name"] for node in spec], found.failures)


class _Interpreter:
    def __init__(self) -> None:
        self.calls: dict[Path, Calls] = {}
        self.failures = 0

    def sequence(self, spec: Sequence, given: Any, sheet: Sheet, under: Path) -> Any:
        for node in spec:
            given = getattr(self, node["kind"])(node, given, sheet, (*under, node["name"]))
        return given

    def call(self, path: Path, given: Any, sheet: Sheet | None, times: int = 1, *, fails: bool = False) -> None:
        assert path not in self.calls
        seen = sight(sheet) if sheet is not None else None
        self.calls[path] = Calls(times, times, mix(given), seen, fails)

    def leaf(self, node: Node, given: Any, sheet: Sheet, path: Path) -> Any:
        seen = sight(sheet) if node.get("reads") else 0
        hangs = node.get("end") == "hangs"
        broken = hangs or breaks(node, given)
        times = 1 + node.get("fails", 0)
        self.failures += node.get("end") == "stumbles"
        self.call(path, given, sheet if takes_context(node) else None, times, fails=broken)
        parts = [] if node.get("plain") else [part_of(index, given) for index in range(node.get("once", 0))]
        for index, _ in enumerate(parts):
            self.call((*path, f">part-{index}"), given, None)
        if broken:
            if hangs:  # how far it has come when the time is up, who knows
                self.stopped(path)
            raise Broken
        change(node, path, sheet)
        return output_of(node, given, parts, seen)

    def parallel(self, node: Node, given: Any, sheet: Sheet, path: Path) -> Any:
        outcomes = [
            self.apart(body, given, sheet, (*path, key)) for key, body in node["branches"].items()
        ]  # all of them, since a failure stops the others anywhere
        if any(outcome is None for outcome in outcomes):
            self.stopped(path)
        sheets = [outcome[1] for outcome in outcomes if outcome is not None]
        join(sheet, sheets)
        return {key: outcome[0] for key, outcome in zip(node["branches"], outcomes, strict=True) if outcome}

    def map(self, node: Node, given: Any, sheet: Sheet, path: Path) -> Any:
        outcomes = [
            self.apart(node["body"], item, sheet, (*path, f"[{index}]")) for index, item in enumerate(list(given))
        ]
        failed = sum(outcome is None for outcome in outcomes)
        tolerated = node.get("tolerated") if node.get("collect") else 0
        successful = node.get("successful") or 0
        if (tolerated is not None and failed > tolerated) or len(outcomes) - failed < successful:
            self.stopped(path)
        join(sheet, [outcome[1] for outcome in outcomes if outcome is not None])
        return [ItemError(index) if outcome is None else outcome[0] for index, outcome in enumerate(outcomes)]

    def apart(self, body: Sequence, given: Any, sheet: Sheet, under: Path) -> tuple[Any, Sheet] | None:
        """Interpret a body on a copy of the context; None: it failed."""
        mine = copy.deepcopy(sheet)
        try:
            return self.sequence(body, given, mine, under), mine
        except Broken:
            return None

    def stopped(self, path: Path) -> None:
        """Something in there failed, and who knows how far the others were."""
        for found, calls in self.calls.items():
            if found[: len(path)] == path:
                calls.least = 0
        raise Broken

    def branch(self, node: Node, given: Any, sheet: Sheet, path: Path) -> Any:
        reads = bool(node.get("reads"))
        chosen = case_of(node, given, sight(sheet) if reads else 0)
        if chosen not in node["cases"]:
            chosen = "default" if "otherwise" in node else node.get("default")
        self.call((*path, ">choice"), given, sheet if reads else None, fails=chosen is None)
        if chosen is None:
            raise Broken
        return self.sequence(
            node["otherwise"] if chosen == "default" else node["cases"][chosen], given, sheet, (*path, chosen)
        )

    def loop(self, node: Node, given: Any, sheet: Sheet, path: Path) -> Any:
        reads = bool(node.get("reads"))
        for iteration in range(1, node["limit"] + 1):
            under = (*path, f"#{iteration}")
            given = self.sequence(node["body"], given, sheet, under)
            self.call((*under, ">exit"), given, sheet if reads else None)
            if is_done(node, iteration, given, sight(sheet) if reads else 0):
                return given
        raise Broken

    def pipeline(self, node: Node, given: Any, sheet: Sheet, path: Path) -> Any:
        return self.sequence(node["body"], given, sheet, path)

    def fallback(self, node: Node, given: Any, sheet: Sheet, path: Path) -> Any:
        try:
            return self.sequence([node["primary"]], given, sheet, (*path, "primary"))
        except Broken:
            return self.sequence([node["fallback"]], given, sheet, (*path, "fallback"))


def join(sheet: Sheet, others: list[Sheet]) -> None:
    """Bring the changes of copies into the context that they are copies of."""
    base = copy.deepcopy(sheet)
    for other in others:
        sheet.lines += other.lines[len(base.lines) :]
        sheet.total += other.total - base.total
        sheet.marks |= other.marks
        for name in FIELDS:
            if name not in ("lines", "total", "marks") and getattr(other, name) != getattr(base, name):
                setattr(sheet, name, getattr(other, name))
