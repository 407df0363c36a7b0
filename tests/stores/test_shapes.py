"""What a store says of many runs at once: the code that they need, what they failed of, and who has one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, SQLiteBackend, StateBackend, step
from flujo.errors import ConfigurationError
from flujo.pipeline import fingerprint
from flujo.state.backends.base import Failure, Owner, Reading, Shape
from flujo.state.backends.overview import alike
from tests.support.backends import OURS, Place, query
from tests.support.pipelines import T0, by_hand
from tests.support.reference_backends import Readable, Text
from tests.support.saves import take, wait


@pytest.fixture(params=(*OURS, "readable"))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A store of each kind that has listings; the last has nothing but the defaults."""
    if request.param == "readable":
        yield Readable()
        return
    place = Place(request.param, tmp_path)
    yield place.open()
    place.close()


def put(backend: Any, run_id: str, status: str = "failed", minutes: int = 0, **facts: Any) -> None:
    """Save a run by hand."""
    facts = {"run_id": run_id, "status": status, "updated_at": T0 + timedelta(minutes=minutes), **facts}
    wait(backend.save_state(run_id, by_hand(**facts)))


def failure(text: str, kind: str = "OSError") -> dict[str, Any]:
    return {"type": kind, "text": text, "notes": [], "causes": [], "traceback": ""}


def test_shapes_of_unfinished_runs(backend: Any) -> None:
    """Runs are counted by the code that they need, the most first; those that have ended need none."""
    assert wait(backend.shapes()) == []
    for number, status in enumerate(["running", "paused", "failed", "completed", "cancelled"] * 2):
        put(backend, f"a{number}", status, fingerprint='["step:a"]', total_steps=1, input=None)
    put(backend, "b", fingerprint='["step:b"]', total_steps=1, input=None)
    put(backend, "v", "paused", fingerprint='["step:a"]', total_steps=1, input=None, pipeline_version="2.0.0")
    put(backend, "hand", "running")
    first, *others = wait(backend.shapes())
    names = ("abc", "abc", "1.0.0")
    assert (first.runs, first.fingerprint) == (6, '["step:a"]') and first.example in {
        f"a{n}" for n in (0, 1, 2, 5, 6, 7)
    }
    assert sorted(others, key=lambda shape: shape.example) == [
        Shape(*names, '["step:b"]', 1, "b"),
        Shape(*names, None, 1, "hand"),
        Shape("abc", "abc", "2.0.0", '["step:a"]', 1, "v"),
    ]


def test_a_run_that_has_saved_nothing_has_no_shape(backend: Any) -> None:
    """It is nowhere."""
    claim = take(backend)
    assert wait(backend.shapes()) == []
    wait(backend.release("r", claim.fence))


def test_the_shape_of_a_run_is_its_pipelines_and_so_is_a_forks(tmp_path: Path) -> None:
    """The fingerprint is the one that the run was begun with, also of a fork whose parent is gone."""

    @step
    async def a(number: int) -> int:
        if number < 0:
            raise OSError("down")
        return number

    backend = SQLiteBackend(tmp_path / "runs.db", durability="process")
    flujo: Flujo[Any, Any] = Flujo(a, state_backend=backend)
    flujo.run(-1, run_id="r")
    flujo.fork("r", 0, new_run_id="f")
    code = fingerprint(a >> a.named("b"))
    assert wait(backend.shapes()) == [Shape("a", "a", "1.0.0", '["step:a"]', 2, "r")] and code != '["step:a"]'
    wait(backend.delete_state("r"))
    assert wait(backend.shapes()) == [Shape("a", "a", "1.0.0", '["step:a"]', 1, "f")]
    wait(backend.close())


def test_failures_that_are_alike_are_one(backend: Any) -> None:
    """What differs in numbers, ids and paths is alike; the newest come first, with an example of each."""
    assert wait(backend.failures()) == []
    for number in range(4):
        put(backend, f"h{number}", minutes=number, error=failure(f"host 10.0.0.{number} is down (order A-{number}7)"))
    put(backend, "t", minutes=9, error=failure("host 10.0.0.1 is down (order A-17)", "TimeoutError"))
    put(backend, "m", minutes=5, error=failure("no such customer"))
    put(backend, "none", minutes=4)
    put(backend, "ok", "completed", minutes=50)
    found = wait(backend.failures())
    facts = [(group.error, group.runs, group.example, group.newest - T0) for group in found]
    assert facts == [
        ("TimeoutError", 1, "t", timedelta(minutes=9)),
        ("OSError", 1, "m", timedelta(minutes=5)),
        ("", 1, "none", timedelta(minutes=4)),
        ("OSError", 4, "h3", timedelta(minutes=3)),
    ]
    assert found[3].message == "OSError: host 10.0.0.3 is down (order A-37)"
    assert wait(backend.failures(limit=1)) == found[:1] and isinstance(found[0], Failure)
    with pytest.raises(ConfigurationError):
        wait(backend.failures(limit=-1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("OSError: no file /tmp/a/b.txt", "OSError: no file /var/run-7/x"),
        ("E: id 3f2504e0-4f89-11d3-9a0c-0305e82c3301 gone", "E: id 00000000-0000-0000-0000-000000000000 gone"),
        ("E: took 1.5 s", "E: took 300 s"),
        ("E: at 0xdeadbeef01", "E: at 0x1"),
        ("E: http://host/a/1?x=2", "E: http://host/b?x=3"),
        ("E: x = (1, 2)", "E: x = (3, 44)"),
    ],
)
def test_messages_that_are_alike(one: str, other: str) -> None:
    """Only the words count."""
    assert alike(one) == alike(other) != alike("E: something else")


@pytest.mark.parametrize(
    ("one", "other"), [("OSError: down", "KeyError: down"), ("E: no a", "E: no b"), ("E: x", "x"), ("E: ", "E")]
)
def test_messages_that_are_not_alike(one: str, other: str) -> None:
    """Another type, or another word."""
    assert alike(one) != alike(other)


@pytest.mark.parametrize("text", ["a" * 100_000, "/" * 100_000, "1." * 50_000, "E: " + "a/" * 50_000, "-" * 100_000])
def test_a_long_message_is_grouped_quickly(text: str) -> None:
    """Its beginning counts."""
    assert len(alike(text)) <= 2010


def test_runs_are_listed_by_pipeline_and_by_error(backend: Any) -> None:
    """By the pipeline's name, and by the whole of what a run has failed of; what is executed again has not failed."""
    put(backend, "x", minutes=1, error=failure("down"))
    put(backend, "y", minutes=2, error=failure("up"))
    put(backend, "z", minutes=3, error=failure("down"), pipeline_name="other")

    def names(**where: str) -> list[str]:
        return [run.run_id for run in wait(backend.list_runs(where))]

    assert names(error="OSError: down") == ["z", "x"] and names(error="OSError") == []
    assert names(error="OSError: down", pipeline_name="abc") == ["x"]
    assert names(pipeline_name="abc", status="failed") == ["y", "x"]
    assert wait(backend.count_runs(by="pipeline_name")) == {"abc": 2, "other": 1}
    with pytest.raises(ConfigurationError, match="pipeline_version"):
        wait(backend.list_runs({"pipeline_version": "1.0.0"}))
    claim = take(backend, "x")
    if type(backend).claim is not StateBackend.claim:
        assert names(error="OSError: down") == ["z"]
    wait(backend.release("x", claim.fence))


def test_who_has_a_run(tmp_path: Path) -> None:
    """The process that executes it, since when; nobody has one that was given back, or is not there."""
    for kind in (*OURS, "text"):
        place = Place(kind, tmp_path / kind) if kind != "text" else None
        (tmp_path / kind).mkdir()
        backend: StateBackend = place.open() if place else Text()

        async def main(backend: StateBackend = backend) -> None:
            assert await backend.owner("r") is None
            claim = await _claimed(backend)
            owner = await backend.owner("r")
            assert isinstance(owner, Owner) and owner.alive and "process" in owner.who
            assert (owner.since is None) == (not isinstance(backend, Reading))
            await backend.release("r", claim)
            assert await backend.owner("r") is None

        asyncio.run(main())
        if place:
            place.close()


async def _claimed(backend: StateBackend) -> int:
    put_in = by_hand(run_id="r", status="running")
    await backend.save_state("r", put_in)
    claim = await backend.claim("r", None, now=T0)  # type: ignore[arg-type]  # there is a run
    assert claim.fence is not None
    return claim.fence


@pytest.mark.slow
def test_a_hundred_thousand_runs_of_one_shape(tmp_path: Path) -> None:
    """They are surveyed within a second of the process's time."""
    file = tmp_path / "runs.db"
    wait(_made(file))
    text = str(["step:one"] * 50)
    numbers = "WITH RECURSIVE n (k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < 100000) "
    query(
        file,
        numbers + "INSERT INTO flujo_run SELECT k, 'run' || k, 'p', 'p', '1.0.0', 5, k, 'failed', 1, k,"
        " 'OSError: order ' || k || ' is lost', NULL, NULL, NULL, NULL, 0, 0, 0 FROM n",
    )
    query(file, numbers + "INSERT INTO flujo_start SELECT k, ?, CAST('1' AS BLOB) FROM n", text)
    query(
        file,
        numbers + "INSERT INTO flujo_log SELECT k << 24 | 1, 1, 'failed', k, 1, 1, 1, 0, NULL, NULL, NULL, x'', NULL,"
        " x'00' FROM n",
    )
    backend = SQLiteBackend(file, durability="process")
    for ask in (backend.shapes, backend.failures):
        (group,) = _timed(ask)
        assert group.runs in (100_000, 10_000)
    wait(backend.close())


def _timed(ask: Any) -> list[Any]:
    start = time.process_time()
    found: list[Any] = wait(ask())
    assert time.process_time() - start < 2.0  # 0.3 s on a machine that has nothing else to do
    return found


async def _made(file: Path) -> None:
    backend = SQLiteBackend(file, durability="process")
    await backend.list_runs()
    await backend.close()
