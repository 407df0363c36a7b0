"""The help tells the truth: it names what exists, has an example, and the guide has a line for every command."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

import flujo.cli
from flujo.cli.app import command_names, make_app
from tests.cli.conftest import ROOT, Cli

GUIDE = ROOT / "docs" / "guides" / "operating.md"
OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)")
PAGES = [GUIDE, ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(make_app()).commands  # type: ignore[attr-defined]


def options_of(name: str) -> set[str]:
    """Return the options that a command has."""
    return {text for parameter in COMMANDS[name].params for text in parameter.opts if text.startswith("-")} | {
        "--help",
        "-h",
    }


def help_of(cli: Cli, name: str) -> str:
    return cli.ok(name, "--help")


@pytest.mark.parametrize("name", command_names())
def test_every_option_that_a_help_names_exists(cli: Cli, name: str) -> None:
    """In the text and the example: an option of this command, or of the one that is called."""
    text = help_of(cli, name)
    body, _, example = text.partition("Example:")
    every = set().union(*map(options_of, COMMANDS))
    for option in OPTION.findall(body):
        assert option in options_of(name) or ("flujo" in body and option in every), option
    assert wrong_examples(example) == []


def wrong_examples(text: str) -> list[str]:
    """Return the calls of flujo in a text that name a command or an option which does not exist."""
    found = []
    for call in re.findall(r"\bflujo ((?:[^\n&|;#>`]|(?<=\\)\n)+)", text):
        words = call.split()
        options = OPTION.findall(re.sub(r"'[^']*'|\"[^\"]*\"", "", call))
        if words[0] not in COMMANDS or not set(options) <= options_of(words[0]):
            found.append(call)
    return found


@pytest.mark.parametrize("name", command_names())
def test_every_command_has_an_example_and_the_common_options(cli: Cli, name: str) -> None:
    """Each help ends with calls of that very command, and each command has --json and --traceback."""
    _, there, example = help_of(cli, name).partition("Example:")
    assert there and f"flujo {name}" in example
    assert {"--json", "--traceback", "--state"} <= options_of(name)
    summary = COMMANDS[name].help
    assert summary and summary.split("\n")[0].rstrip().endswith(".")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_commands_and_options_that_exist(page: Path) -> None:
    """In the guides' blocks and in `flujo ...` in their prose."""
    text = page.read_text(encoding="utf-8")
    calls = re.findall(r"^\$ (flujo .*)$", text, re.M) + re.findall(r"`(flujo [a-z][^`]*)`", text)
    assert [found for call in calls for found in wrong_examples(call)] == []


def test_what_is_wrong_would_be_noticed() -> None:
    """The check sees a command or an option that does not exist."""
    assert wrong_examples("flujo shwo A1") and wrong_examples("flujo show A1 --fulll")
    assert not wrong_examples("flujo show A1 --full | head\nflujo list --limit 3 # --nothing")


def test_the_guide_has_a_line_for_every_command() -> None:
    """Each command is called in it, and listed with its options' meaning nowhere else."""
    text = GUIDE.read_text(encoding="utf-8")
    called = set(re.findall(r"^\$ flujo ([a-z]+)", text, re.M))
    assert set(command_names()) - called == set()


def test_the_root_help_lists_every_command(cli: Cli) -> None:
    """`flujo` alone is `flujo --help`; it names the commands and the exit statuses."""
    text = cli.ok("--help")
    assert cli.ok() == text
    listed = re.findall(r"^  ([a-z]+)  ", text[text.index("Commands:") :], re.M)
    assert listed == command_names()
    statuses = " ".join(text.split()).partition("Exit status: ")[2]
    assert [statuses.find(f"{code} ") >= 0 for code in (0, 1, 2, 3, 4, 5, 130)] == [True] * 7


def test_completion(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell is told commands, options, statuses, and the ids of runs."""
    cli.order("A1")
    cli.order("B2")

    def completed(*words: str) -> str:
        monkeypatch.setenv("_FLUJO_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("flujo", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        said = cli()
        monkeypatch.delenv("_FLUJO_COMPLETE")
        return said.out

    assert completed("fai").split() == ["failures"]
    assert completed("show", "").split() == ["B2", "A1"] and completed("show", "A").split() == ["A1"]
    assert "--limit" in completed("list", "--l")
    assert completed("list", "--status", "can").split() == ["cancelled"]
    monkeypatch.setenv("FLUJO_STATE_URI", "sqlite:///none.db")
    assert completed("show", "").strip() == ""


def test_the_command_is_installed() -> None:
    """`flujo` is a script of the project, and what it calls is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"flujo": "flujo.cli:main"}
    assert flujo.cli.__all__ == ["main"]
    assert {line.partition(">")[0] for line in project["dependencies"]} >= {"rich", "typer"}
