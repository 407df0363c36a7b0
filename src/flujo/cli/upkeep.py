"""Commands for the store as a whole, which may take long and show how far they are: `verify`, `du`, `gc`, `backup`."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from flujo.cli.command import Commands, Session
from flujo.cli.faults import BAD, WELL
from flujo.cli.files import copied, run_size, sizes, store_files
from flujo.cli.housekeeping import OldRuns, Verifier
from flujo.cli.output import Answer, clean, cut, facts, many, size, table
from flujo.cli.progress import Report, counting
from flujo.cli.reading import Status, run_ids
from flujo.errors import ConfigurationError
from flujo.runner.opening import not_found
from flujo.state.backends.file import FileBackend
from flujo.state.backends.sqlite import SQLiteBackend

commands = Commands()
_OVER = (Status.completed, Status.failed, Status.cancelled)
_POLL_S = 0.1


@commands.add(
    "verify", example="flujo verify --state runs.db\nflujo verify --state backup.db && echo it can be restored"
)
async def verify(session: Session) -> Answer:
    """Verify every checksum of every run, and the file itself: 1 where anything is damaged."""
    backend = session.reading()
    with counting("verifying", quiet=session.given.as_json) as report:
        verifier = Verifier(backend, report)
        problems = await verifier.problems()
    text = f"{many(verifier.runs, 'run')} verified: " + (
        f"{many(len(problems), 'problem')}." if problems else "all is well."
    )
    return Answer(
        document={"ok": not problems, "runs": verifier.runs, "problems": problems},
        shown=[*[Text(clean(problem), "red") for problem in problems], text], code=BAD if problems else WELL,
    )  # fmt: skip


@commands.add("du", example="flujo du --state runs.db\nflujo du A7 --state runs.db")
async def du(
    session: Session,
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN_ID]", help="Of this run only.", autocompletion=run_ids)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="So many of the largest runs.")] = 10,
) -> Answer:
    """Show what the store takes, and which runs take most of it; or what one run takes."""
    backend = session.reading()
    if run_id is not None:
        if await backend.load_at(run_id) is None:
            raise not_found(run_id)
        parts = await asyncio.to_thread(run_size, backend, run_id)
        total = sum(parts.values())
        shown = facts({"total": size(total), **{f"  {name}": size(count) for name, count in parts.items() if count}})
        return Answer(document={"run_id": run_id, "bytes": total, "parts": parts}, shown=[shown])
    with counting("measuring", quiet=session.given.as_json) as report:
        runs, largest = await asyncio.to_thread(sizes, backend, limit, report)
    files = store_files(backend)
    total = sum(files.values())
    document = {
        "bytes": total, "files": files, "runs": runs,
        "largest": [{"run_id": name, "bytes": count} for name, count in largest],
    }  # fmt: skip
    rows = [(name, size(count)) for name, count in largest]
    shown_ = [facts({"total": size(total), "runs": f"{runs:,}"})]
    shown_ += [table(["file", ">size"], [(name, size(count)) for name, count in files.items()])] if files else []
    return Answer(document=document, shown=[*shown_, table(["largest runs", ">size"], rows)] if rows else shown_)


@commands.add(
    "gc", example="flujo gc --state runs.db --days 30 --dry-run\nflujo gc --state runs.db --days 30 --status failed"
)
async def gc(
    session: Session,
    days: Annotated[float, typer.Option("--days", min=0, help="Runs that were updated since then are kept.")] = 30,
    status: Annotated[
        list[Status] | None, typer.Option("--status", help="Which: completed (default), failed, cancelled. Repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing; show what would be.")] = False,
) -> Answer:
    """Delete runs that have completed, and are older than --days. Runs that are running or paused are never deleted."""
    wanted = list(dict.fromkeys(status or [Status.completed]))
    if not set(wanted) <= set(_OVER):
        raise ConfigurationError(
            "Only runs that have ended are deleted.", hint="--status completed, failed or cancelled."
        )
    old = OldRuns(session.reading(), datetime.now(UTC) - timedelta(days=days))
    with counting("looking", quiet=session.given.as_json) as report:
        found = {str(name): await old.find(name, report) for name in wanted}
    count, deleted = sum(map(len, found.values())), 0
    if not dry_run:
        with counting("deleting", quiet=session.given.as_json) as report:
            for name in wanted:
                deleted += await old.delete(name, found[name], partial(_more, report, deleted, count))
    names = [run_id for runs in found.values() for run_id in runs]
    document = {
        "dry_run": dry_run, "found": count, "deleted": deleted, "run_ids": names[:1000],
        "by_status": {name: len(runs) for name, runs in found.items()},
    }  # fmt: skip
    which = f"{' or '.join(wanted)}, older than {days:g} days"
    shown: list[Any] = [f"{many(count, 'run')} would be deleted" if dry_run else f"Deleted {many(deleted, 'run')}"]
    shown = [f"{shown[0]}: {which}."]
    if dry_run and names:
        shown.append(Text("  " + cut(clean(", ".join(sorted(names)[:20])), 200)))
    if deleted and isinstance(session.backend(), SQLiteBackend):
        shown.append("The file keeps its size; the room is used again.")
    return Answer(document=document, shown=shown)


def _more(report: Report, before: int, total: int, done: int, _: int | None) -> None:
    report(before + done, total)


@commands.add("backup", example="flujo backup runs-copy.db --state runs.db && flujo verify --state runs-copy.db")
async def backup(
    session: Session, target: Annotated[str, typer.Argument(metavar="TARGET", help="A path that is free.")]
) -> Answer:
    """Copy the store while runs go on: a SQLite file as of one moment, a folder run by run."""
    backend, goal = session.reading(), Path(target)
    with counting("copying", quiet=session.given.as_json) as report:
        if isinstance(backend, SQLiteBackend):
            work = asyncio.ensure_future(backend.backup(goal))
            await _measured(work, goal.with_name(goal.name + ".part"), backend.path, report)
            await work
        elif isinstance(backend, FileBackend):
            await asyncio.to_thread(copied, backend.path, goal, report)
        else:
            raise ConfigurationError(f"{type(backend).__name__} has nothing that could be copied.", hint="")
    count = sum(store_files(type(backend)(goal)).values())
    return Answer(
        document={"target": str(goal), "bytes": count},
        shown=[Text(clean(f"{goal} holds the whole store: {size(count)}."))],
    )


async def _measured(work: asyncio.Future[None], part: Path, source: Path, report: Report) -> None:
    """Report how large the copy is, until it is done."""
    while not work.done():
        await asyncio.to_thread(_measure, part, source, report)
        await asyncio.wait([work], timeout=_POLL_S)


def _measure(part: Path, source: Path, report: Report) -> None:
    with contextlib.suppress(OSError):
        report(part.stat().st_size, source.stat().st_size)
