"""Retrying, forking, editing and taking over from the command line, and looking ahead before that."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Outside

pytestmark = pytest.mark.slow


def test_retry(shop: Cli) -> None:
    """The failed step is tried again; by whom and why is on record; what has not failed is refused."""
    out = shop.ok("retry", "A3", "--by", "ada", "--reason", "the bank is back")
    assert out.splitlines()[0] == "run A3 of orders 1.0.0 goes on after step 2"
    assert out.splitlines()[-1] == 'run A3 completed: "small, shipped"'
    [sent] = shop.json("messages", "A3")["messages"]
    assert (sent["kind"], sent["by"], sent["reason"]) == ("retry", "ada", "the bank is back")
    assert shop("retry", "A3").code == 4 and shop("retry", "A2").code == 4 and shop("retry", "A9").code == 3


def test_retry_that_fails_again(shop: Cli) -> None:
    """It is 1, and the run has failed as before."""
    shop.bank(up=False)
    said = shop("retry", "A3", "--json")
    assert said.code == 1 and said.json["status"] == "failed"


def test_retry_of_all_that_failed_alike(shop: Cli) -> None:
    """All that failed as this one did are tried; those that failed otherwise are not."""
    shop.bank(up=False)
    for number in range(4, 7):
        shop.order(f"A{number}")
    shop("run", "--run-id", "B1", "--input", '{"id": "x", "items": []}', "--quiet")
    shop.bank(up=True)
    found = shop.json("retry", "A4", "--alike", "--by", "ada")
    assert [run["run_id"] for run in found["runs"]] == ["A3", "A4", "A5", "A6"] and found["went_well"] == 4
    assert [group["runs"] for group in shop.json("failures")["failures"]] == [1]
    said = shop("retry", "B1", "--alike")
    assert said.code == 1 and "1 run tried again: 0 went well." in said.out and "an order has items" in said.out


def test_fork(shop: Cli) -> None:
    """A new run from a step of an old one; the old one stays as it is."""
    before = shop.json("show", "A1")
    found = shop.json("fork", "A1", "--step", "charge", "--new-run-id", "F1", "--by", "ada")
    assert found == {"run_id": "F1", "forked_from": "A1", "step": "charge"}
    forked = shop.json("show", "F1")
    assert forked["steps_done"] == 2 and forked["context"] == {"notes": []} and forked["output"] == [120, 300]
    assert shop.json("run", "--run-id", "F1")["output"] == "small, shipped"
    assert shop.json("show", "A1") == before
    assert shop("diff", "A1", "F1", "--json").json["same"] is False


def test_fork_with_other_values(shop: Cli) -> None:
    """With another output, another context, and run at once."""
    found = shop.json(
        "fork", "A1", "--step", "charge", "--output", "prices=[20000]", "--context", '{"notes": ["again"]}', "--run"
    )
    assert found["status"] == "paused" and found["waiting"][0]["step"] == "size.big.approve"
    assert shop.json("show", found["run_id"])["context"]["notes"] == ["again", "charged 20000"]


def test_a_fork_that_cannot_be(shop: Cli) -> None:
    """An unknown step is suggested another, one that was not reached is said to be so; a name that is taken as well."""
    said = shop("fork", "A1", "--step", "chrage")
    assert said.code == 3 and "charge" in said.err
    assert shop("fork", "A3", "--step", "ship").code == 4
    assert shop("fork", "A1", "--step", "charge", "--new-run-id", "A2").code == 4
    assert shop("fork", "A1", "--step", "charge", "--output", "prices").code == 2
    said = shop("fork", "A1", "--step", "charge", "--output", 'prices=["x"]')
    assert said.code == 4 and said.err.count("\n") == 1


def test_edit(shop: Cli) -> None:
    """The context, or the last output, of a run that nobody executes, validated."""
    out = shop.ok("edit", "A3", "--context", '{"notes": ["by hand"]}', "--by", "ada", "--reason", "a note was lost")
    assert out == "Run 'A3' is changed.\n"
    assert shop.json("show", "A3")["context"] == {"notes": ["by hand"]}
    assert shop("edit", "A3", "--context", '{"noets": []}').code == 4
    assert shop("edit", "A3", "--output", '"x"').code == 4
    shop.ok("edit", "A3", "--output", "[7]")
    shop.ok("retry", "A3", "--quiet")
    assert shop.json("show", "A3")["context"]["notes"] == ["by hand", "charged 7", "shipped"]
    assert [sent["kind"] for sent in shop.json("messages", "A3")["messages"]] == ["edit", "edit", "retry"]
    assert shop("edit", "A1", "--context", '{"notes": []}').code == 4


def test_plan(shop: Cli) -> None:
    """What would be done is what then is done."""
    found = shop.json("plan", "A3")
    assert found["resumable"] and [step["path"] for step in found["steps"] if not step["executes"]][:3] == [
        "validate", "prices", "prices.price"
    ]  # fmt: skip
    assert "charge" in [step["path"] for step in found["steps"] if step["executes"]]
    assert "skipped validate" in shop.ok("plan", "A3")


def test_why(shop: Cli) -> None:
    """The one reason, and what to do."""
    assert shop.json("why", "A2")["code"] == "waits-for-person"
    assert shop.json("why", "A1")["code"] == "completed"
    assert "A big order: ship it?" in shop.ok("why", "A2")


CHANGED = """
from pydantic import BaseModel
from flujo import Flujo, PipelineRegistry, step
from examples.shop import orders
newer = PipelineRegistry()
newer.register(orders, "orders", "2.0.0")

class Ledger(BaseModel):
    entries: list[str] = []

@step
def one(value: int, *, context: Ledger) -> int:
    return value

@step
def two(value: int, *, context: Ledger) -> int:
    raise ValueError("never")

class Other(BaseModel):
    lines: list[str]

before = Flujo((one >> two).named("ledger"), context_model=Ledger)

def like(annotation):
    def two(value: int, *, context: annotation) -> int:
        raise ValueError("never")
    two.__annotations__["context"] = annotation
    return step(two)

after = Flujo((like(Other).named("one") >> like(Other)).named("ledger"), context_model=Other)
"""


def test_check(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 0 where every unfinished run fits, and 1 with each that does not: a gate for a deploy."""
    assert shop.json("check") == {"ok": True, "misfits": [], "count": 0, "contexts_looked_at": 2}
    Path("changed.py").write_text(CHANGED)
    monkeypatch.syspath_prepend(str(shop.folder))
    said = shop("check", "--code", "changed:newer", "--json")
    assert said.code == 1 and said.json["count"] == 2 and not said.json["ok"]
    assert {misfit["run_id"]: misfit["code"] for misfit in said.json["misfits"]} == {
        "A2": "version-missing", "A3": "version-missing"
    }  # fmt: skip
    said = shop("check", "--code", "changed:newer", "--limit", "1")
    assert said.code == 1 and "2 runs could not go on with this code." in said.out
    assert shop("plan", "A3", "--code", "changed:newer", "--pipeline", "orders").code == 1


def test_check_of_contexts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that does not fit the code's model any more is found in the newest runs, or in all on request."""
    Path("changed.py").write_text(CHANGED)
    monkeypatch.syspath_prepend(str(cli.folder))
    for name in ("L1", "L2"):
        assert cli("run", "--code", "changed:before", "--run-id", name, "--input", "1").code == 1
    assert cli.json("check", "--code", "changed:before")["contexts_looked_at"] == 2
    said = cli("check", "--code", "changed:after", "--json")
    assert said.code == 1 and [misfit["code"] for misfit in said.json["misfits"]] == ["context-changed"] * 2
    assert cli("check", "--code", "changed:after", "--contexts", "1", "--json").json["count"] == 1
    assert cli("check", "--code", "changed:after", "--contexts", "0").code == 0


def test_takeover(shop: Cli, outside: Outside, child: Callable[..., subprocess.Popen[str]]) -> None:
    """A run whose owner lives is taken only by force, and what the owner saves afterwards is refused."""
    holder = child("plain", str(shop.store), "H1")
    said = shop("takeover", "H1")
    assert said.code == 2 and "--force" in said.err
    theirs = ("--code", "tests.cli.children:plain", "--pipeline", "plain")
    command = outside.start(
        "takeover", "H1", "--force", "--by", "ada", *theirs, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, _ = command.communicate("\n\n", timeout=60)
    assert command.returncode == 0 and "run H1 completed: 3" in out
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.wait(timeout=60) != 0  # it was fenced off
    assert shop.json("show", "H1")["steps_done"] == 2
    assert [sent["kind"] for sent in shop.json("messages", "H1")["messages"]] == ["takeover"]
    assert shop("takeover", "H1", "--force", *theirs).code == 4
