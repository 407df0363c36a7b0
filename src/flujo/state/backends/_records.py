"""Step records as they are stored: JSON, and in it the values as the codec writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from pydantic_core import from_json, to_json

from flujo._ids import path_text
from flujo.errors import NotSerializableError
from flujo.state.codec import Codec, Lenient
from flujo.state.models import StepRecord

T = TypeVar("T")
NOTHING: Any = object()  # is no value of anybody's


def pack_records(records: Sequence[StepRecord], last: Any, codec: Codec) -> bytes | None:
    """Return the records as a JSON array, or None where there are none.

    Arguments: `last` is the object whose encoding the row holds in its own column, or NOTHING where it holds none; a
    record with that very output leaves it to the column.
    Raises NotSerializableError, whose `step_path` is the path of the record that it is about.
    """
    if not records:
        return None
    return b"[" + b",".join([_packed(record, last, codec) for record in records]) + b"]"


def _packed(record: StepRecord, last: Any, codec: Codec) -> bytes:
    text = b'{"path":%b,"latency_s":%.6f' % (_path_json(record.path), record.latency_s)
    if record.attempts != 1:
        text += b',"attempts":%d' % record.attempts
    if not record.success:
        text += b',"success":false'
    if record.feedback is not None:
        text += b',"feedback":' + to_json(record.feedback)
    if record.by is not None:
        text += b',"by":' + to_json(record.by)
    output = record.output
    try:
        left_out = output is last if record.success else output is None
        if not left_out:
            text += b',"output":' + codec.encode(output, _where(record))
        if record.context_changes is not None:
            text += b',"context_changes":' + _packed_changes(record.context_changes, codec)
    except NotSerializableError as error:
        error.data["step_path"] = record.path
        raise
    return text + b"}"


def _packed_changes(changes: Mapping[str, list[Any]], codec: Codec) -> bytes:
    fields = [to_json(name) + b":[" + b",".join(new) + b"]" for name, new in _each(changes, codec, codec.encode)]
    return b"{" + b",".join(fields) + b"}"


def _each(
    changes: Mapping[str, list[Any]], codec: Codec, write: Callable[[Any, str], T]
) -> Iterator[tuple[str, list[T]]]:
    codec.encode_fields(dict.fromkeys(changes), "context")  # refuses what is no name of a field
    for name, new in changes.items():
        yield name, [write(value, f"context.{name}") for value in new]


@lru_cache(maxsize=1024)
def _path_json(path: tuple[str, ...]) -> bytes:
    return to_json(path)


def _where(record: StepRecord) -> str:
    return f"output of {path_text(record.path)}"


def unpack_records(text: bytes, last: bytes | None, codec: Codec, *, strict: bool | Lenient) -> list[StepRecord]:
    """Return the records of a row whose own output column is `last`."""
    plain = b'"$type"' not in text
    records = []
    for facts in _parsed(text):
        if not plain:
            facts.update(_lifted(facts, codec, strict))
        if "output" not in facts and last is not None and facts.get("success", True):
            facts["output"] = codec.decode(last, strict=strict)
        facts["path"] = tuple(facts["path"])
        records.append(StepRecord(**facts))
    return records


def _parsed(text: bytes) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return json.loads(text)  # a value as deep as values may be, and in a record that is deeper than from_json reads


def lowered_values(record: StepRecord, codec: Codec) -> dict[str, Any]:
    """Return the record's values as plain JSON data, by the name of their field; raises as `pack_records` does."""
    try:
        values: dict[str, Any] = {"output": codec.lower(record.output, _where(record))}
        if record.context_changes is not None:
            values["context_changes"] = dict(_each(record.context_changes, codec, codec.lower))
    except NotSerializableError as error:
        error.data["step_path"] = record.path
        raise
    return values


def lifted_values(facts: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
    """Return the values of a record of which `lowered_values` gave the plain data."""
    return {"output": None, **_lifted(facts, codec, True)}


def _lifted(facts: Mapping[str, Any], codec: Codec, strict: bool | Lenient) -> dict[str, Any]:
    values = {}
    if "output" in facts:
        values["output"] = codec.lift(facts["output"], strict=strict)
    changes = facts.get("context_changes")
    if changes is not None:
        values["context_changes"] = {
            name: [codec.lift(value, strict=strict) for value in new] for name, new in dict(changes).items()
        }
    return values
