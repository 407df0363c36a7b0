"""Step records: what several in one save, sub-steps and changes of a context come back as, from every store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flujo import FileBackend, InMemoryBackend, SQLiteBackend, StateBackend, StepResult, register_type
from flujo.errors import InvalidStateError, NotSerializableError, StateCorruptedError, UnknownTypeError
from flujo.runner.saving import Keeper
from flujo.state import Codec
from flujo.state.backends._records import NOTHING, pack_records, unpack_records
from flujo.testing.suite.expect import difference
from tests.support.backends import KINDS, OURS, ByReference, Place, query
from tests.support.pipelines import T0, by_hand, new_run
from tests.support.saves import counting, saved, sub_step, take, wait

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=OURS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    found = Place(request.param, tmp_path)
    yield found
    found.close()


@pytest.fixture
def backend(place: Place) -> Any:
    return place.open()


def expect_records(backend: Any, expected: list[StepResult]) -> None:
    """Fail unless the run has these records, whichever way they are read."""
    assert difference(expected, wait(backend.load_state("r"))["step_history"]) is None
    assert difference(expected, wait(backend.history("r", strict=True))) is None
    for after in range(len(expected) + 2):
        assert difference(expected[after:], wait(backend.history("r", after=after))) is None


@pytest.mark.parametrize("output", [None, True, 7, "", (), ["the input, passed through"]], ids=repr)
def test_a_sub_step_whose_output_is_the_runs_last_output(backend: StateBackend, place: Place, output: Any) -> None:
    """The very object that the run's last output is: the save does not hold that again, but the record has its own."""
    claim = take(backend)
    first = saved(claim, 1, last_step_output=output, step_history=[StepResult(path=("a",), output=output)])
    records = [StepResult(path=("m", f"[{n}]", "f"), output=output) for n in range(2)]
    wait(backend.save_state("r", first))
    wait(backend.save_state("r", sub_step(claim, 2, records, first)))
    for looked in (backend, place.open()):
        expect_records(looked, [StepResult(path=("a",), output=output), *records])
        state = wait(looked.load_state("r"))
        assert state is not None and difference(output, state["last_step_output"]) is None


# Reading from the middle on.


def filled(backend: Any, before: int, after: int) -> None:
    """Save a run whose first step has `before` sub-steps, a few a save, and whose second has `after` so far."""
    claim = take(backend)
    state = saved(claim, 1, current_step_index=0, last_step_output=None, step_history=[], history_offset=0)
    wait(backend.save_state("r", state))
    rev = 1
    for count in (before, after):
        done = 0
        while done < count:
            rev, number = rev + 1, min(count - done, 1 + rev % 3)
            records = [StepResult(path=("m", f"[{done + n}]", "f"), output=done + n) for n in range(number)]
            state = sub_step(claim, rev, records, state)
            wait(backend.save_state("r", state))
            done += number


@pytest.mark.slow
def test_reading_on_costs_what_comes_after(tmp_path: Path) -> None:
    """The last 100 records cost SQLite the same with 10,000 records before them as with 10; so does asking for none."""
    cost: dict[tuple[int, int], int] = {}
    for before in (10, 10_000):
        spent = [0]
        backend = counting(tmp_path / f"{before}.db", spent)
        filled(backend, before, 100)
        for after in (before, before + 50, before + 100):
            spent[0] = 0
            found = wait(backend.history("r", after=after))
            cost[before, after - before] = spent[0]
            assert [record.output for record in found] == list(range(after - before, 100))
        wait(backend.close())
    for left in (0, 50, 100):
        assert cost[10_000, left] <= 1.2 * cost[10, left], cost
    assert cost[10, 100] < 0.25 * cost[10, 0], cost


@pytest.mark.slow
def test_reading_on_in_a_damaged_log(tmp_path: Path) -> None:
    """With any save gone, or its count of records altered, what is read on is what was written, or is refused."""
    file = tmp_path / "runs.db"
    backend: Any = SQLiteBackend(file, durability="process")
    filled(backend, 20, 20)
    truth = wait(backend.history("r"))
    wait(backend.close())
    whole = file.read_bytes()
    rows = query(file, "SELECT seq, ended FROM flujo_log ORDER BY seq")
    deeds = ["DELETE FROM flujo_log"]
    for change in ("ended = ended + 1", "ended = ended - 1", "ended = 0", "ended = 1000", "records = NULL"):
        deeds.append(f"UPDATE flujo_log SET {change}")
    deeds.append("UPDATE flujo_log SET records = x'5b5d'")
    refused = 0
    for place, (seq, _) in enumerate(rows[1:], start=1):
        for deed in deeds:
            if place == len(rows) - 1 and "DELETE" in deed:
                continue  # nothing but the newest save itself says that it is there
            file.write_bytes(whole)
            query(file, f"{deed} WHERE seq = {seq}")
            backend = SQLiteBackend(file, durability="process")
            for after in (0, 5, 19, 20, 21, 33, 39, 40):
                try:
                    assert wait(backend.history("r", after=after)) == truth[after:], (deed, seq, after)
                    begins = rows[place - 1][1]
                    assert after >= begins, (deed, seq, after)  # else the damage lies in what was asked for
                except StateCorruptedError:
                    refused += 1
            wait(backend.close())
    assert refused > 100


class Looked(list[Any]):
    """A list that counts which of its entries are looked at."""

    looks = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self.looks += len(found) if isinstance(place, slice) else 1
        return found

    def __iter__(self) -> Iterator[Any]:
        for found in super().__iter__():
            self.looks += 1
            yield found


@pytest.mark.parametrize(("after", "limit", "most"), [(990, None, 60), (1000, None, 40), (10, 5, 60)])
def test_reading_on_in_memory(after: int, limit: int | None, most: int) -> None:
    """Of hundreds of saves it looks at those that are wanted, and at a few to find them."""
    backend = InMemoryBackend()
    filled(backend, 900, 100)
    tx = backend._memory._tx
    ((key, log),) = tx._logs.items()
    looked = tx._logs[key] = Looked(log)
    found = wait(backend.history("r", after=after, limit=limit))
    assert len(found) == min(1000 - after, 1000 if limit is None else limit)
    assert looked.looks <= most


# What a step changed in a context of its own.


@dataclass(frozen=True)
class Note:
    """Something of the user's."""

    text: str
    marks: tuple[int, ...] = ()


CHANGES: dict[str, list[Any]] = {
    "notes": [[Note("a", (1, 2)), {3}, "ä"]],
    "gone": [],
    "none": [None],
    "": [()],
    "$type": ["tuple"],
    'with " and \n': [{1: b"\0", "$type": 2}],
    "number": [float("nan")],
}


def kept_by(keeper: Keeper, claim: Any, records: list[StepResult]) -> list[StepResult]:
    """Save the records through a runner's keeper, and return what another one gives."""
    wait(keeper.save(saved(claim, 1, step_history=records, input=None, phase=None)))
    other = Keeper(keeper.backend)
    wait(keeper.backend.release("r", claim.fence))
    state = wait(other.claim("r", new_run(), now=T0)).state
    assert state is not None and state["history_offset"] == len(records)
    return other.reader("r", len(records))()


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_a_context_come_back(kind: str, tmp_path: Path) -> None:
    """Every type and value exactly, names that need care too, and what is gone as gone; None stays None."""
    place = Place(kind, tmp_path)
    register_type(Note)
    records = [
        StepResult(path=("p", "left", "f"), output=Note("x"), context_changes=CHANGES),
        StepResult(path=("p", "right", "f"), output=1, context_changes={}),
        StepResult(path=("p", "right", "g"), success=False, feedback="E: x", context_changes={"n": [(1,)]}),
        StepResult(path=("p", "right", "h"), output=None),
    ]
    keeper = Keeper(place.open())
    found = kept_by(keeper, wait(keeper.claim("r", new_run(), now=T0)), records)
    assert difference(records, found) is None
    if kind in OURS:
        expect_records(place.open(), records)
    place.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_cannot_be_kept(kind: str, tmp_path: Path) -> None:
    """It is refused with the path to the value and to the step; nothing is saved, and the save can be mended."""
    place = Place(kind, tmp_path)
    keeper = Keeper(place.open())
    claim = wait(keeper.claim("r", new_run(), now=T0))
    good = StepResult(path=("p", "[0]", "f"), output=1, context_changes={"notes": [[0, 1, 2, 3]]})
    for changes, output, where in (
        ({"notes": [[0, 1, 2, object()]]}, 1, "context.notes[3]"),
        ({"notes": [object()]}, 1, "context.notes"),
        ({"\ud800": [1]}, 1, "context"),
        ({3: [1]}, 1, "context"),
        (None, {"a": [object()]}, "output of p[1].f.a[0]"),
    ):
        bad: Any = StepResult(path=("p", "[1]", "f"), output=output, context_changes=changes)  # type: ignore[arg-type]
        with pytest.raises(NotSerializableError) as caught:
            wait(keeper.save(saved(claim, 1, step_history=[good, bad], input=None, phase=None)))
        assert (caught.value.path, caught.value.step_path) == (where, bad.path)
        assert wait(place.open().load_state("r")) is None
    assert difference([good], kept_by(keeper, claim, [good])) is None
    place.close()


def test_a_record_without_changes_is_as_it_was_before_there_were_any() -> None:
    """Not a byte more, in a log and for a backend of three methods; and a row of that time is read."""
    codec, record = Codec(), StepResult(path=("a", "[1]"), output=5, latency_s=0.5)
    text = pack_records([record], NOTHING, codec)
    assert text == b'[{"path":["a","[1]"],"latency_s":0.500000,"output":5}]'
    assert unpack_records(text, None, codec, strict=True) == [record]
    data: dict[str, Any] = {}
    keeper = Keeper(ByReference(data))
    claim = wait(keeper.claim("r", new_run(), now=T0))
    assert kept_by(keeper, claim, [record]) == [record]
    (handed,) = data["r"]["step_history"]
    assert "context_changes" not in handed


@pytest.mark.parametrize("depth", [128, 196, 200])
@pytest.mark.parametrize("kind", OURS)
def test_values_of_records_may_be_as_deep_as_others(kind: str, depth: int, tmp_path: Path) -> None:
    """A record lies within other JSON, which is no reason to refuse what it holds, or to be unable to read it."""
    codec = Codec(max_depth=200)
    value: Any = 7
    for _ in range(depth):
        value = [value]
    options: dict[str, Any] = {} if kind == "memory" else {"durability": "process"}
    made: dict[str, Any] = {
        "memory": InMemoryBackend,
        "sqlite": partial(SQLiteBackend, tmp_path / "runs.db"),
        "file": partial(FileBackend, tmp_path / "runs"),
    }
    backend = made[kind](codec=codec, **options)
    records = [StepResult(path=("a", "f"), output=value, context_changes={"n": [value]}), StepResult(path=("a",))]
    wait(backend.save_state("r", saved(take(backend), 1, step_history=records, last_step_output=None)))
    expect_records(backend, records)
    wait(backend.close())


FAR = """
import asyncio
from dataclasses import dataclass
from pathlib import Path
from flujo import StepResult
from tests.support.backends import Place
from tests.support.saves import saved, take, wait

@dataclass
class Far:
    n: int

backend = Place({kind!r}, Path({folder!r})).open()
records = [StepResult(path=("m", "[0]"), output=Far(1), context_changes={{"c": [Far(2)]}}), StepResult(path=("a",))]
wait(backend.save_state("r", saved(take(backend), 1, step_history=records, last_step_output=None, status="failed")))
wait(backend.close())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_records_of_types_that_are_unknown_here(kind: str, tmp_path: Path) -> None:
    """They are plain data to look at, an error to whoever would go on with them, and no other store gets them so."""
    code = FAR.format(kind=kind, folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    place = Place(kind, tmp_path)
    backend: Any = place.open()
    state = wait(backend.load_state("r"))
    assert [(r.output, r.context_changes) for r in state["step_history"]] == [
        ({"n": 1}, {"c": [{"n": 2}]}),
        (None, None),
    ]
    assert state["unresolved_records"] == ["__main__:Far"] and "unresolved" not in state
    assert wait(backend.load_at("r", head=False))["unresolved_records"] == ["__main__:Far"]
    assert "unresolved_records" not in wait(backend.load_at("r"))
    with pytest.raises(UnknownTypeError, match="Far"):
        wait(backend.history("r", strict=True))
    wait(backend.save_state("r", state | {"status": "running"}))  # the records lie there already
    rows = place.contents()
    other = InMemoryBackend()
    for store, changes in ((other, {}), (backend, {"pipeline_version": "2"})):
        with pytest.raises(UnknownTypeError, match="Far"):
            wait(store.save_state("r", state | changes))
    assert place.contents() == rows and wait(other.load_state("r")) is None
    del state["unresolved_records"]
    wait(other.save_state("r", state))
    place.close()


def test_what_is_no_record_of_a_step(backend: StateBackend) -> None:
    """A save by hand with something else in its history is refused."""
    no_records: list[Any] = [
        {}, {"path": []}, {"path": "a"}, {"path": [1]}, {"path": [""]}, {"path": [["a"]]}, 7, None,
        {"path": ["a"], "context_changes": [1]}, {"path": ["a"], "context_changes": {"a": 1}},
    ]  # fmt: skip
    for wrong in no_records:
        with pytest.raises(InvalidStateError):
            wait(backend.save_state("r", by_hand(step_history=[wrong])))
    assert wait(backend.load_state("r")) is None
