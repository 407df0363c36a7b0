"""Commands that only look: `list`, `show`, `inbox`, `messages`, `stats`, `failures`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.text import Text

from flujo.cli.command import Commands, Session, head_of
from flujo.cli.output import Answer, clean, cut, facts, iso, lasting, plain, short, styled, table, tree, when
from flujo.cli.store import opened, reading
from flujo.engine import HIDDEN
from flujo.runner.opening import not_found
from flujo.runner.result import WaitingFor, waiting_of
from flujo.state.backends._admin import AdminQueries
from flujo.state.backends._log import LogBackend
from flujo.state.backends.base import Reading, RunSummary, State, StateBackend
from flujo.state.codec import Codec
from flujo.state.mail import Message
from flujo.state.models import StepRecord

commands = Commands()
PEOPLE = ("human", "crash")
_PAGE = 200
_MOST = 1000  # paused runs that `inbox` looks at, at most


class Status(StrEnum):
    """How a run stands."""

    running = "running"
    paused = "paused"
    completed = "completed"
    failed = "failed"
    cancelled = "cancelled"


def run_ids(context: typer.Context, _args: list[str], incomplete: str) -> list[str]:
    """Complete the id of a run: the newest that begin with what is typed."""
    given = context.params.get("state") or (context.obj.state if context.obj else None)
    found: list[str] = []
    try:
        found = asyncio.run(_newest(given))
    except Exception:  # nobody wants to read an error in the middle of a line
        return []
    return [run_id for run_id in found if run_id.startswith(incomplete)]


async def _newest(given: str | None) -> list[str]:
    backend = reading(opened(given, make=False))
    try:
        return [found.run_id for found in await backend.list_runs(limit=_PAGE)]
    finally:
        await backend.close()


RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run's id.", autocompletion=run_ids)]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")]


@commands.add("list", example="flujo list --state runs.db --status failed --limit 20")
async def list_(
    session: Session,
    status: Annotated[Status | None, typer.Option("--status", help="Only these.")] = None,
    of: Annotated[str | None, typer.Option("--pipeline", metavar="ID", help="Only runs of that pipeline.")] = None,
    limit: Limit = 50,
    after: Annotated[
        str | None, typer.Option("--after", metavar="RUN_ID", help="The page after the one that ended with this run.")
    ] = None,
) -> Answer:
    """List runs, the most recently updated first."""
    where = {name: value for name, value in (("status", status), ("pipeline_id", of)) if value is not None}
    backend = session.reading()
    runs = await backend.list_runs(where, limit=limit + 1, after=after)
    if after is not None and not runs and await backend.load_at(after) is None:
        raise not_found(after)
    more, runs = len(runs) > limit, runs[:limit]
    shown: list[Any] = [_listing(runs)] if runs else ["There are no such runs." if where else "There are no runs."]
    if more:
        shown.append(f"There are more: --after {clean(runs[-1].run_id)}")
    return Answer(document={"runs": list(map(summary, runs)), "next": runs[-1].run_id if more else None}, shown=shown)


def _listing(runs: Sequence[RunSummary]) -> Any:
    rows = [
        (run.run_id, run.pipeline_name, run.pipeline_version, styled(run.status), steps_of(run), when(run.updated_at),
         cut(clean(run.error_message or ""), 60))
        for run in runs
    ]  # fmt: skip
    return table(["run", "pipeline", "version", "status", ">steps", "updated (UTC)", "error"], rows)


def steps_of(run: RunSummary) -> str:
    """Return how far a run is: `2/3`."""
    return f"{run.current_step_index}/{'?' if run.total_steps is None else run.total_steps}"


def summary(run: RunSummary) -> dict[str, Any]:
    """Return a run of a listing as a document."""
    return {
        "run_id": run.run_id, "pipeline_id": run.pipeline_id, "pipeline_name": run.pipeline_name,
        "pipeline_version": run.pipeline_version, "status": run.status, "steps_done": run.current_step_index,
        "steps_total": run.total_steps, "error": run.error_message, "created_at": iso(run.created_at),
        "updated_at": iso(run.updated_at), "execution_time_ms": run.execution_time_ms, "due_at": iso(run.due_at),
    }  # fmt: skip


@commands.add("show", example="flujo show order-1 --state runs.db\nflujo show order-1 --json | jq .error.traceback")
async def show(
    session: Session,
    run_id: RunId,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="The last so many steps.")] = 100,
    full: Annotated[bool, typer.Option("--full", help="Whole outputs, and the traceback.")] = False,
) -> Answer:
    """Show a run: its steps as a tree, with timings, outputs and errors, its input, context and what it waits for."""
    backend = session.backend()
    state = await head_of(backend, run_id)
    if state is None:
        raise not_found(run_id)
    records, left_out = await last_records(backend, state, limit)
    document = described(state) | {"steps": list(map(step_of, records)), "steps_left_out": left_out}
    return Answer(document=document, shown=_shown(state, document, records, full=full))


async def last_records(backend: StateBackend, state: State, limit: int) -> tuple[list[StepRecord], int]:
    """Return the last step records of a run, and how many there are before them."""
    if not isinstance(backend, Reading):
        history = list(state.get("step_history") or ())
        return history[-limit:], max(0, len(history) - limit)
    left_out = max(0, state["history_offset"] - limit)
    return await backend.history(state["run_id"], after=left_out), left_out


def described(state: State) -> dict[str, Any]:
    """Return a run's state as a document, without its steps."""
    waiting = state.get("waiting") or {}
    return {
        "run_id": state["run_id"], "pipeline_id": state["pipeline_id"], "pipeline_name": state["pipeline_name"],
        "pipeline_version": state["pipeline_version"], "status": state["status"], "phase": state.get("phase"),
        "steps_done": state["current_step_index"], "steps_total": state.get("total_steps"),
        "created_at": iso(state["created_at"]), "updated_at": iso(state["updated_at"]),
        "due_at": iso(state.get("due_at")), "deadline": iso(state.get("deadline")),
        "input": plain(state.get("input")),
        "output": plain(state["last_step_output"]) if state["current_step_index"] else None,
        "context": plain(state["pipeline_context"]), "error": plain(state.get("error")),
        "waiting": [wait_of(found) for found in waiting_of(waiting)], "cancelled": plain(waiting.get("cancel")),
    }  # fmt: skip


def wait_of(found: WaitingFor) -> dict[str, Any]:
    """Return what a run waits for as a document."""
    return {
        "kind": found.kind, "step": found.step, "message": found.message, "signal": found.signal,
        "schema": plain(found.schema), "since": iso(found.since), "until": iso(found.until), "quorum": found.quorum,
        "voters": found.voters, "by": found.by,
    }  # fmt: skip


def step_of(record: StepRecord) -> dict[str, Any]:
    """Return a step record as a document."""
    return {
        "path": record.where, "success": record.success, "attempts": record.attempts, "seconds": record.latency_s,
        "output": plain(record.output), "error": record.feedback, "by": record.by,
    }  # fmt: skip


def _shown(state: State, document: dict[str, Any], records: list[StepRecord], *, full: bool) -> list[Any]:
    width = 1_000_000 if full else 70
    title = Text.assemble(clean(state["run_id"]), "  ", styled(state["status"]), "  ", clean(
        f"{state['pipeline_name']} {state['pipeline_version']}"
    ))  # fmt: skip
    begun = state["created_at"]
    shown: list[Any] = [
        tree(title, _branches(records, width)),
        facts({
            "steps": f"{document['steps_done']}/{'?' if document['steps_total'] is None else document['steps_total']}"
            + (f", the first {document['steps_left_out']} records are not shown" if document["steps_left_out"] else ""),
            "phase": document["phase"],
            "began": f"{when(begun)} UTC, updated after {lasting((state['updated_at'] - begun).total_seconds())}",
            "deadline": document["deadline"],
            "input": short(document["input"], width),
            "output" if state["status"] == "completed" else "last output": short(document["output"], width)
            if document["steps_done"]
            else None,
            "context": short(document["context"], width) if document["context"] else None,
            "error": _error_line(document["error"]),
            "cancelled": _author(document["cancelled"]),
        }),
        *[Text(clean(found)) for found in waiting_of(state.get("waiting"))],
    ]  # fmt: skip
    trace = (document["error"] or {}).get("traceback")
    return [*shown, clean(trace.rstrip(), lines=True)] if full and trace else shown


def _error_line(error: Any) -> Text | None:
    if not error:
        return None
    text = f"{error.get('type')}: {error.get('text')}" if isinstance(error, dict) else str(error)
    return Text(cut(clean(text), 500), "red")


def _author(found: Any) -> str | None:
    if not found:
        return None
    return f"by {found.get('by') or 'somebody'}" + (f": {found['reason']}" if found.get("reason") else "")


def _branches(records: Iterable[StepRecord], width: int) -> dict[str, Any]:
    """Return the records as a tree of dicts; of several about one path the last counts."""
    root: dict[str, Any] = {}
    for record in records:
        if record.path[-1] in HIDDEN:
            continue
        node = root
        for part in record.path:
            node = node.setdefault(part, {"": Text(clean(part))})
        node[""] = _line(record, width)
    return root


def _line(record: StepRecord, width: int) -> Text:
    how = "ok" if record.success else "failed"
    tries = f"  {record.attempts} attempts" if record.attempts > 1 else ""
    by = f"  by {record.by}" if record.by else ""
    line = Text.assemble(clean(record.path[-1]), "  ", styled(how), f"  {lasting(record.latency_s)}{tries}{clean(by)}")
    if record.success:
        return line.append(f"  {short(record.output, width)}", "dim")
    return line.append(f"  {cut(clean(record.feedback or ''), 200)}", "red")


@commands.add("inbox", example="flujo inbox --state runs.db")
async def inbox(
    session: Session,
    limit: Limit = 50,
    all_: Annotated[bool, typer.Option("--all", help="Also what waits for signals, and what is paused.")] = False,
) -> Answer:
    """List what waits for people: who is asked what, since when, and what an answer looks like."""
    backend = session.reading()
    wanted = (*PEOPLE, "signal", "pause") if all_ else PEOPLE
    found: list[tuple[RunSummary, WaitingFor]] = []
    seen, after, more = 0, None, True
    while more and len(found) < limit and seen < max(_MOST, limit):
        page = await backend.list_runs({"status": "paused"}, limit=_PAGE, after=after)
        seen, more = seen + len(page), len(page) == _PAGE
        after = page[-1].run_id if page else None
        for run in page:
            found += [(run, wait) for wait in await _waits(backend, run) if wait.kind in wanted]
    more, found = more or len(found) > limit, found[:limit]
    document = [
        {"run_id": run.run_id, "pipeline_name": run.pipeline_name, "pipeline_version": run.pipeline_version}
        | wait_of(wait) for run, wait in found
    ]  # fmt: skip
    shown: list[Any] = [line for run, wait in found for line in _question(run, wait)] or ["Nothing waits for anybody."]
    if more:
        shown.append("There may be more: --limit shows more.")
    return Answer(document={"waiting": document, "more": more}, shown=shown)


async def _waits(backend: LogBackend, run: RunSummary) -> list[WaitingFor]:
    state = await backend.load_at(run.run_id)
    return waiting_of(state.get("waiting")) if state is not None and state["status"] == "paused" else []


def _question(run: RunSummary, wait: WaitingFor) -> list[Any]:
    return [
        Text.assemble((clean(run.run_id), "bold"), "  ", clean(wait)),
        facts({
            "  since": f"{when(wait.since)} UTC" if wait.since else None,
            "  until": f"{when(wait.until)} UTC" if wait.until else None,
            "  answers": f"{wait.quorum} needed" if wait.quorum > 1 else None,
            "  from": ", ".join(wait.voters) if wait.voters else None,
            "  schema": short(wait.schema, 400) if wait.schema else None,
        }),
    ]  # fmt: skip


@commands.add("messages", example="flujo messages order-1 --state runs.db")
async def messages(session: Session, run_id: RunId, limit: Limit = 100) -> Answer:
    """List what was sent to a run: who answered, signalled, paused or cancelled it, when and why."""
    backend = session.backend()
    if await head_of(backend, run_id) is None:
        raise not_found(run_id)
    found = await backend.mail(run_id)
    codec = backend.codec or Codec()
    more, found = len(found) > limit, found[-limit:]
    rows = [
        (str(message.seq), when(message.at), message.kind, message.name, message.by or "", message.reason or "",
         short(_payload(codec, message), 40) if message.payload is not None else "")
        for message in found
    ]  # fmt: skip
    shown: list[Any] = [table([">nr", "at (UTC)", "kind", "name", "by", "reason", "content"], rows)]
    document = [
        {"seq": message.seq, "id": message.id, "at": iso(message.at), "kind": message.kind, "name": message.name,
         "by": message.by, "reason": message.reason, "content": _payload(codec, message)}
        for message in found
    ]  # fmt: skip
    return Answer(
        document={"messages": document, "more": more}, shown=shown if found else ["Nobody has sent it anything."]
    )


def _payload(codec: Codec, message: Message) -> Any:
    return None if message.payload is None else plain(codec.decode(message.payload, strict=False))


@commands.add("stats", example="flujo stats --state runs.db")
async def stats(session: Session) -> Answer:
    """Count runs, by status and by pipeline."""
    backend = session.reading()
    by_status = await backend.count_runs()
    by_pipeline = await backend.count_runs(by="pipeline_id")
    figures = await backend.get_workflow_stats() if isinstance(backend, AdminQueries) else {}
    recent, mean = figures.get("recent_workflows_24h"), figures.get("average_execution_time_ms")
    document = {
        "runs": sum(by_status.values()), "by_status": by_status, "by_pipeline": by_pipeline, "updated_24h": recent,
        "average_execution_time_ms": mean,
    }  # fmt: skip
    pipelines = sorted(by_pipeline.items(), key=lambda pair: (-pair[1], pair[0]))
    shown: list[Any] = [
        facts({
            "runs": f"{document['runs']:,}",
            **{f"  {name}": styled(name, f"{count:,}") for name, count in sorted(by_status.items())},
            "updated in 24 h": None if recent is None else f"{recent:,}",
            "mean time in steps": None if mean is None else lasting(mean / 1000),
        }),
        table(["pipeline", ">runs"], [(name, f"{count:,}") for name, count in pipelines[:20]]),
        *([f"and {len(pipelines) - 20} more pipelines"] if len(pipelines) > 20 else []),
    ]  # fmt: skip
    return Answer(document=document, shown=shown)


@commands.add("failures", example="flujo failures --state runs.db\nflujo list --state runs.db --status failed")
async def failures(session: Session, limit: Limit = 20) -> Answer:
    """Group the runs that have failed by what went wrong, the most frequent first: the newest 10,000 are looked at."""
    found = sorted(await session.reading().failures(limit + 1), key=lambda group: -group.runs)
    more, found = len(found) > limit, found[:limit]
    rows = [
        (
            f"{group.runs:,}",
            cut(clean(group.message or group.error or "unknown"), 80),
            when(group.newest),
            group.example,
        )
        for group in found
    ]
    document = [
        {"error": group.error, "message": group.message, "runs": group.runs, "newest": iso(group.newest),
         "example": group.example}
        for group in found
    ]  # fmt: skip
    shown: list[Any] = [table([">runs", "what went wrong", "newest (UTC)", "for example"], rows)]
    if more:
        shown.append("There are more: --limit.")
    return Answer(document={"failures": document, "more": more}, shown=shown if found else ["No run has failed."])
