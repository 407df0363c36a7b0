"""Read from a function's declaration what a step needs to know to call it."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from flujo.errors import StepDefinitionError

CONTEXT = "context"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What the declaration of a function says: how to call it, and with which types."""

    fn: Callable[..., Any]
    is_async: bool
    takes_input: bool
    takes_context: bool
    input_type: Any
    output_type: Any
    context_type: Any
    doc: str

    def parts(self) -> dict[str, Any]:
        """Return what is declared, by name: these are fields of a step too."""
        return {declared.name: getattr(self, declared.name) for declared in fields(self)}


def name_of(fn: object) -> str:
    """Return the name under which the function was declared; a callable object has its class's."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__name__", None) or type(fn).__name__)


def read_function(fn: object, name: str) -> Function:
    """Read the declaration of `fn`.

    Raises StepDefinitionError, naming the step and the parameter, for what a step could never call.
    """
    if not callable(fn):
        raise StepDefinitionError(
            f"Step {name!r} is made of {fn!r}, which cannot be called.",
            hint="Decorate a function, or an object that has `__call__`.",
            step=name,
        )
    declared = _declared(fn)
    if inspect.isgeneratorfunction(declared) or inspect.isasyncgenfunction(declared):
        raise StepDefinitionError(
            f"Step {name!r} is a generator; a step has one output, which is saved when it is done.",
            hint="Return a list instead of yielding its items.",
            step=name,
        )
    parameters = _parameters(fn, name)
    given = _input_parameter(parameters, name)
    takes_context = any(found.name == CONTEXT and found.kind not in _VARIADIC for found in parameters)
    hints = _hints(declared)
    return Function(
        fn=fn,
        is_async=inspect.iscoroutinefunction(declared),
        takes_input=given is not None,
        takes_context=takes_context,
        input_type=hints.get(given.name, Any) if given else Any,
        output_type=fn if isinstance(fn, type) else hints.get("return", Any),
        context_type=hints.get(CONTEXT, Any) if takes_context else Any,
        doc=inspect.getdoc(fn if isinstance(fn, type) else declared) or "",
    )


def _declared(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function in which the annotations, the docstring and the `async` are found."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, type):
        return typing.cast(Callable[..., Any], fn.__init__)  # type: ignore[misc]  # asked of the class itself, not of a value
    if inspect.isroutine(fn):
        return fn
    return type(fn).__call__


def _parameters(fn: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(fn).parameters.values())
    except (ValueError, TypeError) as error:
        raise StepDefinitionError(
            f"The parameters of step {name!r} cannot be read: {error}.",
            hint="Wrap it in a function of your own and decorate that.",
            step=name,
        ) from error


def _input_parameter(parameters: list[inspect.Parameter], name: str) -> inspect.Parameter | None:
    """Return the parameter that takes the input; refuse those that nothing supplies."""
    given: inspect.Parameter | None = None
    for position, found in enumerate(parameters):
        if found.name == CONTEXT and found.kind not in _VARIADIC:
            _check_context(found, parameters[position + 1 :], name)
        elif given is None and found.kind in _POSITIONAL:
            given = found
        elif given is None and found.kind is inspect.Parameter.VAR_POSITIONAL:
            _refuse(
                f"Step {name!r} takes its input as '*{found.name}', but a step has one input.",
                "Declare one parameter, and annotate it.",
                name,
                found.name,
            )
        elif found.default is inspect.Parameter.empty and found.kind not in _VARIADIC:
            _refuse(
                f"Parameter {found.name!r} of step {name!r} has nothing that supplies it.",
                "A step is called with its input, as the first positional argument, and with `context`; "
                "give this one a default, bind it with functools.partial, or put it into the context.",
                name,
                found.name,
            )
    return given


def _check_context(context: inspect.Parameter, later: list[inspect.Parameter], name: str) -> None:
    # `context` is passed by name, so it must neither forbid that nor sit where the input arrives.
    hint = "Put it behind the input, best as a keyword: `def f(x, *, context)`."
    if context.kind is inspect.Parameter.POSITIONAL_ONLY:
        _refuse(f"Parameter 'context' of step {name!r} cannot be passed by name.", hint, name, CONTEXT)
    if context.kind in _POSITIONAL and any(found.kind in _POSITIONAL for found in later):
        first = next(found.name for found in later if found.kind in _POSITIONAL)
        _refuse(
            f"Parameter 'context' of step {name!r} stands before {first!r}, where the input arrives.",
            hint,
            name,
            CONTEXT,
        )


def _refuse(message: str, hint: str, name: str, parameter: str) -> NoReturn:
    raise StepDefinitionError(message, hint=hint, step=name, parameter=parameter)


def _hints(declared: Callable[..., Any]) -> dict[str, Any]:
    """Resolve the annotations one by one, so that one unknown name costs only its own."""
    try:
        annotations = inspect.get_annotations(declared)
    except NameError:  # Python 3.14 evaluates them only now, and all at once
        return {}
    unwrapped = inspect.unwrap(getattr(declared, "__func__", declared))
    names = getattr(unwrapped, "__globals__", {})
    local = dict(_enclosing_names(unwrapped, names))
    hints = {}
    for parameter, annotation in annotations.items():
        holder = types.SimpleNamespace(__annotations__={parameter: annotation})
        try:
            hints.update(typing.get_type_hints(holder, names, local, include_extras=True))
        except Exception:  # evaluating the text of an annotation can raise anything
            hints[parameter] = Any
    return hints


def _enclosing_names(fn: object, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the local names of the functions that `fn` is written inside of, the outermost first.

    They are found among the callers, as a decorator runs inside them; that a caller is also an encloser, and
    not just some function with a name of its own, is read from the qualified name.
    """
    qualified = getattr(fn, "__qualname__", "")
    frame: types.FrameType | None = sys._getframe(1) if "<locals>" in qualified else None
    found = []
    while frame is not None:
        if frame.f_globals is names and qualified.startswith(f"{frame.f_code.co_qualname}."):
            found.append(frame.f_locals)
        frame = frame.f_back
    for local in reversed(found):
        yield from local.items()
