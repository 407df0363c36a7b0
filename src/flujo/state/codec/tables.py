"""A position: how the values in one place are written and read, by their exact type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .faults import Lenient, Lift, Lower


class Table(dict[type[Any], Any]):
    """A mapping that makes a missing entry itself; what raises is not remembered."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[type[Any]], Any]) -> None:
        self._make = make

    def __missing__(self, kind: type[Any]) -> Any:
        made = self[kind] = self._make(kind)
        return made


class Position:
    """Two tables, from the type of a value or of JSON data to what converts it; `None`: it goes as it is."""

    __slots__ = ("reads", "writes")

    def __init__(self, write: Callable[[type[Any]], Lower | None], read: Callable[[type[Any]], Lift | None]) -> None:
        self.writes = Table(write)
        self.reads = Table(read)

    def lower(self, value: Any, room: int) -> Any:
        """Return the JSON data of a value."""
        lower = self.writes[type(value)]
        return value if lower is None else lower(value, room)

    def lift(self, data: Any, strict: bool | Lenient) -> Any:
        """Return the value of JSON data."""
        lift = self.reads[type(data)]
        return data if lift is None else lift(data, strict)


PositionOf = Callable[[Any], Position]
"""Give the position of a field by its annotation."""
