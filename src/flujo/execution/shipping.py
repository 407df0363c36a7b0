"""What goes to an executor's process, and what comes back: only what is in flight is pickled, never what is stored.

The executor itself is given `perform` and bytes, which every pickler can send, and gives bytes back. So what cannot be
pickled is found here, part by part, and not inside the executor, where it would break the pool or not name the step.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import pickle
import sys
import uuid
from collections.abc import Callable
from contextvars import copy_context
from types import TracebackType
from typing import Any

from pydantic import BaseModel

from flujo.errors import NonRetryableError
from flujo.execution.current import CURRENT, CurrentStep
from flujo.execution.failure import describe, recorded
from flujo.pipeline import Step

FUNCTION, INPUT, CONTEXT, OUTPUT = "function", "input", "context", "output"

# What came of a call, and what follows: output and context; the error; its text; the part and what is wrong with it.
DONE, RAISED, ENDED, REFUSED = "done", "raised", "ended", "refused"
Outcome = tuple[Any, ...]


class Unsendable(Exception):
    """One part of a call could not be pickled, or not be made again on the other side; `args` are part and reason."""


class _WorkerTraceback(Exception):
    """The traceback of an error in another process, as text: the cause of what is raised here."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def pack(step: Step[Any, Any], given: Any, context: Any, current: CurrentStep, *, by_value: bool) -> tuple[Any, ...]:
    """Return the arguments of `perform`; raises Unsendable.

    `by_value`: functions and classes that other processes cannot import are sent whole, as cloudpickle does it.
    """
    # The last makes each attempt's call another one: Dask gives equal calls the result of the first.
    facts = (current.run_id, current.path, current.attempt, current.generation, by_value, uuid.uuid4().hex)
    parts = [(FUNCTION, step.fn)]
    if step.takes_input:
        parts.append((INPUT, given))
    if step.takes_context:
        parts.append((CONTEXT, context))
    packed = {}
    for part, value in parts:
        try:
            packed[part] = _dumps(value, by_value)
        except Exception as error:  # whatever a `__reduce__` raises
            raise Unsendable(part, reason(error)) from error
    return pickle.dumps(facts), packed[FUNCTION], packed.get(INPUT), packed.get(CONTEXT)


def perform(facts: bytes, function: bytes, given: bytes | None, context: bytes | None) -> Outcome:
    """Call a step's function; runs in the executor's process, and raises nothing."""
    run_id, path, attempt, generation, by_value, _ = pickle.loads(facts)
    part = FUNCTION
    try:
        fn = pickle.loads(function)
        part = INPUT
        arguments = () if given is None else (pickle.loads(given),)
        part = CONTEXT
        options = {} if context is None else {"context": pickle.loads(context)}
    except Exception as error:
        return REFUSED, part, reason(error)
    current = CurrentStep(run_id, path, attempt, None)
    current.generation = generation
    try:
        output = copy_context().run(_call, current, fn, arguments, options)
    except Exception as error:
        told = describe(error.with_traceback(_own_frames_skipped(error.__traceback__)))
        return RAISED, _dumped_error(error, by_value), told, isinstance(error, NonRetryableError)
    except BaseException as error:  # sys.exit, Ctrl-C: they end this process, and not the runner's
        return ENDED, reason(error)
    return _packed(output, options.get("context"), by_value)


def _call(current: CurrentStep, fn: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    CURRENT.set(current)
    return fn(*arguments, **options)


def _packed(output: Any, context: Any, by_value: bool) -> Outcome:
    if inspect.iscoroutine(output):
        output.close()
        return REFUSED, OUTPUT, "it is a coroutine, and an executor runs plain functions"
    part = OUTPUT
    try:
        packed = _dumps(output, by_value)
        part = CONTEXT
        return DONE, packed, None if context is None else _dumps(context, by_value)
    except Exception as error:
        return REFUSED, part, reason(error)


def unpack(outcome: Outcome, context: Any) -> Any:
    """Return the output, with the live context as the function left its copy; raises what the function raised.

    Raises Unsendable.
    """
    kind, *rest = outcome
    if kind == RAISED:
        raise _loaded_error(*rest)
    if kind == REFUSED:
        raise Unsendable(*rest)
    output, changed = rest
    part = OUTPUT
    try:
        result = pickle.loads(output)
        part = CONTEXT
        values = None if changed is None else pickle.loads(changed)
    except Exception as error:
        raise Unsendable(part, reason(error)) from error
    if isinstance(context, BaseModel) and values is not None:
        context.__setstate__(values.__getstate__())
    elif values is not None:
        context.clear()
        context.update(values)
    return result


# --- pickling ---


def _dumps(value: Any, by_value: bool) -> bytes:
    if not by_value:
        try:
            return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception:  # it may hold a function that its step stands before
            pass
    file = io.BytesIO()
    (_by_value_pickler() if by_value else _Pickler)(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return _by_name(value)


@functools.cache
def _by_value_pickler() -> Any:
    """Return the pickler of cloudpickle, which the executors that need it bring along, with our own exception to it."""
    cloudpickle = importlib.import_module("cloudpickle")

    def reducer_override(self: Any, value: Any) -> Any:
        module = getattr(value, "__module__", None)
        whole = module == "__main__" or module in cloudpickle.list_registry_pickle_by_value()
        found = NotImplemented if whole else _by_name(value)
        return cloudpickle.Pickler.reducer_override(self, value) if found is NotImplemented else found

    return type("_ByValuePickler", (cloudpickle.Pickler,), {"reducer_override": reducer_override})


def _by_name(value: Any) -> Any:
    """Reduce a function (or a class) that a step stands before.

    After `@step def charge` the name `charge` of its module is the step, so that pickle would not find the function
    there. The other process finds the step, and takes its function.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module not in sys.modules:
        return NotImplemented
    found = _look_up(module, name)
    return (_find, (module, name)) if isinstance(found, Step) and found.fn is value else NotImplemented


def _look_up(module: str, name: str) -> Any:
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _find(module: str, name: str) -> Any:
    importlib.import_module(module)
    found = _look_up(module, name)
    if not isinstance(found, Step):
        raise AttributeError(f"{name!r} of module {module!r} is no step there")
    return found.fn


# --- errors ---


def _own_frames_skipped(trace: TracebackType | None) -> TracebackType | None:
    rest = trace
    while rest is not None and rest.tb_frame.f_code.co_filename == __file__:
        rest = rest.tb_next
    return rest or trace


def _dumped_error(error: Exception, by_value: bool) -> bytes | None:
    """Return the error pickled, if it comes out of that as it was."""
    for sent in (error, _Bare(error)):
        try:
            pickled = _dumps(sent, by_value)
            made = pickle.loads(pickled)
            if type(made) is type(error) and str(made) == str(error):
                return pickled
        except Exception:  # one of the many whose `__init__` does not take what pickle gives it
            continue
    return None


class _Bare:
    """An error that is to be made again without its `__init__`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        return _rebuild, (type(self._error), self._error.args, vars(self._error))


def _rebuild(cls: type[Exception], arguments: tuple[Any, ...], values: dict[str, Any]) -> Exception:
    error = cls.__new__(cls, *arguments)
    error.args = arguments
    vars(error).update(values)
    return error


def _loaded_error(pickled: bytes | None, described: dict[str, Any], final: bool) -> Exception:
    error: Exception | None = None
    if pickled is not None:
        with contextlib.suppress(Exception):  # its class is not to be found here
            error = pickle.loads(pickled)
    if error is None:
        text = recorded(described)
        assert text is not None
        error = NonRetryableError(text.message) if final else text
    error.__cause__ = _WorkerTraceback(described["traceback"])
    return error


def reason(error: BaseException) -> str:
    """Return type and text of an error."""
    told = describe(error)
    return f"{told['type']}: {told['text']}" if told["text"] else str(told["type"])
