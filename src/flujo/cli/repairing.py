"""Commands that set runs right: `retry`, `fork`, `edit`, `takeover`. Each is recorded with who did it and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from flujo.cli.command import Commands, Session
from flujo.cli.faults import BAD, WELL
from flujo.cli.output import Answer, clean, cut, many, styled, table
from flujo.cli.progress import counting, logging_plainly
from flujo.cli.reading import RunId
from flujo.cli.running import By, Quiet, Reason, Wait, data_of, executed
from flujo.errors import ConfigurationError, FlujoError
from flujo.execution.events import Event, RunEnded, RunPaused
from flujo.execution.failure import shown
from flujo.runner.flujo import Flujo
from flujo.runner.opening import MISSING
from flujo.runner.result import PipelineResult

commands = Commands()


@commands.add(
    "fork", code=True,
    example="flujo fork A7 --step charge --code shop:runner --by ada\n"
    "flujo fork A7 --step ship --output size='\"approved\"' --run --code shop:runner",
)  # fmt: skip
def fork(
    session: Session,
    run_id: RunId,
    *,
    step: Annotated[
        str, typer.Option("--step", metavar="STEP", help="What the new run begins with; or the number of steps before.")
    ],
    new_run_id: Annotated[
        str | None, typer.Option("--new-run-id", metavar="RUN_ID", help="By default one is made up.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", metavar="STEP=JSON", help="Another output of the step right before it."),
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", metavar="JSON", help="Other values of the context's fields: {...}.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Go on with the new run at once.")] = False,
    by: By = None,
    reason: Reason = None,
    quiet: Quiet = False,
) -> Answer:
    """Make a new run from a step of an old one, with what was done before it; the old run stays as it is."""
    session.state(run_id)
    outputs = dict(_pair(text) for text in output or [])
    fields = None if context is None else _fields(context)
    at = int(step) if step.isdecimal() else step
    new = session.runner(run_id).fork(
        run_id, at, new_run_id=new_run_id, outputs=outputs or None, context=fields, by=by, reason=reason
    )
    if not run:
        return _done(
            new, f"Run {new!r} is made of run {run_id!r}, from step {step!r} on.", forked_from=run_id, step=step
        )

    def act(runner: Flujo[Any, Any]) -> PipelineResult[Any]:
        return runner.run(run_id=new)

    return executed(session, new, act, quiet=quiet, known=new)


@commands.add(
    "edit", code=True,
    example="flujo edit A7 --context '{\"notes\": []}' --by ada --reason 'a wrong note' --code shop:runner",
)  # fmt: skip
def edit(
    session: Session,
    run_id: RunId,
    context: Annotated[
        str | None, typer.Option("--context", metavar="JSON", help="New values of the context's fields: {...}.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="JSON", help="Another output of the last step that was done.")
    ] = None,
    by: By = None,
    reason: Reason = None,
) -> Answer:
    """Change the context, or the last output, of a run that nobody executes. An older output is changed by `fork`."""
    if context is None and output is None:
        raise ConfigurationError("There is nothing to change.", hint="Give --context or --output.")
    session.state(run_id)
    fields = None if context is None else _fields(context)
    value = MISSING if output is None else data_of(output, "--output")
    session.runner(run_id).edit(run_id, context=fields, output=value, by=by, reason=reason)
    return _done(run_id, f"Run {run_id!r} is changed.")


@commands.add(
    "retry",
    code=True,
    example="flujo retry A7 --code shop:runner --by ada --reason 'the bank is back'\n"
    "flujo retry A7 --alike --code shop:runner --by ada    # that run, and all that failed alike",
)
def retry(
    session: Session,
    run_id: RunId,
    *,
    alike: Annotated[bool, typer.Option("--alike", help="Also every other run that failed alike.")] = False,
    by: By = None,
    reason: Reason = None,
    wait: Wait = False,
    quiet: Quiet = False,
) -> Answer:
    """Try a failed run again, from the step that failed, and record who did it and why."""
    session.state(run_id)
    if alike:
        return _all(session, run_id, by, reason)

    def act(runner: Flujo[Any, Any]) -> PipelineResult[Any]:
        return runner.retry(run_id, by=by, reason=reason, wait=wait)

    return executed(session, run_id, act, quiet=quiet, known=run_id)


def _all(session: Session, run_id: str, by: str | None, reason: str | None) -> Answer:
    ended = 0

    def count(event: Event) -> None:
        nonlocal ended
        if isinstance(event, RunEnded | RunPaused):
            ended += 1
            report(ended, None)

    quiet = session.given.as_json
    with logging_plainly(), counting("retrying", quiet=quiet) as report:
        found = session.runner(run_id, hooks=[count]).retry_all(run_id, by=by, reason=reason)
    runs = [_outcome(name, result) for name, result in sorted(found.items())]
    rows = [(run["run_id"], styled(run["status"]), cut(clean(run["error"] or ""), 100)) for run in runs]
    well = sum(run["status"] in ("completed", "paused") for run in runs)
    text = f"{many(len(runs), 'run')} tried again: {well} went well."
    return Answer(
        document={"runs": runs, "tried": len(runs), "went_well": well},
        shown=[table(["run", "status", "error"], rows), text] if runs else [text],
        code=WELL if well == len(runs) else BAD,
    )


def _outcome(run_id: str, found: PipelineResult[Any] | FlujoError) -> dict[str, Any]:
    if isinstance(found, FlujoError):
        return {"run_id": run_id, "status": "refused", "error": found.message}
    error = None if found.error is None else shown(found.error)
    return {"run_id": run_id, "status": found.status, "error": error}


@commands.add(
    "takeover", code=True, example="flujo takeover A7 --force --by ada --reason 'its process hangs' --code shop:runner"
)
def takeover(
    session: Session,
    run_id: RunId,
    *,
    force: Annotated[bool, typer.Option("--force", help="Yes, from an owner that may live.")] = False,
    by: By = None,
    reason: Reason = None,
    quiet: Quiet = False,
) -> Answer:
    """Take a run from an owner that hangs, and go on with it here: what that one saves afterwards is refused.

    The step that it is at may be done twice. A run whose owner is dead needs no force: `flujo run` goes on with it.
    """
    session.state(run_id)
    if not force:
        raise ConfigurationError(
            "This takes a run from an owner that may live, so that a step may be done twice.",
            hint="Say --force if that is meant; `flujo why` says who has it.",
        )

    def act(runner: Flujo[Any, Any]) -> PipelineResult[Any]:
        return runner.takeover(run_id, by=by, reason=reason)

    return executed(session, run_id, act, quiet=quiet, known=run_id)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigurationError(f"--output {text!r} names no step.", hint="Write STEP=JSON.")
    return name, data_of(value, f"The output of {name!r}")


def _fields(text: str) -> dict[str, Any]:
    found = data_of(text, "--context")
    if not isinstance(found, dict):
        raise ConfigurationError("--context is no JSON object.", hint='Give the fields to change: {"name": value}.')
    return found


def _done(run_id: str, text: str, **more: Any) -> Answer:
    return Answer(document={"run_id": run_id, **more}, shown=[Text(clean(text))])
