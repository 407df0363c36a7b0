"""Backends that are wrong on purpose, each in one way, with the suite pointed at it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

from flujo import InMemoryBackend, StateBackend
from flujo.errors import MessageRefusedError, RunEndedError
from flujo.state.backends.base import Claim
from flujo.state.mail import Message
from flujo.testing import BackendSuite
from tests.support.reference_backends import Fenced, Files, Text

State = dict[str, Any]
_numbers = itertools.count()


class LosesTheLastSave(Files):
    """Writes each save when the next one comes, so that there is always one that only this process knows."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.newest: dict[str, State] = {}

    async def save_state(self, run_id: str, state: State) -> None:
        if run_id in self.newest:
            await super().save_state(run_id, self.newest[run_id])
        self.newest[run_id] = self.parse(self.dump(state))

    async def load_state(self, run_id: str) -> State | None:
        newest = self.newest.get(run_id)
        return await super().load_state(run_id) if newest is None else self.parse(self.dump(newest))

    async def delete_state(self, run_id: str) -> None:
        self.newest.pop(run_id, None)
        await super().delete_state(run_id)


class SwallowsErrors(Files):
    """Goes on where a save fails."""

    async def save_state(self, run_id: str, state: State) -> None:
        with contextlib.suppress(Exception):
            await super().save_state(run_id, state)


class IgnoresTheFence(Fenced):
    """Claims runs, but writes whatever anybody saves."""

    async def save_state(self, run_id: str, state: State) -> None:
        with self.lock:
            self.texts[run_id] = self.dump({"rev": 1, "step_history": [], "history_offset": 0, **state})
            if state["status"] != "running":
                self.owners.pop(run_id, None)


class ForgetsToAwait(InMemoryBackend):
    """Looks at each state and hands it on, without an `await`."""

    async def save_state(self, run_id: str, state: State) -> None:
        super().save_state(run_id, state)  # type: ignore[unused-coroutine]


class MixesUpRuns(Files):
    """Names its files after what is harmless in a run_id."""

    def path(self, run_id: str) -> Path:
        return self.folder / (re.sub(r"[^a-z0-9]+", "_", run_id.lower())[:60] + ".json")


class MixesUpRunsAtOnce(Text):
    """Remembers the run that it is at in an attribute."""

    async def save_state(self, run_id: str, state: State) -> None:
        self.run_id = run_id
        await asyncio.sleep(0)
        self.texts[self.run_id] = self.dump(state)


class TuplesAsLists(InMemoryBackend):
    """Makes plain JSON of what has parts."""

    async def save_state(self, run_id: str, state: State) -> None:
        await super().save_state(run_id, {**state, "last_step_output": listed(state["last_step_output"])})


def listed(value: Any) -> Any:
    if type(value) is dict:
        return {key: listed(part) for key, part in value.items()}
    return [listed(part) for part in value] if type(value) in (tuple, list) else value


class LosesItsMail(Files):
    """Keeps messages in this process only, and only until the next save."""

    async def post(self, run_id: str, message: Message) -> int:
        state = await self.load_state(run_id)
        number = await super().post(run_id, message)
        if state is not None:
            await self.save_state(run_id, state)
        return number


class StoresTwice(InMemoryBackend):
    """Forgets that it has a message already."""

    async def post(self, run_id: str, message: Message) -> int:
        return await super().post(run_id, dataclasses.replace(message, id=f"{message.id} {next(_numbers)}"))


class SwallowsRefusals(InMemoryBackend):
    """Says of any message that it was stored."""

    async def post(self, run_id: str, message: Message) -> int:
        try:
            return await super().post(run_id, message)
        except (MessageRefusedError, RunEndedError):
            return 1


class IgnoresTheGuard(InMemoryBackend):
    """Saves whether or not there is mail that was not read."""

    async def save_state(self, run_id: str, state: State) -> None:
        await super().save_state(run_id, {**state, "guard": False})


class ForgetsEarlyMail(InMemoryBackend):
    """Begins a run anew as if nobody had written to it."""

    async def claim(self, run_id: str, *args: Any, **options: Any) -> Claim:
        found = await super().claim(run_id, *args, **options)
        return found if found.state else dataclasses.replace(found, unread=False)


class LosesTheLastSaveSuite(BackendSuite):
    def make(self, place: Path) -> StateBackend:
        return LosesTheLastSave(place)


class SwallowsErrorsSuite(BackendSuite):
    def make(self, place: Path) -> StateBackend:
        return SwallowsErrors(place)


class IgnoresTheFenceSuite(BackendSuite):
    durable = False

    def make(self, place: Path) -> StateBackend:
        return IgnoresTheFence()


class ForgetsToAwaitSuite(BackendSuite):
    durable = False

    def make(self, place: Path) -> StateBackend:
        return ForgetsToAwait()


class MixesUpRunsSuite(BackendSuite):
    def make(self, place: Path) -> StateBackend:
        return MixesUpRuns(place)


class MixesUpRunsAtOnceSuite(BackendSuite):
    durable = False

    def make(self, place: Path) -> StateBackend:
        return MixesUpRunsAtOnce()


class TuplesAsListsSuite(BackendSuite):
    durable = False

    def make(self, place: Path) -> StateBackend:
        return TuplesAsLists()


class LosesItsMailSuite(BackendSuite):
    def make(self, place: Path) -> StateBackend:
        return LosesItsMail(place)
