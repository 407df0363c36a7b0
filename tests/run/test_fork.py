"""`fork`: a new run of what an old one was when a step was about to start."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from flujo import Flujo, Pipeline, SQLiteBackend, Step, current_step, step
from flujo.errors import (
    ConfigurationError,
    InvalidChangeError,
    PipelineMismatchError,
    RunExistsError,
    RunNotFoundError,
    StepNotReachedError,
    UnknownStepError,
)  # fmt: skip
from tests.support import reference_backends
from tests.support.backends import OURS, Place, query


class Shop(BaseModel):
    """What the steps share."""

    seen: list[str] = Field(default_factory=list, max_length=100)
    limit: int = 0


done: list[str] = []


def adding(name: str, fails: bool = False, undo: Any = None) -> Step[int, int]:
    """Return a step that adds 1, and writes its name down, in the context too."""

    @step(name=name, undo=undo)
    async def act(number: int, *, context: Shop) -> int:
        done.append(name)
        context.seen.append(name)
        if fails:
            raise OSError("down")
        return number + 1

    return act


def abc(fails: str = "", undo: Any = None) -> Pipeline[int, int]:
    """Return three steps, of which one may fail."""
    return adding("a", fails == "a", undo) >> adding("b", fails == "b", undo) >> adding("c", fails == "c", undo)


def runner(place: Place, pipeline: Any = None, **options: Any) -> Flujo[Any, Any]:
    """Return a runner on the store, as another process would have."""
    done.clear()
    return Flujo(
        abc() if pipeline is None else pipeline, pipeline_name="abc", context_model=Shop, state_backend=place.open(),
        **options,
    )  # fmt: skip


@pytest.fixture
def ours(place: Place) -> Place:
    """A store whose runs can be forked from any step."""
    if place.kind not in OURS:
        pytest.skip("it keeps the newest state alone")
    return place


@pytest.mark.parametrize("step", [0, 1, 2, 3, "a", "b", "c"])
def test_a_fork_begins_where_the_step_began(ours: Place, step: int | str) -> None:
    """It has the context and the records of then, executes the steps from there on, and leaves the old run alone."""
    runner(ours).run(1, run_id="r")
    before = ours.load("r")
    index = step if isinstance(step, int) else "abc".index(step)
    new = runner(ours).fork("r", step, new_run_id="new", by="ada", reason="why not")
    assert (new, done) == ("new", [])
    state = ours.load("new")
    assert (state["status"], state["current_step_index"]) == ("running", index)
    assert state["pipeline_context"] == {"seen": list("abc"[:index]), "limit": 0}
    assert [record.name for record in state["step_history"]] == list("abc"[:index])
    assert state["forked_from"] == {"run_id": "r", "rev": index} and (state["inherited"] or 0) == index
    result = runner(ours).run(run_id="new")
    assert (result.status, result.output, done) == ("completed", 4, list("abc"[index:]))
    assert result.final_pipeline_context == Shop(seen=list("abc"))
    assert [record.name for record in result.step_history] == list("abc")
    assert ours.load("r") == before


def test_who_forked_it_and_why_is_known(place: Place) -> None:
    """It is a message of the new run, which needs no reading; where it came from is in its state."""
    runner(place, abc("b")).run(1, run_id="r")
    new = runner(place).fork("r", "b", by="ada", reason="try again")
    (message,) = runner(place).messages(new)
    assert (message.kind, message.by, message.reason) == ("fork", "ada", "try again")
    assert place.load(new)["forked_from"]["run_id"] == "r"
    assert runner(place).run(run_id=new).output == 4
    assert runner(place).messages("r") == []


def test_every_kind_of_store_forks_a_run_from_where_it_stands(place: Place) -> None:
    """A run that failed at a step is forked there, and the fork does that step, whatever the store can do."""
    assert runner(place, abc("b")).run(1, run_id="r").status == "failed"
    new = runner(place).fork("r", "b", context={"limit": 7})
    result = runner(place).run(run_id=new)
    assert (result.output, done) == (4, ["b", "c"])
    assert result.final_pipeline_context == Shop(seen=["a", "b", "c"], limit=7)
    assert place.load("r")["status"] == "failed"


def test_a_store_without_older_states_says_so(place: Place) -> None:
    """A backend of three methods can fork the newest state alone."""
    if place.kind in OURS:
        return
    runner(place).run(1, run_id="r")
    with pytest.raises(ConfigurationError, match="keeps only the newest state"):
        runner(place).fork("r", "b")


def test_outputs_and_context_can_be_other(ours: Place) -> None:
    """The output of the step right before, and fields of the context; both as JSON data or as what they are."""
    runner(ours).run(1, run_id="r")
    new = runner(ours).fork("r", "c", outputs={"b": 100}, context={"seen": ["x"], "limit": 3})
    result = runner(ours).run(run_id=new)
    assert result.output == 101
    assert result.final_pipeline_context == Shop(seen=["x", "c"], limit=3)
    again = runner(ours).fork(new, "c")  # of a fork: what it was changed to counts
    assert runner(ours).run(run_id=again).final_pipeline_context == Shop(seen=["x", "c"], limit=3)
    assert runner(ours).run(run_id=runner(ours).fork(new, 3, outputs={"c": -1})).output == -1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": {"limits": 1}}, "no field 'limits'. Did you mean 'limit'"),
        ({"context": {"limit": "1"}}, "'limit'.*cannot be that"),
        ({"context": {"seen": ["x"] * 101}}, "'seen'.*cannot be that"),
        ({"outputs": {"a": 1}}, "step before is 'b'"),
        ({"outputs": {"b": "many"}}, "output of step 'b' cannot be that"),
    ],
)
def test_a_change_that_does_not_fit(ours: Place, options: dict[str, Any], says: str) -> None:
    """It is refused by name, and there is no new run."""
    runner(ours).run(1, run_id="r")
    with pytest.raises(InvalidChangeError, match=says):
        runner(ours).fork("r", "c", new_run_id="new", **options)
    assert asyncio.run(ours.open().load_state("new")) is None


def test_what_cannot_be_forked(ours: Place) -> None:
    """No such run, no such step, one that was not reached, a run_id that is taken, another pipeline's run."""
    runner(ours, abc("b")).run(1, run_id="r")
    with pytest.raises(RunNotFoundError):
        runner(ours).fork("never", 1)
    with pytest.raises(UnknownStepError, match=r"no step 'd'.*'a', 'b', 'c'"):
        runner(ours).fork("r", "d")
    for wrong in (4, -1, True, None):
        with pytest.raises(UnknownStepError):
            runner(ours).fork("r", wrong)  # type: ignore[arg-type]
    with pytest.raises(StepNotReachedError, match="has done 1 steps") as caught:
        runner(ours).fork("r", "c")
    assert (caught.value.reached, caught.value.code) == (1, "step-not-reached")
    for taken in ("r", runner(ours).fork("r", 1)):
        with pytest.raises(RunExistsError, match=taken):
            runner(ours).fork("r", 1, new_run_id=taken)
    with pytest.raises(PipelineMismatchError):
        Flujo(abc(), pipeline_name="other", context_model=Shop, state_backend=ours.open()).fork("r", 1)


def test_a_fork_undoes_what_it_did_itself(ours: Place) -> None:
    """What the old run did before the fork is the old run's: the fork's failure leaves it."""
    undone: list[int] = []
    runner(ours).run(1, run_id="r")
    new = runner(ours).fork("r", "b")
    result = runner(ours, abc("c", undo=undone.append)).run(run_id=new)
    assert (result.status, result.phase, undone, result.undone) == ("failed", "undone", [3], ["b"])
    again = runner(ours).fork(new, "c")
    undone.clear()
    assert runner(ours, abc("c", undo=undone.append)).run(run_id=again).undone == [] and undone == []


def test_a_fork_stands_at_no_wait_and_after_no_failure(ours: Place) -> None:
    """A run that waits, or has failed, inside of a step is forked as it was before that step."""
    waits = adding("a") >> Step.human_in_the_loop("ask", "Go on?", int) >> adding("c")
    assert runner(ours, waits).run(1, run_id="r").status == "paused"
    new = runner(ours, waits).fork("r", "ask")
    state = ours.load(new)
    assert (state["status"], state["waiting"], state["position"]) == ("running", None, None)
    assert runner(ours, waits).run(run_id=new).status == "paused"
    assert runner(ours, waits).resume(new, 5).output == 6
    assert runner(ours, waits).resume("r", 7).output == 8


def test_a_fork_has_keys_of_its_own(ours: Place) -> None:
    """A step that is done again in a fork is another call of it."""
    keys: list[str] = []

    @step
    async def pay(number: int) -> int:
        keys.append(current_step().idempotency_key)
        return number

    runner(ours, adding("a") >> pay).run(1, run_id="r")
    new = runner(ours, adding("a") >> pay).fork("r", "pay")
    runner(ours, adding("a") >> pay).run(run_id=new)
    assert len(set(keys)) == 2


def test_two_that_fork_to_the_same_run_at_once(ours: Place) -> None:
    """One of them makes it, and the other is told; what is there is whole."""
    runner(ours).run(1, run_id="r")

    async def main() -> list[Any]:
        forks = [runner(ours).fork_async("r", at, new_run_id="new", context={"limit": at}) for at in (1, 2) * 4]
        return await asyncio.gather(*forks, return_exceptions=True)

    found = asyncio.run(main())
    assert found.count("new") == 1 and all(type(other) is RunExistsError for other in found if other != "new")
    limit = (found.index("new")) % 2 + 1
    state = ours.load("new")
    assert (state["pipeline_context"]["limit"], state["current_step_index"]) == (limit, limit)
    assert runner(ours).run(run_id="new").output == 4


def test_a_run_is_forked_while_somebody_executes_it(ours: Place) -> None:
    """The runner goes on undisturbed, to its own end; the fork has what was saved."""
    held, go = asyncio.Event(), asyncio.Event()

    @step
    async def slow(number: int) -> int:
        held.set()
        await go.wait()
        return number

    pipeline = adding("a") >> slow

    async def main() -> None:
        running = asyncio.create_task(runner(ours, pipeline).run_async(1, run_id="r"))
        await held.wait()
        new = await runner(ours, pipeline).fork_async("r", "slow", context={"limit": 9})
        go.set()
        assert (await running).final_pipeline_context == Shop(seen=["a"])
        assert (await runner(ours, pipeline).run_async(run_id=new)).final_pipeline_context.limit == 9

    asyncio.run(main())


def hundred() -> Pipeline[int, int]:
    """Return 100 steps that each add a line to the context."""
    made = Pipeline.of(adding("s0"))
    for number in range(1, 100):
        made = made >> adding(f"s{number}")
    return made


@pytest.mark.slow
def test_forks_from_every_step_cost_less_than_three_copies(tmp_path: Path) -> None:
    """All 100 forks of a run of 100 steps have the context of their step, and are smaller than three such runs."""
    file = tmp_path / "runs.db"

    def used() -> int:
        tables = ("run", "log", "start", "snapshot", "mail", "fork")
        sizes = [query(file, f"SELECT * FROM flujo_{table}") for table in tables]
        return sum(len(repr(row)) for rows in sizes for row in rows)

    def pages() -> int:
        query(file, "PRAGMA wal_checkpoint(TRUNCATE)")
        return int(query(file, "PRAGMA page_count")[0][0]) - int(query(file, "PRAGMA freelist_count")[0][0])

    done.clear()
    backend = SQLiteBackend(file, durability="process")
    flujo: Flujo[Any, Any] = Flujo(hundred(), context_model=Shop, state_backend=backend)
    flujo.run(0, run_id="r")
    start, first = used(), pages()

    async def fork_all() -> None:
        for number in range(1, 101):
            new = await flujo.fork_async("r", number, new_run_id=uuid.uuid4().hex, by="ada", reason="a test")
            state = await backend.load_at(new)
            assert state is not None and state["pipeline_context"]["seen"] == [f"s{n}" for n in range(number)]

    asyncio.run(fork_all())
    forks, after = used() - start, pages()
    for number in range(3):
        flujo.run(0, run_id=f"copy{number}")
    copies, end = used() - start - forks, pages()
    asyncio.run(backend.close())
    print(f"bytes: {start=} {forks=} {copies=}; pages: {first=} forks={after - first} copies={end - after}")
    assert forks < copies and after - first < end - after


@pytest.mark.parametrize("kind", ["Readable", "LiveReadable", "FencedReadable", "LiveFencedReadable"])
def test_a_backend_of_somebody_elses_has_its_runs_copied(kind: str) -> None:
    """One that is Reading has older states, and so its runs can be forked from any step."""
    backend = getattr(reference_backends, kind)()
    flujo: Flujo[Any, Any] = Flujo(abc(), context_model=Shop, state_backend=backend)
    done.clear()
    flujo.run(1, run_id="r")
    before = asyncio.run(backend.load_state("r"))
    new = flujo.fork("r", "b", context={"limit": 2}, by="ada")
    result = flujo.run(run_id=new)
    assert (result.output, done) == (4, ["a", "b", "c", "b", "c"])
    assert result.final_pipeline_context == Shop(seen=["a", "b", "c"], limit=2)
    assert [record.name for record in result.step_history] == ["a", "b", "c"]
    assert asyncio.run(backend.load_state("r")) == before
    with pytest.raises(RunExistsError):
        flujo.fork("r", 1, new_run_id=new)
