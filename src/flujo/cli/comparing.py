"""Commands that compare and draw: `diff`, `graph`."""

from __future__ import annotations

from itertools import zip_longest
from typing import Annotated, Any

import typer
from rich.text import Text

from flujo.cli.code import registry_of
from flujo.cli.command import Commands, Session, head_of
from flujo.cli.faults import BAD
from flujo.cli.output import Answer, clean, facts, plain, short
from flujo.cli.reading import last_records
from flujo.errors import ConfigurationError
from flujo.pipeline import Pipeline
from flujo.runner.flujo import Flujo
from flujo.runner.opening import not_found
from flujo.state.backends.base import Reading, State, StateBackend
from flujo.state.models import StepRecord

commands = Commands()
_PAGE = 500
_FACTS = (
    ("pipeline_name", "pipeline"), ("pipeline_version", "version"), ("input", "input")
)  # fmt: skip
_ENDS = (("status", "status"), ("current_step_index", "steps done"), ("last_step_output", "output"),
         ("pipeline_context", "context"), ("error", "error"))  # fmt: skip


@commands.add("diff", example="flujo diff A7 A7-again --state runs.db")
async def diff(
    session: Session,
    one: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run.")],
    other: Annotated[str, typer.Argument(metavar="OTHER_RUN_ID", help="Another run.")],
) -> Answer:
    """Show where two runs first differ: in code, input, a step's outcome, or how they stand. 1 where they do."""
    backend = session.backend()
    states: list[State] = []
    for run_id in (one, other):
        state = await head_of(backend, run_id)
        if state is None:
            raise not_found(run_id)
        states.append(state)
    found = await _first(backend, states[0], states[1])
    if found is None:
        return Answer(
            document={"same": True, "at": None}, shown=["They are the same in every step, and in how they stand."]
        )
    where, what, values = found
    document = {"same": False, "at": where, "what": what, "values": {one: values[0], other: values[1]}}
    pairs = {clean(name): short(value, 200) for name, value in zip((one, other), values, strict=True)}
    title = Text.assemble("They first differ ", f"at {clean(where)}, in " if where else "in ", (what, "bold"), ":")
    shown = facts({f"  {name}": value for name, value in pairs.items()})
    return Answer(document=document, shown=[title, shown], code=BAD)


async def _first(backend: StateBackend, one: State, other: State) -> tuple[str | None, str, list[Any]] | None:
    """Return where two runs first differ, in what, and the values there."""
    for name, called in _FACTS:
        if (values := _pair(one, other, name)) is not None:
            return None, called, values
    found = await _first_step(backend, one, other)
    if found is not None:
        return found
    for name, called in _ENDS:
        if (values := _pair(one, other, name)) is not None:
            return None, called, values
    return None


def _pair(one: State, other: State, name: str) -> list[Any] | None:
    values = [_known(plain(state.get(name))) for state in (one, other)]
    return values if values[0] != values[1] else None


def _known(value: Any) -> Any:
    """Return the value without what differs between any two failures: where in the code they were raised."""
    return {name: part for name, part in value.items() if name != "traceback"} if isinstance(value, dict) else value


async def _first_step(backend: StateBackend, one: State, other: State) -> tuple[str, str, list[Any]] | None:
    after = 0
    while True:
        pages = [await _page(backend, state, after) for state in (one, other)]
        for left, right in zip_longest(*pages):
            if (found := _difference(left, right)) is not None:
                return found
        if max(map(len, pages)) < _PAGE:
            return None
        after += _PAGE


async def _page(backend: StateBackend, state: State, after: int) -> list[StepRecord]:
    if isinstance(backend, Reading):
        return await backend.history(state["run_id"], after=after, limit=_PAGE)
    records, _ = await last_records(backend, state, 1 << 30)
    return records[after : after + _PAGE]


def _difference(left: StepRecord | None, right: StepRecord | None) -> tuple[str, str, list[Any]] | None:
    if left is None or right is None:
        there = left or right
        assert there is not None
        return there.where, "whether it was done", [left is not None, right is not None]
    if left.path != right.path:
        return left.where, "which step it is", [left.where, right.where]
    for name, called in (("success", "success"), ("output", "output"), ("feedback", "error")):
        values = [plain(getattr(record, name)) for record in (left, right)]
        if values[0] != values[1]:
            return left.where, called, values
    return None


@commands.add("graph", code=True, example="flujo graph --code shop:runner --run A7 --state runs.db > A7.mmd")
def graph(
    session: Session,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN_ID", help="Colour it by how far this run is.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--pipeline-version", help="By default the run's, else the newest.")
    ] = None,
) -> Answer:
    """Print a pipeline as the text of a Mermaid flowchart."""
    state = None
    if run is not None:
        state = session.state(run)
        history = session.wait(_history(session.backend(), run)) or state.get("step_history") or []
        state = {**state, "step_history": history}
    pipeline, name, of = _pipeline(session, state, version)
    text = pipeline.to_mermaid(state)
    return Answer(document={"pipeline_name": name, "pipeline_version": of, "mermaid": text}, shown=[text.rstrip("\n")])


async def _history(backend: StateBackend, run_id: str) -> list[StepRecord]:
    return await backend.history(run_id) if isinstance(backend, Reading) else []


def _pipeline(session: Session, state: State | None, version: str | None) -> tuple[Pipeline[Any, Any], str, str]:
    code = session.code()
    if isinstance(code, Flujo) and state is None and version is None and session.given.pipeline is None:
        entry = code._setup.code.for_new()
        return entry.pipeline, entry.name, entry.version
    registry = registry_of(code)
    names = registry.names()
    name = (
        session.given.pipeline or (state["pipeline_name"] if state else None) or (names[0] if len(names) == 1 else None)
    )
    if name is None:
        raise ConfigurationError(f"The registry holds {', '.join(names) or 'nothing'}.", hint="Give --pipeline NAME.")
    entry = registry.get(name, version or (state["pipeline_version"] if state else "latest"))
    return entry.pipeline, entry.name, entry.version
