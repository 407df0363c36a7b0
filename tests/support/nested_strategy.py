"""Hypothesis builds descriptions of nested pipelines, and draws where their processes die."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from tests.support.nested_pipelines import OWN, Node, Sequence

BUDGET = 40  # calls of leaves and decisions in one run, retries included
DEPTH = 4
LONG_S, SHORT_S = 600.0, 0.03  # time limits: one that never runs out, and one that is waited for
COMPOSITES = ("parallel", "map", "branch", "loop", "pipeline", "fallback")


@dataclass(frozen=True)
class Zone:
    """Where a sequence stands."""

    budget: int = BUDGET
    depth: int = DEPTH
    absorbed: bool = False  # what fails for good in here does not fail the run
    shared: bool = False  # copies of the context: no field belongs to one leaf
    own: list[str] = field(default_factory=lambda: list(OWN))  # the fields that nobody has taken, one list for all

    def inside(self, share: int = 1, **changes: Any) -> Zone:
        """Return the zone of a body that `share` of the budget is for."""
        return replace(self, budget=max(1, (self.budget - 1) // share), depth=self.depth - 1, **changes)


class _Builder:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def number(self, least: int, most: int) -> int:
        return self.draw(st.integers(least, max(least, most)))

    def chance(self, of: int) -> bool:
        """Return True once in so many times; shrinks to False."""
        return self.number(0, of - 1) == of - 1

    def sequence(self, zone: Zone, longest: int = 3) -> Sequence:
        nodes: Sequence = []
        for index in range(self.number(1, min(longest, zone.budget))):
            left = zone.budget - cost(nodes)
            if left < 1:
                break
            nodes += self.node(replace(zone, budget=left), str(index))
        return nodes

    def node(self, zone: Zone, suffix: str) -> Sequence:
        """Return one node, or a leaf that gives items and a map over them."""
        if zone.depth == 0 or zone.budget < 4 or self.chance(3):
            return [self.leaf(zone, f"leaf{suffix}")]
        kind = self.pick(*COMPOSITES)
        made = getattr(self, kind)(zone, f"{kind}{suffix}")
        nodes = made if isinstance(made, list) else [made]
        if self.chance(5):
            nodes[-1].setdefault("timeout", LONG_S)
        return nodes

    def leaf(self, zone: Zone, name: str) -> Node:
        node: Node = {"kind": "leaf", "name": name}
        if self.chance(3):
            node["plain"] = True
        if self.chance(2):
            node["context"] = self.pick("lines", "total", "marks", "last")
            if zone.own and not zone.shared and self.chance(3):
                node["context"] = zone.own.pop()
        if self.chance(3):
            node["reads"] = True
        left = zone.budget - 1
        if left and self.chance(5):
            node["fails"] = self.number(1, min(2, left))
        elif zone.absorbed and self.chance(4):
            node["end"] = self.pick("broken", "picky")
        elif not zone.absorbed and self.chance(20):
            node["end"] = "stumbles"
        if left > 3 and not node.get("plain") and self.chance(5):
            node["once"] = self.number(1, 3)
        return node

    def parallel(self, zone: Zone, name: str) -> Node:
        count = self.number(1, min(4, zone.budget))
        body = zone.inside(count)
        return {
            "kind": "parallel",
            "name": name,
            "branches": {f"branch{index}": self.sequence(body, 2) for index in range(count)},
        }

    def map(self, zone: Zone, name: str) -> Sequence:
        count = self.number(0, min(8, zone.budget - 2))
        source: Node = {"kind": "leaf", "name": f"for{name}", "gives": self.pick("list", "tuple", "set", "dict")}
        source["count"] = count
        node: Node = {"kind": "map", "name": name, "items": count, "concurrency": self.number(1, 4)}
        if self.chance(2):
            node["collect"] = True
        body = zone.inside(max(1, count), shared=True, absorbed=zone.absorbed or bool(node.get("collect")))
        if node.get("collect") and zone.absorbed and self.chance(2):
            node["tolerated"] = self.number(0, 2)
        if node.get("collect") and zone.absorbed and self.chance(3):
            node["successful"] = self.number(0, 3)
        node["body"] = self.sequence(body, 2)
        if node.get("collect") and self.chance(3):  # what was done in an item before that must leave no trace
            node["body"].append({"kind": "leaf", "name": "picky", "end": "picky"})
        return [source, node]

    def branch(self, zone: Zone, name: str) -> Node:
        body = zone.inside()
        cases = {f"case{index}": self.sequence(body, 2) for index in range(self.number(1, 3))}
        node: Node = {"kind": "branch", "name": name, "cases": cases}
        if self.chance(3):
            node["otherwise"] = self.sequence(body, 2)
        elif self.chance(2):
            node["default"] = self.pick(*cases)
        if ("otherwise" in node or "default" in node or zone.absorbed) and self.chance(2):
            node["strays"] = True
        return self.asks(node)

    def loop(self, zone: Zone, name: str) -> Node:
        times = self.number(1, min(4, zone.budget // 2))
        node: Node = {"kind": "loop", "name": name, "times": times, "limit": times + self.number(0, 2)}
        if zone.absorbed and times > 1 and self.chance(5):
            node["limit"] = times - 1
        node["body"] = self.sequence(zone.inside(2 * times), 2)
        return self.asks(node)

    def asks(self, node: Node) -> Node:
        if self.chance(3):
            node["reads"] = True
        if self.chance(2):
            node["plain"] = True
        return node

    def pipeline(self, zone: Zone, name: str) -> Node:
        if zone.absorbed and self.chance(6):
            return self.hanging(name)
        return {"kind": "pipeline", "name": name, "body": self.sequence(zone.inside(), 2)}

    def hanging(self, name: str) -> Node:
        """Return a step that never ends and has a time limit."""
        leaf = {"kind": "leaf", "name": "hangs", "end": "hangs", "context": self.pick("lines", "last")}
        return {"kind": "pipeline", "name": name, "timeout": SHORT_S, "body": [leaf]}

    def fallback(self, zone: Zone, name: str) -> Node:
        half = zone.inside(2)
        primary = self.hanging(name) if self.chance(4) else self.node(replace(half, absorbed=True), name)[-1]
        if primary["kind"] == "map":
            source = {"kind": "leaf", "name": "items", "gives": "list", "count": primary["items"]}
            primary = {"kind": "pipeline", "name": name, "body": [source, primary]}
        if primary["kind"] == "leaf" and self.chance(2):
            primary["end"] = "broken"
            primary.pop("fails", None)
        second = self.leaf(half, "second") if self.chance(2) else self.pipeline(half, "second")
        return {"kind": "fallback", "name": primary["name"], "primary": primary, "fallback": second}


def cost(spec: Sequence) -> int:
    """Return how many calls a sequence makes at most."""
    return sum(_COSTS[node["kind"]](node) for node in spec)


_COSTS: dict[str, Any] = {
    "leaf": lambda node: 1 + node.get("fails", 0) + node.get("once", 0),
    "parallel": lambda node: sum(map(cost, node["branches"].values())),
    "map": lambda node: node["items"] * cost(node["body"]),
    "branch": lambda node: 1 + max(map(cost, [*node["cases"].values(), node.get("otherwise", [])])),
    "loop": lambda node: node["times"] * (1 + cost(node["body"])),
    "pipeline": lambda node: cost(node["body"]),
    "fallback": lambda node: cost([node["primary"]]) + cost([node["fallback"]]),
}


@st.composite
def specs(draw: st.DrawFn) -> Sequence:
    """Descriptions of pipelines that come to their end, one or more of whose steps are composite."""
    builder = _Builder(draw)
    zone = Zone(budget=BUDGET)
    kind = builder.pick(*COMPOSITES)
    made = getattr(builder, kind)(zone, "main")
    spec: Sequence = [*(made if isinstance(made, list) else [made])]
    if builder.chance(2):
        spec.insert(0, builder.leaf(zone, "first"))
    if builder.chance(2):
        spec += builder.sequence(replace(zone, budget=max(1, BUDGET - cost(spec)), depth=2), 2)
    return spec


def kills() -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Up to four deaths: at which kind of point, how far on in percent, and by which signal."""
    point = st.sampled_from(["line", "line", "begin", "save", "saved", "ack"])
    signal = st.sampled_from([9, 9, 9, 15])
    return st.lists(st.tuples(point, st.integers(0, 99), signal), min_size=1, max_size=4)
