"""Compare the declared types of two neighbouring steps, and print types as people write them.

This is no type checker: it answers "certainly wrong" or "go on". What it cannot decide it accepts, because a
pipeline refused without need is worse than an error that shows one step later.
"""

from __future__ import annotations

import collections.abc
import enum
import types
import typing
from typing import Any, Literal, TypeVar

_WRAPPERS = (typing.Annotated, typing.Required, typing.NotRequired, typing.Final, typing.ClassVar)
_UNIONS = (typing.Union, types.UnionType)
_NONE = type(None)
_CALLABLE: Any = collections.abc.Callable
_OPEN: tuple[Any, ...] = (Any, typing.Never, typing.NoReturn, typing.Self)
_VARIABLES = (TypeVar, typing.ParamSpec, typing.TypeVarTuple, typing.ForwardRef, str)
# typing.TypeAliasType came with Python 3.12; before it there is nothing of that kind to unwrap.
_ALIAS: type[Any] | None = getattr(typing, "TypeAliasType", None)
_PROMOTED = ((int, (float, complex)), (float, (complex,)))  # PEP 484: where a float is wanted an int will do
_ELEMENTS: dict[Any, Any] = {str: str, bytes: int, bytearray: int, range: int}


def assignable(source: Any, target: Any) -> bool:
    """Return False only if a value of type `source` certainly does not fit where `target` is declared."""
    try:
        return _Comparison().fits(source, target)
    except RecursionError:  # a generic alias may grow with each look inside: `type X[T] = T | X[list[T]]`
        return True


class _Comparison:
    """One question, with its memory: types may be recursive, and unions repeat their parts."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, Any], bool] = {}

    def fits(self, source: Any, target: Any) -> bool:
        source, target = _plain(source), _plain(target)
        if source is target or _anything(source) or _anything(target) or target is object:
            return True
        try:
            pair = (source, target)
            if pair in self._known:
                return self._known[pair]
        except TypeError:  # a Literal or an Annotated of something unhashable
            return True
        self._known[pair] = True  # a recursive type meets itself: true unless something else is wrong
        self._known[pair] = answer = self._compare(source, target)
        return answer

    def _compare(self, source: Any, target: Any) -> bool:
        if typing.get_origin(source) in _UNIONS:
            return all(self.fits(member, target) for member in typing.get_args(source))
        if typing.get_origin(source) is Literal:
            return all(self._value(value, target) for value in typing.get_args(source))
        if self._whole(source, target):
            return True
        # Literal[True, False] takes a bool, and a union of all its members takes an enum.
        members = _members(source)
        return bool(members) and all(self._value(value, target) for value in members)

    def _whole(self, source: Any, target: Any) -> bool:
        if typing.get_origin(target) in _UNIONS:
            return any(self.fits(source, member) for member in typing.get_args(target))
        if isinstance(source, typing.NewType):
            return self.fits(source.__supertype__, target)
        if isinstance(target, typing.NewType) or typing.get_origin(target) is Literal:
            return False
        return self._classes(source, target)

    def _value(self, value: Any, target: Any) -> bool:
        target = _plain(target)
        if typing.get_origin(target) in _UNIONS:
            return any(self._value(value, member) for member in typing.get_args(target))
        if typing.get_origin(target) is Literal:
            return any(type(value) is type(wanted) and value == wanted for wanted in typing.get_args(target))
        if isinstance(target, typing.NewType):
            return False
        return _anything(target) or target is object or self._classes(type(value), target)

    def _classes(self, source: Any, target: Any) -> bool:
        source_class, target_class = _class_of(source), _class_of(target)
        if source_class is None or target_class is None:
            return True
        if _is_protocol(source_class) or _is_protocol(target_class):
            return True
        if typing.is_typeddict(source_class) or typing.is_typeddict(target_class):
            return self._typed_dicts(source_class, target_class)
        try:
            if not issubclass(source_class, target_class):
                return any(target_class in wider and issubclass(source_class, number) for number, wider in _PROMOTED)
        except TypeError:  # a class that answers no such question
            return True
        if target_class is _CALLABLE:
            return True
        if target_class is tuple and source_class is tuple:
            return self._tuples(_arguments(source), _arguments(target))
        return self._arguments_fit(source, target, target_class)

    def _arguments_fit(self, source: Any, target: Any, target_class: type[Any]) -> bool:
        wanted, offered = _arguments(target), _arguments_as(source, target_class)
        if not wanted or offered is None or len(offered) != len(wanted):
            return True
        variables = getattr(target_class, "__parameters__", ())
        for place, (one, other) in enumerate(zip(offered, wanted, strict=True)):
            variable = variables[place] if len(variables) == len(wanted) else None
            # Invariance is left to the type checkers: a list[bool] that is only read is a fine list[int].
            if getattr(variable, "__contravariant__", False):
                fit = self.fits(other, one)
            else:
                fit = self.fits(one, other) or (
                    getattr(variable, "__infer_variance__", False) and self.fits(other, one)
                )
            if not fit:
                return False
        return True

    def _tuples(self, source: tuple[Any, ...] | None, target: tuple[Any, ...] | None) -> bool:
        if source is None or target is None or any(map(_unpacks, (*source, *target))):
            return True
        if Ellipsis in target:
            return all(self.fits(item, target[0]) for item in source if item is not Ellipsis)
        if Ellipsis in source:
            return all(self.fits(source[0], item) for item in target)
        return len(source) == len(target) and all(map(self.fits, source, target))

    def _typed_dicts(self, source: type[Any], target: type[Any]) -> bool:
        if not typing.is_typeddict(target):
            return issubclass(dict, target)
        if not typing.is_typeddict(source):
            return issubclass(source, dict) or issubclass(dict, source)
        offered, wanted = _hints(source), _hints(target)
        if not getattr(target, "__required_keys__", frozenset()) <= offered.keys():
            return False
        return all(self.fits(offered[key], wanted[key]) for key in offered.keys() & wanted.keys())


def readable(tp: Any, *, qualified: bool = False) -> str:
    """Return the type as a person would write it: `list[int]`, `Order | None`.

    `qualified` puts the module before the names of classes, to tell two classes of one name apart.
    """
    while typing.get_origin(tp) in _WRAPPERS:
        tp = typing.get_args(tp)[0]
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    if tp is Ellipsis or tp is None or tp is _NONE:
        return "..." if tp is Ellipsis else "None"
    if isinstance(tp, list):  # the parameters within Callable[[int, str], bool]
        return f"[{', '.join(readable(arg, qualified=qualified) for arg in tp)}]"
    if origin in _UNIONS:
        return " | ".join(readable(arg, qualified=qualified) for arg in args)
    if origin is Literal:
        return f"Literal[{', '.join(str(arg) if isinstance(arg, enum.Enum) else repr(arg) for arg in args)}]"
    if origin is not None:
        inside = ", ".join(readable(arg, qualified=qualified) for arg in args)
        name = _name(origin, qualified)
        return f"{name}[{inside or '()'}]" if hasattr(tp, "__args__") else name
    if isinstance(tp, typing.ForwardRef | str):
        return tp if isinstance(tp, str) else tp.__forward_arg__
    return _name(tp, qualified)


def _name(tp: Any, qualified: bool) -> str:
    name = getattr(tp, "__name__", None) or getattr(tp, "_name", None)
    if not isinstance(name, str):
        return repr(tp).removeprefix("typing.")
    if qualified and isinstance(tp, type | typing.NewType) and tp.__module__ != "builtins":
        return f"{tp.__module__}.{getattr(tp, '__qualname__', name)}"
    return name


def _plain(tp: Any) -> Any:
    """Take off what does not change the values: aliases, Annotated, and Required and its like."""
    for _ in range(100):  # an alias of itself has no end
        origin = typing.get_origin(tp)
        if origin in _WRAPPERS:
            tp = typing.get_args(tp)[0]
        elif _ALIAS is not None and isinstance(tp, _ALIAS):
            tp = _alias_value(tp, ())
        elif _ALIAS is not None and isinstance(origin, _ALIAS):
            tp = _alias_value(origin, typing.get_args(tp))
        else:
            return _NONE if tp is None else tp
    return Any


def _alias_value(alias: Any, args: tuple[Any, ...]) -> Any:
    try:
        value = alias.__value__
        return value[args] if args else value
    except Exception:  # it is evaluated only now, and may name anything
        return Any


def _anything(tp: Any) -> bool:
    return isinstance(tp, _VARIABLES) or any(tp is one for one in _OPEN)


def _members(tp: Any) -> tuple[Any, ...]:
    """Return all values of a type that has few of them; of every other type none."""
    if tp is bool:
        return (True, False)
    if tp is _NONE:
        return (None,)
    return tuple(tp.__members__.values()) if isinstance(tp, enum.EnumMeta) else ()


def _class_of(tp: Any) -> type[Any] | None:
    generic = _pydantic_generic(tp)
    tp = generic[0] if generic else (typing.get_origin(tp) or tp)
    return tp if isinstance(tp, type) else None


def _pydantic_generic(tp: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """Take `Page[int]` apart, which pydantic makes a class of its own."""
    made = getattr(tp, "__pydantic_generic_metadata__", None)
    return (made["origin"], made["args"]) if isinstance(made, dict) and made.get("origin") else None


def _arguments(tp: Any) -> tuple[Any, ...] | None:
    """Return what stands in the brackets; None if there are none, which reads as Any."""
    generic = _pydantic_generic(tp)
    if generic:
        return generic[1]
    # A bare typing.List has an origin too, but no arguments; tuple[()] has arguments, none in number.
    return typing.get_args(tp) if typing.get_origin(tp) and hasattr(tp, "__args__") else None


def _arguments_as(source: Any, target_class: type[Any]) -> tuple[Any, ...] | None:
    """Return the arguments with which `source` is a `target_class`; None if they cannot be told."""
    source_class: Any = _class_of(source)
    args = _arguments(source)
    if source_class is target_class:
        return args
    if source_class in _ELEMENTS:
        return (_ELEMENTS[source_class],)
    if args and source_class.__module__ in ("builtins", "collections", "collections.abc"):
        return _elements(source_class, args, target_class)
    # Not by getattr: a class without bracketed bases would show those of its parent.
    for base in vars(source_class).get("__orig_bases__", source_class.__bases__):
        base_class = _class_of(base)
        if base_class not in (None, typing.Generic) and _is_below(base_class, target_class):
            return _arguments_as(_substituted(base, source_class, args), target_class)
    return None


def _elements(source_class: Any, args: tuple[Any, ...], target_class: type[Any]) -> tuple[Any, ...] | None:
    """Say with which arguments a built-in collection is another: tuple[int, str] a Sequence[int | str]."""
    if source_class is tuple:
        items = tuple(arg for arg in args if arg is not Ellipsis)
        return None if any(map(_unpacks, items)) else (typing.Union[items],)  # noqa: UP007  # `|` fails on strings and on two Nones
    if _is_below(source_class, collections.abc.Mapping) and len(args) == 2:
        # What has one parameter (Iterable, Collection) sees the keys.
        return args if _is_below(target_class, collections.abc.Mapping) else args[:1]
    return args if len(args) == 1 and _is_below(source_class, collections.abc.Iterable) else None


def _substituted(base: Any, source_class: Any, args: tuple[Any, ...] | None) -> Any:
    variables = getattr(source_class, "__parameters__", ())
    inner = getattr(base, "__parameters__", ())
    if not inner:
        return base
    known = dict(zip(variables, args, strict=True)) if args and len(args) == len(variables) else {}
    return base[tuple(known.get(variable, Any) for variable in inner)]


def _is_below(one: Any, other: Any) -> bool:
    try:
        return issubclass(one, other)
    except TypeError:
        return False


def _is_protocol(tp: Any) -> bool:
    return bool(getattr(tp, "_is_protocol", False))


def _unpacks(arg: Any) -> bool:
    return (
        isinstance(arg, typing.TypeVarTuple)
        or typing.get_origin(arg) is typing.Unpack
        or bool(getattr(arg, "__unpacked__", False))
    )


def _hints(tp: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(tp)
    except Exception:  # a name that is not there to be resolved: nothing is certain about any key
        return dict.fromkeys(getattr(tp, "__annotations__", ()), Any)
