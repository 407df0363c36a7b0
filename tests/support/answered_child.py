"""A run that is started, answered and finished by one process after the other, and the points at which each can die.

What a process does is an action: to run, to answer, to send a signal, or to look. A point's name says where in which
action: ``3 save ask before`` is before the save that has the record of step `ask`, in action 3.
"""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from flujo import (
    FileBackend,
    Flujo,
    Merge,
    Pipeline,
    PipelineResult,
    SQLiteBackend,
    StateBackend,
    Step,
    current_step,
    step,
)
from flujo._ids import path_text
from flujo.errors import AlreadyAnsweredError, FlujoError, NoVoteError
from flujo.state.backends.base import State
from flujo.state.mail import Message
from flujo.state.models import record_from
from tests.support import file_crash
from tests.support.crash_forks import Journal
from tests.support.crash_pipeline import Traced

RUN = "run"
Kill = tuple[str, int]  # a point's name, and at the how-manieth pass
Action = dict[str, Any]

ACTIONS: tuple[Action, ...] = (
    {"do": "run"},
    {"do": "signal", "name": "go", "payload": "now", "id": "event-2"},  # early: kept for what comes last
    {"do": "answer", "at": "ask", "by": "ann", "answer": {"ok": True, "note": "fine"}},
    {"do": "answer", "at": "checks.vote.ask", "by": "bob", "answer": "yes", "refused": "NoVoteError"},
    {"do": "signal", "name": "paid", "payload": 420, "id": "event-1"},
    {"do": "answer", "at": "checks.vote.ask", "by": "ann", "answer": "no"},
    {"do": "answer", "at": "items[1].ask", "by": "bob", "answer": [1, "b"]},
    {"do": "answer", "at": "items[0].ask", "by": "ann", "answer": [0, "a"]},
    {"do": "signal", "name": "go", "payload": "later", "id": "event-3"},
    {"do": "run"},
    {"do": "look"},
)


class Approval(BaseModel):
    """An answer."""

    ok: bool
    note: str


class Desk(BaseModel):
    """A context that grows by a line a step: what the step was given."""

    lines: Annotated[list[str], Merge.APPEND] = []


class Spots:
    """Counts the points that this process passes, and kills it at one of them."""

    def __init__(self, action: int, kill: Kill | None, tell: Callable[..., None] | None = None) -> None:
        self.phase = "open"
        self._action, self._kill, self._tell = action, kill, tell
        self._passed: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def __call__(self, what: str) -> None:
        """Pass a point of the phase that this process is in."""
        self.mark(f"{self.phase} {what}")

    def mark(self, what: str) -> None:
        """Pass a point."""
        name = f"{self._action} {what}"
        with self._lock:
            self._passed[name] += 1
            if self._tell is not None:
                self._tell(name=name)
            if self._kill == (name, self._passed[name]):
                os.kill(os.getpid(), signal.SIGKILL)


class Trace:
    """What one process tells of itself."""

    def __init__(self, journal: Journal, spots: Spots, variant: str) -> None:
        self.journal, self.spots, self.variant = journal, spots, variant

    def leaf(self, name: str, work: Callable[[Any], Any] = lambda given: given, *, plain: bool = False) -> Any:
        """Return a step that leaves an effect in the journal and a line in the context."""

        def does(given: Any, context: Desk) -> Any:
            current = current_step()
            path = path_text(current.path)
            self.spots.mark(f"step {path} begun")
            key = current.idempotency_key + (f"/{os.getpid()}" if self.variant == "keys" else "")
            self.journal.write("effect", path=path, key=key, attempt=current.attempt, given=repr(given))
            self.spots.mark(f"step {path} inside")
            context.lines.append(f"{path}: {given!r}")
            output = work(given)
            self.spots.mark(f"step {path} end")
            return output

        if plain:

            @step(name=name)
            def worked(given: Any, *, context: Desk) -> Any:
                return does(given, context)

            return worked

        @step(name=name)
        async def work_async(given: Any, *, context: Desk) -> Any:
            await asyncio.sleep(0)
            return does(given, context)

        return work_async


def pipeline(trace: Trace) -> Pipeline[Any, Any]:
    """Return a pipeline with steps before, between and after all that can be waited for."""
    leaf = trace.leaf
    vote = Step.human_in_the_loop("ask", "Yes or no?", Literal["yes", "no"], quorum=2, voters=["ann", "bob"])
    vote_branch = leaf("prepare") >> vote >> leaf("count", "+".join, plain=True)
    money = leaf("quote", plain=True) >> Step.wait_for("paid", int) >> leaf("book", lambda cents: cents // 2)
    item = leaf("show") >> Step.human_in_the_loop("ask", "Which?", tuple[int, str]) >> leaf("keep", list)
    result: Pipeline[Any, Any] = (
        leaf("draft", lambda n: f"draft {n}")
        >> Step.human_in_the_loop("ask", "Is it fine?", Approval)
        >> leaf("apply", lambda approval: approval.note)
        >> Step.parallel("checks", vote=vote_branch, money=money)
        >> leaf("split", lambda both: [f"{both['vote']} {n}" for n in range(2)], plain=True)
        >> Step.map_over("items", item)
        >> leaf("join")
        >> Step.wait_for("go", str)
        >> leaf("went")
        >> Step.wait_for("again", str, signal="go")
        >> _last(trace)
    )
    return result


def _last(trace: Trace) -> Any:
    finish = trace.leaf("finish")

    @step(name="report")
    async def report(given: Any, *, context: Desk) -> list[str]:
        return list(context.lines)

    return finish >> report


class Control:
    """What a deliberately wrong backend does otherwise."""

    def __init__(self, variant: str) -> None:
        self.variant = variant

    def messages(self, message: Message) -> list[Message]:
        """Return what is posted in place of the message."""
        if self.variant == "twice":
            return [message, replace(message, id=message.id + "/again")]
        if self.variant == "unnamed" and message.kind == "signal":
            return [replace(message, id=f"signal/{os.getpid()}")]
        return [message]

    def saved(self, state: State) -> State:
        """Return what is saved in place of the state."""
        if self.variant == "dropped" and state["status"] == "paused":
            return {**state, "waiting": {k: v for k, v in (state["waiting"] or {}).items() if k != "kept"}}
        return state

    @property
    def hasty(self) -> bool:
        """Whether it acknowledges what it has not done yet."""
        return self.variant == "hasty"


def watch(backend: StateBackend, trace: Trace) -> None:
    """Put points around the methods of the port, and have the journal tell what was acknowledged.

    The methods are the instance's, so that a backend that comes with flujo is still saved to in its quickest way.
    """
    control, spots, journal = Control(trace.variant), trace.spots, trace.journal
    claim, release, save, post, mail = (
        backend.claim, backend.release, backend.save_state, backend.post, backend.mail,
    )  # fmt: skip

    async def around(what: str, work: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **options: Any) -> Any:
        spots.phase = what
        spots("called")
        result = await work(*args, **options)
        spots.mark(f"{what} returned")
        return result

    async def save_state(run_id: str, state: State) -> None:
        paths = [path_text(record_from(found).path) for found in state["step_history"]]

        def acknowledge() -> None:
            for path in paths:
                journal.write("ack", path=path)

        if control.hasty:
            acknowledge()
        await around(f"save {'+'.join(paths) or state['status']}", save, run_id, control.saved(state))
        if not control.hasty:
            acknowledge()
        spots.mark(f"save {'+'.join(paths) or state['status']} acknowledged")

    async def posted(run_id: str, message: Message) -> int:
        seqs = [await around("post", post, run_id, message) for message in control.messages(message)[:1]]
        for again in control.messages(message)[1:]:
            try:
                await post(run_id, again)
            except FlujoError:
                continue
        journal.write("posted", id=message.id, seq=seqs[0])
        spots.mark("post acknowledged")
        return int(seqs[0])

    backend.claim = lambda *args, **options: around("claim", claim, *args, **options)  # type: ignore[method-assign]
    backend.release = lambda *args: around("release", release, *args)  # type: ignore[method-assign]
    backend.mail = lambda *args, **options: around("mail", mail, *args, **options)  # type: ignore[method-assign]
    backend.save_state = save_state  # type: ignore[method-assign]
    backend.post = posted  # type: ignore[method-assign]


class OwnSQLite(SQLiteBackend):
    """A backend that somebody has derived: it is handed its states in another way."""

    async def save_state(self, run_id: str, state: State) -> None:
        await super().save_state(run_id, state)


class OwnFiles(FileBackend):
    """Likewise."""

    async def save_state(self, run_id: str, state: State) -> None:
        await super().save_state(run_id, state)


def opened(store: str, kind: str, trace: Trace) -> StateBackend:
    """Return a backend with points in it: around SQLite's statements, or around what is done to files."""
    if kind.endswith("file"):
        file_crash.watch(trace.spots)  # type: ignore[arg-type]
        return (OwnFiles if kind == "own file" else FileBackend)(store)

    def connect(path: str) -> sqlite3.Connection:
        factory = type("Connection", (Traced,), {"points": trace.spots})
        return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, factory=factory)

    return (OwnSQLite if kind == "own sqlite" else SQLiteBackend)(store, connect=connect)


def act(
    store: str,
    journal: str,
    action: int,
    kind: str = "sqlite",
    mode: str = "async",
    kill: Kill | None = None,
    tell: bool = False,
    variant: str = "",
) -> int:
    """Do the action, which another process may have begun already; the child's whole life."""
    lines = Journal(journal, action=action)
    told = partial(lines.write, "point") if tell else None
    spots = Spots(action, (kill[0], kill[1]) if kill else None, told)
    trace = Trace(lines, spots, variant)
    backend = opened(store, kind, trace)
    watch(backend, trace)
    runner: Flujo[Any, Any] = Flujo(
        pipeline(trace), pipeline_name="answered", context_model=Desk, state_backend=backend, max_crashes=1000
    )
    what = ACTIONS[action]
    if what["do"] == "look":
        _look(runner, lines)
    elif what["do"] == "signal":
        _now(mode, runner.signal, runner.signal_async, RUN, what["name"], what["payload"], id=what["id"])
        lines.write("done")
    elif what["do"] == "answer":
        _answer(runner, lines, mode, what)
    else:
        _tell(lines, _run(runner, mode, 7))
    spots.mark("end")
    return 0


def _now(mode: str, plain: Any, in_loop: Any, *args: Any, **options: Any) -> Any:
    if mode == "inline":
        return plain(*args, **options)

    async def main() -> Any:
        return await in_loop(*args, **options)

    return asyncio.run(main())


def _run(runner: Flujo[Any, Any], mode: str, *given: int) -> Any:
    return _now(mode, runner.run, runner.run_async, *given, run_id=RUN)


def _answer(runner: Flujo[Any, Any], lines: Journal, mode: str, what: Action) -> None:
    """Answer; where that was done before, go on with the run, which may not have got the answer yet."""
    try:
        result = _now(mode, runner.resume, runner.resume_async, RUN, what["answer"], by=what["by"], at=what["at"])
    except (AlreadyAnsweredError, NoVoteError) as error:
        if type(error).__name__ != what.get("refused", "AlreadyAnsweredError"):
            raise
        lines.write("known", error=type(error).__name__)
        result = _run(runner, mode)
    _tell(lines, result)


def _tell(lines: Journal, result: PipelineResult[Any]) -> None:
    waiting = sorted([found.kind, found.step] for found in result.waiting)
    lines.write("done", status=result.status, waiting=waiting, error=repr(result.error))


def _look(runner: Flujo[Any, Any], lines: Journal) -> None:
    """Write down all that there is at the end."""
    result = runner.get(RUN)
    lines.write(
        "end",
        status=result.status,
        output=result.output,
        context=result.final_pipeline_context.lines,
        history=[[found.where, found.success, repr(found.output), found.by] for found in result.step_history],
        mail=[
            [m.kind, m.name.partition("@")[0], m.by, (m.payload or b"").decode()] for m in runner.messages(RUN)
        ],
    )  # fmt: skip


def is_whole(store: Path) -> bool:
    """Return whether a SQLite store is free of damage, as SQLite sees it."""
    connection = sqlite3.connect(store)
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])
    finally:
        connection.close()
