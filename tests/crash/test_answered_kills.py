"""Started in one process, answered in others, finished in a last one, and each of them killed: nothing is lost, nothing
counts twice.

Steps with effects stand before, between and after an answer, a quorum of two within a parallel, signals (one of which
comes early) and answers within a map. After each kill the same is done again by a new process.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.answered_check import Lines, faults
from tests.support.answered_child import ACTIONS, Kill
from tests.support.answered_expected import WITHOUT_KILLS
from tests.support.answered_harness import Answering
from tests.support.crash_forks import Forks

WAYS = {
    "sqlite": [("sqlite", "inline"), ("own sqlite", "async")],  # commits on the loop's thread, and on the store's
    "file": [("file", "async"), ("own file", "inline")],
}


def at(action: int, name: str, times: int = 1) -> list[list[Kill]]:
    """Return the kills of a run with one, in that action."""
    return [[(f"{action} {name}", times)] if here == action else [] for here in range(len(ACTIONS))]


@pytest.mark.slow
@pytest.mark.parametrize("store", WAYS)
def test_every_process_is_killed_at_random(forks: Forks, tmp_path: Path, store: str) -> None:
    """Each action has a kill or two, at a claim, a post, a save, in opening, in reading or in a step, at points that
    differ: every step is on record once, every answer is in the mailbox and in the output once, and no step has its
    effect again but the one that was running at a kill, under the same idempotency key."""
    rng = random.Random(20261)
    points = Answering(forks, tmp_path, *WAYS[store][0]).trace()
    killed: set[str] = set()
    for kind, mode in WAYS[store]:
        answering = Answering(forks, tmp_path, kind, mode)
        answering.play(points.deal(rng, most=2))
        assert answering.faults == []
        killed |= set(answering.killed)
    print(f"{store}: {len(killed)} kills at as many points of {points.number}")
    assert len(killed) >= 16
    assert {int(name.split()[0]) for name in killed} == set(range(len(ACTIONS) - 1))


BOUNDARIES = {
    "post": [(2, "post commit before"), (2, "post commit after"), (5, "post returned"), (4, "post acknowledged")],
    "claim": [(0, "claim commit after"), (3, "claim returned"), (7, "claim called")],
    "pause": [(0, "save paused called"), (2, "save paused commit before"), (5, "save paused returned")],
    "wait": [(2, "save ask commit before"), (2, "save ask returned"), (7, "save go acknowledged")],
    "quorum": [(3, "post commit after"), (5, "post acknowledged"), (5, "step checks.vote.count inside")],
}


@pytest.mark.slow
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("kind", "commit"), [("sqlite", "commit"), ("file", "rename")], ids=["sqlite", "file"])
def test_every_boundary_has_its_kill(forks: Forks, tmp_path: Path, kind: str, commit: str, boundary: str) -> None:
    """Between a post and its commit, its return and its use; in claims; in saves that pause the run; in those that end
    a wait; between the two votes of a quorum, and when it is complete."""
    answering = Answering(forks, tmp_path, kind)
    kills: list[list[Kill]] = [[] for _ in ACTIONS]
    for action, name in BOUNDARIES[boundary]:
        kills[action].append((f"{action} {name.replace('commit', commit)}", 1))
    answering.play(kills)
    assert answering.faults == []
    assert answering.killed.total() == len(BOUNDARIES[boundary]), answering.missed


@pytest.mark.torture
@pytest.mark.parametrize("mode", ["inline", "async"])
@pytest.mark.parametrize("kind", ["sqlite", "own sqlite", "file", "own file"])
def test_every_process_is_killed_everywhere(forks: Forks, tmp_path: Path, kind: str, mode: str) -> None:
    """As above, at every point that a process passes: some 800 for each kind of store."""
    rng = random.Random(f"{kind}/{mode}")
    answering = Answering(forks, tmp_path, kind, mode)
    points = answering.trace()
    while any(points.left.values()):
        answering.play(points.deal(rng, most=3))
        assert answering.faults == []
    for name, _ in answering.missed:  # after another kill of the same action; now it comes first
        if not answering.killed[name]:
            action, _, rest = name.partition(" ")
            answering.play(at(int(action), rest))
    assert answering.faults == []
    print(f"{kind} {mode}: {answering.killed.total()} kills at {len(answering.killed)} of {points.number} points")
    assert len(answering.killed) >= 0.97 * points.number


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(20))
def test_every_process_is_killed_again_and_again(forks: Forks, tmp_path: Path, seed: int) -> None:
    """As above, with up to eight kills in one action: what is done again is killed as well."""
    rng = random.Random(seed)
    for ways in WAYS.values():
        for kind, mode in ways:
            answering = Answering(forks, tmp_path, kind, mode)
            points = answering.trace()
            for _ in range(4):
                answering.play(points.deal(rng, most=8))
            assert answering.faults == []
            assert answering.killed.total() >= 60


CONTROLS = {
    "twice": ([], "mail is"),  # every message is posted twice
    "dropped": ([], "came out as"),  # a run that pauses drops what it has read and not used
    "unnamed": (at(4, "post returned"), "mail is"),  # a signal that is sent again is another one
    "hasty": (at(2, "save apply called"), "apply was done again after its save was acknowledged"),
    "keys": (at(2, "step apply inside"), "apply has two keys"),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", CONTROLS)
def test_what_is_wrong_on_purpose_is_found(forks: Forks, tmp_path: Path, variant: str) -> None:
    """The control: a backend that does something wrong, also one that does it at a kill only, does not pass."""
    kills, fault = CONTROLS[variant]
    answering = Answering(forks, tmp_path, variant=variant)
    answering.play(kills)
    assert answering.killed.total() == sum(map(len, kills))
    assert any(fault in found for found in answering.faults), answering.faults


def index_of(lines: Lines, what: str, **facts: object) -> int:
    """Return where the first such line is."""
    wanted = {"what": what, **facts}
    return next(i for i, line in enumerate(lines) if {**line, **wanted} == line)


def _repeat(what: str, **facts: object) -> Callable[[Lines], None]:
    def doctor(lines: Lines) -> None:
        lines.insert(index_of(lines, what, **facts) + 1, dict(lines[index_of(lines, what, **facts)]))

    return doctor


def _end(change: Callable[[dict[str, list[object]]], object]) -> Callable[[Lines], None]:
    return lambda lines: (change(lines[index_of(lines, "end")]), None)[1]


DOCTORED: dict[str, tuple[Callable[[Lines], None], str]] = {
    "an effect twice": (_repeat("effect", path="apply"), "nobody was killed in it"),
    "a save twice": (_repeat("ack", path="apply"), "apply was saved 2 times"),
    "an answer posted twice": (_repeat("posted", action=2), "was posted again"),
    "an answer on record twice": (_end(lambda end: end["history"].append(end["history"][1])), "2 times on record"),
    "an answer in the mailbox twice": (_end(lambda end: end["mail"].append(end["mail"][1])), "mail is"),
    "an answer in the output twice": (_end(lambda end: end["output"].append(end["output"][1])), "output is"),
    "an answer lost": (_end(lambda end: end["output"].pop(1)), "output is"),
    "an action that came out otherwise": (
        lambda lines: lines[index_of(lines, "done", action=2)].update(waiting=[]),
        "action 2 came out as",
    ),
    "an answer refused": (
        lambda lines: lines.insert(0, {"what": "known", "action": 2, "error": "AlreadyAnsweredError"}),
        "was refused",
    ),
    "no repeat's attempt": (
        lambda lines: [line.update(attempt=1) for line in lines if line.get("path") == "apply"].clear(),
        "apply has attempt 1 after 1",
    ),
    "a kill that was none": (
        lambda lines: lines.__delitem__(index_of(lines, "killed")),
        "nobody was killed in it",
    ),
}


@pytest.mark.slow
def test_the_checker_sees_what_is_wrong(forks: Forks, tmp_path: Path) -> None:
    """The control of the check: each of these changes to the journal of a good run, with one kill, is reported."""
    answering = Answering(forks, tmp_path)
    lines = answering.play(at(2, "step apply inside"))
    assert answering.faults == [] and answering.killed.total() == 1
    for name, (doctor, fault) in DOCTORED.items():
        doctored = copy.deepcopy(lines)
        doctor(doctored)
        found = faults(doctored, WITHOUT_KILLS)
        assert any(fault in text for text in found), (name, found)
