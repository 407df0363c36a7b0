"""A pipeline as the text of a Mermaid flowchart, and with a run's state the same one coloured by how far it is.

Nodes and frames have ids of their own making (n1, n2, ...), and whatever a user has named stands in quotes with every
mark written as a number: no name can become a part of the diagram's own syntax. All links come last, since Mermaid
takes a node that it meets in a link to be declared there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from flujo.pipeline.composites import FALLBACK, PRIMARY, AnyPipeline, AnyStep
from flujo.pipeline.control import AskPerson, AwaitSignal, BranchOn, LoopUntil, MapOver, Sleep
from flujo.pipeline.progress import DONE, FAILED, RUNNING, WAITING, Path, Progress, RunState, read_progress

_COLOURS = {
    DONE: "fill:#d3f9d8,stroke:#2b8a3e,color:#000",
    RUNNING: "fill:#d0ebff,stroke:#1971c2,color:#000,stroke-width:3px",
    FAILED: "fill:#ffe3e3,stroke:#c92a2a,color:#000",
    WAITING: "fill:#fff3bf,stroke:#e67700,color:#000",
}
_SHAPES: dict[type[Any], tuple[str, str]] = {AskPerson: ("[/", "/]"), AwaitSignal: (">", "]"), Sleep: ("{{", "}}")}
_PLAIN = "_-,/"  # these mean nothing within quotes; "-" at the beginning would be a list


def draw(pipeline: AnyPipeline, state: RunState | None = None) -> str:
    """Return the flowchart; with a state, a result or step records also what is done, running, failed and waiting."""
    drawing = _Drawing(read_progress(pipeline, state) if state is not None else Progress())
    drawing.pipeline(pipeline, (), 1)
    lines = ["flowchart TD", *drawing.nodes, *drawing.links]
    if state is not None:
        lines += [f"    classDef {name} {look}" for name, look in _COLOURS.items()]
        lines += [f"    class {','.join(ids)} {name}" for name in _COLOURS if (ids := drawing.classes.get(name))]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return the text with every mark but the harmless ones as a number: `"` is `#34;`."""
    return "".join(
        char if char.isalnum() or char == " " or (char in _PLAIN and (place or char != "-")) else f"#{ord(char)};"
        for place, char in enumerate(text)
    )


class _Part(NamedTuple):
    """What was drawn of a step: the id where its input arrives, those that its output leaves, and that of all of it."""

    entry: str
    exits: tuple[str, ...]
    whole: str


class _Drawing:
    """The lines of a flowchart, as they are found on the way through a pipeline."""

    def __init__(self, progress: Progress) -> None:
        self.nodes: list[str] = []
        self.links: list[str] = []
        self.classes: dict[str, list[str]] = {}
        self._progress = progress
        self._count = 0

    def pipeline(self, found: AnyPipeline, path: Path, level: int) -> _Part:
        """Draw the steps and join them; as a whole they are the first one's."""
        parts = [self._step(step, (*path, step.name), level) for step in found.steps]
        for before, after in pairwise(parts):
            self._link(before.exits, after.entry)
        return _Part(parts[0].entry, parts[-1].exits, parts[0].whole)

    def _step(self, step: AnyStep, path: Path, level: int) -> _Part:
        if not step.bodies:
            left, right = _SHAPES.get(type(step.control), ("[", "]"))
            return self._single(self._node(f'{left}"{self._title(step, path)}"{right}', path, level))
        if step.kind == "branch":
            return self._branch(step, path, level)
        whole = self._id(path)
        self.nodes.append(f'{"    " * level}subgraph {whole}["{self._title(step, path)}"]')
        entry, exits, _ = _FRAMED[step.kind](self, step, path, level + 1)
        self.nodes.append(f"{'    ' * level}end")
        return _Part(entry, exits, whole)

    def _title(self, step: AnyStep, path: Path) -> str:
        name, control = escaped(step.name), step.control
        if isinstance(control, LoopUntil):
            return f"{name}: at most {control.max_iterations} times"
        if isinstance(control, AskPerson):
            return f"{name}: {control.quorum} people answer" if control.quorum > 1 else f"{name}: a person answers"
        if isinstance(control, AwaitSignal):
            return f"{name}: signal" + (f" {escaped(control.signal)}" if control.signal != step.name else "")
        if not isinstance(control, MapOver):
            return name
        title = f"{name}: for each item, {control.max_concurrency} at a time"
        count = self._progress.counts.get(path)
        if count is not None:
            title += f", {count.done}/{count.total} done" if count.total is not None else f", {count.done} done"
            title += f", {count.failed} failed" if count.failed else ""
        return title

    def _parallel(self, step: AnyStep, path: Path, level: int) -> _Part:
        fork = self._node('(["fork"])', None, level)
        bodies = [(key, self.pipeline(body, (*path, key), level)) for key, body in step.bodies]
        join = self._node('(["join"])', None, level)
        for key, part in bodies:
            self._link([fork], part.entry, escaped(key))
            self._link(part.exits, join)
        return _Part(fork, (join,), fork)

    def _branch(self, step: AnyStep, path: Path, level: int) -> _Part:
        choice = self._node(f'{{"{escaped(step.name)}"}}', path, level)
        default = step.control.default if isinstance(step.control, BranchOn) else None
        exits: list[str] = []
        for key, body in step.bodies:
            part = self.pipeline(body, (*path, key), level)
            marked = f"{escaped(key)} (default)" if key == default and key != "default" else escaped(key)
            self._link([choice], part.entry, marked)
            exits += part.exits
        return _Part(choice, tuple(exits), choice)

    def _loop(self, step: AnyStep, path: Path, level: int) -> _Part:
        body = self.pipeline(step.bodies[0][1], path, level)
        test = self._node('{"until"}', (*path, ">exit"), level)
        self._link(body.exits, test)
        self._link([test], body.entry, "again")
        return _Part(body.entry, (test,), test)

    def _fallback(self, step: AnyStep, path: Path, level: int) -> _Part:
        bodies = dict(step.bodies)
        first = self.pipeline(bodies[PRIMARY], (*path, PRIMARY), level)
        second = self.pipeline(bodies[FALLBACK], (*path, FALLBACK), level)
        self._link([first.whole], second.entry, "on failure", arrow="-.->")
        return _Part(first.entry, first.exits + second.exits, first.whole)

    def _only(self, step: AnyStep, path: Path, level: int) -> _Part:
        return self.pipeline(step.bodies[0][1], path, level)

    def _single(self, node: str) -> _Part:
        return _Part(node, (node,), node)

    def _node(self, shape: str, path: Path | None, level: int) -> str:
        node = self._id(path)
        self.nodes.append(f"{'    ' * level}{node}{shape}")
        return node

    def _id(self, path: Path | None) -> str:
        self._count += 1
        found = f"n{self._count}"
        mark = self._progress.marks.get(path, "") if path is not None else ""
        if mark:
            self.classes.setdefault(mark, []).append(found)
        return found

    def _link(self, sources: Sequence[str], target: str, label: str = "", *, arrow: str = "-->") -> None:
        said = f'|"{label}"|' if label else ""
        self.links += [f"    {source} {arrow}{said} {target}" for source in sources]


_FRAMED = {
    "parallel": _Drawing._parallel,
    "map": _Drawing._only,
    "pipeline": _Drawing._only,
    "loop": _Drawing._loop,
    "fallback": _Drawing._fallback,
}
