"""Descriptions of nested pipelines that several tests run."""

from __future__ import annotations

from typing import Any

from tests.support.nested_pipelines import Node, Sequence

FETCH: Node = {"kind": "leaf", "name": "fetch"}
LEAF: Node = {"kind": "leaf", "name": "leaf", "context": "lines", "reads": True}
EVERYTHING: Sequence = [
    {"kind": "leaf", "name": "items", "gives": "list", "count": 4},
    {"kind": "map", "name": "map", "items": 4, "concurrency": 2, "body": [
        {"kind": "parallel", "name": "parallel", "branches": {"left": [LEAF], "right": [LEAF]}},
        LEAF,
    ]},
    {"kind": "loop", "name": "loop", "times": 3, "limit": 5, "body": [
        {"kind": "branch", "name": "branch", "cases": {"big": [LEAF], "small": [{**LEAF, "once": 2}]}},
        {"kind": "pipeline", "name": "pipeline", "body": [
            {"kind": "fallback", "name": "leaf", "primary": {**LEAF, "end": "broken"}, "fallback": LEAF},
        ]},
    ]},
]  # fmt: skip


def over_items(count: int, concurrency: int, body: list[dict[str, Any]]) -> Sequence:
    """Return a step that gives so many items, and a map over them."""
    return [
        {"kind": "leaf", "name": "numbers", "gives": "list", "count": count},
        {"kind": "map", "name": "enrich", "items": count, "concurrency": concurrency, "body": body},
    ]


def deep() -> Sequence:
    """Return a map inside a loop inside a branch, some of whose steps take or change the context."""
    items = over_items(6, 3, [{**FETCH, "context": "lines", "reads": True}, {"kind": "leaf", "name": "score"}])
    loop = {"kind": "loop", "name": "pages", "times": 5, "limit": 9, "body": [*items, {"kind": "leaf", "name": "sum"}]}
    case = [{"kind": "leaf", "name": "before"}, loop]
    return [
        {"kind": "branch", "name": "route", "cases": {"big": case, "small": case}},
        {"kind": "leaf", "name": "last"},
    ]
