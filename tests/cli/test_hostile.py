"""Nothing that a run says reaches the terminal as anything but text, in any command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from flujo.cli.output import Screen, facts, short, styled, table
from tests.cli.conftest import Cli

pytestmark = pytest.mark.slow

RUN = "[bold red]x[/] :smile: [link=file:///etc]"
MODULE = r"""
from flujo import Flujo, SQLiteBackend, Step, step
EVIL = "\x1b]0;owned\x07\x1b[2J[red]\u202e\r\n\x9b31m"

@step(name=":smile: <b first")
async def first(value: str) -> str:
    return EVIL

@step(name="@{second}")
async def second(value: str) -> str:
    if value == EVIL:
        raise ValueError(EVIL)
    return value

pipeline = (first >> second).named("[reverse]p")
asks = (first >> Step.human_in_the_loop(":bomb: ask", EVIL, str)).named("[reverse]q")
"""


def harmless(text: str) -> None:
    """Fail where a terminal would do anything but show the text."""
    acting = [char for char in text if (ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160 or char == "\u202e"]
    assert acting == [], text


@pytest.fixture
def evil(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """A store with a run whose names, outputs and errors are full of escapes and markup."""
    Path("evil.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(cli.folder))
    monkeypatch.setenv("FLUJO_CODE", "evil:pipeline")
    return cli


def test_every_command_shows_text_as_text(evil: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escapes are shown as numbers, markup as it is written, in listings, trees, errors and help alike."""
    said = evil("run", "--run-id", RUN, "--input", "x")
    assert said.code == 1 and ":smile: <b first" in said.out and "\\x1b]0;owned\\x07" in said.out
    commands = [
        ["list"], ["show", RUN], ["show", RUN, "--full"], ["failures"], ["stats"], ["watch", RUN, "--once"],
        ["plan", RUN], ["why", RUN], ["messages", RUN], ["diff", RUN, RUN], ["graph", "--run", RUN], ["du"],
        ["du", RUN],
        ["verify"], ["gc", "--days", "0", "--status", "failed", "--dry-run"], ["check"],
    ]  # fmt: skip
    for command in commands:
        said_ = evil(*command)
        harmless(said_.out + said_.err)
        harmless(json.dumps(evil(*command, "--json").json))
        if command[0] in ("list", "show", "failures", "watch"):
            assert RUN in said_.out, command
    monkeypatch.setenv("FLUJO_CODE", "evil:asks")
    evil("run", "--run-id", "asks", "--input", "x")
    out = evil.ok("inbox")
    assert ":bomb: ask" in out
    harmless(out)


def test_what_is_typed_is_shown_as_text(evil: Cli) -> None:
    """A mistake is repeated without what a terminal would obey."""
    evil("run", "--run-id", RUN, "--input", "x")
    for args in (["show", "\x1b[31m"], ["\x1b[31m"], ["list", "--\x1b[31m"], ["show", "x", "--state", "\x1b[2J.db"]):
        said = evil(*args)
        assert said.code in (2, 3, 5)
        harmless(said.err)


def test_on_a_terminal_only_our_own_escapes_are_written() -> None:
    """Rich's markup, its emoji and links are not read where it draws in colours either."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    sink = Terminal()
    screen = Screen(sink)
    screen.console._color_system = None
    evil = "[red]x[/] :smile: [link=file:///x]y[/link] \x1b[31m"
    screen.show(table(["a"], [[evil]]), facts({"b": evil}), styled("failed", evil), short(evil, 200))
    text = sink.getvalue()
    assert text.count("[red]x[/] :smile: [link=file:///x]y[/link] ") == 4 and "\x1b[31m" not in text
    assert text.count("\\x1b[31m") == 3 and "\\\\x1b" not in text.split("\n")[0]
