"""Processes that are killed while they undo a run: nothing that is saved is undone twice, and nothing is left out."""

from __future__ import annotations

import collections
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash_forks import Forks, Journal
from tests.support.undo_child import MAX_CRASHES

KILL = 9
UNDOS = ["ship.>undo", "many.[1].fetch.>undo", "many.[0].fetch.>undo", "pay.>undo"]
STEPS = ["pay", "many.[0].fetch", "many.[1].fetch", "ship", "bad"]
ONCE = ["pay.>undo.>one", "pay.>undo.>two"]
WAYS: dict[str, dict[str, Any]] = {
    "sqlite": {"kind": "sqlite"},
    "sqlite inline": {"kind": "sqlite", "inline": True},
    "file": {"kind": "file"},
}
Lines = list[dict[str, Any]]


class Order:
    """One run and the processes that have it, one after the other."""

    def __init__(self, forks: Forks, folder: Path, **options: Any) -> None:
        self._forks, self._options = forks, options
        self.folder = folder / "order"
        self.folder.mkdir()
        self.journal = Journal(self.folder / "journal")

    def process(self, **options: Any) -> bool:
        """Let one process have it; return whether it came to its end, and was not killed."""
        pid = self._forks.fork(
            "undo_child:attempt",
            store=str(self.folder / "store"), journal=self.journal.path, **{**self._options, **options},
        )  # fmt: skip
        code, _ = self._forks.wait(pid)
        assert code in (0, -KILL), f"a process ended with {code}:\n{self._forks.errors()}"
        self.journal.write("over", code=code)
        return code == 0

    def close(self) -> Lines:
        """Return the journal, and forget the rest."""
        lines = self.journal.read()
        self.journal.close()
        shutil.rmtree(self.folder)
        return lines


def paths(lines: Lines, what: str) -> list[str]:
    return [".".join(line["path"]) for line in lines if line["what"] == what]


def result(lines: Lines) -> dict[str, Any]:
    """Return the last result, without what differs from process to process."""
    found: dict[str, Any] = [line for line in lines if line["what"] == "result"][-1]
    return {name: value for name, value in found.items() if name not in ("pid", "error")}


def play(forks: Forks, folder: Path, deaths: list[Any], **options: Any) -> Lines:
    """Run it with these deaths, one a process, and once more to the end."""
    order = Order(forks, folder, **options)
    for death in deaths:
        assert not order.process(death=death), "it came to its end before it died"
    assert order.process()
    return order.close()


def check(lines: Lines, expected: Lines, kills: int) -> None:
    """Prove that the run came out as the one that nobody killed, and that nothing was done again that was saved."""
    attempts = [[path, success] for path, success, _ in result(lines)["history"]]
    assert attempts == [[path, success] for path, success, _ in result(expected)["history"]]
    assert {**result(lines), "history": None} == {**result(expected), "history": None}
    begun, acknowledged = set[str](), set[str]()
    saved = False
    for line in lines:
        path = ".".join(line.get("path", ()))
        if line["what"] == "begin":
            assert path not in acknowledged, f"{path} was saved, and is done again"
            assert ">undo" not in path or "bad" in begun, f"{path} before anything has failed"
            assert ">undo" in path or not saved, f"{path} after the intention was saved"
            begun.add(path)
        elif line["what"] == "ack":
            assert path not in acknowledged, f"{path} was saved twice"
            acknowledged.add(path)
            saved = saved or path == "bad"
    undos = [path for path in paths(lines, "begin") if ">undo" in path and ">undo." not in path]
    assert list(dict.fromkeys(undos)) == UNDOS
    assert undos == sorted(undos, key=UNDOS.index)
    again = collections.Counter(paths(lines, "begin")) - collections.Counter(paths(expected, "begin"))
    inner = again.total() - sum(">undo." in path for path in again.elements())
    assert inner <= kills
    keys = {(".".join(line["path"]), line["key"]) for line in lines if line["what"] == "begin"}
    assert len(keys) == len({path for path, _ in keys}) == len({key for _, key in keys})


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """SQLite, on the store's thread and on the loop's own, and files."""
    return WAYS[request.param]


@pytest.mark.slow
def test_what_nobody_kills(forks: Forks, tmp_path: Path, way: dict[str, Any]) -> None:
    """What the other tests compare with: every step and every undo once, in order, and one save each."""
    lines = play(forks, tmp_path, [], **way)
    begun = paths(lines, "begin")
    assert begun == [*STEPS, *UNDOS, *ONCE]
    assert paths(lines, "ack") == ["pay", "items", *STEPS[1:3], "many", *STEPS[3:], *UNDOS[:-1], *ONCE, UNDOS[-1]]
    assert result(lines)["state"] == {
        "status": "failed", "phase": "undone", "current_step_index": 4, "position": None,
        "last_step_output": ["ship", [10, 20]], "pipeline_context": {"log": ["pay", "ship", "return", "crawl"]},
    }  # fmt: skip
    assert result(lines)["stored_error"] == ["ValueError", "no"]
    check(lines, lines, 0)


@pytest.mark.slow
def test_killed_at_every_line(forks: Forks, tmp_path: Path, way: dict[str, Any]) -> None:
    """Before and after every effect and every acknowledgement, from the first step to the last undo."""
    expected = play(forks, tmp_path, [], **way)
    end = next(place for place, line in enumerate(expected) if line["what"] == "result")
    failed = next(place for place, line in enumerate(expected) if line.get("path") == ["bad"])
    first, pace = (3, 1) if way == WAYS["sqlite"] else (failed, 2)  # where all is killed, and where less will do
    for at in range(first, end + 1, pace):
        lines = play(forks, tmp_path, [("line", at, KILL)], **way)
        check(lines, expected, 1)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["save", "saved"])
def test_killed_at_every_save(forks: Forks, tmp_path: Path, way: dict[str, Any], point: str) -> None:
    """Before a save at most what it was to hold is done again; after it, nothing is, though nobody heard of it."""
    expected = play(forks, tmp_path, [], **way)
    records = [*paths(expected, "ack"), ""]  # the last save holds the end alone
    for at, record in enumerate(records, 1):
        lines = play(forks, tmp_path, [(point, at, KILL)], **way)
        check(lines, expected, 1)
        again = collections.Counter(paths(lines, "begin")) - collections.Counter(paths(expected, "begin"))
        called = record in paths(expected, "begin") and point == "save"
        undo = [UNDOS[-1]] if record in ONCE else []  # its undo begins again
        assert sorted(again.elements()) == sorted([record, *undo] if called else undo)


@pytest.mark.slow
def test_killed_again_and_again(forks: Forks, tmp_path: Path, way: dict[str, Any]) -> None:
    """Processes that live for one save each get there, and undo everything once."""
    expected = play(forks, tmp_path, [], **way)
    saves = paths(expected, "ack")
    lines = play(forks, tmp_path, [("ack", 1, KILL)] * len(saves), **way)
    check(lines, expected, len(saves))
    assert paths(lines, "ack") == saves
    calls = collections.Counter(paths(lines, "begin"))
    assert calls == collections.Counter(paths(expected, "begin")) + collections.Counter([UNDOS[-1]] * len(ONCE))


@pytest.mark.slow
def test_an_undo_that_kills_its_process(forks: Forks, tmp_path: Path, way: dict[str, Any]) -> None:
    """After `max_crashes` deaths it has failed for good, with a CrashLoopError; run again it gets as many more."""
    order = Order(forks, tmp_path, **way)
    for round_ in (1, 2):
        for _ in range(MAX_CRASHES):
            assert not order.process(deadly="ship>undo")
        assert order.process(deadly="ship>undo")
        found = order.journal.read()[-2]
        assert found["error"][0] == "UndoFailedError" and found["error"][2] == "CrashLoopError"
        assert (found["state"]["status"], found["state"]["phase"]) == ("failed", "undoing")
        assert found["history"][-1] == ["ship>undo", False, MAX_CRASHES * round_]
    assert order.process()
    lines = order.close()
    undos = [line for line in lines if line["what"] == "begin" and line["path"] == ["ship", ">undo"]]
    assert [line["attempt"] for line in undos] == [*range(1, 2 * MAX_CRASHES + 2)]
    assert len({line["key"] for line in undos}) == 1
    assert paths(lines, "begin") == [*STEPS, *[UNDOS[0]] * len(undos), *UNDOS[1:], *ONCE]
    assert result(lines)["stored_error"] == ["ValueError", "no"]
    assert result(lines)["state"]["phase"] == "undone"


@pytest.mark.slow
def test_a_step_that_kills_its_process(forks: Forks, tmp_path: Path, way: dict[str, Any]) -> None:
    """It fails the run in the end, which is undone then: its crashes are not counted as those of the first undo."""
    order = Order(forks, tmp_path, deadly="ship", **way)
    for _ in range(MAX_CRASHES):
        assert not order.process()
    assert order.process()
    lines = order.close()
    found = [line for line in lines if line["what"] == "result"][-1]
    assert found["error"][0] == "CrashLoopError"
    assert (found["state"]["status"], found["state"]["phase"]) == ("failed", "undone")
    assert [path for path in paths(lines, "begin") if ">undo" in path] == [*UNDOS[1:], *ONCE]
    assert all(line["attempt"] == 1 for line in lines if line["what"] == "begin" and ">undo" in line["path"])


@pytest.mark.slow
@pytest.mark.parametrize("at", [("begin", 2), ("begin", 4), ("save", 5), ("saved", 6)])
def test_cancelling_what_a_dead_process_has_left(
    forks: Forks, tmp_path: Path, way: dict[str, Any], at: tuple[str, int]
) -> None:
    """The run can be cancelled at once, and what had been saved of it is undone; killed meanwhile, it goes on."""
    due = UNDOS[{("begin", 2): 3, ("begin", 4): 1, ("save", 5): 1, ("saved", 6): 0}[at] :]
    order = Order(forks, tmp_path, **way)
    assert not order.process(death=(*at, KILL))
    assert not order.process(death=("end", 1, KILL), cancel=True)
    assert order.process(cancel=at[0] == "save")  # either goes on
    lines = order.close()
    assert result(lines)["state"]["status"] == "cancelled" and result(lines)["stored_error"] is None
    begun = [path for path in paths(lines, "begin") if ">undo" in path]
    assert [path for path in dict.fromkeys(begun) if path not in ONCE] == due
    first = [line for line in lines if line["what"] == "begin" and ".".join(line["path"]) == due[0]]
    assert [line["attempt"] for line in first] == [1, 2]
    assert "bad" not in paths(lines, "begin")
