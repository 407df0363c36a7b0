"""The benchmarks still run, and what they judge by is right: they cannot pass by measuring nothing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.context import FRAME, Wal, whole_cycle
from benchmarks.listing import scanned
from benchmarks.measure import Figure, Row, alternate, ratios

ROOT = Path(__file__).resolve().parents[1]


def test_sides_alternate_and_the_first_round_does_not_count() -> None:
    """Each side runs once a round, the order turned each time, and the warm-up leaves no sample."""
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return len(order)

    samples = alternate(2, lambda: side("a"), lambda: side("b"))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert samples == [[4, 5], [3, 6]]
    assert ratios(*samples).samples == [4 / 3, 5 / 6]


def test_the_bytes_that_reach_a_wal_are_counted_over_its_resets(tmp_path: Path) -> None:
    """Every frame that a commit writes is counted, also after a checkpoint let the WAL begin anew."""
    path = tmp_path / "x.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("CREATE TABLE t (a BLOB)")
    wal = Wal(Path(f"{path}-wal"))
    size = Path(f"{path}-wal").stat().st_size
    assert wal.grown() == size - 32
    assert wal.grown() == 0
    connection.execute("INSERT INTO t VALUES (zeroblob(40000))")
    grown = wal.grown()
    assert grown == Path(f"{path}-wal").stat().st_size - size and grown % FRAME == 0
    connection.execute("PRAGMA wal_checkpoint").fetchall()
    connection.execute("INSERT INTO t VALUES (1)")
    assert 0 < wal.grown() < grown
    wal.close()
    connection.close()


def test_a_mean_is_taken_over_whole_cycles() -> None:
    """Saves after the last one that wrote the context whole are left out: their share of the next one is missing."""
    assert whole_cycle([4.0, 5.0, 900.0, 4.0]) == [4.0, 5.0, 900.0]
    assert whole_cycle([4.0, 5.0]) == [4.0, 5.0]


def test_a_plan_that_looks_through_a_table_is_found(tmp_path: Path) -> None:
    """A scan of a table of the store is named, with or without an alias; a search by index is not."""
    path = tmp_path / "x.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE flujo_run (key INTEGER PRIMARY KEY, status TEXT, other TEXT)")
    connection.execute("CREATE INDEX flujo_run_status ON flujo_run (status)")
    connection.close()
    assert scanned(path, {"SELECT key FROM flujo_run WHERE status = 'failed'"}) == []
    assert scanned(path, {"SELECT key FROM flujo_run WHERE other = 'x'"}) == ["SCAN flujo_run"]
    assert scanned(path, {"SELECT r.key FROM flujo_run AS r WHERE r.other = 'x'"}) == ["SCAN r"]
    assert scanned(path, {"UPDATE flujo_run SET other = 'x' WHERE other = 'y'"}) == ["SCAN flujo_run"]


def test_the_page_is_renewed_between_its_markers(tmp_path: Path) -> None:
    """What stands around the figures stays; a row that is missed says so."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    figure = Figure(name="ratio", unit="x", samples=[1.0, 3.0, 2.0])
    row = Row(name="a", what="this", target="at most 1 x", measured=str(figure), met=False, figures=[figure])
    for _ in range(2):
        report.write_page([row], {"python": "3"}, page)
    text = page.read_text()
    assert text.startswith("before\n\n") and text.endswith("\n\nafter\n") and "old" not in text
    assert "| this | at most 1 x | 2x (1 to 3) | **missed** |" in text
    assert text.count(report.BEGIN) == text.count(report.END) == 1


@pytest.mark.slow
def test_rows_can_be_measured_one_by_one(tmp_path: Path) -> None:
    """`python -m benchmarks --quick --only ...` measures, prints a verdict a row, and writes every sample as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--only", "engine", "--only", "listing",
         "--dir", str(tmp_path), "--json", str(tmp_path / "results.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["engine", "listing"]
    assert all(figure["samples"] for row in rows for figure in row["figures"])
    assert "every plan by index" in done.stdout
