"""Commands that send a run something: `signal`, `pause`, `cancel`."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from flujo.cli.command import Commands, Session
from flujo.cli.faults import WELL
from flujo.cli.output import Answer, clean
from flujo.cli.reading import RunId
from flujo.cli.running import By, Quiet, Reason, data_of, executed
from flujo.errors import RunEndedError
from flujo.runner.flujo import Flujo
from flujo.runner.result import PipelineResult
from flujo.state.mail import Message

commands = Commands()


@commands.add(
    "signal", code=True, example="flujo signal A7 paid '{\"cents\": 4200}' --code shop:runner --id payment-17"
)
def signal(
    session: Session,
    run_id: RunId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal's name.")],
    value: Annotated[str | None, typer.Argument(metavar="[JSON]", help="What it carries; @FILE reads it.")] = None,
    message_id: Annotated[
        str | None, typer.Option("--id", help="The same for each try to send the same signal: it counts once.")
    ] = None,
    by: By = None,
) -> Answer:
    """Send a run a signal. It is used by the first step that waits for it."""
    payload = None if value is None else data_of(value, "The signal")
    session.state(run_id)  # that there is no such run counts for more than that it waits for no such signal
    session.runner(run_id).signal(run_id, name, payload, id=message_id, by=by)
    state = session.state(run_id)
    text = f"Signal {name!r} to run {run_id!r} is stored."
    if state["status"] == "paused":
        text += " Nobody executes the run: `flujo run` with its --run-id goes on with it."
    document = {"run_id": run_id, "signal": name, "stored": True, "status": state["status"]}
    return Answer(document=document, shown=[Text(clean(text))])


@commands.add("pause", code=True, example="flujo pause A7 --by ada --reason 'the bank is down' --code shop:runner")
def pause(session: Session, run_id: RunId, by: By = None, reason: Reason = None) -> Answer:
    """Have a run stand still until `resume`; without code, whoever executes the run, or does so next, is told to."""
    state = session.state(run_id)
    if session.has_code():
        session.runner(run_id).pause(run_id, by=by, reason=reason)
    else:
        session.wait(session.backend().post(run_id, _order("pause", by, reason)))
    state = session.state(run_id)
    held = bool((state.get("waiting") or {}).get("held"))
    text = f"Run {run_id!r} is paused." if held else (
        f"Run {run_id!r} is told to pause: it does as soon as what is under way has ended, or when it is next run."
    )  # fmt: skip
    return Answer(document={"run_id": run_id, "status": state["status"], "paused": held}, shown=[Text(clean(text))])


@commands.add("cancel", code=True, example="flujo cancel A7 --by ada --reason 'ordered twice' --code shop:runner")
def cancel(session: Session, run_id: RunId, by: By = None, reason: Reason = None, quiet: Quiet = False) -> Answer:
    """End a run: what is under way is cancelled, and its undos run.

    With code this waits until it has ended. Without code the order is stored, and whoever executes the run, or does so
    next, follows it.
    """
    state = session.state(run_id)
    if not session.has_code():
        if state["status"] == "cancelled":
            text = f"Run {run_id!r} is cancelled already."
        else:
            session.wait(session.backend().post(run_id, _order("cancel", by, reason)))
            text = f"Run {run_id!r} is told to end: with code (--code) this command does it, and waits for it."
        status = session.state(run_id)["status"]
        return Answer(document={"run_id": run_id, "status": status, "stored": True}, shown=[Text(clean(text))])

    def act(runner: Flujo[Any, Any]) -> PipelineResult[Any]:
        return runner.cancel(run_id, by=by, reason=reason)

    answer = executed(session, run_id, act, quiet=quiet, known=run_id)
    if answer.document["status"] == "cancelled":  # that is what was asked for
        return Answer(document=answer.document, shown=answer.shown, code=WELL)
    if answer.document["status"] == "completed":
        raise RunEndedError(f"Run {run_id!r} has ended (completed).", hint="It cannot be cancelled.", run_id=run_id)
    return answer


def _order(kind: str, by: str | None, reason: str | None) -> Message:
    message_id = kind if kind == "cancel" else f"{kind}/{uuid.uuid4().hex}"  # cancelled once is cancelled
    return Message(id=message_id, kind=kind, by=by, reason=reason, at=datetime.now(UTC))
