"""How a runner talks to a backend: with live values to one that has a codec, with plain JSON data to any other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from pydantic_core import from_json

from flujo.errors import StateCorruptedError
from flujo.state.backends import _ledger
from flujo.state.backends._log import LogBackend
from flujo.state.backends._records import lifted_values, lowered_values
from flujo.state.backends.base import Claim, NewRun, Reading, State, StateBackend
from flujo.state.codec import Codec
from flujo.state.models import StepRecord, checked_state, record_from

_PAYLOADS = ("pipeline_context", "last_step_output", "input")
_DEFAULTS: State = {
    "rev": 0, "position": None, "step_history": [], "history_offset": 0, "fingerprint": None, "input": None,
    "error": None, "total_steps": None, "phase": None, "waiting": None, "mail_seen": 0, "due_at": None,
    "deadline": None,
}  # fmt: skip


T = TypeVar("T")


class Keeper:
    """One run's way to its backend. Saves are never abandoned: a cancellation is raised when the outcome is known."""

    def __init__(self, backend: StateBackend) -> None:
        self.backend = backend
        self.codec: Codec = backend.codec or Codec()
        self.plain = backend.codec is None
        self._whole = not isinstance(backend, Reading)  # its states hold all step records, not only the new ones
        self.lends = type(backend).release is StateBackend.release  # the last save does not free the run
        self._shields = type(backend).save_state is LogBackend.save_state
        self.subclassed = not self.plain and not self._shields
        self._lowered: dict[str, tuple[Any, int, bytes]] = {}
        self._records: list[Any] = []

    async def claim(self, run_id: str, new: NewRun, **options: Any) -> Claim:
        """Claim the run; the state that comes with it holds live values."""
        self._records, self._lowered = [], {}
        claim = await self.backend.claim(run_id, new, **options)
        try:
            if claim.state is None:
                if self.plain:  # not to be found out by a save later
                    self._lowered["input"] = self._lower("input", new.input, 0)
                return claim
            state = self.lifted(run_id, claim.state)
        except BaseException:
            if claim.fence is not None:
                self.backend.abandon(run_id, claim.fence, refused=True)
            raise
        return replace(claim, state=state)

    def lifted(self, run_id: str, stored: State) -> State:
        """Return a stored state with every field there and live values in it."""
        state = {**_DEFAULTS, **(checked_state(run_id, stored) if self.plain or self._whole else stored)}
        state["rev"] = state["rev"] or 1  # it was saved, by whomever
        if self.plain:
            for name in _PAYLOADS:
                state[name] = self._lift(name, state[name])
                self._lowered[name] = self._lower(name, state[name], state["current_step_index"])
        if self._whole:
            self._records = [_facts(found) if self.plain else record_from(found) for found in state["step_history"]]
            state["history_offset"], state["step_history"] = len(self._records), []
        return state

    async def save(self, state: State) -> None:
        """Save the state; whatever this raises stops the run."""
        if self._shields:
            await self.backend.save_state(state["run_id"], state)
            return
        if self.plain or self._whole:
            state = self._prepared(state)
        records = list(state["step_history"])  # now, since the dict is the backend's own
        task = asyncio.ensure_future(self.backend.save_state(state["run_id"], state))
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
            except GeneratorExit:  # nobody will wait for it any more
                task.cancel()
                raise
        if self._whole and not task.cancelled() and task.exception() is None:
            self._records = records
        if cancelled is not None and (task.cancelled() or task.exception() is None):
            raise cancelled
        task.result()

    def _prepared(self, state: State) -> State:
        """Return the state as a backend is handed it that lacks a codec, or Reading."""
        if not self.backend.holds(state["run_id"], state["fence"]):
            raise _ledger.fenced(state["run_id"], "another runner has claimed the run")
        prepared, records = state.copy(), state["step_history"]
        if type(self.backend).post is StateBackend.post:  # nobody can write to the run meanwhile
            prepared.pop("guard", None)
        if self.plain:
            payloads = {name: self._lower(name, state[name], state["current_step_index"]) for name in _PAYLOADS}
            records = [self._plain_record(record) for record in records]
            self._lowered = payloads  # only now: what is refused leaves all as it was
            prepared |= {name: from_json(encoded) for name, (_, _, encoded) in payloads.items()}
        if self._whole:
            records = self._records + records
            prepared["history_offset"] = 0
        if type(self.backend).claim is StateBackend.claim:  # this process's own token says nothing to a store
            del prepared["fence"]
        return {**prepared, "step_history": list(records)}

    def _lower(self, name: str, value: Any, index: int) -> tuple[Any, int, bytes]:
        """Return the payload with its JSON. What has not changed is not encoded again, whatever was done to it."""
        place = index if name == "last_step_output" else 0
        known = self._lowered.get(name)
        if known is not None and known[0] is value and known[1] == place:
            return known
        where = {"pipeline_context": "context", "last_step_output": "output"}.get(name, name)
        if name == "pipeline_context":
            fields = self.codec.encode_fields(value, where)
            encoded = b"{" + b",".join(self.codec.encode(k) + b":" + v for k, v in fields.items()) + b"}"
        else:
            encoded = self.codec.encode(value, where)
        return value, place, encoded

    def _lift(self, name: str, plain: Any) -> Any:
        if name == "pipeline_context":
            return {key: self.codec.lift(value) for key, value in plain.items()}
        return self.codec.lift(plain)

    def _plain_record(self, record: StepRecord) -> dict[str, Any]:
        return {**_facts(record), **lowered_values(record, self.codec)}

    async def reload(self, run_id: str, rev: int) -> State | None:
        """Return the newest saved state with live values: for what a failed attempt may have changed.

        Raises FencedError where it is not save `rev`: what somebody else has saved since is not this attempt's.
        """
        backend = self.backend
        stored = await (backend.load_at(run_id) if isinstance(backend, Reading) else backend.load_state(run_id))
        if stored is None:
            return None
        if stored.get("rev", rev) != rev:
            raise _ledger.fenced(run_id, "another owner has gone on with the run")
        if not self.plain:
            return stored
        return {**stored, **{name: self._lift(name, stored.get(name)) for name in _PAYLOADS}}

    async def records_after(self, run_id: str, count: int) -> list[StepRecord]:
        """Return the run's step records without the first `count`, to go on with: of an unknown type is an error."""
        backend = self.backend
        if self._whole:
            return [self._record(found) for found in self._records[count:]]
        assert isinstance(backend, Reading)
        return [self._record(found) for found in await backend.history(run_id, after=count, strict=True)]

    def reader(self, run_id: str, count: int) -> Callable[[], list[StepRecord]]:
        """Return a function that gives the run's first `count` step records, and blocks while it reads them."""
        if self._whole:
            stored = self._records[:count]
            return lambda: [self._record(found) for found in stored]
        backend = self.backend
        if count == 0 or not isinstance(backend, Reading):
            return list
        return lambda: [self._record(found) for found in _in_thread(lambda: backend.history(run_id, limit=count))]

    def _record(self, stored: Any) -> StepRecord:
        if not self.plain:
            return record_from(stored)
        try:
            facts = _facts(stored)
            return record_from({**facts, **lifted_values(facts, self.codec)})
        except (TypeError, ValueError, KeyError) as error:
            raise StateCorruptedError(f"A stored step record cannot be read ({error}).") from error


def _facts(record: Any) -> Any:
    """Return a record's fields as JSON data (but for its values); what is none already is left as it is."""
    if not isinstance(record, StepRecord):
        return record
    facts = {name: getattr(record, name) for name in StepRecord.__slots__} | {"path": list(record.path)}
    for name in ("context_changes", "by"):
        if facts[name] is None:
            del facts[name]
    return facts


def _in_thread(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from plain code, whether or not a loop is running in this thread."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(asyncio.run(make()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="flujo-read", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
