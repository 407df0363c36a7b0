"""`import flujo` stays light: it loads what the core needs, and nothing of what only the edges need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = "import sys, json, flujo; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


@pytest.mark.slow
def test_import_loads_no_command_line_server_or_database_driver() -> None:
    """typer, rich, starlette and psycopg are not loaded by `import flujo`, nor what they stand on."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "pydantic" in loaded  # the list is the real one
    assert loaded & {"typer", "click", "rich", "starlette", "psycopg", "apsw", "pytest", "hypothesis"} == set()


@pytest.mark.slow
def test_import_says_and_starts_nothing() -> None:
    """`import flujo` prints nothing, warns of nothing, and starts no thread."""
    program = "import threading, flujo; assert threading.active_count() == 1, threading.enumerate()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_command_line_is_loaded_by_itself_only() -> None:
    """`python -m flujo` works, and what it needs is loaded by `flujo.cli` and by nothing that users import."""
    command = [sys.executable, "-W", "error", "-m", "flujo", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "flujo", "")
    program = "import sys, flujo, flujo.testing; print('flujo.cli' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
