"""The codec: any supported value to JSON bytes and back, exactly, or an error that says where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import CoreConfig, SchemaSerializer, core_schema, from_json

from flujo.errors import ConfigurationError, FlujoError, NotSerializableError, StateCorruptedError

from .faults import TAG, VALUE, Lenient, TooDeep
from .paths import refusal
from .positions import ANY
from .scalars import is_big, tag_number

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 128
_PARSER_DEPTH = 200

# The parser reads no NaN, so that one in the output only ever means: write this again, with tags.
_to_json = SchemaSerializer(core_schema.any_schema(), CoreConfig(ser_json_inf_nan="constants")).to_json
_writes = ANY.writes
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_RUN = 2048
_NUMBERS = ("int", "float")


class Codec:
    """Turns values into self-describing JSON and back.

    Arguments: `max_bytes` limits one payload, `max_depth` the nesting of its JSON (1 to 200 levels; a value
    other than JSON's own takes one more for its tag).
    """

    __slots__ = ("max_bytes", "max_depth")

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> None:
        if max_bytes < 1 or not 1 <= max_depth <= _PARSER_DEPTH:
            raise ConfigurationError(
                "The limits of a codec are out of range.",
                hint=f"Use max_bytes of at least 1 and max_depth from 1 to {_PARSER_DEPTH}.",
                max_bytes=max_bytes,
                max_depth=max_depth,
            )
        self.max_bytes = max_bytes
        self.max_depth = max_depth

    def encode(self, value: Any, where: str = "output") -> bytes:
        """Return the JSON of a value.

        Arguments: `where` is the path of the value in errors. Raises `NotSerializableError` with the path to
        the first part that could not be restored exactly.
        """
        try:
            lower = _writes[type(value)]
            plain = value if lower is None else lower(value, self.max_depth)
            data = _to_json(plain)
            if b"N" in data or b"I" in data or len(data) > _RUN:
                data = self._checked(plain, data)
        except MemoryError:
            raise
        except Exception:  # whatever it is, and a registered encode may raise anything, its place is wanted
            error = refusal(value, where, self.max_depth, self._write)
            raise error from error.__cause__
        if len(data) > self.max_bytes:
            raise NotSerializableError(
                f"{where} takes {len(data):,} bytes, more than the {self.max_bytes:,} that are allowed.",
                hint="Store it elsewhere and keep a reference, or raise max_bytes.",
                path=where,
                type_name=type(value).__name__,
            )
        return data

    def encode_fields(self, fields: Mapping[str, Any], where: str = "context") -> dict[str, bytes]:
        """Return the JSON of each value by name; errors name `where` and the field.

        Raises `NotSerializableError` for a name that is no plain string too.
        """
        for name in fields:
            if type(name) is not str or not (name.isascii() or _is_text(name)):
                raise NotSerializableError(
                    f"{where} has the key {name!a}, which could not be restored exactly.",
                    hint="Use plain strings, without lone surrogates, as its keys.",
                    path=where,
                    type_name=type(name).__name__,
                )
        return {name: self.encode(value, f"{where}.{name}") for name, value in fields.items()}

    def decode(self, data: bytes, *, strict: bool | Lenient = True) -> Any:
        """Return the value of JSON that `encode` gave.

        Arguments: with `strict=False` a value whose type is unknown, or has changed, is its plain data; a Lenient
        notes which types these are, too.
        Raises `UnknownTypeError` and `ContextMismatchError` for those otherwise, and `StateCorruptedError`
        for what no value is written as.
        """
        if len(data) > self.max_bytes:
            raise _corrupted(f"a payload has {len(data):,} bytes, more than {self.max_bytes:,}")
        try:
            plain = from_json(data, allow_inf_nan=False)
        except ValueError as error:
            raise _corrupted(f"a payload is no JSON ({error})") from error
        if data.count(b"[") + data.count(b"{") > self.max_depth and self._too_deep(data, plain):
            raise _corrupted(f"a payload is nested more than {self.max_depth} levels deep")
        return self.lift(plain, strict=strict) if b'"$type"' in data else plain

    def lower(self, value: Any, where: str = "output") -> Any:
        """Return the JSON of a value as new plain data: dicts, lists, strings, numbers, booleans and None."""
        return from_json(self.encode(value, where))

    def lift(self, data: Any, *, strict: bool | Lenient = True) -> Any:
        """Return the value of plain data that `lower` gave, in new containers.

        What is no JSON data passes through as it is. Raises as `decode` does.
        """
        try:
            return ANY.lift(data, strict)
        except (FlujoError, MemoryError):
            raise
        except RecursionError as error:
            raise _corrupted("a payload is nested too deeply") from error
        except Exception as error:  # malformed data may fail in any parser, or in a registered decode
            raise _corrupted(f"a value cannot be read ({type(error).__name__}: {error})") from error

    def _write(self, value: Any, room: int) -> bytes:
        plain = ANY.lower(value, room)
        return self._checked(plain, _to_json(plain))

    def _checked(self, plain: Any, data: bytes) -> bytes:
        """Return the data, written again with tags if they hold a number that JSON cannot."""
        if b"NaN" in data or b"Infinity" in data or _has_long_number(data):
            return _to_json(_with_tags(plain, self.max_depth))
        return data

    def _too_deep(self, data: bytes, plain: Any) -> bool:
        """Say whether the nesting exceeds the limit, by removing the innermost brackets level by level."""
        brackets = data.translate(None, _NOT_BRACKETS)
        for _ in range(self.max_depth):
            inner = brackets.replace(b"[]", b"").replace(b"{}", b"")
            if not inner:
                return False
            if len(inner) == len(brackets):
                break
            brackets = inner
        # Brackets within strings are in the way: count the levels of the data instead.
        return _depth(plain) > self.max_depth


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _corrupted(what: str) -> StateCorruptedError:
    return StateCorruptedError(
        f"The stored data are damaged: {what}.",
        hint="Restore the store from a backup, and see whether something else writes to it.",
    )


def _has_long_number(data: bytes) -> bool:
    """Say whether there may be a number of more than 4,300 digits: it would fill a whole aligned block."""
    if len(data) <= 2 * _RUN:
        return False
    return any(
        data[start : start + 8].isdigit() and data[start : start + _RUN].isdigit()
        for start in range(0, len(data), _RUN)
    )


def _with_tags(plain: Any, room: int) -> Any:
    """Return JSON data in which each number that JSON cannot hold is a tag."""
    kind = type(plain)
    if (kind is float and plain - plain != 0) or (kind is int and is_big(plain)):
        if room < 1:
            raise TooDeep
        return tag_number(plain)
    if kind is list:
        return [_with_tags(item, room - 1) for item in plain]
    if kind is dict:
        tagged = {key: _with_tags(item, room - 1) for key, item in plain.items()}
        # Where the field's type differs the number has its tag already: one is enough.
        return tagged[VALUE] if plain.get(TAG) in _NUMBERS and type(tagged[VALUE]) is dict else tagged
    return plain


def _depth(plain: Any) -> int:
    depth, level = 0, [plain]
    while level := [item for item in level if type(item) in (list, dict)]:
        depth += 1
        level = [part for item in level for part in (item.values() if type(item) is dict else item)]
    return depth
