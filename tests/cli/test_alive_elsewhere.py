"""A run is answered, retried, paused and forked from the command line while its runner is alive in another process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.cli.conftest import Cli, Outside

pytestmark = pytest.mark.slow

HELD = ("--code", "tests.cli.children:held", "--pipeline", "held")
PLAIN = ("--code", "tests.cli.children:plain", "--pipeline", "plain")
Start = Callable[..., "subprocess.Popen[str]"]


def finish(holder: subprocess.Popen[str]) -> str:
    """Let the runner's step end; return how its run came out."""
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    out = holder.communicate(timeout=60)[0].strip()
    assert holder.returncode == 0
    return out


def test_answered_while_it_runs(cli: Cli, child: Start) -> None:
    """The answer is stored and the runner uses it; a second one is refused; nothing is lost, and nothing done twice."""
    holder = child("held", str(cli.store), "H1")
    said = cli("answer", "H1", "true", "--by", "ada", *HELD)
    assert said.code == 0 and "It is stored, and whoever executes run 'H1' goes on with it." in said.out
    second = cli("answer", "H1", "false", "--by", "bob", *HELD)
    assert second.code == 4
    assert finish(holder) == "completed"
    found = cli.json("show", "H1")
    assert found["output"] == {"held": 3, "asked": True}
    assert [sent["by"] for sent in cli.json("messages", "H1")["messages"]] == ["ada"]


def test_two_who_answer_at_once(outside: Outside, cli: Cli, child: Start) -> None:
    """Of answers from several processes at the same moment one counts, and only one is told so."""
    holder = child("held", str(cli.store), "H1")
    say = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    answers = [outside.start("answer", "H1", "true", "--by", name, "--json", *HELD, **say) for name in ("ada", "bob")]
    outs = [process.communicate(timeout=60) for process in answers]
    assert sorted(process.returncode for process in answers) == [0, 4], outs
    assert [json.loads(out).keys() >= {"error"} for out, _ in outs].count(True) == 1
    assert finish(holder) == "completed"
    assert len(cli.json("messages", "H1")["messages"]) == 1


def test_forked_while_it_runs(cli: Cli, child: Start) -> None:
    """The fork is a run of its own, and the one that is executed is not disturbed."""
    holder = child("plain", str(cli.store), "H1")
    assert cli.json("fork", "H1", "--step", "hold", "--new-run-id", "F1", *PLAIN)["run_id"] == "F1"
    assert cli("fork", "H1", "--step", "hold", "--new-run-id", "F1", *PLAIN).code == 4
    assert cli.json("show", "F1")["steps_done"] == 1 and cli.json("why", "H1", *PLAIN)["code"] == "owned"
    assert finish(holder) == "completed"
    assert cli.json("show", "H1")["output"] == 3
    assert {run["run_id"]: run["status"] for run in cli.json("list")["runs"]} == {"F1": "running", "H1": "completed"}


def test_what_is_refused_while_it_runs(cli: Cli, child: Start) -> None:
    """Running, editing and retrying it elsewhere is refused, with who has it; the runner notices nothing."""
    holder = child("plain", str(cli.store), "H1")
    for args in (["run", "--run-id", "H1"], ["edit", "H1", "--output", "7"], ["retry", "H1"], ["resume", "H1"]):
        said = cli(*args, *PLAIN)
        assert said.code == 4 and said.err.count("\n") == 1, said
    assert f"process {holder.pid}" in cli("run", "--run-id", "H1", *PLAIN).err
    assert finish(holder) == "completed"
    assert cli.json("show", "H1")["steps_done"] == 2


def test_cancelled_while_it_runs(cli: Cli, child: Start) -> None:
    """The runner ends it, and the command waits for that."""
    holder = child("plain", str(cli.store), "H1")
    assert cli.json("cancel", "H1", "--by", "ada", *PLAIN)["status"] == "cancelled"
    assert holder.communicate(timeout=60)[0] == "cancelled\n"


def test_paused_while_it_runs(cli: Cli, child: Start) -> None:
    """It stands still when the step that is under way has ended."""
    holder = child("held", str(cli.store), "H1")
    assert cli.json("pause", "H1", "--by", "ada", *HELD)["paused"] is False
    assert finish(holder) == "paused"
    assert cli.json("inbox", "--all")["waiting"][0]["kind"] == "pause"


def test_retried_by_several_at_once(outside: Outside, shop: Cli) -> None:
    """Of several processes that retry a failed run one executes it; the others are refused, or find it done."""
    retries = [
        outside.start("retry", "A3", "--by", name, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in ("ada", "bob", "cid")
    ]
    outs = [process.communicate(timeout=60) for process in retries]
    assert {process.returncode for process in retries} <= {0, 4}, outs
    assert 0 in {process.returncode for process in retries}
    found = shop.json("show", "A3")
    assert found["status"] == "completed" and found["context"]["notes"] == ["charged 420", "shipped"]
    assert [step["path"] for step in found["steps"]].count("ship") == 1
    assert [step["success"] for step in found["steps"] if step["path"] == "charge"] == [False, True]
