"""The figures as a table, as JSON, and in docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Row

BEGIN, END = "<!-- figures: made by `python -m benchmarks --write` -->", "<!-- end of the figures -->"


def machine(sync_ms: float) -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "fdatasync of 4 KB": f"{sync_ms:.2f} ms",
        "date": datetime.now(UTC).date().isoformat(),
    }


def table(rows: Sequence[Row], facts: dict[str, str]) -> str:
    """Return the rows for a terminal."""
    lines = ["", "  ".join(f"{name} {value}" for name, value in facts.items()), ""]
    for row in rows:
        lines += [f"{'met   ' if row.met else 'MISSED'}  {row.name}: {row.what}"]
        lines += [f"        target    {row.target}", f"        measured  {row.measured}"]
        lines += [f"            {figure.name:36} {figure}" for figure in row.figures]
        lines.append("")
    missed = [row.name for row in rows if not row.met]
    lines.append(f"{len(rows) - len(missed)} of {len(rows)} met" + (f"; missed: {', '.join(missed)}" if missed else ""))
    return "\n".join(lines)


def write_json(rows: Sequence[Row], facts: dict[str, str], path: Path) -> None:
    """Write everything that was measured."""
    data = {
        "machine": facts,
        "rows": [
            {
                "name": row.name, "what": row.what, "target": row.target, "measured": row.measured, "met": row.met,
                "figures": [{"name": f.name, "unit": f.unit, "samples": list(f.samples)} for f in row.figures],
            }
            for row in rows
        ],
    }  # fmt: skip
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_page(rows: Sequence[Row], facts: dict[str, str], path: Path) -> None:
    """Replace what stands between the markers of the page."""
    head, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    lines = [BEGIN, "", ", ".join(f"{name} {value}" for name, value in facts.items()) + ".", ""]
    lines += ["| what | target | measured | |", "| --- | --- | --- | --- |"]
    lines += [f"| {r.what} | {r.target} | {r.measured} | {'met' if r.met else '**missed**'} |" for r in rows]
    lines += ["", "Behind them, the median of the rounds with the lowest and the highest:", ""]
    lines += ["| row | figure | |", "| --- | --- | --- |"]
    lines += [f"| {row.name} | {figure.name} | {figure} |" for row in rows for figure in row.figures]
    lines += ["", END]
    path.write_text(head + textwrap.dedent("\n".join(lines)) + tail, encoding="utf-8")
