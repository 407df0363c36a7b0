"""The app: every command in it, and what becomes of errors."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from flujo.cli import acting, comparing, doctor, foresight, reading, repairing, running, upkeep, watching
from flujo.cli.command import Given
from flujo.cli.faults import BROKEN_PIPE, Fault, fault_of
from flujo.cli.output import Screen, clean, quiet_end

_ABOUT = """See what every run does, why it does not move, and set it right.

The store is named by --state (a path or a URI) or FLUJO_STATE_URI, your code by --code module:attribute or FLUJO_CODE.
Every command has --help with an example, and --json.

Exit status: 0 well; 1 what was asked about is bad (a run failed, check or verify found something); 2 the command is
wrong; 3 there is no such thing; 4 refused (in progress, not waiting, too late); 5 the store cannot be used; 130
interrupted."""
_MODULES = (reading, watching, running, acting, repairing, foresight, comparing, upkeep, doctor)


def _version(value: bool) -> None:
    if value:
        with contextlib.suppress(PackageNotFoundError):
            typer.echo(f"flujo {version('flujo')}")
        raise typer.Exit


def _root(
    context: typer.Context,
    state: Annotated[str | None, typer.Option("--state", help="As of each command.", metavar="STORE")] = None,
    code: Annotated[str | None, typer.Option("--code", help="As of each command.", metavar="MODULE:ATTR")] = None,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = Given(state=state, code=code)


def make_app() -> typer.Typer:
    """Return the app with every command."""
    app = typer.Typer(
        name="flujo", help=_ABOUT, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )  # fmt: skip
    app.callback()(_root)
    for module in _MODULES:
        for name, command, example in module.commands.found:
            epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines())
            app.command(name, help=(command.help or ""), epilog=epilog)(command)
    return app


def command_names() -> list[str]:
    """Return the names of the commands, in the order in which the help lists them."""
    return [name for module in _MODULES for name, _, _ in module.commands.found]


@cache
def _command() -> Any:
    return typer.main.get_command(make_app())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: of a mistake one sentence, and no traceback unless asked for."""
    args = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        found: Any = _command().main(args=args or ["--help"], prog_name="flujo", standalone_mode=False)
        sys.stdout.flush()
        return found if isinstance(found, int) else 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        quiet_end()
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, args)


def _report(error: BaseException, args: list[str]) -> int:
    """Say what went wrong on stderr, in JSON mode on stdout too; return the exit status."""
    fault = fault_of(error)
    wanted = "--traceback" in args or os.environ.get("FLUJO_TRACEBACK", "") not in ("", "0")
    with contextlib.suppress(OSError):
        if "--json" in args:
            Screen().document({"error": {"code": fault.name, "message": fault.message, "hint": fault.hint}})
        if wanted:
            sys.stderr.write(clean("".join(traceback.format_exception(error)), lines=True))
        sys.stderr.write(_sentence(fault) + "\n")
        sys.stderr.flush()
    return fault.code


def _sentence(fault: Fault) -> str:
    return clean(f"flujo: {fault.message} {fault.hint}".rstrip())


def _prepare_streams() -> None:
    """Let no character be an error, whatever encoding the terminal has."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a StringIO has none
