"""Enums, named tuples and dataclasses: taken apart by their fields, put together without their code."""

from __future__ import annotations

import dataclasses
import enum
import types
from typing import Any

from .faults import Coder, Damaged, Refused, readable
from .models import model_coder
from .shapes import Default, Shape, mismatch
from .tables import Position, PositionOf
from .types import field_annotations, kind_of


def compile_class(cls: type[Any], name: str, position_of: PositionOf) -> Coder:
    """Return the coder of an enum, a model, a dataclass or a named tuple."""
    kind = kind_of(cls)
    if kind == "enum":
        return _flag_coder(cls, name) if issubclass(cls, enum.Flag) else _enum_coder(cls, name)
    positions = {field: position_of(hint) for field, hint in field_annotations(cls).items()}
    if kind == "model":
        return model_coder(cls, name, positions, position_of(Any))
    if kind == "dataclass":
        return _dataclass_coder(cls, name, positions)
    return _namedtuple_coder(cls, name, positions)


def _enum_coder(cls: Any, name: str) -> Coder:
    members = cls._member_map_

    def lower(value: Any, _: int) -> Any:
        if members.get(value._name_) is not value:
            raise Refused(f"is no declared member of {readable(cls)}")
        return value._name_

    def lift(data: Any, _: bool) -> Any:
        if type(data) is not str:
            raise Damaged(f"expected the name of a member of {readable(cls)}")
        if data not in members:
            raise mismatch(cls, (), [data])
        return members[data]

    return Coder(name=name, lower=lower, lift=lift)


def _flag_coder(cls: Any, name: str) -> Coder:
    """Flags go by value, since most combinations of them have no name."""
    known = cls._value2member_map_

    def lift(data: Any, _: bool) -> Any:
        if type(data) is not int:
            raise Damaged(f"expected the value of a {readable(cls)}")
        if data in known:
            return known[data]
        try:
            # The library's own `_missing_` makes the combination; one that the class defines is not run.
            return vars(enum.Flag)["_missing_"].__func__(cls, data)
        except ValueError:
            raise mismatch(cls, (), [str(data)]) from None

    return Coder(name=name, lower=lambda value, _: value._value_, lift=lift)


def _namedtuple_coder(cls: Any, name: str, positions: dict[str, Position]) -> Coder:
    names = tuple(cls._fields)
    defaults: dict[str, Default] = {
        field: lambda _, default=default: default  # type: ignore[misc]  # bound early
        for field, default in cls._field_defaults.items()
    }
    shape = Shape(cls, positions, defaults)

    def lower(value: Any, room: int) -> Any:
        if len(value) != len(names):
            raise Refused(f"has {len(value)} items, but {readable(cls)} has {len(names)} fields")
        if getattr(value, "__dict__", None):
            raise Refused(f"has attributes that are no fields of {readable(cls)}")
        return shape.write(dict(zip(names, value, strict=True)), room)

    def lift(data: Any, strict: bool) -> Any:
        values = shape.read(_fields(data, cls), strict)
        return tuple.__new__(cls, [values[field] for field in names])

    return Coder(name=name, lower=lower, lift=lift)


def _fields(data: Any, cls: type[Any]) -> dict[str, Any]:
    if type(data) is not dict:
        raise Damaged(f"expected the fields of {readable(cls)}, found {type(data).__name__}")
    return data


def slots_of(cls: type[Any]) -> dict[str, Any]:
    """Return the descriptors of the attributes that the objects of a class keep in slots."""
    return {
        attribute: slot
        for base in reversed(cls.__mro__)
        for attribute, slot in vars(base).items()
        if type(slot) is types.MemberDescriptorType
    }


def _default(field: dataclasses.Field[Any]) -> Default | None:
    factory = field.default_factory
    if factory is not dataclasses.MISSING:
        return lambda _: factory()
    return None if field.default is dataclasses.MISSING else lambda _: field.default


def _dataclass_coder(cls: Any, name: str, positions: dict[str, Position]) -> Coder:
    try:
        object.__new__(cls)
    except TypeError:
        raise Refused(f"is of type {readable(cls)}, a dataclass that builds on another kind of type") from None
    found = {field.name: _default(field) for field in dataclasses.fields(cls)}
    shape = Shape(cls, positions, {field: default for field, default in found.items() if default is not None})
    every = slots_of(cls)
    slots = {**{field: every[field] for field in positions if field in every}, **every}  # in the fields' order
    # A field with a default and init=False is set by nobody: the class's own attribute is its value.
    shape.fallbacks = {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING and field.name not in slots
    }
    new, put = object.__new__, object.__setattr__

    def lower_slotted(value: Any, room: int) -> Any:
        values = {field: slot.__get__(value) for field, slot in slots.items() if hasattr(value, field)}
        return shape.write({**getattr(value, "__dict__", {}), **values}, room)

    def lift_slotted(data: Any, strict: bool) -> Any:
        values = shape.read(_fields(data, cls), strict)
        value = new(cls)
        for field, item in values.items():
            # The slot itself, as `__setattr__` of a frozen class refuses.
            slots[field].__set__(value, item) if field in slots else value.__dict__.__setitem__(field, item)
        return value

    def lower(value: Any, room: int) -> Any:
        return shape.write(value.__dict__, room)

    def lift(data: Any, strict: bool) -> Any:
        value = new(cls)
        put(value, "__dict__", shape.read(_fields(data, cls), strict))
        return value

    if slots:
        return Coder(name=name, lower=lower_slotted, lift=lift_slotted)
    return Coder(name=name, lower=lower, lift=lift)
