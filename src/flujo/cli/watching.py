"""`watch`: a run as its store knows it, until it has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from flujo.cli.code import registry_of
from flujo.cli.command import Commands, Session, head_of
from flujo.cli.faults import BAD, WELL
from flujo.cli.output import Answer, clean, cut, lasting, short, styled
from flujo.cli.reading import RunId, described, last_records
from flujo.engine import HIDDEN
from flujo.errors import FlujoError
from flujo.pipeline import Pipeline
from flujo.pipeline.progress import RUNNING, read_progress
from flujo.pipeline.progress import Progress as Reading_
from flujo.runner.opening import not_found
from flujo.runner.result import waiting_of
from flujo.state.backends.base import Reading, State, StateBackend
from flujo.state.models import StepRecord

commands = Commands()
ENDED = ("completed", "failed", "cancelled")
_ITEMS = ">items"
_LINES = 12  # of the newest steps


class Sight:
    """What is known of a run that is watched: its state, and its records as far as they were read."""

    def __init__(self, backend: StateBackend, run_id: str, pipeline: Pipeline[Any, Any] | None) -> None:
        self._backend, self._run_id, self._pipeline = backend, run_id, pipeline
        self.state: State = {}
        self.records: list[StepRecord] = []
        self.left_out = 0

    async def look(self) -> list[StepRecord]:
        """Read what is new; return the new records. Raises RunNotFoundError."""
        state = await head_of(self._backend, self._run_id)
        if state is None:
            raise not_found(self._run_id)
        first = not self.state
        self.state = state
        if not isinstance(self._backend, Reading):
            new = list(state.get("step_history") or ())[len(self.records) :]
        elif first:
            new, self.left_out = await last_records(self._backend, state, 5000)
        else:
            new = await self._backend.history(self._run_id, after=self.left_out + len(self.records))
        self.records += new
        return new

    def bars(self) -> list[tuple[str, int, int | None]]:
        """Return what can be counted: the run's steps, and the items of each map that goes on."""
        state = self.state
        found = [("steps", state["current_step_index"], state.get("total_steps"))]
        return found + (self._counts() if state["status"] not in ENDED else [])

    def _counts(self) -> list[tuple[str, int, int | None]]:
        if self._pipeline is None:
            return self._guessed()
        with contextlib.suppress(FlujoError):
            read = self._read(self._pipeline)
            return [
                ("/".join(path), count.done, count.total)
                for path, count in read.counts.items()
                if read.marks.get(path) == RUNNING or count.total != count.done
            ]
        return []

    def _read(self, pipeline: Pipeline[Any, Any]) -> Reading_:
        return read_progress(pipeline, {**self.state, "step_history": self.records})

    def _guessed(self) -> list[tuple[str, int, int | None]]:
        """Return what the records alone tell of maps: how many items have begun."""
        done = self.state["current_step_index"]
        items: dict[str, set[str]] = {}
        open_ = {record.path[0] for record in self.records} - {
            record.path[0] for record in self.records if len(record.path) == 1
        }
        for record in self.records:
            if record.path[0] in open_ and len(record.path) > 1 and record.path[1].startswith("["):
                items.setdefault(record.path[0], set()).add(record.path[1])
        given = self.state["last_step_output"] if done else self.state.get("input")
        total = len(given) if isinstance(given, list) else None
        return [(name, len(found), total) for name, found in items.items()]


@commands.add(
    "watch", code=True, example="flujo watch A7 --state runs.db\nflujo watch A7 --state runs.db --once --json"
)
def watch(
    session: Session,
    run_id: RunId,
    once: Annotated[bool, typer.Option("--once", help="Look once, and do not wait for the end.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.05, max=3600, metavar="SECONDS", help="How often to look.")
    ] = 0.5,
) -> Answer:
    """Watch a run until it has ended: 1 if it fails or is cancelled. With code, what is inside of steps is counted."""
    sight = Sight(session.backend(), run_id, _pipeline_of(session, run_id))
    with _shown(session, sight, live=session.live and not once) as update:
        session.wait(_watched(sight, update, once, interval))
    state = sight.state
    shown: list[Any] = [_head(state)]
    if once:
        shown += [Text(f"  {line}") for line in map(_bar_text, sight.bars())]
    shown += [Text("  " + clean(found)) for found in waiting_of(state.get("waiting"))]
    bad = state["status"] in ("failed", "cancelled") and not once
    document = described(state) | {
        "progress": [{"what": what, "done": done, "total": total} for what, done, total in sight.bars()]
    }
    return Answer(document=document, shown=shown, code=BAD if bad else WELL)


def _pipeline_of(session: Session, run_id: str) -> Pipeline[Any, Any] | None:
    if not session.has_code():
        return None
    state = session.state(run_id)
    with contextlib.suppress(FlujoError):  # other code can be watched all the same
        return registry_of(session.code()).get(state["pipeline_name"], state["pipeline_version"]).pipeline
    return None


async def _watched(sight: Sight, update: Any, once: bool, interval: float) -> None:
    while True:
        update(await sight.look())
        if once or sight.state["status"] in ENDED:
            return
        await asyncio.sleep(interval)


@contextlib.contextmanager
def _shown(session: Session, sight: Sight, *, live: bool) -> Iterator[Any]:
    """Give what is called after each look: on a terminal it draws, else it writes a line for each new step."""
    if not live:
        quiet, last = session.given.as_json, [""]

        def lines(new: list[StepRecord]) -> None:
            shown = [_line(record) for record in new if record.path[-1] not in HIDDEN]
            status = sight.state["status"]
            if last[0] and status != last[0] and status not in ENDED:
                shown.append(_head(sight.state))
            last[0] = status
            if not quiet:
                session.screen.show(*shown)

        yield lines
        return
    with Live(console=session.screen.console, transient=True, auto_refresh=False) as drawing:
        yield lambda new: drawing.update(_drawn(sight), refresh=True)


def _drawn(sight: Sight) -> Group:
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        auto_refresh=False,
    )
    for what, done, total in sight.bars()[:8]:
        bars.add_task(cut(clean(what), 40), completed=done, total=total)
    newest = [record for record in sight.records if record.path[-1] not in HIDDEN][-_LINES:]
    waits = [Text("  " + clean(found), "yellow") for found in waiting_of(sight.state.get("waiting"))]
    return Group(_head(sight.state), *map(_line, newest), *waits, bars)


def _head(state: State) -> Text:
    age = (state["updated_at"] - state["created_at"]).total_seconds()
    error = state.get("error") or {}
    line = Text.assemble(
        "run ", clean(state["run_id"]), " ", styled(state["status"]), f", {lasting(age)} after it began"
    )
    return line.append(cut(clean(f": {error.get('type')}: {error.get('text')}"), 300), "red") if error else line


def _line(record: StepRecord) -> Text:
    text = short(record.output) if record.success else cut(clean(record.feedback or ""), 200)
    how = styled("ok" if record.success else "failed")
    return Text.assemble(f"  {clean(record.where):<24} ", how, f"  {lasting(record.latency_s):>7}  {text}")


def _bar_text(bar: tuple[str, int, int | None]) -> str:
    what, done, total = bar
    return clean(f"{what}: {done}" + ("" if total is None else f" of {total}"))
