"""What the pages point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """Return the fragments that the headings of a page can be linked by."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the project names one that is there, and a heading that it has."""
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_are_there(page: Path) -> None:
    """Every path of the project that a page shows in code is there."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"`((?:src|tests|docs|examples|benchmarks)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_tour_names_files_of_the_folder_that_it_speaks_of() -> None:
    """The bare file names of the architecture page are files of the source."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    there = {path.name for path in (ROOT / "src").rglob("*") if path.is_file()}
    assert [name for name in re.findall(r"`(\w+\.(?:py|sql))`", text) if name not in there] == []


def test_every_decision_is_in_the_index() -> None:
    """docs/adr/README.md has every record, and each has its four parts."""
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    records = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert [path.name for path in records if f"({path.name})" not in index] == []
    for path in records:
        text = path.read_text(encoding="utf-8")
        parts = ["Status: ", "## Context", "## Decision", "## Consequences"]
        assert [part for part in parts if part not in text] == [], path.name


def test_nothing_is_installed_by_a_name_that_belongs_to_others() -> None:
    """No page tells anybody to install flujo from an index, where the name is an unrelated project's."""
    told = re.compile(r"(?:pip|uv|pipx|poetry|pdm)\s+(?:pip\s+)?(?:install|add)\s+(?:-\S+\s+)*flujo\b")
    assert [page.name for page in PAGES if told.search(page.read_text(encoding="utf-8"))] == []
    assert told.search("pip install -U flujo") and told.search("uv add flujo")
