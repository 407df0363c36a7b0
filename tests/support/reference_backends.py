"""Small backends of somebody else's that do everything right, in every combination of capabilities, in memory.

`Text` has the three methods and no more. The others are made of parts: `Live` stores values with a codec of its own,
`Fenced` has claims, `Readable` has Reading. Nothing of flujo's own backends is used.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from flujo import StateBackend, StepResult
from flujo.errors import ConfigurationError, FencedError, RunInProgressError, RunNotFoundError, UnreadMailError
from flujo.state import Codec
from flujo.state.backends.base import Claim, NewRun, Reading, RunSummary, check_page, settled
from flujo.state.mail import Message, refusal
from flujo.state.models import as_moment, checked_state, record_from

State = dict[str, Any]


def as_text(value: object) -> str:
    """Write a time as text; nothing else in a state is no JSON."""
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")


class Text(StateBackend):
    """Keeps each state as text."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    async def save_state(self, run_id: str, state: State) -> None:
        self.texts[run_id] = self.dump(state)

    async def load_state(self, run_id: str) -> State | None:
        text = self.texts.get(run_id)
        return None if text is None else self.parse(text)

    async def delete_state(self, run_id: str) -> None:
        self.texts.pop(run_id, None)

    def dump(self, state: State) -> str:
        return json.dumps(state, default=as_text)

    def parse(self, text: str) -> State:
        state: State = json.loads(text)
        return state


class Files(Text):
    """Keeps each state in a file, which is replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def path(self, run_id: str) -> Path:
        return self.folder / f"{sha256(run_id.encode()).hexdigest()}.json"

    async def save_state(self, run_id: str, state: State) -> None:
        part = self.path(run_id).with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        part.write_text(self.dump(state), encoding="utf-8")
        part.replace(self.path(run_id))

    async def load_state(self, run_id: str) -> State | None:
        try:
            return self.parse(self.path(run_id).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    async def delete_state(self, run_id: str) -> None:
        self.path(run_id).unlink(missing_ok=True)


class Live(Text):
    """Is handed live values, and stores them with a codec."""

    codec = Codec()

    def dump(self, state: State) -> str:
        assert self.codec is not None
        state = checked_state(state["run_id"], state)
        records = [record_from(found) for found in state.get("step_history") or ()]
        state["step_history"] = [self.lowered(record) for record in records]
        for name in ("last_step_output", "input"):
            state[name] = self.codec.lower(state.get(name), name.removeprefix("last_step_"))
        fields = self.codec.encode_fields(state["pipeline_context"], "context")
        state["pipeline_context"] = {name: json.loads(text) for name, text in fields.items()}
        return super().dump(state)

    def parse(self, text: str) -> State:
        assert self.codec is not None
        state = super().parse(text)
        state = checked_state(state["run_id"], state)
        state["due_at"] = as_moment(state.get("due_at"))
        for name in ("last_step_output", "input"):
            state[name] = self.codec.lift(state[name])
        state["pipeline_context"] = {k: self.codec.lift(v) for k, v in state["pipeline_context"].items()}
        state["step_history"] = [self.lifted(found) for found in state["step_history"]]
        return state

    def lowered(self, record: StepResult) -> State:
        assert self.codec is not None
        facts = {name: getattr(record, name) for name in StepResult.__slots__}
        facts["output"] = self.codec.lower(record.output)
        if record.context_changes is not None:
            facts["context_changes"] = {k: [self.codec.lower(v) for v in n] for k, n in record.context_changes.items()}
        return facts

    def lifted(self, facts: State) -> StepResult:
        assert self.codec is not None
        facts = {**facts, "output": self.codec.lift(facts["output"])}
        if facts.get("context_changes") is not None:
            facts["context_changes"] = {k: [self.codec.lift(v) for v in n] for k, n in facts["context_changes"].items()}
        return record_from(facts)


class Fenced(Text):
    """Has claims of its own: a table of owners beside the states, and a lock around both."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.owners: dict[str, int] = {}
        self.saved: dict[str, tuple[int, str]] = {}  # fence and content of the newest save
        self.fences = itertools.count(1)
        self.letters: dict[str, list[Message]] = {}

    async def save_state(self, run_id: str, state: State) -> None:
        with self.lock:
            guarded = state.pop("guard", False) or state["status"] == "paused"
            fence = state.get("fence")
            if fence is None:
                self.refuse_owned(run_id)
                self.texts[run_id] = self.by_hand(run_id, state)
                self.saved.pop(run_id, None)
                return
            text = self.dump(state)
            if self.saved.get(run_id) == (fence, text):
                return
            newest = self.rev(run_id)
            if self.owners.get(run_id) != fence or state["rev"] != newest + 1:
                raise FencedError(f"The save of run {run_id!r} was refused.", run_id=run_id)
            if guarded and self.unread(run_id, state):
                raise UnreadMailError(f"Run {run_id!r} has mail.", run_id=run_id)
            self.texts[run_id], self.saved[run_id] = self.whole(run_id, state), (fence, text)
            if state["status"] != "running":
                del self.owners[run_id]

    def rev(self, run_id: str) -> int:
        rev: int = self.parse(self.texts[run_id])["rev"] if run_id in self.texts else 0
        return rev

    def by_hand(self, run_id: str, state: State) -> str:
        return self.dump({"step_history": [], "history_offset": 0, **state, "rev": self.rev(run_id) + 1})

    def whole(self, run_id: str, state: State) -> str:
        return self.dump(state)

    def refuse_owned(self, run_id: str) -> None:
        if run_id in self.owners:
            raise RunInProgressError(f"Run {run_id!r} is being executed.", run_id=run_id)

    async def delete_state(self, run_id: str) -> None:
        with self.lock:
            self.refuse_owned(run_id)
            self.letters.pop(run_id, None)
            await super().delete_state(run_id)

    def unread(self, run_id: str, state: State | None) -> bool:
        return any(message.seq > ((state or {}).get("mail_seen") or 0) for message in self.letters.get(run_id, ()))

    async def post(self, run_id: str, message: Message) -> int:
        with self.lock:
            state = self.head(run_id) or {}
            if not state and run_id not in self.owners:
                raise RunNotFoundError(f"There is no run {run_id!r}.", run_id=run_id)
            there = self.letters.setdefault(run_id, [])
            for known in there:
                if known.id == message.id and message.kind != "answer":
                    return known.seq
            status = "running" if run_id in self.owners else state["status"]
            error = refusal(
                run_id, status, state.get("phase"), state.get("waiting"), message,
                lambda prefix: [known for known in there if known.id.startswith(prefix)],
            )  # fmt: skip
            if error is not None:
                raise error
            there.append(replace(message, seq=len(there) + 1))
            return len(there)

    async def mail(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[Message]:
        return [message for message in self.letters.get(run_id, ()) if message.seq > after][:limit]

    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        with self.lock:
            state = self.head(run_id)
            unread = self.unread(run_id, state)
            if state is not None and settled(
                state["status"], as_moment(state.get("due_at")), now, state.get("phase"), unread=unread
            ):
                return Claim(fence=None, state=state, unread=unread)
            if not force:
                self.refuse_owned(run_id)
            fence = self.owners[run_id] = next(self.fences)
            return Claim(fence=fence, state=state, unread=unread)

    def head(self, run_id: str) -> State | None:
        return self.parse(self.texts[run_id]) if run_id in self.texts else None

    async def release(self, run_id: str, fence: int) -> None:
        self.abandon(run_id, fence)

    def abandon(self, run_id: str, fence: int, *, refused: bool = False) -> None:
        with self.lock:
            if self.owners.get(run_id) == fence:
                del self.owners[run_id]

    def holds(self, run_id: str, fence: int) -> bool:
        return self.owners.get(run_id) == fence


class Readable(Text, Reading):
    """Has Reading: keeps every save, and adds the steps of each to those before."""

    def __init__(self) -> None:
        super().__init__()
        self.older: dict[str, list[str]] = {}
        self.order: dict[str, tuple[datetime, int]] = {}
        self.ticks = itertools.count()

    async def save_state(self, run_id: str, state: State) -> None:
        await super().save_state(run_id, self.joined(run_id, state))
        self.note(run_id, state)

    def joined(self, run_id: str, state: State) -> State:
        """Return the state with all of its history."""
        known = self.parse(self.texts[run_id])["step_history"] if run_id in self.texts else []
        earlier = known[: state.get("history_offset", 0)]
        records = [*earlier, *state.get("step_history", ())]
        return {"rev": len(self.older.get(run_id, ())) + 1, **state, "step_history": records, "history_offset": 0}

    def note(self, run_id: str, state: State) -> None:
        newest = self.older.setdefault(run_id, [])
        if not newest or newest[-1] != self.texts[run_id]:
            newest.append(self.texts[run_id])
        moment = checked_state(run_id, state)["updated_at"]
        if state["status"] != "running" or run_id not in self.order or state.get("fence") is None:
            self.order[run_id] = (moment, next(self.ticks))

    async def delete_state(self, run_id: str) -> None:
        await super().delete_state(run_id)
        self.older.pop(run_id, None)
        self.order.pop(run_id, None)

    def headed(self, state: State) -> State:
        return {**state, "history_offset": len(state["step_history"]), "step_history": []}

    async def history(
        self, run_id: str, *, after: int = 0, limit: int | None = None, strict: bool = False
    ) -> list[StepResult]:
        check_page(after=after, limit=limit)
        state = await self.load_state(run_id)
        records = [record_from(found) for found in state["step_history"]] if state else []
        return records[after : None if limit is None else after + limit]

    async def load_at(self, run_id: str, rev: int | None = None, *, head: bool = True) -> State | None:
        saves = self.older.get(run_id, [])
        place = len(saves) if rev is None else rev
        if not 0 < place <= len(saves):
            return None
        state = self.parse(saves[place - 1])
        return self.headed(state) if head else state

    async def list_runs(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 100,
        offset: int = 0,
        after: str | None = None,
        since: datetime | None = None,
    ) -> list[RunSummary]:
        check_page(limit=limit, offset=offset)
        found = [(self.order[run_id], state) for run_id, state in self.wanted(where or {})]
        found.sort(key=lambda pair: pair[0], reverse=True)
        if since is not None:
            found = [pair for pair in found if pair[0][0] >= checked_moment(since)]
        if after is not None:
            found = [pair for pair in found if pair[0] < self.order[after]]
        return [self.summary(state) for _, state in found[offset : offset + limit]]

    async def count_runs(self, where: Mapping[str, str] | None = None, *, by: str = "status") -> dict[str, int]:
        self.check(by)
        counts: dict[str, int] = {}
        for _, state in self.wanted(where or {}):
            counts[state[by]] = counts.get(state[by], 0) + 1
        return counts

    def wanted(self, where: Mapping[str, str]) -> list[tuple[str, State]]:
        for name in where:
            self.check(name)
        every = [(run_id, self.shown(run_id)) for run_id in self.texts]
        return [(run_id, state) for run_id, state in every if all(self.fact(state, k) == v for k, v in where.items())]

    def shown(self, run_id: str) -> State:
        state = self.parse(self.texts[run_id])
        if run_id in getattr(self, "owners", ()):
            state["status"] = "running"
        return checked_state(run_id, state)

    @staticmethod
    def check(name: str) -> None:
        if name not in ("status", "pipeline_id", "pipeline_name", "error"):
            raise ConfigurationError(f"Runs have no {name!r}.")

    @staticmethod
    def fact(state: State, name: str) -> str | None:
        """Return what a run is told apart by."""
        if name != "error":
            return str(state[name])
        error = state.get("error")
        return f"{error['type']}: {error['text']}" if error and state["status"] != "running" else None

    @staticmethod
    def summary(state: State) -> RunSummary:
        error = state.get("error")
        names = (
            "run_id", "pipeline_id", "pipeline_name", "pipeline_version", "status", "current_step_index", "created_at",
            "updated_at",
        )  # fmt: skip
        return RunSummary(
            total_steps=state.get("total_steps"),
            error_message=f"{error['type']}: {error['text']}" if error else None,
            **{name: state[name] for name in names},
        )


def checked_moment(moment: datetime) -> datetime:
    found = as_moment(moment.isoformat())
    assert found is not None
    return found


class FencedReadable(Readable, Fenced):
    """Has both; a fenced save is joined to what is there once it is known to be the next one."""

    def __init__(self) -> None:
        super().__init__()

    async def save_state(self, run_id: str, state: State) -> None:
        with self.lock:
            await Fenced.save_state(self, run_id, state)
            self.note(run_id, state)

    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        with self.lock:
            found = await super().claim(run_id, new, now=now, force=force, inline=inline)
            if found.fence is not None and run_id in self.order:
                self.order[run_id] = (now, next(self.ticks))
            return found

    def head(self, run_id: str) -> State | None:
        state = super().head(run_id)
        return None if state is None else self.headed(state)

    def whole(self, run_id: str, state: State) -> str:
        return self.dump(self.joined(run_id, state))

    def by_hand(self, run_id: str, state: State) -> str:
        return self.dump({**self.joined(run_id, state), "rev": len(self.older.get(run_id, ())) + 1})


class LiveFenced(Live, Fenced):
    """With a codec and claims."""


class LiveReadable(Readable, Live):
    """With a codec and Reading."""


class LiveFencedReadable(FencedReadable, Live):
    """With everything that flujo's own backends have."""
