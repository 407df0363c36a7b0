"""Claims, saves and loads in terms of rows: what all log-structured backends share.

Everything here runs within one transaction of a store (`Tx`) or computes what such a transaction needs. A claim's
`Held` remembers the tip of its run, so that a save is computed from memory and costs what changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import to_json

from flujo._clock import micros, moment
from flujo.errors import (
    FencedError,
    MessageRefusedError,
    RunEndedError,
    RunExistsError,
    RunInProgressError,
    RunNotFoundError,
    StateError,
    UnknownTypeError,
    UnreadMailError,
)
from flujo.state import delta
from flujo.state.backends import _mailbox
from flujo.state.backends._loading import (
    CARRIED,
    FOLD_COST,
    SKIP_COST,
    Tip,
    check_status,
    corrupted,
    folded_context,
    rest_of,
    seen_of,
    tip_of,
)  # fmt: skip
from flujo.state.backends._records import NOTHING, pack_records
from flujo.state.backends._rows import MAX_REV, LogRow, RunRow, Tx, context_sum, make_row, snapshot_sum
from flujo.state.backends.base import NewRun, State, settled
from flujo.state.codec import Codec
from flujo.state.models import record_from

# Raised before anything was written, so that the transaction is still good.
REFUSALS = (
    FencedError, RunInProgressError, UnreadMailError, RunNotFoundError, MessageRefusedError, RunEndedError,
    RunExistsError,
)  # fmt: skip
_REST = (
    "position", "phase", "waiting", "due_at", "deadline", "mail_seen", "error", "migrated",
    "inherited", "forked_from", "edits",
)  # fmt: skip
_TIMES = ("due_at", "deadline")
_SMALL = 16 * 1024
_OURS = Codec()  # what is flujo's own is kept whatever limits the user's payloads have


@dataclass(slots=True)
class Held:
    """A live claim of this process. `before` is the tip before the last save, to recognise that save again.

    `wake` is called when a message with a number above `newest` is there; `fresh` until it was looked for once.
    """

    run_id: str
    key: int
    identity: bytes
    fence: int
    inline: bool
    tip: Tip
    before: Tip | None = None
    found: str = "running"  # the run's status when it was claimed
    by: int = 0  # the `id` of the backend that claimed it
    wake: Callable[[], None] | None = None
    newest: int = 0
    fresh: bool = False

    def ring(self, seq: int | None = None) -> None:
        """Wake the owner, who has asked for it; `seq` is the newest message."""
        self.newest = max(self.newest, seq or 0)
        if self.wake is not None:
            with contextlib.suppress(Exception):  # who is woken may be gone, with its event loop
                self.wake()


class Save(NamedTuple):
    """A save that is ready to be written; with a `guard` only if the run has no message with a number above that."""

    held: Held
    row: LogRow
    tip: Tip
    snapshot: bytes | None
    error: str | None
    due: int | None
    guard: int | None = None


def prepare(held: Held, state: State, codec: Codec) -> Save:
    """Encode a fenced save against its claim's tip; raises FencedError, NotSerializableError."""
    tip = held.tip
    rev: int = state["rev"]
    if rev != tip.rev + 1:
        if rev != tip.rev or held.before is None:
            raise fenced(held.run_id, f"save {rev} does not follow save {tip.rev}")
        tip = held.before  # the same save again: it will be recognised by its checksum
    save = prepare_row(held, tip, rev, state, codec)
    if state.get("guard") or state["status"] == "paused":  # nobody would read what came before the pause
        save = save._replace(guard=state.get("mail_seen") or 0)
    return save


def prepare_row(held: Held, tip: Tip, rev: int, state: State, codec: Codec) -> Save:
    """Encode the save that follows `tip`."""
    if rev > MAX_REV:
        raise StateError(f"Run {held.run_id!r} has {MAX_REV} saves; a run cannot have more.", run_id=held.run_id)
    index, output = state["current_step_index"], state["last_step_output"]
    records = state.get("step_history") or ()
    if output is tip.output and index == tip.idx:  # unchanged, whatever a failed step did to the object since
        encoded, out_rev, held_here = None, tip.out_rev, NOTHING
    else:
        encoded, out_rev, held_here = codec.encode(output, "output"), rev, output
    values = state["pipeline_context"]
    fields, change = _change(tip, values, codec)
    ctx = tip.ctx if change is None else context_sum(tip.ctx, change)
    busy, ended = tip.busy, tip.ended + len(records)
    for record in records:
        if len(record.path) == 1:  # the time of what goes on inside of a step is the step's
            busy += int(record.latency_s * 1e6)
    since, snapshot = _since(tip, fields, change)
    snap_rev = tip.snap_rev if snapshot is None else rev
    row = make_row(
        held.identity, tip.sum, held.key << 24 | rev, index, state["status"],
        micros(state["updated_at"]), busy, ended, out_rev, snap_rev,
        pack_records(records, held_here, codec), encoded, change, ctx, _pack_rest(state),
    )  # fmt: skip
    new = Tip(rev, index, row.sum, busy, ended, out_rev, snap_rev, ctx, fields, values, output, since)
    due = state.get("due_at")
    return Save(held, row, new, snapshot, _message(state.get("error")), micros(due) if due else None)


def _message(error: Any) -> str | None:
    """Return what a listing says of a failure."""
    if isinstance(error, Mapping) and "type" in error and "text" in error:
        return f"{error['type']}: {error['text']}"
    return str(error) if error else None


def _change(tip: Tip, values: Any, codec: Codec) -> tuple[dict[str, bytes] | None, bytes | None]:
    """Return the context's fields and their delta from the tip's."""
    if values is tip.values:
        return tip.fields, None
    if not values and tip.fields is None:  # a run without a context writes none
        return None, None
    fields = codec.encode_fields(values, "context")
    return fields, delta.difference(tip.fields, fields)


def _since(tip: Tip, fields: dict[str, bytes] | None, change: bytes | None) -> tuple[int, bytes | None]:
    """Return what reading the context back will cost, and the snapshot that is due where that is too much."""
    since = tip.since
    if fields is None or tip.fields is None:
        return since, None
    if change is not None:
        since += FOLD_COST + len(change)
    elif since or not tip.snap_rev:  # else it is as the snapshot has it: there is nothing to fold
        since += SKIP_COST
    if since > 2 * _SMALL and since > 2 * sum([len(value) for value in fields.values()]):
        return 0, delta.document(fields)
    return since, None


def write(tx: Tx, save: Save) -> None:
    """Write a prepared save. Writing it twice is writing it once.

    Raises FencedError where the claim is an old one, UnreadMailError where the save's guard says so.
    """
    held, row = save.held, save.row
    if save.guard is not None and _mailbox.newest_of(tx, held.key) > save.guard and not written(tx, save):
        run = tx.find(held.run_id)
        if run is not None and run.key == held.key and run.fence == held.fence:  # else the fence refuses it
            raise _mailbox.unread(held.run_id, save.guard)
    if not tx.append(row, held.fence):
        there = tx.row(held.key, row.rev)
        if there is not None and there.sum == row.sum:
            return
        raise fenced(held.run_id, "another owner has claimed the run")
    if save.snapshot is not None:
        tx.put_snapshot(row.seq, save.snapshot, snapshot_sum(row.ctx, save.snapshot))
    if row.status != "running":
        tx.finish(held.key, held.fence, row, save.error, save.due)


def written(tx: Tx, save: Save) -> bool:
    """Return whether a save whose outcome is unknown is in the store."""
    there = tx.row(save.held.key, save.row.rev)
    return there is not None and there.sum == save.row.sum


def advance(save: Save) -> None:
    """Let the claim's tip follow an acknowledged save."""
    held = save.held
    if save.tip.rev > held.tip.rev:
        held.before, held.tip = held.tip, save.tip


def fenced(run_id: str, why: str) -> FencedError:
    """Return the error of a save by somebody who no longer owns the run."""
    return FencedError(
        f"The save of run {run_id!r} was refused: {why}.",
        hint="Nothing was written; whoever owns the run now goes on from the last saved step.",
        run_id=run_id,
    )


def claim_row(
    tx: Tx,
    run_id: str,
    new: NewRun,
    codec: Codec,
    now: datetime,
    *,
    force: bool,
    holds: Callable[[str, int], bool],
) -> tuple[RunRow, str]:
    """Take the run's row for a new owner, or return it unclaimed (fence None) where the run is settled.

    The second part of the answer is the status that the run was found in.
    `holds` says of a run and a fence whether a live claim of this very process has them. Raises RunInProgressError.
    """
    run = tx.find(run_id)
    if run is not None and is_settled(tx, run, now):
        run.fence = None
        return run, run.status
    tip = tx.newest(run.key) if run is not None else None
    rev = tip.rev if tip else 0
    crashes = run.crashes if run is not None and run.claim_rev == rev else 0
    if run is not None and tip is not None:
        check_status(tx, run, tip)  # now, since a claim overwrites what it compares
    elif run is not None and (run.rev or run.claim_rev):
        raise corrupted(run, "its saved rows are gone")
    crashes += run is not None and _died(tx, run, holds, force)
    old = run
    if run is None or tip is None:  # nothing of it was saved: it is begun by this claim
        run = _new_row(run_id, new, codec)
        if old is not None:
            tx.drop_run(old.key, mail=False)
    # The newest save knows better than the row what a run was before an owner took it up that died at once.
    found = tip.status if tip is not None else run.status
    run.status, run.updated_at = "running", micros(now)
    run.fence, run.owner, run.claimed_at = tx.draw_fence(), tx.me, micros(now)
    run.claim_rev, run.crashes = rev, crashes
    tx.put_run(run)
    if old is not None and old.key != run.key:  # what was written to the run was written to this one
        tx.move_mail(old.key, run.key)
    return run, found


def _died(tx: Tx, run: RunRow, holds: Callable[[str, int], bool], force: bool) -> bool:
    """Return whether the run has an owner, another process, that is dead; raises RunInProgressError for a live one."""
    if run.owner is None or run.fence is None:
        return False
    mine = run.owner == tx.me
    who = tx.owner_of(run) if not mine else "this process" if holds(run.run_id, run.fence) else None
    if who is not None and not force:
        raise in_progress(run, who)
    return who is None and not mine


def is_settled(tx: Tx, run: RunRow, now: datetime) -> bool:
    """Return whether the run is over or waits for somebody."""
    tip = tx.newest(run.key) if run.status in ("failed", "paused") else None
    phase = rest_of(tip).get("phase") if tip is not None else None
    unread = run.status == "paused" and _mailbox.is_unread(tx, run, seen_of(tip))
    return settled(run.status, moment(run.due_at) if run.due_at else None, now, phase, unread=unread)


def in_progress(run: RunRow, who: str) -> RunInProgressError:
    """Return the error of a run that somebody else executes."""
    since = moment(run.claimed_at) if run.claimed_at else None
    return RunInProgressError(
        f"Run {run.run_id!r} is being executed by {who}" + (f" since {since:%Y-%m-%d %H:%M:%S} UTC." if since else "."),
        hint="Wait for it with run(..., wait=True), or use another run_id.",
        run_id=run.run_id,
        owner=who,
        since=since,
    )


def _new_row(run_id: str, new: NewRun, codec: Codec) -> RunRow:
    return RunRow(
        run_id=run_id, pipeline_id=new.pipeline_id, pipeline_name=new.pipeline_name,
        pipeline_version=new.pipeline_version, total_steps=new.total_steps, fingerprint=new.fingerprint,
        input=codec.encode(new.input, "input"), created_at=micros(new.created_at),
    )  # fmt: skip


def save_by_hand(tx: Tx, run_id: str, state: State, codec: Codec) -> None:
    """Write a state that comes without a fence: nobody may own the run, and every older claim is void."""
    run = old = tx.find(run_id)
    if run is None or not _is_carried(state, codec, run):  # what it says of itself is what it is born as
        state = {name: value for name, value in state.items() if name != "migrated"}
    new = _row_by_hand(run_id, state, codec, run)
    records = [record_from(r) for r in state.get("step_history") or ()]
    trial = Held(run_id, 0, b"", 0, True, Tip())  # what is refused is refused before anything is changed
    prepare_row(trial, Tip(), 1, {**state, "step_history": records}, codec)
    if run is None or tx.newest(run.key) is None or run.identity() != new.identity():
        if state.get("unresolved_records"):  # otherwise they lie there already, and are left as they are
            raise unresolved(run_id, state["unresolved_records"])
        if run is not None:  # a state that was loaded says which messages it has read: it goes on with them
            tx.drop_run(run.key, mail="mail_seen" not in state)
        run = new
    run.fence, run.owner = tx.draw_fence(), None
    run.status, run.updated_at, run.error_message = "running", new.updated_at, None
    tx.put_run(run)
    if old is not None and old.key != run.key:
        tx.move_mail(old.key, run.key)
    tip = Tip()
    if newest := tx.newest(run.key):
        text, since = folded_context(tx, run, newest)
        tip = tip_of(newest)._replace(fields=delta.split(text) if text else None, since=since)
    held = Held(run_id, run.key, run.identity(), run.fence, True, tip)
    skip = tip.ended if state.get("history_offset") in (None, 0) else 0
    save = prepare_row(held, tip, tip.rev + 1, {**state, "step_history": records[skip:]}, codec)
    write(tx, save)
    if state["status"] == "running":
        tx.set_free(run.key, run.fence)
    elif state["status"] == "paused":
        _mailbox.hasten(tx, run, save.due, seen_of(save.row))


def unresolved(run_id: str, names: Sequence[str]) -> UnknownTypeError:
    """Return the error of saving a state whose loading has made plain data of what it did not know."""
    return UnknownTypeError(
        f"The state of run {run_id!r} was loaded without the types {', '.join(names)}, so saving it would lose them.",
        hint="Call register_type with them before loading; if the plain data are meant, delete `unresolved` and "
        "`unresolved_records`.",
        run_id=run_id,
        type_name=names[0],
    )


def _row_by_hand(run_id: str, state: State, codec: Codec, old: RunRow | None) -> RunRow:
    total, fingerprint, given = state.get("total_steps"), state.get("fingerprint"), None
    version = state["pipeline_version"]
    if old is not None and "migrated" in state:  # it is the same run: its row says what it was born as
        version, total, fingerprint, given = old.pipeline_version, old.total_steps, old.fingerprint, old.input
    elif "input" in state:
        if state["input"] is not None or (old is not None and old.input is not None):
            given = codec.encode(state["input"], "input")
    elif old is not None:
        total, fingerprint, given = old.total_steps, old.fingerprint, old.input
    return RunRow(
        run_id=run_id, pipeline_id=state["pipeline_id"], pipeline_name=state["pipeline_name"],
        pipeline_version=version, total_steps=total, fingerprint=fingerprint, input=given,
        created_at=micros(state["created_at"]), status=state["status"], updated_at=micros(state["updated_at"]),
    )  # fmt: skip


def _is_carried(state: State, codec: Codec, old: RunRow) -> bool:
    """Return whether the state is of that very run, which a migration has carried to the version that it says."""
    now = state.get("migrated") or {}
    same = now.get("from") == old.pipeline_version
    if not same or any(now.get(name) != state.get(name) for name in CARRIED):
        return False
    if "input" not in state:
        return True
    if "input" not in now and old.input is None:
        return state["input"] is None
    kept = now["input"].encode() if "input" in now else old.input
    return kept == codec.encode(state["input"], "input")


def _pack_rest(state: Mapping[str, Any]) -> bytes | None:
    rest = {}
    for name in _REST:
        value = state.get(name)
        if value is not None and value != 0 and (value or name not in ("waiting", "edits")):
            rest[name] = micros(value) if name in _TIMES else _OURS.lower(value, name)
    return to_json(rest) if rest else None
