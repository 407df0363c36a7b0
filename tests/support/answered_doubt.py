"""A process that dies inside of a step with `on_crash`, or around it, and the test's end of such processes.

A kill is the name of a point: ``begun <path>`` after the save that the step is about to run, ``inside <path>`` in it,
``saved <path>`` after the save of its record, ``find`` in its reconcile function, ``claimed``, ``posted`` after a
verdict is stored, ``use`` before the save after that.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from flujo import FileBackend, Flujo, PipelineResult, Reconciled, SQLiteBackend, StateBackend, Step, current_step, step
from flujo._ids import path_text
from flujo.errors import FlujoError
from flujo.state.backends.base import State
from flujo.state.models import record_from
from tests.support.crash_forks import Forks, Journal

RUN = "run"
ITEMS = [1, 2, 3]
MAX_CRASHES = 10
FINDS = {
    "happened": Reconciled(happened=True, output=77),
    "not": Reconciled(happened=False),
    "unknown": Reconciled(happened=None),
}
Line = dict[str, Any]


class Child:
    """One process: what it runs, and where it dies."""

    def __init__(self, journal: Journal, kill: str | None, find: str, held: bool) -> None:
        self.journal, self._kill, self._find, self._held = journal, kill, find, held

    def point(self, name: str) -> None:
        if name == self._kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def charge(self, on_crash: str) -> Step[Any, Any]:
        """Return the step that is in doubt."""

        async def find(key: str) -> Reconciled:
            self.journal.write("asked", key=key)
            self.point("find")
            if self._find == "raises":
                raise ConnectionError("the bank does not answer")
            return FINDS[self._find]

        @step(name="charge", on_crash=find if on_crash == "find" else on_crash)  # type: ignore[arg-type]
        async def charge(n: int) -> int:
            current = current_step()
            path = path_text(current.path)
            self.journal.write("call", path=path, key=current.idempotency_key, attempt=current.attempt)
            self.point(f"inside {path}")
            if self._held:
                await asyncio.Event().wait()  # until the process dies of another one
            return n * 10

        return charge

    def watch(self, backend: StateBackend) -> None:
        """Put points around the port."""
        claim, save, post = backend.claim, backend.save_state, backend.post
        posted = False

        async def claimed(*args: Any, **options: Any) -> Any:
            result = await claim(*args, **options)
            self.point("claimed")
            return result

        async def save_state(run_id: str, state: State) -> None:
            if posted:
                self.point("use")
            paths = [path_text(record_from(found).path) for found in state["step_history"]]
            begun = [path_text(tuple(path)) for path in (state["position"] or {}).get("begun", ())]
            await save(run_id, state)
            for path in paths:
                self.journal.write("saved", path=path)
                self.point(f"saved {path}")
            for path in begun:
                self.point(f"begun {path}")

        async def post_message(*args: Any, **options: Any) -> int:
            nonlocal posted
            seq = await post(*args, **options)
            posted = True
            self.point("posted")
            return seq

        backend.claim = claimed  # type: ignore[method-assign]
        backend.save_state = save_state  # type: ignore[method-assign]
        backend.post = post_message  # type: ignore[method-assign]


def live(
    store: str,
    journal: str,
    kind: str,
    mode: str,
    shape: str,
    on_crash: str,
    kill: str | None,
    find: str,
    verdict: Any,
    at: str | None,
    held: bool,
) -> None:
    """Run, or give the verdict: a process's whole life."""
    child = Child(Journal(journal), kill, find, held)
    backend: StateBackend
    backend = SQLiteBackend(store, durability="process") if kind == "sqlite" else FileBackend(store)
    child.watch(backend)
    charge = child.charge(on_crash)
    top = shape == "top"

    @step
    def first(n: int) -> Any:
        return n if top else ITEMS

    @step
    def after(given: Any) -> int:
        return int(given + 1 if top else sum(given))

    middle = charge if top else Step.map_over("items", charge, max_concurrency=1 if shape == "map" else len(ITEMS))
    pipeline = first >> middle >> after
    runner: Flujo[Any, Any] = Flujo(pipeline, pipeline_name="doubt", state_backend=backend, max_crashes=MAX_CRASHES)
    try:
        result = _done(runner, mode, verdict, at)
    except FlujoError as error:
        child.journal.write("result", status=type(error).__name__, output=None, waiting=[], error=str(error))
        return
    waiting = [[found.kind, found.step] for found in result.waiting]
    history = [[found.where, found.success, found.attempts, found.by] for found in result.step_history]
    output = result.output if result.status == "completed" else None
    child.journal.write(
        "result", status=result.status, output=output, waiting=waiting, error=repr(result.error), history=history
    )


def _done(runner: Flujo[Any, Any], mode: str, verdict: Any, at: str | None) -> PipelineResult[Any]:
    if mode == "inline":
        return runner.run(1, run_id=RUN) if verdict is None else runner.resume(RUN, verdict, by="ann", at=at)

    async def main() -> PipelineResult[Any]:
        if verdict is None:
            return await runner.run_async(1, run_id=RUN)
        return await runner.resume_async(RUN, verdict, by="ann", at=at)

    return asyncio.run(main())


class Doubt:
    """The test's end: one run, and the processes that have it, one after the other."""

    def __init__(self, forks: Forks, folder: Path, kind: str, mode: str, shape: str) -> None:
        self._forks, self._journal = forks, Journal(folder / "journal")
        self._options = {"store": str(folder / "store"), "kind": kind, "mode": mode, "shape": shape}
        self.on_crash = "ask"
        self.path = "charge" if shape == "top" else "items[1].charge"
        self.charged = 10 if shape == "top" else 20  # what the step gives
        self.kills = 0

    def right(self, given: int) -> int:
        """Return the run's output where the step that is in doubt has given that."""
        return given + 1 if self.path == "charge" else 10 + given + 30

    def kill(self, point: str, **options: Any) -> None:
        """Have a process that dies at that point; {} stands for the step's path."""
        code, lines = self._process(point.format(self.path), **options)
        assert code == -signal.SIGKILL, (code, lines, self._forks.errors())
        self.kills += 1

    def run(self, **options: Any) -> Line:
        """Have a process that comes to its end, and return what it found."""
        code, lines = self._process(None, **options)
        assert code == 0, self._forks.errors()
        return lines[-1]

    def verdict(self, verdict: Any, **options: Any) -> Line:
        """Have a process that gives the verdict."""
        return self.run(verdict=verdict, **options)

    def _process(
        self, kill: str | None, *, find: str = "happened", verdict: Any = None, at: str | None = None,
        held: bool = False,
    ) -> tuple[int, list[Line]]:  # fmt: skip
        before = len(self._journal.read())
        pid = self._forks.fork(
            "answered_doubt:live", journal=self._journal.path, on_crash=self.on_crash, kill=kill, find=find,
            verdict=verdict, at=at, held=held, **self._options,
        )  # fmt: skip
        code, _ = self._forks.wait(pid)
        return code, self._journal.read()[before:]

    def attempts(self, path: str | None = None) -> list[int]:
        """Return the attempts of the step, in the order of its calls, which are all under one key."""
        calls = [line for line in self._lines("call") if line["path"] == (path or self.path)]
        assert len({line["key"] for line in calls}) <= 1, calls
        return [line["attempt"] for line in calls]

    def calls(self) -> dict[str, int]:
        """Return how often each step that may be in doubt was called."""
        paths = [line["path"] for line in self._lines("call")]
        return {path: paths.count(path) for path in sorted(set(paths))}

    def asked(self) -> int:
        """Return how often the reconcile function was asked, which was always for the key of this step."""
        keys = [line["key"] for line in self._lines("asked")]
        called = {line["key"] for line in self._lines("call") if line["path"] == self.path}
        assert len(set(keys)) <= 1 and (not called or set(keys) <= called), (keys, called)
        return len(keys)

    def check(self) -> None:
        """Nothing was saved twice, no other step was in doubt, and each has its own key."""
        saved = [line["path"] for line in self._lines("saved")]
        assert len(saved) == len(set(saved)), saved
        assert {path: times for path, times in self.calls().items() if path != self.path and times > 1} == {}
        keys = {line["path"]: line["key"] for line in self._lines("call")}
        assert len(set(keys.values())) == len(keys)

    def _lines(self, what: str) -> list[Line]:
        return [line for line in self._journal.read() if line["what"] == what]

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()
