"""What every command shares: its options, the store and the code that it works with, and how it answers."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from flujo.cli import code as coding
from flujo.cli import store
from flujo.cli.faults import BROKEN_PIPE, INTERRUPTED
from flujo.cli.output import Answer, Screen, apart, quiet_end
from flujo.errors import FlujoError, RunNotFoundError
from flujo.execution.events import Hook
from flujo.runner.executing import run_now
from flujo.runner.flujo import Flujo
from flujo.runner.opening import not_found
from flujo.state.backends._log import LogBackend
from flujo.state.backends.base import Reading, State, StateBackend

T = TypeVar("T")
Work = Callable[..., Answer | Coroutine[Any, Any, Answer]]

_LOOKED_AT = 1000  # runs, to find one that could have been meant
_STATE = "The store: the path of a SQLite file or of a folder, or a URI. Default: FLUJO_STATE_URI."
_CODE = "Your code, as module:attribute: a Flujo, a Pipeline, a Step or a registry. Default: FLUJO_CODE."
_PIPELINE = "Which pipeline of a registry."
_JSON = "Answer with one JSON document."
_TRACEBACK = "Show where an error comes from. Also with FLUJO_TRACEBACK=1."

# The options that a command has besides its own, by the name of its parameter.
_SHARED: dict[str, tuple[Any, Any]] = {
    "state": (Annotated[str | None, typer.Option("--state", help=_STATE, metavar="STORE")], None),
    "code": (Annotated[str | None, typer.Option("--code", help=_CODE, metavar="MODULE:ATTR")], None),
    "pipeline": (Annotated[str | None, typer.Option("--pipeline", help=_PIPELINE, metavar="NAME")], None),
    "as_json": (Annotated[bool, typer.Option("--json", help=_JSON)], False),
    "traceback": (Annotated[bool, typer.Option("--traceback", help=_TRACEBACK)], False),
}


@dataclass(slots=True, kw_only=True)
class Given:
    """The shared options of one call; `at_root` are those that stood before the command's name."""

    state: str | None = None
    code: str | None = None
    pipeline: str | None = None
    as_json: bool = False
    traceback: bool = False


class Session:
    """One call of a command."""

    def __init__(self, given: Given, screen: Screen) -> None:
        self.given, self.screen = given, screen
        self.live = screen.terminal and not given.as_json
        self._found: coding.Found | None = None
        self._opened: list[StateBackend] = []
        self._backend: StateBackend | None = None

    def code(self) -> coding.Found:
        """Return the code, which is imported at the first call; raises ConfigurationError."""
        if self._found is None:
            self._found = coding.load(self.given.code)
        return self._found

    def has_code(self) -> bool:
        """Return whether any code was named."""
        return coding.named(self.given.code)

    def backend(self, *, make: bool = False) -> StateBackend:
        """Return the store: that of --state, else the code's own, else that of FLUJO_STATE_URI."""
        if self._backend is None:
            own = None
            if self.given.state is None and self.has_code():
                own = coding.own_backend(self.code())
            if own is not None:
                if not make:
                    store.check_there(own)
                self._backend = own
            else:
                self._backend = store.opened(self.given.state, make=make)
                self._opened.append(self._backend)
        return self._backend

    def reading(self) -> LogBackend:
        """Return the store as one that can be looked into."""
        return store.reading(self.backend())

    def adopt(self, backend: StateBackend) -> None:
        """Close that backend at the end, too."""
        self._opened.append(backend)

    def runner(self, run_id: str | None = None, *, make: bool = False, hooks: Sequence[Hook] = ()) -> Flujo[Any, Any]:
        """Return a runner of the code on the store, of the pipeline that the run belongs to."""
        found, backend = self.code(), self.backend(make=make)
        stored = None
        if run_id is not None:
            state = self.wait(head_of(backend, run_id))
            stored = state["pipeline_name"] if state is not None else None
        return coding.runner_of(found, backend, self.given.pipeline, stored=stored, hooks=hooks)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the coroutine returns."""
        return run_now(work)

    def state(self, run_id: str) -> State:
        """Return the newest state of a run, without its records; raises RunNotFoundError."""
        state = self.wait(head_of(self.backend(), run_id))
        if state is None:
            raise not_found(run_id)
        return state

    def close(self) -> None:
        """Close what was opened here; the code's own store stays as it is."""
        for backend in self._opened:
            self.wait(backend.close())


async def head_of(backend: StateBackend, run_id: str) -> State | None:
    """Return a run's newest state, without its step records where the backend can leave them out."""
    return await (backend.load_at(run_id) if isinstance(backend, Reading) else backend.load_state(run_id))


class Command:
    """A function of a session as something that typer can make a command of: with the shared options added."""

    def __init__(self, work: Work, shared: Sequence[str]) -> None:
        self._work = work
        hints = typing.get_type_hints(work, include_extras=True)
        own = list(inspect.signature(work).parameters.values())[1:]
        parameters = [found.replace(annotation=hints[found.name]) for found in own]
        for name in shared:
            annotation, default = _SHARED[name]
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
        parser = inspect.Parameter("parser", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        self.__signature__ = inspect.Signature([*parameters, parser])
        self.__annotations__ = {found.name: found.annotation for found in [*parameters, parser]}
        self.__name__ = work.__name__
        self.help = inspect.getdoc(work) or ""

    def __call__(self, parser: typer.Context, **given: Any) -> int:
        """Do the work, print the answer, and return the exit status."""
        root: Given = parser.obj
        shared = Given(**{name: given.pop(name) for name in _SHARED if name in given})
        shared.state = shared.state if shared.state is not None else root.state
        shared.code = shared.code if shared.code is not None else root.code
        screen = Screen()
        session = Session(shared, screen)
        try:
            with apart(shared.as_json):
                found = self._work(session, **given)
                answer = found if isinstance(found, Answer) else session.wait(found)
            if shared.as_json:
                screen.document(answer.document)
            else:
                screen.show(*answer.shown)
            return answer.code
        except BrokenPipeError:
            quiet_end()
            return BROKEN_PIPE
        except KeyboardInterrupt:
            sys.stderr.write("flujo: Interrupted.\n")
            return INTERRUPTED
        except RunNotFoundError as error:
            error.hint = session.wait(_instead(session, str(error.data.get("run_id", ""))))
            raise
        finally:
            session.close()


async def _instead(session: Session, run_id: str) -> str:
    """Return which run could have been meant."""
    with contextlib.suppress(FlujoError):
        names = [found.run_id for found in await session.reading().list_runs(limit=_LOOKED_AT)]
        lower = {name.lower(): name for name in reversed(names)}
        close = [name for name in names if name.lower().startswith(run_id.lower())] or [
            lower[name] for name in difflib.get_close_matches(run_id.lower(), lower, n=1)
        ]
        if close:
            return f"Did you mean {close[0]!r}?"
    return "`flujo list` shows what there is."


class Commands:
    """The commands of one module, as they are added to the app."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Command, str]] = []

    def add(self, name: str, *, example: str, code: bool = False, state: bool = True) -> Callable[[Work], Work]:
        """Return a decorator that makes a command of a function.

        Arguments: `example`, lines that are shown below the help; `code` and `state`, whether it works with code and
        with a store.
        """
        shared = ["state"] * state + ["code", "pipeline"] * code + ["as_json", "traceback"]

        def register(work: Work) -> Work:
            self.found.append((name, Command(work, shared), example))
            return work

        return register
