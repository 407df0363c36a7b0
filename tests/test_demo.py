"""The demo does what it says: it kills a run in the middle, another process finishes it, and it can fail."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.demo import STEPS, Process, ran_twice, verdict

ROOT = Path(__file__).resolve().parents[1]


def demo(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def row(output: str, step: str) -> str:
    (found,) = [line for line in output.splitlines() if line.startswith(f"  {step} ")]
    return " ".join(found.split())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a small source tree, so that a demonstration takes no longer than its processes need to start."""
    tree = tmp_path / "source"
    (tree / "pack").mkdir(parents=True)
    (tree / "base.py").write_text("def way(x):\n    return 1 if x else 2\n")
    (tree / "pack" / "__init__.py").write_text("import base\n")
    (tree / "pack" / "user.py").write_text("import base\nfrom . import other\n")
    (tree / "broken.py").write_text("def (\n")
    return tree


def said(what: str, step: str, **facts: Any) -> dict[str, Any]:
    return {"what": what, "step": step, **facts}


def process(*lines: dict[str, Any], status: int = 0) -> Process:
    return Process(pid=1, status=status, said=lines, seconds=1.0)


@pytest.mark.slow
def test_the_demo_on_real_input() -> None:
    """On the standard library: what was saved is restored, the step in flight runs again, the rest runs once."""
    status, output = demo()
    assert status == 0, output
    for step in ("discover", "parse"):
        assert row(output, step).endswith("s restored once")
    assert "KILLED at 30 of 60 executed" in row(output, "measure")
    assert row(output, "measure").endswith("it was in flight (attempt 2)")
    for step in ("rank", "report"):
        assert row(output, step).startswith(f"{step} - executed") and row(output, step).endswith("once")
    assert "restored      2 of 5 step results" in output
    assert "the same in both processes" in output
    assert "modules" in output and "imported by" in output
    assert "ok: the run was finished" in output


@pytest.mark.slow
def test_a_finished_step_that_runs_again_is_a_failure(source: Path, tmp_path: Path) -> None:
    """Where the store is lost between the processes, the demo names the steps that ran twice and exits with 1."""
    status, output = demo("--source", str(source), "--dir", str(tmp_path / "kept"), "--lose-store")
    assert status == 1, output
    assert row(output, "discover").endswith("TWICE: it was finished")
    assert row(output, "parse").endswith("TWICE: it was finished")
    assert "FAILED: finished steps ran twice: discover, parse." in output


@pytest.mark.slow
def test_the_demo_keeps_what_it_made_where_it_is_told_to(source: Path, tmp_path: Path) -> None:
    """With --dir the store and the report stay, for people to look at, and the next demonstration starts anew."""
    for _ in range(2):
        status, output = demo("--source", str(source), "--dir", str(tmp_path / "kept"))
        assert status == 0, output
    with sqlite3.connect(tmp_path / "kept" / "census.db") as connection:
        found = connection.execute("SELECT run_id, status, current_step_index FROM workflow_state").fetchall()
    connection.close()
    assert found == [("census", "completed", 5)]
    report = (tmp_path / "kept" / "report.md").read_text()
    assert report.startswith("# 4 modules, 5 lines") and "Not readable: broken" in report


def test_what_counts_as_twice() -> None:
    """A step counts as run twice if it was saved before, not if it was only begun."""
    first = process(said("called", "discover"), said("saved", "discover"), said("called", "parse"))
    assert ran_twice(first, process(said("called", "parse"), said("saved", "parse"))) == []
    assert ran_twice(first, process(said("called", "discover"))) == ["discover"]
    twice = process(said("called", "rank"), said("saved", "rank"), said("called", "rank"), said("saved", "rank"))
    assert ran_twice(first, twice) == ["rank"]


@pytest.mark.parametrize(
    ("status", "result", "problem"),
    [
        (0, {"status": "completed", "history": STEPS}, "was not killed in the middle"),
        (-signal.SIGKILL, {"status": "failed", "history": STEPS}, "did not complete"),
        (-signal.SIGKILL, {"status": "completed", "history": STEPS[1:]}, "did not complete"),
        (-signal.SIGKILL, None, "did not complete"),
    ],
)
def test_whatever_else_goes_wrong_is_a_failure(
    capsys: pytest.CaptureFixture[str], status: int, result: dict[str, Any] | None, problem: str
) -> None:
    """A kill that did not happen, a run that did not complete, a step that is missing in its history: exit status 1."""
    second = process(*[{"what": "result", **result}] if result else [])
    assert verdict(process(status=status), second) == 1
    assert problem in capsys.readouterr().out


def test_a_run_that_was_killed_and_finished_is_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    """Killed by SIGKILL, completed by the second process, every step in the history once: exit status 0."""
    second = process({"what": "result", "status": "completed", "history": STEPS})
    assert verdict(process(status=-signal.SIGKILL), second) == 0
    assert "ok:" in capsys.readouterr().out
