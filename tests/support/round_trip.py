"""One value of every kind, put into a store and looked at again, here or in a process that knows more or less.

``python -c "from tests.support import round_trip; round_trip.main()" KIND PATH DECLARED`` looks at a store in a new
process, and prints what is different.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Flag, StrEnum
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from flujo import FileBackend, Flujo, InMemoryBackend, Pipeline, SQLiteBackend, register_type, step
from flujo.testing.suite import values
from flujo.testing.suite.expect import difference
from flujo.testing.suite.values import Celsius, Samples, samples

T = TypeVar("T")
WAYS = ("a pipeline", "register_type", "nothing")


class Unit(StrEnum):
    """Its members are strings too."""

    PIECE = "piece"


class Marks(Flag):
    """Members combine to values without a name."""

    NEW = 1
    SOLD = 2


@dataclass(slots=True)
class Base:
    """A dataclass of which there is a subclass."""

    amount: int | str
    unit: Unit = Unit.PIECE


@dataclass(slots=True)
class Derived(Base):
    """More than what is declared."""

    marks: Marks = Marks.NEW | Marks.SOLD
    rest: dict[Any, Any] = field(default_factory=dict)


class Leaf(NamedTuple):
    """A tuple with names, in which another may stand."""

    value: Any
    parent: Leaf | None = None


class Box(BaseModel, Generic[T]):
    """A generic model."""

    held: T
    among: list[T]


@dataclass
class Everything:
    """What steps hand on: each field's value is of the declared type, or of one that only its tag tells."""

    samples: Samples
    declared: Base
    derived: Base | Derived
    either: list[int | float | str | bool | Unit | None]
    boxes: Box[Leaf]
    anything: Any


def everything() -> Everything:
    """Return new values."""
    leaf = Leaf((1, [2.0]), Leaf({3}))
    return Everything(
        samples=samples(),
        declared=Base("7"),
        derived=Derived(7, rest={1: Base(1), (2,): Celsius(0.0), "": Derived("x")}),
        either=[1, 1.0, "1", True, Unit.PIECE, None],
        boxes=Box[Leaf](held=leaf, among=[leaf, Leaf(None)]),
        anything={"leaf": leaf, "derived": (Derived(1),), "box": Box[Leaf](held=leaf, among=[]), 5: [Unit.PIECE]},
    )


class Shelf(BaseModel):
    """The context."""

    kept: Any = None


@step
async def begin(given: Everything) -> Everything:
    return given


@step
async def keep(given: Everything, *, context: Shelf) -> Everything:
    context.kept = given
    return given


@step
async def end(given: Everything, *, context: Shelf) -> Everything:
    assert difference(everything(), given) is None
    assert difference(everything(), context.kept) is None
    return given


PIPELINE: Pipeline[Everything, Everything] = begin >> keep >> end


def opened(kind: str, path: Path) -> Any:
    """Return a backend on the store."""
    if kind == "memory":
        return InMemoryBackend()
    return SQLiteBackend(path) if kind == "sqlite" else FileBackend(path)


def runner(backend: Any) -> Flujo[Everything, Everything]:
    """Return what runs the pipeline."""
    values.register()
    return Flujo(PIPELINE, state_backend=backend, pipeline_name="round trip", context_model=Shelf)


def put(backend: Any) -> None:
    """Put the values there by a run, and by hand."""
    assert runner(backend).run(everything(), run_id="run").status == "completed"
    now = datetime(2026, 1, 1, tzinfo=UTC)
    state = {
        "run_id": "by hand", "pipeline_id": "p", "pipeline_name": "p", "pipeline_version": "1", "status": "running",
        "current_step_index": 1, "pipeline_context": {"kept": everything()}, "last_step_output": everything(),
        "created_at": now, "updated_at": now,
    }  # fmt: skip
    asyncio.run(backend.save_state("by hand", state))


def look(backend: Any) -> list[str]:
    """Return how what is in the store differs from what was put there."""
    found: dict[str, Any] = {}
    for run_id in ("run", "by hand"):
        state = asyncio.run(backend.load_state(run_id))
        found[f"output of {run_id}"] = state["last_step_output"]
        found[f"context of {run_id}"] = state["pipeline_context"]["kept"]
    found["input of run"] = state["input"] if (state := asyncio.run(backend.load_state("run"))) else None
    for record in asyncio.run(backend.history("run")):
        found[f"record {record.name}"] = record.output
    assert len(found) == 8
    return [f"{name}{problem}" for name, value in found.items() if (problem := difference(everything(), value))]


def declare(way: str, backend: Any) -> None:
    """Let this process know the types in one way."""
    if way == "a pipeline":
        runner(backend)
    elif way == "register_type":
        values.register()
        known = (Unit, Marks, Base, Derived, Leaf, Box, Box[Leaf], Everything)
        for cls in (*known, values.Point, values.Colour, values.Level, values.Pair, values.Order):
            register_type(cls)


def main() -> None:
    """Look at a store in a process that knows the types in one way, and run what is to be run again."""
    kind, path, way = sys.argv[1:]
    backend = opened(kind, Path(path))
    declare(way, backend)
    if way == "nothing":
        state = asyncio.run(backend.load_state("by hand"))
        print(type(state["last_step_output"]).__name__, *sorted(state["unresolved"]))
    else:
        print(*look(backend), sep="\n")
        result = runner(backend).run(run_id="run")
        print(result.status, difference(everything(), result.output), difference(everything(), _kept(result)))
    asyncio.run(backend.close())


def _kept(result: Any) -> Any:
    return result.final_pipeline_context.kept
