"""`make demo`: a run is killed in the middle of a step, and another process finishes it.

The work is real: the source tree of this interpreter's standard library is read, parsed, measured and ranked (see
`examples.census`). Exits with 1 if a step that was finished is executed again, or if the run does not complete.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.census import pipeline

STEPS = [found.name for found in pipeline.steps]
VICTIM = "measure"  # in whose middle the first process is killed
RUN_ID = "census"
CODES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33"}
Cell = tuple[str, str]  # a text and the style that it is shown in


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one process said before it ended, a dict a line, and its exit status."""

    pid: int
    status: int
    said: Sequence[dict[str, Any]]
    seconds: float

    def find(self, what: str, step: str | None = None) -> dict[str, Any] | None:
        """Return the last thing of this kind that it said, of this step if one is named."""
        found = [line for line in self.said if line["what"] == what and step in (None, line.get("step"))]
        return found[-1] if found else None

    def steps(self, what: str) -> list[str]:
        """Return the steps of which it said this."""
        return [line["step"] for line in self.said if line["what"] == what]


def launch(store: Path, run_id: str, source: str, *, hold: str | None = None) -> Process:
    """Run a process to its end; with `hold`, until it says that it is in the middle of that step: then SIGKILL it."""
    command = [sys.executable, "-m", "examples.worker", str(store), run_id, str(store.parent), source]
    begun, said = time.perf_counter(), []
    with subprocess.Popen(
        [*command, *(["--hold", hold] if hold else [])],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        print(
            f"  process {child.pid} {'starts the run' if hold else 'calls run() with the same run_id'} ...",
            end=" ",
            flush=True,
        )
        assert child.stdout is not None
        for line in child.stdout:
            said.append(json.loads(line))
            if said[-1]["what"] == "middle":
                child.kill()
    return Process(pid=child.pid, status=child.returncode, said=said, seconds=time.perf_counter() - begun)


def ran_twice(first: Process, second: Process) -> list[str]:
    """Return the steps that were finished (saved) and whose function was called again after that."""
    again = {name for name in first.steps("saved") if name in second.steps("called")}
    again |= {name for found in (first, second) for name, count in Counter(found.steps("saved")).items() if count > 1}
    return [name for name in STEPS if name in again]


def rows(first: Process, second: Process) -> Iterator[list[Cell]]:
    """Yield a row a step: its name, what each process did with it, and what that comes to."""
    twice = ran_twice(first, second)
    restored = (second.find("run") or {}).get("index", 0)
    for place, name in enumerate(STEPS):
        called = second.find("called", name)
        row = [(name, "bold"), _what_happened(first, name), _what_happened(second, name)]
        if place < restored:
            row[2] = ("restored", "green")
        if name in twice:
            row.append(("TWICE: it was finished", "red"))
        elif called and first.find("called", name):
            row.append((f"again: it was in flight (attempt {called['attempt']})", "yellow"))
        else:
            row.append(("once", "green"))
        yield row


def _what_happened(process: Process, name: str) -> Cell:
    saved, middle = process.find("saved", name), process.find("middle", name)
    if saved:
        return f"executed, saved   {saved['latency_s']:5.2f} s", ""
    if middle:
        return f"KILLED at {middle['done']:g} of {middle['total']:g}", "red"
    return ("began", "yellow") if process.find("called", name) else ("-", "dim")


def paint(text: str, style: str) -> str:
    """Return the text in a style, if standard output is a terminal that is to have colours."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"\x1b[{CODES[style]}m{text}\x1b[0m" if style and coloured else text


def show_table(head: Sequence[str], body: Sequence[Sequence[Cell]]) -> None:
    """Print the cells in columns that are as wide as they need to be."""
    lines = [[(text, "bold") for text in head], *body]
    widths = [max(len(line[column][0]) for line in lines) for column in range(len(head))]
    rule = "  " + "  ".join("-" * width for width in widths)
    for number, line in enumerate(lines):
        cells = zip(line, widths, strict=True)
        print("  " + "  ".join(paint(f"{text:{width}}", style) for (text, style), width in cells).rstrip())
        if number == 0:
            print(paint(rule, "dim"))


def show(first: Process, second: Process) -> None:
    """Print who did what, and what the second process found."""
    head = ["step", f"process {first.pid}", f"process {second.pid}", "it ran"]
    show_table(head, list(rows(first, second)))
    print()
    resumed, result = second.find("run"), second.find("result")
    if resumed and resumed["index"] and result:
        print(f"  restored      {resumed['index']} of {len(STEPS)} step results, and the context: "
              f"{result['files']:,} files, {result['lines']:,} lines")  # fmt: skip
    keys = [called["key"] for found in (first, second) if (called := found.find("called", VICTIM))]
    if len(keys) == 2:
        same = "the same in both processes" if keys[0] == keys[1] else f"then {keys[1]}"
        print(f"  idempotency   key of {VICTIM}: {keys[0]}, {same}")
    if result and result["output"]:
        print("  report\n")
        for line in Path(result["output"]).read_text(encoding="utf-8").splitlines()[:9]:
            print(f"      {line}".rstrip())
        print()


def verdict(first: Process, second: Process) -> int:
    """Print what it comes to; return the exit status."""
    twice = ran_twice(first, second)
    result = second.find("result")
    if first.status != -signal.SIGKILL:
        problem = f"process {first.pid} was not killed in the middle of {VICTIM}"
    elif twice:
        problem = f"finished steps ran twice: {', '.join(twice)}"
    elif not result or result["status"] != "completed" or result["history"] != STEPS:
        problem = "the run did not complete"
    else:
        print(paint("  ok: the run was finished, and no finished step ran twice.", "green"))
        return 0
    print(paint(f"  FAILED: {problem}.", "red"))
    return 1


def demonstrate(folder: Path, source: str, lose_store: bool) -> int:
    """Kill one process, let another one go on, and show what they did."""
    store = folder / "census.db"
    print(f"""
  flujo: a run that survives SIGKILL

  pipeline      {" >> ".join(STEPS)}
  input         {source} (the standard library of this Python)
  store         {store}
""")
    for old in folder.glob(f"{store.name}*"):  # of an earlier demonstration in the same folder
        old.unlink()
    first = launch(store, RUN_ID, source, hold=VICTIM)
    print(f"SIGKILL in the middle of {VICTIM}, after {first.seconds:.1f} s")
    if lose_store:
        for file in folder.glob(f"{store.name}*"):
            file.unlink()
        print("  the store is deleted, as --lose-store asks for")
    second = launch(store, RUN_ID, source)
    print(f"done after {second.seconds:.1f} s\n")
    show(first, second)
    return verdict(first, second)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, help="where the store and the report stay; by default nowhere")
    parser.add_argument("--source", default=sysconfig.get_path("stdlib"), help="another source tree to analyse")
    parser.add_argument(
        "--lose-store",
        action="store_true",
        help="delete the store before the second process: finished steps run twice, and the exit status is 1",
    )
    options = parser.parse_args()
    if options.dir is not None:
        options.dir.mkdir(parents=True, exist_ok=True)
        return demonstrate(options.dir.resolve(), options.source, options.lose_store)
    with tempfile.TemporaryDirectory(prefix="flujo-demo-") as folder:
        return demonstrate(Path(folder), options.source, options.lose_store)


if __name__ == "__main__":
    sys.exit(main())
