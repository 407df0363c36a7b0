"""Backends that are wrong fail the suite, each at the tests that are about its flaw, which say what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flujo.testing import BackendSuite
from tests.support import wrong_backends as wrong
from tests.support.mutants import FLAWS, suite_of
from tests.support.suites import NAMES, outcome, outcomes

# The six that the suite was made for: what fails, and what it says (a regular expression).
SAYS: dict[type[BackendSuite], dict[str, str]] = {
    wrong.LosesTheLastSaveSuite: {
        "test_each_step_is_saved_before_the_next_one_starts": "when steps 0, 1 and 2 began.*expected 1, found None",
        "test_a_second_backend_sees_everything": "None for run 'run', which was saved",
        "test_a_killed_process_loses_nothing": "acknowledged save 5 and was killed; the newest state is that of save 4",
    },
    wrong.SwallowsErrorsSuite: {
        "test_a_save_that_returns_is_made": "save_state returned, though .* cannot be stored.*an error was swallowed",
        "test_a_full_disk_is_an_error": "save_state returned, though the disk is full.*an error was swallowed",
    },
    wrong.IgnoresTheFenceSuite: {
        "test_an_old_fence_is_refused": "save 2 with an old fence ought to raise FencedError, but raised nothing",
        "test_a_made_up_fence_is_refused": "a save of an unknown run, with a fence ought to raise FencedError",
        "test_a_gap_in_the_saves_is_refused": "a first save with rev 2 ought to raise FencedError",
    },
    wrong.ForgetsToAwaitSuite: {
        "test_the_ten_fields_come_back": "save_state returned before the save was made. Is everything in it awaited",
        "test_a_subclass_sees_every_checkpoint": "save_state returned before the save was made",
    },
    wrong.MixesUpRunsSuite: {
        "test_run_ids_that_look_alike": "not the state of run 'run'.*it is run 'RUN''s",
    },
    wrong.MixesUpRunsAtOnceSuite: {
        "test_many_runs_at_once": r"run '?\d+/\d+",
    },
    wrong.LosesItsMailSuite: {
        "test_messages_come_back_in_their_order": "the numbers of three messages do not count up",
        "test_a_paused_run_with_mail_is_claimed": "a paused run that has unread mail was not claimed",
        "test_mail_outlives_the_backend": "the mail as a second backend finds it",
    },
    wrong.TuplesAsListsSuite: {
        "test_values_come_back_exactly_from_a_run": (
            r"output that a step got.*at \['tuple'\]: expected \(1.*\), found \[1.*\(tuple, not list\)"
        ),
        "test_values_come_back_exactly_by_hand": r"output, at \['tuple'\]: expected \(1.*\(tuple, not list\)",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("suite", SAYS, ids=lambda suite: suite.__name__.removesuffix("Suite"))
def test_a_wrong_backend_fails(suite: type[BackendSuite], tmp_path: Path) -> None:
    """The tests about its flaw fail and say so in words; where the flaw is a narrow one most others pass."""
    found = outcomes(suite, tmp_path)
    failed = {name: text for name, text in found.items() if text}
    for name, says in SAYS[suite].items():
        assert re.search(says, failed.get(name, "it passed"), re.DOTALL), f"{name}: {failed.get(name)}"
    passed = [name for name, text in found.items() if text == ""]
    assert len(passed) > 2 * len(failed) or suite is wrong.ForgetsToAwaitSuite, failed


def test_every_test_of_the_suite_has_a_flaw_to_find() -> None:
    """There is a wrong backend for each test of the suite: none of them is there for nothing."""
    assert sorted(FLAWS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_test_of_the_suite_finds_its_flaw(name: str, tmp_path: Path) -> None:
    """Each test fails for the backend whose flaw it is about."""
    for number, flaw in enumerate(FLAWS[name]):
        says = outcome(suite_of(flaw), name, tmp_path / str(number))
        assert says, f"{name} {'was skipped' if says is None else 'passed'} for {flaw}"
