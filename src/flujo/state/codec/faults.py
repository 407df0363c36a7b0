"""What the parts of the codec share: the shape of a coder and the two ways in which one says no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Both hot functions take plain positional arguments: a call with keywords costs a third more.
Lower = Callable[[Any, int], Any]
"""Give the plain form of a value; the number is how many levels of nesting are left."""
Lift = Callable[[Any, Any], Any]
"""Give the value of a plain form; the flag is `strict`: a bool, or a Lenient."""

TAG = "$type"
"""The key that makes a JSON object a tag."""
VALUE = "value"
"""The key of a tag that holds the plain form."""

REGISTER_HINT = "Convert it to a supported type, or call flujo's register_type with an encode and a decode."


@dataclass(frozen=True, slots=True, kw_only=True)
class Coder:
    """How the values of one class are written and read; `name` is its tag."""

    name: str
    lower: Lower
    lift: Lift


class Lenient:
    """A `strict` that is false, and notes the names of the types that were not resolved."""

    def __init__(self) -> None:
        self.unresolved: set[str] = set()

    def __bool__(self) -> bool:
        return False


class Refused(Exception):
    """A value that cannot be restored exactly; the path to it is found afterwards.

    Arguments: `reason` follows the path in a sentence ("is a function ..."); `hint` says what to do.
    """

    def __init__(self, reason: str, hint: str = REGISTER_HINT) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class TooDeep(Refused):
    """A value that is nested deeper than the codec's limit."""

    def __init__(self) -> None:
        super().__init__("is nested too deeply", "Flatten it, or refer to the inner parts by an id.")


class Damaged(Exception):
    """Stored data that no value could have been written as."""


def type_name(cls: type[Any]) -> str:
    """Return the name under which a class is stored: `module:qualname`.

    A generic model with its parameters has the module of whoever first wrote them down: take the model's.
    """
    origin = getattr(cls, "__pydantic_generic_metadata__", {}).get("origin")
    if origin is None:
        return f"{cls.__module__}:{cls.__qualname__}"
    scope = origin.__qualname__.removesuffix(origin.__name__)
    return f"{origin.__module__}:{scope}{cls.__name__}"


def readable(cls: type[Any]) -> str:
    """Return the name of a class as people write it."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
