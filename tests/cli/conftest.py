"""The command line as a user drives it: within this process where that is enough, for a process costs 0.5 s."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flujo.cli import main

ROOT = Path(__file__).resolve().parents[2]
SHOP = "examples.shop:runner"
SMALL = '{"id": "x", "items": [100, 250]}'
BIG = '{"id": "x", "items": [100, 25000]}'


@dataclass(frozen=True, slots=True)
class Said:
    """What a call came to: the exit status, and what was printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; it fails where there is anything else."""
        return json.loads(self.out)


class Cli:
    """Calls the command line in the working directory of the test, on `runs.db` there."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys, self.folder = capsys, folder
        self.store = folder / "runs.db"

    def __call__(self, *args: str | Path) -> Said:
        self._capsys.readouterr()
        code = main([str(arg) for arg in args])
        out, err = self._capsys.readouterr()
        return Said(code, out, err)

    def ok(self, *args: str | Path) -> str:
        """Return what a call printed that has to go well and without a word on stderr."""
        said = self(*args)
        assert (said.code, said.err) == (0, ""), said
        return said.out

    def json(self, *args: str | Path) -> Any:
        """Return the document of a call that has to go well."""
        return json.loads(self.ok(*args, "--json"))

    def order(self, run_id: str, given: str = SMALL) -> Said:
        """Run an order of the shop."""
        return self("run", "--run-id", run_id, "--input", given, "--quiet")

    def bank(self, *, up: bool) -> None:
        """Let the shop's bank answer, or not."""
        (self.folder / "bank.down").unlink(missing_ok=True)
        if not up:
            (self.folder / "bank.down").touch()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in an empty folder; its store is `runs.db`, its code the shop."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUJO_STATE_URI", "sqlite:///runs.db")
    monkeypatch.setenv("FLUJO_CODE", SHOP)
    return Cli(capsys, tmp_path)


@pytest.fixture
def shop(cli: Cli) -> Cli:
    """A shop with three orders: A1 has completed, A2 waits for a person, A3 has failed."""
    assert cli.order("A1").code == 0
    assert cli.order("A2", BIG).code == 0
    cli.bank(up=False)
    assert cli.order("A3").code == 1
    cli.bank(up=True)
    return cli


class Outside:
    """Calls the command in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLUJO_")},
            "FLUJO_STATE_URI": "sqlite:///runs.db", "FLUJO_CODE": SHOP, "PYTHONPATH": str(ROOT), "NO_COLOR": "1",
        }  # fmt: skip

    def command(self, *args: str) -> list[str]:
        """Return what to start."""
        return [sys.executable, "-W", "error::Warning:flujo", "-m", "flujo", *args]

    def __call__(self, *args: str, **options: Any) -> Said:
        done = subprocess.run(
            self.command(*args), cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False,
            timeout=60, **options,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Start one and do not wait for it."""
        return subprocess.Popen(self.command(*args), cwd=self.folder, env=self.environment, text=True, **options)


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    """The command in processes of their own, in the folder of the test."""
    return Outside(tmp_path)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes of `tests.cli.children`, which end with the test at the latest."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.children", *args], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
