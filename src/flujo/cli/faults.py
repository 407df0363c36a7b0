"""What an error is to whoever typed the command: an exit status, one sentence, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from flujo import errors

WELL, BAD, USAGE, NOT_FOUND, REFUSED, NO_STORE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
BROKEN_PIPE = 141  # as of a process that SIGPIPE ends
# The first that fits counts.
_STATUS: tuple[tuple[type[errors.FlujoError], int], ...] = (
    (errors.RunNotFoundError, NOT_FOUND),
    (errors.UnknownStepError, NOT_FOUND),
    (errors.RunExistsError, REFUSED),
    (errors.StepNotReachedError, REFUSED),
    (errors.InvalidChangeError, REFUSED),
    (errors.RunInProgressError, REFUSED),
    (errors.RunEndedError, REFUSED),
    (errors.MessageRefusedError, REFUSED),
    (errors.ResumeError, REFUSED),
    (errors.FencedError, REFUSED),
    (errors.UnknownTypeError, REFUSED),
    (errors.NotSerializableError, USAGE),
    (errors.StateError, NO_STORE),
    (errors.ConfigurationError, USAGE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One error: the exit status `code`, its stable `name`, `message`, and the `hint` what to do."""

    code: int
    name: str
    message: str
    hint: str = ""


def fault_of(error: BaseException) -> Fault:
    """Return what that error is to whoever typed the command."""
    if isinstance(error, errors.FlujoError):
        code = next((code for kind, code in _STATUS if isinstance(error, kind)), BAD)
        return Fault(code=code, name=error.code, message=error.message, hint=error.hint)
    if isinstance(error, typer.BadParameter.__mro__[2]):  # every mistake that the parser of options finds
        return _usage(error)
    if isinstance(error, typer.Abort):
        return Fault(code=BAD, name="aborted", message="Nothing was done.")
    if isinstance(error, KeyboardInterrupt):
        return Fault(code=INTERRUPTED, name="interrupted", message="Interrupted.")
    what = str(error).splitlines()
    return Fault(
        code=BAD, name="unexpected",
        message=f"Something went wrong that should not: {type(error).__name__}: {what[0] if what else ''}.",
        hint="--traceback shows where.",
    )  # fmt: skip


def _usage(error: BaseException) -> Fault:
    wording = getattr(error, "format_message", lambda: str(error))()
    message = " ".join(str(wording).split())
    context = getattr(error, "ctx", None)
    where = getattr(context, "command_path", "flujo")
    if not message:  # `flujo` alone: the parser has printed the help
        message = "Say which command."
    return Fault(
        code=USAGE, name="usage", message=message if message.endswith((".", "?")) else message + ".",
        hint="" if "Did you mean" in message else f"See `{where} --help`.",
    )  # fmt: skip
