"""Running the conformance suite from a test, to see what it says of a backend."""

from __future__ import annotations

import unittest
import warnings
from pathlib import Path

from flujo.testing import BackendSuite

NAMES = sorted(name for name in dir(BackendSuite) if name.startswith("test_"))


def outcome(suite: type[BackendSuite], name: str, place: Path) -> str | None:
    """Run one test of the suite in a folder of its own: '' if it passed, None if skipped, else what it says."""
    place.mkdir()
    made = suite()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a wrong backend never awaited
            getattr(made, name)(place)
    except unittest.SkipTest:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        made.teardown_method()
    return ""


def outcomes(suite: type[BackendSuite], place: Path) -> dict[str, str | None]:
    """Run the whole suite."""
    return {name: outcome(suite, name, place / name) for name in NAMES}
