"""Random nested pipelines that fail, and whose saves fail at random points: every undo runs when it is due."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flujo import Flujo, InMemoryBackend, Pipeline, PipelineResult, Step, current_step, step
from flujo._ids import path_text
from flujo.errors import SaveError
from flujo.state.models import StepRecord
from tests.support.tree_model import Spec, specs

MOST = 40  # runs until the end


class Breaking(InMemoryBackend):
    """Fails at the save with a number in `breaks`, counted over all runs: before it is done (False) or after (True)."""

    def __init__(self, breaks: dict[int, bool]) -> None:
        super().__init__()
        self._breaks, self._count = breaks, 0

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self._count += 1
        done = self._breaks.get(self._count)
        if done is False:
            raise SaveError("The disk is full.")
        await super().save_state(run_id, state)
        if done is True:
            raise SaveError("The disk is gone.")


class Random:
    """A pipeline of a description, whose leaves fail by dice; each call is checked against what lies in the store."""

    def __init__(self, spec: Spec, seed: int, backend: InMemoryBackend) -> None:
        self._seed, self._backend = seed, backend
        self.undone: list[str] = []
        self.undoable: set[str] = set()
        self.pipeline = Pipeline.of(
            self.leaf("first", fails=False), self.built(spec), self.leaf("last"), self.leaf("bad", fails=True)
        )

    def dice(self, what: str, chance: float) -> bool:
        return random.Random(f"{self._seed} {what}").random() < chance

    def leaf(self, name: str, fails: bool | None = None) -> Step[Any, Any]:
        async def work(given: Any) -> Any:
            path = await self.check()
            if fails or (fails is None and self.dice(path, 0.1)):
                raise ValueError(path)
            self.undoable.add(path)
            return [1, 2]

        async def undo(output: Any) -> None:
            assert output == [1, 2]
            self.undone.append(await self.check())

        made: Step[Any, Any] = step(name=name, undo=undo)(work)
        return made

    async def check(self) -> str:
        """What is saved is not done again; undos come in order, and nothing else once they have begun."""
        path = path_text(current_step().path)
        state = await self._backend.load_state("r")
        records: list[StepRecord] = state["step_history"] if state else []
        done = [path_text(record.path) for record in records if record.success]
        assert path not in done
        undoing = state is not None and state["phase"] == "undoing"
        assert path.endswith(">undo") is undoing
        if undoing:
            due = [f"{found}>undo" for found in done if found in self.undoable and f"{found}>undo" not in done]
            assert due[-1] == path
        await asyncio.sleep(0)
        return path

    def built(self, spec: Spec) -> Step[Any, Any]:
        kind, name = spec["kind"], spec["name"]
        if kind == "leaf":
            return self.leaf(name)
        bodies = {key: Pipeline.of(*map(self.built, inner)) for key, inner in spec["bodies"].items()}
        shapes: dict[str, Callable[[], Step[Any, Any]]] = {
            "parallel": lambda: Step.parallel(name, **bodies),
            "map": lambda: Step.map_over(name, bodies[""], max_concurrency=spec["most"], on_error="collect"),
            "branch": lambda: Step.branch_on(name, by=lambda _: "big", **bodies),
            "loop": lambda: Step.loop_until(name, bodies[""], until=lambda _: "#2" in current_step().path),
            "pipeline": lambda: bodies[""].as_step(name),
            "fallback": lambda: bodies["primary"].as_step(name).fallback(bodies["fallback"]),
        }
        made = replace(shapes[kind](), input_type=Any, output_type=Any)
        around = Pipeline.of(self.leaf("before"), made, self.leaf("after"))  # so that it is given a list, and gives one
        return replace(around.as_step(name), input_type=Any, output_type=Any)


@pytest.mark.slow
@settings(max_examples=100)
@given(specs(), st.integers(0, 1 << 32), st.dictionaries(st.integers(1, 40), st.booleans(), max_size=6))
def test_every_undo_runs_once_it_is_due(spec: Spec, seed: int, breaks: dict[int, bool]) -> None:
    """Whatever stops the run, and where: in the end all that was done is undone, the last first, and it has failed."""
    backend = Breaking(breaks)
    made = Random(spec, seed, backend)
    result: PipelineResult[Any] | None = None
    stopped = 0
    for _ in range(MOST):
        try:
            result = Flujo(made.pipeline, state_backend=backend).run(0, run_id="r")
            break
        except SaveError:
            stopped += 1
    assert result is not None and result.status == "failed"
    state = asyncio.run(backend.load_state("r"))
    assert state is not None and state["phase"] == "undone"
    done = [path_text(record.path) for record in result.step_history if record.success]
    assert [path for path in done if path.endswith(">undo")] == [
        f"{path}>undo" for path in reversed(done) if path in made.undoable
    ]
    assert len(set(done)) == len(done)
    assert list(dict.fromkeys(made.undone)) == [path for path in done if path.endswith(">undo")]
    assert len(made.undone) <= len(set(made.undone)) + stopped
