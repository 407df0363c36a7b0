"""Equal sets are written alike, whatever order they iterate in."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest

from flujo import Flujo, InMemoryBackend, step
from flujo.state import Codec

CODEC = Codec()


@dataclass
class Tagged:
    tags: set[int]


@pytest.mark.parametrize("kind", [set, frozenset])
def test_equal_sets_are_written_alike(kind: Any) -> None:
    """Sets with colliding items iterate in the order of insertion; their JSON does not tell."""
    one, other = kind([0, 8, 16]), kind([16, 8, 0])
    assert one == other and list(one) != list(other)
    assert CODEC.encode(one) == CODEC.encode(other)
    assert CODEC.encode([Tagged(set(one))]) == CODEC.encode([Tagged(set(other))])
    assert CODEC.decode(CODEC.encode(one)) == one and type(CODEC.decode(CODEC.encode(other))) is kind


def test_sets_of_anything_can_be_written() -> None:
    """Items need not be comparable with one another, nor be JSON."""
    value = {1, "1", (2, "x"), None, 1.5, frozenset({8, 0}), float("inf"), 2**70, b"x"}
    assert CODEC.decode(CODEC.encode(value)) == value


def test_the_same_input_again_is_no_other_input() -> None:
    """A set among the input, with a NaN that equals nothing, is recognised when the run is called again."""

    @step
    async def count(given: dict[str, Any]) -> int:
        return len(given)

    backend = InMemoryBackend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for items in ([0, 8], [8, 0]):
            given = {"set": set(items), "nan": float("nan")}
            assert Flujo(count, state_backend=backend).run(given, run_id="r").output == 2
