"""Which runs have something to do and nobody who does it: what a worker asks for.

These are the runs that were submitted or given back (running, without an owner), those whose time has come (paused and
due), and those whose owner has died.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from flujo._clock import micros, moment
from flujo.errors import RunInProgressError, StateError
from flujo.state.backends import _ledger, _loading, _mailbox
from flujo.state.backends._ledger import Held
from flujo.state.backends._rows import RunRow, Tx
from flujo.state.backends.base import Claim, NewRun, Reading, RunSummary, StateBackend
from flujo.state.codec import Codec

Serves = Sequence[tuple[str, str]]  # pipeline names, each with a version


class Queueing(ABC):
    """The capability to find by an index what is to be done, and to keep two workers from finding the same."""

    @abstractmethod
    async def claim_due(self, serves: Serves, limit: int, *, now: datetime) -> list[tuple[str, Claim]]:
        """Claim up to `limit` runs of these pipelines and versions that are due, and that nobody has.

        `now` is the time to compare timers with. What is damaged, or of types that are not known here, is left alone.
        """


async def claim_due(backend: StateBackend, serves: Serves, limit: int, *, now: datetime) -> list[tuple[str, Claim]]:
    """Claim runs that are due, by whatever the backend can. See `Queueing.claim_due`."""
    if isinstance(backend, Queueing):
        return await backend.claim_due(serves, limit, now=now)
    claimed: list[tuple[str, Claim]] = []
    if not isinstance(backend, Reading):
        return claimed
    for status in ("paused", "running"):
        last: str | None = None
        while len(claimed) < limit and (page := await backend.list_runs({"status": status}, after=last)):
            last = page[-1].run_id
            for run in page:
                if len(claimed) < limit and (run.pipeline_name, run.pipeline_version) in serves:
                    claim = await _claimed(backend, run, now)
                    claimed += [(run.run_id, claim)] if claim is not None else []
    return claimed


async def _claimed(backend: StateBackend, run: RunSummary, now: datetime) -> Claim | None:
    if run.status == "paused" and (run.due_at is None or run.due_at > now):
        return None
    owner = await backend.owner(run.run_id)
    if owner is not None and owner.alive:
        return None
    try:
        claim = await backend.claim(run.run_id, _as_new(run, run.created_at), now=now)
    except (RunInProgressError, StateError):  # somebody was quicker, or it is damaged: that is not this one's to say
        return None
    if claim.fence is not None and claim.state is None:  # it was deleted meanwhile
        await backend.release(run.run_id, claim.fence)
    return claim if claim.fence is not None and claim.state is not None else None


class DueTx(Tx, Protocol):
    """A transaction that finds runs by an index, and keeps others from finding the same."""

    def due_runs(self, serves: Serves, now: int, limit: int) -> list[str]: ...


def claim_found(
    tx: DueTx,
    found: dict[str, Held],
    codec: Codec,
    serves: Serves,
    limit: int,
    now: datetime,
    *,
    holds: Callable[[str, int], bool],
    by: int,
) -> list[tuple[str, Claim]]:
    """Claim runs that are due, within a transaction. What is damaged, or of unknown types, is left as it is.

    Arguments: `found` takes up what is held of them from then on; `holds` as for `claim_row`; `by` is the backend's id.
    """
    claimed: list[tuple[str, Claim]] = []
    for run_id in tx.due_runs(serves, micros(now), limit):
        run = tx.find(run_id)
        try:
            loaded = _loading.load(tx, run, codec) if run is not None else None
            if run is None or loaded is None:
                continue
            new = _as_new(run, moment(run.created_at))
            taken, status = _ledger.claim_row(tx, run_id, new, codec, now, force=False, holds=holds)
        except (RunInProgressError, StateError):
            continue
        if taken.fence is None:
            continue
        state, tip = loaded
        state["status"] = "running"
        held = Held(run_id, taken.key, taken.identity(), taken.fence, False, tip, found=status, by=by)
        held.newest = _mailbox.newest_of(tx, taken.key)
        found[run_id] = held
        unread = held.newest > state["mail_seen"]
        claimed.append((run_id, Claim(fence=taken.fence, state=state, crashes=taken.crashes, unread=unread)))
    return claimed


def _as_new(run: RunRow | RunSummary, created_at: datetime) -> NewRun:
    """Return what a claim has to be given, of a run that exists."""
    return NewRun(
        pipeline_id=run.pipeline_id, pipeline_name=run.pipeline_name, pipeline_version=run.pipeline_version,
        total_steps=run.total_steps or 0, fingerprint="", input=None, created_at=created_at,
    )  # fmt: skip
