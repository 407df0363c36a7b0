"""Random pipelines in which all kinds of steps wait at once, driven by random turns: they come to what they have to."""

from __future__ import annotations

import collections
from random import Random

import pytest

from tests.support.backends import Place
from tests.support.nested_runs import paths
from tests.support.waiting_random import Built, Driver, Spec, drawn, expected

DEPTH = 2


def played(place: Place, seed: int, *, stops: float) -> tuple[int, list[Spec]]:
    """Play one, prove that all is well, and return how many of its stores have failed."""
    rng = Random(seed)
    steps = drawn(rng, DEPTH, [])
    built = Built(steps)
    driver = Driver(place, built, rng, f"run {seed}", stops=stops)
    result = driver.run(5)
    assert (result.status, result.output) == ("completed", expected(steps, 5)), (seed, steps, result)
    done = paths(result)
    assert len(done) == len(set(done)), seed
    calls = collections.Counter(built.calls)
    succeeded = [call for call in calls if call in done]
    assert len(succeeded) == len(calls), (seed, set(calls) - set(done))
    if not driver.stopped:
        failures = sum(int(record.attempts > 1) * (record.attempts - 1) for record in result.step_history)
        assert calls.total() == len(calls) + failures, (seed, calls)
    return driver.stopped, steps


@pytest.mark.slow
@pytest.mark.parametrize("stops", [0.0, 0.3])
def test_random_pipelines(place: Place, stops: float) -> None:
    """Whatever is answered, sent or due first, and wherever stores fail in between, the output is the one that the
    pipeline has to have; no step that is on record was done again, no answer and no signal is lost or used twice."""
    count = 40 if place.kind == "memory" else 8
    stopped = sum(played(place, seed, stops=stops)[0] for seed in range(count))
    assert (stopped > 0) == (stops > 0)


@pytest.mark.torture
@pytest.mark.parametrize("first", range(0, 4000, 200))
def test_random_pipelines_again(place: Place, first: int) -> None:
    """As above, with many more."""
    for seed in range(first, first + (200 if place.kind == "memory" else 20)):
        played(place, 1_000_000 + seed, stops=0.3 * (seed % 2))
