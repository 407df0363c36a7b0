"""Comparing what was put into a store with what came out of it, and saying what is different."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import reprlib
from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import datetime, time
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 12


def shown(value: object) -> str:
    """Return a `repr` that fits into a message."""
    try:
        return _SHORT.repr(value)
    except Exception as broken:
        return f"<{type(value).__name__} whose repr raises {type(broken).__name__}>"


def expect(condition: object, what: str) -> None:
    """Fail the test with `what`, which says what is wrong, unless the condition holds."""
    __tracebackhide__ = True
    if not condition:
        raise AssertionError(what)


def same(found: object, expected: object, what: str) -> None:
    """Fail the test unless both are equal in every type and value; NaN equals NaN."""
    __tracebackhide__ = True
    problem = difference(expected, found)
    if problem is not None:
        raise AssertionError(f"{what}{problem}.")


@contextlib.contextmanager
def refused(kind: type[BaseException], what: str) -> Generator[None, None, None]:
    """Fail the test unless the block raises that error; `what` says what ought to have been refused."""
    __tracebackhide__ = True
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} ought to raise {kind.__name__}, but raised {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{what} ought to raise {kind.__name__}, but raised nothing.")


def difference(expected: object, found: object, where: str = "") -> str | None:
    """Return in words how `found` differs from `expected` in type or value, with the path to it, or None."""
    kind = type(expected)
    at = f", at {where}: " if where else ": "
    if type(found) is not kind:
        types = f"{_name(kind)}, not {_name(type(found))}"
        return f"{at}expected {shown(expected)}, found {shown(found)} ({types})"
    parts = _PARTS.get(kind) or _parts_of(expected)
    if parts is not None:
        return _difference_of_parts(parts(expected), parts(found), where, (expected, found))
    return None if _equal(expected, found) else f"{at}expected {shown(expected)}, found {shown(found)}"


Parts = dict[Any, tuple[str, object]]


def _difference_of_parts(expected: Parts, found: Parts, where: str, both: tuple[object, object]) -> str | None:
    for key, (name, value) in expected.items():
        problem = difference(value, found[key][1], where + name) if key in found else None
        if problem is not None:
            return problem
    if expected.keys() == found.keys():
        return None
    lost = [name for key, (name, _) in expected.items() if key not in found]
    new = [name for key, (name, _) in found.items() if key not in expected]
    words = [f"{' '.join(lost[:5])} is lost"] * bool(lost) + [f"{' '.join(new[:5])} is new"] * bool(new)
    at = f", at {where}: " if where else ": "
    return f"{at}{' and '.join(words)} (expected {shown(both[0])}, found {shown(both[1])})"


def _items(values: Iterable[object]) -> Parts:
    return {place: (f"[{place}]", value) for place, value in enumerate(values)}


def _entries(values: Mapping[object, object]) -> Parts:
    return {(type(key), key): (f"[{shown(key)}]", value) for key, value in values.items()}


def _members(values: Iterable[object]) -> Parts:
    return {(type(value), value): (shown(value), None) for value in values}


def _fields(values: Mapping[str, object]) -> Parts:
    return {name: (f".{name}", value) for name, value in values.items()}


_PARTS: dict[type[Any], Callable[[Any], Parts]] = {
    list: _items, tuple: _items, dict: _entries, set: _members, frozenset: _members,
}  # fmt: skip


def _parts_of(value: object) -> Callable[[Any], Parts] | None:
    if isinstance(value, BaseModel):
        return lambda model: _fields(vars(model))
    if dataclasses.is_dataclass(value):
        return lambda data: _fields({field.name: getattr(data, field.name) for field in dataclasses.fields(data)})
    return _items if isinstance(value, tuple) else None


def _equal(expected: Any, found: Any) -> bool:
    if isinstance(expected, float):
        if math.isnan(expected):
            return math.isnan(found)
        return bool(expected == found) and math.copysign(1, expected) == math.copysign(1, found)
    if isinstance(expected, complex):
        return _equal(expected.real, found.real) and _equal(expected.imag, found.imag)
    if isinstance(expected, Decimal):
        return bool(expected.as_tuple() == found.as_tuple())
    if isinstance(expected, datetime | time):
        return bool(expected == found and expected.utcoffset() == found.utcoffset() and expected.fold == found.fold)
    return bool(expected == found)


def _name(kind: type[Any]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
