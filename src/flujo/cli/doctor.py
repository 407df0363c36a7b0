"""`doctor`: whether this machine, this Python and the store are fit for each other."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sqlite3
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.text import Text

from flujo._clock import moment
from flujo.cli.command import Commands, Session
from flujo.cli.faults import BAD, WELL
from flujo.cli.files import looking, store_files
from flujo.cli.output import Answer, clean, many, size, styled, table, when
from flujo.errors import ConfigurationError, FlujoError, StateError
from flujo.state.backends._log import LogBackend
from flujo.state.backends._sidecar import refuse_network
from flujo.state.backends._stores import StoredBackend
from flujo.state.backends.sqlite import SQLiteBackend
from flujo.state.backends.sqlite.connection import SCHEMA_VERSION

commands = Commands()
_BUG = ((3, 7, 0), (3, 51, 2))  # SQLite's WAL-reset bug: the first and the last version that has it
_LARGE_LOG = 256_000_000  # bytes
_LITTLE_ROOM = 100_000_000
_SHOWN_OWNERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: `ok`, `value`, what was found, and a `note` what it means or what to do."""

    name: str
    value: str
    ok: bool = True
    note: str = ""


@commands.add("doctor", example="flujo doctor --state runs.db")
async def doctor(session: Session) -> Answer:
    """Check versions, file system, permissions, the store's schema and size, and who uses it: 1 if something is bad."""
    checks = [*_versions()]
    try:
        backend = session.reading()
    except ConfigurationError as error:
        if error.message != "No store was named.":
            raise
        checks.append(Check(name="store", value="none was named", note="Give --state to have one checked."))
    else:
        checks += await _store(backend)
    ok = all(check.ok for check in checks)
    rows = [
        (check.name, styled("ok" if check.ok else "failed", "ok" if check.ok else "BAD"), check.value)
        for check in checks
    ]
    notes = [Text(clean(f"{check.name}: {check.note}"), "" if check.ok else "red") for check in checks if check.note]
    return Answer(
        document={"ok": ok, "checks": [asdict(check) for check in checks]},
        shown=[table(["check", "", "found"], rows), *notes], code=WELL if ok else BAD,
    )  # fmt: skip


def _versions() -> list[Check]:
    found = "unknown"
    with contextlib.suppress(PackageNotFoundError):
        found = version("flujo")
    affected = _BUG[0] <= sqlite3.sqlite_version_info <= _BUG[1]
    note = (
        "SQLite 3.7.0 to 3.51.2 can lose a commit that meets a checkpoint (the WAL-reset bug). flujo is safe from it: "
        "a lock beside the file keeps each of its writes and checkpoints apart, and nothing checkpoints by itself. "
        "A program that writes to the same file without flujo is not."
    )
    return [
        Check(name="flujo", value=found),
        Check(
            name="python", value=f"{platform.python_version()} on {platform.system()}", ok=sys.version_info >= (3, 11)
        ),
        Check(name="sqlite", value=sqlite3.sqlite_version, note=note if affected else ""),
    ]


async def _store(backend: LogBackend) -> list[Check]:
    if not isinstance(backend, StoredBackend):
        return [
            Check(name="store", value=type(backend).__name__, note="It lies in no file, so there is nothing to check.")
        ]
    path = Path(backend._real)
    checks = [Check(name="store", value=f"{path} ({type(backend).__name__})"), _file_system(path), *_permissions(path)]
    checks.append(_room(path))
    checks += _schema(path) if isinstance(backend, SQLiteBackend) else []
    checks += _size(backend)
    try:
        counts = await backend.count_runs()
        listed = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
        checks.append(Check(name="runs", value=listed or "none"))
        checks.append(await _owners(backend))
    except StateError as error:
        checks.append(Check(name="runs", value="the store cannot be read", ok=False, note=str(error)))
    return checks


def _file_system(path: Path) -> Check:
    kind = _mounted(path)
    try:
        refuse_network(str(path))
    except FlujoError as error:
        return Check(name="file system", value=kind, ok=False, note=str(error))
    return Check(name="file system", value=kind)


def _mounted(path: Path) -> str:
    """Return which kind of file system the path lies on, where the system says so."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError), Path("/proc/self/mountinfo").open(encoding="utf-8") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            mount = left.split()[4].replace("\\040", " ")
            inside = str(path.parent) == mount or str(path.parent).startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, f"{right.split()[0]} at {mount}"
    return kind


def _permissions(path: Path) -> list[Check]:
    checks = []
    for place, what in ((path, "store"), (path.parent, "its folder")):
        able = [name for name, mode in (("read", os.R_OK), ("written", os.W_OK)) if os.access(place, mode)]
        whole = len(able) == 2
        checks.append(Check(
            name=f"permissions of {what}", value=f"can be {' and '.join(able)}" if able else "no access", ok=whole,
            note="" if whole else "Give this user the right to read and write it: SQLite writes files beside it.",
        ))  # fmt: skip
    return checks


def _room(path: Path) -> Check:
    free = shutil.disk_usage(path.parent).free
    little = free < _LITTLE_ROOM
    return Check(name="room on the disk", value=size(free), ok=not little, note="Make room." if little else "")


def _schema(path: Path) -> list[Check]:
    try:
        with looking(path) as connection:
            facts = dict(connection.execute("SELECT name, value FROM flujo_meta").fetchall())
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    except StateError as error:
        return [Check(name="schema", value="cannot be read", ok=False, note=str(error))]
    found = str(facts.get("schema_version"))
    newer = found.isdigit() and int(found) > SCHEMA_VERSION
    return [
        Check(
            name="schema", value=f"version {found}, this flujo knows {SCHEMA_VERSION}", ok=not newer,
            note="Upgrade flujo." if newer else "",
        ),
        Check(
            name="journal", value=mode, ok=mode == "wal",
            note="" if mode == "wal" else "Another program has changed it; flujo sets it back when it opens the store.",
        ),
    ]  # fmt: skip


def _size(backend: LogBackend) -> list[Check]:
    checks = []
    for name, count in store_files(backend).items():
        large = name.endswith("-wal") and count > _LARGE_LOG
        note = "A reader has kept a transaction open for long, so that the log cannot be emptied." if large else ""
        checks.append(Check(name=f"size of {name}", value=size(count), ok=not large, note=note))
    return checks


async def _owners(backend: LogBackend) -> Check:
    """Return which processes use the store, and how many did before they died."""
    if not isinstance(backend, SQLiteBackend):
        return await _owners_of_runs(backend)

    def work(tx: Any) -> list[tuple[str, int, bool]]:
        rows = tx._execute("SELECT id, machine, boot, beat_at, host, pid, started_at FROM flujo_owner").fetchall()
        return [
            (f"process {pid} on {host}", started, owner == tx.me or tx._lives(owner, machine, boot, beat))
            for owner, machine, boot, beat, host, pid, started in rows
        ]

    found = await backend._store().read(None, work)
    live = [f"{who} since {when(moment(started))} UTC" for who, started, alive in found if alive]
    dead = len(found) - len(live)
    text = f"{many(len(live), 'process')[:-1] + 'es' if len(live) != 1 else '1 process'}" + (
        f", {dead} dead" if dead else ""
    )
    note = "; ".join(live[:_SHOWN_OWNERS]) + (f"; and {len(live) - _SHOWN_OWNERS} more" if live[_SHOWN_OWNERS:] else "")
    return Check(name="live owners", value=text, note=note)


async def _owners_of_runs(backend: LogBackend) -> Check:
    runs = await backend.list_runs({"status": "running"}, limit=200)
    owners = [await backend.owner(run.run_id) for run in runs]
    live = sorted({owner.who for owner in owners if owner is not None and owner.alive})
    return Check(name="live owners", value=str(len(live)), note="; ".join(live[:_SHOWN_OWNERS]))
