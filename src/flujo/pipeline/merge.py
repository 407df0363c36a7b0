"""How the context's fields are brought together where branches come together again.

Each branch of a parallel and each item of a map works on a copy of the context. What one of them alone changed is
taken over; what several of them changed needs a merge, which is told the value from before and the changed values.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from flujo.errors import ConfigurationError
from flujo.state.codec import Codec

MergeFunction = Callable[[Any, list[Any]], Any]


class Missing(enum.Enum):
    """The type of MISSING."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING
"""Stands for the value of a field that is not there: before, or any more."""


@dataclass(frozen=True, slots=True, repr=False)
class Merge:
    """What becomes of a field that several branches changed: `Annotated[list[str], Merge.APPEND]` in the model.

    APPEND  what was there, and behind it what each branch appended; of lists, tuples and texts
    UNION   what was there, with what branches added and without what they took out; of sets and dicts
    LAST    the value of the last branch, in the order in which they are declared
    ADD     what was there, plus what each branch added to it; of numbers
    of(f)   what `f(before, values)` returns; `values` has one for each of the several branches that changed it
    """

    name: str
    function: MergeFunction

    APPEND: ClassVar[Merge]
    UNION: ClassVar[Merge]
    LAST: ClassVar[Merge]
    ADD: ClassVar[Merge]

    @classmethod
    def of(cls, function: MergeFunction | Merge) -> Merge:
        """Make a merge of a function of the value from before and the list of the changed values.

        `before` is None where the field was not there. Raises ConfigurationError for what cannot be called.
        """
        if isinstance(function, Merge):
            return function
        given: object = function
        if not callable(given) or isinstance(given, type):
            raise ConfigurationError(
                f"{function!r} is no merge.",
                hint="Use Merge.APPEND, Merge.UNION, Merge.LAST, Merge.ADD, or a function f(before, values).",
            )
        return cls(f"of({getattr(function, '__name__', repr(function))})", function)

    def __call__(self, before: Any, values: Sequence[Any]) -> Any:
        """Return the merged value; MISSING stands for a field that is not there.

        `values` are those of the branches that changed the field, in the order of the branches. Raises ValueError,
        with a sentence, for values that this merge cannot bring together, and whatever a function raises.
        """
        if not values:
            return before
        if len(values) == 1 or all(value is MISSING for value in values):
            return values[0]
        if self.function is not _last and any(value is MISSING for value in values):
            raise ValueError("one branch removed it, and another changed it")
        foreign = self.function not in _OWN
        return self.function(None if before is MISSING and foreign else before, list(values))

    def __repr__(self) -> str:
        return f"Merge.{self.name}"


def _append(before: Any, values: list[Any]) -> Any:
    merged = type(values[0])() if before is MISSING else before
    start = merged
    if type(start) not in (list, tuple, str, bytes):
        raise ValueError(f"Merge.APPEND cannot append to {type(start).__name__}")
    for place, value in enumerate(values, start=1):
        if type(value) is not type(start) or not same(value[: len(start)], start):
            raise ValueError(f"the value of branch {place} of {len(values)} does not begin with what was there before")
        merged = merged + value[len(start) :]
    return merged


def _union(before: Any, values: list[Any]) -> Any:
    kind = type(values[0]) if before is MISSING else type(before)
    for value in values:
        if not isinstance(value, set | frozenset | dict) or type(value) is not kind:
            raise ValueError(f"Merge.UNION is for sets and dicts, not for {kind.__name__} and {type(value).__name__}")
    if issubclass(kind, dict):
        return _union_of_dicts(before, values)
    old = kind() if before is MISSING else before
    taken = {item for value in values for item in old - value}
    added = {item for value in values for item in value - old}
    return kind((old - taken) | added)


def _union_of_dicts(before: Any, values: list[Any]) -> Any:
    merged = copy.copy(values[0] if before is MISSING else before)
    old = {} if before is MISSING else dict(before)
    if before is MISSING:
        merged.clear()
    changes: dict[Any, Any] = {}
    for value in values:
        changed = {key: item for key, item in value.items() if key not in old or not same(item, old[key])}
        for key, item in (changed | {key: MISSING for key in old if key not in value}).items():
            if key in changes and not same(changes[key], item):
                raise ValueError(f"two branches changed its key {key!r} differently")
            changes[key] = item
    for key, item in changes.items():
        if item is MISSING:
            del merged[key]
        else:
            merged[key] = item
    return merged


def _last(_before: Any, values: list[Any]) -> Any:
    return values[-1]


def _add(before: Any, values: list[Any]) -> Any:
    known = [value for value in (before, *values) if value is not MISSING]
    try:
        if any(isinstance(value, bool) for value in known):
            raise TypeError
        merged = known[0]
        for value in known[1:]:
            merged = merged + (value if before is MISSING else value - before)
        return merged
    except TypeError:
        kinds = sorted({type(value).__name__ for value in known})
        raise ValueError(f"Merge.ADD is for numbers, not for {' and '.join(kinds)}") from None


Merge.APPEND = Merge("APPEND", _append)
Merge.UNION = Merge("UNION", _union)
Merge.LAST = Merge("LAST", _last)
Merge.ADD = Merge("ADD", _add)
_OWN = (_append, _union, _last, _add)
_CODEC = Codec()


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same, and of the same type; other than with `==`, NaN is NaN."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    try:
        if one == other:
            return True
        # A NaN may be anywhere inside; what is stored of the two tells.
        return _CODEC.encode(one) == _CODEC.encode(other)
    except Exception:  # a comparison is the user's code, and may answer with an array
        return False
