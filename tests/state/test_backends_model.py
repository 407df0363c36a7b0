"""A dict is the truth: whatever is done to a backend, in any order, what it says is what the dict says."""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from flujo.errors import FencedError, RunInProgressError
from flujo.state.backends.base import Claim
from tests.support.backends import Place
from tests.support.pipelines import T0, new_run
from tests.support.saves import saved

T = TypeVar("T")
BY_HAND = Claim(fence=None, state=None)
RUNS = st.sampled_from(["a", "b", "c/ä"])
STATUSES = st.sampled_from(["running"] * 6 + ["completed", "failed", "paused", "cancelled"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
CONTEXTS = st.dictionaries(st.sampled_from(["x", "y", "ä", "", "long"]), VALUES, max_size=4)


@dataclass
class Truth:
    """What a run must be: its saves (status, index, context, output), its step names, who has it."""

    saves: list[tuple[str, int, Any, Any]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    status: str = "running"
    holder: Any = None
    last: dict[str, Any] | None = None


class Backends(RuleBasedStateMachine):
    kind = "memory"

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.place = Place(self.kind, self.folder)
        self.backends: list[Any] = [self.place.open(), self.place.open()]
        self.loop = asyncio.Runner()
        self.truth: dict[str, Truth] = {}
        self.old: list[tuple[str, Any]] = []
        self.turn = 0

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(coroutine)

    @property
    def backend(self) -> Any:
        self.turn += 1
        return self.backends[self.turn % 2]

    def drop(self, run_id: str) -> None:
        truth = self.truth[run_id]
        if truth.holder is not None:
            self.old.append((run_id, truth.holder[1]))
            truth.holder = None

    @rule(run_id=RUNS, force=st.booleans())
    def claim(self, run_id: str, force: bool) -> None:
        backend = self.backend
        truth = self.truth.get(run_id)
        attempt = backend.claim(run_id, new_run(), now=T0, force=force)
        if truth and truth.holder is not None and not force:
            with pytest.raises(RunInProgressError):
                self.do(attempt)
            return
        claim = self.do(attempt)
        if truth and truth.status in ("completed", "cancelled", "paused"):
            assert claim.fence is None
            return
        assert claim.fence is not None
        assert (claim.state is None) == (truth is None or not truth.saves)
        truth = self.truth.setdefault(run_id, Truth())
        self.drop(run_id)
        truth.holder, truth.status = (backend, claim), "running"

    def state(self, run_id: str, claim: Any, status: str, context: Any, output: Any) -> dict[str, Any]:
        truth = self.truth[run_id]
        rev = len(truth.saves) + 1
        return saved(
            claim,
            rev,
            run_id,
            status=status,
            pipeline_context=context,
            last_step_output=output,
            step_history=[],
            history_offset=len(truth.steps),
        )

    def accept(self, run_id: str, state: dict[str, Any]) -> None:
        truth = self.truth[run_id]
        kept = copy.deepcopy((state["pipeline_context"], state["last_step_output"]))
        truth.saves.append((state["status"], state["current_step_index"], *kept))
        truth.steps += [record.name for record in state["step_history"]]
        truth.status, truth.last = state["status"], state
        if state["status"] != "running":
            self.drop(run_id)

    @rule(run_id=RUNS, status=STATUSES, context=CONTEXTS, output=VALUES, step=st.booleans())
    def save(self, run_id: str, status: str, context: Any, output: Any, step: bool) -> None:
        truth = self.truth.get(run_id)
        if truth is None or truth.holder is None:
            return
        backend, claim = truth.holder
        before = truth.saves[-1][2].get("long") if truth.saves else None
        if "long" in context or isinstance(before, list):  # it grows over a snapshot
            context = {**context, "long": ([*(before if isinstance(before, list) else []), output] * 2)[:200]}
        state = self.state(run_id, claim, status, context, output)
        if step:
            state["step_history"] = saved(claim, state["rev"], run_id)["step_history"]
        self.do(backend.save_state(run_id, state))
        self.accept(run_id, state)

    @rule(run_id=RUNS)
    def save_again(self, run_id: str) -> None:
        truth = self.truth.get(run_id)
        if truth is None or truth.holder is None or truth.last is None or truth.last.get("fence") is None:
            return
        backend, claim = truth.holder
        if truth.last["fence"] == claim.fence:
            self.do(backend.save_state(run_id, truth.last))

    @rule(run_id=RUNS, rev=st.integers(0, 4))
    def save_out_of_order(self, run_id: str, rev: int) -> None:
        truth = self.truth.get(run_id)
        if truth is None or truth.holder is None or rev == len(truth.saves) + 1:
            return
        backend, claim = truth.holder
        with pytest.raises(FencedError):
            self.do(backend.save_state(run_id, saved(claim, rev, run_id, last_step_output="out of order")))

    @rule(number=st.integers(0, 30), status=STATUSES)
    def save_of_an_old_claim(self, number: int, status: str) -> None:
        if not self.old:
            return
        run_id, claim = self.old[number % len(self.old)]
        rev = len(self.truth[run_id].saves) + 1 if run_id in self.truth else 1
        with pytest.raises(FencedError):
            self.do(self.backend.save_state(run_id, saved(claim, rev, run_id, status=status)))

    @rule(run_id=RUNS, status=STATUSES, context=CONTEXTS, output=VALUES)
    def save_by_hand(self, run_id: str, status: str, context: Any, output: Any) -> None:
        truth = self.truth.get(run_id)
        index = len(truth.saves) if truth else 0
        state = saved(BY_HAND, index, run_id, status=status, pipeline_context=context, last_step_output=output)
        for name in ("fence", "rev", "step_history", "history_offset"):
            del state[name]
        attempt = self.backend.save_state(run_id, state)
        if truth is not None and truth.holder is not None:
            with pytest.raises(RunInProgressError):
                self.do(attempt)
            return
        self.do(attempt)
        if truth is None or not truth.saves:
            self.truth[run_id] = Truth()
        self.accept(run_id, state | {"step_history": []})

    @rule(run_id=RUNS)
    def load_and_save(self, run_id: str) -> None:
        truth = self.truth.get(run_id)
        if truth is None or truth.holder is not None or not truth.saves:
            return
        state = self.do(self.backend.load_state(run_id))
        self.do(self.backend.save_state(run_id, state))
        self.accept(run_id, state | {"step_history": []})

    @rule(run_id=RUNS, abandon=st.booleans())
    def release(self, run_id: str, abandon: bool) -> None:
        truth = self.truth.get(run_id)
        if truth is None or truth.holder is None:
            return
        backend, claim = truth.holder
        if abandon:
            backend.abandon(run_id, claim.fence)
        else:
            self.do(backend.release(run_id, claim.fence))
        self.drop(run_id)

    @rule(number=st.integers(0, 30))
    def release_of_an_old_claim(self, number: int) -> None:
        if self.old:
            run_id, claim = self.old[number % len(self.old)]
            self.do(self.backend.release(run_id, claim.fence))

    @rule(run_id=RUNS)
    def delete(self, run_id: str) -> None:
        truth = self.truth.get(run_id)
        if truth is not None and truth.holder is not None:
            with pytest.raises(RunInProgressError):
                self.do(self.backend.delete_state(run_id))
            return
        self.do(self.backend.delete_state(run_id))
        self.truth.pop(run_id, None)

    @rule(which=st.sampled_from([(0,), (1,), (0, 1)]))
    def reopen(self, which: tuple[int, ...]) -> None:
        if self.kind == "memory":
            return
        for number in which:
            closing = self.backends[number]
            self.do(closing.close())
            for run_id, truth in self.truth.items():
                if truth.holder is not None and truth.holder[0] is closing:
                    self.drop(run_id)
        for number in which:
            self.backends[number] = self.place.open()

    @invariant()
    def the_store_says_the_same(self) -> None:
        backend = self.backend
        for run_id in ("a", "b", "c/ä"):
            truth = self.truth.get(run_id)
            found = self.do(backend.load_state(run_id))
            if truth is None or not truth.saves:
                assert found is None
                continue
            _, index, context, output = truth.saves[-1]
            assert found is not None
            assert (found["status"], found["current_step_index"]) == (truth.status, index)
            assert (found["pipeline_context"], found["last_step_output"]) == (context, output)
            assert list(found["pipeline_context"]) == list(context)
            assert found["rev"] == len(truth.saves)
            assert [record.name for record in found["step_history"]] == truth.steps
            rev = 1 + self.turn % len(truth.saves)
            then = self.do(backend.load_at(run_id, rev))
            status, index, context, output = truth.saves[rev - 1]
            assert (then["current_step_index"], then["pipeline_context"]) == (index, context)
            assert (then["status"], then["last_step_output"]) == (status, output)
        listed = {run.run_id: run.status for run in self.do(backend.list_runs())}
        assert listed == {run_id: truth.status for run_id, truth in self.truth.items() if truth.saves}

    def teardown(self) -> None:
        for backend in self.backends:
            self.do(backend.close())
        self.loop.close()
        shutil.rmtree(self.folder)


class OnSQLite(Backends):
    kind = "sqlite"


class OnFiles(Backends):
    kind = "file"


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "examples"), [(Backends, 60), (OnSQLite, 30), (OnFiles, 30)])
def test_a_dict_is_the_truth(machine: type[Backends], examples: int) -> None:
    """Claims, saves, stale saves, saves by hand, deletions and reopenings in any order."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
