"""A store of 100,000 runs: every command but those that read all of it answers within a second of its own time."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.shop import Order, Shop, registry, ship
from flujo import Flujo, SQLiteBackend
from flujo.cli import main
from tests.cli.conftest import SHOP, Said
from tests.cli.many import fill
from tests.cli.test_everywhere import CALLS

pytestmark = pytest.mark.slow

RUNS = {"one": 58_995, "done": 1_000, "failed": 20_000, "asks": 10_000, "left": 10_000}
LONG = ("verify", "du", "gc", "backup")


async def leave(shop: Flujo[Any, Any]) -> None:
    """Begin a run, and leave it after its first step."""
    async for _ in shop.run_async(Order(id="x", items=[1]), run_id="left"):
        break


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        backend = SQLiteBackend(folder / "runs.db", durability="process")
        shop: Flujo[Any, Any] = Flujo(
            registry=registry, pipeline_name="orders", context_model=Shop, state_backend=backend
        )
        shop.run(Order(id="x", items=[1]), run_id="done")
        shop.run(Order(id="x", items=[20_000]), run_id="asks")
        Flujo(ship, context_model=Shop, state_backend=backend).run("small", run_id="one")
        asyncio.run(leave(shop))
        shop.run(Order(id="x", items=[]), run_id="failed")
        asyncio.run(backend.close())
    assert fill(folder / "runs.db", RUNS) == 100_000
    yield folder / "runs.db"
    shutil.rmtree(folder)


class Timed:
    """Calls the command and notes how much of this process's time it took, which no neighbour can lengthen."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self.seconds = capsys, 0.0

    def __call__(self, *args: str) -> Said:
        self._capsys.readouterr()
        start = time.process_time()
        code = main(list(args))
        self.seconds = time.process_time() - start
        return Said(code, *self._capsys.readouterr())


@pytest.fixture
def timed(store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Timed:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUJO_STATE_URI", f"sqlite:///{store}")
    monkeypatch.setenv("FLUJO_CODE", SHOP)
    return Timed(capsys)


# On which run, and what that comes to. What ends runs is tried on other ones than what looks at them.
ABOUT = {
    "resume": ("left-000001", 0), "answer": ("asks-000001", 0), "signal": ("asks-000002", 4),
    "pause": ("asks-000003", 0), "cancel": ("asks-000004", 0), "retry": ("failed-000001", 1),
    "fork": ("done-000002", 0), "edit": ("asks-000005", 0), "takeover": ("left-000002", 0), "run": ("left-000003", 0),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.torture if name == "verify" else ()) for name in CALLS]
)
def test_every_command(timed: Timed, name: str) -> None:
    """In a second, counted in the process's own time; those that read everything take as long as that takes."""
    run_id, code = ABOUT.get(name, ("done-000500", 0))
    args = [run_id if arg == "A1" else arg for arg in CALLS[name]]
    if name == "run":
        args = ["--run-id", run_id]
    said = timed(name, *args)
    assert said.code == code and "Traceback" not in said.err, said
    assert timed.seconds < 1 or name in LONG, timed.seconds
    if name in LONG:
        return
    said = timed(name, *args, "--json")
    assert json.loads(said.out) and timed.seconds < 1, timed.seconds


@pytest.mark.parametrize(
    "args",
    [
        ["list", "--status", "paused", "--limit", "1000"],
        ["list", "--pipeline", "orders", "--after", "done-000300"],
        ["list", "--status", "cancelled"],
        ["inbox", "--limit", "500"],
        ["inbox", "--all"],
        ["show", "nowhere"],
        ["fork", "done-000004", "--step", "nowhere"],
        ["failures", "--limit", "100"],
    ],
    ids=" ".join,
)
def test_more_of_it(timed: Timed, args: list[str]) -> None:
    """Long pages, filters, and mistakes for which something has to be suggested, are within a second too."""
    said = timed(*args)
    assert said.code in (0, 3) and "Traceback" not in said.err
    assert timed.seconds < 1, timed.seconds


def test_what_they_say_is_right(timed: Timed) -> None:
    """The figures are those of the store."""
    assert timed("stats", "--json").json["runs"] >= 100_000
    assert timed("du", "--json").json["runs"] >= 100_000
    found = timed("gc", "--days", "0", "--dry-run", "--status", "cancelled", "--json").json
    assert found["deleted"] == 0
    assert len(timed("inbox", "--limit", "500", "--json").json["waiting"]) == 500
    assert timed("check", "--json").json["ok"]
