"""A crash inside of a composite step costs what was in flight, and no more: a real SIGKILL and a second process."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from tests.support.crash_forks import Forks
from tests.support.nested_harness import Harness, Lines, paths, processes
from tests.support.nested_samples import FETCH, deep, over_items

KILL = 9
WAYS = {"sqlite": ("sqlite", "async"), "sqlite inline": ("stock", "inline"), "file": ("file", "async")}


@pytest.fixture(params=WAYS)
def harness(request: pytest.FixtureRequest, forks: Forks, tmp_path: Path) -> Harness:
    """Runs on SQLite, on the store's thread and on the loop's own, and on files."""
    return Harness(forks, tmp_path, *WAYS[request.param])


def repeated(lines: Lines) -> list[tuple[str, ...]]:
    """Return the paths that were called in more than one process, and prove that none of them was known to be saved.

    That nothing was called twice in one process has been proven by `play`.
    """
    first, second = processes(lines)
    assert not set(paths(first, "ack")) & set(paths(second, "begin"))
    return sorted(set(paths(first, "begin")) & set(paths(second, "begin")))


POINTS = [
    *((way, point, 600) for way in ("sqlite", "sqlite inline") for point in ("begin", "end", "ack")),
    ("sqlite", "save", 95),  # of batches of up to eight
    ("sqlite", "saved", 95),
    ("file", "begin", 600),
]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "point", "at"), POINTS)
def test_a_map_over_1000_items_killed_at_item_600(forks: Forks, tmp_path: Path, way: str, point: str, at: int) -> None:
    """The second process does again at most the 8 items that were in flight: no more than 1,008 calls for both."""
    lines = Harness(forks, tmp_path, *WAYS[way]).play(over_items(1000, 8, [FETCH]), [(point, at, KILL)])
    again = repeated(lines)
    assert len(again) <= 8
    calls = collections.Counter(path for path in paths(lines, "begin") if path[0] == "enrich")
    assert len(calls) == 1000
    assert 1000 <= calls.total() <= 1008
    begun = {path for path in paths(processes(lines)[0], "begin") if path[0] == "enrich"}
    assert 590 <= len(begun) <= 650 if at == 600 else 300 <= len(begun) <= 900


@pytest.mark.slow
def test_a_map_of_several_steps_killed_in_the_middle(harness: Harness) -> None:
    """Each of its 100 items goes on at its own step: at most 4 steps are done again, and no item from its start."""
    body = [FETCH, {"kind": "leaf", "name": "score"}, {"kind": "leaf", "name": "store"}]
    lines = harness.play(over_items(100, 4, body), [("end", 160, KILL)])
    assert len(repeated(lines)) <= 4
    assert len(paths(lines, "begin")) <= 301 + 4


@pytest.mark.slow
def test_a_parallel_killed_in_the_middle(harness: Harness) -> None:
    """Of eight branches with six steps each, at most the one step that was in flight in each is done again."""
    branches = {
        f"b{b}": [{"kind": "leaf", "name": f"s{s}", "context": "lines", "reads": True} for s in range(6)]
        for b in range(8)
    }
    spec = [{"kind": "leaf", "name": "first"}, {"kind": "parallel", "name": "fan", "branches": branches}]
    for at in (3, 20, 40):
        lines = harness.play(spec, [("end", at, KILL)])
        again = repeated(lines)
        assert len(again) == len({path[1] for path in again}) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("point", ["begin", "end", "ack"])
def test_a_loop_killed_in_its_50th_iteration(harness: Harness, point: str) -> None:
    """What is done again is one step of that iteration at most; the 49 before it and their decisions are not."""
    body = [{"kind": "leaf", "name": "draft", "context": "lines"}, {"kind": "leaf", "name": "critic", "reads": True}]
    loop = {"kind": "loop", "name": "refine", "times": 80, "limit": 100, "body": body, "plain": True}
    lines = harness.play([loop], [(point, 3 * 49 + 2, KILL)])
    again = repeated(lines)
    assert len(again) <= 1
    assert all(path[1] == "#50" for path in again)
    assert {path[1] for path in paths(processes(lines)[1], "begin")} <= {f"#{n}" for n in range(50, 81)}


@pytest.mark.slow
def test_a_map_inside_a_loop_inside_a_branch_killed_everywhere(harness: Harness) -> None:
    """Killed at every seventh line of its journal: at most the three items in flight, or one step, are done again."""
    whole = len(processes(harness.play(deep(), []))[0])
    for at in range(4, whole - 2, 7 if harness.kind == "sqlite" else 35):
        again = repeated(harness.play(deep(), [("line", at, KILL)]))
        assert len(again) <= 3
        assert len({path[:4] for path in again if "enrich" in path}) <= 1


@pytest.mark.slow
def test_it_may_be_killed_again_and_again(harness: Harness) -> None:
    """Each process does a little more than the one before; none begins at the start."""
    lines = harness.play(deep(), [("ack", 4, KILL)] * 15)
    calls = collections.Counter(paths(lines, "begin"))
    assert len(processes(lines)) == 16
    assert calls.total() <= len(calls) + 15 * 3


@pytest.mark.slow
def test_once_in_a_loop_over_pages(harness: Harness) -> None:
    """A step that fetches 30 pages with `once`, killed before it fetches page 17: no page before that is fetched again,
    only the step itself begins again."""
    spec = [{"kind": "leaf", "name": "crawl", "once": 30, "context": "lines"}, {"kind": "leaf", "name": "last"}]
    lines = harness.play(spec, [("begin", 19, KILL)])
    assert repeated(lines) == [("crawl",), ("crawl", ">part-17")]
    first, second = processes(lines)
    pages = [f">part-{n}" for n in range(30)]
    assert [path[-1] for path in paths(first, "begin") if len(path) > 1] == pages[:18]
    assert [path[-1] for path in paths(second, "begin") if len(path) > 1] == pages[17:]


@pytest.mark.slow
def test_once_inside_of_a_loop_killed_everywhere(harness: Harness) -> None:
    """Calls that were saved are not made again, in whatever iteration; an item's step begins again at most."""
    body = [{"kind": "leaf", "name": "crawl", "once": 3, "context": "total", "fails": 1}]
    spec = [{"kind": "loop", "name": "sites", "times": 6, "limit": 6, "body": body}]
    whole = len(processes(harness.play(spec, []))[0])
    for at in range(3, whole - 2, 6):
        lines = harness.play(spec, [("line", at, KILL)])
        assert len({path[:3] for path in repeated(lines)}) <= 1
