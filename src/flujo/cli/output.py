"""What is printed: plain data, and texts in which nothing that comes from a store can act on the terminal.

Names, outputs and errors are written by whoever writes runs. Rich's markup is never parsed (every text is a `Text`),
and every character that a terminal would obey is shown as its number.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from pydantic_core import from_json, to_json
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

STYLES = {
    "completed": "green", "done": "green", "ok": "green",
    "failed": "bold red", "cancelled": "magenta", "paused": "yellow", "running": "cyan",
}  # fmt: skip
_WIDE = 100_000  # columns of what is no terminal: nothing is cut or wrapped there
# Categories of what a terminal obeys or cannot show, and marks that make text run the other way.
_ACTING = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command found out: `document` is what `--json` prints, `shown` what people see, `code` the exit status."""

    document: Any
    shown: Sequence[RenderableType] = ()
    code: int = 0


def clean(text: object, *, lines: bool = False) -> str:
    """Return the text with what a terminal would obey written as `\\x1b`; with `lines` its line feeds are kept."""
    given = str(text)
    if given.isascii() and given.isprintable():
        return given
    return "".join(char if lines and char == "\n" else _shown(char) for char in given)


def _shown(char: str) -> str:
    if char not in _TURNING and unicodedata.category(char) not in _ACTING:
        return char
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char) or (
        f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
    )


def cut(text: str, width: int) -> str:
    """Return at most `width` characters of the text, with dots where there is more."""
    return text if len(text) <= width else text[: width - 3] + "..."


def plain(value: Any) -> Any:
    """Return the value as JSON data: what JSON has no form for is a text."""
    try:
        return from_json(to_json(value, bytes_mode="base64", inf_nan_mode="strings", serialize_unknown=True))
    except (ValueError, TypeError, RecursionError):
        return repr(value)


def short(value: Any, width: int = 60) -> str:
    """Return the value as one line of JSON, cut to `width`."""
    return cut(clean(json.dumps(plain(value), ensure_ascii=False)), width)


def when(moment: datetime | None) -> str:
    """Return a time for people, in UTC."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def iso(moment: datetime | None) -> str | None:
    """Return a time for machines."""
    return None if moment is None else moment.astimezone(UTC).isoformat()


def lasting(seconds: float) -> str:
    """Return a length of time: `12 ms`, `3.4 s`, `5 min`, `2 h`, `3 d`."""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def size(count: int) -> str:
    """Return a number of bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def many(count: int, what: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def styled(status: str, text: object | None = None) -> Text:
    """Return the text (by default the status itself) in the status's colour."""
    return Text(clean(status if text is None else text), STYLES.get(status, ""))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return rows under headings. Cells are texts, and cut rather than wrapped where the terminal is narrow."""
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.startswith(">")
        found.add_column(
            Text(name.lstrip(">")), justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
        )
    for row in rows:
        found.add_row(*[cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row])
    return found


def facts(pairs: Mapping[str, object]) -> Table:
    """Return names and values under each other; values of None are left out."""
    found = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    found.add_column(no_wrap=True, style="dim")
    found.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None:
            found.add_row(Text(clean(name)), value if isinstance(value, Text) else Text(clean(value)))
    return found


def tree(title: Text, branches: Mapping[str, Any]) -> Tree:
    """Return a drawn tree. A branch is named by its key, or by a Text under "" in it."""
    found = Tree(title)
    for inner in branches.values():
        found.add(_branch(inner))
    return found


def _branch(inner: Mapping[str, Any]) -> Tree:
    return tree(inner[""], {name: value for name, value in inner.items() if name})


class Screen:
    """Where answers are printed: a terminal, or anything else, which gets lines without colours and of any length."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file: TextIO = file if file is not None else sys.stdout
        self.terminal = self.file.isatty()
        self.console = Console(file=self.file, markup=False, highlight=False, emoji=False)

    def show(self, *renderables: RenderableType) -> None:
        """Print them, each on lines of its own."""
        for renderable in renderables:
            if self.terminal:
                self.console.print(renderable)
            else:
                self.file.write(as_text(renderable))
        self.file.flush()

    def document(self, value: Any) -> None:
        """Print one JSON document."""
        self.file.write(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False, default=str) + "\n")
        self.file.flush()


def as_text(renderable: RenderableType) -> str:
    """Return what it looks like without colours, at any width, and without blanks at the ends of lines."""
    if isinstance(renderable, str):
        return renderable + "\n"
    sink = io.StringIO()
    console = Console(
        file=sink, width=_WIDE, markup=False, highlight=False, emoji=False, color_system=None, force_terminal=False,
        legacy_windows=False, _environ={},
    )  # fmt: skip
    console.print(renderable)
    return "".join(line.rstrip() + "\n" for line in sink.getvalue().rstrip("\n").split("\n"))


@contextlib.contextmanager
def apart(document: bool) -> Iterator[None]:
    """Where stdout is for one document, let what the user's code prints go to stderr, and its child processes too."""
    if not document:
        yield
        return
    kept, ours = None, sys.stdout
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a test's stdout is no file
        if ours.fileno() == 1:
            ours.flush()
            kept = os.dup(1)
            os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            ours.flush()
            os.dup2(kept, 1)
            os.close(kept)


def quiet_end() -> None:
    """Let nothing be written any more where nobody reads: the interpreter would complain at its end."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        for stream in (sys.stdout, sys.stderr):
            try:
                os.dup2(nothing.fileno(), stream.fileno())
            except (OSError, ValueError, AttributeError):
                continue
