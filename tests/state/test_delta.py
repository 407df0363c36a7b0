"""Deltas of the context: whatever changes, folding them gives the newest text, byte for byte."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from flujo.state.delta import difference, document, fold, split

names = st.text(max_size=6).filter(lambda text: text.isprintable() or "\n" in text)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
contexts = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), values, max_size=5)


def encoded(context: dict[str, object]) -> dict[str, bytes]:
    return {name: to_json(value) for name, value in context.items()}


@pytest.mark.slow
@given(st.lists(contexts, min_size=1, max_size=8))
def test_folding_gives_the_newest_text(states: list[dict[str, object]]) -> None:
    """From any context to any other, over any number of saves, also where fields come, go and change places."""
    before: dict[str, bytes] | None = None
    deltas: list[bytes] = []
    for state in states:
        after = encoded(state)
        delta = difference(before, after)
        assert (delta is None) == (before is not None and document(before) == document(after))
        if delta is not None:
            deltas.append(delta)
        text = fold(b"", deltas)
        assert text == document(after)
        assert split(text) == after
        assert list(split(text)) == list(after)
        assert json.loads(text) == state
        before = after


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_between_a_common_start_and_end(start: bytes, old: bytes, new: bytes, end: bytes) -> None:
    """A field is compared as bytes, wherever a character would be cut in two."""
    before, after = {"f": start + old + end}, {"f": start + new + end}
    delta = difference(before, after)
    assert fold(document(before), [delta] if delta else []) == document(after)


@pytest.mark.parametrize("size", [1, 100, 65_535, 65_536, 65_537, 131_072, 200_001])
def test_long_fields(size: int) -> None:
    """Around the stride of the comparison nothing is lost, and a small change in a long text costs little."""
    text = bytes(97 + number % 23 for number in range(size))
    changes = [
        text + b"!",
        b"!" + text,
        text[:-1],
        text[1:],
        text[: size // 2] + b"!" + text[size // 2 :],
        text[: size // 2] + b"!" + text[size // 2 + 1 :],
        text[: size // 2] + text[size // 2 + 1 :],
        b"",
        text + text,
    ]
    for changed in changes:
        before, after = {"a": b"1", "f": text, "z": b"2"}, {"a": b"1", "f": changed, "z": b"2"}
        delta = difference(before, after)
        assert fold(document(before), [delta] if delta is not None else []) == document(after)
        if delta is not None and changed != text + text:
            assert len(delta) < 60


def test_several_fields_at_once() -> None:
    """Each costs what was changed in it, and the offsets of later ones follow the earlier."""
    before = {"a": b'"' + b"x" * 1000 + b'"', "ä": b"[" + b"1," * 500 + b"1]", "c": b"null"}
    after = {"a": b'"' + b"x" * 1005 + b'"', "ä": b"[" + b"1," * 499 + b"1]", "c": b"true"}
    delta = difference(before, after)
    assert delta is not None and len(delta) < 80
    assert fold(document(before), [delta]) == document(after)


def test_nothing_changed() -> None:
    """There is no delta then, equal bytes in other objects included; a first text is one even when it is empty."""
    before = {"a": b"[1, 2]", "b": b"3"}
    assert difference(before, dict(before)) is None
    assert difference(before, {"a": bytes(bytearray(b"[1, 2]")), "b": b"3"}) is None
    assert difference({}, {}) is None
    first = difference(None, {})
    assert first is not None and fold(b"", [first]) == b"{}"


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        b"x",
        b"[]x",
        b"[[0]]\n",
        b"[[5,0,0,0]]\n",
        b"[[0,9,0,0]]\n",
        b"[[-1,0,0,0]]\n",
        b"[[0,0,0,1]]\n",
        b"[[0,0,-1,1]]\nx",
        b"[[0,-1,0,1]]\nx",
        b'[["0",0,0,0]]\n',
        b"[[0.5,0,0,0]]\n",
        b"{}\n",
        b"7\n",
        b"[7]\n",
        b"null\n",
    ],
)
def test_what_is_no_delta(delta: bytes) -> None:
    """It is refused with ValueError or TypeError, which the store reports as damage, or it changes nothing."""
    with contextlib.suppress(ValueError, TypeError):
        assert fold(b"text", [delta]) == b"text"


@pytest.mark.parametrize("text", [b"x", b"{x}", b'{"a"}', b'{"a":1,\nx}', b'{"a:1}', b"{\n}", b'{"\\u00":1}'])
def test_what_is_no_document(text: bytes) -> None:
    """It is refused with ValueError."""
    with pytest.raises(ValueError, match=r"."):
        split(text)


@pytest.mark.slow
@given(contexts)
def test_a_document_is_json(context: dict[str, object]) -> None:
    """With a line for each field, whatever is in its name."""
    text = document(encoded(context))
    assert json.loads(text) == context
    assert text.count(b"\n") == max(0, len(context) - 1)
