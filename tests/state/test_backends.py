"""The port, as flujo's own backends fulfil it: claims, fences, saves by hand, reading."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, InMemoryBackend, StateBackend, step
from flujo.errors import (
    ConfigurationError,
    FencedError,
    InvalidRunIdError,
    InvalidStateError,
    NotSerializableError,
    RunInProgressError,
    UnknownTypeError,
)
from flujo.state import open_backend
from flujo.state.backends.sqlite import SQLiteBackend
from tests.support.backends import KINDS, OURS, SERVED, Place
from tests.support.pipelines import T0, abc, by_hand, new_run
from tests.support.saves import plain, saved, take, wait


@pytest.fixture(params=SERVED)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    found = Place(request.param, tmp_path)
    yield found
    found.close()


@pytest.fixture
def backend(place: Place) -> Any:
    return place.open()


# Claims.


def test_a_claim_of_nothing(backend: StateBackend) -> None:
    """It draws a fence; the run is not there before its first save, and a release leaves nothing."""
    claim = take(backend)
    assert claim.fence is not None and claim.state is None and claim.crashes == 0
    assert wait(backend.load_state("r")) is None
    wait(backend.release("r", claim.fence))
    assert wait(backend.load_state("r")) is None
    again = take(backend)
    assert again.fence not in (None, claim.fence)


def test_a_second_claim_is_refused(place: Place, backend: StateBackend) -> None:
    """By the same backend object and by another one; it says who and since when. After a release it is granted."""
    claim = take(backend)
    for other in (backend, place.open()):
        with pytest.raises(RunInProgressError) as caught:
            take(other)
        assert caught.value.run_id == "r"
    wait(backend.release("r", 999))  # somebody else's fence: nothing happens
    with pytest.raises(RunInProgressError):
        take(backend)
    assert claim.fence is not None
    wait(backend.release("r", claim.fence))
    wait(backend.release("r", claim.fence))
    assert take(place.open()).fence is not None


def test_a_claim_by_force(place: Place, backend: StateBackend) -> None:
    """The old owner's saves are refused from then on, and nothing of them is written; its release does nothing."""
    old = take(backend)
    wait(backend.save_state("r", saved(old, 1)))
    new = take(place.open(), force=True)
    assert new.fence != old.fence and new.state is not None and new.state["rev"] == 1
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(old, 2)))
    assert old.fence is not None
    wait(backend.release("r", old.fence))
    wait(backend.save_state("r", saved(new, 2)))
    assert plain(wait(backend.load_state("r")))["rev"] == 2


@pytest.mark.parametrize("status", ["completed", "cancelled", "paused"])
def test_a_claim_of_a_settled_run(backend: StateBackend, status: str) -> None:
    """It is answered without a fence, and with the state; also by force."""
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1, status=status)))
    for force in (False, True):
        again = take(backend, force=force)
        assert again.fence is None and again.state is not None
        assert plain(again.state)["status"] == status


def test_a_paused_run_whose_time_has_come(backend: StateBackend) -> None:
    """It can be claimed from that moment on, and not before."""
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1, status="paused", due_at=T0 + timedelta(seconds=10))))
    for seconds, granted in ((9, False), (10, True)):
        again = wait(backend.claim("r", new_run(), now=T0 + timedelta(seconds=seconds)))
        assert (again.fence is not None) is granted


def test_the_first_claim_decides_what_the_run_is(backend: StateBackend) -> None:
    """Input and pipeline of a run that was never saved are those of the claim that saves it."""
    first = wait(backend.claim("r", new_run(given="one"), now=T0))
    assert first.fence is not None
    wait(backend.release("r", first.fence))
    second = wait(backend.claim("r", new_run("other", given="two"), now=T0))
    wait(backend.save_state("r", saved(second, 1)))
    state = wait(backend.load_state("r"))
    assert state is not None
    assert (state["input"], state["pipeline_name"]) == ("two", "other")


def test_abandoning(backend: StateBackend) -> None:
    """A claim that is abandoned can be had by others at once."""
    claim = take(backend)
    assert claim.fence is not None and backend.holds("r", claim.fence)
    backend.abandon("r", claim.fence)
    assert not backend.holds("r", claim.fence)
    assert take(backend).fence is not None


# Saves with a fence.


def test_saves_in_order(backend: Any) -> None:
    """Each is the newest state; every earlier one can still be read by its number."""
    claim = take(backend, given=("in", 1))
    for rev in (1, 2, 3):
        state = saved(claim, rev, status="completed" if rev == 3 else "running", pipeline_context={"n": rev})
        wait(backend.save_state("r", state))
    newest = wait(backend.load_state("r"))
    assert newest["input"] == ("in", 1)
    assert [record.name for record in newest["step_history"]] == ["s1", "s2", "s3"]
    assert newest["history_offset"] == 0
    for rev in (1, 2, 3):
        then = wait(backend.load_at("r", rev))
        assert then["current_step_index"] == then["rev"] == rev
        assert then["pipeline_context"] == {"n": rev}
        assert then["last_step_output"] == {"rev": rev}
        assert then["status"] == ("completed" if rev == 3 else "running")
        assert then["step_history"] == [] and then["history_offset"] == rev
        whole = wait(backend.load_at("r", rev, head=False))
        assert [record.name for record in whole["step_history"]] == [f"s{n + 1}" for n in range(rev)]
    for rev in (0, 4, -1):
        assert wait(backend.load_at("r", rev)) is None
    assert wait(backend.load_at("nobody")) is None


def test_the_same_save_twice_is_one(backend: StateBackend) -> None:
    """That is how an unknown outcome is found out; another save of the same number is refused."""
    claim = take(backend)
    for _ in range(3):
        wait(backend.save_state("r", saved(claim, 1)))
    for _ in range(2):
        wait(backend.save_state("r", saved(claim, 2)))
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(claim, 2, last_step_output="another")))
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(claim, 1)))
    wait(backend.save_state("r", saved(claim, 3, status="completed")))
    state = wait(backend.load_state("r"))
    assert state is not None and state["rev"] == 3 and len(state["step_history"]) == 3


@pytest.mark.parametrize("rev", [-1, 0, 1, 3, 4, 1 << 24])
def test_a_save_out_of_order(backend: StateBackend, rev: int) -> None:
    """A save that does not follow the newest one is refused, and nothing is written."""
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1)))
    before = plain(wait(backend.load_state("r")))
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(claim, rev, last_step_output="x")))
    assert plain(wait(backend.load_state("r"))) == before
    wait(backend.save_state("r", saved(claim, 2)))


def test_a_save_with_a_fence_never_makes_a_run(backend: StateBackend) -> None:
    """Not of a run that nobody claimed, nor of one that was deleted since."""
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(take(backend, "other"), 1)))
    assert wait(backend.load_state("r")) is None
    claim = take(backend)
    assert claim.fence is not None
    wait(backend.save_state("r", saved(claim, 1)))
    wait(backend.release("r", claim.fence))
    wait(backend.delete_state("r"))
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(claim, 2)))
    assert wait(backend.load_state("r")) is None


def test_a_save_after_the_last_one(backend: StateBackend) -> None:
    """A status other than running frees the run in the same write: there is no save after that."""
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1, status="failed", error={"type": "E", "text": "t"})))
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(claim, 2)))
    again = take(backend)
    assert again.fence is not None and again.state is not None and again.state["error"] == {"type": "E", "text": "t"}


def test_a_refused_save_can_be_mended(backend: StateBackend) -> None:
    """One that could not be encoded leaves the claim and the store as they were."""
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1, pipeline_context={"a": 1})))
    for broken in (
        {"last_step_output": object()},
        {"pipeline_context": {"a": 2, "b": object()}},
        {"pipeline_context": {1: 2}},
    ):
        with pytest.raises(NotSerializableError):
            wait(backend.save_state("r", saved(claim, 2, **broken)))
    wait(backend.save_state("r", saved(claim, 2, pipeline_context={"a": 3})))
    assert plain(wait(backend.load_state("r")))["pipeline_context"] == {"a": 3}


# Saves by hand.


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_by_hand_is_loaded(kind: str, tmp_path: Path) -> None:
    """The ten fields come back, and types that JSON lacks where the backend has a codec."""
    place = Place(kind, tmp_path)
    payload: Any = {(1, 2): {3}, "t": T0} if kind in OURS else {"a": [1, None, "ä"]}
    state = by_hand(last_step_output=payload, pipeline_context={"n": 1, "x": payload})
    place.put(state)
    found = place.load()
    assert {name: found[name] for name in state if not name.endswith("_at")} == {
        name: value for name, value in state.items() if not name.endswith("_at")
    }
    place.put(state | {"current_step_index": 2, "status": "completed"})
    assert (place.load()["current_step_index"], place.load()["status"]) == (2, "completed")
    wait(place.open().delete_state("r"))
    assert wait(place.open().load_state("r")) is None
    wait(place.open().delete_state("r"))
    place.close()


def test_a_save_by_hand_does_not_keep_the_callers_objects(place: Place, backend: StateBackend) -> None:
    """What is changed afterwards, in the saved or in the loaded state, is not in the store."""
    state = by_hand(last_step_output=[1], pipeline_context={"a": [1]})
    wait(backend.save_state("r", state))
    state["last_step_output"].append(2)
    state["pipeline_context"]["a"].append(2)
    loaded = place.load()
    loaded["last_step_output"].append(3)
    loaded["pipeline_context"]["a"].append(3)
    assert (place.load()["last_step_output"], place.load()["pipeline_context"]) == ([1], {"a": [1]})


def test_a_save_by_hand_voids_older_claims(backend: StateBackend) -> None:
    """An owner that was thought dead cannot save after it."""
    claim = take(backend)
    assert claim.fence is not None
    wait(backend.save_state("r", saved(claim, 1)))
    wait(backend.release("r", claim.fence))
    wait(backend.save_state("r", by_hand(last_step_output="by hand")))
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(claim, 2)))
    assert plain(wait(backend.load_state("r")))["last_step_output"] == "by hand"


def test_a_save_by_hand_of_what_cannot_be_kept(place: Place, backend: StateBackend) -> None:
    """It is refused, and the state that was there stays, whichever part of it is wrong."""
    wait(backend.save_state("r", by_hand(last_step_output="old", input="in", step_history=[{"path": ["a"]}])))
    before, rows = place.load(), place.contents()
    for broken in (
        {"last_step_output": object()},
        {"pipeline_context": {"a": object()}},
        {"input": object()},
        {"input": object(), "created_at": T0 + timedelta(days=1)},
        {"last_step_output": object(), "pipeline_name": "another", "pipeline_id": "another"},
        {"step_history": [7], "created_at": T0 + timedelta(days=1)},
    ):
        with pytest.raises((NotSerializableError, InvalidStateError)):
            wait(backend.save_state("r", by_hand(**broken)))
        assert place.load() == before
        assert place.contents() == rows


def test_a_save_by_hand_with_another_identity(place: Place, backend: StateBackend) -> None:
    """A state of another pipeline, version or input replaces the run whole."""
    claim = take(backend)
    for rev in (1, 2, 3):
        wait(backend.save_state("r", saved(claim, rev, status="completed" if rev == 3 else "running")))
    state = place.load()
    wait(backend.save_state("r", state | {"pipeline_version": "2.0.0", "status": "running"}))
    found = place.load()
    assert (found["pipeline_version"], found["rev"], found["current_step_index"]) == ("2.0.0", 1, 3)
    assert [record.name for record in found["step_history"]] == ["s1", "s2", "s3"]


@pytest.mark.parametrize("run_id", ["", "a\nb", "\ud800", "x" * 201])
def test_an_invalid_run_id(backend: StateBackend, run_id: str) -> None:
    """It is an error of its own, and none of the store's."""
    for use in (backend.save_state(run_id, by_hand(run_id=run_id)), backend.load_state(run_id)):
        with pytest.raises(InvalidRunIdError):
            wait(use)


@pytest.mark.slow
@pytest.mark.slow
def test_a_value_whose_type_is_unknown_here_is_not_lost(tmp_path: Path) -> None:
    """A state that a process without a type has loaded is plain data to it, and it cannot save these by mistake."""
    place = Place("sqlite", tmp_path)
    code = f"""
import asyncio
from dataclasses import dataclass
from flujo import Flujo, SQLiteBackend, step

@dataclass
class Item:
    n: int

fail = {{fail}}

@step
async def make(n: int) -> Item:
    return Item(n)

@step
async def use(item: Item) -> int:
    if fail:
        raise OSError
    return item.n + 1

backend = SQLiteBackend({str(place.file)!r})
result = Flujo(make >> use, state_backend=backend).run(41, run_id="r")
print(result.status, None if fail else result.output)
asyncio.run(backend.close())
"""

    def execute(fail: bool) -> str:
        command = [sys.executable, "-c", code.format(fail=fail)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout or done.stderr

    assert execute(fail=True) == "failed None\n"
    state = place.load()  # this process knows no Item
    assert state["last_step_output"] == {"n": 41}
    (name,) = state["unresolved"]
    with pytest.raises(UnknownTypeError, match=re.escape(name)):
        place.put(state | {"status": "failed"})
    place.close()
    assert execute(fail=False) == "completed 42\n"


# Reading.


def filled(backend: Any, count: int = 12) -> list[str]:
    """Make runs in every status, of two pipelines; return their ids, the oldest first."""
    statuses = ["completed", "failed", "paused", "cancelled", "running"]
    for number in range(count):
        pipeline = "abc" if number % 3 else "other"
        new = new_run(pipeline, created_at=T0 + timedelta(minutes=number))
        claim = wait(backend.claim(f"r{number}", new, now=T0 + timedelta(minutes=number)))
        status = statuses[number % 5]
        error = {"type": "E", "text": f"t{number}"} if status == "failed" else None
        moment = T0 + timedelta(minutes=number)
        state = saved(claim, 1, f"r{number}", status=status, error=error, updated_at=moment)
        wait(backend.save_state(f"r{number}", state))
        if status == "running":
            wait(backend.release(f"r{number}", claim.fence))
    return [f"r{number}" for number in range(count)]


def test_listing(backend: Any) -> None:
    """The newest first, by status and pipeline, page by page; a claim alone is no run."""
    runs = filled(backend)
    take(backend, "claimed only")
    found = wait(backend.list_runs())
    assert [run.run_id for run in found] == runs[::-1]
    assert [run.run_id for run in wait(backend.list_runs({"status": "failed"}))] == ["r11", "r6", "r1"]
    both = wait(backend.list_runs({"status": "completed", "pipeline_id": "other"}))
    assert [run.run_id for run in both] == ["r0"]
    failed = wait(backend.list_runs({"status": "failed"}))[0]
    assert (failed.pipeline_id, failed.pipeline_version, failed.current_step_index) == ("abc", "1.0.0", 1)
    assert failed.total_steps == 3 and "t11" in (failed.error_message or "")
    assert failed.created_at == T0 + timedelta(minutes=11)
    pages: list[str] = []
    after = None
    while page := wait(backend.list_runs(limit=5, after=after)):
        pages += [run.run_id for run in page]
        after = page[-1].run_id
    assert pages == runs[::-1]
    assert wait(backend.list_runs(after="nobody")) == []
    assert wait(backend.list_runs({"status": "failed", "pipeline_id": "nobody"})) == []


def test_counting(backend: Any) -> None:
    """By status and by pipeline, all or some."""
    filled(backend)
    take(backend, "claimed only")
    counts = {"completed": 3, "failed": 3, "paused": 2, "cancelled": 2, "running": 2}
    assert wait(backend.count_runs()) == counts
    assert wait(backend.count_runs(by="pipeline_id")) == {"abc": 8, "other": 4}
    assert wait(backend.count_runs({"status": "failed"}, by="pipeline_id")) == {"abc": 2, "other": 1}


@pytest.mark.parametrize("name", ["run_id", "1; DROP TABLE flujo_run", "input", ""])
def test_what_runs_cannot_be_told_apart_by(backend: Any, name: str) -> None:
    """It is refused, and is never put into a statement."""
    filled(backend, 2)
    with pytest.raises(ConfigurationError):
        wait(backend.list_runs({name: "x"}))
    with pytest.raises(ConfigurationError):
        wait(backend.count_runs(by=name))
    assert wait(backend.count_runs()) == {"completed": 1, "failed": 1}


def test_history_in_pages(backend: Any) -> None:
    """Any page of it is what is there, saves without records and with several among them."""
    claim = take(backend)
    names: list[str] = []
    for rev, size in enumerate((1, 0, 3, 0, 0, 1, 2, 0, 1), start=1):
        new = [f"s{rev}.{number}" for number in range(size)]
        records = [{"path": [name], "output": [name], "attempts": 2} for name in new]
        history = [saved(claim, 1)["step_history"][0].__class__(**r | {"path": tuple(r["path"])}) for r in records]
        wait(backend.save_state("r", saved(claim, rev, step_history=history, last_step_output=new)))
        names += new
    for after in range(len(names) + 2):
        for limit in (None, 0, 1, 2, 3, 100):
            found = wait(backend.history("r", after=after, limit=limit))
            expected = names[after:] if limit is None else names[after : after + limit]
            assert [record.name for record in found] == expected
            assert all(record.output == [record.name] and record.attempts == 2 for record in found)
    assert wait(backend.history("nobody")) == []


@pytest.mark.slow
def test_every_earlier_state(backend: Any) -> None:
    """Over hundreds of changes of a context each state is what was saved then."""
    claim = take(backend)
    context: dict[str, Any] = {"log": [], "text": "ä" * 500}
    expected = []
    for rev in range(1, 301):
        context = {**context, "log": [*context["log"], f"entry {rev} 😀"]}
        match rev % 7:
            case 0:
                context[f"field {rev}"] = {"n": rev}
            case 3:
                context["text"] = context["text"][: rev % 400] + "\u20ac" + context["text"][rev % 400 :]
            case 5 if len(context) > 3:
                context.pop(next(name for name in context if name.startswith("field")))
            case 6:
                context = dict(reversed(context.items()))
        expected.append(context)
        wait(backend.save_state("r", saved(claim, rev, pipeline_context=context)))
    for rev in (*range(1, 301, 23), 299, 300):
        found = wait(backend.load_at("r", rev))["pipeline_context"]
        assert found == expected[rev - 1]
        assert list(found) == list(expected[rev - 1])
    assert wait(backend.load_state("r"))["pipeline_context"] == expected[-1]


@pytest.mark.slow
def test_a_claim_between_saves_goes_on_with_the_context(place: Place) -> None:
    """After every save by another owner, over snapshots too, the next delta fits the stored text."""
    text = "x" * 3000
    context: dict[str, Any] = {}
    for rev in range(1, 61):
        backend: Any = place.open()
        claim = take(backend)
        context = {**context, f"f{rev % 5}": f"{text[: 50 * rev]}{rev}", "n": rev}
        wait(backend.save_state("r", saved(claim, rev, pipeline_context=context)))
        wait(backend.release("r", claim.fence))
        assert wait(place.open().load_state("r"))["pipeline_context"] == context  # type: ignore[index]


# URIs.


def test_open_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URI, or the variable, names the store; a relative path is one in the working directory."""
    monkeypatch.chdir(tmp_path)
    relative, absolute, spaced = (
        open_backend("sqlite:///runs.db"),
        open_backend(f"sqlite:///{tmp_path}/more.db"),
        open_backend("sqlite:///a%20b.db"),
    )
    for backend, name in ((relative, "runs.db"), (absolute, "more.db"), (spaced, "a b.db")):
        assert isinstance(backend, SQLiteBackend)
        wait(backend.save_state("r", by_hand()))
        assert (tmp_path / name).exists()
        wait(backend.close())
    assert isinstance(open_backend("memory://"), InMemoryBackend)
    monkeypatch.setenv("FLUJO_STATE_URI", "sqlite:///from-environment.db")
    found = open_backend()
    assert isinstance(found, SQLiteBackend) and found.path == Path("from-environment.db")
    assert isinstance(open_backend("memory://"), InMemoryBackend)


@pytest.mark.parametrize(
    "uri",
    [None, "", "x.db", "sqlite:", "sqlite://", "sqlite:///", "mysql://x", "SQLITE:/x", "memory", "sqlite:///:memory:"],
)
def test_a_uri_that_names_no_store(uri: str | None) -> None:
    """The error shows what one looks like."""
    with pytest.raises(ConfigurationError):
        open_backend(uri)


# Threads and loops.


def test_two_runners_on_one_backend_in_threads(place: Place) -> None:
    """Runs that follow each other in many threads, each with its own backend object on the store, do not mix."""
    done: list[Any] = []

    def work(number: int) -> None:
        backend = place.open()
        for turn in range(4):
            done.append(Flujo(abc([]), state_backend=backend).run([number], run_id=f"{number}.{turn}").output)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == sorted([[n, "a", "b", "c"] for n in range(8) for _ in range(4)])
    assert wait(place.open().count_runs()) == {"completed": 32}  # type: ignore[attr-defined]


def test_a_loop_that_ends_before_its_answers_come(place: Place) -> None:
    """A loop that is closed while saves are on their way does no harm to those of others."""

    @step
    async def work(n: int) -> int:
        await asyncio.sleep(0)
        return n

    backend = place.open()

    async def begin_and_leave() -> None:
        runner = Flujo(work >> work.named("w2"), state_backend=backend)
        tasks = [asyncio.ensure_future(runner.run_async(n, run_id=f"left {n}")) for n in range(10)]
        await asyncio.sleep(0)
        del tasks  # asyncio.run cancels them

    for _ in range(5):
        asyncio.run(begin_and_leave())
    results = [Flujo(work >> work.named("w2"), state_backend=backend).run(n, run_id=f"left {n}") for n in range(10)]
    assert [result.output for result in results] == list(range(10))
