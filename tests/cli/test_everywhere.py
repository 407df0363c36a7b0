"""Every command on every kind of store: none, an empty one, one that another process writes, and what is no store."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable

import pytest

from flujo.cli.app import command_names
from tests.cli.conftest import Cli

pytestmark = pytest.mark.slow

# How each command is called in these tests, on run A1 where it is about a run.
CALLS: dict[str, list[str]] = {
    "list": [], "show": ["A1"], "inbox": [], "messages": ["A1"], "stats": [], "failures": [],
    "watch": ["A1", "--once"],
    "run": ["--run-id", "A1", "--input", '{"id": "A1", "items": [1]}', "--quiet"],
    "resume": ["A1"], "answer": ["A1", '{"ok": true}'],
    "signal": ["A1", "go"], "pause": ["A1"], "cancel": ["A1"],
    "retry": ["A1"], "fork": ["A1", "--step", "charge"], "edit": ["A1", "--context", '{"notes": []}'],
    "takeover": ["A1", "--force"],
    "plan": ["A1"], "why": ["A1"], "check": [],
    "diff": ["A1", "A1"], "graph": ["--run", "A1"],
    "verify": [], "du": [], "gc": ["--days", "1"], "backup": ["copy.db"],
    "doctor": [],
}  # fmt: skip
ABOUT_A_RUN = {name for name, args in CALLS.items() if "A1" in args and name != "run"}


def test_every_command_is_tried_here() -> None:
    """A new command has to have a line in CALLS."""
    assert set(CALLS) == set(command_names())


@pytest.fixture
def at(cli: Cli) -> Callable[..., None]:
    """Check that a command ends with that status, and says that in one sentence and one JSON document."""

    def check(name: str, code: int, message: str) -> None:
        said = cli(name, *CALLS[name])
        assert (said.code, said.out) == (code, ""), said
        assert message in said.err and said.err.count("\n") == 1 and "Traceback" not in said.err
        said = cli(name, *CALLS[name], "--json")
        assert said.code == code and message in said.json["error"]["message"]

    return check


@pytest.mark.parametrize("name", [name for name in CALLS if name != "run"])
def test_a_store_that_is_not_there(cli: Cli, at: Callable[..., None], name: str) -> None:
    """It is said, with what could have been meant, and no file is made. (`run` makes a store.)"""
    at(name, 5, "There is no store at runs.db.")
    assert list(cli.folder.iterdir()) == []
    shutil.copy(__file__, cli.folder / "run.db")
    assert "Did you mean run.db?" in cli(name, *CALLS[name]).err


@pytest.mark.parametrize("name", list(CALLS))
def test_an_empty_store(cli: Cli, at: Callable[..., None], name: str) -> None:
    """What is asked of runs has no runs in it; a run that is asked for is not there."""
    cli.order("A1")
    cli.ok("gc", "--days", "0")
    assert cli.json("list")["runs"] == []
    if name in ABOUT_A_RUN:
        at(name, 3, "There is no run 'A1'")
        return
    said = cli(name, *CALLS[name])
    assert (said.code, said.err) == (0, ""), said
    if name in ("run", "backup"):  # the second time there is something
        shutil.rmtree(cli.folder / "copy.db", ignore_errors=True)
        (cli.folder / "copy.db").unlink(missing_ok=True)
    assert isinstance(cli.json(name, *CALLS[name]), dict)


@pytest.mark.parametrize("name", list(CALLS))
def test_a_file_that_is_no_store(cli: Cli, name: str) -> None:
    """Somebody else's database is not touched, nor any other file or folder."""
    with sqlite3.connect(cli.store) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    before = cli.store.read_bytes()
    if name != "run":  # which may use a database beside other tables
        assert cli(name, *CALLS[name]).code == 5
        assert cli.store.read_bytes() == before
    cli.store.write_text("Dear diary")
    said = cli(name, *CALLS[name])
    assert said.code == 5 if name != "doctor" else said.code == 1
    assert cli.store.read_text() == "Dear diary"
    (cli.folder / "folder").mkdir()
    assert cli(name, *CALLS[name], "--state", "folder").code == 5 if name != "run" else True
    assert list((cli.folder / "folder").iterdir()) == [] if name != "run" else True


def test_a_store_that_another_process_writes(cli: Cli, child: Callable[..., subprocess.Popen[str]]) -> None:
    """Every command answers while orders come in, and none of them disturbs the process that takes them."""
    writer = child("orders", str(cli.store))
    cli.order("A1")
    for name, args in CALLS.items():
        said = cli(name, *args, "--json")
        assert isinstance(json.loads(said.out), dict), said
        expected = {
            "resume": 4,
            "answer": 4,
            "signal": 4,
            "pause": 4,
            "cancel": 4,
            "retry": 4,
            "edit": 4,
            "takeover": 4,
        }
        assert said.code == expected.get(name, 0), (name, said)
    before = cli.json("stats")["runs"]
    assert writer.poll() is None
    while cli.json("stats")["runs"] == before:  # it goes on
        assert writer.poll() is None
    assert cli.json("verify")["ok"] and cli.json("verify", "--state", "copy.db")["ok"]


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("signal",)])
def test_a_store_that_is_a_folder(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A FileBackend has the same commands."""
    monkeypatch.setenv("FLUJO_STATE_URI", "file://runs")
    cli.order("A1")
    args = [arg.replace("copy.db", "copy") for arg in CALLS[name]]
    said = cli(name, *args)
    ended = ("resume", "answer", "pause", "cancel", "retry", "edit", "takeover")
    assert said.code == (4 if name in ended else 0), said
    assert "Traceback" not in said.err


def test_no_store_was_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --state, FLUJO_STATE_URI and a store of the code's own it is said how to name one."""
    monkeypatch.delenv("FLUJO_STATE_URI")
    for name, args in CALLS.items():
        said = cli(name, *args)
        if name == "doctor":
            assert said.code == 0 and "none was named" in said.out
        else:
            assert said.code == 2 and "Give --state runs.db" in said.err, (name, said)
