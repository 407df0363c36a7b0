"""What making a fork consists of: a run whose log begins with a reference to another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flujo._clock import micros
from flujo.errors import RunExistsError, RunNotFoundError
from flujo.state.backends import _mailbox
from flujo.state.backends._ledger import Held, prepare_row, unresolved
from flujo.state.backends._loading import Tip, load, rest_of
from flujo.state.backends._rows import Cut, RunRow, Tx
from flujo.state.backends._statemail import not_found
from flujo.state.backends.base import State, utc_now
from flujo.state.codec import Codec
from flujo.state.mail import Message


@dataclass(frozen=True, slots=True)
class Source:
    """What is forked: the run, its state at that save, and where its log is cut."""

    run: RunRow
    state: State
    tip: Tip
    cut: Cut


@dataclass(frozen=True, slots=True)
class Wanted:
    """The run that is to be made. See `Reading.fork`."""

    run_id: str
    changes: Mapping[str, Any]
    message: Message | None


def source(tx: Tx, run_id: str, rev: int, codec: Codec, changes: Mapping[str, Any]) -> Source:
    """Read what is to be forked, verified; raises RunNotFoundError, StateCorruptedError, UnknownTypeError."""
    run = tx.find(run_id)
    found = load(tx, run, codec, strict=False) if run is not None else None
    if run is None or found is None:
        raise not_found(run_id)
    state, tip = found[0], Tip()
    if rev:
        older = load(tx, run, codec, rev=rev, strict=False)
        if older is None:
            raise _no_save(run_id, rev)
        state, tip = older
        if state.get("unresolved") and changes:  # what is written anew would lose its type
            raise unresolved(run_id, state["unresolved"])
    else:
        state = {**state, "current_step_index": 0, "pipeline_context": {}, "last_step_output": None}
        state |= {"rev": 0, "history_offset": 0}
    cut = tx.cut(run, rev)
    if cut is None:
        raise _no_save(run_id, rev)
    return Source(run, state, tip, cut)


def make(tx: Tx, found: Source, wanted: Wanted, codec: Codec, live: Callable[[Tx, RunRow], bool]) -> None:
    """Write the fork; nothing is written before everything that can be refused is known.

    `live` says whether somebody has a run. Raises RunExistsError, RunNotFoundError, NotSerializableError.
    """
    there = tx.find(wanted.run_id)
    if there is not None and (tx.newest(there.key) is not None or live(tx, there)):
        raise exists(wanted.run_id)
    if not tx.is_there(found.cut):
        raise not_found(found.run.run_id)
    state, rev = _first_state(found, wanted), found.tip.rev + 1
    tip = found.tip._replace(since=0)  # no snapshot: it would be a copy
    seq = state["mail_seen"] = tx.next_mail(0, 0) if wanted.message is not None else 0
    prepare_row(Held(wanted.run_id, 0, b"", 0, True, tip), tip, rev, state, codec)  # is refused here, if it is
    if there is not None:  # it was claimed once, and nothing of it saved
        tx.drop_run(there.key)
    run = _row(found.run, state, tip)
    tx.put_fork(run, found.cut)
    last = tx.row(run.key, tip.rev)  # where rows were copied, the copy
    tip = tip._replace(sum=last.sum if last is not None else b"")
    tx.put_row(prepare_row(Held(wanted.run_id, run.key, run.identity(), 0, True, tip), tip, rev, state, codec).row)
    if wanted.message is not None:
        _mailbox.put(tx, run, seq, b"", wanted.message)


def arrival(tx: Tx, run_id: str, index: int) -> int | None:
    """Return the save after which the run stood before step `index`. See `Reading.rev_at_index`."""
    run = tx.find(run_id)
    newest = tx.newest(run.key) if run is not None else None
    if run is None or newest is None or index > newest.idx or index < 0:
        return None
    origin = rest_of(newest).get("forked_from")
    first = tx.row(run.key, origin["rev"] + 1) if origin else None
    if first is not None and first.idx == index:  # what the fork has changed counts
        return first.rev
    return tx.arrival(run.key, index) if index else 0


def exists(run_id: str) -> RunExistsError:
    """Return the error of a run that was to be made, and is there."""
    return RunExistsError(f"There is a run {run_id!r} already.", hint="Give another run_id.", run_id=run_id)


def _first_state(found: Source, wanted: Wanted) -> State:
    now = wanted.message.at if wanted.message is not None else utc_now()
    return {
        **found.state, "run_id": wanted.run_id, "status": "running", "created_at": now, "updated_at": now,
        "step_history": [], "position": None, "phase": None, "waiting": None, "error": None,
        "due_at": None, "deadline": None, "edits": [],
        "forked_from": {"run_id": found.run.run_id, "rev": found.state["rev"]},
        "inherited": found.state["history_offset"], **wanted.changes,
    }  # fmt: skip


def _row(old: RunRow, state: State, tip: Tip) -> RunRow:
    now = micros(state["updated_at"])
    return replace(
        old, key=0, run_id=state["run_id"], created_at=now, status="running", rev=tip.rev + 1, updated_at=now,
        error_message=None, due_at=None, fence=None, owner=None, claimed_at=None, claim_rev=0, crashes=0, busy=tip.busy,
        digest=None,
    )  # fmt: skip


def _no_save(run_id: str, rev: int) -> RunNotFoundError:
    return RunNotFoundError(
        f"Run {run_id!r} has no save {rev}.", hint="Its saves count from 1.", run_id=run_id, rev=rev
    )
