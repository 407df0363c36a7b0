"""Find which part of a value cannot be stored, once it is known that some part cannot.

Writing knows no paths, which keeps it quick. This walks down from the root instead, always into the first
part that cannot be written by itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from flujo.errors import NotSerializableError

from .classes import slots_of
from .faults import Refused, TooDeep, readable
from .positions import NATIVES
from .types import TYPES, kind_of

Write = Callable[[Any, int], object]
"""Write a value with so many levels of nesting left; raises if it cannot be written."""

_LONGEST_PATH = 300
_SURROGATE_HINT = "Decode it with errors='replace', or store bytes."


def refusal(root: Any, where: str, levels: int, write: Write) -> NotSerializableError:
    """Return the error that names the part of `root` which cannot be written.

    Arguments: `where` is the path of the root; `levels` is how deeply values may be nested.
    """
    path, value, room = where, root, levels
    above: list[Any] = []
    while True:
        cause = _failure(value, room, write)
        if any(value is one for one in above):
            cause = Refused("contains itself", "Refer to it by an id.")
            break
        above.append(value)
        found = next(((step, item) for step, item in _parts(value) if _failure(item, room - 1, write)), None)
        if found is None or room < 1:
            break
        path, value, room = path + found[0], found[1], room - 1
    reason, hint = _said(value, cause, levels)
    shown = path if len(path) <= _LONGEST_PATH else f"{path[:200]}...{path[-80:]}"
    error = NotSerializableError(f"{shown} {reason}.", hint=hint, path=path, type_name=readable(type(value)))
    error.__cause__ = cause if not isinstance(cause, Refused) else None
    return error


def _failure(value: Any, room: int, write: Write) -> Exception | None:
    if type(value) in NATIVES and type(value) is not str:
        return None
    try:
        write(value, room)
    except Exception as error:  # a registered encode may raise anything
        return error
    return None


def _said(value: Any, cause: Exception | None, levels: int) -> tuple[str, str]:
    if isinstance(cause, TooDeep | RecursionError):
        return f"is nested more than {levels} levels deep", TooDeep().hint
    if isinstance(cause, Refused):
        return cause.reason, cause.hint
    if type(value) is str:
        return "is a string with a lone surrogate, which UTF-8 cannot hold", _SURROGATE_HINT
    if cause is None:
        return "changed while it was saved", "Change a value in the step that owns it only."
    text = f"{type(cause).__name__}: {cause}"
    return f"could not be encoded ({text[:500]})", "Correct the encode function of its type."


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Give each part of a value with its step in a path."""
    kind = type(value)
    custom = TYPES.custom(kind)
    if custom is not None:
        try:
            yield "", custom.encode(value)
        except Exception:  # then the value itself is at fault
            return
    elif kind in (list, tuple, set, frozenset):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif kind is dict:
        for index, (key, item) in enumerate(value.items()):
            yield f"[<key {index}>]", key
            yield _key_step(key), item
    elif kind_of(kind) == "namedtuple":
        yield from ((f".{name}", item) for name, item in zip(kind._fields, value, strict=False))
    elif isinstance(value, BaseModel) or dataclasses.is_dataclass(kind):
        yield from ((_key_step(name), item) for name, item in _attributes(value))


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        names: Any = type(value).model_fields
        yield from (value.__pydantic_extra__ or {}).items()
        yield from (value.__pydantic_private__ or {}).items()
    else:
        names = value.__dataclass_fields__
        yield from ((name, getattr(value, name)) for name in slots_of(type(value)) if hasattr(value, name))
    held = getattr(value, "__dict__", {})
    yield from ((name, held[name]) for name in names if name in held)


def _key_step(key: Any) -> str:
    if type(key) is not str:
        text = repr(key) if type(key) in NATIVES else f"<{readable(type(key))}>"
        return f"[{text}]"
    return f".{key}" if key.isidentifier() else f"[{json.dumps(key[:60])}]"
