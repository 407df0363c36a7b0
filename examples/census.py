"""A pipeline over real input: which modules of the standard library does everything else stand on?

discover -> parse -> measure -> rank -> report, typed from end to end. The steps are plain functions (they run off the
event loop), their outputs are frozen dataclasses, and what all of them share is the context, a pydantic model.
"""

from __future__ import annotations

import ast
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from pydantic import BaseModel

from flujo import CurrentStep, current_step, step

ROUNDS = 60  # of the ranking's power iteration
DAMPING = 0.85
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.IfExp, ast.BoolOp, ast.comprehension, ast.Match)
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


P = ParamSpec("P")
R = TypeVar("R")
WATCHERS: list[Callable[[CurrentStep], None]] = []


def watched(fn: Callable[P, R]) -> Callable[P, R]:
    """Let the function itself tell the watchers that it is called, so that nobody has to believe the runner."""

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for watcher in WATCHERS:
            watcher(current_step())
        return fn(*args, **kwargs)

    return wrapper


class Census(BaseModel):
    """The context: what the steps add to on the way."""

    folder: str  # where the report goes
    files: int = 0
    lines: int = 0
    unreadable: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file: the module's dotted name and where it lies."""

    module: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function: where it is, how many lines it has, and how many ways through it."""

    name: str
    line: int
    length: int
    branches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """What was read of one file."""

    name: str
    lines: int
    imports: tuple[str, ...]
    functions: tuple[Function, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One module in numbers; `weight` is its share of the attention in the graph of imports (they sum to 1)."""

    module: str
    lines: int
    importers: int
    weight: float
    worst: Function | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The modules that the others stand on, and the functions that are hardest to follow."""

    foundations: tuple[Measure, ...]
    labyrinths: tuple[Measure, ...]


@step
@watched
def discover(root: str, *, context: Census) -> list[Source]:
    """Find the modules below `root`, without packages of others and without tests."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(set(names) - LEFT_OUT)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder, file)
                parts = path.relative_to(root).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found.append(Source(module=name or "__init__", path=str(path)))
    context.files = len(found)
    return found


@step
@watched
def parse(sources: list[Source], *, context: Census) -> list[Module]:
    """Parse every file; one that is no Python is noted in the context and left out."""
    modules = []
    for done, source in enumerate(sources, start=1):
        try:
            text = Path(source.path).read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text, filename=source.path)
        except (OSError, SyntaxError, ValueError):
            context.unreadable.append(source.module)
            continue
        modules.append(_outline(source.module, text, tree))
        current_step().progress(done, len(sources))
    context.lines = sum(module.lines for module in modules)
    return modules


@step(retries=2)
@watched
def measure(modules: list[Module]) -> list[Measure]:
    """Weigh the modules by who imports them: a module weighs much that is imported by modules that weigh much."""
    known = {module.name for module in modules}
    targets = {module.name: _within(module.imports, known) for module in modules}
    weights = dict.fromkeys(known, 1 / len(known))
    for turn in range(ROUNDS):
        shares = dict.fromkeys(known, 0.0)
        lost = sum(weight for name, weight in weights.items() if not targets[name])
        for name, wanted in targets.items():
            for target in wanted:
                shares[target] += weights[name] / len(wanted)
        base = (1 - DAMPING + DAMPING * lost) / len(known)
        weights = {name: base + DAMPING * share for name, share in shares.items()}
        current_step().progress(turn + 1, ROUNDS)
    importers = dict.fromkeys(known, 0)
    for wanted in targets.values():
        for target in wanted:
            importers[target] += 1
    return [
        Measure(
            module=module.name,
            lines=module.lines,
            importers=importers[module.name],
            weight=weights[module.name],
            worst=max(module.functions, key=lambda function: function.branches, default=None),
        )
        for module in modules
    ]


@step
@watched
def rank(measures: list[Measure]) -> Ranking:
    """Take the ten heaviest modules, and the five with the most branching function."""
    heavy = sorted(measures, key=lambda found: (-found.weight, found.module))
    branching = sorted(measures, key=lambda found: (-(found.worst.branches if found.worst else 0), found.module))
    return Ranking(foundations=tuple(heavy[:10]), labyrinths=tuple(branching[:5]))


@step
@watched
def report(ranking: Ranking, *, context: Census) -> str:
    """Write the report and return its path. It is written whole under its final name, so that twice is once."""
    path = Path(context.folder, "report.md")
    draft = path.with_suffix(".tmp")
    draft.write_text("\n".join(_lines(ranking, context)) + "\n", encoding="utf-8")
    draft.replace(path)
    return str(path)


pipeline = (discover >> parse >> measure >> rank >> report).named("census")


def _outline(name: str, text: str, tree: ast.Module) -> Module:
    imports: set[str] = set()
    functions = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= set(_imported(name, node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            branches = sum(isinstance(inner, BRANCHES) for inner in ast.walk(node))
            functions.append(Function(name=node.name, line=node.lineno, length=length, branches=branches))
    return Module(name=name, lines=text.count("\n"), imports=tuple(sorted(imports)), functions=tuple(functions))


def _imported(name: str, node: ast.ImportFrom) -> Iterator[str]:
    start = name.split(".")[: -node.level or None] if node.level else []
    base = ".".join([*start, *([node.module] if node.module else [])])
    yield base
    for alias in node.names:
        yield f"{base}.{alias.name}"


def _within(names: tuple[str, ...], known: set[str]) -> list[str]:
    return sorted(known.intersection(names))


def _lines(ranking: Ranking, context: Census) -> Iterator[str]:
    yield f"# {context.files:,} modules, {context.lines:,} lines"
    yield ""
    yield "What the rest of the standard library stands on:"
    yield ""
    for place, found in enumerate(ranking.foundations, start=1):
        bar = "#" * max(1, round(found.weight * 200))
        yield f"{place:3}. {found.module:18} imported by {found.importers:3}  {bar}"
    yield ""
    yield "Where one gets lost:"
    yield ""
    for found in ranking.labyrinths:
        if found.worst is not None:
            where = f"{found.module}.{found.worst.name}, line {found.worst.line}"
            yield f"  {where:44} {found.worst.branches:3} branches in {found.worst.length} lines"
    if context.unreadable:
        yield ""
        yield f"Not readable: {', '.join(context.unreadable)}"
