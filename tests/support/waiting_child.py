"""Children that run, answer and finish runs that wait: they write down what they do, and die where they are told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from flujo import FileBackend, Flujo, Pipeline, Reconciled, SQLiteBackend, StateBackend, Step, current_step, step
from flujo.errors import AlreadyAnsweredError, RunNotWaitingError
from flujo.state.mail import Message
from tests.support.crash_forks import Journal, Wire, call
from tests.support.nested_child import Death, Telling, TellingFiles, TellingSQLite, Trace

RUN = "run"
ANSWER, SIGNAL, CHARGED = 5, 6, 77
OUTPUT = 1177  # what `order` makes of them


class Posting(Telling):
    """Passes a point before and after each message is stored."""

    async def post(self, run_id: str, message: Message) -> int:
        self.trace.point("post")
        seq = await super().post(run_id, message)
        self.trace.point("posted")
        return seq


class PostingSQLite(Posting, TellingSQLite):
    """A SQLite store."""


class PostingFiles(Posting, TellingFiles):
    """A directory."""


BACKENDS: dict[str, Callable[[str], StateBackend]] = {
    "sqlite": lambda store: PostingSQLite(store, durability="process"),
    "file": lambda store: PostingFiles(store, durability="process"),
}


def plain(kind: str, store: str) -> StateBackend:
    """Open a store as users do."""
    made: StateBackend
    made = SQLiteBackend(store, durability="process") if kind == "sqlite" else FileBackend(store, durability="process")
    return made


class Steps:
    """Steps that write down when they begin and end, and charges whose effect is a line in the journal."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def does(self, name: str, does: Callable[[Any], Any] = lambda n: n, **options: Any) -> Step[Any, Any]:
        """Return a step."""

        @step(name=name, **options)
        async def work(given: Any) -> Any:
            path = current_step().path
            self._trace.begin(path, given, None)
            self._trace.end(path)
            return does(given)

        return work

    def charge(self, on_crash: str) -> Step[Any, Any]:
        """Return a step that has an effect elsewhere, which has to come about once."""

        @step(name="charge", on_crash=self.find_out if on_crash == "find out" else on_crash)  # type: ignore[arg-type]
        async def charge(given: int) -> int:
            current = current_step()
            self._trace.begin(current.path, given, None)
            self._trace.write("effect", path=current.path, key=current.idempotency_key)
            self._trace.end(current.path)
            return CHARGED

        return charge

    async def find_out(self, key: str) -> Reconciled:
        """Look whether the effect is there."""
        self._trace.write("asked", key=key)
        happened = any(line["what"] == "effect" and line["key"] == key for line in self._trace.journal.read())
        return Reconciled(happened=happened, output=CHARGED if happened else None)

    def order(self) -> Pipeline[Any, Any]:
        """Return a pipeline that waits for a person and for a signal at once, and whose charge may be in doubt."""
        left = self.does("a") >> Step.human_in_the_loop("ask", "?", int) >> self.does("b")
        right = self.does("c") >> Step.wait_for("go", int) >> self.does("d")
        return (
            self.does("pack")
            >> Step.parallel("fan", left=left, right=right)
            >> self.does("add", lambda found: 100 * (found["left"] + found["right"]))
            >> Step.parallel("pay", charge=self.charge("find out"), other=self.does("e"))
            >> self.does("ship", lambda found: found["charge"] + found["other"])
        )

    def charges(self, on_crash: str, *, nested: bool) -> Pipeline[Any, Any]:
        """Return a pipeline with a charge."""
        charge = self.charge(on_crash)
        body: Any = Step.parallel("fan", one=charge, two=self.does("e")) if nested else charge
        return self.does("pack") >> body >> self.does("ship")


def attempt(
    store: str,
    journal: str,
    kind: str = "sqlite",
    do: str = "run",
    death: Death | None = None,
    charges: tuple[str, bool] | None = None,
    happened: bool = False,
    inline: bool = False,
    max_crashes: int = 1000,
) -> int:
    """Run, answer or signal the run; the child's whole life."""
    trace = Trace(Journal(journal), tuple(death) if death else None)  # type: ignore[arg-type]
    backend = BACKENDS[kind](store)
    assert isinstance(backend, Telling)
    backend.trace = trace
    steps = Steps(trace)
    pipeline = steps.order() if charges is None else steps.charges(charges[0], nested=charges[1])
    flow: Flujo[Any, Any] = Flujo(pipeline, pipeline_name="waiting", state_backend=backend, max_crashes=max_crashes)
    trace.write("process")
    verdict = {"happened": happened, "output": CHARGED if happened else None}
    result = asyncio.run(_done(flow, do, verdict)) if not inline else _done_inline(flow, do, verdict)
    output = repr(result.output) if result.status == "completed" else None
    trace.journal.write("result", status=result.status, output=output, error=repr(result.error))
    return 0


def _done_inline(flow: Flujo[Any, Any], do: str, verdict: Any) -> Any:
    with contextlib.suppress(AlreadyAnsweredError, RunNotWaitingError):
        if do == "answer":
            return flow.resume(RUN, ANSWER, by="ann", at="fan.left.ask")
        if do == "verdict":
            return flow.resume(RUN, verdict, by="ann")
    if do == "signal":
        flow.signal(RUN, "go", SIGNAL, id="one", by="bob")
    return flow.run(7, run_id=RUN)


async def _done(flow: Flujo[Any, Any], do: str, verdict: Any) -> Any:
    with contextlib.suppress(AlreadyAnsweredError, RunNotWaitingError):
        if do == "answer":
            return await flow.resume_async(RUN, ANSWER, by="ann", at="fan.left.ask")
        if do == "verdict":
            return await flow.resume_async(RUN, verdict, by="ann")
    if do == "signal":
        await flow.signal_async(RUN, "go", SIGNAL, id="one", by="bob")
    return await flow.run_async(7, run_id=RUN)


# A run that one process executes while another one sends it messages.


def held(wire: Wire | None, journal: Journal | None, *, plain_step: bool = False) -> Pipeline[Any, Any]:
    """Return a pipeline that comes to a step which lasts until the wire says "go", or for ever."""

    def note(what: str) -> None:
        if journal is not None:
            journal.write(what)

    async def undo(_: Any) -> None:
        note("undone")

    @step(name="first", undo=undo)
    async def first(n: int) -> int:
        return n + 1

    @step(name="hold")
    async def hold(n: int) -> int:
        assert wire is not None
        wire.say("begun")
        try:
            await asyncio.to_thread(wire.hear)
        except asyncio.CancelledError:
            note("cancelled")
            wire.say("cancelled")
            raise
        return n

    @step(name="hold")
    def hold_plain(n: int) -> int:
        assert wire is not None
        wire.say("begun")
        while not current_step().cancelled:
            pass
        note("cancelled")
        return n

    @step(name="after")
    async def after(n: Any) -> Any:
        note("after")
        return n

    who = Step.human_in_the_loop("ask", "?", int) >> after
    fan = Step.parallel("fan", hold=hold_plain if plain_step else hold, who=who)
    return first >> fan >> Step.wait_for("go", int)


def owner(store: str, journal: str, wire: str, kind: str = "sqlite", plain_step: bool = False) -> int:
    """Execute the run; the child's whole life."""
    notes = Journal(journal)
    line = call(wire)
    pipeline = held(line, notes, plain_step=plain_step)
    flow: Flujo[Any, Any] = Flujo(pipeline, pipeline_name="held", state_backend=plain(kind, store))
    result = flow.run(1, run_id=RUN)
    notes.write("result", status=result.status, cancelled=result.cancelled, waiting=[str(w) for w in result.waiting])
    line.say("over")
    return 0
