"""The plain forms of the standard library's values: one table, class by class."""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic_core import TzInfo

from flujo.errors import UnknownTypeError

from .faults import TAG, VALUE, Coder, Damaged, Refused

# No dots, so that a key leads nowhere but into the time zone database.
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+\-]{1,64}(?:/[A-Za-z0-9_+\-]{1,64}){0,3}")
_HEX = re.compile(r"-?0x[0-9a-f]+")
_PYDANTIC = "pydantic"
_NON_FINITE = ("nan", "inf", "-inf")

BIG_INT_BITS = 13_000
"""Integers of more bits are written in hexadecimal: JSON parsers stop at 4,300 decimal digits."""


def same(value: Any, _: Any) -> Any:
    """Return the value as it is."""
    return value


def is_big(value: int) -> bool:
    """Say whether an integer has too many digits for a JSON number."""
    return value.bit_length() > BIG_INT_BITS


def _text(data: Any) -> str:
    if type(data) is not str:
        raise Damaged(f"expected a string, found {type(data).__name__}")
    return data


def _exactly(cls: type[Any]) -> Callable[[Any, bool], Any]:
    def lift(data: Any, _: bool) -> Any:
        if type(data) is not cls:
            raise Damaged(f"expected {cls.__name__}, found {type(data).__name__}")
        return data

    return lift


def _lift_int(data: Any, _: bool) -> int:
    if type(data) is str and _HEX.fullmatch(data):
        return int(data, 16)
    if type(data) is not int:
        raise Damaged(f"expected an integer, found {type(data).__name__}")
    return data


def _lift_float(data: Any, _: bool) -> float:
    if type(data) is float:
        return data
    if data not in _NON_FINITE:
        raise Damaged(f"expected a float, found {type(data).__name__}")
    return float(data)


def tag_number(value: int | float) -> dict[str, Any]:
    """Return the tag of a number that JSON cannot hold: NaN, an infinity, or a huge integer."""
    plain = hex(value) if isinstance(value, int) else repr(value)
    return {TAG: type(value).__name__, VALUE: plain}


def _number(data: Any) -> Any:
    """Return a part of a plain form, which is a number or the tag of one."""
    if type(data) is dict and data.keys() == {TAG, VALUE}:
        return {"int": _lift_int, "float": _lift_float}[data[TAG]](data[VALUE], True)
    return data


def _numbers(data: Any, kind: type[Any], count: int) -> list[Any]:
    if type(data) is not list or len(data) != count:
        raise Damaged(f"expected a list of {count} numbers")
    numbers = [_number(item) for item in data]
    if any(type(number) is not kind for number in numbers):
        raise Damaged(f"expected a list of {count} numbers of type {kind.__name__}")
    return numbers


def _lower_complex(value: complex, _: int) -> Any:
    return [value.real, value.imag]


def _lift_complex(data: Any, _: bool) -> complex:
    return complex(*_numbers(data, float, 2))


def _lower_range(value: range, _: int) -> Any:
    return [value.start, value.stop, value.step]


def _lift_range(data: Any, _: bool) -> range:
    return range(*_numbers(data, int, 3))


def _lower_bytes(value: bytes | bytearray, _: int) -> Any:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _lift_bytes(data: Any, _: bool) -> bytes:
    return binascii.a2b_base64(_text(data), strict_mode=True) if data else b""


def _lift_bytearray(data: Any, _: bool) -> bytearray:
    return bytearray(_lift_bytes(data, _))


def _lower_clock(value: datetime | time, _: int) -> Any:
    """Return the ISO string, with the zone's key in brackets (RFC 9557).

    What has no place in it makes it an object: a fold, and the name or the microseconds of a fixed offset.
    """
    zone = value.tzinfo
    kind = type(zone)
    text = value.isoformat()
    parts: dict[str, Any] = {}
    if kind is ZoneInfo and isinstance(zone, ZoneInfo):
        if not zone.key or not _ZONE_KEY.fullmatch(zone.key):
            raise Refused("has a time zone without a key", "Use ZoneInfo with the name of a zone.")
        text = f"{text}[{zone.key}]"
    elif kind is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[union-attr]  # how pickle asks for the name
        if name or offset.microseconds:  # `fromisoformat` takes an offset of less than a second for UTC
            parts["zone"] = [_lower_timedelta(offset, 0), *name]
    elif kind is TzInfo:  # pydantic's own, of every aware time that it has read from JSON
        parts["zone"] = _PYDANTIC
    elif zone is not None:
        raise Refused(
            f"has a time zone of type {kind.__module__}.{kind.__qualname__}",
            "Use datetime.timezone or zoneinfo.ZoneInfo.",
        )
    if value.fold:
        parts["fold"] = 1
    return {"iso": text, **parts} if parts else text


def _zone(key: str) -> ZoneInfo:
    if not _ZONE_KEY.fullmatch(key):
        raise Damaged("the name of a time zone is malformed")
    try:
        return ZoneInfo(key)
    except ZoneInfoNotFoundError as error:
        raise UnknownTypeError(
            f"The time zone {key!r} is not in this machine's time zone database.",
            hint="Install the tzdata package.",
            type_name=key,
        ) from error


def _lift_clock(cls: Any) -> Callable[[Any, bool], Any]:
    def lift(data: Any, _: bool) -> Any:
        if type(data) is dict:
            value = lift(_text(data["iso"]), _)
            return value.replace(**_clock_parts(data, value))
        text = _text(data)
        if not text.endswith("]"):
            return cls.fromisoformat(text)
        text, _bracket, key = text[:-1].partition("[")
        return cls.fromisoformat(text).replace(tzinfo=_zone(key))

    return lift


def _clock_parts(data: dict[str, Any], value: datetime | time) -> dict[str, Any]:
    """Return the arguments of `replace` for the parts that an ISO string cannot hold."""
    offset = value.utcoffset()
    parts: dict[str, Any] = {}
    for key, part in data.items():
        if key == "fold" and part == 1 and type(part) is int:
            parts["fold"] = 1
        elif key == "zone" and type(part) is list:
            parts["tzinfo"] = timezone(_lift_timedelta(part[0], True), *map(_text, part[1:]))
        elif key == "zone" and part == _PYDANTIC and offset is not None:
            parts["tzinfo"] = TzInfo(int(offset.total_seconds()))
        elif key != "iso":
            raise Damaged(f"a time has no part {key!r}")
    return parts


def _lift_date(data: Any, _: bool) -> date:
    return date.fromisoformat(_text(data))


def _lower_timedelta(value: timedelta, _: int) -> Any:
    return [value.days, value.seconds, value.microseconds]


def _lift_timedelta(data: Any, _: bool) -> timedelta:
    return timedelta(*_numbers(data, int, 3))


def _lower_fraction(value: Fraction, _: int) -> Any:
    return [value.numerator, value.denominator]


def _lift_fraction(data: Any, _: bool) -> Fraction:
    return Fraction(*_numbers(data, int, 2))


def _lower_uuid(value: UUID, _: int) -> Any:
    # `is_safe` says how the generator came by it and is no part of a UUID's value or equality.
    return str(value)


def _lift_uuid(data: Any, _: bool) -> UUID:
    return UUID(_text(data))


def _lower_text(value: Any, _: int) -> Any:
    return str(value)


def _lift_decimal(data: Any, _: bool) -> Decimal:
    return Decimal(_text(data))


def _lower_path(value: PurePath, _: int) -> Any:
    text = str(value)
    again = type(value)(text)
    if again != value or again.parts != value.parts:
        raise Refused("is a path that its own text does not lead back to", "Store its parts instead.")
    return text


def _lift_path(cls: type[PurePath]) -> Callable[[Any, bool], Any]:
    def lift(data: Any, _: bool) -> Any:
        return cls(_text(data))

    return lift


def _table() -> dict[type[Any], Coder]:
    rows: list[tuple[type[Any], Any, Any]] = [
        (type(None), same, _exactly(type(None))),
        (bool, same, _exactly(bool)),
        (int, same, _lift_int),
        (float, same, _lift_float),
        (str, same, _exactly(str)),
        (complex, _lower_complex, _lift_complex),
        (range, _lower_range, _lift_range),
        (bytes, _lower_bytes, _lift_bytes),
        (bytearray, _lower_bytes, _lift_bytearray),
        (datetime, _lower_clock, _lift_clock(datetime)),
        (date, lambda value, _: value.isoformat(), _lift_date),
        (time, _lower_clock, _lift_clock(time)),
        (timedelta, _lower_timedelta, _lift_timedelta),
        (UUID, _lower_uuid, _lift_uuid),
        (Decimal, _lower_text, _lift_decimal),
        (Fraction, _lower_fraction, _lift_fraction),
    ]
    rows.extend((cls, _lower_path, _lift_path(cls)) for cls in (PurePosixPath, PureWindowsPath, CONCRETE_PATH))
    return {cls: Coder(name=cls.__name__, lower=lower, lift=lift) for cls, lower, lift in rows}


CONCRETE_PATH: type[PurePath] = type(Path(os.curdir))
"""What `Path(...)` gives on this system."""

SCALARS: dict[type[Any], Coder] = _table()
"""Every class without parts of its own that the codec knows, with its coder."""

STAND_FOR: dict[Any, type[Any]] = {Path: CONCRETE_PATH, PurePath: type(PurePath(os.curdir))}
"""Classes that are never the exact type of a value, and the one that their constructor gives."""
