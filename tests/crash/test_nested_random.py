"""Random nested pipelines, killed at random points: nothing that was saved is done again, and nothing comes out
otherwise than without the kills. What is expected comes from interpreting a pipeline's description directly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.crash_forks import Forks
from tests.support.nested_harness import Harness
from tests.support.nested_samples import EVERYTHING
from tests.support.nested_strategy import kills, specs

WAYS = {"sqlite": "async", "inline": "inline", "stock": "inline", "file": "async"}  # how each is run
SHARES = {"sqlite": 100, "inline": 70, "stock": 70, "file": 60}


def survives(harness: Harness, **options: Any) -> None:
    """Let hypothesis look for a pipeline and kills that it does not survive."""

    @settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], **options)
    @given(spec=specs(), deaths=kills())
    def never_fails(spec: Any, deaths: Any) -> None:
        assert harness.run(spec, deaths) == []

    never_fails()


def harness_of(way: str, forks: Forks, folder: Path) -> Harness:
    return Harness(forks, folder, "sqlite" if way == "inline" else way, WAYS[way])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_nested_pipeline_survives_any_kills(forks: Forks, tmp_path: Path, way: str) -> None:
    """300 pipelines of parallels, maps, branches, loops, fallbacks and pipelines in one another, whose processes are
    killed or terminated up to four times a run: the output, the context and the history are those of an unkilled run,
    nothing that was saved is called again, no decision is asked for again, and a call is repeated at most as often as
    it was under way at a death. On SQLite (saved by the store's thread, and by the loop's own) and on files.
    """
    harness = harness_of(way, forks, tmp_path)
    survives(harness, max_examples=SHARES[way])
    print(
        f"{way}: {harness.runs} runs, {harness.killed.total()} deaths {dict(harness.killed)}, {harness.within} within"
    )
    assert harness.runs >= SHARES[way]
    assert harness.killed.total() >= SHARES[way] / 2  # else they come too late to find anything
    assert harness.within >= SHARES[way] / 5


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS)
def test_a_nested_pipeline_survives_any_kills_again(forks: Forks, tmp_path: Path, way: str) -> None:
    """As above, with as many pipelines as the profile says: 5,000 under torture."""
    survives(harness_of(way, forks, tmp_path))


POINTS = 12


def found_at_many_points(forks: Forks, folder: Path, kind: str) -> list[str]:
    """Kill a pipeline of all kinds at points all over it, and return all that the harness finds wrong."""
    harness = Harness(forks, folder, kind)
    every = [("line", 100 * point // POINTS, 9) for point in range(POINTS)]
    found = [fault for death in every for fault in harness.run(EVERYTHING, [death])]
    assert harness.killed.total() >= POINTS - 2
    return found


@pytest.mark.slow
def test_the_right_engine_is_found_right(forks: Forks, tmp_path: Path) -> None:
    """The control of the controls: with a store that does as it should nothing is found."""
    assert found_at_many_points(forks, tmp_path, "sqlite") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("forgetful", "was called after its end was saved"),
        ("undecided", ">choice') was called after its end was saved"),
        ("undecided", ">exit') was called after its end was saved"),
        ("hasty", "was called after its end was saved"),
        ("unmerged", "the context is"),
    ],
)
def test_a_wrong_store_is_found_out(forks: Forks, tmp_path: Path, kind: str, fault: str) -> None:
    """Controls: a store that loses some records of sub-steps, or those of decisions, or what a join or a branch did to
    the context, and one that acknowledges before it has saved, are all found out by kills."""
    assert any(fault in found for found in found_at_many_points(forks, tmp_path, kind))
