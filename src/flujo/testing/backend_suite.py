"""The conformance suite: tests that anyone points at a backend, by what it is capable of."""

from __future__ import annotations

from flujo.testing.suite.basic import BasicTests
from flujo.testing.suite.durable import DurableTests, SharedFenceTests
from flujo.testing.suite.mailing import GuardTests, MailTests
from flujo.testing.suite.nested import NestedTests
from flujo.testing.suite.owning import ClaimTests, FenceTests
from flujo.testing.suite.reading import ReadingTests
from flujo.testing.suite.running import RunningTests

__all__ = ["BackendSuite"]


class BackendSuite(
    BasicTests, NestedTests, RunningTests, ClaimTests, FenceTests, MailTests, GuardTests, ReadingTests, DurableTests,
    SharedFenceTests,
):  # fmt: skip
    """What every backend has to pass. Derive a class of tests from it, at the top of a test module, for pytest to find.

    ```python
    from pathlib import Path

    from flujo import SQLiteBackend, StateBackend
    from flujo.testing import BackendSuite

    class TestMine(BackendSuite):
        def make(self, place: Path) -> StateBackend:
            return SQLiteBackend(place / "runs.db")
    ```

    `make` returns a backend on a store that belongs to the folder `place`, which is empty at first. It is called again
    with the same folder where a second backend object, or another process, is to open the same store; so a store that
    lies elsewhere (a server) is to be named after `place`, and found by nothing but `place` and the environment.

    What a backend of only the three methods must do is tested of all. What is more is tested where the backend has it,
    and skipped, with the reason, where it has not: claims of its own, where it overrides `claim`; Reading, where it is
    derived from that.

    Attributes to set in the derived class: `durable`, False for a store that a second object or process cannot open
    (one in memory); `fenced` and `reads`, whether the backend is meant to have claims of its own and to be Reading,
    so that a capability that got lost is a failure and no skipped test. Each failure says what is wrong in words.
    """
