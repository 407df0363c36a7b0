"""The fields of one class: written and read with a plan for each combination of types that occurs.

Most objects of a class have values of the same types field by field. So the types of all values together are
looked up at once, and give the few fields that need converting; often there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from flujo.errors import ContextMismatchError

from .faults import Refused, TooDeep, readable
from .tables import Position

Default = Callable[[dict[str, Any]], Any]
"""Give a field's default; the argument is the values of the fields before it."""

_MAX_PLANS = 500
# The parameters that a generic object was made with; where RootModel keeps what other models have in slots.
_NO_STATE = ("__orig_class__", "__pydantic_extra__", "__pydantic_private__")
_ADD_OR_DROP = "Make it a field, or register the class with an encode and a decode."


def mismatch(cls: type[Any], missing: Iterable[str], unknown: Iterable[str]) -> ContextMismatchError:
    """Return the error of stored fields that are not those of the class."""
    missing, unknown = list(missing), list(unknown)
    parts = []
    if missing:
        parts.append(f"the stored data have no {_listed(missing)}, which has no default")
    if unknown:
        parts.append(f"the class no longer has {_listed(unknown)}")
    return ContextMismatchError(
        f"What is stored does not fit {readable(cls)}: {'; '.join(parts)}.",
        hint="Give new fields a default and keep old ones, or register a new version of the pipeline.",
        type_name=readable(cls),
        missing=missing,
        unknown=unknown,
    )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)


class Shape:
    """The fields of a class with their positions and defaults."""

    def __init__(self, cls: type[Any], positions: dict[str, Position], defaults: dict[str, Default]) -> None:
        self.cls = cls
        self.positions = positions
        self.defaults = defaults
        self.fallbacks: dict[str, Any] = {}
        self.names = frozenset(positions)
        self._write_plans: dict[tuple[Any, ...], tuple[tuple[str, Any], ...]] = {}
        self._read_plans: dict[tuple[Any, ...], tuple[tuple[str, Any], ...]] = {}
        if any(name.startswith("$") for name in positions):
            raise Refused(f"is of type {readable(cls)}, with a field whose name starts with '$'")

    def write(self, values: dict[str, Any], room: int) -> dict[str, Any]:
        """Return the JSON object of the values; it may be `values` itself, which must stay as it is."""
        plan = self._write_plans.get((*values, *map(type, values.values())))
        if plan is None:
            values = self.fitting(values)
            plan = self._plan(values, self._write_plans, "writes")
        if room < 1:
            raise TooDeep
        if not plan:
            return values
        out = values.copy()
        for name, lower in plan:
            out[name] = lower(out[name], room - 1)
        return out

    def read(self, data: dict[str, Any], strict: bool) -> dict[str, Any]:
        """Return a new dict of the values in a JSON object, with the default of each field that it lacks."""
        plan = self._read_plans.get((*data, *map(type, data.values())))
        if plan is None:
            self.check(data)
            plan = self._plan(data, self._read_plans, "reads")
        out = data.copy()
        for name, lift in plan:
            out[name] = lift(out[name], strict)
        return out if len(out) == len(self.positions) else self.completed(out)

    def _plan(self, values: dict[str, Any], plans: dict[Any, Any], table: str) -> tuple[tuple[str, Any], ...]:
        found = [(name, getattr(self.positions[name], table)[type(item)]) for name, item in values.items()]
        plan = tuple((name, convert) for name, convert in found if convert is not None)
        if len(plans) >= _MAX_PLANS:
            plans.clear()
        plans[(*values, *map(type, values.values()))] = plan
        return plan

    def fitting(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return an object's attributes without those that are no state; the rest must be the fields."""
        extra = values.keys() - self.names
        for name in extra:
            if not self._derived(name):
                raise Refused(f"has an attribute {name!r} that is no field of {readable(self.cls)}", _ADD_OR_DROP)
        lacking = {name: self._fallback(name) for name in self.positions if name not in values}
        if not extra and not lacking:
            return values
        return {**{name: item for name, item in values.items() if name not in extra}, **lacking}

    def _fallback(self, name: str) -> Any:
        """Return what a class has for an attribute that its object lacks."""
        if name not in self.fallbacks:
            raise Refused(f"has no value for the field {name!r}", "Set every field.")
        return self.fallbacks[name]

    def _derived(self, name: str) -> bool:
        """Say whether an attribute is a cached property, or a note of typing's or pydantic's own."""
        if name in _NO_STATE:
            return True
        found = next((vars(base)[name] for base in self.cls.__mro__ if name in vars(base)), None)
        return isinstance(found, cached_property)

    def check(self, data: Iterable[str]) -> None:
        """Raise `ContextMismatchError` unless the stored fields fit the class."""
        stored = list(data)
        missing = [name for name in self.positions if name not in stored and name not in self.defaults]
        unknown = [name for name in stored if name not in self.names]
        if missing or unknown:
            raise mismatch(self.cls, missing, unknown)

    def completed(self, values: dict[str, Any]) -> dict[str, Any]:
        """Add the default of each field that has no value."""
        for name in self.positions:
            if name not in values:
                values[name] = self.defaults[name](values)
        return values
