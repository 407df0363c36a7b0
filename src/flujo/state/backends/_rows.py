"""What lies in a log-structured store: one `RunRow` a run, one `LogRow` a save, chained by checksums.

A log row's checksum covers the run's identity, the checksum of the row before, and everything in the row. The
context's own chain (`ctx`) lets a reader check the deltas that it folds without reading the rows between. A run's
messages, `MailRow`, are chained likewise, but to its run_id alone: they outlive a run that is begun anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from pydantic_core import to_json

from flujo.errors import ConfigurationError
from flujo.state.backends.base import RunSummary, Shape

MAX_REV = (1 << 24) - 1


@dataclass(slots=True, kw_only=True)
class RunRow:
    """One run. Written when it is claimed and when its status changes, and by nothing else. Times in us since 1970."""

    key: int = 0
    run_id: str
    pipeline_id: str
    pipeline_name: str
    pipeline_version: str
    total_steps: int | None
    fingerprint: str | None
    input: bytes | None
    created_at: int
    status: str = "running"
    rev: int = 0  # the newest rev when the status last changed
    updated_at: int = 0
    error_message: str | None = None
    due_at: int | None = None
    fence: int | None = None
    owner: int | None = None
    claimed_at: int | None = None
    claim_rev: int = 0  # the newest rev at the claim: a dead owner with no rev since then has crashed once more
    crashes: int = 0
    busy: int = 0  # us spent in steps when the status last changed
    digest: bytes | None = None  # not stored: what `identity` has found out

    @property
    def failure(self) -> str | None:
        """What the run failed of, for listings; None while it is executed again."""
        return None if self.status == "running" else self.error_message

    def identity(self) -> bytes:
        """Return the digest that binds every log row to its run."""
        if self.digest is None:
            self.digest = self._identity()
        return self.digest

    def _identity(self) -> bytes:
        facts = (
            self.run_id, self.pipeline_id, self.pipeline_name, self.pipeline_version,
            self.total_steps, self.fingerprint, self.created_at,
        )  # fmt: skip
        text = to_json(facts) + (b"-" if self.input is None else b"+" + self.input)
        return blake2b(text, digest_size=16).digest()


_COLUMNS = {"status": "status", "pipeline_id": "pipeline_id", "pipeline_name": "pipeline_name", "error": "failure"}
COLUMNS = tuple(name for name in RunRow.__slots__ if name != "digest")


class LogRow(NamedTuple):
    """One save. `seq` is the run's key and the rev in one integer, so that a run's rows lie side by side."""

    seq: int
    idx: int
    status: str
    at: int
    busy: int  # us spent in steps so far
    ended: int  # step records so far
    out_rev: int  # the rev whose row holds the last step's output; 0: none yet
    snap_rev: int  # the rev whose snapshot the deltas since then start from; 0: the empty text
    records: bytes | None
    output: bytes | None
    delta: bytes | None
    ctx: bytes
    rest: bytes | None
    sum: bytes

    @property
    def rev(self) -> int:
        """The number of this save."""
        return self.seq & MAX_REV


def make_row(identity: bytes, before: bytes, *facts: Any) -> LogRow:
    """Return the row of these facts (the fields of LogRow up to `rest`), with its checksum."""
    return LogRow._make((*facts, row_sum(identity, before, facts)))


def row_sum(identity: bytes, before: bytes, facts: Sequence[Any]) -> bytes:
    """Return the checksum of a row that follows the row with checksum `before`."""
    records, output, delta, ctx, rest = facts[8:]
    lengths = [-1 if blob is None else len(blob) for blob in (records, output, delta, rest)]
    head = b"%d,%d,%a,%d,%d,%d,%d,%d,%d,%d,%d,%d;" % (*facts[:8], *lengths)
    parts = (identity, before, head, records or b"", output or b"", delta or b"", ctx, rest or b"")
    return blake2b(b"".join(parts), digest_size=16).digest()


def context_sum(before: bytes, delta: bytes) -> bytes:
    """Return the context chain's next link."""
    return blake2b(before + delta, digest_size=16).digest()


def snapshot_sum(ctx: bytes, text: bytes) -> bytes:
    """Return the checksum of a snapshot taken where the context chain stood at `ctx`."""
    return blake2b(text, digest_size=16, key=ctx).digest()


class MailRow(NamedTuple):
    """One message to a run. `seq` counts up within the run, in the order of storing. See `flujo.state.mail.Message`."""

    seq: int
    id: str
    kind: str
    name: str
    body: bytes | None
    author: str | None
    reason: str | None
    at: int
    sum: bytes


def mail_sum(run_id: str, before: bytes, facts: Sequence[Any]) -> bytes:
    """Return the checksum of a message that follows the one with checksum `before` (b"" where there is none)."""
    seq, id, kind, name, body, author, reason, at = facts
    head = to_json((run_id, seq, id, kind, name, author, reason, at))
    return blake2b(head + (b"-" if body is None else b"+" + body), digest_size=16, key=before).digest()


@dataclass(frozen=True, slots=True)
class Cut:
    """What a fork shares of a run: its log up to save `rev`, whose checksum is `sum` (0: nothing, b"").

    Where rows are shared: save `rev` lies under `key`, of a run with that `identity`; what that run began with lies
    under `start`. Where they are copied: `rows`, and the `snapshot` (its rev, text and checksum), if there is one.
    """

    key: int
    rev: int
    identity: bytes
    start: int
    sum: bytes
    rows: Sequence[LogRow] = ()
    snapshot: tuple[int, bytes, bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs to list, the most recently updated first. See `Reading.list_runs`."""

    where: Mapping[str, str]
    limit: int
    offset: int = 0
    after: str | None = None
    since: datetime | None = None


def column(name: str) -> str:
    """Return the attribute of a run's row that runs can be told apart by; raises ConfigurationError for any other."""
    if name not in _COLUMNS:
        raise ConfigurationError(
            f"Runs can be told apart by {', '.join(_COLUMNS)}, not by {name!r}.", hint="Use one of these."
        )
    return _COLUMNS[name]


class Tx(Protocol):
    """What the ledger asks of a store, within one transaction."""

    me: int | None

    def find(self, run_id: str) -> RunRow | None: ...
    def put_run(self, run: RunRow) -> None: ...
    def drop_run(self, key: int, *, mail: bool = True) -> None: ...
    def newest(self, key: int) -> LogRow | None: ...
    def row(self, key: int, rev: int) -> LogRow | None: ...
    def identity(self, run: RunRow, row: LogRow) -> bytes: ...
    def arrival(self, key: int, idx: int) -> int | None: ...
    def cut(self, run: RunRow, rev: int) -> Cut | None: ...
    def is_there(self, cut: Cut) -> bool: ...
    def put_fork(self, run: RunRow, cut: Cut) -> None: ...
    def put_row(self, row: LogRow) -> None: ...
    def rows(self, key: int, after_ended: int, limit: int | None) -> list[LogRow]: ...
    def deltas(self, key: int, after: int, upto: int) -> list[bytes]: ...
    def append(self, row: LogRow, fence: int) -> bool: ...
    def snapshot(self, key: int, rev: int) -> tuple[bytes, bytes] | None: ...
    def put_snapshot(self, seq: int, text: bytes, check: bytes) -> None: ...
    def finish(self, key: int, fence: int, row: LogRow, error: str | None, due: int | None) -> None: ...
    def set_free(self, key: int, fence: int, status: str = "running") -> None: ...
    def draw_fence(self) -> int: ...
    def owner_of(self, run: RunRow) -> str | None: ...
    def list_runs(self, query: RunQuery) -> list[RunSummary]: ...
    def count_runs(self, where: Mapping[str, str], by: str) -> dict[str, tuple[int, int]]: ...
    def old_runs(self, status: str, before: int, limit: int) -> list[tuple[int, str, int]]: ...
    def recent(self, since: int) -> int: ...
    def failed(self, limit: int) -> list[tuple[str, str | None, int]]: ...
    def shapes(self) -> list[Shape]: ...
    def owner_facts(self, run: RunRow) -> tuple[str, bool]: ...
    def runs_after(self, key: int, limit: int) -> list[tuple[int, str]]: ...
    def next_mail(self, key: int, known: int) -> int: ...
    def put_mail(self, key: int, row: MailRow) -> None: ...
    def mail(self, key: int, after: int, limit: int | None) -> list[MailRow]: ...
    def newest_mail(self, key: int) -> MailRow | None: ...
    def mail_before(self, key: int, seq: int) -> MailRow | None: ...
    def mail_of_id(self, key: int, id: str) -> MailRow | None: ...
    def mail_beginning(self, key: int, prefix: str) -> list[MailRow]: ...
    def count_mail(self, key: int, after: int) -> int: ...
    def move_mail(self, old: int, new: int) -> None: ...
    def set_due(self, key: int, due: int) -> None: ...
