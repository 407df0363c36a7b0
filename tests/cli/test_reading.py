"""What the commands that only look say of a store."""

from __future__ import annotations

import pytest

from flujo.cli.output import clean, lasting, plain, short, size
from tests.cli.conftest import Cli


def test_list(shop: Cli) -> None:
    """Runs come the newest first, one a line, with what went wrong; by status, by pipeline, page by page."""
    lines = shop.ok("list").splitlines()
    assert [line.split()[0] for line in lines] == ["run", "A3", "A2", "A1"]
    assert "failed       2/5" in lines[1] and "the bank does not answer (request A3)" in lines[1]
    found = shop.json("list", "--status", "paused")
    assert [run["run_id"] for run in found["runs"]] == ["A2"] and found["next"] is None
    assert found["runs"][0].keys() == {
        "run_id", "pipeline_id", "pipeline_name", "pipeline_version", "status", "steps_done", "steps_total", "error",
        "created_at", "updated_at", "execution_time_ms", "due_at",
    }  # fmt: skip
    assert shop.json("list", "--pipeline", "other")["runs"] == []
    assert shop.ok("list", "--pipeline", "other") == "There are no such runs.\n"
    first = shop.json("list", "--limit", "2")
    assert [run["run_id"] for run in first["runs"]] == ["A3", "A2"] and first["next"] == "A2"
    assert [run["run_id"] for run in shop.json("list", "--after", "A2")["runs"]] == ["A1"]
    assert "There are more: --after A2" in shop.ok("list", "--limit", "2")


def test_show_of_a_completed_run(shop: Cli) -> None:
    """Its steps are a tree, those inside of others below them, with times and outputs."""
    text = shop.ok("show", "A1")
    lines = text.splitlines()
    assert lines[0] == "A1  completed  orders 1.0.0"
    assert "├── prices  ok" in text and "│   └── [1]\n│       └── price  ok" in text and ">items" not in text
    assert "charge  ok" in text and '{"order": "A1", "cents": 420' in text
    found = shop.json("show", "A1")
    assert found["status"] == "completed" and found["output"] == "small, shipped"
    assert found["context"] == {"notes": ["charged 420", "shipped"]} and found["input"]["items"] == [100, 250]
    assert [step["path"] for step in found["steps"] if ">" not in step["path"]] == [
        "validate", "prices[0].price", "prices[1].price", "prices", "charge", "size.small.small", "size", "ship"
    ]  # fmt: skip


def test_show_of_a_failed_run(shop: Cli) -> None:
    """It says which step failed of what; with --full where in the code."""
    text = shop.ok("show", "A3")
    assert "charge  failed" in text and "ConnectionError: the bank does not answer (request A3)" in text
    assert "Traceback" not in text
    assert 'raise ConnectionError(f"the bank' in shop.ok("show", "A3", "--full")
    found = shop.json("show", "A3")
    assert found["error"]["type"] == "ConnectionError" and "shop.py" in found["error"]["traceback"]


def test_show_shows_the_last_steps_of_a_long_run(shop: Cli) -> None:
    """--limit leaves out the first ones, and says how many."""
    found = shop.json("show", "A1", "--limit", "2")
    assert [step["path"] for step in found["steps"]] == ["size", "ship"] and found["steps_left_out"] > 4
    assert f"the first {found['steps_left_out']} records are not shown" in shop.ok("show", "A1", "--limit", "2")


def test_inbox(shop: Cli) -> None:
    """Who is asked what, and what an answer looks like; what has been answered is gone."""
    text = shop.ok("inbox")
    assert "A2  waits at 'size.big.approve' for an answer: A big order: ship it?" in text and '"ok"' in text
    [wait] = shop.json("inbox")["waiting"]
    assert (wait["run_id"], wait["step"], wait["kind"]) == ("A2", "size.big.approve", "human")
    assert wait["schema"]["required"] == ["ok"]
    shop.ok("answer", "A2", '{"ok": true}', "--by", "ada")
    assert shop.ok("inbox") == "Nothing waits for anybody.\n"


def test_inbox_shows_what_is_paused_on_request(shop: Cli) -> None:
    """A run that somebody has paused waits for nobody's answer: --all shows it."""
    shop.ok("pause", "A2", "--by", "ada", "--reason", "lunch")
    assert [wait["kind"] for wait in shop.json("inbox")["waiting"]] == ["human"]
    assert [wait["kind"] for wait in shop.json("inbox", "--all")["waiting"]] == ["pause", "human"]
    assert "A2  was paused by ada: lunch" in shop.ok("inbox", "--all")


def test_messages(shop: Cli) -> None:
    """Who sent a run what, when and why."""
    assert shop.ok("messages", "A1") == "Nobody has sent it anything.\n"
    shop.ok("pause", "A2", "--by", "ada", "--reason", "lunch")
    shop.ok("resume", "A2", "--by", "bob")
    shop.ok("answer", "A2", '{"ok": false, "note": "no"}', "--by", "cid")
    found = shop.json("messages", "A2")["messages"]
    assert [(sent["kind"], sent["by"], sent["reason"]) for sent in found] == [
        ("pause", "ada", "lunch"), ("resume", "bob", None), ("answer", "cid", None)
    ]  # fmt: skip
    assert found[2]["content"] == {"ok": False, "note": "no"}
    assert "lunch" in shop.ok("messages", "A2")


def test_stats(shop: Cli) -> None:
    """Counts by status and by pipeline."""
    found = shop.json("stats")
    assert found["by_status"] == {"completed": 1, "failed": 1, "paused": 1} and found["runs"] == 3
    assert found["by_pipeline"] == {"orders": 3} and found["updated_24h"] == 3
    assert "  failed            1" in shop.ok("stats")


def test_failures(shop: Cli) -> None:
    """Failures that differ in numbers and ids only are one group, with an example."""
    shop.bank(up=False)
    for number in range(4, 7):
        shop.order(f"A{number}")
    shop("run", "--run-id", "B1", "--input", '{"id": "x", "items": []}', "--quiet")
    found = shop.json("failures")["failures"]
    assert [(group["error"], group["runs"]) for group in found] == [("ConnectionError", 4), ("ValueError", 1)]
    assert found[0]["example"] == "A6"
    lines = shop.ok("failures").splitlines()
    assert lines[1].split()[:2] == ["4", "ConnectionError:"] and lines[1].endswith("A6")


def test_unknown_types_are_shown_as_data(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has no class for is shown all the same."""
    monkeypatch.delenv("FLUJO_CODE")
    assert shop.json("show", "A2")["output"]["cents"] == 30120


def test_numbers_for_people() -> None:
    """Times and sizes have the unit that makes them short."""
    assert [lasting(s) for s in (0, 0.0124, 0.9999, 3.44, 119, 121, 7300, 200_000)] == [
        "0 ms", "12 ms", "1.0 s", "3.4 s", "119.0 s", "2 min", "2 h", "2 d"
    ]  # fmt: skip
    assert [size(n) for n in (0, 999, 1000, 90_100, 5_000_000, 7 * 10**9, 8 * 10**13)] == [
        "0 B", "999 B", "1.0 kB", "90.1 kB", "5.0 MB", "7.0 GB", "80.0 TB"
    ]  # fmt: skip


def test_nothing_is_left_that_a_terminal_would_obey() -> None:
    """Control characters, line separators, half characters and marks that turn the text round are shown as numbers."""
    assert clean("a\x1b[31mb\x07\x9b\r\n\t") == "a\\x1b[31mb\\x07\\x9b\\r\\n\\t"
    assert clean("\u2028\ud800\u202etxt") == "\\u2028\\ud800\\u202etxt"
    assert clean("Grüße, 世界 🎉 [bold]") == "Grüße, 世界 🎉 [bold]"
    assert clean("one\ntwo", lines=True) == "one\ntwo"


def test_any_value_is_shown() -> None:
    """What JSON has no form for is a text; nothing raises."""
    loop: list[object] = []
    loop.append(loop)
    assert plain(float("nan")) == "NaN" and plain({1: {2}}) == {"1": [2]} and plain(b"\xff") == "_w=="
    assert short(loop) and isinstance(plain(object()), str)
    assert short("x" * 100, 20) == '"' + "x" * 16 + "..."
