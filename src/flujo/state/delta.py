"""What changed in the context between two saves, as splices of its JSON text.

The context is kept as one JSON object, its top-level fields encoded each for itself. A delta is a list of
splices, found per field by its common prefix and suffix: an appended list and an edited field both cost what
was added. Stored form: a line of JSON, ``[[offset, removed, start, length], ...]``, then the inserted bytes.
Offsets count in the text as the splices before have left it. The view `workflow_state` folds the same form in SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pydantic_core import from_json, to_json

Fields = Mapping[str, bytes]
_KEY = re.compile(rb'("(?:[^"\\]|\\.)*"):')
_STRIDE = 1 << 16


def document(fields: Fields) -> bytes:
    """Return the JSON object of the encoded fields, a field a line (JSON text holds no raw line feed)."""
    return b"{" + b",\n".join([to_json(k) + b":" + v for k, v in fields.items()]) + b"}"


def split(text: bytes) -> dict[str, bytes]:
    """Return the fields that `document` was made of, byte for byte; raises ValueError for another text."""
    if text in (b"", b"{}"):
        return {}
    fields = {}
    for line in text[1:-1].split(b",\n"):
        key = _KEY.match(line)
        if key is None:
            raise ValueError("a line that is no field")
        fields[str(from_json(key[1]))] = line[key.end() :]
    return fields


def difference(old: Fields | None, new: Fields) -> bytes | None:
    """Return the delta from `old` to `new`, or None where nothing changed; `old` None is an empty text."""
    if old is None:
        return _packed([(0, 0, document(new))])
    if old.keys() != new.keys() or list(old) != list(new):
        before, after = document(old), document(new)
        return _packed([_splice(0, before, after)])
    splices = []
    at = 1
    for name, after in new.items():
        before = old[name]
        at += len(name) + 3 if name.isidentifier() and name.isascii() else len(to_json(name)) + 1
        if before is not after and before != after:
            splices.append(_splice(at, before, after))
        at += len(after) + 2
    return _packed(splices) if splices else None


def fold(base: bytes, deltas: Iterable[bytes]) -> bytes:
    """Return `base` with each delta applied in turn; raises ValueError for what is no delta."""
    text = bytearray(base)
    for delta in deltas:
        head, _, patch = delta.partition(b"\n")
        for offset, removed, start, length in from_json(head):
            if not (0 <= offset <= offset + removed <= len(text) and 0 <= start <= start + length <= len(patch)):
                raise ValueError("a splice beyond the text")
            text[offset : offset + removed] = patch[start : start + length]
    return bytes(text)


def _packed(splices: list[tuple[int, int, bytes]]) -> bytes:
    head = []
    start = 0
    for offset, removed, inserted in splices:
        head.append([offset, removed, start, len(inserted)])
        start += len(inserted)
    return to_json(head) + b"\n" + b"".join([inserted for _, _, inserted in splices])


def _splice(at: int, before: bytes, after: bytes) -> tuple[int, int, bytes]:
    limit = min(len(before), len(after))
    prefix = _common_start(before, after, limit)
    suffix = _common_end(before, after, limit - prefix)
    return at + prefix, len(before) - prefix - suffix, after[prefix : len(after) - suffix]


def _common_start(before: bytes, after: bytes, limit: int) -> int:
    """Return the length of the common prefix: whole strides first, then halving, by memcmp throughout."""
    view = memoryview(after)
    low = 0
    while low + _STRIDE <= limit and before.startswith(view[low : low + _STRIDE], low):
        low += _STRIDE
    high = min(limit, low + _STRIDE)
    while low < high:
        middle = (low + high + 1) // 2
        if before.startswith(view[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(before: bytes, after: bytes, limit: int) -> int:
    """Return the length of the common suffix, at most `limit`."""
    view, ours, theirs = memoryview(after), len(after), len(before)
    low = 0
    while low + _STRIDE <= limit and before.endswith(view[ours - low - _STRIDE : ours - low], 0, theirs - low):
        low += _STRIDE
    high = min(limit, low + _STRIDE)
    while low < high:
        middle = (low + high + 1) // 2
        if before.endswith(view[ours - middle : ours - low], 0, theirs - low):
            low = middle
        else:
            high = middle - 1
    return low
