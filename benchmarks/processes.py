"""Four processes that share one SQLite file: how long a save waits, and what they get done together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Bench, Figure, Row, alternate, ratios

PROCESSES, RUNS, STEPS, AT_ONCE = 4, 1000, 5, 100
ALONE_STEPS = 1000


def together(path: Path, jobs: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Run the jobs, a process each, started at the same moment; return what each of them measured."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", str(path), json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for job in jobs
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=300)[0] for child in children]
    return [json.loads(answer) for answer in answers]


def measure(bench: Bench) -> Row:
    path = bench.folder / "shared.db"
    waits: list[float] = []
    lone_waits: list[float] = []

    def steps_a_second(processes: int) -> float:
        share = {"runs": RUNS // processes, "steps": STEPS, "at_once": AT_ONCE}
        answers = together(path, [share] * processes)
        if processes > 1:
            waits.append(max(answer["longest_ms"] for answer in answers))
        return RUNS * STEPS / (max(a["end"] for a in answers) - min(a["start"] for a in answers))

    one, four = alternate(bench.rounds(5), lambda: steps_a_second(1), lambda: steps_a_second(PROCESSES), warm_up=1)
    for _ in range(bench.rounds(3)):
        lone = {"runs": 1, "steps": ALONE_STEPS, "at_once": 1}
        lone_waits.append(max(answer["longest_ms"] for answer in together(path, [lone] * PROCESSES)))
    ratio = ratios(four, one, "four against one")
    longest = Figure(name="longest wait, 100 runs at once each", unit="ms", samples=waits[1:])
    lone_longest = Figure(name="longest wait, one run each", unit="ms", samples=lone_waits)
    worst = max(longest.median, lone_longest.median)
    return Row(
        name="processes",
        what="four processes on one SQLite file: longest wait of a save, throughput against one process",
        target="no save over 150 ms; at least 0.7 x",
        measured=f"{worst:.0f} ms; {ratio}",
        met=worst <= 150 and ratio.median >= 0.7,
        figures=[
            ratio, longest, lone_longest,
            Figure(name="four", unit="steps/s", samples=four), Figure(name="one", unit="steps/s", samples=one),
        ],
    )  # fmt: skip
