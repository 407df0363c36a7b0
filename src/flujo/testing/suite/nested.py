"""Steps within steps: their records, several a save, and where a run is within a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flujo.state.backends.base import Reading, State, StateBackend
from flujo.state.models import StepRecord
from flujo.testing.suite.base import (
    SuiteBase,
    claim,
    fenced_state,
    finish,
    handed,
    load,
    owned,
    records_of,
    state_of,
)
from flujo.testing.suite.expect import expect, same

_RUN = "run"
_ERROR = {"type": "OSError", "text": "down", "notes": [], "causes": [{"type": "E", "text": ""}], "traceback": "..."}
_POSITIONS: list[Any] = [None, {"attempts": 2}, {"from": 3}, {"from": 3, "void": [[0, 4], [9, 9]], "then": "failed"}]


class NestedTests(SuiteBase):
    """What a backend sees of parallel branches, maps, loops and undos."""

    def test_step_records_come_back(self, tmp_path: Path) -> None:
        """A record of a step within a step has a path of several parts, and may say what it changed in a context."""
        backend = self.open(tmp_path)
        records = [record for saved in _saves(backend) for record in saved["step_history"]]

        async def main() -> None:
            await backend.save_state(_RUN, state_of(_RUN) | {"step_history": handed(backend, records)})
            for _ in range(2):
                same(records_of(await load(backend, _RUN)), records, "step_history, saved by hand and loaded")

        finish(main())

    def test_sub_steps_share_a_save(self, tmp_path: Path) -> None:
        """A save of sub-steps has several records or none, and index and last output of the save before it."""
        backend = self.open(tmp_path)
        records: list[StepRecord] = []

        async def main() -> None:
            fence = await owned(backend, _RUN)
            for rev, saved in enumerate(_saves(backend), start=1):
                await backend.save_state(_RUN, _state(backend, fence, rev, saved, records))
                records.extend(saved["step_history"])
                found = await load(backend, _RUN)
                for name in ("current_step_index", "last_step_output", "position"):
                    same(found[name], saved[name], f"{name} after save {rev}")
                same(records_of(found), records, f"step_history after save {rev}")
                await _expect_pages(backend, records, rev)
            await backend.release(_RUN, fence)
            state = (await claim(backend, _RUN)).state or {}
            same(state["position"], saved["position"], "position in the state that comes with a claim")
            if isinstance(backend, Reading):
                same(state["history_offset"], len(records), "history_offset in the state that comes with a claim")

        finish(main())

    def test_where_a_run_is_within_a_step_comes_back(self, tmp_path: Path) -> None:
        """Position, phase and error are kept with every status; a run that is being undone is a running one."""
        backend = self.open(tmp_path)

        phases = (("running", "undoing"), ("failed", "undone"), ("cancelled", "undone"), ("failed", None))

        async def main() -> None:
            for status, phase in phases:
                for position in _POSITIONS:
                    given = {"status": status, "phase": phase, "position": position, "error": _ERROR}
                    await backend.save_state(_RUN, state_of(_RUN, 2) | given)
                    found = await load(backend, _RUN)
                    for name, value in given.items():
                        same(found.get(name), value, f"{name} of a run that is {status}, phase {phase}")
                    if isinstance(backend, Reading):
                        listed = [run.status for run in await backend.list_runs()]
                        same(listed, [status], f"the status in the listing of a run that is {status}, phase {phase}")

        finish(main())


def _record(*path: str, output: Any = None, **more: Any) -> StepRecord:
    return StepRecord(path=path, output=output, latency_s=0.25, **more)


def _saves(backend: StateBackend) -> list[dict[str, Any]]:
    """Return the saves of a run whose second step is a map, each with what it changes."""
    value: Any = [1, {"n": 2.5}] if backend.codec is None else (1, {2.5})
    before: dict[str, Any] = {"current_step_index": 1, "last_step_output": 5}
    within = before | {"position": {"from": 1}}
    outputs = [5, "b", None, None]
    return [
        before | {"position": None, "step_history": [_record("a", output=5)]},
        within | {"step_history": [_record("m", ">items", output=[5, value, 7, 8])]},
        within | {"step_history": [
            _record("m", "[0]", "f", output=5), _record("m", "[1]", "f", output="b", attempts=3),
            _record("m", "[3]", "f", success=False, feedback="OSError: down"),
        ]},
        within | {"step_history": []},
        within | {"step_history": [
            _record("m", "[2]", "f", context_changes={"notes": [["x", value]], "gone": [], "": [None]}),
            _record("m", "[2]", "loop", "#1", ">exit", output=True),
        ]},
        {"current_step_index": 2, "last_step_output": outputs, "position": None,
         "step_history": [_record("m", output=outputs)]},
    ]  # fmt: skip


def _state(backend: StateBackend, fence: Any, rev: int, saved: dict[str, Any], before: list[StepRecord]) -> State:
    new = saved["step_history"]
    held = new if isinstance(backend, Reading) else before + new
    offset = len(before) if isinstance(backend, Reading) else 0
    changes = saved | {"step_history": handed(backend, held), "history_offset": offset, "pipeline_context": {"n": 1}}
    return fenced_state(backend, _RUN, fence, rev, **changes)


async def _expect_pages(backend: StateBackend, records: list[StepRecord], rev: int) -> None:
    """Read the history on from each record, also from the middle of a save, and from the end."""
    if not isinstance(backend, Reading):
        return
    for after in range(len(records) + 2):
        for limit in (None, 0, 1, 2, len(records)):
            found = await backend.history(_RUN, after=after, limit=limit)
            expect(all(isinstance(one, StepRecord) for one in found), "history() gave something else than records.")
            end = None if limit is None else after + limit
            same(found, records[after:end], f"history(after={after}, limit={limit}) after save {rev}")
