"""What the saves of sub-steps cost, and where a run is within a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flujo import InMemoryBackend, StepResult
from flujo.errors import ConfigurationError
from flujo.runner.saving import Keeper
from tests.support.backends import KINDS, OURS, Place, query
from tests.support.pipelines import T0, by_hand, new_run
from tests.support.saves import counting, saved, sub_step, take, wait

CONTEXTS: list[dict[str, Any]] = [{}, {"notes": ["x" * 50] * 20, "n": 1}]


def save_items(backend: Any, context: dict[str, Any], upto: int) -> Any:
    """Save a run that is in its second step, a map, as after so many items; return its claim."""
    claim = take(backend)
    state = saved(claim, 1, pipeline_context=context, last_step_output="x" * 1000)
    wait(backend.save_state("r", state))
    for item in range(upto):
        records = [StepResult(path=("m", f"[{1000 + item % 9000}]", "f"), output=f"{1000 + item % 9000}")]
        state = sub_step(claim, 2 + item, records, state)
        wait(backend.save_state("r", state))
    return claim


@pytest.mark.slow
@pytest.mark.parametrize("context", CONTEXTS, ids=["no context", "a context"])
def test_a_sub_step_costs_the_same_early_and_late(context: dict[str, Any], tmp_path: Path) -> None:
    """In bytes: its record and where its step began, no output or context of the run. And to claim the run after it."""
    cost, file = [], tmp_path
    for items in (10, 10_000):
        file, spent = tmp_path / f"{items}.db", [0]
        backend = counting(file, spent)
        save_items(backend, context, items)
        wait(backend.close())
        backend = counting(file, spent)
        wait(backend.load_state("nobody"))
        spent[0] = 0
        found = take(backend).state
        assert found is not None and found["position"] == {"from": 1} and found["history_offset"] == 1 + items
        cost.append(spent[0])
        wait(backend.close())
    assert cost[1] <= 1.5 * cost[0], cost
    rows = query(
        file,
        "SELECT length(records), length(rest), output IS NULL AND delta IS NULL, length(ctx) + length(sum)"
        " FROM flujo_log WHERE seq & 0xffffff > 1",
    )
    assert len(rows) == 10_000 and len(set(rows)) == 1
    ((records, rest, lean, sums),) = set(rows)
    assert lean and records <= 70 and rest <= 25 and sums <= 32
    assert query(file, "SELECT count(*) FROM flujo_snapshot") == [(1 if context else 0,)]


@pytest.mark.slow
def test_a_context_that_stays_is_not_written_again() -> None:
    """Once it is in a snapshot, saves that leave it as it is make no other; the next change is folded onto that one."""
    backend = InMemoryBackend()
    claim = save_items(backend, {"n": 0}, 3000)
    ((rev, _, _),) = backend._memory._tx._snapshots.values()
    state: Any = wait(backend.load_at("r"))
    for item in range(3000):
        state = sub_step(claim, 3002 + item, [], state, pipeline_context={"n": item // 2999})
        wait(backend.save_state("r", state))
    assert [rev] == [found[0] for found in backend._memory._tx._snapshots.values()]
    for at, n in ((1, 0), (rev, 0), (6000, 0), (None, 1)):
        then = wait(backend.load_at("r", at))
        assert then is not None and then["pipeline_context"] == {"n": n}


# Where a run is within a step.

ERROR = {"type": "OSError", "text": "down", "notes": ["ä"], "causes": [{"type": "E", "text": ""}], "traceback": "\n"}
POSITION = {"from": 3, "void": [[0, 4], [9, 9]], "then": "failed"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "phase"), [("running", "undoing"), ("failed", "undoing"), ("failed", None)])
def test_a_run_that_is_being_undone_can_be_taken_up(kind: str, status: str, phase: str | None, tmp_path: Path) -> None:
    """Position, phase and the first failure come with the next claim; a running one is listed as that."""
    place = Place(kind, tmp_path)
    keeper = Keeper(place.open())
    claim = wait(keeper.claim("r", new_run(), now=T0))
    given: dict[str, Any] = {"status": status, "phase": phase, "error": ERROR, "position": POSITION, "input": None}
    wait(keeper.save(saved(claim, 1, **given)))
    wait(keeper.backend.release("r", claim.fence or 0))
    if kind in OURS:
        backend: Any = place.open()
        (listed,) = wait(backend.list_runs())
        assert (listed.status, listed.error_message) == (status, None if status == "running" else "OSError: down")
        assert wait(backend.count_runs()) == {status: 1}
    again = wait(Keeper(place.open()).claim("r", new_run(), now=T0))
    assert again.fence is not None and again.state is not None
    assert {name: again.state[name] for name in ("phase", "error", "position")} == {
        name: given[name] for name in ("phase", "error", "position")
    }
    place.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_an_undone_run_is_over(kind: str, status: str, tmp_path: Path) -> None:
    """A claim gives its state and no fence, and changes nothing: not the status, and not when it was updated."""
    place = Place(kind, tmp_path)
    keeper = Keeper(place.open())
    claim = wait(keeper.claim("r", new_run(), now=T0))
    wait(keeper.save(saved(claim, 1, status=status, phase="undone", error=ERROR, position=POSITION, input=None)))
    wait(keeper.backend.release("r", claim.fence or 0))
    before = place.contents()
    for force in (False, True):
        again = wait(Keeper(place.open()).claim("r", new_run(), now=T0, force=force))
        assert again.fence is None and again.state is not None
        found = [again.state[name] for name in ("status", "phase", "error", "position")]
        assert found == [status, "undone", ERROR, POSITION]
    assert place.contents() == before
    place.close()


@pytest.mark.parametrize("status", ["failed", "paused"])
def test_a_claim_that_died_is_forgotten_by_one_that_is_refused(status: str, tmp_path: Path) -> None:
    """The run gets back the status of its newest save, not the one that the dead claim left."""
    place = Place("sqlite", tmp_path)
    backend = place.open()
    state = saved(take(backend), 1, status=status, error=ERROR if status == "failed" else None, due_at=T0)
    wait(backend.save_state("r", state))
    before = place.load()
    take(backend)
    place.close()  # gives the claim back
    query(place.file, "UPDATE flujo_run SET owner = 777, fence = 1")  # as if it had died instead
    backend = place.open()
    claim = take(backend)
    assert claim.fence is not None
    backend.abandon("r", claim.fence, refused=True)
    assert place.load()["status"] == before["status"] == status
    place.close()


@pytest.mark.parametrize("kind", OURS)
def test_what_a_run_failed_of_is_not_listed_while_it_is_executed_again(kind: str, tmp_path: Path) -> None:
    """It is there again when the claim is refused, and gone when the run has gone on."""
    place = Place(kind, tmp_path)
    backend: Any = place.open()

    def listed() -> Any:
        (run,) = wait(backend.list_runs())
        if kind == "sqlite":
            ((shown,),) = query(place.file, "SELECT error_message FROM workflow_state")
            assert shown == run.error_message
        return run.status, run.error_message

    wait(backend.save_state("r", saved(take(backend), 1, status="failed", error=ERROR)))
    assert listed() == ("failed", "OSError: down")
    claim = take(backend)
    assert listed() == ("running", None)
    backend.abandon("r", claim.fence, refused=True)
    assert listed() == ("failed", "OSError: down")
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 2)))
    assert listed() == ("running", None)
    wait(backend.save_state("r", saved(claim, 3, status="completed")))
    assert listed() == ("completed", None)
    wait(backend.save_state("h", by_hand(run_id="h", status="failed", error="a text")))
    assert {run.run_id: run.error_message for run in wait(backend.list_runs())} == {"r": None, "h": "a text"}
    place.close()


@pytest.mark.parametrize("kind", OURS)
def test_a_number_that_is_no_count_of_anything(kind: str, tmp_path: Path) -> None:
    """Pages below nothing, beyond all numbers, or of something else, are refused by name, also by the admin queries."""
    place = Place(kind, tmp_path)
    backend: Any = place.open()
    wait(backend.save_state("r", by_hand()))
    for wrong in (-1, -(2**63), 2**63, 10**30, 1.0, "1", True):
        for name in ("limit", "offset"):
            asked = [backend.list_runs(**{name: wrong})]
            asked += [backend.list_workflows(**{name: wrong})] if kind == "sqlite" else []
            for asking in asked:
                with pytest.raises(ConfigurationError, match=f"{name} is "):
                    wait(asking)
        for name in ("limit", "after"):
            with pytest.raises(ConfigurationError, match=f"{name} is "):
                wait(backend.history("r", **{name: wrong}))
    most = 1 << 60
    assert len(wait(backend.list_runs(limit=most))) == 1
    assert wait(backend.list_runs(limit=most, offset=most)) == wait(backend.history("r", after=most, limit=most)) == []
    place.close()


def test_what_a_run_began_with_is_written_once(tmp_path: Path) -> None:
    """A large input and fingerprint are not written again when the run is claimed, ends, or is given back."""
    place = Place("sqlite", tmp_path)
    backend: Any = place.open()
    log = place.file.with_name(place.file.name + "-wal")
    given = {"given": "x" * 400_000, "fingerprint": "y" * 400_000}

    def wrote(work: Any) -> int:
        before = log.stat().st_size if log.exists() else 0
        wait(work)
        return log.stat().st_size - before

    claims: list[Any] = []

    async def claim() -> None:
        claims.append(await backend.claim("r", new_run(**given), now=T0))

    assert wrote(claim()) > 800_000
    wait(backend.save_state("r", saved(claims[-1], 1, fingerprint=given["fingerprint"])))
    assert wrote(backend.release("r", claims[-1].fence)) < 50_000
    assert wrote(claim()) < 50_000
    assert wrote(backend.save_state("r", saved(claims[-1], 2, status="failed", error=ERROR))) < 50_000
    state = place.load()
    assert (state["input"], state["fingerprint"]) == (given["given"], given["fingerprint"])
    wait(backend.delete_state("r"))
    assert query(place.file, "SELECT count(*) FROM flujo_start") == [(0,)]
    place.close()
