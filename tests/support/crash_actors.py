"""Processes that do as a test tells them, step by step, and processes that race for the same runs."""

from __future__ import annotations

import asyncio
import json
import random
import select
import socket
from collections.abc import Callable
from typing import Any

from flujo import FlujoError
from flujo.errors import FencedError, RunInProgressError
from flujo.state.backends._sidecar import Sidecar
from flujo.state.backends.sqlite import tx
from tests.support.crash_forks import Forks, Journal, Switchboard, Wire, call
from tests.support.crash_pipeline import INPUT, Acknowledging, Child, runner_of

_FENCE = "AND fence = ?15"


class Actor:
    """The test's end of a process of `act`: one command at a time, one answer to each."""

    def __init__(self, forks: Forks, board: Switchboard, store: Any, journal: Journal, **options: Any) -> None:
        self.pid = forks.fork("crash_actors:act", store=str(store), journal=journal.path, wire=board.path, **options)
        self._wire = board.answer()
        self._forks = forks

    @property
    def socket(self) -> socket.socket:
        """What can be read when the process has something to say."""
        return self._wire.socket

    def run(self, run_id: str, **options: Any) -> None:
        """Begin a run. `stall`: in the first attempt of which step; `wait` attaches; `how`: "inline" or "async"."""
        self._wire.say(json.dumps({"run_id": run_id, **options}))

    def go(self) -> None:
        """End the stall."""
        self._wire.say("go")

    def hear(self, word: str) -> None:
        """Expect this word."""
        heard = self._wire.hear()
        assert heard == word, f"{heard!r}\n{self._forks.errors()}"

    def answer(self, *, attached: bool = False) -> dict[str, Any]:
        """Return how the run came out: `status` and `output`, or `error`, `text` and the error's `data`.

        With `attached` the process may say first that somebody else has the run.
        """
        heard = self._wire.hear()
        if attached and heard == "attached":
            heard = self._wire.hear()
        assert heard.startswith("{"), f"{heard!r}\n{self._forks.errors()}"
        answer: dict[str, Any] = json.loads(heard)
        return answer

    def leave(self) -> None:
        """Let the process end."""
        self._wire.say("")
        self._forks.join(self.pid)


def act(
    store: str, journal: str, wire: str, boot: str | None = None, unfenced: str = "", busy_timeout: float = 60.0
) -> None:
    """A process that executes what it is told."""
    _tamper(boot, unfenced)
    line = call(wire)
    backend = Reporting(store, busy_timeout=busy_timeout)
    backend.line = line
    while word := line.hear():
        line.say(json.dumps(_told(backend, journal, line, json.loads(word))))


class Reporting(Acknowledging):
    """Says "attached" when it finds that somebody else has the run, once a run."""

    line: Wire
    waiting = False

    async def claim(self, run_id: str, *args: Any, **options: Any) -> Any:
        try:
            return await super().claim(run_id, *args, **options)
        except RunInProgressError:
            if self.waiting:
                self.line.say("attached")
            self.waiting = False
            raise


def _told(backend: Reporting, journal: str, line: Wire, told: dict[str, Any]) -> dict[str, Any]:
    def stall(index: int) -> None:
        if index == told.get("stall"):
            told["stall"] = None  # once a run: a step may be attempted again
            line.say("stalled")
            line.hear()

    child = backend.child = Child(Journal(journal, run=told["run_id"]))
    child.stall, backend.waiting = stall, told.get("wait", False)
    runner = runner_of(child, backend)
    options = {"run_id": told["run_id"], "wait": told.get("wait", False)}
    try:
        result = (
            (asyncio.run(_awaited(runner, options))) if told.get("how") == "async" else runner.run(INPUT, **options)
        )
    except FlujoError as error:
        data = {name: str(value) for name, value in error.data.items()}
        return {"error": type(error).__name__, "text": str(error), "data": data}
    child.result(result)
    return {"status": result.status, "output": result.output}


async def _awaited(runner: Any, options: dict[str, Any]) -> Any:
    return await runner.run_async(INPUT, **options)


def race(store: str, journal: str, wire: str, runs: list[str], seed: int, boot: str | None, unfenced: str = "") -> None:
    """Bring these runs to their end against others who do the same; give up after 1,000 refusals."""
    _tamper(boot, unfenced)
    rng = random.Random(seed)
    backend = Acknowledging(store)
    line = call(wire)
    line.say("ready")
    line.hear()
    refusals = 0
    for run_id in runs:
        while True:
            child = backend.child = Child(Journal(journal, run=run_id))
            child.stall = _stalls(rng)
            try:
                child.result(runner_of(child, backend).run(INPUT, run_id=run_id, wait=boot is None))
                break
            except FencedError:
                child.journal.write("fenced")
            except FlujoError as error:
                if not unfenced:
                    raise
                child.journal.write("trouble", text=str(error))
                break
            refusals += 1
            assert refusals < 1000, "nobody gets anywhere"
            _let_others(rng)


def _stalls(rng: random.Random) -> Callable[[int], None]:
    return lambda index: _let_others(rng) if rng.random() < 0.3 else None


def _let_others(rng: random.Random) -> None:
    """Do nothing for 1 to 6 ms, a multiple of the lease."""
    select.select([], [], [], 0.001 + rng.random() / 200)


def _tamper(boot: str | None, unfenced: str) -> None:
    """Pretend to be on a machine called `boot`, where leases are as good as over, and leave out the fence.

    `unfenced` "fence" leaves out the fence alone, "all" also lets a second save of a step replace the first.
    """
    if boot is not None:
        tx.boot_id = tx.machine_id = lambda: boot
        tx.LEASE_US = 1
        Sidecar.alive = lambda self, owner: False  # type: ignore[method-assign]  # no lock reaches another machine
    if unfenced:
        assert _FENCE in tx._APPEND and "INSERT OR IGNORE" in tx._APPEND
        tx._APPEND = tx._APPEND.replace(_FENCE, "AND ?15 IS NOT NULL")
    if unfenced == "all":
        tx._APPEND = tx._APPEND.replace("INSERT OR IGNORE", "INSERT OR REPLACE")
