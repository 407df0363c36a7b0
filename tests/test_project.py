"""The habits of CONTRIBUTING.md that a machine can check."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import flujo
from flujo import errors

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "flujo"

MAX_FILE = 400  # lines
MEDIAN_FILE = 200  # lines
MAX_FUNCTION = 60  # lines, from `def` to the last; aim at 40

# The whole public interface. A name is added here on purpose, and taken away with a major version only.
PUBLIC_NAMES: list[str] = [
    "CurrentStep",
    "FileBackend",
    "Flujo",
    "FlujoError",
    "InMemoryBackend",
    "ItemError",
    "Merge",
    "MigratingState",
    "Misfit",
    "NonRetryableError",
    "Pipeline",
    "PipelineRegistry",
    "PipelineResult",
    "Plan",
    "Reconciled",
    "Retry",
    "RunFailedError",
    "SQLiteBackend",
    "StateBackend",
    "Step",
    "StepResult",
    "Why",
    "WorkflowState",
    "check",
    "check_async",
    "current_step",
    "errors",
    "once",
    "open_backend",
    "register_type",
    "step",
]

# Imports inside functions, as "file:imported module": for optional extras, each in one place.
LATE_IMPORTS: set[str] = {"src/flujo/state/uri.py:flujo.state.backends.postgres"}

# A stack of tools that is not installed with the library: these modules may fail to import without it.
NEEDS_AN_EXTRA: tuple[str, ...] = ("flujo.state.backends.postgres",)


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def project_files() -> list[Path]:
    """List what git holds or would add; in a copy without git, what lies where the project's files lie."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        command = [git, "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        paths = [ROOT / name for name in names if name]
    else:
        folders = ("src", "tests", "docs", "examples", "benchmarks", ".ci")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
        paths = [path for path in paths if "__pycache__" not in path.parts] + list(ROOT.glob("*.*"))
    return [path for path in paths if path.is_file()]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_files_are_short() -> None:
    """No source file is longer than 400 lines, and half of them are under 200."""
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}
    assert statistics.median(lengths.values()) < MEDIAN_FILE


def test_functions_are_short() -> None:
    """No function of the source is longer than 60 lines."""
    long = {
        f"{relative(path)}:{function.lineno} {function.name}": length
        for path in sources()
        for function in functions(parse(path))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION
    }
    assert long == {}


def test_every_folder_is_a_package() -> None:
    """Every folder with modules has its `__init__.py`; without one the layers contract would not see it."""
    folders = {path.parent for path in sources()}
    assert sorted(relative(folder) for folder in folders if not (folder / "__init__.py").exists()) == []
    assert (SRC / "py.typed").exists()


def test_imports_stand_at_the_top() -> None:
    """No function imports anything, but for the optional extras that are listed here."""
    found = set()
    for path in sources():
        for function in functions(parse(path)):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    found.add(f"{relative(path)}:{'.' * node.level}{node.module or ''}")
                elif isinstance(node, ast.Import):
                    found |= {f"{relative(path)}:{alias.name}" for alias in node.names}
    assert found == LATE_IMPORTS


def test_no_import_is_for_the_type_checker_only() -> None:
    """Nothing hides behind TYPE_CHECKING: the arrows are the same for the checker and at run time."""
    hiding = [
        f"{relative(path)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    assert hiding == []


def test_public_names_are_frozen() -> None:
    """`flujo.__all__` is exactly the list in this file, sorted, and every name is there."""
    assert flujo.__all__ == PUBLIC_NAMES
    constants_first = sorted(PUBLIC_NAMES, key=lambda name: (not name.isupper(), name))
    assert constants_first == PUBLIC_NAMES
    assert [name for name in PUBLIC_NAMES if not hasattr(flujo, name)] == []


def drawn_tree(drawing: str) -> dict[str, str]:
    """Read a drawn tree as child -> parent, in the order of its lines."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in drawing.splitlines():
        match = re.match(r"((?:│   |    |├── |└── )*)(\w+Error)\b", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        assert depth <= len(above), f"hangs in the air: {line}"
        del above[depth:]
        parents[match[2]] = above[-1] if above else ""
        above.append(match[2])
    return parents


def class_tree(root: type[errors.FlujoError]) -> dict[str, str]:
    """Return the tree of subclasses as child -> parent, depth first, in the order of definition."""
    parents = {root.__name__: root.__base__.__name__ if root is not errors.FlujoError and root.__base__ else ""}
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            parents |= class_tree(child)
    return parents


def test_drawn_errors_are_the_errors() -> None:
    """The tree that opens `flujo/errors.py` has exactly the classes, in the order in which they stand."""
    assert errors.__doc__ is not None
    drawn, real = drawn_tree(errors.__doc__), class_tree(errors.FlujoError)
    assert drawn == real
    assert list(drawn) == list(real)


def test_every_error_has_a_code_of_its_own() -> None:
    """An error's code is its name in kebab case without "Error", so that it is unique and easily found."""
    classes = [getattr(errors, name) for name in class_tree(errors.FlujoError)]
    assert len({cls.code for cls in classes}) == len(classes)
    assert {cls.__name__.lower() for cls in classes} == {cls.code.replace("-", "") + "error" for cls in classes}
    for name, code in {"FlujoError": "flujo", "InvalidRunIdError": "invalid-run-id", "SaveError": "save"}.items():
        assert getattr(errors, name).code == code


def test_errors_are_defined_in_one_place() -> None:
    """No module but `flujo.errors` defines an error of the library."""

    def all_below(cls: type[errors.FlujoError]) -> Iterator[type[errors.FlujoError]]:
        for child in cls.__subclasses__():
            yield child
            yield from all_below(child)

    for module in pkgutil.walk_packages(flujo.__path__, "flujo."):
        if not module.name.endswith("__main__") and not module.name.startswith(NEEDS_AN_EXTRA or "-"):
            importlib.import_module(module.name)
    ours = [cls for cls in all_below(errors.FlujoError) if cls.__module__.split(".")[0] == "flujo"]
    assert [f"{cls.__module__}.{cls.__name__}" for cls in ours if cls.__module__ != errors.__name__] == []


def test_nothing_names_a_place_on_one_machine() -> None:
    """No file of the project mentions an absolute path that exists on its author's machine only."""
    place = re.compile(r"(?<![\w.~$}/-])/(?:work|root)/")
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{relative(path)}:{number}: {line.strip()}"
            for number, line in enumerate(text.splitlines(), start=1)
            if place.search(line)
        ]
    assert found == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"])
def test_project_has_what_a_stranger_looks_for(name: str) -> None:
    """The files that a stranger opens first are there and are not empty."""
    assert (ROOT / name).read_text(encoding="utf-8").strip()
