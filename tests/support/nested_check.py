"""What must hold of a run of a described pipeline, whatever interrupted it, told from its journal."""

from __future__ import annotations

import collections
from typing import Any

from tests.support.nested_interpreter import Expected
from tests.support.nested_pipelines import Path

Lines = list[dict[str, Any]]


def faults(lines: Lines, expected: Expected) -> list[str]:
    """Return what is wrong with a run that has come to its end.

    The journal has lines of its processes, one after the other ("process" first), and "over" by the test when one of
    them is gone.
    """
    replay = _Replay(expected)
    for line in lines:
        getattr(replay, f"on_{line['what']}", lambda line: None)(line)
    return [*replay.wrong, *replay.counts(), *_result(lines, expected, replay.final)]


class _Replay:
    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self.wrong: list[str] = []
        self.final: dict[Path, bool] = {}  # how what is saved for good came out
        self._calls: collections.Counter[Path] = collections.Counter()
        self._repeatable: collections.Counter[Path] = collections.Counter()
        self._open: set[Path] = set()
        self._known = 0  # top-level steps that are saved for all that the journal can tell
        self._keys: dict[str, Path] = {}

    def on_claim(self, line: dict[str, Any]) -> None:
        known, index = self._known, line["index"]
        if index not in (known, known + 1) or index > len(self._expected.tops):
            self.wrong.append(f"current_step_index is {index}, {known} top-level steps are known to be saved")
        self._known = index  # a save whose acknowledgement nobody lived to write

    def on_begin(self, line: dict[str, Any]) -> None:
        path = tuple(line["path"])
        right = self._expected.calls.get(path)
        if right is None:
            self.wrong.append(f"{path} was called, unkilled it is not")
            return
        if path in self.final:
            self.wrong.append(f"{path} was called after its end was saved")
        if (line["given"], line["seen"]) != (right.given, right.seen):
            self.wrong.append(f"{path} saw {line['given']}, {line['seen']}; unkilled {right.given}, {right.seen}")
        if self._keys.setdefault(line["key"], path) != path:
            self.wrong.append(f"{path} and {self._keys[line['key']]} have one idempotency key")
        if line["attempt"] < 1:
            self.wrong.append(f"{path} has attempt {line['attempt']}")
        self._calls[path] += 1
        self._open.add(path)

    def on_ack(self, line: dict[str, Any]) -> None:
        path, success = tuple(line["path"]), line["success"]
        if path in self.final:
            self.wrong.append(f"{path} was saved again after its end was saved")
        self._known += success and len(path) == 1
        if success or line["status"] == "running":
            self.final[path] = success
            self._open.discard(path)

    def on_over(self, line: dict[str, Any]) -> None:
        if not line["completed"]:
            self._repeatable.update(self._open)
        self._open = set()

    def counts(self) -> list[str]:
        if len(self._keys) != len(self._calls):
            self.wrong.append("the idempotency key of a step has changed")
        found = []
        for path, right in self._expected.calls.items():
            most = right.most + self._repeatable[path]
            if not right.least <= self._calls[path] <= most:
                found.append(f"{path} was called {self._calls[path]} times, should be {right.least} to {most}")
        return found


def _result(lines: Lines, expected: Expected, final: dict[Path, bool]) -> list[str]:
    """The last process has the output, the context and the history of the run that nobody killed."""
    results = [line for line in lines if line["what"] == "result"]
    if not results or results[-1]["status"] != "completed":
        return [f"the run did not complete: {results[-1:]}"]
    result = results[-1]
    wrong = []
    if result["output"] != repr(expected.output):
        wrong.append(f"the output is {result['output']}, unkilled {expected.output!r}")
    if result["context"] != expected.context:
        wrong.append(f"the context is {result['context']}, unkilled {expected.context}")
    history = collections.Counter(tuple(path) for path, success in result["history"] if success)
    wrong += [f"{path} is {count} times in the history" for path, count in history.items() if count > 1]
    hidden = (">choice", ">exit", ">join", ">items")
    wrong += [f"{path} is shown in the history" for path in history if path[-1] in hidden]
    for path, calls in expected.calls.items():
        if path[-1] not in hidden and calls.least and history[path] != (not calls.fails):
            wrong.append(f"{path} is {history[path]} times in the history as a success")
    wrong += [
        f"{path} was acknowledged and is not in the history"
        for path, success in final.items()
        if success and path[-1] not in hidden and not history[path]
    ]
    shown = [path[0] for path, success in result["history"] if success and len(path) == 1]
    if shown != expected.tops:
        wrong.append(f"the history has the top-level steps {shown}")
    return wrong
