"""`once`: a call within a step that is saved by itself, and is not made again."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flujo import Flujo, Step, current_step, once, step
from flujo.errors import ConfigurationError, NotSerializableError, StepDefinitionError
from flujo.testing import VirtualClock
from tests.support.backends import Place
from tests.support.nested_runs import paths
from tests.support.undo_pages import Pages, run

ROWS = [f"row {page}" for page in range(4)]


def error_of(pipeline: Any) -> BaseException | None:
    """Run it and return why it failed."""
    return Flujo(pipeline).run(1).error


# --- what is saved ---


def test_a_call_is_saved_before_the_step_goes_on(place: Place) -> None:
    """Under the step's path and its own name; where the run is, and its last output, stay as they were."""
    backend = place.open()
    states: list[Any] = []

    @step
    async def crawl(n: int) -> int:
        for name in ("a", "b"):
            n += await once(name, lambda: 10)
            states.append(await backend.load_state("r"))
        return n

    first: Step[Any, Any] = step(name="first")(lambda n: n + 1)
    result = Flujo(first >> crawl, state_backend=backend).run(1, run_id="r")
    assert result.output == 22
    assert paths(result) == ["first", "crawl>a", "crawl>b", "crawl"]
    assert [record.name for record in result.step_history] == ["first", "crawl>a", "crawl>b", "crawl"]
    for count, state in enumerate(states, 2):
        assert (state["status"], state["current_step_index"], state["last_step_output"]) == ("running", 1, 2)
        assert len(state["step_history"]) == count
    assert paths(run(place, first >> crawl)) == paths(result)


@pytest.mark.parametrize("later", [False, True])
def test_a_failed_attempt_does_not_repeat_it(place: Place, later: bool) -> None:
    """Neither the next attempt nor the next run, as the first step of a run or as a later one."""
    pages = Pages(2)
    crawl = pages.crawl(retries=[3.0])
    pipeline = step(name="first")(lambda n: n) >> crawl if later else crawl
    for _ in range(2):
        result = run(place, pipeline, 1, clock=VirtualClock())
        assert isinstance(result.error, OSError)
        assert paths(result)[later:] == ["crawl>page-0", "crawl>page-1"]
    assert pages.fetched == [0, 1, 2, 2, 2, 2]
    pages.down = set()
    assert run(place, pipeline, 1).output == ROWS
    assert pages.fetched == [0, 1, 2, 2, 2, 2, 2, 3]


def test_each_nested_step_has_calls_of_its_own(place: Place) -> None:
    """Those of every item and iteration are kept by path; what failed in one of them repeats none."""
    calls: list[str] = []
    down = True

    @step
    async def crawl(n: int) -> int:
        def note() -> int:
            calls.append("".join(current_step().path))
            return n

        found = await once("page", note) + await once("other", note)
        if down and current_step().path[1] in ("[2]", "#2"):
            raise OSError("down")
        return found // 2 + 1

    many = Step.map_over("many", crawl, max_concurrency=1)
    loop = Step.loop_until("again", crawl, until=lambda n: n > 4)
    for pipeline, first, last in ((many, [1, 2, 3, 4], 4), (loop, 1, 4)):
        down = True
        name = pipeline.name
        parts = [f"[{i}]" for i in range(4)] if name == "many" else [f"#{i}" for i in range(1, 5)]
        runner: Callable[..., Flujo[Any, Any]] = functools.partial(Flujo[Any, Any], pipeline)
        assert runner(state_backend=place.open()).run(first, run_id=name).status == "failed"
        done = 3 if name == "many" else 2
        assert calls == [f"{name}{part}crawl>{call}" for part in parts[:done] for call in ("page", "other")]
        calls.clear()
        down = False
        result = runner(state_backend=place.open()).run(run_id=name)
        assert result.output == ([2, 3, 4, 5] if name == "many" else 5)
        assert calls == [f"{name}{part}crawl>{call}" for part in parts[done:last] for call in ("page", "other")]
        assert paths(result).count(f"{name}{parts[0]}.crawl>page") == 1
        calls.clear()


def test_results_keep_their_types(place: Place) -> None:
    """What comes back from an earlier attempt is equal and of the same type, and the step's to change."""
    seen: list[Any] = []

    @step(retries=[3.0, 3.0])
    async def work(_: int) -> int:
        found = await once("pair", lambda: (1, {"a": {2}}))
        seen.append(repr(found))
        found[1]["a"].add(99)
        if len(seen) < 3:
            raise OSError("down")
        return len(seen)

    assert run(place, work, 1, clock=VirtualClock()).output == 3
    assert seen == ["(1, {'a': {2}})"] * 3


def test_several_at_once_share_saves(place: Place) -> None:
    """Calls that come to their end together are saved together: fewer saves than calls, and none is lost."""
    pages = Pages()
    backend = place.open()
    saves: list[int] = []
    save = backend.save_state

    async def save_state(run_id: str, state: dict[str, Any]) -> None:
        saves.append(len(state["step_history"]))
        await asyncio.sleep(0)
        await save(run_id, state)

    backend.save_state = save_state  # type: ignore[method-assign]

    @step
    async def crawl(_: int) -> list[str]:
        found = await asyncio.gather(*(once(f"page-{n}", pages.fetch, n) for n in range(20)))
        return [row for rows in found for row in rows]

    result = Flujo(crawl, state_backend=backend).run(1, run_id="r")
    assert result.output == [f"row {n}" for n in range(20)]
    assert sorted(paths(result)[:-1]) == sorted(f"crawl>page-{n}" for n in range(20))
    assert len(saves) <= 4


# --- what can be called ---


class Caller:
    """Things to call."""

    async def bound(self, a: int, *, b: int) -> int:
        return a + b

    def plain(self, a: int, *, b: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return a + b

    async def __call__(self, a: int, *, b: int) -> int:
        return a + b


@pytest.mark.parametrize("kind", ["async", "plain", "partial", "async partial", "callable", "lambda"])
def test_what_can_be_called(kind: str) -> None:
    """An async function, or a plain one in a thread, in whatever guise, with arguments of either sort."""
    caller = Caller()
    calls: dict[str, Callable[[], Any]] = {
        "async": lambda: once("x", caller.bound, 1, b=2),
        "plain": lambda: once("x", caller.plain, 1, b=2),
        "partial": lambda: once("x", functools.partial(caller.plain, b=2), 1),
        "async partial": lambda: once("x", functools.partial(caller.bound, b=2), 1),
        "callable": lambda: once("x", caller, 1, b=2),
        "lambda": lambda: once("x", lambda: caller.bound(1, b=2)),
    }

    @step
    async def work(_: int) -> int:
        found: int = await calls[kind]()
        return found

    assert Flujo(work).run(1).output == 3


def test_the_call_is_a_step_of_its_own(place: Place) -> None:
    """`current_step()` in it has its path and a key of its own, the same in every attempt; then the step's is back."""
    seen: list[tuple[str, str]] = []
    fails = True

    def note() -> str:
        current = current_step()
        seen.append((current.name, current.idempotency_key))
        if fails:
            raise OSError("down")
        return current.idempotency_key

    @step(retries=[3.0])
    async def work(_: int) -> list[str]:
        seen.append((current_step().name, current_step().idempotency_key))
        keys = [await once("one", note), await once("two", note)]
        return [*keys, current_step().idempotency_key]

    assert run(place, work, 1, clock=VirtualClock()).status == "failed"
    fails = False
    keys = run(place, work).output
    assert [name for name, _ in seen] == ["work", "work>one"] * 3 + ["work>two"]
    assert len(set(keys)) == 3 and {key for _, key in seen} == set(keys)


def test_what_it_raises_is_not_saved(place: Place) -> None:
    """The step sees the error, may go on without, and makes the call again in its next attempt."""
    pages = Pages(1)

    @step(retries=[3.0])
    async def work(_: int) -> list[str]:
        await once("page-0", pages.fetch, 0)
        try:
            return await once("page-1", pages.fetch, 1)
        except OSError as error:
            pages.down = set()
            raise LookupError(str(error)) from error

    result = run(place, work, 1, clock=VirtualClock())
    assert result.output == ["row 1"]
    assert pages.fetched == [0, 1, 1]
    assert paths(result) == ["work>page-0", "work>page-1", "work"]


# --- what is refused ---


def test_outside_of_a_step() -> None:
    """There is nothing that it could be saved in."""
    with pytest.raises(ConfigurationError, match=r"once\('x'\) was called outside of a step"):
        asyncio.run(once("x", lambda: 1))


@pytest.mark.parametrize("at_once", [False, True])
def test_a_name_twice(at_once: bool) -> None:
    """Each call of an attempt has a name of its own, also where the first is still under way."""

    @step
    async def work(_: int) -> Any:
        if at_once:
            return await asyncio.gather(once("x", lambda: 1), once("x", lambda: 2))
        return [await once("x", lambda: 1), await once("x", lambda: 2)]

    error = error_of(work)
    assert isinstance(error, ConfigurationError)
    assert str(error).startswith("once('x') was called twice in step 'work'.")


@pytest.mark.parametrize("name", ["undo", "choice", "exit", "items", "join"])
def test_names_that_are_taken(name: str) -> None:
    """A call cannot have the name, and with it the key, of a record of flujo's own, such as the step's undo."""

    @step
    async def work(_: int) -> int:
        return await once(name, lambda: 1)

    error = error_of(work)
    assert isinstance(error, ConfigurationError) and f"once({name!r}) in step 'work'" in str(error)


@pytest.mark.parametrize("name", ["", "a.b", "a>b", 3])
def test_names_that_are_none(name: Any) -> None:
    """The rules are those of a step's name."""

    @step
    async def work(_: int) -> int:
        return await once(name, lambda: 1)

    assert isinstance(error_of(work), StepDefinitionError)


def test_a_call_within_a_call() -> None:
    """What is called is no step, and cannot do something `once` itself."""

    async def outer() -> int:
        return await once("inner", lambda: 1)

    @step
    async def work(_: int) -> int:
        return await once("outer", outer)

    assert isinstance(error_of(work), ConfigurationError)


def test_after_the_step_has_ended() -> None:
    """A task that a step left behind cannot save in its name."""
    left: list[asyncio.Task[Any]] = []

    async def main() -> None:
        go = asyncio.Event()

        async def late() -> Any:
            await go.wait()
            return await once("late", lambda: 1)

        @step
        async def work(_: int) -> int:
            left.append(asyncio.ensure_future(late()))
            return 1

        assert (await Flujo(work).run_async(1)).output == 1
        go.set()
        with pytest.raises(ConfigurationError, match="after it had come to its end"):
            await left[0]

    asyncio.run(main())


def test_in_another_event_loop() -> None:
    """A plain step has no loop of the run's, and making one does not help: two threads would save at once."""

    @step
    def work(_: int) -> int:
        return asyncio.run(once("x", lambda: 1))

    error = error_of(work)
    assert isinstance(error, ConfigurationError) and "another event loop" in str(error)


def test_a_result_that_cannot_be_saved(place: Place) -> None:
    """The step is told which call and where in its result; the others that end at the same time are saved."""
    pages = Pages()
    seen: list[BaseException] = []

    @step
    async def work(_: int) -> int:
        calls = (once("good", pages.fetch, 0), once("bad", lambda: {"handle": object()}), once("fine", pages.fetch, 1))
        found = await asyncio.gather(*calls, return_exceptions=True)
        seen.extend(each for each in found if isinstance(each, BaseException))
        return len(found)

    result = run(place, work, 1)
    assert result.output == 3
    assert [type(error) for error in seen] == [NotSerializableError]
    assert "output of work>bad.handle" in str(seen[0])
    assert sorted(paths(result)) == ["work", "work>fine", "work>good"]
