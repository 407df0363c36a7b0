"""Descriptions of nested pipelines as JSON data, and the pipelines that they describe.

A sequence is a list of nodes, a node a dict with a `kind`, a `name`, and by kind:

leaf      `plain` (no coroutine); `context`: the field that it changes; `reads`: its output depends on the context that
          it sees; `fails`: the attempts that fail before one succeeds; `end`: "broken" fails for good, "picky" at
          some inputs, "stumbles" the first time of all and has no retries, "hangs" never ends; `once`: how many durable
          calls it makes; `gives` and `count`: its output is a collection
parallel  `branches`: sequences by name
map       `body`, `items`: how many it is given; `concurrency`, `collect`, `tolerated`, `successful`
branch    `cases`: sequences by name, `default`: a case's name, `otherwise`: a sequence; `strays`: the choice may be a
          case that there is not; `reads`
loop      `body`, `times`, `limit`, `reads`
pipeline  `body`
fallback  `primary` and `fallback`: nodes; its name is the primary's

Those with something inside may have a `timeout` in seconds; it runs out where a leaf in there hangs, and not else.

What leaves compute and how decisions fall is plain arithmetic on what they are given, so that an interpreter that
knows nothing of flujo comes to the same.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Annotated, Any, Protocol

from pydantic import BaseModel

from flujo import Merge, Pipeline, Step, current_step, once, step

Path = tuple[str, ...]
Node = dict[str, Any]
Sequence = list[Node]

OWN = ("f0", "f1", "f2", "f3", "f4", "f5")  # fields that one leaf alone changes
FIELDS = ("lines", "total", "last", "marks", *OWN)
DIRT = "left by a failed attempt"


class Notes(BaseModel):
    """The context of all described pipelines."""

    lines: Annotated[list[str], Merge.APPEND] = []
    total: Annotated[int, Merge.ADD] = 0
    last: Annotated[str, Merge.LAST] = ""
    marks: Annotated[set[str], Merge.UNION] = set()
    f0: str = ""
    f1: str = ""
    f2: str = ""
    f3: str = ""
    f4: str = ""
    f5: str = ""


class Writes(Protocol):
    """What pipelines tell of themselves; `tests.support.nested_child.Trace` writes it into a journal."""

    def begin(self, path: Path, given: Any, seen: Any) -> None:
        """A function is called."""

    def end(self, path: Path) -> None:
        """It is about to return."""

    def fail(self, path: Path) -> None:
        """It is about to raise."""

    def failures(self, path: Path) -> int:
        """Return how often it has raised, in all processes."""

    def acknowledged(self, path: Path) -> bool:
        """Return whether what it returned is known to be saved."""


# What leaves compute.


def canonical(value: Any) -> Any:
    """Return what tells a value from any other, types and the order of dicts included."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return kind, [(canonical(key), canonical(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return kind, [canonical(item) for item in value]
    if isinstance(value, set):
        return kind, sorted(value)
    if kind == "ItemError":
        return "failed", value.index
    return value


def mix(*values: Any) -> int:
    """Return a number that depends on all of it."""
    return zlib.crc32(repr(canonical(values)).encode()) % 10_000


def sight(context: Any) -> int:
    """Return a number that depends on all fields of a context."""
    return mix(*[getattr(context, name) for name in FIELDS])


def shown(context: Any) -> dict[str, Any]:
    """Return a context as JSON data."""
    return {name: sorted(value) if isinstance(value := getattr(context, name), set) else value for name in FIELDS}


def takes_context(node: Node) -> bool:
    return bool(node.get("context") or node.get("reads"))


def change(node: Node, path: Path, context: Any) -> None:
    """Change the context as a leaf does."""
    field = node.get("context")
    mark = "/".join(path)
    if field == "lines":
        context.lines.append(mark)
    elif field == "marks":
        context.marks.add(mark)
    elif field == "total":
        context.total += mix(mark)
    elif field:
        setattr(context, field, mark)


def output_of(node: Node, given: Any, parts: list[int], seen: int) -> Any:
    """Return what a leaf returns."""
    number = mix(node["name"], given, parts, seen)
    items = [number + index for index in range(node.get("count", 0))]
    match node.get("gives"):
        case None:
            return number
        case "list":
            return items
        case "tuple":
            return tuple(items)
        case "set":
            return set(items)
        case "dict":
            return {f"key {item}": item for item in items}
    raise AssertionError(node)


def breaks(node: Node, given: Any) -> bool:
    """Return whether a leaf fails for good."""
    return node.get("end") == "broken" or (node.get("end") == "picky" and mix(given) % 2 == 1)


def part_of(index: int, given: Any) -> int:
    """Return what durable call number `index` of a leaf returns."""
    return mix("part", index, given)


def case_of(node: Node, given: Any, seen: int) -> str:
    """Return the case that a branch chooses."""
    cases = [*node["cases"], *(["nowhere"] if node.get("strays") else [])]
    return cases[mix(given, seen) % len(cases)]


def is_done(node: Node, iteration: int, given: Any, seen: int) -> bool:
    """Return whether a loop is done after that iteration."""
    early = bool(node.get("reads")) and mix(given, seen) % 4 == 0
    return iteration >= node["times"] or early


# The pipelines.


def build(spec: Sequence, trace: Writes, name: str | None = "nested") -> Pipeline[Any, Any]:
    """Return the pipeline of a description."""
    return Pipeline.of(*[step_of(node, trace) for node in spec], name=name)


def step_of(node: Node, trace: Writes) -> Step[Any, Any]:
    """Return the step of a node."""
    found = _untimed(node, trace)
    return found.with_timeout(node["timeout"]) if "timeout" in node else found


def _untimed(node: Node, trace: Writes) -> Step[Any, Any]:
    name = node["name"]

    def inner(body: Sequence) -> Pipeline[Any, Any]:
        return build(body, trace, None)

    match node["kind"]:
        case "leaf":
            return _leaf(node, trace)
        case "parallel":
            return Step.parallel(name, **{key: inner(body) for key, body in node["branches"].items()})
        case "map":
            options = {
                "max_concurrency": node["concurrency"],
                "on_error": "collect" if node.get("collect") else "fail",
                "min_successful": node.get("successful"),
                "tolerated_failures": node.get("tolerated"),
            }
            return Step.map_over(name, inner(node["body"]), **options)
        case "branch":
            default = inner(node["otherwise"]) if "otherwise" in node else node.get("default")
            cases = {key: inner(body) for key, body in node["cases"].items()}
            return Step.branch_on(name, by=_decision(node, trace, _choice), default=default, **cases)
        case "loop":
            until = _decision(node, trace, _exit)
            return Step.loop_until(name, inner(node["body"]), until=until, max_iterations=node["limit"])
        case "pipeline":
            return inner(node["body"]).as_step(name)
        case "fallback":
            return step_of(node["primary"], trace).fallback(step_of(node["fallback"], trace))
    raise AssertionError(node)


class _Leaf:
    """What the function of a leaf does, but for awaiting."""

    def __init__(self, node: Node, trace: Writes) -> None:
        self.node, self.trace = node, trace

    def begin(self, given: Any, context: Any) -> Path:
        path = current_step().path
        self.trace.begin(path, mix(given), sight(context) if context is not None else None)
        return path

    def end(self, path: Path, given: Any, context: Any, parts: list[int]) -> Any:
        node, trace = self.node, self.trace
        seen = sight(context) if node.get("reads") else 0
        if context is not None:
            change(node, path, context)
        stumbles = node.get("fails", 0) + (node.get("end") == "stumbles")
        if breaks(node, given) or trace.failures(path) < stumbles:
            if context is not None:
                context.lines.append(DIRT)
            trace.fail(path)
            raise ConnectionError(f"{'/'.join(path)} is out of order")
        trace.end(path)
        return output_of(node, given, parts, seen)


def _leaf(node: Node, trace: Writes) -> Step[Any, Any]:
    leaf = _Leaf(node, trace)

    async def run(given: Any, context: Any) -> Any:
        path = leaf.begin(given, context)
        for _ in range(mix(path) % 3):  # so that neighbours finish in any order
            await asyncio.sleep(0)

        async def part(index: int, given: Any) -> int:
            called = current_step().path
            trace.begin(called, mix(given), None)
            await asyncio.sleep(0)
            trace.end(called)
            return part_of(index, given)

        if node.get("end") == "hangs":
            change(node, path, context)
            await asyncio.Event().wait()
        parts = [await once(f"part-{index}", part, index, given) for index in range(node.get("once", 0))]
        return leaf.end(path, given, context, parts)

    def plain(given: Any, context: Any) -> Any:
        return leaf.end(leaf.begin(given, context), given, context, [])

    return step(name=node["name"], retries=[0.0] * node.get("fails", 0))(_function(node, run, plain))


def _function(node: Node, run: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the signature that the node wants."""

    async def both(given: Any, *, context: Notes) -> Any:
        return await run(given, context)

    async def alone(given: Any) -> Any:
        return await run(given, None)

    def plain_both(given: Any, *, context: Notes) -> Any:
        return plain(given, context)

    def plain_alone(given: Any) -> Any:
        return plain(given, None)

    if node.get("plain"):
        return plain_both if takes_context(node) else plain_alone
    return both if takes_context(node) else alone


Answer = Callable[[Node, Path, Any, int, bool], Any]


def _decision(node: Node, trace: Writes, answer: Answer) -> Callable[..., Any]:
    """Return a function that answers otherwise when it is asked again, once its first answer is known to be saved."""

    def plain(given: Any, context: Any) -> Any:
        path = current_step().path
        trace.begin(path, mix(given), sight(context) if context is not None else None)
        seen = sight(context) if node.get("reads") else 0
        found = answer(node, path, given, seen, trace.acknowledged(path))
        trace.end(path)
        return found

    async def run(given: Any, context: Any) -> Any:
        await asyncio.sleep(0)
        return plain(given, context)

    return _function(node, run, plain)


def _choice(node: Node, path: Path, given: Any, seen: int, again: bool) -> str:
    chosen = case_of(node, given, seen)
    if not again:
        return chosen
    return next((case for case in [*node["cases"], "nowhere"] if case != chosen), chosen)


def _exit(node: Node, path: Path, given: Any, seen: int, again: bool) -> bool:
    return is_done(node, int(path[-2].removeprefix("#")), given, seen) is not again
