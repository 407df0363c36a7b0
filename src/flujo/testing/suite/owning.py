"""Claims and fences: that a run has one owner, and that nobody else's save is written.

Every backend has claims, at least the inherited ones, which hold within one process and one backend object. The rules
of the fence are for backends with claims of their own.
"""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

from flujo.errors import FencedError, RunInProgressError
from flujo.state.backends.base import Reading
from flujo.testing.suite.base import (
    PATIENCE_S,
    T0,
    SuiteBase,
    claim,
    expect_index,
    expect_nothing,
    fenced_state,
    finish,
    load,
    not_applicable,
    owned,
    records_of,
    runner,
    save_as_owner,
    state_of,
)
from flujo.testing.suite.expect import expect, refused, same
from flujo.testing.suite.steps import abc, adding

_RUN = "run"
_LATER = T0 + timedelta(hours=1)


class ClaimTests(SuiteBase):
    """`claim`, `release`, `abandon` and `holds`, on one backend object."""

    def test_a_run_has_one_owner(self, tmp_path: Path) -> None:
        """A run that is claimed can be claimed by nobody else, until it is released; other runs can."""
        backend = self.open(tmp_path)

        async def main() -> None:
            first = await owned(backend, _RUN)
            await expect_nothing(backend, _RUN, "the run was claimed, and no step of it saved")
            expect(backend.holds(_RUN, first), "holds() says no of the fence that the claim has just given.")
            for _ in range(2):
                with refused(RunInProgressError, "claiming a run that a live owner has"):
                    await claim(backend, _RUN)
            other = await owned(backend, "other")
            await backend.release(_RUN, first)
            expect(not backend.holds(_RUN, first), "holds() says yes of a fence that was released.")
            second = await owned(backend, _RUN)
            expect(second != first, f"two claims of one run got the same fence, {first!r}.")
            expect(backend.holds("other", other), "releasing a run has released another one.")

        finish(main())

    def test_one_of_many_gets_the_run(self, tmp_path: Path) -> None:
        """Of claims that race, in several threads and event loops, exactly one succeeds."""
        backend = self.open(tmp_path)
        for number in range(5):
            got: list[Any] = []
            refusals: list[Any] = []

            async def race(run_id: str, got: list[Any], refusals: list[Any]) -> None:
                for found in await asyncio.gather(*(claim(backend, run_id) for _ in range(3)), return_exceptions=True):
                    (refusals if isinstance(found, BaseException) else got).append(found)

            start = (lambda *args: asyncio.run(race(*args)), (f"run {number}", got, refusals))
            threads = [threading.Thread(target=start[0], args=start[1], daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
            kinds = {type(error).__name__ for error in refusals}
            same(len(got), 1, "how many of twelve claims that raced for one run got it")
            same((len(refusals), kinds), (11, {"RunInProgressError"}), "the claims that were refused, and with what")

    def test_releasing_with_an_old_fence_does_nothing(self, tmp_path: Path) -> None:
        """Release may be called twice, and late: it never takes a run away from its next owner."""
        backend = self.open(tmp_path)

        async def main() -> None:
            old = await owned(backend, _RUN)
            await backend.release(_RUN, old)
            await backend.release(_RUN, old)
            await backend.release("never", old)
            new = await owned(backend, _RUN)
            await backend.release(_RUN, old)
            backend.abandon(_RUN, old)
            expect(backend.holds(_RUN, new), "releasing with an old fence took the run from its new owner.")
            with refused(RunInProgressError, "claiming a run after somebody released it with an old fence"):
                await claim(backend, _RUN)

        finish(main())

    def test_force_takes_the_run_from_its_owner(self, tmp_path: Path) -> None:
        """A claim with force succeeds where a live owner has the run, who from then on does not hold it."""
        backend = self.open(tmp_path)

        async def main() -> None:
            old = await owned(backend, _RUN)
            new = await owned(backend, _RUN, force=True)
            expect(not backend.holds(_RUN, old), "holds() says yes to the old owner, after a claim with force.")
            expect(backend.holds(_RUN, new), "holds() says no to the new owner, after a claim with force.")

        finish(main())

    def test_an_abandoned_run_can_be_claimed(self, tmp_path: Path) -> None:
        """`abandon`, which a finalizer calls, gives the run back without being awaited."""
        backend = self.open(tmp_path)

        async def main() -> None:
            fence = await owned(backend, _RUN)
            backend.abandon(_RUN, fence)
            expect(not backend.holds(_RUN, fence), "holds() says yes of a run that was abandoned.")
            await _claimed_soon(backend, _RUN)

        finish(main())

    def test_a_settled_run_is_not_claimed(self, tmp_path: Path) -> None:
        """A run that is over, or waits, is answered with its state and no fence; one whose time has come is claimed."""
        backend = self.open(tmp_path)
        waits = {"due_at": T0 + timedelta(minutes=1)}
        undone = {"phase": "undone", "error": {"type": "OSError", "text": "down"}}
        settled: list[tuple[str, dict[str, Any]]] = [
            ("completed", {}), ("cancelled", {}), ("failed", undone), ("paused", {}), ("paused", waits),
        ]  # fmt: skip

        async def main() -> None:
            for status, more in settled:
                state = state_of(_RUN, 3, status=status, **more)
                await backend.save_state(_RUN, dict(state))
                for force in (False, True):
                    found = await claim(backend, _RUN, force=force)
                    same(found.fence, None, f"the fence of a claim (force={force}) of a run that is {status} {more}")
                    index = (found.state or {}).get("current_step_index")
                    same(index, 3, f"the index that the claim of a {status} run gave")
                same((await load(backend, _RUN))["status"], status, f"the status of a {status} run after a claim")
            found = await claim(backend, _RUN, at=_LATER)
            expect(found.fence is not None, "a paused run whose due_at has passed was not claimed.")

        finish(main())

    def test_a_failed_or_running_run_is_claimed_with_its_state(self, tmp_path: Path) -> None:
        """The claim of a run that can go on gives a fence and the newest state."""
        backend = self.open(tmp_path)

        async def main() -> None:
            for status, phase in (("running", None), ("failed", None), ("running", "undoing"), ("failed", "undoing")):
                await backend.save_state(_RUN, state_of(_RUN, 2, status=status, phase=phase))
                found = await claim(backend, _RUN)
                expect(found.fence is not None, f"a run that is {status}, phase {phase}, was not claimed.")
                same((found.state or {}).get("phase"), phase, f"the phase that the claim of a {status} run gave")
                same(
                    (found.state or {}).get("last_step_output"), 2, f"the output that the claim of a {status} run gave"
                )
                await backend.release(_RUN, found.fence or 0)

        finish(main())

    def test_a_runner_frees_the_run(self, tmp_path: Path) -> None:
        """However a run ends - completed, failed, cancelled, left in the middle - it can be claimed afterwards."""
        backend = self.open(tmp_path)

        async def fail() -> None:
            raise OSError("down")

        entered = asyncio.Event()

        async def hang() -> None:
            entered.set()
            await asyncio.Event().wait()

        async def main() -> None:
            await runner(abc([], at_b=fail), backend).run_async([], run_id="failed")
            await owned(backend, "failed")
            task = asyncio.ensure_future(runner(abc([], at_b=hang), backend).run_async([], run_id="cancelled"))
            await entered.wait()
            with refused(RunInProgressError, "claiming a run that is being executed"):
                await claim(backend, "cancelled")
            task.cancel()
            await asyncio.wait([task])
            await owned(backend, "cancelled")
            await runner(adding("a", []), backend).run_async([], run_id="completed")
            async for _ in runner(adding("a", []), backend).run_async([], run_id="left"):
                break
            for run_id in ("completed", "left"):
                await backend.save_state(run_id, state_of(run_id, 1))
                await _claimed_soon(backend, run_id)

        finish(main())


async def _claimed_soon(backend: Any, run_id: str) -> Any:
    """Claim a run that is being given back in the background."""
    for _ in range(200):
        try:
            return await owned(backend, run_id)
        except RunInProgressError:
            await asyncio.sleep(0.01)
    raise AssertionError(f"run {run_id!r} was abandoned two seconds ago, and still cannot be claimed.")


class FenceTests(SuiteBase):
    """What a backend with claims of its own promises: every save is fenced."""

    def test_an_old_fence_is_refused(self, tmp_path: Path) -> None:
        """The saves of an owner who was replaced raise FencedError, and nothing of them is written."""
        backend = self.open_fenced(tmp_path)
        other = self.reopen(tmp_path, backend)

        async def main() -> None:
            old = await owned(backend, _RUN)
            await save_as_owner(backend, _RUN, old, 1)
            new = await owned(other, _RUN, force=True)
            for rev in (2, 1, 3):
                with refused(FencedError, f"save {rev} with an old fence"):
                    await save_as_owner(backend, _RUN, old, rev, last_step_output="stale")
            await expect_index(other, _RUN, 1, "after saves with an old fence")
            await save_as_owner(other, _RUN, new, 2)
            with refused(FencedError, "a save with an old fence, after the new owner's first"):
                await save_as_owner(backend, _RUN, old, 3, last_step_output="stale")
            await expect_index(other, _RUN, 2, "after a save with an old fence")
            await save_as_owner(other, _RUN, new, 3, 4)
            await expect_index(backend, _RUN, 4, "after the new owner's saves")

        finish(main())

    def test_a_made_up_fence_is_refused(self, tmp_path: Path) -> None:
        """A fence that no claim has given writes nothing, and a fenced save never creates a run."""
        backend = self.open_fenced(tmp_path)

        async def main() -> None:
            with refused(FencedError, "a save of an unknown run, with a fence"):
                await save_as_owner(backend, "never", 12345678, 1)
            await expect_nothing(backend, "never", "only a fenced save was tried")
            fence = await owned(backend, _RUN)
            other = await owned(backend, "other")
            expect(fence != other, f"the claims of two runs got the same fence, {fence!r}.")
            await save_as_owner(backend, _RUN, fence, 1)
            with refused(FencedError, "a save with the fence of another run"):
                await save_as_owner(backend, _RUN, other, 2)
            await backend.release(_RUN, fence)
            await backend.delete_state(_RUN)
            with refused(FencedError, "a save of a run that was deleted"):
                await save_as_owner(backend, _RUN, fence, 2)
            await expect_nothing(backend, _RUN, "the run was deleted")

        finish(main())

    def test_a_gap_in_the_saves_is_refused(self, tmp_path: Path) -> None:
        """Saves are numbered: one that does not follow the newest raises FencedError, and nothing is written."""
        backend = self.open_fenced(tmp_path)

        async def main() -> None:
            fence = await owned(backend, _RUN)
            with refused(FencedError, "a first save with rev 2"):
                await save_as_owner(backend, _RUN, fence, 2)
            await expect_nothing(backend, _RUN, "only save 2 was tried")
            await save_as_owner(backend, _RUN, fence, 1, 2)
            for rev in (4, 1):
                with refused(FencedError, f"save {rev} after save 2"):
                    await save_as_owner(backend, _RUN, fence, rev)
                await expect_index(backend, _RUN, 2, f"after save {rev} was refused")
            await save_as_owner(backend, _RUN, fence, 3)
            await expect_index(backend, _RUN, 3, "after save 3")

        finish(main())

    def test_the_same_save_twice_is_one(self, tmp_path: Path) -> None:
        """Repeating a save whose outcome is unknown succeeds and changes nothing; another in its place is refused."""
        backend = self.open_fenced(tmp_path)

        async def main() -> None:
            fence = await owned(backend, _RUN)
            await save_as_owner(backend, _RUN, fence, 1, 2, 2, 2)
            await expect_index(backend, _RUN, 2, "after save 2 was made three times")
            with refused(FencedError, "another save with the number of one that is made"):
                await save_as_owner(backend, _RUN, fence, 2, last_step_output="other")
            await expect_index(backend, _RUN, 2, "after another save 2 was refused")
            await save_as_owner(backend, _RUN, fence, 3)
            steps = [record.name for record in records_of(await load(backend, _RUN))]
            same(steps, ["s1", "s2", "s3"], "the history of a run whose second save was made three times")

        finish(main())

    def test_nobody_else_touches_an_owned_run(self, tmp_path: Path) -> None:
        """A save by hand, without a fence, and a deletion are refused while a live owner has the run."""
        backend = self.open_fenced(tmp_path)
        other = self.reopen(tmp_path, backend)

        async def main() -> None:
            fence = await owned(backend, _RUN)
            for rev in (1, 2):
                for who in (backend, other):
                    with refused(RunInProgressError, "a save by hand of a run that has a live owner"):
                        await who.save_state(_RUN, state_of(_RUN, 7))
                    with refused(RunInProgressError, "deleting a run that has a live owner"):
                        await who.delete_state(_RUN)
                    with refused(RunInProgressError, "claiming a run that has a live owner"):
                        await claim(who, _RUN)
                await save_as_owner(backend, _RUN, fence, rev)
                await expect_index(other, _RUN, rev, "after others tried to change the run")
            await backend.release(_RUN, fence)
            await other.save_state(_RUN, state_of(_RUN, 7))
            with refused(FencedError, "a save by an owner who gave the run back, after one by hand"):
                await save_as_owner(backend, _RUN, fence, 3)
            await expect_index(backend, _RUN, 7, "after a save by hand")
            await other.delete_state(_RUN)
            await expect_nothing(backend, _RUN, "the run was deleted")

        finish(main())

    def test_the_last_save_frees_the_run(self, tmp_path: Path) -> None:
        """A save with a status other than `running` gives the run back: its fence is an old one from then on."""
        backend = self.open_fenced(tmp_path)
        other = self.reopen(tmp_path, backend)

        async def main() -> None:
            for status in ("failed", "paused", "completed", "cancelled"):
                fence = await owned(backend, status)
                await save_as_owner(backend, status, fence, 1)
                await save_as_owner(backend, status, fence, 2, status=status)
                expect(not backend.holds(status, fence), f"holds() says yes of a run that was saved as {status}.")
                with refused(FencedError, f"a save that follows the one with which the run was {status}"):
                    await save_as_owner(backend, status, fence, 3)
                found = await claim(other, status)
                same(found.fence is not None, status == "failed", f"whether a run saved as {status} was claimed")
                same((found.state or {}).get("rev"), 2, f"the rev that the claim of a {status} run gave")
            await other.save_state("completed", state_of("completed", 5))
            await expect_index(backend, "completed", 5, "after a completed run was saved by hand")

        finish(main())

    def test_a_claim_goes_on_where_the_saves_ended(self, tmp_path: Path) -> None:
        """The next owner gets the newest state, its `rev`, and its history or how long that is; and saves the next."""
        backend = self.open_fenced(tmp_path)

        async def main() -> None:
            for rev in (1, 2, 3):
                found = await claim(backend, _RUN)
                state = found.state or {}
                same(state.get("rev", 0), rev - 1, "the rev that the claim gave")
                if rev > 1:
                    same(state["last_step_output"], rev - 1, "the output that the claim gave")
                    there = 0 if isinstance(backend, Reading) else rev - 1
                    same(len(state["step_history"]), there, "how many step records came with the claim")
                    same(state["history_offset"], rev - 1 - there, "history_offset of the claimed state")
                await save_as_owner(backend, _RUN, found.fence, rev)
                await backend.release(_RUN, found.fence or 0)
            await expect_index(backend, _RUN, 3, "after three owners made a save each")

        finish(main())

    def test_a_refused_claim_leaves_the_status(self, tmp_path: Path) -> None:
        """A run that was claimed and not taken up (`abandon(refused=True)`) has the status that it was found in."""
        backend = self.open_fenced(tmp_path)

        async def main() -> None:
            for status in ("failed", "running"):
                await backend.save_state(status, state_of(status, 2, status=status))
                fence = await owned(backend, status)
                backend.abandon(status, fence, refused=True)
                fence = await _claimed_soon(backend, status)
                backend.abandon(status, fence, refused=True)
                await backend.save_state("another", state_of("another"))  # what is done after the abandoning
                same((await load(backend, status))["status"], status, "the status of a run that was not taken up")

        finish(main())

    def test_a_refused_save_can_be_made_again(self, tmp_path: Path) -> None:
        """An owner whose save was refused for its content still owns the run, and saves it with another content."""
        backend = self.open_fenced(tmp_path)
        if backend.codec is None:
            not_applicable("the backend has no codec, so that it is not handed what it could refuse")

        async def main() -> None:
            fence = await owned(backend, _RUN)
            await save_as_owner(backend, _RUN, fence, 1)
            with refused(Exception, "a save of an object that cannot be stored"):
                await save_as_owner(backend, _RUN, fence, 2, last_step_output=object())
            await expect_index(backend, _RUN, 1, "after a save that was refused for its content")
            state = fenced_state(backend, _RUN, fence, 2, current_step_index=1, status="failed", last_step_output=1)
            await backend.save_state(_RUN, state | {"pipeline_context": {"count": 1}})
            await expect_index(backend, _RUN, 1, "after the failure was saved")

        finish(main())
