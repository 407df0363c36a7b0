"""A list is the truth: whatever is saved of steps and sub-steps, in any order, its records are those of the list."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flujo import StepResult
from flujo.runner.saving import Keeper
from flujo.testing.suite.expect import difference
from tests.support.backends import KINDS, OURS, Place
from tests.support.pipelines import T0, by_hand, new_run

T = TypeVar("T")

# The same objects again and again: what is told by identity is told wrongly soon.
POOL: list[Any] = [
    None, True, False, 0, 1, -5, 3.5, "", "ä", (), (1,), [1, [2]], {"a": (1,)}, {1: None}, frozenset({1}), {"$type": 1},
    b"\0", [None], "x" * 300,
]  # fmt: skip
VALUES = st.sampled_from(POOL[:4]) | st.sampled_from(POOL)
PATHS = st.sampled_from([
    ("a",), ("m", "[0]", "f"), ("m", "[17]", "f"), ("loop", "#3", ">exit"), ("b", ">choice"), ("a", ">undo"),
    ("a", "ä", "#1", "x" * 100),
])  # fmt: skip
RECORDS = st.builds(
    StepResult,
    path=PATHS,
    output=VALUES,
    success=st.sampled_from([True, True, False]),
    attempts=st.integers(1, 3),
    latency_s=st.integers(0, 640).map(lambda n: n / 64),
    feedback=st.sampled_from([None, None, "", "OSError: ä\n"]),
    context_changes=st.none() | st.dictionaries(st.sampled_from(["n", "$type", ""]), st.lists(VALUES, max_size=1)),
)
SOME = st.lists(RECORDS, max_size=4)
DEEDS = st.lists(
    st.tuples(st.sampled_from(["sub-steps"] * 4 + ["step", "step", "context", "failure", "again"]), SOME, VALUES)
    | st.tuples(st.sampled_from(["release", "reopen", "by hand"]), st.just([]), VALUES),
    max_size=12,
)


class Run:
    """A run that is saved through a runner's keeper, and all that was saved of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.place = Place(kind, folder)
        self.loop = asyncio.new_event_loop()
        self.records: list[StepResult] = []
        self.saves: list[tuple[int, Any, Any, str, int]] = []  # index, output, context, status, records
        self.position: Any = None
        self.backend = self.place.open()
        self.claim()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def claim(self) -> None:
        self.keeper = Keeper(self.backend)
        found = self.do(self.keeper.claim("r", new_run(), now=T0))
        assert found.fence is not None
        self.fence, state = found.fence, found.state
        if state is None:
            state = by_hand(current_step_index=0, last_step_output=None, rev=0, history_offset=0, step_history=[])
        self.check_state(state, "running" if self.kind in OURS else None)
        self.state: dict[str, Any] = state | {"status": "running"}

    def check_state(self, state: dict[str, Any], status: str | None = None) -> None:
        assert state["rev"] == len(self.saves)
        assert state["history_offset"] + len(state["step_history"]) == len(self.records)
        if self.saves:
            index, output, context, last, _ = self.saves[-1]
            assert (state["current_step_index"], state["status"]) == (index, status or last)
            assert state["position"] == self.position
            assert difference([output, context], [state["last_step_output"], state["pipeline_context"]]) is None

    def save(self, records: list[StepResult], **changes: Any) -> None:
        before = self.state
        self.position = {"from": len(self.records), "void": [[0, len(records)]]} if records else None
        state = before | {
            "rev": before["rev"] + 1, "fence": self.fence, "step_history": records, "history_offset": len(self.records),
            "position": self.position, "fingerprint": "[]", "input": None, "error": None, "total_steps": 3,
            "updated_at": T0 + timedelta(seconds=before["rev"]), **changes,
        }  # fmt: skip
        self.do(self.keeper.save(state))
        self.state, self.records = state, self.records + records
        facts = [state[name] for name in ("current_step_index", "last_step_output", "pipeline_context", "status")]
        self.saves.append((*facts, len(self.records)))

    def perform(self, deed: str, records: list[StepResult], value: Any) -> None:
        index = self.state["current_step_index"]
        match deed:
            case "sub-steps":
                self.save(records)
            case "step":
                own = StepResult(path=("top",), output=value)
                self.save([*records, own], current_step_index=index + 1, last_step_output=value)
            case "context":
                self.save(records, pipeline_context=self.state["pipeline_context"] | {"it": value})
            case "failure":
                self.save(records, status="failed")
                self.go_on(release=False)
            case "again":  # as when its outcome was not known
                if self.kind in OURS and self.saves and self.state.get("fence") == self.fence:
                    self.do(self.backend.save_state("r", self.state))
            case "by hand":
                self.do(self.backend.release("r", self.fence))
                self.by_hand(records, value)
                self.claim()
            case _:
                self.go_on(release=True, reopen=deed == "reopen")

    def go_on(self, *, release: bool, reopen: bool = False) -> None:
        if release or self.keeper.lends:
            self.do(self.backend.release("r", self.fence))
        if reopen and self.kind in ("sqlite", "file"):
            self.do(self.backend.close())
        if reopen:
            self.backend = self.place.open()
        self.claim()

    def by_hand(self, records: list[StepResult], value: Any) -> None:
        """Load the run, change its output, and save it."""
        if self.kind not in OURS or not self.saves:
            return
        state = self.do(self.backend.load_state("r"))
        assert state is not None
        self.do(self.backend.save_state("r", state | {"last_step_output": value, "status": "running"}))
        index, _, context, _, count = self.saves[-1]
        self.saves.append((index, value, context, "running", count))

    def check(self, rng: random.Random) -> None:
        """Compare what is read, in every way, with what was saved."""
        read = self.keeper.reader("r", len(self.records))
        assert difference(self.records, read()) is None
        if self.kind not in OURS:
            return
        backend: Any = self.backend
        for _ in range(4):
            after = rng.randrange(len(self.records) + 2)
            limit = rng.choice([None, 0, 1, 2, 5])
            page = self.do(backend.history("r", after=after, limit=limit, strict=True))
            expected = self.records[after : None if limit is None else after + limit]
            assert difference(expected, page) is None, (after, limit)
        if self.saves:
            whole = self.do(backend.load_state("r"))
            self.check_state(whole, "running")  # it is claimed
            assert difference(self.records, whole["step_history"]) is None
            rev = rng.randrange(len(self.saves)) + 1
            then = self.do(backend.load_at("r", rev, head=False))
            index, output, context, status, count = self.saves[rev - 1]
            assert (then["current_step_index"], then["status"]) == (index, status)
            assert difference([output, context], [then["last_step_output"], then["pipeline_context"]]) is None
            assert difference(self.records[:count], then["step_history"]) is None

    def close(self) -> None:
        self.place.close()
        self.loop.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_list_is_the_truth(kind: str) -> None:
    """Steps and sub-steps that share saves, failures, releases, reopened stores: by page, by save, and as a whole."""

    @settings(max_examples=100 if kind == "memory" else 40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(DEEDS, st.randoms(use_true_random=False))
    def check(deeds: list[tuple[str, list[StepResult], Any]], rng: random.Random) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(kind, Path(folder))
            try:
                for deed in deeds:
                    run.perform(*deed)
                    run.check(rng)
            finally:
                run.close()

    check()
