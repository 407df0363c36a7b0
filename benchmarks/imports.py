"""`import flujo` against the import of the one big library that it stands on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Bench, Figure, Row, alternate, ratios

OURS, THEIRS = "import flujo", "from pydantic import BaseModel, TypeAdapter"
UNWANTED = ("typer", "rich", "starlette", "psycopg")
PROGRAM = """
import json, sys, time
start = time.perf_counter()
{statement}
took = time.perf_counter() - start
print(json.dumps([took * 1000, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def imported(statement: str, cache: Path) -> tuple[float, list[str]]:
    """Return the ms that the statement takes in a new process, and the top-level modules that are there then.

    Both sides are compiled already, wherever they are installed and whoever may write there: into `cache`.
    """
    program = PROGRAM.format(statement=statement)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    took, modules = json.loads(done.stdout)
    return took, modules


def measure(bench: Bench) -> Row:
    cache = bench.folder / "pycache"
    a, b = alternate(bench.rounds(15), lambda: imported(OURS, cache)[0], lambda: imported(THEIRS, cache)[0])
    ratio = ratios(a, b)
    loaded = sorted(set(UNWANTED) & set(imported(OURS, cache)[1]))
    return Row(
        name="imports",
        what=f"`{OURS}` against `{THEIRS}`",
        target=f"at most 1.5 x; {', '.join(UNWANTED)} not loaded",
        measured=f"{ratio}; " + (f"loads {', '.join(loaded)}" if loaded else "none of them loaded"),
        met=ratio.median <= 1.5 and not loaded,
        figures=[ratio, Figure(name="flujo", unit="ms", samples=a), Figure(name="pydantic", unit="ms", samples=b)],
    )
