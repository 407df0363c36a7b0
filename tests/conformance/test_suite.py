"""The suite as a user meets it: imported, derived from, and run by pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flujo import InMemoryBackend, StateBackend
from flujo.testing import BackendSuite, backend_suite
from flujo.testing.suite.expect import difference
from flujo.testing.suite.values import plain, samples
from tests.support.reference_backends import Fenced, Text
from tests.support.suites import NAMES, outcome

MODULE = """
    import json
    from pathlib import Path

    from flujo.state.backends.base import StateBackend
    from flujo.testing import BackendSuite

    class Mine(StateBackend):
        def __init__(self, folder):
            self.folder = folder

        def file(self, run_id):
            return self.folder / (run_id.encode().hex()[:200] + ".json")

        async def save_state(self, run_id, state):
            part = self.folder / (self.file(run_id).stem + ".part")
            part.write_text(json.dumps(state, default=str))
            part.replace(self.file(run_id))

        async def load_state(self, run_id):
            found = self.file(run_id)
            return json.loads(found.read_text()) if found.exists() else None

        async def delete_state(self, run_id):
            self.file(run_id).unlink(missing_ok=True)

    class TestMine(BackendSuite):
        def make(self, place: Path) -> StateBackend:
            return Mine(place)
"""


def python(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    wide = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=folder, env=wide, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_user_points_it_at_a_backend(tmp_path: Path) -> None:
    """One class in a test module is enough: pytest runs, fails and skips, each with its reason in words."""
    (tmp_path / "test_mine.py").write_text(textwrap.dedent(MODULE))
    done = python("-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", "-W", "error", folder=tmp_path)
    summary = done.stdout.splitlines()
    failed = [line for line in summary if line.startswith("FAILED")]
    assert any("test_run_ids_that_look_alike - AssertionError: " in line for line in failed), done.stdout
    assert len(failed) == 1, done.stdout
    for why in ("the backend is not derived from Reading", "the backend does not override `claim`"):
        assert any(line.startswith("SKIPPED") and why in line for line in summary), done.stdout
    assert "passed" in summary[-1]


@pytest.mark.slow
def test_importing_it_imports_no_pytest(tmp_path: Path) -> None:
    """`flujo.testing` needs nothing that is not installed with flujo."""
    done = python("-c", "import flujo.testing, sys; sys.exit('pytest' in sys.modules)", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_its_public_name() -> None:
    """`flujo.testing.backend_suite` holds the suite, and every test of it says what it is about."""
    assert backend_suite.BackendSuite is BackendSuite
    assert len(NAMES) > 50
    assert [name for name in NAMES if not getattr(BackendSuite, name).__doc__] == []


def test_a_capability_that_got_lost_is_a_failure(tmp_path: Path) -> None:
    """What the suite says of the backend is compared with what it shows."""

    class Lost(BackendSuite):
        durable = False
        fenced = reads = True

        def make(self, place: Path) -> StateBackend:
            return Fenced()

    says = outcome(Lost, "test_capabilities_are_whole", tmp_path / "lost")
    assert says == "AssertionError: the suite says reads = True, but the backend shows False."


def test_a_suite_within_a_function(tmp_path: Path) -> None:
    """Another process cannot import it: the failure says what to do."""

    class Local(BackendSuite):
        def make(self, place: Path) -> StateBackend:
            return Text()

    says = outcome(Local, "test_another_process_sees_everything", tmp_path / "local")
    assert says is not None and "must stand at the top of its module" in says


def test_a_suite_without_make(tmp_path: Path) -> None:
    """What is missing is named; what make returns has to be a backend."""

    class Nothing(BackendSuite):
        pass

    class Wrong(BackendSuite):
        def make(self, place: Path) -> StateBackend:
            return InMemoryBackend  # type: ignore[return-value]

    assert "has to define make" in (outcome(Nothing, "test_an_unknown_run_is_none", tmp_path / "1") or "")
    assert "a backend is derived from" in (outcome(Wrong, "test_an_unknown_run_is_none", tmp_path / "2") or "")


def test_values_are_compared_exactly() -> None:
    """Type and value of every part; NaN equals NaN, -0.0 is not 0.0, a tuple is no list, 1 is no True and no 1.0."""
    assert difference(samples(), samples()) is None
    assert difference(plain(), plain()) is None
    for one, other in (
        (1, True), (1, 1.0), (0.0, -0.0), (float("nan"), 1.0), (1.0, float("nan")), ((1,), [1]), ({1}, frozenset({1})),
        ([1, 2], [1]), ({"a": 1}, {"a": 1, "b": 2}), ({1: "a"}, {"1": "a"}), ({1}, {True}), ("a", b"a"), (None, False),
        (1 + 0j, complex(1, -0.0)),
    ):  # fmt: skip
        assert difference(one, other) is not None, (one, other)
        assert difference({"it": [one]}, {"it": [other]}) is not None
    for name, value in samples().items():
        for other_name, other_value in samples().items():
            assert (difference(value, other_value) is None) == (name == other_name), (name, other_name)
    assert difference({"a": [(1,)]}, {"a": [[1]]}) == ", at ['a'][0]: expected (1,), found [1] (tuple, not list)"
