from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.backends import query

# The specification's example, word for word.
EXAMPLE = """\
from pathlib import Path
from flujo import Flujo, Step, PipelineRegistry, step
from flujo.state import SQLiteBackend

@step
async def greet(name: str) -> str:
    return f"Hello, {name}!"

registry = PipelineRegistry()
registry.register(greet, "hello", "1.0.0")            # a single step is a pipeline
backend = SQLiteBackend(Path("workflow.db"))
runner = Flujo(registry=registry, pipeline_name="hello", pipeline_version="1.0.0", state_backend=backend)
result = runner.run("world", run_id="run1")
runner2 = Flujo(registry=registry, pipeline_name="hello", pipeline_version="1.0.0", state_backend=backend)
resumed = runner2.run("world", run_id="run1")         # same run: nothing is executed again
"""
COUNTED = EXAMPLE.replace("    return", '    print("executed")\n    return') + (
    "print(result.output, resumed.output, resumed.status, [s.name for s in resumed.step_history])\n"
)


def execute(code: str, folder: Path) -> str:
    """Run the code in an interpreter of its own that fails at any warning; return what it printed."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_the_example_runs_word_for_word(tmp_path: Path) -> None:
    """It prints and logs nothing, warns of nothing, writes the store alone, and saves its one step once."""
    assert execute(EXAMPLE, tmp_path) == ""
    assert execute(EXAMPLE, tmp_path) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["workflow.db", "workflow.db-flujo"]
    assert query(tmp_path / "workflow.db", "SELECT count(*) FROM flujo_log") == [(1,)]
    assert query(
        tmp_path / "workflow.db",
        "SELECT run_id, status, current_step_index, total_steps, pipeline_context, last_step_output"
        " FROM workflow_state",
    ) == [("run1", "completed", 1, 1, "{}", '"Hello, world!"')]


@pytest.mark.slow
def test_the_second_run_executes_nothing(tmp_path: Path) -> None:
    """Its output is the first one's, in the same process and in another one."""
    answer = "Hello, world! Hello, world! completed ['greet']\n"
    assert execute(COUNTED, tmp_path) == "executed\n" + answer
    assert execute(COUNTED, tmp_path) == answer
