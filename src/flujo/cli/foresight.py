"""Commands that look ahead and execute nothing: `plan`, `why`, `check`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container
from typing import Annotated, Any

import typer
from rich.text import Text

from flujo.cli.code import context_model, registry_of, runner_of
from flujo.cli.command import Commands, Session
from flujo.cli.faults import BAD, WELL
from flujo.cli.output import Answer, clean, cut, iso, many, plain, table
from flujo.cli.reading import RunId
from flujo.engine.foresight import Plan
from flujo.runner.foresight import Misfit, check_async
from flujo.state.backends.base import UNFINISHED, RunSummary

commands = Commands()
_CONTEXT = ("context-changed", "migration", "type-missing")  # what only reading a run's payloads tells


@commands.add("plan", code=True, example="flujo plan A7 --code shop:runner --state runs.db")
def plan(session: Session, run_id: RunId) -> Answer:
    """Show what would happen if a run were resumed with this code; nothing is executed. 1 where it could not be."""
    found = session.runner(run_id).plan(run_id)
    steps = [
        {"path": step.path, "kind": step.kind, "does": step.does, "executes": step.executes, "perhaps": step.perhaps,
         "note": step.note}
        for step in found.steps
    ]  # fmt: skip
    document = {
        "run_id": found.run_id, "status": found.status, "pipeline_name": found.pipeline_name,
        "pipeline_version": found.pipeline_version, "goes_on_with": found.goes_on_with, "resumable": found.resumable,
        "code": found.code, "reason": found.reason, "hint": found.hint, "steps": steps,
    }  # fmt: skip
    shown = [Text(clean(found, lines=True))]
    return Answer(document=document, shown=shown, code=WELL if found.resumable else BAD)


@commands.add("why", code=True, example="flujo why A7 --code shop:runner --state runs.db")
def why(session: Session, run_id: RunId) -> Answer:
    """Say the one reason why a run does not move, and what to do about it."""
    found = session.runner(run_id).why(run_id)
    document = {
        "run_id": run_id, "code": found.code, "text": found.text, "hint": found.hint, "data": plain(dict(found.data))
    }  # fmt: skip
    shown = [Text(clean(found.text)), *([Text(clean(found.hint), "dim")] if found.hint else [])]
    return Answer(document=document, shown=shown)


@commands.add("check", code=True, example="flujo check --code shop:registry --state runs.db    # before a deploy")
async def check(
    session: Session,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Show so many.")] = 50,
    contexts: Annotated[
        int,
        typer.Option("--contexts", min=0, metavar="N", help="Also the contexts of so many, the newest of each status."),
    ] = 200,
) -> Answer:
    """Find every unfinished run that this code could not resume: 1 where there is one. A gate for a deploy.

    Versions, structures and migrations are checked of all of them. Whether the context that is saved fits the code's
    context model means reading each, so it is done of the newest only: see --contexts.
    """
    registry, backend = registry_of(session.code()), session.reading()
    found = {misfit.run_id: _misfit(misfit) for misfit in await check_async(registry, backend)}
    looked_at = 0
    if context_model(session.code()) is not None:
        async for run, plan_ in _plans(session, contexts, found):
            looked_at += 1
            if plan_.code in _CONTEXT:
                found[run.run_id] = _of_plan(run, plan_)
    misfits = list(found.values())
    document = {"ok": not misfits, "count": len(misfits), "contexts_looked_at": looked_at, "misfits": misfits[:limit]}
    if not misfits:
        return Answer(document=document, shown=["Every unfinished run could go on with this code."])
    rows = [
        (
            one["run_id"],
            one["pipeline_name"],
            one["pipeline_version"],
            one["status"],
            one["code"],
            cut(clean(one["text"]), 300),
        )
        for one in misfits[:limit]
    ]
    shown: list[Any] = [table(["run", "pipeline", "version", "status", "why", "what is different"], rows)]
    shown.append(f"{many(len(misfits), 'run')} could not go on with this code.")
    return Answer(document=document, shown=shown, code=BAD)


async def _plans(session: Session, limit: int, known: Container[str]) -> AsyncIterator[tuple[RunSummary, Plan]]:
    """Yield what would become of the newest unfinished runs of the runner's pipeline, without those that are known."""
    runner = runner_of(session.code(), session.backend(), session.given.pipeline)
    name = runner._setup.code.known()[0].name
    for status in UNFINISHED:
        for run in await session.reading().list_runs({"status": status}, limit=limit):
            if run.pipeline_name == name and run.run_id not in known:
                yield run, await runner.plan_async(run.run_id)


def _misfit(found: Misfit) -> dict[str, Any]:
    return {
        "run_id": found.run_id, "pipeline_name": found.pipeline_name, "pipeline_version": found.pipeline_version,
        "status": found.status, "updated_at": iso(found.updated_at), "code": found.code, "text": found.text,
        "hint": found.hint,
    }  # fmt: skip


def _of_plan(run: RunSummary, found: Plan) -> dict[str, Any]:
    return {
        "run_id": run.run_id, "pipeline_name": run.pipeline_name, "pipeline_version": run.pipeline_version,
        "status": run.status, "updated_at": iso(run.updated_at), "code": found.code, "text": found.reason,
        "hint": found.hint,
    }  # fmt: skip
