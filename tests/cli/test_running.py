"""Running, answering, signalling, pausing and cancelling from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flujo import Flujo, SQLiteBackend
from tests.cli.conftest import BIG, SMALL, Cli

pytestmark = pytest.mark.slow

MODULE = """
from __future__ import annotations
import time
from pydantic import BaseModel
from flujo import Flujo, PipelineRegistry, SQLiteBackend, Step, step

class Order(BaseModel):
    id: str
    cents: int = 1

@step(retries=[0.001])
def first(order: Order) -> int:
    print("hello from a step")
    if order.id == "bad":
        raise ValueError("a bad order")
    return order.cents

@step(undo=None)
def last(cents: int, *, context: dict) -> int:
    context["seen"] = cents
    return cents * 2

whole = first >> last
waits = first >> Step.wait_for("paid", int) >> last
sleeps = first >> Step.sleep("nap", 3600) >> last
asks = first >> Step.human_in_the_loop("ask", "Well?", int) >> last
two = Step.parallel("two", a=Step.human_in_the_loop("a", "A?", str), b=Step.human_in_the_loop("b", "B?", str))
registry = PipelineRegistry()
registry.register(whole, "whole", "1.0.0")
registry.register(waits, "waits", "1.0.0")
runner = Flujo(whole, pipeline_name="whole", state_backend=SQLiteBackend("own.db"))
nothing = 7
"""


@pytest.fixture
def module(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory whose name no other test uses."""
    name = f"code_{abs(hash(str(cli.folder)))}"
    (cli.folder / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(cli.folder))
    monkeypatch.delenv("FLUJO_CODE")
    return name


def test_run_prints_a_line_for_each_step(cli: Cli) -> None:
    """Piped, the run is plain lines: where, how it went, how long, what came out, and the result last."""
    lines = cli.ok("run", "--run-id", "A1", "--input", SMALL).splitlines()
    assert lines[0] == "run A1 of orders 1.0.0 starts" and lines[-1] == 'run A1 completed: "small, shipped"'
    assert [line.split()[:2] for line in lines[1:-1]] == [
        [where, "ok"]
        for where in (
            "validate", "prices[0].price", "prices[1].price", "prices", "charge", "size.small.small", "size", "ship"
        )
    ]  # fmt: skip
    assert not [line for line in lines if "\x1b" in line]


def test_run_as_json(cli: Cli, module: str) -> None:
    """stdout holds one document, whatever the steps print."""
    said = cli("run", "--code", f"{module}:whole", "--run-id", "A1", "--input", '{"id": "x", "cents": 4}', "--json")
    assert said.json == {
        "run_id": "A1", "status": "completed", "phase": None, "pipeline_name": "pipeline", "pipeline_version": "1.0.0",
        "output": 8, "error": None, "waiting": [], "undone": [],
    }  # fmt: skip
    assert "hello from a step" in said.err
    said = cli("run", "--code", f"{module}:whole", "--input", '{"id": "bad"}', "--json")
    assert said.code == 1 and said.json["error"] == {"type": "ValueError", "text": "a bad order"}


def test_retries_are_shown(cli: Cli, module: str) -> None:
    """Each attempt that failed is a line, and nothing of it is logged besides."""
    said = cli("run", "--code", f"{module}:whole", "--input", '{"id": "bad"}')
    assert said.code == 1 and said.err == ""
    assert "retry  attempt 1 failed, the next in 1 ms: ValueError('a bad order')" in said.out
    assert "failed" in said.out and "(2 attempts)" in said.out


def test_a_failed_run_goes_on(shop: Cli) -> None:
    """`run` with the id of a run that failed tries the failed step again; a completed one is not executed again."""
    out = shop.ok("run", "--run-id", "A3")
    assert out.splitlines()[0] == "run A3 of orders 1.0.0 goes on after step 2" and "validate" not in out
    assert shop.ok("run", "--run-id", "A3") == 'run A3 completed: "small, shipped"\n'


def test_another_input_is_ignored_and_that_is_said(shop: Cli) -> None:
    """A run that exists keeps the input that it has."""
    said = shop("run", "--run-id", "A1", "--input", BIG)
    assert said.code == 0 and "exists with another input" in said.err and said.err.count("\n") == 1


def test_input_from_elsewhere(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """@FILE reads a file; what is neither JSON nor looks like it is a text."""
    (tmp_path / "order.json").write_text(SMALL)
    cli.ok("run", "--input", "@order.json", "--quiet")
    assert "cannot be read" in cli("run", "--input", "@none.json").err
    said = cli("run", "--input", "hello")
    assert said.code == 2 and "not what the first step takes" in said.err
    said = cli("run", "--input", '{"id": ')
    assert said.code == 2 and "--input is no JSON" in said.err
    said = cli("run", "--input", '{"id": 5, "items": []}')
    assert said.code == 2 and "id: Input should be a valid string" in said.err
    assert len(cli.json("list")["runs"]) == 1


def test_context_and_deadline(cli: Cli) -> None:
    """A new run's context can be begun with; a deadline is one."""
    cli.ok("run", "--run-id", "A1", "--input", SMALL, "--context", '{"notes": ["mind"]}', "--deadline", "1000")
    found = cli.json("show", "A1")
    assert found["context"]["notes"][0] == "mind" and found["deadline"] > found["created_at"]
    assert cli("run", "--input", SMALL, "--context", "[1]").code == 2


def test_answer(shop: Cli) -> None:
    """An answer is checked, then the run goes on; twice is refused, and nobody has asked a run that is over."""
    said = shop("answer", "A2", '{"ok": "perhaps"}')
    assert said.code == 4 and "not of the type that is waited for" in said.err
    assert shop.json("inbox")["waiting"] != []
    out = shop.ok("answer", "A2", '{"ok": true}', "--by", "ada")
    assert out.splitlines()[-1] == 'run A2 completed: "approved, shipped"'
    assert "by ada" in shop.ok("show", "A2")
    said = shop("answer", "A2", '{"ok": true}')
    assert said.code == 4 and "has been answered by ada" in said.err
    assert shop("answer", "A1", '{"ok": true}').code == 4
    assert shop("answer", "A9", '{"ok": true}').code == 3


def test_answering_one_of_several(cli: Cli, module: str) -> None:
    """Where two people are asked, --at says whose answer it is."""
    code = ("--code", f"{module}:two")
    cli.ok("run", *code, "--run-id", "T", "--input", "1", "--quiet")
    said = cli("answer", "T", "yes", *code)
    assert said.code == 4 and "two.a.a" in said.err
    assert cli("answer", "T", "yes", *code, "--at", "two.a.a").code == 0
    assert cli.json("answer", "T", '"no"', *code, "--at", "two.b.b")["output"] == {"a": "yes", "b": "no"}


def test_signal(cli: Cli, module: str) -> None:
    """A signal is stored, and used with the next run; an unknown one is refused with what is waited for."""
    code = ("--code", f"{module}:registry", "--pipeline", "waits")
    assert cli("run", *code, "--run-id", "S", "--input", '{"id": "x"}').code == 0
    assert "waits at 'paid' for signal 'paid'" in cli.ok("watch", "S", "--once")
    said = cli("signal", "S", "payd", "1", *code)
    assert said.code == 4 and "It waits for 'paid'." in said.err
    assert cli("signal", "S", "paid", '"x"', *code).code == 4
    out = cli.ok("signal", "S", "paid", "21", "--id", "p1", "--by", "bank", "--code", f"{module}:registry")
    assert "is stored" in out and "`flujo run`" in out
    cli.ok("signal", "S", "paid", "21", "--id", "p1", "--code", f"{module}:registry")
    assert len(cli.json("messages", "S")["messages"]) == 1
    assert cli.json("run", *code, "--run-id", "S")["output"] == 42


def test_pause_and_resume(cli: Cli, module: str) -> None:
    """A paused run stands still until `resume`; without code the order is stored."""
    code = ("--code", f"{module}:asks")
    cli("run", *code, "--run-id", "P", "--input", '{"id": "x"}')
    assert cli.ok("pause", "P", "--by", "ada", *code) == "Run 'P' is paused.\n"
    assert cli.json("resume", "P", "--by", "bob", *code)["status"] == "paused"
    said = cli("resume", "P", *code)
    assert said.code == 4 and "waits at 'ask'" in said.err and "flujo answer" in said.err
    found = cli.json("pause", "P")
    assert found == {"run_id": "P", "status": "paused", "paused": False}
    assert cli.json("run", "--run-id", "P", *code)["waiting"][0]["kind"] == "pause"
    cli("resume", "P", *code)
    assert cli.json("answer", "P", "4", *code)["output"] == 8
    assert cli("pause", "P", *code).code == 4 and cli("resume", "P", *code).code == 4


def test_resume_before_its_time(cli: Cli, module: str) -> None:
    """A run that sleeps goes on sleeping: it says until when."""
    code = ("--code", f"{module}:sleeps")
    cli("run", *code, "--run-id", "N", "--input", '{"id": "x"}')
    found = cli.json("resume", "N", *code)
    assert found["status"] == "paused" and found["waiting"][0]["kind"] == "sleep"


def test_resume_of_a_failed_run(shop: Cli) -> None:
    """It says what to use."""
    said = shop("resume", "A3")
    assert said.code == 4 and "`flujo retry`" in said.err


def test_cancel(shop: Cli) -> None:
    """A run is ended for good, by whom and why; what is over cannot be."""
    assert shop.json("cancel", "A2", "--by", "ada", "--reason", "ordered twice")["status"] == "cancelled"
    assert re.search("cancelled +by ada: ordered twice", shop.ok("show", "A2"))
    assert shop.json("cancel", "A2")["status"] == "cancelled"
    assert shop("cancel", "A1").code == 4
    assert shop("run", "--run-id", "A2").code == 1


def test_cancel_without_code(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is stored, and followed by whoever runs it next."""
    monkeypatch.delenv("FLUJO_CODE")
    assert shop.json("cancel", "A2")["stored"] is True
    monkeypatch.setenv("FLUJO_CODE", "examples.shop:runner")
    assert shop("run", "--run-id", "A2", "--json").json["status"] == "cancelled"
    monkeypatch.delenv("FLUJO_CODE")
    assert "cancelled already" in shop.ok("cancel", "A2")


def test_the_codes_own_store(cli: Cli, module: str) -> None:
    """A runner that has a store is used with it, also to look; --state counts for more, FLUJO_STATE_URI does not."""
    cli.ok("run", "--code", f"{module}:runner", "--run-id", "O", "--input", '{"id": "x"}', "--quiet")
    assert (cli.folder / "own.db").exists() and not cli.store.exists()
    assert cli.json("why", "O", "--code", f"{module}:runner")["code"] == "completed"
    cli.ok("run", "--code", f"{module}:runner", "--state", "else.db", "--input", '{"id": "x"}', "--quiet")
    assert (cli.folder / "else.db").exists()


def test_what_a_run_left_is_what_a_runner_finds(shop: Cli) -> None:
    """The store is the same one that the library works on."""
    from examples.shop import Shop, registry

    runner = Flujo(
        registry=registry, pipeline_name="orders", context_model=Shop, state_backend=SQLiteBackend(shop.store)
    )
    assert runner.run(run_id="A3").output == "small, shipped"
    assert shop.json("show", "A3")["status"] == "completed"
    assert json.loads(shop("list", "--json").out)["runs"][0]["run_id"] == "A3"
