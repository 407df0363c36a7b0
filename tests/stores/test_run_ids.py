"""A run_id is refused by name, or its run is stored: in the store's own place, and apart from all others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, InMemoryBackend, step
from flujo.errors import InvalidRunIdError
from flujo.state.backends.file.format import file_name
from tests.support.disks import KINDS, Disk, as_one, explains
from tests.support.pipelines import by_hand, new_run

REFUSED = {
    "empty": "",
    "long": "x" * 300,
    "just too long": "x" * 201,
    "NUL": "a\0b",
    "line feed": "a\nb",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "delete": "a\x7fb",
    "C1 control": "a\x9bb",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "lone surrogate": "a\ud800b",
    "space before": " a",
    "space after": "a ",
    "only space": " ",
    "no-break space after": "a\xa0",
    "bytes": b"a",
    "number": 7,
}
STORED = [
    "../../etc/passwd", "..", ".", "../r", "/etc/passwd", "//", "a/b", "a\\b", "a/../b", "./a", "~", "~root", "-rf",
    "a", "A", "aa", "aA", "Aa", "AA", "ORDER-1", "order-1", "a.json", "a.json.json", ".a", "a.", "a..", ".flujo-locks",
    "\u00e9", "e\u0301", "E\u0301", "\u212b", "\u00c5", "A\u030a", "\ufb01", "fi", "\u00df", "ss", "SS", "\u0130", "i",
    "\u212a", "k", "K", "\u202ea", "a b", "a  b", "日本語", "😀", "%2e%2e%2f", "%00", "*", "?", "[a]", "{}", "$HOME",
    "';DROP TABLE flujo_run;--", '"', "con", "nul.txt", "a:b", "r.1.part", ".r.json.1.part", "runs.db", "x" * 99,
    "x" * 100, "x" * 101, "x" * 200, "X" * 200, "y" * 199 + "1", "y" * 199 + "2", "\u00fc" * 200, "😀" * 200, "." * 200,
    "/" * 200, file_name("A").removesuffix(".json"), file_name("A"), file_name("..").removesuffix(".json"),
]  # fmt: skip


@step
async def same(text: str) -> str:
    return text


@pytest.fixture(params=[*KINDS, "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Disk | None]]:
    if request.param == "memory":
        yield InMemoryBackend(), None
        return
    disk = Disk(request.param, tmp_path)
    yield disk.open(), disk
    disk.close()


@pytest.mark.parametrize("run_id", REFUSED.values(), ids=REFUSED.keys())
def test_a_run_id_that_cannot_be_kept_apart_is_refused_by_name(opened: tuple[Any, Disk | None], run_id: Any) -> None:
    """Wherever it is given: to the runner, and to each method of a backend. Nothing is written for it."""
    backend, disk = opened
    now = datetime(2026, 1, 1, tzinfo=UTC)
    asyncio.run(backend.load_state("there is a store now"))
    before = disk.tree() if disk else set()
    asks = [
        lambda: backend.save_state(run_id, by_hand(run_id=run_id)),
        lambda: backend.load_state(run_id),
        lambda: backend.delete_state(run_id),
        lambda: backend.claim(run_id, new_run(), now=now),
        lambda: backend.history(run_id),
        lambda: backend.load_at(run_id),
    ]
    for ask in asks:
        with pytest.raises(InvalidRunIdError) as caught:
            asyncio.run(ask())
        assert explains(caught.value)
    with pytest.raises(InvalidRunIdError) as caught:
        Flujo(same, state_backend=backend).run("x", run_id=run_id)
    text = str(caught.value)
    assert explains(caught.value) and (ascii(run_id)[:80] in text if isinstance(run_id, str) else "is a str" in text)
    assert (disk.tree() if disk else set()) == before


@pytest.mark.slow
def test_every_other_run_id_has_a_run_of_its_own(disk: Disk) -> None:
    """All of them in one store, read by another backend: never mixed up, deleted one by one, nothing lies outside."""
    runner = Flujo(same, state_backend=disk.open())
    for run_id in STORED:
        assert runner.run(f"output of {run_id}", run_id=run_id).status == "completed"
    disk.close()
    backend = disk.open()
    listed = asyncio.run(backend.list_runs(limit=1000))
    assert sorted(run.run_id for run in listed) == sorted(STORED)
    left = set(STORED)
    for number, run_id in enumerate(STORED):
        state = asyncio.run(backend.load_state(run_id))
        assert (state["run_id"], state["last_step_output"]) == (run_id, f"output of {run_id}")
        if number % 3 == 0:
            asyncio.run(backend.delete_state(run_id))
            left.discard(run_id)
    for run_id in STORED:
        assert (asyncio.run(backend.load_state(run_id)) is not None) == (run_id in left), run_id
    names = disk.tree() - {"disk", "disk/runs"}
    if disk.kind == "sqlite":
        assert {"disk/runs.db"} <= names <= {f"disk/runs.db{end}" for end in ("", "-flujo", "-wal", "-shm")}
    else:
        assert names == {f"disk/runs/{file_name(run_id)}" for run_id in left} | {"disk/runs/.flujo-locks"}


def test_file_names_differ_on_every_file_system() -> None:
    """Also on one that folds case or normalises; short, plain, hidden from nobody; readable where the run_id is."""
    names = [file_name(run_id) for run_id in STORED]
    assert len({as_one(name) for name in names}) == len(STORED)
    for name in names:
        assert name.isascii() and len(name) <= 120 and "/" not in name and not name.startswith((".", "-"))
    assert file_name("order-17.retry_2") == "order-17.retry_2.json"
    assert file_name("daily/2026-01-31").startswith("daily_2026-01-31~")
