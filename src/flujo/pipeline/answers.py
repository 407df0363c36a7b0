"""What comes from outside, an answer or a signal: which types it can have, and whether it is of its type."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from flujo.errors import StepDefinitionError
from flujo.pipeline.typecheck import readable
from flujo.state.codec.scalars import SCALARS, STAND_FOR
from flujo.state.codec.types import CONTAINERS, TYPES, alias_value, kind_of

# An abstract collection is given as a list or a dict, but of these pydantic makes what reads its items later, once.
_LAZY: tuple[Any, ...] = (
    collections.abc.Callable,
    collections.abc.Iterable,
    collections.abc.Iterator,
    collections.abc.Generator,
)
_MAX_PARTS = 1000  # a recursive alias has no end
_MAX_ERRORS = 5


def check_answer_value(tp: Any, value: Any) -> Any:
    """Return the value as one of the type: itself, or what it says as JSON data.

    A dict becomes a model, and a text that is a time a datetime, but nothing is guessed: "yes" is no bool, 1 is no str.
    Raises ValueError with what is wrong, in one line.
    """
    if tp is Any or tp is object:
        return value
    adapter = _adapter(tp)
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        wrong = _one_line(error)
    try:
        data = to_json(value)
        found = adapter.validate_json(data, strict=True)
        if from_json(data) != value:
            adapter.validate_python(value)  # a UUID is no text, although as JSON it is one
    except ValidationError as error:
        raise ValueError(_one_line(error)) from None
    except (ValueError, TypeError):  # it is no data that could be written as JSON
        raise ValueError(wrong) from None
    return found


def schema_of(tp: Any, name: str) -> dict[str, Any]:
    """Return the JSON schema of what the step `name` waits for, as plain data.

    Raises StepDefinitionError for a type that has none, or whose values could not be stored.
    """
    if isinstance(tp, str | dict):  # pydantic would look for a class of that name, or take it for its inner schema
        raise _no_answer(tp, name, f"it is a {type(tp).__name__} and no type")
    part = _unstorable(tp)
    if part is not None:
        what = "" if part is tp else f"{readable(part)}: "
        raise _no_answer(tp, name, f"{what}its values could not be restored exactly")
    try:
        schema: dict[str, Any] = from_json(to_json(_adapter(tp).json_schema()))
    except Exception as error:  # classes make their own schemas, and may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _no_answer(tp, name, reason.rstrip(".")) from error
    return schema


def _no_answer(tp: Any, name: str, reason: str) -> StepDefinitionError:
    return StepDefinitionError(
        f"Step {name!r} cannot wait for {readable(tp)} ({reason}).",
        hint="Wait for a model, a dataclass, a text, a number, or lists and dicts of them; register_type adds others.",
        step=name,
        type=tp,
    )


def _adapter(tp: Any) -> TypeAdapter[Any]:
    try:
        # `A | B` equals `B | A`, but data that fit both are the first one's: so the text is a part of the key.
        return _known_adapter(tp, repr(tp))
    except TypeError:  # an Annotated of something unhashable
        return TypeAdapter(tp)


@functools.lru_cache(maxsize=256)
def _known_adapter(tp: Any, _shown: str) -> TypeAdapter[Any]:
    return TypeAdapter(tp)


def _one_line(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:_MAX_ERRORS]]
    if len(found) > _MAX_ERRORS:
        lines.append(f"and {len(found) - _MAX_ERRORS} more")
    return " ".join("; ".join(lines).split())


def _unstorable(tp: Any) -> Any:
    """Return the part of a type whose values the codec certainly refuses, or None."""
    todo = [tp]
    for _ in range(_MAX_PARTS):
        if not todo:
            break
        item = todo.pop()
        origin, arguments = typing.get_origin(item), typing.get_args(item)
        if isinstance(item, typing.NewType):
            todo.append(item.__supertype__)
        elif origin is typing.Annotated:
            todo.append(arguments[0])
        elif origin is typing.Literal:
            continue
        elif origin is types.UnionType or not isinstance(origin or item, type):  # a union, an alias
            todo += [*arguments, *filter(None, (alias_value(item),))]
        elif not _storable(origin or item):
            return item
        elif kind_of(origin or item) is None:
            todo += arguments
    return None


def _storable(cls: Any) -> bool:
    """Tell whether the codec may know the values of a class; one that makes its own schema may give any."""
    known = cls in SCALARS or cls in STAND_FOR or cls in CONTAINERS or cls in (object, Any)
    if known or kind_of(cls) is not None or TYPES.custom(cls) is not None or typing.is_typeddict(cls):
        return True
    return cls not in _LAZY and (hasattr(cls, "__get_pydantic_core_schema__") or inspect.isabstract(cls))
