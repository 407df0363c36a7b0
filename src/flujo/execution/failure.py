"""Failures as data: what is kept of an exception, and what another process makes of it."""

from __future__ import annotations

import traceback
from typing import Any

from flujo.errors import RecordedError

_LIMIT = 64 * 1024
_CAUSES = 8
_SHOWN = 1000
_TEXT = 8192
_NOTES = 20


def describe(error: BaseException) -> dict[str, Any]:
    """Return type, text, notes, causes and traceback of an exception as plain data, at most about 64 KB."""
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception as broken:  # an exception whose own __str__ raises must not hide the failure
        trace = f"(no traceback: {type(broken).__name__})"
    causes: list[dict[str, str]] = []
    cause = _cause(error)
    while cause is not None and len(causes) < _CAUSES:
        causes.append({"type": _type_name(cause), "text": _text(cause)})
        cause = _cause(cause)
    return {
        "type": _type_name(error),
        "text": _text(error),
        "notes": _notes(error),
        "causes": causes,
        "traceback": _clean(trace[-_LIMIT:]),
    }


def recorded(error: dict[str, Any] | None) -> RecordedError | None:
    """Return the error that a stored failure stands for."""
    if not isinstance(error, dict):
        return None
    name, text = str(error.get("type", "Exception")), str(error.get("text", ""))
    result = RecordedError(
        f"{name}: {text}" if text else name,
        type_name=name,
        text=text,
        traceback=str(error.get("traceback", "")),
    )
    for note in error.get("notes") or ():
        result.add_note(str(note))
    return result


def shown(error: BaseException) -> str:
    """Return the `repr` of an exception, cut where it is long; of one that has none, its type."""
    try:
        text = repr(error)
    except Exception as broken:
        text = f"<{_type_name(error)}, whose text could not be had: {type(broken).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _cause(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None:
        return error.__cause__
    return None if error.__suppress_context__ else error.__context__


def _notes(error: BaseException) -> list[str]:
    try:
        notes = getattr(error, "__notes__", None)
        return [_text(note) for note in notes[:_NOTES]] if isinstance(notes, list) else []
    except Exception:  # the attribute itself may raise
        return []


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(error: object) -> str:
    try:
        return _clean(str(error)[:_TEXT])
    except Exception as broken:
        return f"(its text could not be had: {type(broken).__name__})"


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
