"""Values that a store has to give back exactly: plain JSON, and every kind of type that flujo stores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

from pydantic import BaseModel

from flujo.state.codec import register_type


@dataclass(frozen=True)
class Point:
    """A dataclass."""

    x: int
    y: float = 0.0


class Colour(Enum):
    """An enum."""

    RED = "red"


class Level(IntEnum):
    """An enum whose members are integers too."""

    LOW = 1


class Pair(NamedTuple):
    """A named tuple."""

    left: int
    right: str


class Order(BaseModel):
    """A model, with a tuple in it."""

    number: int
    lines: tuple[str, ...]
    total: Decimal


class Celsius:
    """A class that only its registration makes storable."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees

    def __hash__(self) -> int:
        return hash(self.degrees)

    def __repr__(self) -> str:
        return f"Celsius({self.degrees})"


Samples = TypedDict(
    "Samples",
    {
        "tuple": tuple[Any, ...],
        "tuple in a list": list[tuple[int, tuple[()]]],
        "int keys": dict[int, str],
        "set": set[int],
        "frozenset": frozenset[str],
        "dataclass": Point,
        "model": Order,
        "enum": Colour,
        "int enum": Level,
        "named tuple": Pair,
        "registered type": Celsius,
        "datetime": datetime,
        "datetime with offset": datetime,
        "naive datetime": datetime,
        "date": date,
        "time": time,
        "timedelta": timedelta,
        "UUID": UUID,
        "Decimal": Decimal,
        "Fraction": Fraction,
        "bytes": bytes,
        "complex": complex,
        "path": PurePosixPath,
        "NaN": float,
        "infinity": float,
        "minus zero": float,
        "bool": bool,
        "big integer": int,
        "None": None,
        "text": str,
        "untyped": Any,
    },
)
"""One value of every kind, under the types that a process knows them by."""


def register() -> None:
    """Let the class that needs it be stored."""
    register_type(Celsius, encode=lambda value: value.degrees, decode=Celsius)


def samples() -> Samples:
    """Return new values of every kind."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    return {
        "tuple": (1, "two", [3.0], (None,)),
        "tuple in a list": [(1, ()), (2, ())],
        "int keys": {1: "one", -2: "minus two"},
        "set": {3, 1, 2},
        "frozenset": frozenset({"a", "b"}),
        "dataclass": Point(1, -2.5),
        "model": Order(number=7, lines=("nut", "bolt"), total=Decimal("12.50")),
        "enum": Colour.RED,
        "int enum": Level.LOW,
        "named tuple": Pair(1, "r"),
        "registered type": Celsius(36.6),
        "datetime": moment,
        "datetime with offset": moment.astimezone(timezone(timedelta(hours=5, minutes=30))),
        "naive datetime": moment.replace(tzinfo=None),
        "date": date(2026, 2, 28),
        "time": time(23, 59, 59, 999999),
        "timedelta": timedelta(days=-1, microseconds=1),
        "UUID": UUID("12345678-1234-5678-1234-567812345678"),
        "Decimal": Decimal("1.10"),
        "Fraction": Fraction(1, 3),
        "bytes": b"\x00\xff flujo",
        "complex": complex(-0.0, 2.5),
        "path": PurePosixPath("/tmp/a b"),
        "NaN": float("nan"),
        "infinity": float("-inf"),
        "minus zero": -0.0,
        "bool": True,
        "big integer": 2**70 + 1,
        "None": None,
        "text": 'naïve \u2028 \U0001f600 \x00 "quoted" \\ \n',
        "untyped": {"deep": [(1, {2})]},
    }


def plain() -> dict[str, Any]:
    """Return new values of every kind that plain JSON has."""
    return {
        "none": None,
        "true": True,
        "false": False,
        "zero": 0,
        "integer beyond a float": 2**53 + 1,
        "integer beyond 64 bits": -(2**70),
        "float": 0.1,
        "whole float": 1.0,
        "huge float": 1.7976931348623157e308,
        "empty text": "",
        "text": 'naïve \u2028 \U0001f600 "quoted" \\ \n\t',
        "text with NUL": "a\x00b",
        "number as text": "007",
        "time as text": "2026-01-02T03:04:05",
        "empty list": [],
        "empty object": {},
        "nested": {"": [1, [2, [3, {"deep": [None]}]]], "a.b": {"$ref": "#", "ключ": 1}},
        "like a tag": {"$type": "tuple", "value": [1]},
        "long text": "flujo " * 20_000,
    }


ALIKE: tuple[str, ...] = (
    "run", "Run", "RUN", "run.json", "run/1", "run_1", "run-1", "run 1", "run%2F1", "run:1", "run\\1", "run*", "run?",
    ".", "..", "../run", "../../etc/passwd", "/etc/passwd", "~run", "-run", "con", "NUL", "run.tmp", ".run", "run~1",
    "'; DROP TABLE run; --", "{run}", "$run", "run\u00e9", "rune\u0301", "\u202erun", "Stra\u00dfe", "strasse",
    "\U0001f600", "r" * 200, "r" * 199 + "s", "\u00fc" * 200, "1", "01", "None", "null", "%s", "run=1&x", "<run>",
)  # fmt: skip
"""Names of runs that flujo admits and that a careless store takes for one another, or for something else."""

HARDLY: tuple[str, ...] = ("", " ", "run\x00", "run\n", "\ud800", "r" * 300)
"""Names that flujo admits for no run: refused, or else kept like any other."""
