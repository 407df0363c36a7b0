"""What is kept of an exception, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flujo import Flujo, step
from flujo.errors import RecordedError
from flujo.execution.failure import describe, recorded, shown
from tests.support.backends import Place

LIMIT = 200_000  # bytes; the traceback alone may have 64 KB


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Liar(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


class Falsy(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


class Deleted(Exception):
    """As of a library that removes what it refers to."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__notes__":
            raise RuntimeError("no notes")
        return super().__getattribute__(name)


def with_notes(notes: Any) -> Exception:
    error = ValueError("noted")
    error.__notes__ = notes
    return error


def chained(length: int) -> Exception:
    error = ValueError("the first")
    for number in range(length):
        following = ValueError(f"number {number}")
        following.__cause__, error = error, following
    return error


def circular() -> Exception:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


HOSTILE = {
    "no text": NoText(),
    "no text, with arguments": NoText("x"),
    "a text that is none": Liar(),
    "neither true nor false": Falsy("x"),
    "no notes": Deleted("x"),
    "surrogates": ValueError("\ud800 \udfff"),
    "control characters": ValueError("a\x00b\x1b[31m"),
    "huge": ValueError("x" * 10_000_000),
    "huge argument": ValueError(["x" * 1_000_000] * 3),
    "huge notes": with_notes(["x" * 10_000_000] * 3),
    "many notes": with_notes(["note"] * 100_000),
    "notes that are none": with_notes(7),
    "no list of notes": with_notes(None),
    "notes of another kind": with_notes([1, None, NoText(), "\ud800"]),
    "a long chain": chained(10_000),
    "a circle": circular(),
    "a group": ExceptionGroup("several", [ValueError("one"), NoText()]),
    "a key error": KeyError("name"),
    "an OS error": FileNotFoundError(2, "No such file", "/x"),
    "a unicode error": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "no arguments": ValueError(),
}
HOSTILE["the cause has no text"] = ValueError("outer")
HOSTILE["the cause has no text"].__cause__ = NoText()
HOSTILE["neither true nor false, as a cause"] = ValueError("outer")
HOSTILE["neither true nor false, as a cause"].__cause__ = Falsy("x")


@pytest.mark.slow
@pytest.mark.parametrize("error", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_exception_can_be_described(error: Exception) -> None:
    """It becomes plain JSON data of bounded size, and text again."""
    kept = describe(error)
    text = json.dumps(kept)
    assert json.loads(text) == kept
    assert len(text) < LIMIT
    kept["text"].encode()
    again = recorded(json.loads(text))
    assert isinstance(again, RecordedError)
    assert again.type_name == kept["type"]
    str(again)
    assert len(shown(error)) < 2000


@pytest.mark.slow
@pytest.mark.parametrize("error", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_exception_fails_the_run(error: Exception, tmp_path: Any) -> None:
    """The run is `failed` in the store, and the exception reaches the caller as it was raised."""

    @step(retries=1)
    async def fail(n: int) -> int:
        raise error

    place = Place("sqlite", tmp_path)
    result = Flujo(fail, state_backend=place.open()).run(1, run_id="r")
    assert result.status == "failed" and result.error is error
    assert place.load()["status"] == "failed"
    assert place.load()["error"]["type"] == describe(error)["type"]
    place.close()


def test_what_is_kept() -> None:
    """Type, text, notes, causes from the nearest on, and the traceback with both."""
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        error.add_note("first")
        error.add_note("second")
        kept = describe(error)
    assert kept["type"] == "ValueError" and kept["text"] == "outer"
    assert kept["notes"] == ["first", "second"]
    assert kept["causes"] == [{"type": "KeyError", "text": "'inner'"}]
    assert 'raise KeyError("inner")' in kept["traceback"] and 'raise ValueError("outer")' in kept["traceback"]
    assert kept["traceback"].rstrip().endswith("first\nsecond")


def test_a_context_is_a_cause_unless_it_was_suppressed() -> None:
    """As in a traceback of Python's."""
    kept = []
    for suppress in (False, True):
        try:
            try:
                raise KeyError("inner")
            except KeyError:
                if suppress:
                    raise ValueError("outer") from None
                raise ValueError("outer")  # noqa: B904
        except ValueError as error:
            kept.append(describe(error)["causes"])
    assert kept == [[{"type": "KeyError", "text": "'inner'"}], []]


def test_what_was_recorded() -> None:
    """Nothing is rebuilt: the type is a name, and an unknown form is no error."""
    again = recorded({"type": "shop.Refused", "text": "card", "notes": ["try later"], "traceback": "..."})
    assert again is not None
    assert (again.type_name, again.text, again.traceback, again.__notes__) == (
        "shop.Refused",
        "card",
        "...",
        ["try later"],
    )
    assert recorded(None) is None
    assert recorded("text") is None  # type: ignore[arg-type]
    assert str(recorded({})) == "Exception"
