"""Replays the guide to the command line: `python -m tests.cli.guide` writes what the commands print into the page."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guides" / "operating.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
WIDTH = 118  # longer lines are cut in the page

MACHINE = "flujo|python|sqlite|store|file system|room on the disk|live owners"
# What differs from one time to the next, and from one machine to the next.
VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00:00)?"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s|min)\b"), "LONG"),
    (re.compile(r"\b\d+(\.\d+)? (B|kB|MB|GB|TB)\b"), "SIZE"),
    (re.compile(r"\"execution_time_ms\": [\d.]+"), "MS"),
    (
        re.compile(r"^(flujo|python|sqlite|store|file system|room on the disk|live owners) +(ok|BAD) .*$", re.M),
        r"\1 \2",
    ),
    (re.compile(r"^(sqlite|live owners): .*\n", re.M), ""),
    (re.compile(r" +"), " "),
    (
        re.compile(r"^[A-Z]\d\S* SIZE$", re.M),
        "RUN SIZE",
    ),  # how large a failure is depends on the paths in its traceback
)
Call = Callable[[list[str]], str]


def told(text: str) -> str:
    """Return what counts of an output."""
    text = "".join(cut(line) + "\n" for line in text.splitlines())
    for pattern, instead in VARYING:
        text = pattern.sub(instead, text)
    return text


def cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def entries(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block, and what follows it."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def prepare(folder: Path) -> None:
    """Make the folder that the guide speaks of."""
    shutil.copy(ROOT / "examples" / "shop.py", folder / "shop.py")


def perform(command: str, call: Call, environment: dict[str, str]) -> str:
    """Do what a line says; return what it prints."""
    words = shlex.split(command)
    match words[0]:
        case "export":
            name, _, value = words[1].partition("=")
            environment[name] = value
        case "touch":
            Path(words[1]).touch()
        case "rm":
            Path(words[1]).unlink()
        case "flujo":
            args, _, pipe = command.partition(" | ")
            output = call(shlex.split(args)[1:])
            found = re.fullmatch(r"head -n (\d+)", pipe)
            assert found or not pipe, command
            return output if not found else "".join(output.splitlines(keepends=True)[: int(found[1])])
        case other:
            raise AssertionError(f"nobody knows how to do {other!r}")
    return ""


def main() -> None:
    """Write the page anew."""
    with tempfile.TemporaryDirectory() as name:
        folder, environment = Path(name), {**os.environ, "PYTHONPATH": str(ROOT)}
        prepare(folder)

        def call(args: list[str]) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "flujo", *args], capture_output=True, text=True, env=environment, check=False
            )
            return done.stdout + done.stderr

        def block(match: re.Match[str]) -> str:
            lines = []
            for command, _ in entries(match[1]):
                output = perform(command, call, environment)
                lines.append(f"$ {command}\n" + "".join(cut(line) + "\n" for line in output.splitlines()))
            return f"```console\n{''.join(lines)}```"

        with contextlib.chdir(folder):
            text = BLOCK.sub(block, GUIDE.read_text(encoding="utf-8"))
    GUIDE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
