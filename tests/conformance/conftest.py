from __future__ import annotations

import pytest

# Tests of the suite that start other processes, or very many runs: `slow` in the words of tests/conftest.py.
SLOW = (
    "process",
    "full_disk",
    "dead_owner",
    "many_runs",
    "runs_are_kept",
    "pages",
    "one_of_many",
    "cancelled_at",
    "every_status",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is inherited from the suite, which knows nothing of this project's marks."""
    for item in items:
        if "conformance" in item.path.parts and any(word in item.name for word in SLOW):
            item.add_marker(pytest.mark.slow)
