"""A process is killed inside of a step, or around it, under each `on_crash`: a real SIGKILL, and other processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.answered_doubt import MAX_CRASHES, Doubt
from tests.support.crash_forks import Forks

pytestmark = pytest.mark.slow

HAPPENED, NOT = {"happened": True, "output": 77}, {"happened": False}
# The commits of the first are made on the loop's thread, those of the second on the store's.
WAYS = {"sqlite": ("sqlite", "inline", "top"), "map": ("sqlite", "async", "map"), "file": ("file", "async", "map")}


@pytest.fixture(params=WAYS)
def doubt(request: pytest.FixtureRequest, forks: Forks, tmp_path: Path) -> Iterator[Doubt]:
    """A run whose step may be in doubt: at the top of the pipeline, or in the second item of a map."""
    found = Doubt(forks, tmp_path, *WAYS[request.param])
    yield found
    found.close()


def asks(doubt: Doubt) -> dict[str, Any]:
    """Return a result that waits for a verdict on the step, and nothing else."""
    found = doubt.run(find="unknown")
    assert (found["status"], found["waiting"]) == ("paused", [["crash", doubt.path]])
    return found


def entry(found: dict[str, Any], path: str) -> list[Any]:
    """Return the step's only record."""
    (record,) = [record for record in found["history"] if record[0] == path]
    return list(record[1:])


def test_retry(doubt: Doubt) -> None:
    """It runs again, at once and without a question, as another attempt under the same key, however often it dies."""
    doubt.on_crash = "retry"
    doubt.kill("inside {}")
    doubt.kill("inside {}")
    found = doubt.run()
    assert (found["status"], found["output"]) == ("completed", doubt.right(doubt.charged))
    assert doubt.attempts() == [1, 2, 3]
    assert entry(found, doubt.path) == [True, 3, None]
    doubt.check()


@pytest.mark.parametrize("on_crash", ["retry", "ask", "find"])
def test_killed_after_its_save(doubt: Doubt, on_crash: str) -> None:
    """What is saved is in no doubt: the run goes on behind it, and nobody is asked."""
    doubt.on_crash = on_crash
    doubt.kill("saved {}")
    found = doubt.run()
    assert (found["status"], found["output"]) == ("completed", doubt.right(doubt.charged))
    assert (doubt.attempts(), doubt.asked()) == ([1], 0)
    assert entry(found, doubt.path) == [True, 1, None]
    doubt.check()


@pytest.mark.parametrize("point", ["begun {}", "inside {}"])
def test_ask_and_it_happened(doubt: Doubt, point: str) -> None:
    """Killed in it, or before it when it was saved that it begins, a person is asked, and it does not run before that;
    where it happened it never does, its output is what the person says, and who that was is on record."""
    doubt.kill(point)
    asks(doubt)
    asks(doubt)
    found = doubt.verdict(HAPPENED)
    assert (found["status"], found["output"]) == ("completed", doubt.right(77))
    assert doubt.attempts() == ([1] if "inside" in point else [])
    assert entry(found, doubt.path) == [True, 1, "ann"]
    assert doubt.verdict(HAPPENED)["status"] == "AlreadyAnsweredError"
    doubt.check()


@pytest.mark.parametrize("point", ["begun {}", "inside {}"])
def test_ask_and_it_did_not_happen(doubt: Doubt, point: str) -> None:
    """Then it runs, under the same key; killed in it again, it is in doubt again, and the first verdict says nothing
    about that."""
    doubt.kill(point)
    asks(doubt)
    doubt.kill("inside {}", verdict=NOT)
    asks(doubt)
    found = doubt.verdict(NOT)
    assert (found["status"], found["output"]) == ("completed", doubt.right(doubt.charged))
    assert len(doubt.attempts()) == (3 if "inside" in point else 2)
    assert (entry(found, doubt.path)[0], entry(found, doubt.path)[2]) == (True, None)
    doubt.check()


@pytest.mark.parametrize("verdict", [HAPPENED, NOT], ids=["happened", "not"])
def test_killed_between_the_verdict_and_its_use(doubt: Doubt, verdict: dict[str, Any]) -> None:
    """Killed when the verdict is stored, when the run is claimed, and before the save that would use it: the verdict
    stands, another one is refused, and the next run uses it, once."""
    doubt.kill("inside {}")
    asks(doubt)
    doubt.kill("posted", verdict=verdict)
    assert doubt.verdict({"happened": True, "output": 5})["status"] == "AlreadyAnsweredError"
    doubt.kill("claimed")
    found = doubt.run()
    happened = verdict["happened"]
    assert (found["status"], found["output"]) == ("completed", doubt.right(77 if happened else doubt.charged))
    assert len(doubt.attempts()) == (1 if happened else 2)
    assert entry(found, doubt.path)[2] == ("ann" if happened else None)
    doubt.check()


@pytest.mark.parametrize("verdict", [HAPPENED, NOT], ids=["happened", "not"])
def test_killed_before_the_save_that_uses_the_verdict(doubt: Doubt, verdict: dict[str, Any]) -> None:
    """Nothing of it has come about: the next run does what the verdict says, as if for the first time."""
    doubt.kill("inside {}")
    asks(doubt)
    doubt.kill("use", verdict=verdict)
    found = doubt.run()
    happened = verdict["happened"]
    assert (found["status"], found["output"]) == ("completed", doubt.right(77 if happened else doubt.charged))
    assert len(doubt.attempts()) == (1 if happened else 2)
    doubt.check()


def test_killed_between_the_verdict_and_the_step(doubt: Doubt) -> None:
    """Where the verdict was that it did not happen, and is used, and the process dies before the step begins, the step
    is in doubt again: flujo cannot know."""
    doubt.kill("inside {}")
    asks(doubt)
    doubt.kill("begun {}", verdict=NOT)
    asks(doubt)
    assert doubt.attempts() == [1]
    assert doubt.verdict(HAPPENED)["output"] == doubt.right(77)
    assert doubt.attempts() == [1]
    doubt.check()


@pytest.mark.parametrize("find", ["happened", "not"])
def test_find_out(doubt: Doubt, find: str) -> None:
    """The step's function is asked, with the step's key; also again where its process is killed while it finds out.
    What it says is done: the step's output is what it found, or the step runs again."""
    doubt.on_crash = "find"
    doubt.kill("inside {}")
    doubt.kill("find", find=find)
    doubt.kill("find", find=find)
    assert len(doubt.attempts()) == 1
    found = doubt.run(find=find)
    happened = find == "happened"
    assert (found["status"], found["output"]) == ("completed", doubt.right(77 if happened else doubt.charged))
    assert doubt.asked() == 3
    assert len(doubt.attempts()) == (1 if happened else 2)
    assert doubt.attempts() in ([1], [1, 4])  # the three deaths since it was begun count
    doubt.check()


def test_find_out_before_it_ran(doubt: Doubt) -> None:
    """Killed after it was saved that it begins, it is in doubt, and its function is asked under the key that the step
    then runs with; killed in that again, the function is asked again."""
    doubt.on_crash = "find"
    doubt.kill("begun {}")
    doubt.kill("inside {}", find="not")
    found = doubt.run(find="not")
    assert (found["output"], doubt.asked()) == (doubt.right(doubt.charged), 2)
    assert len(doubt.attempts()) == 2 and min(doubt.attempts()) == 2
    doubt.check()


@pytest.mark.parametrize("on_crash", ["ask", "find"])
def test_attempts_are_counted(doubt: Doubt, on_crash: str) -> None:
    """`attempt` is counted over crashes: each time that the step is begun anew it is one more than before."""
    doubt.on_crash = on_crash
    doubt.kill("inside {}", find="not")
    for _ in range(2):
        if on_crash == "ask":
            asks(doubt)
        doubt.kill("inside {}", find="not", verdict=NOT if on_crash == "ask" else None)
    assert doubt.attempts() == [1, 2, 3]


def test_a_step_that_always_dies_is_given_up(doubt: Doubt) -> None:
    """One that kills its process each time, and of which its function finds each time that it did not happen."""
    doubt.on_crash = "find"
    for _ in range(MAX_CRASHES):
        doubt.kill("inside {}", find="not")
    found = doubt.run(find="not")
    assert found["status"] == "failed" and "CrashLoopError" in found["error"]


@pytest.mark.parametrize("verdict", [HAPPENED, NOT], ids=["happened", "not"])
def test_find_out_nothing(doubt: Doubt, verdict: dict[str, Any]) -> None:
    """Where the function does not know, a person is asked, and the function is not asked again meanwhile."""
    doubt.on_crash = "find"
    doubt.kill("inside {}")
    asks(doubt)
    asks(doubt)
    assert doubt.asked() == 1
    doubt.kill("posted", verdict=verdict)
    found = doubt.run(find="raises")  # it is not asked
    happened = verdict["happened"]
    assert (found["status"], found["output"]) == ("completed", doubt.right(77 if happened else doubt.charged))
    assert (doubt.asked(), len(doubt.attempts())) == (1, 1 if happened else 2)
    doubt.check()


@pytest.mark.parametrize("then", ["happened", "not"])
def test_find_out_fails(doubt: Doubt, then: str) -> None:
    """A function that raises fails the run, and the step does not run; the next run asks the function again."""
    doubt.on_crash = "find"
    doubt.kill("inside {}")
    for times in (1, 2):
        found = doubt.run(find="raises")
        assert found["status"] == "failed" and "the bank does not answer" in found["error"]
        assert (doubt.asked(), doubt.attempts()) == (times, [1])
    doubt.kill("find")
    found = doubt.run(find=then)
    happened = then == "happened"
    assert (found["status"], found["output"]) == ("completed", doubt.right(77 if happened else doubt.charged))
    assert (doubt.asked(), len(doubt.attempts())) == (4, 1 if happened else 2)


@pytest.mark.parametrize("on_crash", ["ask", "find"])
@pytest.mark.parametrize("store", [("sqlite", "async"), ("file", "inline")], ids=["sqlite", "file"])
def test_several_items_in_flight(forks: Forks, tmp_path: Path, store: tuple[str, str], on_crash: str) -> None:
    """Each item of a map that was in flight is in doubt by itself: each has its own verdict, in any order, also when
    processes die between them."""
    doubt = Doubt(forks, tmp_path, *store, "all")
    doubt.on_crash = on_crash
    paths = [f"items[{n}].charge" for n in range(3)]
    doubt.kill("inside items[2].charge", held=True)
    assert doubt.calls() == dict.fromkeys(paths, 1)
    found = doubt.run(find="unknown")
    assert sorted(found["waiting"]) == [["crash", path] for path in paths]
    assert doubt.verdict(HAPPENED)["status"] == "RunNotWaitingError"  # which one is meant?
    doubt.kill("posted", verdict=HAPPENED, at=paths[1])
    found = doubt.verdict(NOT, at=paths[2])
    assert (found["status"], found["waiting"]) == ("paused", [["crash", paths[0]]])
    doubt.kill("use", verdict=HAPPENED | {"output": 5}, at=paths[0])
    found = doubt.run()
    assert (found["status"], found["output"]) == ("completed", 5 + 77 + 30)
    assert doubt.calls() == {paths[0]: 1, paths[1]: 1, paths[2]: 2}
    assert [entry(found, path)[2] for path in paths] == ["ann", "ann", None]
    doubt.close()


def test_a_function_that_always_dies_is_given_up(doubt: Doubt) -> None:
    """A reconcile function that kills its process each time is asked as often as a step may die, and no more."""
    doubt.on_crash = "find"
    doubt.kill("inside {}")
    for _ in range(MAX_CRASHES - 1):
        doubt.kill("find")
    found = doubt.run()
    assert found["status"] == "failed" and "CrashLoopError" in found["error"]
    assert (doubt.asked(), doubt.attempts()) == (MAX_CRASHES - 1, [1])
