"""Processes that are killed while a run is started, answered and finished: every step once, the answer once."""

from __future__ import annotations

import collections
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from flujo.state.mail import Message
from tests.support.crash_forks import Forks, Journal
from tests.support.nested_child import Death
from tests.support.saves import wait
from tests.support.waiting_child import ANSWER, CHARGED, OUTPUT, RUN, SIGNAL, plain

KINDS = ["sqlite", "file"]
Lines = list[dict[str, Any]]
POINTS = ("line", "save", "saved", "post", "posted")


class Order:
    """One run, and the processes that have it one after the other. `killed` counts the deaths by their kind."""

    def __init__(self, forks: Forks, folder: Path, kind: str, **options: Any) -> None:
        folder.mkdir()
        self._forks, self._store, self.kind = forks, folder / "store", kind
        self._options = options
        self.journal = Journal(folder / "journal")
        self.killed: collections.Counter[str] = collections.Counter()

    def process(self, do: str, death: Death | None = None, **options: Any) -> dict[str, Any] | None:
        """Let one process do something to the run; return its result, or None where it was killed."""
        pid = self._forks.fork(
            "waiting_child:attempt", store=str(self._store), journal=self.journal.path, kind=self.kind, do=do,
            death=death, **{**self._options, **options},
        )  # fmt: skip
        code, _ = self._forks.wait(pid)
        assert code in (0, -signal.SIGKILL), f"a process ended with {code}:\n{self._forks.errors()}"
        if code:
            assert death is not None
            self.killed[death[0]] += 1
            return None
        return next(line for line in reversed(self.lines) if line["what"] == "result")

    def until_it_ends(self, do: str, deaths: list[Death], **options: Any) -> dict[str, Any]:
        """Have it done by one process after the other, until one is not killed, and return its result."""
        for death in deaths:
            result = self.process(do, death, **options)
            if result is not None:
                return result
        result = self.process(do, **options)
        assert result is not None
        return result

    @property
    def lines(self) -> Lines:
        return self.journal.read()

    def mail(self) -> list[Message]:
        """Return what the store has of messages."""

        async def read() -> list[Message]:
            backend = plain(self.kind, str(self._store))
            try:
                return await backend.mail(RUN)
            finally:
                await backend.close()

        return wait(read())


def once(lines: Lines) -> list[str]:
    """Return what was done again after it was saved, saved twice, or done under two keys."""
    wrong: list[str] = []
    acknowledged: set[str] = set()
    keys: dict[str, str] = {}
    for line in lines:
        path = ".".join(line.get("path", ()))
        if line["what"] == "begin":
            wrong += [f"{path} was saved, and is done again"] if path in acknowledged else []
            wrong += [f"{path} has two keys"] if keys.setdefault(path, line["key"]) != line["key"] else []
        elif line["what"] == "ack" and line["success"]:
            wrong += [f"{path} was saved twice"] if path in acknowledged else []
            acknowledged.add(path)
    return wrong


def effects(lines: Lines) -> int:
    """Return how often the charge came about."""
    return sum(line["what"] == "effect" for line in lines)


def deaths(rng: random.Random, most: int, *points: str) -> list[Death]:
    """Draw some deaths, each soon enough to come about."""
    drawn = [rng.choice(points or POINTS) for _ in range(rng.randint(1, most))]
    return [(point, 1 if point in ("post", "posted") else rng.randint(1, 5), signal.SIGKILL) for point in drawn]


def started_answered_and_finished(forks: Forks, folder: Path, kind: str, seed: int) -> collections.Counter[str]:
    """Start a run in some processes, answer it in others, send it a signal, and have it finished in others again."""
    rng = random.Random(seed)
    order = Order(forks, folder, kind, inline=seed % 2 == 0)
    started = order.until_it_ends("run", deaths(rng, 4, "line", "save", "saved"))
    assert started["status"] == "paused"
    senders = ["answer", "signal"]
    rng.shuffle(senders)
    for do in senders:
        order.until_it_ends(do, deaths(rng, 3))
    finished = order.until_it_ends("run", deaths(rng, 3, "line", "save", "saved"))
    assert (finished["status"], finished["output"]) == ("completed", repr(OUTPUT)), finished
    assert once(order.lines) == []
    assert effects(order.lines) == 1
    messages = order.mail()
    assert sorted((m.kind, m.by, m.payload) for m in messages) == [
        ("answer", "ann", b"%d" % ANSWER),
        ("signal", "bob", b"%d" % SIGNAL),
    ]
    return order.killed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_started_answered_and_finished_by_processes_that_die(forks: Forks, tmp_path: Path, kind: str) -> None:
    """Whichever of them is killed wherever it is: each step is done once for all that anybody knows, the answer and the
    signal count once, and the run comes to the same end."""
    killed: collections.Counter[str] = collections.Counter()
    for seed in range(10):
        killed += started_answered_and_finished(forks, tmp_path / f"{seed}", kind, seed)
    assert killed.total() >= 20 and all(killed[point] for point in POINTS), killed


@pytest.mark.torture
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(1000, 1020))
def test_started_answered_and_finished_again(forks: Forks, tmp_path: Path, kind: str, seed: int) -> None:
    """As above, with other seeds."""
    for number in range(30):
        started_answered_and_finished(forks, tmp_path / f"{number}", kind, seed * 100 + number)


def points(order: Order) -> list[Death]:
    """Return every point that a run passes which nobody kills."""
    counts = collections.Counter(
        point for line in order.lines for point in (["line"] if line["what"] not in ("result", "over") else [])
    )
    saves = sum(line["what"] == "ack" for line in order.lines) + 3
    return [("line", n, signal.SIGKILL) for n in range(1, counts["line"] + 1)] + [
        (what, n, signal.SIGKILL) for what in ("save", "saved") for n in range(1, saves + 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("on_crash", ["find out", "ask"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_a_step_that_must_not_be_done_twice(
    forks: Forks, tmp_path: Path, kind: str, on_crash: str, nested: bool
) -> None:
    """At every point, those between the effect and its save among them: whoever finds out, or is asked, sees to it that
    the effect comes about once, and under one key."""
    options: dict[str, Any] = {"charges": (on_crash, nested)}
    whole = Order(forks, tmp_path / "whole", kind, **options)
    right = whole.process("run")
    assert right is not None and right["status"] == "completed"
    asked = 0
    for number, death in enumerate(points(whole)):
        order = Order(forks, tmp_path / f"{number}", kind, **options)
        result = order.process("run", death)
        if result is None:
            result = order.process("run")
        assert result is not None
        if on_crash == "ask" and result["status"] == "paused":
            asked += 1
            before = order.lines
            assert order.process("run") is not None and effects(order.lines) == effects(before)
            result = order.process("verdict", happened=bool(effects(before)))
            assert result is not None
        assert (result["status"], result["output"]) == ("completed", right["output"]), (death, result)
        assert once(order.lines) == [] and effects(order.lines) == 1, death
        asked += any(line["what"] == "asked" for line in order.lines)
    assert asked >= 4
    assert right["output"] == repr({"one": CHARGED, "two": 7} if nested else CHARGED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_while_it_is_found_out(forks: Forks, tmp_path: Path, kind: str) -> None:
    """Killed in the step, then while its effect is looked for, then after that: it comes about once all the same."""
    rng = random.Random(7)
    killed: collections.Counter[str] = collections.Counter()
    for number in range(12):
        order = Order(forks, tmp_path / f"{number}", kind, charges=("find out", number % 2 == 0))
        assert order.process("run", ("effect", 1, signal.SIGKILL)) is None
        result = order.until_it_ends("run", [("asked", 1, signal.SIGKILL), *deaths(rng, 3, "line", "save", "saved")])
        assert result["status"] == "completed", result
        assert once(order.lines) == [] and effects(order.lines) == 1
        killed += order.killed
    assert killed["asked"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_kills_its_process_again_and_again(forks: Forks, tmp_path: Path, kind: str, nested: bool) -> None:
    """It is given up after so many deaths, also where each time it was found out that it had not happened."""
    order = Order(forks, tmp_path / "order", kind, charges=("find out", nested), max_crashes=3)
    deaths_at_it = [("begin", 2, signal.SIGKILL), ("begin", 1, signal.SIGKILL), ("begin", 1, signal.SIGKILL)]
    for death in deaths_at_it:
        assert order.process("run", death) is None
    result = order.process("run", ("begin", 1, signal.SIGKILL))
    assert result is not None and result["status"] == "failed" and "CrashLoopError" in result["error"], result
    result = order.process("run")
    assert result is not None and result["status"] == "completed"
    assert effects(order.lines) == 1 and once(order.lines) == []


@pytest.mark.slow
def test_the_control(forks: Forks, tmp_path: Path) -> None:
    """A step that is simply done again has its effect twice where the process dies in between: the tests would see."""
    order = Order(forks, tmp_path / "order", "sqlite", charges=("retry", False))
    assert order.process("run", ("effect", 1, signal.SIGKILL)) is None
    assert order.process("run") is not None
    assert effects(order.lines) == 2 and once(order.lines) == []
