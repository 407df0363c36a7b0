"""`edit`: a change of the context, or the last output, of a run that nobody executes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, Reconciled, SQLiteBackend, Step, current_step, step
from flujo._ids import idempotency_key
from flujo.errors import InvalidChangeError, RunEndedError, RunInProgressError, RunNotFoundError
from flujo.testing import VirtualClock
from tests.support.backends import OURS, THEIRS, Place
from tests.support.waiting_runs import around_saves


class Shop(BaseModel):
    """What the steps share."""

    limit: int = 0
    notes: list[str] = []


keys: list[str] = []
given: list[Any] = []


@step(name="a")
async def first(number: int) -> int:
    return number + 1


def pay(fails: bool = False, name: str = "pay", **options: Any) -> Step[int, int]:
    """Return a step that writes down what it takes and its key, and may fail."""

    @step(name=name, **options)
    async def act(number: int, *, context: Shop) -> int:
        keys.append(current_step().idempotency_key)
        given.append((number, context.limit))
        if fails:
            raise OSError("down")
        return number * 10

    return act


def runner(place: Place, pipeline: Any, **options: Any) -> Flujo[Any, Any]:
    """Return a runner on the store, as another process would have."""
    return Flujo(pipeline, pipeline_name="shop", context_model=Shop, state_backend=place.open(), **options)


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    keys.clear()
    given.clear()


def test_a_failed_run_is_edited_and_goes_on_with_what_it_was_given(place: Place) -> None:
    """It stays failed, with its error; who did it and why is on record; the step then takes what was changed."""
    runner(place, first >> pay(True)).run(1, run_id="r")
    before = place.load()
    runner(place, first >> pay()).edit("r", context={"limit": 5}, output=7, by="ada", reason="a wrong sum")
    state = place.load()
    assert (state["status"], state["error"], state["current_step_index"]) == ("failed", before["error"], 1)
    assert (state["pipeline_context"], state["last_step_output"]) == ({"limit": 5, "notes": []}, 7)
    assert len(state["step_history"]) == len(before["step_history"]) and state["rev"] == before["rev"] + 1
    (message,) = runner(place, first >> pay()).messages("r")
    assert (message.kind, message.by, message.reason) == ("edit", "ada", "a wrong sum")
    assert json.loads(message.payload or b"") == {"context": {"limit": 5}, "output": 7}
    assert state["edits"] == [message.seq] and state["mail_seen"] == message.seq
    assert runner(place, first >> pay()).run(run_id="r").output == 70
    assert given == [(2, 0), (7, 5)]


def test_the_step_that_takes_it_has_another_key(place: Place) -> None:
    """Its generation goes up with each edit, stays through failures and attempts, and ends with the step."""
    pipeline, down = first >> pay(retries=[0]) >> pay(name="ship"), first >> pay(True, retries=[0])
    down = down >> pay(name="ship")
    runner(place, down).run(1, run_id="r")
    for limit in (1, 2):
        runner(place, down).edit("r", context={"limit": limit})
        runner(place, down).run(run_id="r")
    assert runner(place, pipeline).run(run_id="r").status == "completed"
    expected = [idempotency_key("r", ("pay",), generation) for generation in (0, 0, 1, 1, 2, 2, 2)]
    assert keys == [*expected, idempotency_key("r", ("ship",), 0)]
    assert place.load()["position"] is None


def test_parts_of_a_step_have_another_key_too(place: Place) -> None:
    """What goes on inside of the step that takes it is another call as well."""
    pipeline = first >> Step.parallel("fan", x=pay(True, name="x"), y=pay(name="y"))
    runner(place, pipeline).run(1, run_id="r")
    before = set(keys)
    runner(place, pipeline).edit("r", context={"limit": 4})
    runner(place, pipeline).run(run_id="r")
    assert before and not before & set(keys[2:])


def test_a_paused_run_waits_on(place: Place) -> None:
    """It stays paused, waits for the same answer, and is due when it was."""
    clock = VirtualClock()
    waits = first >> Step.human_in_the_loop("ask", "Go on?", int, timeout=timedelta(days=1)) >> pay()
    asked = runner(place, waits, clock=clock).run(1, run_id="r")
    before = place.load()
    runner(place, waits, clock=clock).edit("r", context={"limit": 3}, by="ada")
    state = place.load()
    assert state["status"] == "paused" and state["waiting"] == before["waiting"]
    assert state["due_at"] == before["due_at"]
    again = runner(place, waits, clock=clock).run(run_id="r")
    assert (again.status, given) == ("paused", [])
    assert runner(place, waits, clock=clock).resume(asked, 6).output == 60
    assert given == [(6, 3)]


def test_a_message_that_nobody_has_read_is_not_lost(place: Place) -> None:
    """A signal that came before the edit is used afterwards, and a cancel is obeyed."""
    waits = first >> Step.wait_for("go", int) >> pay()
    runner(place, waits).run(1, run_id="r")
    runner(place, waits).signal("r", "go", 8)
    runner(place, waits).edit("r", context={"limit": 3})
    assert runner(place, waits).run(run_id="r").output == 80 and given == [(8, 3)]


def test_a_run_that_was_interrupted_is_edited(place: Place) -> None:
    """One that is running, with nobody to execute it, stays so."""

    async def main() -> None:
        async for _ in runner(place, first >> pay()).run_async(1, run_id="r"):
            break

    asyncio.run(main())
    runner(place, first >> pay()).edit("r", output=4)
    assert place.load()["status"] == "running"
    assert asyncio.run(place.open().owner("r")) is None
    assert runner(place, first >> pay()).run(run_id="r").output == 40


def test_what_is_refused(place: Place) -> None:
    """Nothing is stored of it, not even a message."""
    flujo = runner(place, first >> pay(True))
    flujo.run(1, run_id="r")
    before = place.load()
    for options, says in (
        ({"context": {"limits": 1}}, "Did you mean 'limit'"),
        ({"context": {"limit": "x"}}, "cannot be that"),
        ({"output": "x"}, "output of step 'a' cannot be that"),
        ({}, "nothing to change"),
    ):
        with pytest.raises(InvalidChangeError, match=says):
            runner(place, first >> pay()).edit("r", **options)
    with pytest.raises(RunNotFoundError):
        runner(place, first >> pay()).edit("never", output=1)
    assert place.load() == before and runner(place, first >> pay()).messages("r") == []
    runner(place, first >> pay()).run(run_id="r")
    with pytest.raises(RunEndedError, match="completed"):
        runner(place, first >> pay()).edit("r", output=1)
    runner(place, pay(True)).run(1, run_id="first")
    with pytest.raises(InvalidChangeError, match="no step is done"):
        runner(place, pay()).edit("first", output=1)


def test_the_input_of_a_step_that_has_begun_is_not_changed(place: Place) -> None:
    """Its parts that are done took the old one; the context can be changed all the same."""
    pipeline = first >> Step.parallel("fan", x=pay(name="x"), y=first >> pay(True, name="y"))
    runner(place, pipeline).run(1, run_id="r")
    with pytest.raises(InvalidChangeError, match="'fan' has begun with the old one"):
        runner(place, pipeline).edit("r", output=9)
    runner(place, pipeline).edit("r", context={"limit": 2})
    runner(place, pipeline).run(run_id="r")
    assert given[-1] == (3, 2) and given.count((2, 0)) == 1


def test_a_live_run_is_left_alone(place: Place) -> None:
    """Whoever executes it goes on; the edit is refused, and nothing of it is stored."""
    held, go = asyncio.Event(), asyncio.Event()

    @step
    async def slow(number: int) -> int:
        held.set()
        await go.wait()
        return number

    backend = place.open()  # one object: a backend of three methods knows its own owners alone
    flujo: Flujo[Any, Any] = Flujo(first >> slow, context_model=Shop, state_backend=backend)

    async def main() -> None:
        running = asyncio.create_task(flujo.run_async(1, run_id="r"))
        await held.wait()
        with pytest.raises(RunInProgressError):
            await flujo.edit_async("r", output=9)
        owner = await backend.owner("r")
        assert owner is not None and owner.alive and owner.who
        go.set()
        assert (await running).output == 2
        assert await flujo.messages_async("r") == []

    asyncio.run(main())


def test_two_edits_at_once(place: Place) -> None:
    """Each is made whole, one after the other, or refused; `edits` says which of the messages were."""
    flujo = runner(place, first >> pay(True))
    flujo.run(1, run_id="r")

    async def main() -> list[Any]:
        edits = [flujo.edit_async("r", context={"limit": n, "notes": [str(n)]}) for n in range(1, 5)]
        return await asyncio.gather(*edits, return_exceptions=True)

    found = asyncio.run(main())
    assert all(error is None or type(error) is RunInProgressError for error in found) and None in found
    state = place.load()
    assert len(state["edits"]) == found.count(None)
    limit = state["pipeline_context"]["limit"]
    assert found[limit - 1] is None and state["pipeline_context"]["notes"] == [str(limit)]
    assert state["position"]["generation"] == len(state["edits"])


def test_a_step_asks_about_the_call_that_was_made(place: Place) -> None:
    """A step in doubt is asked about with the key that it had; while it is, nothing is edited."""
    asked: list[str] = []

    def find_out(key: str) -> Reconciled:
        asked.append(key)
        return Reconciled(happened=True, output=1)

    pipeline = first >> pay(True, on_crash=find_out)
    runner(place, pipeline).run(1, run_id="r")
    runner(place, pipeline).edit("r", context={"limit": 1})
    backend = place.open()

    class Died(BaseException):
        pass

    @step(name="pay", on_crash=find_out)
    async def dying(number: int, *, context: Shop) -> int:
        keys.append(current_step().idempotency_key)
        raise Died

    interrupted: Flujo[Any, Any] = Flujo(
        first >> dying, pipeline_name="shop", context_model=Shop, state_backend=backend
    )
    with pytest.raises(Died):
        interrupted.run(run_id="r")
    with pytest.raises(InvalidChangeError, match="not known whether"):
        runner(place, pipeline).edit("r", context={"limit": 2})
    assert runner(place, pipeline).run(run_id="r").output == 1
    assert asked == [keys[1]] and keys[0] != keys[1]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["posted", "claimed", "saved"])
def test_a_process_that_dies_in_an_edit(tmp_path: Path, at: str) -> None:
    """The run is as it was, or edited as a whole; `edits` says which, and it goes on in either case."""
    file = tmp_path / "runs.db"
    place = Place("sqlite", tmp_path)
    runner(place, first >> pay(True)).run(1, run_id="r")
    place.close()
    program = f"""
        import os, signal, sys
        from pathlib import Path
        from flujo import Flujo, SQLiteBackend
        from tests.run import test_edit as shared
        at = {at!r}

        class Dying(SQLiteBackend):
            async def post(self, *args):
                seq = await super().post(*args)
                if at == "posted":
                    os.kill(os.getpid(), signal.SIGKILL)
                return seq

            async def claim(self, *args, **options):
                claim = await super().claim(*args, **options)
                if at == "claimed":
                    os.kill(os.getpid(), signal.SIGKILL)
                return claim

            async def save_state(self, *args):
                await super().save_state(*args)
                os.kill(os.getpid(), signal.SIGKILL)

        Flujo(shared.first >> shared.pay(), pipeline_name="shop", context_model=shared.Shop,
              state_backend=Dying(Path({str(file)!r}))).edit("r", context={{"limit": 5}}, by="ada")
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True)
    assert died.returncode == -9, died.stderr.decode()
    backend = SQLiteBackend(file)
    flujo: Flujo[Any, Any] = Flujo(first >> pay(), pipeline_name="shop", context_model=Shop, state_backend=backend)
    state = asyncio.run(backend.load_at("r"))
    assert state is not None
    (message,) = flujo.messages("r")
    made = at == "saved"
    assert (message.seq in state["edits"], state["pipeline_context"]["limit"]) == (made, 5 if made else 0)
    keys.clear()
    assert flujo.run(run_id="r").output == 20
    assert given[-1] == (2, 5 if made else 0)
    asyncio.run(backend.close())


def test_an_edit_is_one_save_more(place: Place) -> None:
    """What was saved before is as it was, and can be looked at."""
    if place.kind in THEIRS:
        return
    runner(place, first >> pay(True)).run(1, run_id="r")
    backend = place.open()
    older = asyncio.run(backend.load_at("r", 2))
    runner(place, first >> pay()).edit("r", context={"limit": 5})
    assert asyncio.run(backend.load_at("r", 2)) == older
    if place.kind == "sqlite":
        assert asyncio.run(backend.check_integrity()) == []


def test_somebody_writes_to_the_run_in_the_moment_of_the_edit(place: Place) -> None:
    """What comes between is read too: the edit is made, and the answer is not lost."""
    if place.kind not in OURS:
        return
    waits = first >> Step.human_in_the_loop("ask", "Go on?", int) >> pay()
    asked = runner(place, waits).run(1, run_id="r")
    backend = place.open()

    async def answer(state: dict[str, Any]) -> None:
        if not answered:
            answered.append(1)
            await other._post.answer("r", 6, None, None, asked)

    answered: list[int] = []
    other = runner(place, waits)
    around_saves(backend, lambda state: True, before=answer)
    flujo: Flujo[Any, Any] = Flujo(waits, pipeline_name="shop", context_model=Shop, state_backend=backend)
    flujo.edit("r", context={"limit": 2})
    assert place.load()["pipeline_context"]["limit"] == 2
    assert runner(place, waits).run(run_id="r").output == 60
    assert given == [(6, 2)]
