"""A process that dies around the save of a migration: the run is carried once, and goes on."""

from __future__ import annotations

from typing import Any

import pytest

from flujo import Flujo, MigratingState, PipelineRegistry, step
from tests.support.backends import Place


@pytest.mark.parametrize("saved", [False, True])
def test_the_process_dies_around_that_save(place: Place, saved: bool) -> None:
    """Before it the migration is made anew from what was there, after it not again; the steps run once."""
    calls: list[str] = []
    migrated: list[dict[str, Any]] = []
    down = True

    @step
    async def a(n: int, *, context: dict[str, Any]) -> int:
        calls.append("a")
        context["hops"] = 0
        return n + 1

    @step
    async def b(n: int, *, context: dict[str, Any]) -> int:
        calls.append("b")
        if down:
            raise OSError("down")
        return n * 10 + int(context["hops"])

    registry = PipelineRegistry()
    registry.register(a >> b, "p", "1.0")

    def runner() -> Flujo[Any, Any]:
        return Flujo(registry=registry, pipeline_name="p", state_backend=place.open())

    assert runner().run(1, run_id="r").status == "failed"
    registry.register(a >> b, "p", "2.0")

    @registry.migration("p", "1.0", "2.0")
    def carry(state: MigratingState) -> None:
        migrated.append(dict(state.context))
        state.context["hops"] += 1

    down = False
    calls.clear()
    dying = runner()
    save = dying.backend.save_state

    async def dies(run_id: str, state: dict[str, Any]) -> None:
        if saved:
            await save(run_id, state)
        raise KeyboardInterrupt

    dying.backend.save_state = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        dying.run(run_id="r")
    dying.backend.save_state = save  # type: ignore[method-assign]
    assert calls == []
    result = runner().run(run_id="r")
    assert (result.status, result.output, result.pipeline_version) == ("completed", 21, "2.0")
    assert calls == ["b"]
    assert migrated == [{"hops": 0}] * (1 if saved else 2)
