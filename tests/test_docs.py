"""Every code block of the documentation is run, and prints what the page says that it prints.

The rules for a page (README.md, CONTRIBUTING.md, docs/**/*.md):

* Every fence says what it holds. ```python is run: the blocks of a page in order, in one namespace, in one
  process of its own whose working directory is empty.
* ```text straight after a ```python block, or ```output with prose between them, is exactly what the block
  prints. A block without either may print what it likes.
* ```console shows commands to type. They are not run, but a `make` target that is named must exist.
* ```python no-run needs an entry in NO_RUN, with a reason.

Docstrings of the source are held to the same: their fences are run, and their `>>>` examples too.
"""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")) if path.exists()
)
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# (page, first line of the block) -> why it cannot be run.
_SERVED = "it needs a server: tests/stores/test_postgres.py runs it"
NO_RUN: dict[tuple[str, str], str] = {
    ("docs/guides/postgres.md", "from flujo import Flujo, step"): _SERVED,
    ("docs/guides/postgres.md", "print(PostgresBackend.migrations_sql())"): _SERVED,
    ("docs/guides/postgres.md", "import psycopg"): _SERVED,
    ("docs/guides/postgres.md", 'WHO = """'): _SERVED,
}

TIME_LIMIT = 120  # s for the blocks of one page; generous, since the machine may be shared

# Runs blocks given as JSON on standard input; answers with what each one printed, in the file named there.
# File descriptor 1 is redirected, not sys.stdout, so that what a child process prints counts too. The
# namespace is the real __main__, so that annotations and pickles of what a block defines can be resolved.
DRIVER = """
import json, os, sys, tempfile, types
job = json.load(sys.stdin)
sys.modules["__main__"] = main = types.ModuleType("__main__")
printed = []
terminal = os.dup(1)
for block in job["blocks"]:
    with tempfile.TemporaryFile() as capture:
        os.dup2(capture.fileno(), 1)
        try:
            code = compile("\\n" * block["line"] + block["text"], job["file"], "exec", dont_inherit=True)
            exec(code, main.__dict__)
        finally:
            sys.stdout.flush()
            os.dup2(terminal, 1)
        capture.seek(0)
        printed.append(capture.read().decode())
    with open(job["answer"], "w") as answer:
        json.dump(printed, answer)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One fenced block: `line` is its opening fence's, from 1; `adjacent`: only blanks after the last."""

    info: str
    text: str
    line: int
    adjacent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block to run, and what it has to print (None: anything)."""

    text: str
    line: int
    expected: str | None


def fences(text: str, first_line: int = 1) -> Iterator[Fence]:
    """Read the fenced blocks of a Markdown text; a fence may be indented, as within a list."""
    opening: re.Match[str] | None = None
    body: list[str] = []
    start, adjacent = 0, False
    for number, line in enumerate(text.splitlines(), start=first_line):
        if opening is None:
            opening = re.match(r"(\s*)(`{3,}|~{3,})\s*([^`]*)$", line)
            start, body = number, []
            if opening is None and line.strip():
                adjacent = False
        elif re.match(rf"\s*{opening[2][0]}{{{len(opening[2])},}}\s*$", line):
            content = textwrap.dedent("".join(f"{row}\n" for row in body))
            yield Fence(info=opening[3].strip(), text=content, line=start, adjacent=adjacent)
            opening, adjacent = None, True
        else:
            body.append(line)
    assert opening is None, f"line {start}: a fence that is never closed"


def blocks(name: str, found: list[Fence]) -> list[Block]:
    """Return what is to be run of one page, each with what it has to print."""
    result = []
    for index, fence in enumerate(found):
        where = f"{name}:{fence.line}"
        language, _, rest = fence.info.partition(" ")
        assert language, f"{where}: a fence says what it holds; say text if it is nothing else"
        assert language not in ("py", "python3", "pycon", "Python"), f"{where}: write ```python"
        if language == "output":
            assert index and found[index - 1].info == "python", f"{where}: the output of what?"
        if language != "python":
            continue
        if rest == "no-run":
            key = (name, fence.text.partition("\n")[0])
            assert key in NO_RUN, f"{where}: {key!r} needs an entry in NO_RUN of tests/test_docs.py, with a reason"
            continue
        assert not rest, f"{where}: unknown words after python: {rest}"
        following = found[index + 1] if index + 1 < len(found) else None
        if following and (following.info == "output" or (following.info == "text" and following.adjacent)):
            result.append(Block(text=fence.text, line=fence.line, expected=following.text))
        else:
            result.append(Block(text=fence.text, line=fence.line, expected=None))
    return result


def run(file: Path, todo: list[Block], folder: Path) -> None:
    """Run blocks in order in a process of their own and compare what they print."""
    work, answer = folder / "cwd", folder / "printed.json"
    work.mkdir()
    job: dict[str, Any] = {
        "file": str(file),
        "answer": str(answer),
        "blocks": [{"text": block.text, "line": block.line} for block in todo],
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUJO_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER],
        input=json.dumps(job),
        cwd=work,
        env=environment | {"HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    printed = json.loads(answer.read_text(encoding="utf-8"))
    for block, text in zip(todo, printed, strict=True):
        if block.expected is not None:
            assert text == block.expected, f"{file.name}:{block.line} prints something else"


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring of one source file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node, clean=True)
        if text is not None:
            yield node.body[0].lineno, text


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_run(page: Path, tmp_path: Path) -> None:
    """Every python block of the page runs, in order, and prints what the page says."""
    todo = blocks(page.relative_to(ROOT).as_posix(), list(fences(page.read_text(encoding="utf-8"))))
    if todo:
        run(page, todo, tmp_path)


@pytest.mark.slow
def test_docstrings_run(tmp_path: Path) -> None:
    """Every python block in a docstring of the source runs, and every `>>>` example gives what it says."""
    for number, path in enumerate(SOURCES):
        name = path.relative_to(ROOT).as_posix()
        for line, text in docstrings(path):
            todo = blocks(name, list(fences(text, line)))
            examples = doctest.DocTestParser().get_examples(text)
            if examples:
                todo.append(Block(text=_doctest_program(text, name, line), line=line, expected=""))
            if todo:
                folder = tmp_path / f"{number}-{line}"
                folder.mkdir()
                run(path, todo, folder)


def _doctest_program(text: str, name: str, line: int) -> str:
    """Return a program that prints what is wrong with the examples of a text, and nothing if all is well."""
    return (
        "import doctest\n"
        f"_test = doctest.DocTestParser().get_doctest({text!r}, {{}}, {name!r}, {name!r}, {line})\n"
        "doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(_test)\n"
    )


def test_no_run_has_no_stale_entry() -> None:
    """Every entry of NO_RUN names a block that is still there, and gives a reason."""
    present = {
        (page.relative_to(ROOT).as_posix(), fence.text.partition("\n")[0])
        for page in PAGES
        for fence in fences(page.read_text(encoding="utf-8"))
        if fence.info == "python no-run"
    }
    assert set(NO_RUN) <= present
    assert all(NO_RUN.values())


def test_commands_exist() -> None:
    """Every `make` target that a page names is one of the Makefile's."""
    targets = set(re.findall(r"^([.\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = [fence.text for fence in fences(text) if fence.info == "console"]
        named = re.findall(r"`make ([a-z-]+)`", text)
        named += re.findall(r"^(?:\$ )?make ([a-z-]+)", "".join(shown), re.MULTILINE)
        assert set(named) <= targets, page.name


def test_links_lead_somewhere() -> None:
    """Every relative link of a page leads to a file of the project."""
    missing = []
    for page in PAGES:
        prose = re.sub(r"^(\s*)(`{3,}).*?^\s*\2\s*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists():
                missing.append(f"{page.relative_to(ROOT)}: {link}")
    assert missing == []


def test_a_page_is_read_as_the_rules_say() -> None:
    """Fences of any length, indented ones too, are read; text counts as output only straight after."""
    page = (
        "a\n````python\n'```'\n````\n\n```text\nout\n```\n"
        "- b\n\n  ~~~python\n  if 1:\n      2\n  ~~~\n\nc\n\n```text\nx\n```\n"
    )
    first, second = blocks("page", list(fences(page)))
    assert (first.text, first.line, first.expected) == ("'```'\n", 2, "out\n")
    assert (second.text, second.line, second.expected) == ("if 1:\n    2\n", 11, None)


@pytest.mark.slow
def test_a_block_that_prints_something_else_is_noticed(tmp_path: Path) -> None:
    """What a block prints is compared exactly, a child process's output included; names live on."""
    page = tmp_path / "page.md"
    blocks_ = [
        Block(text="import os\nx = 1\n", line=1, expected=""),
        Block(text="os.system(f'echo {x}')\nprint(__name__)\n", line=9, expected="1\n__main__\n"),
    ]
    run(page, blocks_, tmp_path)
    (tmp_path / "again").mkdir()
    wrong = [Block(text="print(1)\n", line=1, expected="2\n")]
    with pytest.raises(AssertionError, match="prints something else"):
        run(page, wrong, tmp_path / "again")


@pytest.mark.slow
def test_a_block_that_fails_is_shown_with_its_line(tmp_path: Path) -> None:
    """A failing block fails the page, with a traceback that names the line of the page; so does a warning."""
    page = tmp_path / "page.md"
    page.write_text("```python\n\n1 / 0\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"page.md\", line 3"):
        run(page, [Block(text="\n1 / 0\n", line=1, expected=None)], tmp_path)
    (tmp_path / "again").mkdir()
    with pytest.raises(AssertionError, match="UserWarning"):
        run(
            page,
            [Block(text="import warnings\nwarnings.warn('x')\n", line=1, expected=None)],
            tmp_path / "again",
        )
