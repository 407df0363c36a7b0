"""Orders, answers and signals to a run that another process executes; what is measured here is real time."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, PipelineResult
from flujo.errors import RunInProgressError
from flujo.state.mail import waits_of
from tests.support.crash_forks import Forks, Journal, Switchboard, Wire, switchboard
from tests.support.nested_runs import PATIENCE_S
from tests.support.waiting_child import RUN, held, plain

SOON = 1.0  # s, from an order until its run has heard of it; the store is looked at four times a second
TRIES = 3  # the machine is shared, and a process may not be given the time
Result = PipelineResult[Any]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def board() -> Iterator[Switchboard]:
    with switchboard() as found:
        yield found


class Elsewhere:
    """A run that a process of its own executes, and which has come to the step that is held."""

    def __init__(self, forks: Forks, board: Switchboard, folder: Path, kind: str, *, plain_step: bool = False) -> None:
        folder.mkdir()
        self._forks, self._plain_step = forks, plain_step
        self.journal = Journal(folder / "journal")
        self.pid = forks.fork(
            "waiting_child:owner", store=str(folder / "store"), journal=self.journal.path, wire=board.path, kind=kind,
            plain_step=plain_step,
        )  # fmt: skip
        self.wire: Wire = board.answer()
        assert self.wire.hear() == "begun"
        self.backend = plain(kind, str(folder / "store"))
        self.flow: Flujo[Any, Any] = Flujo(
            held(None, self.journal, plain_step=plain_step), pipeline_name="held", state_backend=self.backend
        )

    def told(self, what: str) -> list[dict[str, Any]]:
        """Return what was written down of that."""
        return [line for line in self.journal.read() if line["what"] == what]

    async def asks(self) -> None:
        """Wait until it is in the store that a person is asked."""
        async with asyncio.timeout(PATIENCE_S):
            while not waits_of((await self.backend.load_state(RUN) or {}).get("waiting")):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop the owner where it writes nothing: whoever is stopped with the store's lock keeps all others waiting."""
        await self.asks()  # that is the last that it saves before it is told anything
        await self.backend._store().write(RUN, lambda tx: None)  # and its lock is free again
        os.kill(self.pid, signal.SIGSTOP)

    async def comes(self, what: str) -> None:
        """Wait until that is written down."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.told(what):  # noqa: ASYNC110  (another process writes it)
                await asyncio.sleep(0.005)

    def ended(self) -> dict[str, Any]:
        """Wait for the owner's end, and return its result."""
        self.wire.say("go")  # a thread of it may still listen
        self._forks.join(self.pid)
        (result,) = self.told("result")
        return result

    def close(self) -> None:
        """Close the store."""
        asyncio.run(self.backend.close())


@pytest.fixture(params=["sqlite", "file"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("plain_step", [False, True])
def test_cancelling(forks: Forks, board: Switchboard, tmp_path: Path, kind: str, plain_step: bool) -> None:
    """The owner hears of it within a second, cancels what is under way, undoes what it has done, and ends the run; who
    has cancelled it gets the result, with who and why."""
    took: list[float] = []
    for number in range(TRIES):
        there = Elsewhere(forks, board, tmp_path / f"{number}", kind, plain_step=plain_step)
        begun = time.monotonic()
        result = there.flow.cancel(RUN, by="ann", reason="a mistake")
        took.append(time.monotonic() - begun)
        assert (result.status, result.undone) == ("cancelled", ["first"])
        said = result.cancelled
        assert said is not None and (said["by"], said["reason"]) == ("ann", "a mistake")
        owners = there.ended()
        assert (owners["status"], owners["cancelled"], owners["pid"]) == ("cancelled", said, there.pid)
        assert [line["pid"] for line in there.told("cancelled") + there.told("undone")] == [there.pid] * 2
        assert there.told("after") == []
        there.close()
        if took[-1] < SOON:
            break
    assert min(took) < SOON, took


@pytest.mark.slow
def test_pausing_and_resuming(forks: Forks, board: Switchboard, tmp_path: Path, kind: str) -> None:
    """`pause` does not wait for the owner; what is under way there comes to its end, and the run goes on here."""
    there = Elsewhere(forks, board, tmp_path / "run", kind)
    begun = time.monotonic()
    there.flow.pause(RUN, by="ann", reason="a look at it")
    assert time.monotonic() - begun < PATIENCE_S / 2
    with pytest.raises(RunInProgressError):
        there.flow.run(run_id=RUN)
    there.wire.say("go")
    assert there.wire.hear() == "over"
    owners = there.ended()
    assert owners["status"] == "paused" and owners["waiting"][0] == "was paused by ann: a look at it"
    assert there.told("cancelled") == []
    result = there.flow.resume(RUN, 5, by="bob")
    assert result.status == "paused" and there.told("after") == []
    assert there.flow.resume(RUN).status == "paused"
    assert [line["pid"] for line in there.told("after")] == [os.getpid()]
    there.flow.signal(RUN, "go", 7)
    assert there.flow.run(run_id=RUN).output == 7
    said = [(m.kind, m.by) for m in there.flow.messages(RUN)]
    assert said == [("pause", "ann"), ("answer", "bob"), ("resume", None), ("signal", None)]
    there.close()


@pytest.mark.slow
def test_answering(forks: Forks, board: Switchboard, tmp_path: Path, kind: str) -> None:
    """An answer reaches the owner within a second, and what follows it is done there while the rest goes on. A signal
    that comes before anything waits for it is kept. Who has answered gets the result of the run."""
    took: list[float] = []

    async def main(there: Elsewhere) -> Result:
        await there.flow.signal_async(RUN, "go", 7, by="cid")
        await there.asks()
        begun = time.monotonic()
        answering = asyncio.ensure_future(there.flow.resume_async(RUN, 5, by="ann"))
        await there.comes("after")
        took.append(time.monotonic() - begun)
        assert not answering.done()
        there.wire.say("go")
        return await answering

    for number in range(TRIES):
        there = Elsewhere(forks, board, tmp_path / f"{number}", kind)
        result = asyncio.run(main(there))
        assert (result.status, result.output) == ("completed", 7)
        assert {record.where: record.by for record in result.step_history if record.by} == {
            "fan.who.ask": "ann", "go": "cid",
        }  # fmt: skip
        assert there.ended()["status"] == "completed"
        assert [line["pid"] for line in there.told("after")] == [there.pid]
        there.close()
        if took[-1] < SOON:
            break
    assert min(took) < SOON, took


@pytest.mark.slow
def test_the_owner_dies_before_it_hears(forks: Forks, board: Switchboard, tmp_path: Path, kind: str) -> None:
    """Who cancels waits for an owner that lives, and ends the run itself when the owner has died."""
    there = Elsewhere(forks, board, tmp_path / "run", kind)

    async def main() -> Result:
        await there.stop()
        cancelling = asyncio.ensure_future(there.flow.cancel_async(RUN, by="ann"))  # type: ignore[arg-type]
        async with asyncio.timeout(PATIENCE_S):
            while not await there.backend.mail(RUN):  # noqa: ASYNC110  (the store rings no event)
                await asyncio.sleep(0.005)
            assert not cancelling.done() and there.told("undone") == []
            forks.kill(there.pid)
            result: Result = await cancelling
            return result

    result = asyncio.run(main())
    assert (result.status, result.undone) == ("cancelled", ["first"])
    assert [line["pid"] for line in there.told("undone")] == [os.getpid()]
    there.close()


@pytest.mark.slow
def test_the_owner_dies_paused(forks: Forks, board: Switchboard, tmp_path: Path, kind: str) -> None:
    """A pause that the owner has not lived to obey is obeyed by the next who takes the run up."""
    there = Elsewhere(forks, board, tmp_path / "run", kind)
    asyncio.run(there.stop())
    there.flow.pause(RUN, by="ann")
    forks.kill(there.pid)
    result = there.flow.run(run_id=RUN)
    assert result.status == "paused" and result.waiting[0].by == "ann"
    assert there.told("after") == [] and there.told("cancelled") == []
    assert there.flow.cancel(RUN).undone == ["first"]
    there.close()
