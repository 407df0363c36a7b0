"""Pydantic models: fields, extra and private attributes, and which fields were set, without validating.

The plain form is an object of the fields and extras, with up to two keys of the codec's own: `$private` and
`$unset`. An extra whose name starts with `$` gets another `$` in front.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flujo.errors import NotSerializableError

from .faults import Coder, Damaged, Refused, TooDeep, readable
from .shapes import Default, Shape, mismatch
from .tables import Position
from .types import field_annotations

M = TypeVar("M", bound=BaseModel)

PRIVATE = "$private"
"""The key under which a model's private attributes are stored."""
UNSET = "$unset"
"""The key under which the fields are named that were left at their default."""

# The slots themselves, for speed; RootModel hides two of them behind class attributes that are None.
_put_fields_set = vars(BaseModel)["__pydantic_fields_set__"].__set__
_put_extra = vars(BaseModel)["__pydantic_extra__"].__set__
_put_private = vars(BaseModel)["__pydantic_private__"].__set__
_put = object.__setattr__


class ModelShape(Shape):
    """The fields of a model, and what its objects have beside them."""

    def __init__(self, cls: type[BaseModel], positions: dict[str, Position]) -> None:
        super().__init__(cls, positions, _defaults(cls))
        self.allows_extra = cls.model_config.get("extra") == "allow"
        self.private = cls.__private_attributes__
        self.slots = _own_slots(cls)
        self.plain = not self.private and not self.slots

    def parts(self, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the extras, by stored name, and the private attributes of a model."""
        extra = {_escaped(key): item for key, item in (model.__pydantic_extra__ or {}).items()}
        private = dict(model.__pydantic_private__ or {})
        for name in private.keys() - self.private.keys():
            raise Refused(f"has an attribute {name!r} that {readable(self.cls)} does not declare")
        for name, declared in self.private.items():
            if name not in private and _has_default(declared):
                raise Refused(f"has no value for the private attribute {name!r}", "Set it.")
        for slot in self.slots:
            if hasattr(model, slot):
                raise Refused(f"has a value in the slot {slot!r}", "Make it a field or a private attribute.")
        return extra, private

    def unset(self, model: Any) -> list[str]:
        """Return the names of the fields and extras that are not in `model_fields_set`."""
        left: set[str] = set(model.__pydantic_fields_set__)
        known = [*self.positions, *(model.__pydantic_extra__ or ())]
        stray = left.difference(known)
        if stray:
            raise Refused(f"has {min(stray)!r} in model_fields_set, which is none of its fields")
        return [name for name in known if name not in left]

    def split(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
        """Return the fields, the extras by their own names, the private part and the unset part."""
        fields, extra = {}, {}
        for key, item in data.items():
            if key in self.names or not (self.allows_extra or key in (PRIVATE, UNSET)):
                fields[key] = item
            elif key not in (PRIVATE, UNSET):
                extra[_unescaped(key)] = item
        return fields, extra, data.get(PRIVATE, {}), data.get(UNSET, [])

    def build(self, values: dict[str, Any], stored: set[str], extra: dict[str, Any], private: dict[str, Any]) -> Any:
        """Return a model of the values given, running nothing but the defaults of private attributes."""
        model = object.__new__(self.cls)
        _put(model, "__dict__", values)
        _put_fields_set(model, stored)
        _put_extra(model, extra if self.allows_extra else None)
        # By name, so that RootModel finds it where it looks for it.
        _put(model, "__pydantic_private__", self._all_private(private))
        return model

    def _all_private(self, private: dict[str, Any]) -> dict[str, Any] | None:
        lost = [name for name in private if name not in self.private]
        if lost:
            raise mismatch(self.cls, (), lost)
        if not self.private:
            return None
        for name, declared in self.private.items():
            if name not in private and _has_default(declared):
                private[name] = declared.get_default()
        return private


def _own_slots(cls: type[BaseModel]) -> set[str]:
    return {
        attribute
        for base in cls.__mro__
        if base is not BaseModel
        for attribute, slot in vars(base).items()
        if type(slot) is types.MemberDescriptorType
    }


def _has_default(declared: Any) -> bool:
    return declared.default is not PydanticUndefined or declared.default_factory is not None


def _escaped(key: str) -> str:
    return "$" + key if key.startswith("$") else key


def _unescaped(key: str) -> str:
    if not key.startswith("$"):
        return key
    if not key.startswith("$$"):
        raise Damaged(f"a model has no part {key!r}")
    return key[1:]


def _defaults(cls: type[BaseModel]) -> dict[str, Default]:
    def default_of(field: Any) -> Default:
        factory = field.default_factory
        if factory is None:
            return lambda _: field.get_default()  # a copy, if it is mutable
        if getattr(field, "default_factory_takes_validated_data", False):
            taking: Default = factory
            return taking
        return lambda _: factory()

    return {name: default_of(field) for name, field in cls.model_fields.items() if not field.is_required()}


def model_coder(cls: type[BaseModel], name: str, positions: dict[str, Position], anywhere: Position) -> Coder:
    """Return the coder of a model class; extras and private attributes stand in the position `anywhere`."""
    shape = ModelShape(cls, positions)
    return Coder(name=name, lower=_lower(shape, anywhere), lift=_lift(shape, anywhere))


def _lower(shape: ModelShape, anywhere: Position) -> Any:
    names, write, plain = shape.names, shape.write, shape.plain

    def lower(model: Any, room: int) -> Any:
        out = write(model.__dict__, room)
        if plain and not model.__pydantic_extra__ and model.__pydantic_fields_set__ == names:
            return out
        extra, private = shape.parts(model)
        unset = shape.unset(model)
        out = {**out, **{key: anywhere.lower(item, room - 1) for key, item in extra.items()}}
        if private:
            out[PRIVATE] = anywhere.lower(private, room - 1)
        if unset:
            out[UNSET] = unset
        if room < 2 and (private or unset):
            raise TooDeep
        return out

    return lower


def _lift(shape: ModelShape, anywhere: Position) -> Any:
    cls, names, read, build = shape.cls, shape.names, shape.read, shape.build
    new, allows_extra = object.__new__, shape.allows_extra

    def lift(data: Any, strict: bool) -> Any:
        if type(data) is not dict:
            raise Damaged(f"expected the fields of {readable(cls)}, found {type(data).__name__}")
        if not shape.private and names.issuperset(data):
            model = new(cls)
            _put(model, "__dict__", read(data, strict))
            _put_fields_set(model, set(data))
            _put_extra(model, {} if allows_extra else None)
            _put_private(model, None)
            return model
        fields, extra, private, unset = shape.split(data)
        if type(private) is not dict or type(unset) is not list or not {*fields, *extra}.issuperset(unset):
            raise Damaged(f"the parts of a {readable(cls)} are malformed")
        extra = {key: anywhere.lift(item, strict) for key, item in extra.items()}
        private = {key: anywhere.lift(item, strict) for key, item in private.items()}
        return build(read(fields, strict), {*fields, *extra}.difference(unset), extra, private)

    return lift


_SHAPES: dict[type[BaseModel], ModelShape] = {}
_NOWHERE = Position(lambda _: None, lambda _: None)


def _shape_of(cls: type[BaseModel]) -> ModelShape:
    shape = _SHAPES.get(cls)
    if shape is None:
        shape = _SHAPES[cls] = ModelShape(cls, dict.fromkeys(field_annotations(cls), _NOWHERE))
    return shape


def fields_of(model: BaseModel, where: str = "context") -> dict[str, Any]:
    """Return the values of a model by name, in a new dict: fields, extras, and `$private` if it has any.

    The values themselves are not copied. Raises `NotSerializableError` for a model with attributes that are
    none of these.
    """
    try:
        shape = _shape_of(type(model))
        values = dict(shape.fitting(model.__dict__))
        if shape.plain and not model.__pydantic_extra__:
            return values
        extra, private = shape.parts(model)
    except Refused as refused:
        raise NotSerializableError(
            f"{where} {refused.reason}.", hint=refused.hint, path=where, type_name=readable(type(model))
        ) from None
    return {**values, **extra, **({PRIVATE: private} if private else {})}


def restore_model(cls: type[M], fields: Mapping[str, Any]) -> M:
    """Return a model of values as `fields_of` gives them; no validator runs.

    A field without a value takes its default. Raises `ContextMismatchError` that names each field which has
    none, and each value that the model has no field for.
    """
    shape = _shape_of(cls)
    values, extra, private, _ = shape.split(fields)
    shape.check(values)
    stored = {*values, *extra}
    model: M = shape.build(shape.completed(values), stored, extra, dict(private))
    return model
