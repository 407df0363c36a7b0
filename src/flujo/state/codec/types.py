"""The names under which classes are stored, and which of them this process resolves.

A stored name is looked up here and nowhere else: it is never imported. A class gets in by
`register_type`, by `declare` (it is reachable from an annotation), or by being encoded by this process.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeVar, overload

from pydantic import BaseModel

from flujo.errors import RegistryError

from .faults import readable, type_name
from .scalars import SCALARS

T = TypeVar("T")

CONTAINERS: tuple[type[Any], ...] = (list, dict, tuple, set, frozenset)
_BUILTIN_NAMES = {coder.name for coder in SCALARS.values()} | {cls.__name__ for cls in CONTAINERS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Custom:
    """The functions of a class that was registered with its own."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


class Types:
    """The classes that this process resolves, by name; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._explicit: dict[str, type[Any]] = {}
        self.by_name: dict[str, type[Any]] = {}
        self._names: dict[type[Any], str] = {}
        self._custom: dict[type[Any], Custom] = {}
        self._walked: set[Any] = set()
        self.on_change: list[Callable[[], None]] = []

    def register(self, cls: type[Any], name: str | None, custom: Custom | None) -> None:
        """Add a class under a name for good; `None` takes its module and qualified name."""
        name = type_name(cls) if name is None else name
        with self._lock:
            taken = self._explicit.get(name)
            if name in _BUILTIN_NAMES or (taken is not None and taken is not cls):
                owner = "the library itself" if taken is None else readable(taken)
                raise RegistryError(
                    f"The type name {name!r} is taken by {owner}.",
                    hint="Pass another `name` to register_type.",
                    type_name=name,
                )
            self._explicit[name] = self.by_name[name] = cls
            self._names[cls] = name
            # What was stored before it had another name is still found.
            self.by_name.setdefault(type_name(cls), cls)
            if custom is not None:
                self._custom[cls] = custom
            for forget in self.on_change:
                forget()

    def note(self, cls: type[Any]) -> str:
        """Add a class that is declared or was encoded, and return its name; the newest of a name wins.

        Raises `RegistryError` if another class was registered under the name.
        """
        with self._lock:
            name = self._names.get(cls) or type_name(cls)
            taken = self._explicit.get(name, cls)
            if taken is not cls or name in _BUILTIN_NAMES:
                raise RegistryError(
                    f"{readable(cls)} would be stored as {name!r}, which is registered for another class.",
                    hint="Pass another `name` to register_type for one of them.",
                    type_name=name,
                )
            self.by_name[name] = cls
            return name

    def custom(self, cls: type[Any]) -> Custom | None:
        """Return the functions that a class was registered with."""
        return self._custom.get(cls)

    def walk(self, annotation: Any) -> None:
        """Add every class that can be reached from an annotation."""
        with self._lock:
            todo = [annotation]
            while todo:
                item = todo.pop()
                try:
                    if item in self._walked:
                        continue
                    self._walked.add(item)
                except TypeError:  # unhashable, such as the parameters of a Callable: walk it again
                    pass
                if isinstance(item, type) and not isinstance(item, types.GenericAlias):
                    todo.extend(self._enter(item))
                else:
                    todo.extend(_parts(item))

    def _enter(self, cls: type[Any]) -> Iterable[Any]:
        if cls is BaseModel:  # it stands for any model, and has no fields to ask for
            return ()
        if kind_of(cls) is not None:
            self.note(cls)
        return field_annotations(cls).values()


def kind_of(cls: type[Any]) -> str | None:
    """Return how the values of a class are taken apart, or `None` where the codec cannot."""
    if issubclass(cls, Enum):
        return "enum"
    if issubclass(cls, BaseModel):
        return "model"
    if dataclasses.is_dataclass(cls):
        return "dataclass"
    if issubclass(cls, tuple) and type(getattr(cls, "_fields", None)) is tuple:
        return "namedtuple"
    return None


def field_annotations(cls: type[Any]) -> dict[str, Any]:
    """Return the declared type of each field of a class; `Any` where it cannot be resolved."""
    if issubclass(cls, BaseModel):
        if not cls.__pydantic_complete__:
            cls.model_rebuild(raise_errors=False)
        return {name: field.annotation for name, field in cls.model_fields.items()}
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    elif kind_of(cls) == "namedtuple":
        names = list(cls._fields)
    elif typing.is_typeddict(cls):
        names = list(cls.__annotations__)
    else:
        return {}
    hints = _hints(cls)
    return {name: hints.get(name, Any) for name in names}


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # a forward reference may fail in any way; then field by field
        pass
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        space = vars(sys.modules.get(base.__module__, types))
        for name, annotation in vars(base).get("__annotations__", {}).items():
            probe = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                hints.update(typing.get_type_hints(probe, space, dict(vars(base)), include_extras=True))
            except Exception:  # this one cannot be resolved
                hints[name] = Any
    return hints


def _parts(annotation: Any) -> list[Any]:
    """Return what an annotation that is not a class is made of."""
    if isinstance(annotation, list | tuple):  # the parameters of a Callable
        return list(annotation)
    if isinstance(annotation, TypeVar):
        return [annotation.__bound__, *annotation.__constraints__]
    if isinstance(annotation, typing.NewType):
        return [annotation.__supertype__]
    origin = typing.get_origin(annotation)
    arguments = list(typing.get_args(annotation))
    if origin is typing.Annotated:
        return arguments[:1]
    if origin is typing.Literal:
        return [type(item) for item in arguments]
    return [item for item in (origin, *arguments, alias_value(annotation)) if item is not None]


def alias_value(annotation: Any) -> Any:
    """Return what a `type X = ...` alias stands for, or `None`."""
    if type(annotation).__name__ != "TypeAliasType":
        return None
    try:
        return annotation.__value__
    except Exception:  # evaluated on first use, which may fail in any way
        return None


TYPES = Types()
"""The one registry of this process."""


@overload
def register_type(
    cls: type[T],
    *,
    name: str | None = None,
    encode: Callable[[T], Any] | None = None,
    decode: Callable[[Any], T] | None = None,
) -> type[T]: ...


@overload
def register_type(
    cls: None = None,
    *,
    name: str | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Callable[[type[T]], type[T]]: ...


def register_type(
    cls: type[Any] | None = None,
    *,
    name: str | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Any:
    """Let stored values of a class be restored in this process; also a decorator.

    Arguments: `name` is the stored name (default: module and qualified name; a class may be registered
    under an old name and then under its new one); `encode` gives something that is itself encodable, and
    `decode` the value from that. Both are needed for a class that is no model, dataclass, named tuple or
    enum. `decode` is the one function that runs when a value is restored. Raises `RegistryError` if the
    name belongs to another class.
    """
    if cls is None:
        return lambda later: register_type(later, name=name, encode=encode, decode=decode)
    if not isinstance(cls, type):
        raise RegistryError(f"{cls!r} is not a class.", hint="Pass a class to register_type.")
    if cls in SCALARS or cls in CONTAINERS:
        raise RegistryError(
            f"{readable(cls)} is a type that the library stores itself.", hint="Remove the registration."
        )
    if (encode is None) is not (decode is None):
        raise RegistryError(
            f"{readable(cls)} is registered with only one of encode and decode.", hint="Pass both or neither."
        )
    custom = Custom(encode=encode, decode=decode) if encode is not None and decode is not None else None
    if custom is None and kind_of(cls) is None:
        raise RegistryError(
            f"{readable(cls)} is no model, dataclass, named tuple or enum.",
            hint="Pass an encode and a decode function to register_type.",
        )
    TYPES.register(cls, name, custom)
    return cls


def declare(annotation: Any) -> None:
    """Let every type that can be reached from an annotation be restored in this process."""
    TYPES.walk(annotation)
