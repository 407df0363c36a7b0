"""What is too deep, too big or too odd is refused with the path to it, or equal when read, alike in every store."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, InMemoryBackend, step
from flujo.errors import NotSerializableError
from flujo.state.codec import Codec
from flujo.testing.suite.expect import difference
from tests.support.disks import KINDS, Disk, explains

MB = 1_000_000


class Bag(BaseModel):
    """A context with one field for anything."""

    thing: Any = None


class Stores:
    """Opens a store of one kind, and opens it anew as another process would (memory: the same)."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._disk = Disk(kind, folder) if kind != "memory" else None
        self._memory: dict[int, InMemoryBackend] = {}
        self.runs = 0

    def open(self, codec: Codec | None = None) -> Any:
        if self._disk is None:
            return self._memory.setdefault(id(codec), InMemoryBackend(codec=codec))
        self._disk.close()
        return self._disk.open(codec=codec)

    def close(self) -> None:
        if self._disk is not None:
            self._disk.close()


@pytest.fixture(params=["memory", *KINDS])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    found = Stores(request.param, tmp_path)
    yield found
    found.close()


def keep(stores: Stores, value: Any, codec: Codec | None = None) -> None:
    """Put the value through the store as an output, in the context, and as the input."""
    for place in ("output", "context", "input"):
        stores.runs += 1
        run_id = f"{stores.runs} in {place}"
        done = run(stores, place, value, run_id, codec)
        found = asyncio.run(stores.open(codec).load_state(run_id))
        kept = {"output": "last_step_output", "input": "input", "context": "pipeline_context"}[place]
        there = found[kept]["thing"] if place == "context" else found[kept]
        assert done.status == "completed", done.error
        assert difference(value, there) is None, place


def refused(stores: Stores, value: Any, path: str = "", match: str = "", codec: Codec | None = None) -> None:
    """See it refused at the save in each place, by the path to it; what was saved before is kept."""
    for place in ("output", "context"):
        stores.runs += 1
        run_id = f"{stores.runs} in {place}"
        done = run(stores, place, value, run_id, codec)
        error = done.error
        assert done.status == "failed" and isinstance(error, NotSerializableError) and explains(error)
        where = ("output" if place == "output" else "context.thing") + path
        assert error.path == where, (error.path, where)
        assert where in str(error) and match in str(error)
        found = asyncio.run(stores.open(codec).load_state(run_id))
        assert (found["status"], found["current_step_index"], found["last_step_output"]) == ("failed", 1, "before")
        assert [record.name for record in found["step_history"]] == ["first", "second"]
        assert found["error"]["type"].endswith("NotSerializableError") and where in found["error"]["text"]
        again = run(stores, place, "something else", run_id, codec)
        assert again.status == "completed"
    with pytest.raises(NotSerializableError) as caught:
        run(stores, "input", value, "in input", codec)
    assert explains(caught.value) and caught.value.path == f"input{path}"
    assert asyncio.run(stores.open(codec).load_state("in input")) is None


def run(stores: Stores, place: str, value: Any, run_id: str, codec: Codec | None = None) -> Any:
    """Run two steps, of which the second puts the value into its place."""

    @step
    async def first(given: Any) -> str:
        return "before"

    @step
    async def second(given: Any, *, context: Bag) -> Any:
        if place == "context":
            context.thing = value
        return value if place == "output" else None

    runner = Flujo(first >> second, context_model=Bag, state_backend=stores.open(codec))
    return runner.run(value if place == "input" else None, run_id=run_id)


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda value: [value],
    "dict": lambda value: {"k": value},
    "tuple": lambda value: (value,),
    "set": lambda value: frozenset([value]),
    "int key": lambda value: {1: value},
}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("depth", [129, 10_000])
def test_too_deep(stores: Stores, wrap: str, depth: int) -> None:
    """Beyond the limit of 128 levels it is refused, whatever the levels are made of, and nothing overflows."""
    codec = Codec()
    value = nested(depth, WRAPS[wrap])
    for place in ("output", "context"):
        done = run(stores, place, value, f"in {place}", codec)
        assert done.status == "failed" and isinstance(done.error, NotSerializableError)
        assert explains(done.error, "output" if place == "output" else "context.thing")
        assert "nested more than 128 levels deep" in str(done.error) and len(str(done.error)) < 5_000
        found = asyncio.run(stores.open(codec).load_state(f"in {place}"))
        assert found["last_step_output"] == "before"
    while isinstance(value, (list, tuple, dict, frozenset)):  # so that it is not freed from the top: that overflows
        (value,) = value.values() if isinstance(value, dict) else value


@pytest.mark.slow
@pytest.mark.parametrize("limit", [128, 200])
def test_just_deep_enough(stores: Stores, limit: int) -> None:
    """What is within the limit is equal when read, also at the highest limit that there is."""
    codec = Codec(max_depth=limit)
    keep(stores, nested(limit, WRAPS["list"]), codec)
    keep(stores, nested(limit, WRAPS["dict"]), codec)
    done = run(stores, "output", nested(limit + 1, WRAPS["list"]), "deeper", codec)
    assert done.status == "failed" and f"nested more than {limit} levels deep" in str(done.error)


@pytest.mark.slow
def test_a_hundred_megabytes(stores: Stores) -> None:
    """Refused at the default limit of 64 MiB, with the size; with a higher one, equal when read."""
    text = "x" * (100 * MB)
    done = run(stores, "output", text, "refused")
    assert done.status == "failed" and isinstance(done.error, NotSerializableError)
    assert explains(done.error, "output", "100,000,002 bytes", "67,108,864") and done.error.path == "output"
    codec = Codec(max_bytes=150 * MB)
    done = run(stores, "output", text, "big", codec)
    assert done.status == "completed", done.error
    found = asyncio.run(stores.open(codec).load_state("big"))
    assert found["last_step_output"] == text and type(found["last_step_output"]) is str


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("\ud800", ""),
        (["ok", "a\udfffb"], "[1]"),
        ({"a": {"b": "\ud83d"}}, ".a.b"),
        ([("x", {"\ud800"})], None),
    ],
    ids=ascii,
)
def test_lone_surrogates(stores: Stores, value: Any, path: str | None) -> None:
    """No store can keep them as text, so they are refused where they are."""
    if path is not None:
        refused(stores, value, path)
    else:
        done = run(stores, "output", value, "r")
        assert isinstance(done.error, NotSerializableError) and done.error.path.startswith("output[0][1]")


KEPT: list[Any] = [
    {1: "a", 2: "b"}, {1: "int", "1": "str"}, {True: "bool", 2: "int"}, {None: 0}, {1.5: 0, -0.0: 1}, {(1, "a"): [1]},
    {"": 0}, {"$type": "tuple", "value": []}, {"$type": 1}, {"a\0b": "\0"}, {"\u2028": 1}, {"é": 1, "e\u0301": 2},
    "\U0001f600" * 3, [1, 1.0, True], "\x7f\x80\x9f", math.nan, [math.inf, -math.inf, -0.0, 5e-324, 1.7e308],
    10**4000, -(10**5000), 2**63, 2**64, [], {}, (), [()], {"a": ()}, b"", bytes(range(256)), bytearray(b"a"),
    complex(math.nan, -0.0), [None, [None]], {1: {2: {3: (4, {5})}}}, {frozenset([1]): 1}, 1e16,
]  # fmt: skip


@pytest.mark.parametrize("value", KEPT, ids=map(str, range(len(KEPT))))
def test_odd_values(stores: Stores, value: Any) -> None:
    """Keys that are no strings, keys that look like tags, numbers that JSON has not: equal when read, in type too."""
    keep(stores, value)


NOT_KEPT: dict[str, tuple[Any, str | None]] = {
    "object": (object(), ""),
    "function": (lambda: 1, ""),
    "deep within": ({"a": [1, object()]}, ".a[1]"),
    "iterator": (iter([]), ""),
    "built-in": (open, ""),
    "under an int key": ([{1: print}], None),
    "exception": (Exception("x"), ""),
    "class": (type, ""),
    "module": ({"conn": asyncio}, ".conn"),
}


@pytest.mark.parametrize("name", NOT_KEPT)
def test_what_cannot_be_kept(stores: Stores, name: str) -> None:
    """Refused with the path to the part that cannot be restored."""
    value, path = NOT_KEPT[name]
    if path is None:
        done = run(stores, "output", value, "r")
        assert isinstance(done.error, NotSerializableError) and done.error.path.startswith("output[0]")
    else:
        refused(stores, value, path)
