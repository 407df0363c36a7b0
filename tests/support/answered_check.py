"""What must hold of a run that was started, answered and finished by processes that died, told from its journal."""

from __future__ import annotations

import collections
import re
from typing import Any

Lines = list[dict[str, Any]]


def faults(lines: Lines, expected: Lines) -> list[str]:
    """Return what is wrong with a run that has come to its end; `expected` are the lines of one that nobody killed.

    Both have the lines of processes that follow one another (tests/support/answered_child.py), and "killed" by the test
    where a process has died of its kill.
    """
    return [*_Steps(expected).wrong_in(lines), *_saves(lines), *_posts(lines), *_outcomes(lines, expected)]


def _of(lines: Lines, what: str) -> Lines:
    return [line for line in lines if line["what"] == what]


def _branch(path: str) -> str:
    """Return what goes on by itself: one step at a time may be running in it."""
    found = re.match(r"checks\.\w+|items\[\d+\]", path)
    return found[0] if found else ""


class _Steps:
    """Goes through a journal and notes what cannot be: a step has its effect once, but for one that was running when
    its process was killed."""

    def __init__(self, expected: Lines) -> None:
        self._right = {line["path"]: line["given"] for line in _of(expected, "effect")}
        self._running: dict[str, dict[str, Any]] = {}  # effects by path, of what is not known to be saved
        self._killed: dict[str, dict[str, Any]] = {}  # those that were running when their process was killed
        self._acknowledged: set[str] = set()
        self._keys: dict[str, str] = {}
        self._wrong: list[str] = []

    def wrong_in(self, lines: Lines) -> list[str]:
        for line in lines:
            getattr(self, f"on_{line['what']}", lambda line: None)(line)
        keys = self._keys
        if len(set(keys.values())) < len(keys):
            self._wrong.append(f"steps share a key: {keys}")
        if set(keys) != set(self._right):
            self._wrong.append(f"the steps that were done differ: {sorted(set(keys) ^ set(self._right))}")
        return self._wrong

    def on_effect(self, line: dict[str, Any]) -> None:
        path, wrong = line["path"], self._wrong
        before = self._killed.pop(path, None)
        if path in self._acknowledged:
            wrong.append(f"{path} was done again after its save was acknowledged")
        if path in self._running:
            wrong.append(f"{path} was done again, and nobody was killed in it")
        # Where several things go on, the save of another one ends the counting of deaths.
        if line["attempt"] < 1 or (before and not _branch(path) and line["attempt"] <= before["attempt"]):
            wrong.append(f"{path} has attempt {line['attempt']} after {before and before['attempt']}")
        if self._right.get(path) != line["given"]:
            wrong.append(f"{path} was given {line['given']}, unkilled it is {self._right.get(path)}")
        if self._keys.setdefault(path, line["key"]) != line["key"]:
            wrong.append(f"{path} has two keys")
        self._leave_behind(line)
        self._running[path] = line

    def _leave_behind(self, line: dict[str, Any]) -> None:
        """What was running in this branch is saved, acknowledged or not: what comes after it is being done."""
        path = line["path"]
        for found in (self._running, self._killed):
            for other in [other for other in found if _branch(other) == _branch(path) and other != path]:
                if found[other]["pid"] == line["pid"]:
                    self._wrong.append(f"{path} was begun while {other} was not saved")
                del found[other]
                self._acknowledged.add(other)

    def on_ack(self, line: dict[str, Any]) -> None:
        self._acknowledged.add(line["path"])
        self._running.pop(line["path"], None)

    def on_killed(self, line: dict[str, Any]) -> None:
        died = {path: effect for path, effect in self._running.items() if effect["pid"] == line["child"]}
        if len({_branch(path) for path in died}) < len(died):
            self._wrong.append(f"{sorted(died)} were all running at a kill")
        self._killed |= died
        self._running = {path: effect for path, effect in self._running.items() if path not in died}


def _saves(lines: Lines) -> list[str]:
    saved = collections.Counter(line["path"] for line in _of(lines, "ack"))
    return [f"{path} was saved {times} times" for path, times in saved.items() if times > 1]


def _posts(lines: Lines) -> list[str]:
    """What was acknowledged is not posted anew: an answer is refused, and a signal is the same one."""
    wrong = []
    seqs: dict[str, int] = {}
    killed: set[int] = set()  # actions with a process that died
    for line in lines:
        if line["what"] == "posted":
            if line["id"] in seqs and not line["id"].startswith("signal/"):
                wrong.append(f"{line['id']} was posted again after it was acknowledged")
            if seqs.setdefault(line["id"], line["seq"]) != line["seq"]:
                wrong.append(f"{line['id']} is message {line['seq']} and {seqs[line['id']]}")
        elif line["what"] == "killed":
            killed.add(line["action"])
        elif line["what"] == "known" and line["action"] not in killed:
            wrong.append(f"the answer of action {line['action']} was refused ({line['error']})")
    if len(set(seqs.values())) < len(seqs):
        wrong.append(f"messages share a number: {seqs}")
    return wrong


def _outcomes(lines: Lines, expected: Lines) -> list[str]:
    """After each action the run stands as one does that nobody killed, and at its end it has the same on record."""
    wrong = []
    for action in sorted({line["action"] for line in _of(expected, "done")}):
        facts = [
            [{k: v for k, v in line.items() if k != "pid"} for line in some if line["action"] == action]
            for some in (_of(lines, "done"), _of(expected, "done"))
        ]
        if not facts[0] or any(found not in facts[1] for found in facts[0]):  # who has done it may be killed after that
            wrong.append(f"action {action} came out as {facts[0]}, unkilled as {facts[1]}")
    ends = _of(lines, "end")
    if len(ends) != 1:
        return [*wrong, f"there are {len(ends)} ends"]
    (end,), (right,) = ends, _of(expected, "end")
    for name in ("status", "output", "context", "mail"):
        if end[name] != right[name]:
            wrong.append(f"{name} is {end[name]}, unkilled {right[name]}")
    times = collections.Counter(record[0] for record in end["history"])
    wrong += [f"{path} is {times[path]} times on record" for path in times if times[path] > 1]
    if sorted(map(repr, end["history"])) != sorted(map(repr, right["history"])):
        wrong.append(f"the history is {end['history']}, unkilled {right['history']}")
    return wrong
