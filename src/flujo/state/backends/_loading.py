"""Reading a run back: its state as of any save, its history, and whether what is read is what was written."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic_core import from_json

from flujo._clock import moment
from flujo.errors import FlujoError, StateCorruptedError
from flujo.state import delta
from flujo.state.backends._records import NOTHING, unpack_records
from flujo.state.backends._rows import LogRow, RunRow, Tx, context_sum, row_sum, snapshot_sum
from flujo.state.backends.base import State
from flujo.state.codec import Codec, Lenient
from flujo.state.models import StepRecord

# What reading the context back costs, in the bytes that could be copied meanwhile: a delta's own cost, and that of
# a row without one. A snapshot is due when all this exceeds twice the context.
FOLD_COST, SKIP_COST = 256, 16
_CARRIED_MARK = b'"migrated"'
CARRIED = ("pipeline_version", "fingerprint", "total_steps")  # what a migration changes of what a run was born as


class Tip(NamedTuple):
    """Where a run's log ends, and its context as of then (`fields` encoded, `values` the object they came from)."""

    rev: int = 0
    idx: int = -1
    sum: bytes = b""
    busy: int = 0
    ended: int = 0
    out_rev: int = 0
    snap_rev: int = 0
    ctx: bytes = b""
    fields: dict[str, bytes] | None = None
    values: Any = None
    output: Any = NOTHING  # the object whose encoding row `out_rev` holds
    since: int = 0  # the cost of reading the context back: its deltas since it was last written whole


def load(tx: Tx, run: RunRow, codec: Codec, *, rev: int | None = None, strict: bool = True) -> tuple[State, Tip] | None:
    """Return the verified state after save `rev` (None: the newest), without its step records, and the tip there.

    Returns None where nothing was saved. Raises StateCorruptedError.
    """
    row = tx.newest(run.key) if rev is None else tx.row(run.key, rev)
    if row is None:
        known = max(run.rev, run.claim_rev)
        if rev is not None and rev > known:
            newest = tx.newest(run.key)
            known = newest.rev if newest is not None else known
        if known > 0 and (rev is None or 0 < rev <= known):
            raise corrupted(run, "its saved rows are gone" if rev is None else f"save {rev} is gone")
        return None
    verify(tx, run, row)
    if rev is None:
        check_status(tx, run, row)
    text, since = folded_context(tx, run, row)
    output = row.output if row.out_rev == row.rev else None
    if output is None and row.out_rev:
        holder = tx.row(run.key, row.out_rev)
        if holder is None or holder.output is None:
            raise corrupted(run, "a saved output is gone")
        verify(tx, run, holder)
        output = holder.output
    judge = True if strict else Lenient()
    try:
        fields = delta.split(text) if text else None  # no text is not the text of no fields
        values = {name: codec.decode(value, strict=judge) for name, value in (fields or {}).items()}
        last = codec.decode(output, strict=judge) if output is not None else None
        state = _state(run, row, values, last, codec, judge, newest=rev is None)
    except (ValueError, KeyError, TypeError) as error:
        raise corrupted(run, f"it cannot be decoded ({error})") from error
    if isinstance(judge, Lenient) and judge.unresolved:
        state["unresolved"] = sorted(judge.unresolved)
    return state, tip_of(row)._replace(fields=fields, values=values, output=last, since=since)


def _state(
    run: RunRow, row: LogRow, values: dict[str, Any], last: Any, codec: Codec, strict: bool | Lenient, *, newest: bool
) -> State:
    rest = from_json(row.rest) if row.rest else {}
    due, deadline = rest.get("due_at"), rest.get("deadline")
    state = {
        "run_id": run.run_id, "pipeline_id": run.pipeline_id, "pipeline_name": run.pipeline_name,
        "pipeline_version": run.pipeline_version, "current_step_index": row.idx, "pipeline_context": values,
        "last_step_output": last, "status": run.status if newest else row.status,
        "created_at": moment(run.created_at), "updated_at": moment(row.at),
        "rev": row.rev, "position": codec.lift(rest.get("position"), strict=strict), "step_history": [],
        "history_offset": row.ended, "mail_seen": rest.get("mail_seen", 0),
        "waiting": codec.lift(rest.get("waiting"), strict=strict),
        "due_at": moment(due) if due else None, "deadline": moment(deadline) if deadline else None,
        "fingerprint": run.fingerprint,
        "input": codec.decode(run.input, strict=strict) if run.input is not None else None,
        "error": codec.lift(rest.get("error"), strict=strict), "phase": rest.get("phase"),
        "total_steps": run.total_steps, "inherited": rest.get("inherited", 0),
        "forked_from": codec.lift(rest.get("forked_from"), strict=strict), "edits": rest.get("edits", []),
    }  # fmt: skip
    carried = rest.get("migrated")
    if carried:  # the row, which every checksum depends on, says what the run was born as
        state |= {name: carried[name] for name in CARRIED} | {"migrated": carried}
        if "input" in carried:
            state["input"] = codec.decode(carried["input"].encode(), strict=strict)
    return state


def load_whole(tx: Tx, run: RunRow, codec: Codec, *, rev: int | None = None) -> State | None:
    """Return the state after save `rev` (None: the newest) with all its step records, or None.

    Types that are not known are plain data, and named in `unresolved`, or `unresolved_records`.
    """
    found = load(tx, run, codec, rev=rev, strict=False)
    if found is None:
        return None
    state, judge = found[0], Lenient()
    limit = None if rev is None else state["history_offset"]
    state["step_history"] = history(tx, run, codec, 0, limit, strict=judge)
    state["history_offset"] = 0
    if judge.unresolved:
        state["unresolved_records"] = sorted(judge.unresolved)
    return state


def history(
    tx: Tx, run: RunRow, codec: Codec, after: int, limit: int | None, *, strict: bool | Lenient
) -> list[StepRecord]:
    """Return the run's step records without the first `after`; every row that is read is verified."""
    records: list[StepRecord] = []
    ended = after
    before: LogRow | None = None
    for row in tx.rows(run.key, after, limit):
        if before is not None and before.seq + 1 == row.seq:
            if row_sum(tx.identity(run, row), before.sum, row[:-1]) != row.sum:
                raise corrupted(run, f"save {row.rev} does not match its checksum")
        else:
            verify(tx, run, row)
        before = row
        if row.records:
            try:
                new = unpack_records(row.records, row.output, codec, strict=strict)
            except (ValueError, KeyError, TypeError) as error:
                raise corrupted(run, f"save {row.rev} cannot be decoded ({error})") from error
            first = row.ended - len(new)
            if first != ended and (records or first > after):
                raise corrupted(run, "saved step records are gone")
            ended = row.ended
            records += new[max(0, after - first) :]
    if limit is None or len(records) < limit:
        _check_end(tx, run, ended, before)
    return records if limit is None else records[:limit]


def _check_end(tx: Tx, run: RunRow, ended: int, last: LogRow | None) -> None:
    """Raise StateCorruptedError where a run that has its first `ended` records, up to row `last`, must have more."""
    newest = tx.newest(run.key)
    if newest is not None and (last is None or last.seq != newest.seq):
        verify(tx, run, newest)
    rev, there = (newest.rev, newest.ended) if newest is not None else (0, 0)
    if there > ended or rev < max(run.rev, run.claim_rev):
        raise corrupted(run, "saved step records are gone")


def verify(tx: Tx, run: RunRow, row: LogRow) -> None:
    """Recompute the row's checksum from the row before; raises StateCorruptedError."""
    before = b""
    if row.rev > 1:
        previous = tx.row(run.key, row.rev - 1)
        if previous is None:
            raise corrupted(run, f"save {row.rev - 1} is gone")
        before = previous.sum
    if row_sum(tx.identity(run, row), before, row[:-1]) != row.sum:
        raise corrupted(run, f"save {row.rev} does not match its checksum")


def check_saves(tx: Tx, run: RunRow, codec: Codec, after: int, limit: int) -> int:
    """Verify and decode up to `limit` saves after save `after`; return the last of them, or 0 at the end."""
    newest = tx.newest(run.key)
    last = 0 if newest is None else newest.rev
    before = tx.row(run.key, after) if after else None
    chained = before.sum if before else b""
    for rev in range(after + 1, min(last, after + limit) + 1):
        row = tx.row(run.key, rev)
        if row is None:
            raise corrupted(run, f"save {rev} is gone")
        if row_sum(tx.identity(run, row), chained, row[:-1]) != row.sum:
            raise corrupted(run, f"save {rev} does not match its checksum")
        chained = row.sum
        try:
            if row.records:
                unpack_records(row.records, row.output, codec, strict=False)
            elif row.output is not None:
                codec.decode(row.output, strict=False)
        except (ValueError, KeyError, TypeError) as error:
            raise corrupted(run, f"save {rev} cannot be decoded ({error})") from error
    return after + limit if after + limit < last else 0


def check_status(tx: Tx, run: RunRow, row: LogRow) -> None:
    """Raise StateCorruptedError where the run's row and its newest save cannot both be true."""
    if run.status == "running":
        taken_up = run.claim_rev == row.rev and row.status in ("failed", "paused")
        fits = row.status == "running" or taken_up
    else:
        fits = run.status == row.status and run.rev == row.rev
    if not fits or row.rev < max(run.rev, run.claim_rev):
        raise corrupted(run, f"its row says {run.status!r} at save {run.rev}, its log {row.status!r} at {row.rev}")
    if row.status == "paused" and rest_of(row).get("due_at") != run.due_at:
        newest = tx.newest_mail(run.key)  # a message makes the run due, whatever was saved
        if newest is None or newest.seq <= seen_of(row):
            raise corrupted(run, "the time that it waits for is not the one that was saved")


def seen_of(row: LogRow | None) -> int:
    """Return the number of the newest message that the run had read at that save."""
    seen = rest_of(row).get("mail_seen", 0) if row is not None else 0
    return seen if isinstance(seen, int) else 0


def rest_of(row: LogRow) -> dict[str, Any]:
    """Return what a save holds besides; nothing where it is damaged, which the row's checksum tells."""
    try:
        return dict(from_json(row.rest)) if row.rest else {}
    except (ValueError, TypeError):
        return {}


def carried_to(rest: bytes | None, version: str, fingerprint: str | None) -> tuple[str, str | None]:
    """Return the version and fingerprint that a run is at, given what its newest save holds and what it was born as."""
    if rest is None or _CARRIED_MARK not in rest:
        return version, fingerprint
    try:
        carried = from_json(rest).get("migrated")
        return (carried["pipeline_version"], carried["fingerprint"]) if carried else (version, fingerprint)
    except (ValueError, TypeError, KeyError, AttributeError):  # damaged: its checksum tells
        return version, fingerprint


def folded_context(tx: Tx, run: RunRow, row: LogRow) -> tuple[bytes, int]:
    """Return the context's text as of `row`, its chain checked, and what reading it back costs."""
    if not row.ctx:  # the run has never had a context: there is no row to look for
        return b"", 0
    base, ctx, start = b"", b"", 0
    snapshot = tx.snapshot(run.key, row.snap_rev) if row.snap_rev else None
    if snapshot is not None:  # an older row's may have gone; then all deltas are folded
        holder = tx.row(run.key, row.snap_rev)
        if holder is None or snapshot_sum(holder.ctx, snapshot[0]) != snapshot[1]:
            raise corrupted(run, f"the context at save {row.snap_rev} does not match its checksum")
        base, ctx, start = snapshot[0], holder.ctx, row.snap_rev
    deltas = tx.deltas(run.key, start, row.rev) if row.ctx != ctx else []
    for change in deltas:
        ctx = context_sum(ctx, change)
    if ctx != row.ctx:
        raise corrupted(run, "its context does not match its checksum")
    try:
        since = sum([FOLD_COST + len(change) for change in (deltas if start else deltas[1:])])
        since += SKIP_COST * (row.rev - start - len(deltas)) if deltas else 0
        return delta.fold(base, deltas), since
    except (ValueError, TypeError) as error:
        raise corrupted(run, f"its context cannot be put together ({error})") from error


def tip_of(row: LogRow) -> Tip:
    return Tip(row.rev, row.idx, row.sum, row.busy, row.ended, row.out_rev, row.snap_rev, row.ctx)


def located(error: FlujoError, path: str) -> FlujoError:
    """Return the error; one that says which run is damaged says where the store is, too."""
    if isinstance(error, StateCorruptedError) and "path" not in error.data:
        error.message = f"{error.message.removesuffix('.')} ({path})."
        error.data["path"] = path
    return error


def hidden(run_id: str) -> StateCorruptedError:
    """Return the error of a run that is there, but not found by its run_id."""
    return StateCorruptedError(
        f"The state of run {run_id!r} is damaged: an index of the store does not lead to it.",
        hint="Restore the store from a backup, or mend the index with SQLite's REINDEX.",
        run_id=run_id,
    )


def corrupted(run: RunRow, why: str) -> StateCorruptedError:
    """Return the error of a run that was altered or torn."""
    return StateCorruptedError(
        f"The state of run {run.run_id!r} is damaged: {why}.",
        hint="Restore the store from a backup, or delete this run and start it again.",
        run_id=run.run_id,
    )
