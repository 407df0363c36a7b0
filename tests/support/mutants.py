"""For each test of the conformance suite a backend with the one flaw that this test is there to find."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flujo import InMemoryBackend, SQLiteBackend, StateBackend, StepResult
from flujo.errors import NotSerializableError, RunInProgressError
from flujo.state.backends.base import Claim, NewRun, RunSummary
from flujo.state.models import FIELDS
from flujo.testing import BackendSuite
from tests.support import wrong_backends as wrong
from tests.support.backends import ByReference
from tests.support.reference_backends import (
    Fenced,
    FencedReadable,
    Live,
    LiveFenced,
    Readable,
    Text,
)

State = dict[str, Any]
Change = Callable[[State], State]


def saving(change: Change) -> type[Text]:
    """Return a backend that saves something else than it is given."""

    class Saving(Text):
        async def save_state(self, run_id: str, state: State) -> None:
            await super().save_state(run_id, change(dict(state)))

    return Saving


def status(old: str, new: str) -> type[Text]:
    return saving(lambda state: state | {"status": new if state["status"] == old else state["status"]})


class OnlyClaims(Text):
    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        return Claim(fence=1, state=await self.load_state(run_id))


class NeverNone(Text):
    async def load_state(self, run_id: str) -> State | None:
        return await super().load_state(run_id) or {}


class FloatsAsIntegers(Text):
    def parse(self, text: str) -> State:
        state: State = json.loads(text, parse_float=lambda digits: int(float(digits)) if digits.endswith(".0") else float(digits))  # fmt: skip  # noqa: E501
        return state


class NaiveTimes(InMemoryBackend):
    async def load_state(self, run_id: str) -> State | None:
        state = await super().load_state(run_id)
        return state and state | {"created_at": state["created_at"].replace(tzinfo=None)}


class NeverGoesBack(Text):
    async def save_state(self, run_id: str, state: State) -> None:
        there = await self.load_state(run_id)
        if there is None or there["current_step_index"] <= state["current_step_index"]:
            await super().save_state(run_id, state)


class NeverDeletes(Text):
    async def delete_state(self, run_id: str) -> None:
        pass


class KeepsTheNewest(Text):
    async def save_state(self, run_id: str, state: State) -> None:
        await super().save_state(run_id, state)
        while len(self.texts) > 50:
            del self.texts[next(iter(self.texts))]


class IgnoresTheNameless(Text):
    async def save_state(self, run_id: str, state: State) -> None:
        if run_id.strip():
            await super().save_state(run_id, state)


class Lags(Text):
    """Gives the state of the save before the newest."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, str] = {}

    async def save_state(self, run_id: str, state: State) -> None:
        if run_id in self.texts:
            self.before[run_id] = self.texts[run_id]
        await super().save_state(run_id, state)

    async def load_state(self, run_id: str) -> State | None:
        text = self.before.get(run_id)
        return await super().load_state(run_id) if text is None else self.parse(text)


class TakesAnything(Live):
    def dump(self, state: State) -> str:
        try:
            return super().dump(state)
        except NotSerializableError:
            records = [replace(record, output=str(record.output)) for record in state["step_history"]]
            return super().dump(state | {"last_step_output": str(state["last_step_output"]), "step_history": records})


class NeverReleases(Text):
    async def release(self, run_id: str, fence: int) -> None:
        pass


class NeverAbandons(Text):
    def abandon(self, run_id: str, fence: int, *, refused: bool = False) -> None:
        pass

    async def release(self, run_id: str, fence: int) -> None:
        super().abandon(run_id, fence)


class ReleasesAnybodys(Text):
    async def release(self, run_id: str, fence: int) -> None:
        self._owned().pop(run_id, None)


class Claims(Fenced):
    """What its claims do otherwise, in `taken`."""

    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        return await self.taken(run_id, new, now, force)

    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        return await super().claim(run_id, new, now=now, force=force)


class ClaimIsLostWhenCancelled(Claims):
    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        found = await super().taken(run_id, new, now, force)
        await asyncio.sleep(0)
        return found


class EveryClaimIsForced(Claims):
    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        return await super().taken(run_id, new, now, True)


class ClaimsRace(Claims):
    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        self.refuse_owned(run_id)
        await asyncio.sleep(0)
        return await super().taken(run_id, new, now, True)


class NoForce(Claims):
    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        if run_id in self.owners:
            raise RunInProgressError("no")
        return await super().taken(run_id, new, now, False)


class ForgetsDueTimes(Claims):
    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        return await super().taken(run_id, new, now - timedelta(days=1), force)


class ClaimsWithoutState(Claims):
    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        return replace(await super().taken(run_id, new, now, force), state=None)


class ClaimsWithoutRev(Claims):
    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        found = await super().taken(run_id, new, now, force)
        return replace(found, state=found.state and {k: v for k, v in found.state.items() if k != "rev"})


class OneLoop(Text):
    loop: Any = None

    async def save_state(self, run_id: str, state: State) -> None:
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("attached to a different loop")
        await super().save_state(run_id, state)


class ForgetsHowItFoundIt(InMemoryBackend):
    def abandon(self, run_id: str, fence: int, *, refused: bool = False) -> None:
        super().abandon(run_id, fence)


class LosesTheRunWithASave(LiveFenced):
    async def save_state(self, run_id: str, state: State) -> None:
        try:
            await super().save_state(run_id, state)
        except NotSerializableError:
            self.owners.pop(run_id, None)
            raise


class WholeHistory(Readable):
    async def history(
        self, run_id: str, *, after: int = 0, limit: int | None = None, strict: bool = False
    ) -> list[StepResult]:
        return (await super().history(run_id))[:limit]


class OneAttempt(Readable):
    async def history(
        self, run_id: str, *, after: int = 0, limit: int | None = None, strict: bool = False
    ) -> list[StepResult]:
        return [replace(record, attempts=1) for record in await super().history(run_id, after=after, limit=limit)]


class NewestAlways(FencedReadable):
    async def load_at(self, run_id: str, rev: int | None = None, *, head: bool = True) -> State | None:
        found = await super().load_at(run_id, head=head)
        return found and found | {"rev": rev or found["rev"]}


class OrderOfCreation(Readable):
    def note(self, run_id: str, state: State) -> None:
        super().note(run_id, state)
        self.order[run_id] = (datetime(2026, 1, 1, tzinfo=UTC), next(self.ticks))


class TiesAreLost(Readable):
    """Its pages go on after the moment that the last one ended with."""

    async def list_runs(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 100,
        offset: int = 0,
        after: str | None = None,
        since: datetime | None = None,
    ) -> list[RunSummary]:
        found = await super().list_runs(where, limit=1000, since=since)
        if after is not None:
            found = [run for run in found if run.updated_at < self.order[after][0]]
        return found[offset : offset + limit]


class NoReason(Readable):
    @staticmethod
    def summary(state: State) -> RunSummary:
        return Readable.summary(state | {"error": None})


class CountsAll(Readable):
    async def count_runs(self, where: Mapping[str, str] | None = None, *, by: str = "status") -> dict[str, int]:
        return await super().count_runs(by=by)


class ClaimsAreNoUpdates(FencedReadable):
    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        return await Fenced.claim(self, run_id, new, now=now, force=force, inline=inline)


def forgetful(state: State) -> State:
    """Keep of a step record what was known of one at first."""
    known = ("path", "output", "success", "attempts", "latency_s", "feedback")
    records = [{name: record[name] for name in known} for record in state.get("step_history", ())]
    return state | {"step_history": records}


def phaseless(state: State) -> State:
    return state | {"phase": None} if state["status"] != "running" else state


class OneRecordASave(Readable):
    def joined(self, run_id: str, state: State) -> State:
        return super().joined(run_id, {**state, "step_history": state.get("step_history", [])[-1:]})


class ClaimsTheUndone(Claims):
    async def taken(self, run_id: str, new: NewRun, now: datetime, force: bool) -> Claim:
        state = self.head(run_id)
        if state is not None and state["status"] == "failed":
            return Claim(fence=next(self.fences), state=state)
        return await super().taken(run_id, new, now, force)


class OnlyNewSteps(Readable):
    def joined(self, run_id: str, state: State) -> State:
        return {"rev": 1, **state}


class UnhurtByDeath(SQLiteBackend):
    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        return replace(await super().claim(run_id, new, now=now, force=force, inline=inline), crashes=0)


class Robber(SQLiteBackend):
    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        return await super().claim(run_id, new, now=now, force=True, inline=inline)


class UnhurtByDeathSuite(BackendSuite):
    def make(self, place: Path) -> StateBackend:
        return UnhurtByDeath(place / "runs.db")


class RobberSuite(BackendSuite):
    def make(self, place: Path) -> StateBackend:
        return Robber(place / "runs.db")


_seconds = itertools.count()
TenFields = saving(lambda state: {name: state[name] for name in FIELDS})
FLAWS: dict[str, list[Callable[[], StateBackend] | type[BackendSuite]]] = {
    "test_capabilities_are_whole": [OnlyClaims],
    "test_an_unknown_run_is_none": [NeverNone],
    "test_the_ten_fields_come_back": [saving(lambda state: state | {"pipeline_version": "2.1"})],
    "test_json_comes_back_exactly": [FloatsAsIntegers],
    "test_every_status_comes_back": [status("cancelled", "failed")],
    "test_times_are_utc": [
        saving(lambda state: state | {"updated_at": state["updated_at"].replace(microsecond=0)}),
        NaiveTimes,
    ],
    "test_the_newest_save_counts": [NeverGoesBack],
    "test_a_deleted_run_is_gone": [NeverDeletes],
    "test_runs_are_kept_apart": [KeepsTheNewest],
    "test_run_ids_that_look_alike": [wrong.MixesUpRunsSuite],
    "test_run_ids_that_no_run_may_have": [IgnoresTheNameless],
    "test_what_is_saved_is_a_copy": [lambda: ByReference({})],
    "test_the_other_fields_come_back": [TenFields],
    "test_step_records_come_back": [saving(forgetful)],
    "test_sub_steps_share_a_save": [OneRecordASave, saving(forgetful)],
    "test_where_a_run_is_within_a_step_comes_back": [saving(phaseless), TenFields],
    "test_a_save_that_returns_is_made": [wrong.SwallowsErrorsSuite],
    "test_each_step_is_saved_before_the_next_one_starts": [wrong.LosesTheLastSaveSuite],
    "test_a_completed_run_is_not_executed_again": [TenFields],
    "test_a_failed_run_goes_on_where_it_failed": [TenFields, status("failed", "completed")],
    "test_what_a_run_began_with_is_kept": [TenFields],
    "test_a_run_that_waits_or_is_cancelled_is_left_alone": [status("paused", "running")],
    "test_a_state_saved_by_hand_goes_on_at_its_index": [wrong.LosesTheLastSaveSuite],
    "test_values_come_back_exactly_from_a_run": [wrong.TuplesAsListsSuite],
    "test_values_come_back_exactly_by_hand": [wrong.TuplesAsListsSuite],
    "test_a_value_that_cannot_be_restored_fails_the_run": [TakesAnything],
    "test_a_subclass_sees_every_checkpoint": [Lags],
    "test_an_error_in_a_save_stops_the_run": [NeverReleases],
    "test_a_run_cancelled_at_any_await_goes_on": [ClaimIsLostWhenCancelled],
    "test_many_runs_at_once": [wrong.MixesUpRunsAtOnceSuite, OneLoop],
    "test_created_at_is_set_once": [
        saving(lambda state: state | {"created_at": state["created_at"] + timedelta(seconds=next(_seconds))})
    ],
    "test_a_run_has_one_owner": [EveryClaimIsForced],
    "test_one_of_many_gets_the_run": [ClaimsRace],
    "test_releasing_with_an_old_fence_does_nothing": [ReleasesAnybodys],
    "test_force_takes_the_run_from_its_owner": [NoForce],
    "test_an_abandoned_run_can_be_claimed": [NeverAbandons],
    "test_a_settled_run_is_not_claimed": [ForgetsDueTimes, ClaimsTheUndone, status("cancelled", "failed")],
    "test_a_failed_or_running_run_is_claimed_with_its_state": [ClaimsWithoutState],
    "test_a_runner_frees_the_run": [NeverReleases],
    "test_an_old_fence_is_refused": [wrong.IgnoresTheFenceSuite],
    "test_a_made_up_fence_is_refused": [wrong.IgnoresTheFenceSuite],
    "test_a_gap_in_the_saves_is_refused": [wrong.IgnoresTheFenceSuite],
    "test_the_same_save_twice_is_one": [wrong.IgnoresTheFenceSuite],
    "test_nobody_else_touches_an_owned_run": [wrong.IgnoresTheFenceSuite],
    "test_the_last_save_frees_the_run": [wrong.IgnoresTheFenceSuite],
    "test_a_claim_goes_on_where_the_saves_ended": [ClaimsWithoutRev],
    "test_a_refused_claim_leaves_the_status": [ForgetsHowItFoundIt],
    "test_a_refused_save_can_be_made_again": [LosesTheRunWithASave],
    "test_messages_come_back_in_their_order": [wrong.LosesItsMailSuite],
    "test_a_message_is_stored_once": [wrong.StoresTwice],
    "test_a_message_that_a_run_cannot_take_is_refused": [wrong.SwallowsRefusals],
    "test_an_answer_is_given_once": [wrong.SwallowsRefusals],
    "test_a_paused_run_with_mail_is_claimed": [wrong.LosesItsMailSuite],
    "test_mail_outlives_the_backend": [wrong.LosesItsMailSuite],
    "test_mail_comes_to_a_run_that_is_executed": [wrong.ForgetsEarlyMail],
    "test_a_guarded_save_waits_for_the_mail_to_be_read": [wrong.IgnoresTheGuard],
    "test_history_comes_in_pages": [WholeHistory],
    "test_records_are_whole": [OneAttempt],
    "test_every_older_state_can_be_loaded": [NewestAlways],
    "test_the_newest_runs_are_listed_first": [OrderOfCreation],
    "test_listings_come_in_pages": [TiesAreLost],
    "test_a_page_of_less_than_nothing_is_refused": [WholeHistory],
    "test_a_summary_tells_how_a_run_stands": [NoReason],
    "test_runs_are_counted": [CountsAll],
    "test_a_run_without_a_save_is_not_listed": [ClaimsAreNoUpdates],
    "test_a_save_holds_only_what_is_new": [OnlyNewSteps],
    "test_a_second_backend_sees_everything": [wrong.LosesTheLastSaveSuite],
    "test_a_store_outlives_its_backends": [wrong.LosesTheLastSaveSuite],
    "test_another_process_sees_everything": [wrong.LosesTheLastSaveSuite],
    "test_another_process_goes_on": [wrong.LosesTheLastSaveSuite],
    "test_a_killed_process_loses_nothing": [wrong.LosesTheLastSaveSuite],
    "test_a_killed_process_loses_no_sub_step": [wrong.LosesTheLastSaveSuite],
    "test_a_full_disk_is_an_error": [wrong.SwallowsErrorsSuite],
    "test_the_owner_in_another_process_is_respected": [RobberSuite],
    "test_a_dead_owner_is_replaced_at_once": [UnhurtByDeathSuite],
}


def suite_of(flaw: Callable[[], StateBackend] | type[BackendSuite]) -> type[BackendSuite]:
    """Return the suite of a backend in memory, or the suite that it is already."""
    if isinstance(flaw, type) and issubclass(flaw, BackendSuite):
        return flaw
    makes: Any = flaw

    class OfOne(BackendSuite):
        durable = False

        def make(self, place: Path) -> StateBackend:
            backend: StateBackend = makes()
            return backend

    return OfOne
