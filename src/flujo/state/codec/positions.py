"""Where a value stands decides how it is written: two kinds of position.

In an *any* position JSON's own types are written as they are and everything else is a tag. In a *typed*
position (a field, by its annotation) a value of exactly the declared class is written in its plain form,
and any other value is a tag, numbers and strings too, so that reading is never ambiguous. `null` is always
None.

A position is a pair of tables from the exact type of a value, or of JSON data, to the function that
converts it, or to `None` where the value goes as it is. The tables fill themselves.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from itertools import chain, repeat
from operator import contains
from typing import Any

from pydantic_core import to_json

from flujo.errors import ContextMismatchError, RegistryError, UnknownTypeError

from .classes import compile_class
from .faults import TAG, VALUE, Coder, Damaged, Lenient, Lift, Lower, Refused, TooDeep, readable
from .scalars import SCALARS, STAND_FOR
from .tables import Position, Table
from .types import TYPES, alias_value, kind_of

NATIVES = frozenset((type(None), bool, int, float, str))
_STR = frozenset((str,))
_MAX_ALIASES = 20
ITEM_CONTAINERS: tuple[type[Any], ...] = (tuple, set, frozenset)


# --- lists and dicts ---------------------------------------------------------------------------------


def _all_plain(dicts: list[dict[Any, Any]]) -> bool:
    """Say whether dicts hold nothing but string keys and native scalars, at the speed of C."""
    return (
        _STR.issuperset(map(type, chain.from_iterable(dicts)))
        and NATIVES.issuperset(map(type, chain.from_iterable(map(dict.values, dicts))))
        and True not in map(contains, dicts, repeat(TAG))
    )


def _list_writer(writes: Table, untyped: bool = False) -> Lower:
    def write(value: Any, room: int) -> Any:
        if room < 1:
            raise TooDeep
        kinds = set(map(type, value))
        if len(kinds) == 1:
            (kind,) = kinds
            if kind is dict and untyped and room > 1 and _all_plain(value):
                return value
            one = writes[kind]
            return value if one is None else [one(item, room - 1) for item in value]
        if untyped and kinds <= NATIVES:
            return value
        return [item if (lower := writes[type(item)]) is None else lower(item, room - 1) for item in value]

    return write


def _dict_writer(writes: Table) -> Lower:
    def write(value: dict[Any, Any], room: int) -> Any:
        if room < 1:
            raise TooDeep
        if TAG in value or not _STR.issuperset(map(type, value)):
            return {TAG: "dict", VALUE: _write_pairs(value, room - 1)}
        if NATIVES.issuperset(map(type, value.values())) and writes is ANY.writes:
            return value
        return {
            key: item if (lower := writes[type(item)]) is None else lower(item, room - 1) for key, item in value.items()
        }

    return write


def _write_pairs(value: dict[Any, Any], room: int) -> Any:
    if room < 2:
        raise TooDeep
    return [[ANY.lower(key, room - 2), ANY.lower(item, room - 2)] for key, item in value.items()]


def _list_reader(reads: Table) -> Lift:
    def read(data: list[Any], strict: bool) -> Any:
        return [item if (lift := reads[type(item)]) is None else lift(item, strict) for item in data]

    return read


def _dict_reader(reads: Table) -> Lift:
    def read(data: dict[str, Any], strict: bool) -> Any:
        if TAG in data:
            return lift_tag(data, strict)
        return {key: item if (lift := reads[type(item)]) is None else lift(item, strict) for key, item in data.items()}

    return read


# --- tags ----------------------------------------------------------------------------------------------


def _tagged(kind: type[Any]) -> Lower:
    coder = coder_of(kind)
    name, lower = coder.name, coder.lower

    def write(value: Any, room: int) -> Any:
        if room < 1:
            raise TooDeep
        return {TAG: name, VALUE: lower(value, room - 1)}

    return write


def lift_tag(data: dict[str, Any], strict: bool | Lenient) -> Any:
    """Return the value of a tag; if not `strict`, its plain data where the type is unknown or has changed."""
    if len(data) != 2 or VALUE not in data or type(data[TAG]) is not str:
        raise Damaged("a tag is malformed")
    name, plain = data[TAG], data[VALUE]
    coder = _BUILTIN.get(name)
    if coder is None:
        cls = TYPES.by_name.get(name)
        coder = None if cls is None else CODERS.get(cls) or coder_of(cls)
    if coder is not None and strict:
        return coder.lift(plain, True)
    try:
        if coder is not None:
            return coder.lift(plain, strict)
        _unknown(name, strict)
    except (ContextMismatchError, UnknownTypeError):
        if strict:
            raise
    if isinstance(strict, Lenient):
        strict.unresolved.add(name)
    return ANY.lift(plain, strict)


def _unknown(name: str, strict: bool | Lenient) -> None:
    if strict:
        raise UnknownTypeError(
            f"The stored type {name!r} is not known to this process.",
            hint="Call register_type with the class, or declare it in the annotation of a step.",
            type_name=name,
        )


# --- coders ---------------------------------------------------------------------------------------------


def coder_of(cls: type[Any]) -> Coder:
    """Return the coder of a class, made at its first use; raises `Refused` if it can have none."""
    coder = CODERS.get(cls)
    if coder is None:
        coder = CODERS[cls] = _compile(cls)
    return coder


def _compile(cls: type[Any]) -> Coder:
    custom = TYPES.custom(cls)
    if custom is None and kind_of(cls) is None:
        raise Refused(f"is of type {readable(cls)}, which cannot be restored exactly")
    try:
        name = TYPES.note(cls)
    except RegistryError as error:
        raise Refused(f"is of type {readable(cls)}, whose name belongs to another class", error.hint) from error
    if custom is None:
        return compile_class(cls, name, position_of)
    encode, decode = custom.encode, custom.decode
    return Coder(
        name=name,
        lower=lambda value, room: ANY.lower(encode(value), room),
        lift=lambda data, strict: decode(ANY.lift(data, strict)),
    )


def _items_coder(cls: type[Any], position: Position) -> Coder:
    """Return the coder of a tuple or set whose items stand in `position`."""
    lower = _list_writer(position.writes)
    read = _list_reader(position.reads)

    def lift(data: Any, strict: bool) -> Any:
        if type(data) is not list:
            raise Damaged(f"expected the items of a {cls.__name__}")
        value = cls(read(data, strict))
        if len(value) != len(data):
            raise Damaged("a set holds an item twice")
        return value

    def lower_set(value: Any, room: int) -> Any:
        # Equal sets may iterate in different orders, but are to be written alike.
        return sorted(lower(list(value), room), key=to_json)

    def lower_tuple(value: Any, room: int) -> Any:
        return lower(list(value), room)

    return Coder(name=cls.__name__, lower=lower_tuple if cls is tuple else lower_set, lift=lift)


def _lift_pairs(data: Any, strict: bool) -> Any:
    if type(data) is not list or any(type(pair) is not list for pair in data):
        raise Damaged("expected the pairs of a dict")
    value = {ANY.lift(key, strict): ANY.lift(item, strict) for key, item in data}
    if len(value) != len(data):
        raise Damaged("a dict holds a key twice")
    return value


def _lift_list(data: Any, strict: bool) -> Any:
    if type(data) is not list:
        raise Damaged("expected the items of a list")
    return ANY.lift(data, strict)


# --- the positions themselves -----------------------------------------------------------------------------


def _any_write(kind: type[Any]) -> Lower | None:
    if kind in NATIVES:
        return None
    if kind is list:
        return _list_writer(ANY.writes, untyped=True)
    return _dict_writer(ANY.writes) if kind is dict else _tagged(kind)


def _any_read(kind: type[Any]) -> Lift | None:
    if kind is list:
        return _list_reader(ANY.reads)
    return _dict_reader(ANY.reads) if kind is dict else None


ANY = Position(_any_write, _any_read)
"""The position of a root, and of whatever has no declared type."""


def _typed(cls: type[Any], coder: Callable[[], Coder]) -> Position:
    """Return the position of a declared class; its coder is made at first use, since classes may recur."""

    def write(kind: type[Any]) -> Lower | None:
        if kind is type(None) or (kind is cls and cls in NATIVES):
            return None
        return coder().lower if kind is cls else _tagged(kind)

    def read(kind: type[Any]) -> Lift | None:
        if kind is not dict:
            known = kind in (str, int, float, bool, list)
            return coder().lift if known and not (cls in NATIVES and kind is not list) else None
        # Asked for at each use, since an abstract class, whose values are all tags, has no coder.
        return lambda data, strict: (lift_tag if TAG in data else coder().lift)(data, strict)

    return Position(write, read)


def _typed_list(item: Position) -> Position:
    lower, read = _list_writer(item.writes), _list_reader(item.reads)
    return _typed(list, lambda: Coder(name="list", lower=lower, lift=_only(list, read)))


def _typed_dict(item: Position) -> Position:
    lower, read = _dict_writer(item.writes), _dict_reader(item.reads)
    return _typed(dict, lambda: Coder(name="dict", lower=lower, lift=_only(dict, read)))


def _only(cls: type[Any], read: Lift) -> Lift:
    def lift(data: Any, strict: bool) -> Any:
        if type(data) is not cls:
            raise Damaged(f"expected a {cls.__name__}, found {type(data).__name__}")
        return read(data, strict)

    return lift


def position_of(annotation: Any, aliases: int = 0) -> Position:
    """Return the position of a field that is declared with an annotation."""
    if aliases > _MAX_ALIASES:
        return ANY
    inner = _unwrapped(annotation)
    if inner is not annotation:
        return position_of(inner, aliases + 1)
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        # None is always null, so that `X | None` is the position of X.
        others = [item for item in arguments if item is not type(None)]
        return position_of(others[0], aliases + 1) if len(others) == 1 else ANY
    if origin is list and len(arguments) == 1:
        return _typed_list(position_of(arguments[0], aliases + 1))
    if origin is dict and arguments[:1] == (str,):
        return _typed_dict(position_of(arguments[1], aliases + 1))
    if (origin in (set, frozenset) and arguments) or (origin is tuple and arguments[1:] == (Ellipsis,)):
        coder = _items_coder(origin, position_of(arguments[0], aliases + 1))
        return _typed(origin, lambda: coder)
    cls = STAND_FOR.get(annotation, annotation) if isinstance(annotation, type) else origin
    return _class_position(cls) if isinstance(cls, type) else ANY


def _class_position(cls: type[Any]) -> Position:
    # The plain form of a registered class may be anything, so that only a tag tells it from other values.
    if TYPES.custom(cls) is not None or cls is type(None):
        return ANY
    if cls in SCALARS or kind_of(cls) is not None:
        return _typed(cls, lambda: coder_of(cls))
    return ANY


def _unwrapped(annotation: Any) -> Any:
    """Return what an annotation says without what does not matter here."""
    if isinstance(annotation, typing.NewType):
        return annotation.__supertype__
    if typing.get_origin(annotation) in (typing.Annotated, typing.Final, typing.Required, typing.NotRequired):
        return typing.get_args(annotation)[0]
    return alias_value(annotation) or annotation


def _fresh_coders() -> dict[type[Any], Coder]:
    return {
        **SCALARS,
        **{cls: _items_coder(cls, ANY) for cls in ITEM_CONTAINERS},
        list: Coder(name="list", lower=_list_writer(ANY.writes, untyped=True), lift=_lift_list),
        dict: Coder(name="dict", lower=_write_pairs, lift=_lift_pairs),
    }


CODERS: dict[type[Any], Coder] = _fresh_coders()
_BUILTIN = {coder.name: coder for coder in CODERS.values()}


def forget() -> None:
    """Drop every coder that was made, because a registration may have changed what it does."""
    for cls in [cls for cls in CODERS if cls not in _BUILTIN_CLASSES]:
        CODERS.pop(cls, None)
    ANY.writes.clear()
    ANY.reads.clear()


_BUILTIN_CLASSES = frozenset(CODERS)
TYPES.on_change.append(forget)
