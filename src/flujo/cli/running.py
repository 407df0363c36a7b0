"""Commands that execute runs: `run`, `resume`, `answer`."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.text import Text

from flujo import _ids
from flujo.cli.command import Commands, Session, head_of
from flujo.cli.faults import BAD, INTERRUPTED, WELL
from flujo.cli.output import Answer, clean, cut, plain, short, styled
from flujo.cli.progress import RunView, logging_plainly
from flujo.cli.reading import RunId, wait_of
from flujo.errors import ConfigurationError, FlujoError, RunEndedError, RunInProgressError, RunNotWaitingError
from flujo.execution.failure import describe, shown
from flujo.pipeline import check_answer_value
from flujo.runner.flujo import Flujo
from flujo.runner.opening import MISSING, InputIgnoredWarning
from flujo.runner.result import PipelineResult, waiting_of

commands = Commands()
Act = Callable[[Flujo[Any, Any]], PipelineResult[Any]]
Sending = Coroutine[Any, Any, None]

By = Annotated[str | None, typer.Option("--by", metavar="WHO", help="Who does this.")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show the result only.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another process that executes the run, and for times that are far off.")
]


@commands.add(
    "run",
    code=True,
    example='flujo run --code shop:runner --run-id A7 --input \'{"id": "A7"}\'\n'
    "flujo run --code shop:runner --run-id A7    # goes on with that run",
)
def run(
    session: Session,
    *,
    given: Annotated[
        str | None, typer.Option("--input", metavar="JSON", help="The first step's input; @FILE reads it, - is stdin.")
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", metavar="RUN_ID", help="By default a new one; of a run that exists: go on."),
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", metavar="JSON", help="What the context of a new run begins with.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", min=0.001, metavar="SECONDS", help="When it has to have ended.")
    ] = None,
    wait: Wait = False,
    quiet: Quiet = False,
) -> Answer:
    """Run a pipeline to its end, or go on with a run that was interrupted, has failed, or whose time has come."""
    name = _ids.new_run_id() if run_id is None else _ids.check_run_id(run_id)
    known = run_id if run_id is not None else None

    def act(runner: Flujo[Any, Any]) -> PipelineResult[Any]:
        first = runner._setup.code.for_new().pipeline.steps[0]
        value = MISSING if given is None else _typed(first.input_type, data_of(given, "--input"))
        initial = None if context is None else data_of(context, "--context")
        if initial is not None and not isinstance(initial, dict):
            raise ConfigurationError("--context is no JSON object.", hint="Give the context's fields: {...}.")
        return runner.run(
            value, run_id=name, wait=wait, initial_context_data=initial,
            deadline=None if deadline is None else timedelta(seconds=deadline),
        )  # fmt: skip

    return executed(session, name, act, quiet=quiet, make=True, known=known)


@commands.add("resume", code=True, example="flujo resume A7 --code shop:runner --by ada --reason 'the bank is back'")
def resume(
    session: Session, run_id: RunId, by: By = None, reason: Reason = None, wait: Wait = False, quiet: Quiet = False
) -> Answer:
    """Go on with a run that `pause` has paused, that was interrupted, or whose time has come."""
    state = session.state(run_id)
    held = bool((state.get("waiting") or {}).get("held"))
    if not held and state["status"] in ("completed", "cancelled"):
        raise RunEndedError(
            f"Run {run_id!r} has ended ({state['status']}).", hint="`flujo show` has its result.", run_id=run_id
        )
    if not held and state["status"] == "failed":
        raise RunNotWaitingError(f"Run {run_id!r} has failed.", hint="`flujo retry` tries it again.", run_id=run_id)
    if not held and state["status"] == "paused" and state.get("due_at") is None:
        waits = "; ".join(str(found) for found in waiting_of(state.get("waiting")))
        raise RunNotWaitingError(
            f"Run {run_id!r} {waits}.", hint="Use `flujo answer` or `flujo signal`.", run_id=run_id
        )

    def send(runner: Flujo[Any, Any]) -> Sending:
        return runner._post.order(run_id, "resume", by, reason)

    return executed(session, run_id, going_on(run_id, wait), quiet=quiet, known=run_id, send=send if held else None)


@commands.add("answer", code=True, example="flujo answer A7 '{\"ok\": true}' --code shop:runner --by ada")
def answer(
    session: Session,
    run_id: RunId,
    value: Annotated[str, typer.Argument(metavar="JSON", help="The answer; @FILE reads it, - is stdin.")],
    *,
    at: Annotated[
        str | None, typer.Option("--at", metavar="STEP", help="Which step, where several wait: its path.")
    ] = None,
    by: By = None,
    wait: Wait = False,
    quiet: Quiet = False,
) -> Answer:
    """Answer what a run waits for, and go on with it; where a runner has it elsewhere, that one goes on."""
    given = data_of(value, "The answer")
    session.state(run_id)

    def send(runner: Flujo[Any, Any]) -> Sending:
        return runner._post.answer(run_id, given, by, at, None)

    return executed(session, run_id, going_on(run_id, wait), quiet=quiet, known=run_id, send=send)


def going_on(run_id: str, wait: bool) -> Act:
    """Return what goes on with a run that is there."""
    return lambda runner: runner.run(run_id=run_id, wait=wait)


def executed(
    session: Session, run_id: str, act: Act, *, quiet: bool, make: bool = False, known: str | None = None,
    send: Callable[[Flujo[Any, Any]], Sending] | None = None,
) -> Answer:  # fmt: skip
    """Do it with a runner whose progress is shown, and return how it came out.

    Arguments: `make`, the store may be new; `known`, the run is there maybe; `send` sends it a message first: if the
    run then turns out to be executed elsewhere, that is where it is read, and nothing is left to be done here.
    """
    document, sent = session.given.as_json, False
    session.backend(make=make)
    view = RunView(session.screen, quiet=quiet or document, live=session.live and not quiet)
    runner = session.runner(known, make=make, hooks=[view])
    _prepare(session, view, runner, known)
    try:
        with _one_line_warnings(), logging_plainly(), view:
            if send is not None:
                session.wait(send(runner))
                sent = True
            result = act(runner)
    except RunInProgressError as error:
        if not sent:
            raise
        text = f"It is stored, and whoever executes run {run_id!r} goes on with it."
        return Answer(
            document={"run_id": run_id, "status": "running", "stored": True, "in_progress": error.message},
            shown=[Text(clean(text))],
        )
    except (KeyboardInterrupt, SystemExit) as error:
        return _interrupted(session, run_id, error)
    return result_answer(result, quiet=quiet)


def _prepare(session: Session, view: RunView, runner: Flujo[Any, Any], known: str | None) -> None:
    """Tell the view what there is to be done, so that it can say of how much."""
    if not session.live:
        return
    state = None if known is None else session.wait(head_of(session.backend(), known))
    with contextlib.suppress(FlujoError):  # whoever takes the run up says what is wrong
        code = runner._setup.code
        entry = code.for_new() if state is None else code.for_state(state)
        name = "last_step_output" if state is not None and state["current_step_index"] else "input"
        view.expect(entry.pipeline, None if state is None else state.get(name))


def _interrupted(session: Session, run_id: str, error: BaseException) -> Answer:
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else INTERRUPTED
    again = ["flujo", "run", "--run-id", run_id]
    for option, value in (
        ("--code", session.given.code), ("--state", session.given.state), ("--pipeline", session.given.pipeline)
    ):  # fmt: skip
        again += [option, value] if value else []
    line = " ".join(shlex.quote(part) for part in again)
    sys.stderr.write(clean(f"flujo: Interrupted: run {run_id!r} is as it was last saved. Go on with: {line}") + "\n")
    return Answer(document={"run_id": run_id, "status": "interrupted", "go_on": line}, code=code)


def result_answer(result: PipelineResult[Any], *, quiet: bool = False) -> Answer:
    """Return how a run came out: 0 where it completed or waits, 1 where it failed or was cancelled."""
    output = result._output if result.status == "completed" else None
    document = {
        "run_id": result.run_id, "status": result.status, "phase": result.phase,
        "pipeline_name": result.pipeline_name, "pipeline_version": result.pipeline_version, "output": plain(output),
        "error": _error(result.error), "waiting": [wait_of(found) for found in result.waiting],
        "undone": result.undone if result.phase else [],
    }  # fmt: skip
    line = Text.assemble("run ", clean(result.run_id), " ", styled(result.status))
    if result.status == "completed":
        line.append(f": {short(output, 1000 if quiet else 200)}")
    elif result.error is not None:
        line.append(f": {cut(clean(shown(result.error)), 500)}", "red")
    shown_: list[Any] = [line, *[Text("  " + clean(found)) for found in result.waiting]]
    if result.phase == "undone":
        shown_.append(Text(clean(f"  undone: {', '.join(result.undone) or 'nothing'}")))
    return Answer(document=document, shown=shown_, code=WELL if result.status in ("completed", "paused") else BAD)


def _error(error: BaseException | None) -> dict[str, Any] | None:
    if error is None:
        return None
    found = describe(error)
    return {"type": found["type"], "text": found["text"]}


def data_of(text: str, what: str) -> Any:
    """Return what was typed as data: JSON, or a plain text that does not look like it; `@FILE` and `-` are read."""
    if text == "-":
        text, what = sys.stdin.read(), "stdin"
    elif text.startswith("@"):
        try:
            text, what = Path(text[1:]).read_text(encoding="utf-8"), text[1:]
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{text[1:]} cannot be read ({error}).", hint="") from error
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip()[:1] in ("{", "[", '"') or not text.strip():
            raise ConfigurationError(
                f"{what} is no JSON: {error}.", hint="Quote it for the shell: '{\"ok\": true}'."
            ) from error
        return text


def _typed(wanted: Any, value: Any) -> Any:
    """Return the input as the first step wants it; raises ConfigurationError where it is none."""
    try:
        return check_answer_value(wanted, value)
    except ValueError as error:
        raise ConfigurationError(f"--input is not what the first step takes: {error}.", hint="") from error
    except Exception:  # a type that pydantic knows nothing of: the step will see
        return value


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Say in one line that the input is ignored."""

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
        line: str | None = None,
    ) -> None:  # fmt: skip
        if issubclass(category, InputIgnoredWarning):
            sys.stderr.write(clean(f"flujo: {message}") + "\n")
        else:
            before(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", InputIgnoredWarning)
        before = warnings.showwarning
        warnings.showwarning = show
        yield
