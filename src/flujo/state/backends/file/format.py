"""What a run's file looks like, and what it is called.

The file is one JSON object. First, for people, the run as it stands: the fields of `WorkflowState`. Then `run`, `log`
and `mail` (version 1 had none), the rows that the ledger works with, and last `checksum`, over every byte before it.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

from pydantic_core import from_json, to_json

from flujo._clock import moment
from flujo.errors import StateCorruptedError, StoreFormatError
from flujo.state import delta
from flujo.state.backends._rows import COLUMNS, LogRow, MailRow, RunRow

VERSION = 2
KEY = 1  # of the one run in a file
_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_HEAD = re.compile(rb'\{"flujo":(\d+),[^\n]*,(?=\n"owner":)')  # one line: JSON text holds no raw line feed
_TAIL = b',\n"checksum":"%s"}\n'
_TAIL_LENGTH = len(_TAIL) - 2 + 32
_TEXTS = ("records", "output", "rest")  # JSON, so UTF-8
_BYTES = ("ctx", "sum")


def file_name(run_id: str) -> str:
    """Return the name of the run's file: the run_id itself where it is plain, else what is plain of it and a digest."""
    if _PLAIN.fullmatch(run_id):
        return run_id + ".json"
    readable = re.sub(r"[^a-z0-9._-]+", "_", run_id.lower())[:60].strip("._-")
    return f"{readable}~{blake2b(run_id.encode(), digest_size=12).hexdigest()}.json"


class RunFile:
    """A run's rows as they lie in its file, and who owns it. `lines` keeps what is encoded already."""

    def __init__(self, run: RunRow, owner: dict[str, Any] | None = None) -> None:
        self.run = run
        self.owner = owner
        self.log: list[LogRow] = []
        self.snapshot: tuple[int, bytes, bytes] | None = None
        self.mail: list[MailRow] = []
        self._lines: list[bytes] = []

    def encoded(self) -> bytes:
        """Return the file's bytes."""
        for row in self.log[len(self._lines) :]:
            self._lines.append(_row_line(row))
        run = {name: getattr(self.run, name) for name in COLUMNS}
        run["input"] = _text(self.run.input)
        snapshot = self.snapshot and [self.snapshot[0], _text(self.snapshot[1]), self.snapshot[2].hex()]
        parts = [*self._summary(), b',\n"owner":', to_json(self.owner), b',\n"run":', to_json(run), b',\n"snapshot":']
        parts += [to_json(snapshot), b',\n"log":[\n', b",\n".join(self._lines), b"\n]"]
        parts += [b',\n"mail":[', b",".join([b"\n" + _mail_line(row) for row in self.mail]), b"]"]
        text = b"".join(parts)
        return text + _TAIL % blake2b(text, digest_size=16).hexdigest().encode()

    def _summary(self) -> list[bytes]:
        """Return the parts of the file's first line, the run as it stands; output and context are put in as text."""
        run = self.run
        names = ("run_id", "pipeline_id", "pipeline_name", "pipeline_version", "total_steps", "status")
        facts: dict[str, Any] = {"flujo": VERSION, **{name: getattr(run, name) for name in names}}
        facts["error_message"] = run.failure
        facts["created_at"] = moment(run.created_at).isoformat()
        if not self.log:
            return [to_json(facts)[:-1]]
        tip = self.log[-1]
        output = self.log[tip.out_rev - 1].output if tip.out_rev else None
        facts |= {"current_step_index": tip.idx, "updated_at": moment(tip.at).isoformat()}
        context = self._context(tip).replace(b"\n", b"") or b"{}"  # a line feed may only stand between fields
        return [to_json(facts)[:-1], b',"last_step_output":', output or b"null", b',"pipeline_context":', context]

    def _context(self, tip: LogRow) -> bytes:
        base, start = (self.snapshot[1], self.snapshot[0]) if self.snapshot else (b"", 0)
        return delta.fold(base, [row.delta for row in self.log[start : tip.rev] if row.delta is not None])


def decoded(text: bytes, path: str) -> RunFile:
    """Return what a file holds; raises StateCorruptedError, or StoreFormatError for a newer format."""
    body, tail = text[:-_TAIL_LENGTH], text[-_TAIL_LENGTH:]
    if tail != _TAIL % blake2b(body, digest_size=16).hexdigest().encode():
        raise damaged(path, "it is empty" if not text else "its checksum does not fit its content")
    head = _HEAD.match(text)
    if head is None:
        raise damaged(path, "its first line is not one that flujo writes")
    if int(head[1]) > VERSION:
        raise StoreFormatError(
            f"{path} was written by a newer flujo (format {int(head[1])}; this one knows {VERSION}).",
            hint="Upgrade flujo; nothing was changed.",
            path=path,
        )
    try:
        data = from_json(b"{" + text[head.end() :])  # the first line is for people, and nested as deeply as values are
        run = data["run"]
        run["input"] = _bytes(run["input"])
        found = RunFile(RunRow(**run), data["owner"])
        found.log = [_row(row) for row in data["log"]]
        found.mail = [_mail_row(row) for row in data.get("mail", ())]
        if data["snapshot"]:
            rev, snapshot, check = data["snapshot"]
            found.snapshot = (rev, snapshot.encode(), bytes.fromhex(check))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"it cannot be read ({error})") from error
    return found


def damaged(path: str, why: str) -> StateCorruptedError:
    """Return the error of a file that was altered or torn."""
    return StateCorruptedError(
        f"{path} is damaged: {why}.",
        hint="Restore the file from a backup, or delete it and start the run again.",
        path=path,
    )


def _row_line(row: LogRow) -> bytes:
    facts = row._asdict()
    for name in _TEXTS:
        facts[name] = _text(facts[name])
    for name in _BYTES:
        facts[name] = facts[name].hex()
    if row.delta is not None:
        facts["delta"] = row.delta.decode("latin-1")  # a splice may begin within a character
    return to_json(facts)


def _row(facts: dict[str, Any]) -> LogRow:
    for name in _TEXTS:
        facts[name] = _bytes(facts[name])
    for name in _BYTES:
        facts[name] = bytes.fromhex(facts[name])
    if facts["delta"] is not None:
        facts["delta"] = facts["delta"].encode("latin-1")
    return LogRow(**facts)


def _mail_line(row: MailRow) -> bytes:
    return to_json(row._asdict() | {"body": _text(row.body), "sum": row.sum.hex()})


def _mail_row(facts: dict[str, Any]) -> MailRow:
    return MailRow(**facts | {"body": _bytes(facts["body"]), "sum": bytes.fromhex(facts["sum"])})


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else value.encode()
