"""`LogBackend`: the whole port over a store that runs transactions; memory and SQL differ only in the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from flujo._clock import moment
from flujo._ids import check_run_id
from flujo.state.backends import _forking, _ledger, _loading, _mailbox
from flujo.state.backends._ledger import Held, Save
from flujo.state.backends._rows import RunQuery, RunRow, Tx
from flujo.state.backends._statemail import not_found
from flujo.state.backends.base import (
    Claim,
    Failure,
    NewRun,
    Owner,
    Reading,
    RunSummary,
    Shape,
    State,
    StateBackend,
    check_page,
)  # fmt: skip
from flujo.state.backends.overview import MOST_FAILURES, grouped
from flujo.state.codec import Codec
from flujo.state.mail import Message
from flujo.state.models import StepRecord, checked_state

T = TypeVar("T")


class Store(Protocol):
    """What a LogBackend asks of its store. All of it works from any thread and any event loop."""

    held: dict[str, Held]

    async def read(self, run_id: str | None, work: Callable[[Any], T]) -> T:
        """Run `work` on a consistent view of that run, or of the whole store (None)."""

    async def write(
        self,
        run_id: str | None,
        work: Callable[[Any], T],
        *,
        peek: Callable[[Any], T | None] | None = None,
        undo: Callable[[], None] | None = None,
        inline: bool = False,
    ) -> T:
        """Run `work` in a transaction and commit it, unless `peek`, which only reads, has the answer already.

        `undo` is called whenever the transaction is rolled back. Never abandoned: a caller that is cancelled gets its
        CancelledError after the outcome is known.
        """

    async def append(self, save: Save) -> None:
        """Write a prepared save, together with others that wait at the same time.

        A caller that is cancelled gets its CancelledError if the save is written, and the save's own error if not.
        """

    def soon(self, run_id: str | None, work: Callable[[Any], object]) -> None:
        """Run `work` in a transaction some time; nobody waits for it."""

    def look(self, run_id: str) -> None:
        """Ring what is held of that run, and has asked for it, when a message to it may be there."""


class Read(Protocol):
    """Runs work on a consistent view of the store."""

    async def __call__(self, work: Callable[[Any], T]) -> T: ...


class LogBackend(StateBackend, Reading):
    """A backend that keeps a log of saves. See `SQLiteBackend` and `InMemoryBackend`."""

    def __init__(self, codec: Codec | None) -> None:
        self.codec: Codec = codec or Codec()

    def _store(self) -> Store:
        raise NotImplementedError

    async def save_state(self, run_id: str, state: State) -> None:
        """Append a save to the run's log. See `StateBackend.save_state`.

        Raises FencedError, NotSerializableError (with the path to the value), SaveError, RunInProgressError (a save
        without a fence, of a run that a live owner executes).
        """
        store = self._store()
        fence = state.get("fence")
        if fence is None:
            await self._save_by_hand(store, check_run_id(run_id), state)
            return
        held = store.held.get(run_id)
        if held is None or held.fence != fence:
            raise _ledger.fenced(run_id, "this process has no such claim")
        save = _ledger.prepare(held, state, self.codec)
        try:
            await store.append(save)
        except asyncio.CancelledError:  # the caller is cancelled; the save is in the store
            self._saved(store, held, save)
            raise
        self._saved(store, held, save)

    @staticmethod
    def _saved(store: Store, held: Held, save: Save) -> None:
        _ledger.advance(save)
        if save.row.status != "running" and store.held.get(held.run_id) is held:
            del store.held[held.run_id]

    async def _save_by_hand(self, store: Store, run_id: str, state: State) -> None:
        checked = checked_state(run_id, state)
        if state.get("unresolved"):
            raise _ledger.unresolved(run_id, state["unresolved"])

        def work(tx: Tx) -> None:
            run = tx.find(run_id)
            self._refuse_live(store, tx, run)
            _ledger.save_by_hand(tx, run_id, checked, self.codec)

        await store.write(run_id, work)

    def _refuse_live(self, store: Store, tx: Tx, run: RunRow | None) -> None:
        who = self._owner(store, tx, run) if run is not None else None
        if run is not None and who is not None:
            raise _ledger.in_progress(run, who)

    def _owner(self, store: Store, tx: Tx, run: RunRow) -> str | None:
        """Return who executes the run, if somebody alive does."""
        if run.owner is None or run.fence is None:
            return None
        if run.owner == tx.me:
            return "this process" if self._live(store, run.run_id, run.fence) else None
        return tx.owner_of(run)

    @staticmethod
    def _live(store: Store, run_id: str, fence: int) -> bool:
        held = store.held.get(run_id)
        return held is not None and held.fence == fence

    async def load_state(self, run_id: str) -> State | None:
        """Return the run's newest state with all its step records, verified against its checksums, or None.

        A stored type that this process does not know is plain data here, and is named in the state's `unresolved`, or
        `unresolved_records` if it is a step record's.
        Raises StateCorruptedError.
        """

        def work(tx: Tx) -> State | None:
            run = tx.find(run_id)
            return _loading.load_whole(tx, run, self.codec) if run else None

        return await self._store().read(check_run_id(run_id), work)

    async def delete_state(self, run_id: str) -> None:
        """Forget the run; raises RunInProgressError while a live owner executes it."""
        store = self._store()

        def work(tx: Tx) -> None:
            run = tx.find(run_id)
            self._refuse_live(store, tx, run)
            if run is not None:
                tx.drop_run(run.key)

        await store.write(check_run_id(run_id), work)

    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        """Become the run's only owner. See `StateBackend.claim`; here it holds between processes too."""
        store = self._store()
        taken: list[Held] = []

        def undo() -> None:
            for held in taken:
                _forget(store, held)

        def give_back(tx: Tx) -> None:
            undo()
            for held in taken:
                tx.set_free(held.key, held.fence)

        def work(tx: Tx) -> Claim:
            run, status = _ledger.claim_row(
                tx, run_id, new, self.codec, now, force=force, holds=partial(self._live, store)
            )
            found = _loading.load(tx, run, self.codec)
            state, tip = found if found else (None, _loading.Tip())
            newest = _mailbox.newest_of(tx, run.key)
            if run.fence is not None:
                held = Held(run_id, run.key, run.identity(), run.fence, inline, tip, found=status, by=id(self))
                held.newest = newest
                taken.append(held)
                store.held[run_id] = held
            return _claim(run, state, newest)

        def settled(tx: Tx) -> Claim | None:
            run = tx.find(run_id)
            if run is None or not _ledger.is_settled(tx, run, now):
                return None
            found = _loading.load(tx, run, self.codec)
            run.fence, run.crashes = None, 0
            return _claim(run, found[0], _mailbox.newest_of(tx, run.key)) if found else None

        try:
            return await store.write(check_run_id(run_id), work, peek=settled, undo=undo, inline=inline)
        except BaseException as error:
            undo()
            if taken or isinstance(error, GeneratorExit):  # it may be committed all the same, or be so later
                store.soon(run_id, give_back)
            raise

    async def release(self, run_id: str, fence: int) -> None:
        """Give the run back as it was last saved; nothing happens where the fence is an old one."""
        store = self._store()
        held = store.held.get(run_id)
        if held is not None and held.fence == fence:
            _forget(store, held)
            try:
                await store.write(run_id, lambda tx: tx.set_free(held.key, fence), inline=held.inline)
            except BaseException:  # as long as this process lives, nobody else could have the run
                store.soon(run_id, lambda tx: tx.set_free(held.key, fence))
                raise

    def abandon(self, run_id: str, fence: int, *, refused: bool = False) -> None:
        """Release without waiting for it. See `StateBackend.abandon`."""
        store = self._store()
        held = store.held.get(run_id)
        if held is not None and held.fence == fence:
            give_back(store, held, held.found if refused else "running")

    def holds(self, run_id: str, fence: int) -> bool:
        """Return False where this process knows already that the fence is an old one."""
        return self._live(self._store(), run_id, fence)

    async def owner(self, run_id: str) -> Owner | None:
        """Return who has the run, also one that is dead. See `StateBackend.owner`."""
        store = self._store()

        def work(tx: Tx) -> Owner | None:
            run = tx.find(run_id)
            if run is None or run.owner is None or run.fence is None:
                return None
            who, alive = tx.owner_facts(run)
            mine = run.owner == tx.me and self._live(store, run_id, run.fence)
            return Owner(who, moment(run.claimed_at) if run.claimed_at else None, alive or mine)

        return await store.read(check_run_id(run_id), work)

    async def post(self, run_id: str, message: Message) -> int:
        """Store a message to the run durably, and return its number. See `StateBackend.post`."""
        store = self._store()
        _mailbox.check(message)
        posted: list[int] = []

        def work(tx: Tx) -> int:
            run = tx.find(run_id)
            if run is None:
                raise not_found(run_id)
            posted[:] = [_mailbox.post(tx, run, message)]
            return posted[0]

        try:
            return await store.write(check_run_id(run_id), work)
        finally:  # also of somebody who was cancelled when it was there
            held = store.held.get(run_id)
            if held is not None and posted:
                held.ring(posted[0])

    async def mail(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[Message]:
        """Return the run's messages with a number above `after`, verified against their checksums."""
        check_page(after=after, limit=limit)

        def work(tx: Tx) -> list[Message]:
            run = tx.find(run_id)
            return _mailbox.read(tx, run, after, limit) if run else []

        return await self._store().read(check_run_id(run_id), work)

    def watch(self, run_id: str, fence: int, wake: Callable[[], None]) -> None:
        """Ask to be woken when a message comes to a run that this process has claimed. See `StateBackend.watch`."""
        store = self._store()
        held = store.held.get(run_id)
        if held is not None and held.fence == fence:
            held.wake, held.fresh = wake, True
            store.look(run_id)

    async def history(
        self, run_id: str, *, after: int = 0, limit: int | None = None, strict: bool = False
    ) -> list[StepRecord]:
        """Return the run's step records in the order they were saved, without the first `after`. See `Reading`."""
        check_page(after=after, limit=limit)

        def work(tx: Tx) -> list[StepRecord]:
            run = tx.find(run_id)
            return _loading.history(tx, run, self.codec, after, limit, strict=strict) if run else []

        return await self._store().read(check_run_id(run_id), work)

    async def load_at(self, run_id: str, rev: int | None = None, *, head: bool = True) -> State | None:
        """Return the state as it was after save number `rev` (None: the newest), or None where there is none."""

        def work(tx: Tx) -> State | None:
            run = tx.find(run_id)
            if run is None or not head:
                return _loading.load_whole(tx, run, self.codec, rev=rev) if run else None
            found = _loading.load(tx, run, self.codec, rev=rev, strict=False)
            return found[0] if found else None

        return await self._store().read(check_run_id(run_id), work)

    async def rev_at_index(self, run_id: str, index: int) -> int | None:
        """Return the save after which the run stood before its step `index`. See `Reading.rev_at_index`."""
        return await self._store().read(check_run_id(run_id), lambda tx: _forking.arrival(tx, run_id, index))

    async def fork(
        self,
        run_id: str,
        rev: int,
        new: str,
        *,
        changes: Mapping[str, Any] | None = None,
        message: Message | None = None,
    ) -> None:
        """Make a run that begins with another's history up to save `rev`. See `Reading.fork`."""
        store, wanted = self._store(), _forking.Wanted(check_run_id(new), changes or {}, message)
        check_page(rev=rev)
        if message is not None:
            _mailbox.check(message)

        def read(tx: Tx) -> _forking.Source:
            return _forking.source(tx, run_id, rev, self.codec, wanted.changes)

        def write(tx: Tx) -> None:
            _forking.make(tx, found, wanted, self.codec, lambda tx, run: self._owner(store, tx, run) is not None)

        found = await store.read(check_run_id(run_id), read)
        await store.write(new, write)

    async def list_runs(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 100,
        offset: int = 0,
        after: str | None = None,
        since: datetime | None = None,
    ) -> list[RunSummary]:
        """Return runs, the most recently updated first, without payloads. See `Reading.list_runs`."""
        check_page(limit=limit, offset=offset)
        query = RunQuery(where=where or {}, limit=limit, offset=offset, after=after, since=since)
        return await self._store().read(None, lambda tx: tx.list_runs(query))

    async def count_runs(self, where: Mapping[str, str] | None = None, *, by: str = "status") -> dict[str, int]:
        """Return how many runs there are, by `status`, `pipeline_id` or `pipeline_name`."""
        async with self._survey() as read:
            found = await read(lambda tx: tx.count_runs(where or {}, by))
        return {name: count for name, (count, _) in found.items()}

    async def failures(self, limit: int = 20) -> list[Failure]:
        """Return what runs failed of, the newest first. See `Reading.failures`."""
        check_page(limit=limit)
        async with self._survey() as read:
            failed = await read(lambda tx: tx.failed(MOST_FAILURES))
        return grouped([(run_id, message, moment(at)) for run_id, message, at in failed], limit)

    async def shapes(self) -> list[Shape]:
        """Return which code the unfinished runs need, the most runs first. See `Reading.shapes`."""
        async with self._survey() as read:
            return await read(lambda tx: tx.shapes())

    @contextlib.asynccontextmanager
    async def _survey(self) -> AsyncGenerator[Read]:
        """Give what runs readings of the whole store, which may take long."""
        yield partial(self._store().read, None)


def _claim(run: RunRow, state: State | None, newest: int) -> Claim:
    unread = newest > (state["mail_seen"] if state is not None else 0)
    return Claim(fence=run.fence, state=state, crashes=run.crashes, unread=unread)


def give_back(store: Store, held: Held, status: str = "running") -> None:
    """Release a claim some time soon."""
    _forget(store, held)
    store.soon(held.run_id, lambda tx: tx.set_free(held.key, held.fence, status))


def _forget(store: Store, held: Held) -> None:
    if store.held.get(held.run_id) is held:
        del store.held[held.run_id]
