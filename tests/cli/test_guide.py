"""The guide to the command line prints what it says that it prints."""

from __future__ import annotations

import sys

import pytest

from tests.cli.conftest import Cli
from tests.cli.guide import BLOCK, GUIDE, WIDTH, entries, perform, prepare, told

pytestmark = pytest.mark.slow


def test_every_output_in_the_guide(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the page, in order, prints what follows it, but for times, sizes and the machine.

    After a change of what is printed `python -m tests.cli.guide` writes the page anew.
    """
    prepare(cli.folder)
    for name in ("FLUJO_STATE_URI", "FLUJO_CODE"):
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(str(cli.folder))
    monkeypatch.delitem(sys.modules, "shop", raising=False)

    def call(args: list[str]) -> str:
        said = cli(*args)
        return said.out + said.err

    wrong = []
    for block in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        for command, expected in entries(block):
            environment: dict[str, str] = {}
            printed = perform(command, call, environment)
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            if told(printed) != told(expected):
                wrong.append(f"$ {command}\nprints\n{told(printed)}\nand the page says\n{told(expected)}")
    monkeypatch.delitem(sys.modules, "shop")
    assert wrong == [], "\n".join(wrong)


def test_another_output_would_be_noticed() -> None:
    """Times and sizes are let pass; other words, numbers and lines are not."""
    assert told("a  ok    12 ms  3\n") == told("a ok 3.4 s 3\n")
    assert told("a  ok    12 ms  3\n") != told("a ok 12 ms 4\n")
    assert told("python  ok   3.11.7 on Linux\n") == told("python ok 3.13.0 on Darwin\n")
    assert told("python  BAD  3.11.7 on Linux\n") != told("python ok 3.11.7 on Linux\n")
    assert told("one\n") != told("one\ntwo\n") and told("x" * 300) == told("x" * (WIDTH - 3) + "...")
