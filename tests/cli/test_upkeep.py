"""Verifying, measuring, cleaning up, copying, comparing and drawing."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.shop import Order, Shop, registry
from flujo import FileBackend, Flujo
from flujo.cli.files import copied
from tests.cli.conftest import Cli

pytestmark = pytest.mark.slow


def test_du(shop: Cli) -> None:
    """What the files take, and the largest runs; of one run, what for."""
    shop.ok("run", "--run-id", "large", "--input", '{"id": "x", "items": [' + ", ".join(["1"] * 200) + "]}", "--quiet")
    found = shop.json("du", "--limit", "2")
    assert found["runs"] == 4 and found["bytes"] == sum(found["files"].values()) > 4000
    assert found["largest"][0]["run_id"] == "large" and len(found["largest"]) == 2
    one = shop.json("du", "large")
    assert one["bytes"] == sum(one["parts"].values()) > shop.json("du", "A1")["bytes"] * 4
    assert "largest runs" in shop.ok("du")


def test_gc(shop: Cli) -> None:
    """Only runs that have completed long enough ago are deleted, unless others are named; first it can be tried."""
    assert shop.json("gc")["found"] == 0
    found = shop.json("gc", "--days", "0", "--dry-run")
    assert (found["found"], found["deleted"], found["run_ids"]) == (1, 0, ["A1"])
    assert "A1" in shop.ok("gc", "--days", "0", "--dry-run") and shop("show", "A1").code == 0
    assert shop.json("gc", "--days", "0")["deleted"] == 1
    assert [run["run_id"] for run in shop.json("list")["runs"]] == ["A3", "A2"]
    found = shop.json("gc", "--days", "0", "--status", "failed", "--status", "cancelled")
    assert found["by_status"] == {"failed": 1, "cancelled": 0} and found["deleted"] == 1
    assert [run["run_id"] for run in shop.json("list")["runs"]] == ["A2"]


def test_backup(shop: Cli) -> None:
    """The copy is a store that verifies, and whose runs go on; a name that is taken is not overwritten."""
    found = shop.json("backup", "copy.db")
    assert found["bytes"] == (shop.folder / "copy.db").stat().st_size
    assert shop.json("verify", "--state", "copy.db") == {"ok": True, "runs": 3, "problems": []}
    assert shop.json("answer", "A2", '{"ok": true}', "--state", "copy.db")["status"] == "completed"
    assert shop.json("show", "A2")["status"] == "paused"
    assert "exists already" in shop("backup", "copy.db").err and shop("backup", "copy.db").code == 2
    assert shop("backup", "no/such/folder/copy.db").code == 5


def test_backup_of_a_folder(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FileBackend's folder is copied run by run."""
    monkeypatch.setenv("FLUJO_STATE_URI", "file://runs")
    cli.order("A1")
    cli.order("A2", '{"id": "x", "items": [20000]}')
    cli.ok("backup", "copy")
    assert cli.json("verify", "--state", "copy")["ok"] and cli.json("verify", "--state", "copy")["runs"] == 2
    assert cli.json("answer", "A2", '{"ok": true}', "--state", "copy")["status"] == "completed"
    assert cli("backup", "copy").code == 2
    runner = Flujo(registry=registry, pipeline_name="orders", context_model=Shop, state_backend=FileBackend("copy"))
    assert runner.run(run_id="A2").output == "approved, shipped"


def test_a_copied_folder_gives_no_owner_a_number_that_is_taken(tmp_path: Path, cli: Cli) -> None:
    """A run that was executed when it was copied is nobody's in the copy, also when a new owner has come there."""

    async def copy_while_it_runs() -> None:
        backend = FileBackend(tmp_path / "runs")
        shop = Flujo(registry=registry, pipeline_name="orders", context_model=Shop, state_backend=backend)
        async for _ in shop.run_async(Order(id="x", items=[1]), run_id="A1"):
            copied(tmp_path / "runs", tmp_path / "copy", lambda done, total: None)
            break
        await backend.close()

    asyncio.run(copy_while_it_runs())
    owner = _owner(tmp_path / "copy")
    assert owner > 0 and int((tmp_path / "copy" / ".flujo-locks").read_text()) >= owner
    assert cli.order("B1").code == 0
    assert cli.json("run", "--run-id", "A1", "--state", "copy")["status"] == "completed"


def _owner(folder: Path) -> int:
    [file] = folder.glob("*.json")
    found = json.loads(file.read_text())
    return int(found["owner"]["id"])


def test_backup_under_load(cli: Cli, child: Callable[..., subprocess.Popen[str]]) -> None:
    """A copy that is made while orders come in verifies, and every run in it goes on to its end."""
    writer = child("orders", str(cli.store))
    for number in range(3):
        cli.ok("backup", f"copy{number}.db")
        assert writer.poll() is None
    writer.kill()
    writer.wait()
    for number in range(3):
        store = ("--state", f"copy{number}.db")
        assert cli.json("verify", *store)["problems"] == []
        runs = cli.json("list", "--limit", "1000", *store)["runs"]
        assert len(runs) >= 4
        unfinished = [run["run_id"] for run in runs if run["status"] == "running"]
        waiting = [run["run_id"] for run in runs if run["status"] == "paused"]
        for run_id in unfinished:
            assert cli("run", "--run-id", run_id, "--quiet", *store, "--json").json["status"] in ("completed", "paused")
        for run_id in waiting[:5]:
            assert cli.json("answer", run_id, '{"ok": true}', *store)["status"] == "completed"
        assert cli.json("verify", *store)["ok"]


def test_diff(shop: Cli) -> None:
    """Where two runs first differ, in what, and what stands there; 0 where nowhere."""
    said = shop("diff", "A1", "A2", "--json")
    assert said.code == 1 and (said.json["at"], said.json["what"]) == (None, "input")
    assert shop.json("diff", "A1", "A1") == {"same": True, "at": None}
    shop.bank(up=False)
    shop.order("B1")
    shop.bank(up=True)
    said = shop("diff", "A1", "B1", "--json")
    assert said.code == 1 and (said.json["at"], said.json["what"]) == ("charge", "success")
    assert said.json["values"] == {"A1": True, "B1": False}
    assert "They first differ at charge, in success:" in shop("diff", "A1", "B1").out
    shop.order("A1-again")
    said = shop("diff", "A1", "A1-again", "--json")
    assert said.code == 1 and said.json["what"] == "output" and said.json["at"] == "charge"  # which order was paid
    shop.ok("fork", "A1", "--step", "ship", "--new-run-id", "F")
    said = shop("diff", "A1", "F", "--json")
    assert (said.json["at"], said.json["what"]) == ("ship", "whether it was done")
    assert said.json["values"] == {"A1": True, "F": False}


def test_diff_of_long_runs(cli: Cli) -> None:
    """What differs after many hundreds of steps is found, too."""
    given = '{"id": "x", "items": [' + ", ".join(["1"] * 600) + "]}"
    for run_id in ("L1", "L2"):
        assert cli.order(run_id, given).code == 0
    assert len(cli.json("show", "L1", "--limit", "5000")["steps"]) > 600
    said = cli("diff", "L1", "L2", "--json")
    assert said.code == 1 and (said.json["at"], said.json["what"]) == ("charge", "output")


def test_graph(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline as Mermaid text, coloured by a run on request."""
    text = shop.ok("graph")
    assert text.startswith("flowchart TD\n") and "class " not in text.replace("classDef", "")
    coloured = shop.ok("graph", "--run", "A2")
    assert "    class n5,n6 waiting" in coloured
    assert shop.json("graph", "--run", "A2") == {
        "pipeline_name": "orders", "pipeline_version": "1.0.0", "mermaid": coloured
    }  # fmt: skip
    assert shop.ok("graph", "--code", "examples.shop:registry") == text
    assert "n1" in shop.ok("graph", "--code", "examples.shop:validate")
    monkeypatch.delenv("FLUJO_STATE_URI")  # a pipeline alone needs no store
    assert shop.ok("graph") == text
    assert shop("graph", "--pipeline-version", "7").code == 4


def test_doctor(shop: Cli, child: Callable[..., subprocess.Popen[str]]) -> None:
    """It names versions, the file system and who uses the store, and says why SQLite's bug does no harm."""
    child("plain", str(shop.store), "H1")
    found = shop.json("doctor")
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] and checks["sqlite"]["value"] == sqlite3.sqlite_version
    if sqlite3.sqlite_version_info <= (3, 51, 2):
        assert "WAL-reset bug" in checks["sqlite"]["note"] and "flujo is safe from it" in checks["sqlite"]["note"]
    assert checks["schema"]["value"].startswith("version ") and checks["journal"]["value"] == "wal"
    assert checks["live owners"]["value"].startswith("1 process") and "process " in checks["live owners"]["note"]
    assert {"python", "flujo", "file system", "permissions of store", "room on the disk", "runs"} <= checks.keys()
    assert "live owners" in shop.ok("doctor")


def test_doctor_finds_what_is_wrong(shop: Cli) -> None:
    """A store that is damaged, or of a newer flujo, is said to be so, with 1."""
    shop.ok("backup", "newer.db")
    with sqlite3.connect("newer.db") as connection:
        connection.execute("UPDATE flujo_meta SET value = '99' WHERE name = 'schema_version'")
    connection.close()
    said = shop("doctor", "--state", "newer.db")
    assert said.code == 1 and "Upgrade flujo" in said.out and "BAD" in said.out
    content = bytearray(shop.store.read_bytes())
    content[100:5000] = os.urandom(4900)
    shop.store.write_bytes(content)
    said = shop("doctor")
    assert said.code == 1 and "Restore it from a backup" in said.out and "Traceback" not in said.out


def test_progress_is_shown_on_a_terminal_only(shop: Cli) -> None:
    """Piped, these commands say nothing on stderr."""
    for args in (["verify"], ["du"], ["gc", "--days", "9"], ["backup", "c.db"]):
        assert shop(*args).err == ""
    assert Path("c.db").exists()
