"""Steps whose effects can be taken back, and that note what was done, what was taken back, and what that was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flujo import Flujo, Pipeline, PipelineResult, Step, current_step, step
from flujo._ids import path_text
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths


class Ledger(Notes):
    """Notes of steps and undos alike; an undo of `pay` is called `pay>undo`. `given` is what each undo was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}
        self.attempts: dict[str, list[int]] = {}
        self.keys: dict[str, set[str]] = {}

    async def call(self) -> str:
        """Note the call's attempt and key, too."""
        current = current_step()
        path = path_text(current.path)
        self.attempts.setdefault(path, []).append(current.attempt)
        self.keys.setdefault(path, set()).add(current.idempotency_key)
        return await super().call()

    def undo(self, name: str = "undo", **options: Any) -> Step[Any, Any]:
        """Return a step that is an undo."""

        @step(name=name, **options)
        async def take_back(output: Any) -> str:
            self.given[path_text(current_step().path)] = output
            return await self.call()

        return take_back

    def does(self, name: str, does: Callable[[Any], Any] = lambda given: given, **options: Any) -> Step[Any, Any]:
        """Return a step that has an undo; `undo` among the options is another one."""
        return self.step(name, does, **{"undo": self.undo(), **options})

    def undone(self) -> list[str]:
        """Return the undos that were called since this was asked last, or `taken`; other calls are forgotten."""
        return [call for call in self.taken() if call.endswith(">undo")]


def expected_undos(result: PipelineResult[Any], undoable: Callable[[str], bool] = lambda path: True) -> list[str]:
    """Return the undos that a history asks for: those of the steps that succeeded, the last first."""
    done = [path for path in paths(result) if not path.endswith(">undo")]
    return [f"{path}>undo" for path in reversed(done) if undoable(path)]


def runner(place: Place, pipeline: Any, **options: Any) -> Flujo[Any, Any]:
    """Return a runner on the store, as another process would have."""
    return Flujo(pipeline, state_backend=place.open(), **options)


def orders(ledger: Ledger) -> Pipeline[Any, Any]:
    """Return a pipeline of three steps, each with an undo."""
    return ledger.does("pay") >> ledger.does("pack") >> ledger.does("ship")
