"""What is shown while something goes on: a run's steps, and how far a long reading of the store is.

On a terminal bars are drawn at the bottom, and are gone at the end; lines stay. Elsewhere there are lines only, and of
what can be counted nothing.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from flujo._ids import path_text
from flujo.cli.output import Screen, clean, cut, lasting, short, styled
from flujo.engine import HIDDEN
from flujo.execution.events import (
    Event,
    RunStarted,
    StepFailed,
    StepProgress,
    StepRetrying,
    StepSaved,
    StepStarted,
)  # fmt: skip
from flujo.execution.failure import shown
from flujo.pipeline import Pipeline
from flujo.pipeline.control import MapOver
from flujo.state.models import StepRecord

Report = Callable[[int, int | None], None]


def make_bars(console: Console) -> Progress:
    """Return bars that are gone at the end. What they say is never read as markup."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=30),
        MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip


@contextlib.contextmanager
def counting(what: str, *, quiet: bool) -> Iterator[Report]:
    """Give what shows how much is done, of how much: a bar on stderr, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with make_bars(Console(file=sys.stderr, markup=False, highlight=False, emoji=False)) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class RunView:
    """A hook that shows a run.

    On a terminal there are a line for each top-level step and each failure, a bar of the run, and one of the step that
    is under way, which counts the items of a map. Elsewhere there is a line for each step, also inside of others.
    """

    def __init__(self, screen: Screen, *, quiet: bool, live: bool) -> None:
        self._screen, self._quiet = screen, quiet
        self._bars = make_bars(screen.console) if live else None
        self._run: TaskID | None = None
        self._steps: dict[tuple[str, ...], TaskID] = {}
        self._total: int | None = None  # top-level steps
        self._maps: dict[str, str] = {}  # the last step of an item, by the map's name
        self._last: Any = None  # what the next top-level step is given
        self._lock = threading.Lock()  # a plain step reports from its own thread

    def expect(self, pipeline: Pipeline[Any, Any], given: Any) -> None:
        """Say which steps there are, and what the first one to be executed is given, as far as that is known."""
        self._total, self._last = len(pipeline.steps), given
        self._maps = {
            step.name: step.bodies[0][1].steps[-1].name for step in pipeline.steps if isinstance(step.control, MapOver)
        }

    def __enter__(self) -> RunView:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show what happened."""
        with self._lock:
            try:
                self._hear(event)
            except BrokenPipeError:  # nobody reads any more: the run goes on all the same
                self._quiet = True

    def _hear(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._begin(event)
            case StepStarted() if len(event.path) == 1:
                self._bar(event.path)
            case StepProgress():
                self._bar(event.path, event.done, event.total)
            case StepRetrying():
                again = f"attempt {event.attempt} failed, the next in {lasting(event.delay_s)}: {shown(event.error)}"
                self._say(path_text(event.path), styled("paused", "retry"), again)
            case StepSaved() | StepFailed():
                self._ended(event.result)
            case _:
                pass

    def _begin(self, event: RunStarted) -> None:
        if not self._quiet:
            what = "starts" if event.index == 0 else f"goes on after step {event.index}"
            name = f"{event.pipeline_name} {event.pipeline_version}"
            self._screen.show(Text(clean(f"run {event.run_id} of {name} {what}")))
        if self._bars is not None and self._run is None:
            self._run = self._bars.add_task(cut(clean(event.run_id), 40), total=self._total, completed=event.index)

    def _bar(self, path: tuple[str, ...], done: float | None = None, total: float | None = None) -> None:
        if self._bars is None or self._quiet:
            return
        if path not in self._steps:
            self._steps[path] = self._bars.add_task("  " + cut(clean(path_text(path)), 40), total=None)
        if done is not None:
            self._bars.update(self._steps[path], completed=done, total=total)

    def _ended(self, record: StepRecord) -> None:
        if self._bars is not None:
            self._move(self._bars, record)
        if record.path[-1] in HIDDEN or (self._bars is not None and record.success and len(record.path) > 1):
            return
        tail = short(record.output) if record.success else cut(clean(record.feedback or ""), 200)
        text = f"{lasting(record.latency_s):>7}  {tail}"
        self._say(record.where, styled("ok" if record.success else "failed"), text, record.attempts)

    def _move(self, bars: Progress, record: StepRecord) -> None:
        path = record.path
        if path in self._steps:
            bars.remove_task(self._steps.pop(path))
        if len(path) == 1 and record.success:
            self._last = record.output
            if self._run is not None:
                bars.advance(self._run)
        top = self._steps.get(path[:1])
        if top is not None and len(path) == 3 and path[2] == self._maps.get(path[0]):
            bars.update(top, advance=1, total=len(self._last) if isinstance(self._last, list) else None)

    def _say(self, where: str, how: Text, text: str, attempts: int = 1) -> None:
        if self._quiet:
            return
        tries = f" ({attempts} attempts)" if attempts > 1 else ""
        self._screen.show(Text.assemble(f"  {clean(where):<24} ", how, f"  {clean(text)}{tries}"))


class Plainly(logging.Handler):
    """Shows what flujo logs as one line each, but for what the view of a run says itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record to stderr."""
        if record.funcName == "log_event":
            return
        with contextlib.suppress(Exception):
            sys.stderr.write(clean(f"flujo: {record.getMessage()}") + "\n")


@contextlib.contextmanager
def logging_plainly() -> Iterator[None]:
    """Show what flujo logs, unless the user's code has said where it goes."""
    logger = logging.getLogger("flujo")
    if logger.hasHandlers():
        yield
        return
    handler = Plainly(level=logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
