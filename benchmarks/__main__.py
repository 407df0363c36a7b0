"""Measure the budgets of docs/benchmarks.md, as ratios within one run."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.measure import Bench, Row, sync_cost

NAMES = ("sequential", "concurrent", "engine", "context", "processes", "resume", "map", "listing", "imports")
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; the figures are rougher")
    parser.add_argument("--only", action="append", choices=NAMES, help="this row alone; may be repeated")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure; by default the temporary one")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results.json", help="where the samples go")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    options = parser.parse_args()
    logging.getLogger("flujo").setLevel(logging.CRITICAL)  # some of the steps fail on purpose
    with tempfile.TemporaryDirectory(prefix="flujo-bench-", dir=options.dir) as scratch:
        machine = report.machine(sync_cost(Path(scratch)))
        rows: list[Row] = []
        for name in NAMES:
            if options.only and name not in options.only:
                continue
            folder = Path(scratch, name)
            folder.mkdir()
            print(f"measuring {name} ...", end=" ", file=sys.stderr, flush=True)
            start = time.perf_counter()
            bench = Bench(folder=folder, quick=options.quick)
            rows.append(importlib.import_module(f"benchmarks.{name}").measure(bench))
            print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(report.table(rows, machine))
    report.write_json(rows, machine, options.json)
    if options.write:
        report.write_page(rows, machine, ROOT / "docs" / "benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
