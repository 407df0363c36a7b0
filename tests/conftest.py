"""What holds for every test: no settings from outside, no hidden slow test, no flaky deadline."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import hypothesis
import pytest

SLOW = 0.25  # s; from here on a test belongs under `slow`
TOO_SLOW = 2.0  # s; not marked, it fails. Eight times as much, since the machine may be shared

# A developer's own store must neither be used by a test nor change what one sees.
for _name in [name for name in os.environ if name.startswith("FLUJO_") and name != "FLUJO_TEST_POSTGRES"]:
    del os.environ[_name]

# A deadline measures the machine's neighbours. In CI the same examples run each time.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("torture", deadline=None, max_examples=5_000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def _may_be_slow(keywords: object) -> bool:
    return any(mark in keywords for mark in ("slow", "torture"))  # type: ignore[operator]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that passed, took over two seconds, and does not say that it is slow."""
    report = yield
    if call.when == "call" and report.passed and call.duration > TOO_SLOW and not _may_be_slow(item.keywords):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {call.duration:.2f} s. Make it quicker (virtual time, fewer repetitions), "
            f"or mark it with @pytest.mark.slow, which is due from {SLOW} s on."
        )
    return report


def pytest_sessionfinish() -> None:
    """Delete what tests have made on a PostgreSQL server that is not theirs."""
    served = sys.modules.get("tests.support.postgres")
    if served is not None:
        served.sweep()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that ought to be marked slow, before they fail on a busier machine."""
    hidden = [
        report
        for report in terminalreporter.stats.get("passed", [])
        if report.when == "call" and report.duration > SLOW and not _may_be_slow(report.keywords)
    ]
    if hidden:
        terminalreporter.section(f"over {SLOW} s and not marked slow")
        for report in sorted(hidden, key=lambda report: -report.duration):
            terminalreporter.line(f"{report.duration:6.2f} s  {report.nodeid}")
