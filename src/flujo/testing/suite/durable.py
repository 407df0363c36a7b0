"""Durable stores: what one backend object acknowledged every other sees, whatever happens to the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flujo.errors import FencedError, RunInProgressError
from flujo.state.backends.base import Reading
from flujo.testing.suite import values
from flujo.testing.suite.base import (
    SuiteBase,
    claim,
    expect_index,
    expect_nothing,
    expect_saved,
    finish,
    load,
    owned,
    records_of,
    runner,
    save_as_owner,
    state_of,
    sub_step_state,
    sub_steps,
)
from flujo.testing.suite.expect import expect, refused, same
from flujo.testing.suite.process import other_process
from flujo.testing.suite.steps import abc, sampling

_RUN = "run"


class DurableTests(SuiteBase):
    """Skipped where the suite says `durable = False`."""

    def test_a_second_backend_sees_everything(self, tmp_path: Path) -> None:
        """What one backend has saved or deleted, a second one on the same store finds so, and the other way round."""
        one = self.open_durable(tmp_path)
        other = self.open(tmp_path)
        expect(one is not other, "make() gave the same object twice; for a durable store it makes a new one.")

        async def main() -> None:
            for index in (1, 2, 3):
                await one.save_state(_RUN, state_of(_RUN, index))
                await expect_saved(other, state_of(_RUN, index), f"save {index} of one backend, loaded by another")
            await other.save_state(_RUN, state_of(_RUN, 4))
            await expect_saved(one, state_of(_RUN, 4), "the other's save")
            await one.delete_state(_RUN)
            await expect_nothing(other, _RUN, "the run was deleted by another backend")
            await other.delete_state(_RUN)

        finish(main())

    def test_a_store_outlives_its_backends(self, tmp_path: Path) -> None:
        """After every backend was closed, a new one finds what they saved."""
        for index in (1, 2, 3):
            backend = self.open_durable(tmp_path)
            finish(backend.save_state(f"run {index}", state_of(f"run {index}", index)))
            finish(backend.close())
            finish(backend.close())
        backend = self.open(tmp_path)
        for index in (1, 2, 3):
            state = state_of(f"run {index}", index)
            finish(expect_saved(backend, state, f"run {index}, whose backend was closed"))

    def test_another_process_sees_everything(self, tmp_path: Path) -> None:
        """A process that opens the store finds what was saved and deleted, with every field and step record."""
        backend = self.open_durable(tmp_path)

        async def main() -> None:
            for index in (1, 2):
                await backend.save_state("by hand", state_of("by hand", index))
            await backend.save_state("deleted", state_of("deleted"))
            await backend.delete_state("deleted")
            await runner(abc([]), backend).run_async([], run_id=_RUN)

        finish(main())
        with other_process(self, tmp_path, "look", run_ids=["by hand", "deleted", "never", _RUN]) as other:
            hand, deleted, never, whole = (other.hear() for _ in range(4))
            other.end()
        same([deleted, never], [None, None], "what another process finds of runs that are not there")
        expect(hand and whole, f"another process does not find runs that were saved: {[hand, whole]}.")
        same(hand[0], _as_json(state_of("by hand", 2)), "what another process finds of a run saved by hand")
        found = whole[0]
        facts = [found["current_step_index"], found["status"], found["last_step_output"], whole[1]]
        same(facts, [3, "completed", ["a", "b", "c"], 3], "index, status, output and records in another process")

    def test_another_process_goes_on(self, tmp_path: Path) -> None:
        """A run that failed here goes on there, with values of every type; here, afterwards, it is completed."""
        values.register()
        backend = self.open_durable(tmp_path)
        executed: list[str] = []

        def gate() -> None:
            if executed[-1] == "take":
                raise OSError("down")

        pipeline = sampling(executed, [], gate)
        same(
            runner(pipeline, backend).run(values.samples(), run_id=_RUN).status,
            "failed",
            "the status of the first call",
        )
        with other_process(self, tmp_path, "finish_samples", run_id=_RUN) as other:
            status, there, problems, error = other.hear()
            other.end()
        same((status, there), ("completed", ["take"]), f"status and executed steps in another process ({error})")
        same(problems, [], "what was different in another process")
        result = runner(pipeline, backend).run(run_id=_RUN)
        same(result.output, values.samples(), "the output of a run that another process completed")
        same([r.name for r in result.step_history if r.success], ["make", "take"], "its history")
        same(executed, ["make", "take"], "the steps executed here, of a run that another process completed")

    def test_a_killed_process_loses_nothing(self, tmp_path: Path) -> None:
        """Whatever a process had acknowledged when SIGKILL hit it is there, and what is there is whole."""
        self.open_durable(tmp_path)
        for run_id, upto in (("killed after its last save", 5), ("killed in the middle", 1_000_000)):
            with other_process(self, tmp_path, "save_on", run_id=run_id, upto=upto) as other:
                heard = [other.hear() for _ in range(5)]
                acknowledged = (heard + other.kill())[-1]
            state = finish(load(self.open(tmp_path), run_id))
            index = state["current_step_index"]
            expect(
                index in (acknowledged, acknowledged + 1),
                f"a process acknowledged save {acknowledged} and was killed; the newest state is that of save {index}.",
            )
            whole = (index, {"count": index, "more": "x" * 2000})
            same((state["last_step_output"], state["pipeline_context"]), whole, "output and context of the newest save")

    def test_a_killed_process_loses_no_sub_step(self, tmp_path: Path) -> None:
        """Of a run within a step, too: every record of every save that was acknowledged is there, and no half save."""
        self.open_durable(tmp_path)
        with other_process(self, tmp_path, "save_sub_steps", run_id=_RUN, upto=1_000_000) as other:
            heard = [other.hear() for _ in range(7)]
            acknowledged = (heard + other.kill())[-1]
        backend = self.open(tmp_path)
        state = finish(load(backend, _RUN))
        rev = state["rev"]
        expect(
            rev in (acknowledged, acknowledged + 1),
            f"a process acknowledged save {acknowledged} and was killed; the newest state is that of save {rev}.",
        )
        records = [record for number in range(1, rev + 1) for record in sub_steps(number)]
        same(records_of(state), records, "step_history of a run whose process was killed within a step")
        same(state["current_step_index"], 0, "the index of that run")
        if isinstance(backend, Reading):
            same(finish(backend.history(_RUN, after=3)), records[3:], "history(after=3) of that run")
        found = finish(claim(backend, _RUN))
        same((found.state or {})["position"], {"from": 0}, "the position that a claim of that run gave")
        finish(backend.save_state(_RUN, sub_step_state(backend, _RUN, found.fence, rev + 1)))
        same(records_of(finish(load(backend, _RUN))), records + sub_steps(rev + 1), "step_history after one more save")

    def test_a_full_disk_is_an_error(self, tmp_path: Path) -> None:
        """A save that the store has no room for raises; the state before it stays, and can be saved on."""
        backend = self.open_durable(tmp_path)
        with other_process(self, tmp_path, "fill", run_id=_RUN) as other:
            outcome, text = other.hear()
            other.end()
        index = finish(load(backend, _RUN))["current_step_index"]
        expect(
            outcome != "saved" or index == 2,
            f"save_state returned, though the disk is full, and the newest state is that of save {index}: "
            "an error was swallowed.",
        )
        expect(text or outcome == "saved", f"the {outcome} of a full disk says nothing.")
        expect(index in (1, 2), f"after a save that found the disk full, the newest state is at index {index}.")
        finish(backend.save_state(_RUN, state_of(_RUN, 3)))
        finish(expect_saved(self.open(tmp_path), state_of(_RUN, 3), "a save after the disk was full"))


class SharedFenceTests(SuiteBase):
    """Fences between processes: for durable backends with claims of their own."""

    def test_the_owner_in_another_process_is_respected(self, tmp_path: Path) -> None:
        """While it lives its run is nobody else's; replaced by force, its saves are refused."""
        self.open_durable(tmp_path)
        backend = self.open_fenced(tmp_path)

        async def refuse() -> None:
            with refused(RunInProgressError, "claiming a run that another process has"):
                await claim(backend, _RUN)
            with refused(RunInProgressError, "a save by hand of a run that another process has"):
                await backend.save_state(_RUN, state_of(_RUN, 7))
            with refused(RunInProgressError, "deleting a run that another process has"):
                await backend.delete_state(_RUN)
            await expect_index(backend, _RUN, 2, "after others than its owner tried to change the run")

        async def replace() -> Any:
            fence = await owned(backend, _RUN, force=True)
            await save_as_owner(backend, _RUN, fence, 3)
            return fence

        with other_process(self, tmp_path, "own", run_id=_RUN, upto=2) as other:
            same(other.hear(), "owned", "the other process's answer")
            finish(refuse())
            fence = finish(replace())
            for _ in range(2):
                other.say(do="save")
                same(other.hear(), FencedError.__name__, "the outcome of a save by an owner who was replaced by force")
            other.end()
        finish(expect_index(backend, _RUN, 3, "after saves by an owner who was replaced"))
        finish(save_as_owner(backend, _RUN, fence, 4))

    def test_a_dead_owner_is_replaced_at_once(self, tmp_path: Path) -> None:
        """The run of a killed process can be claimed with all it saved; its death is counted until the next save."""
        self.open_durable(tmp_path)
        backend = self.open_fenced(tmp_path)
        with other_process(self, tmp_path, "own", run_id=_RUN, upto=2) as other:
            same(other.hear(), "owned", "the other process's answer")
            other.kill()

        async def main() -> None:
            found = await claim(backend, _RUN)
            same(found.crashes, 1, "crashes of the claim after its owner was killed")
            same((found.state or {}).get("rev"), 2, "the rev of the claim after its owner was killed")
            await backend.release(_RUN, found.fence or 0)
            found = await claim(backend, _RUN)
            same(found.crashes, 1, "crashes of a later claim, with no save since the crash")
            await save_as_owner(backend, _RUN, found.fence, 3)
            await backend.release(_RUN, found.fence or 0)
            same((await claim(backend, _RUN)).crashes, 0, "crashes of a claim after a save")

        finish(main())


def _as_json(state: dict[str, Any]) -> dict[str, Any]:
    return state | {name: state[name].isoformat() for name in ("created_at", "updated_at")}
