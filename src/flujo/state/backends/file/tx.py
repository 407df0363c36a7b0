"""`Tx` on files: a run's rows are read into memory, worked on there, and written back as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flujo.state.backends._rows import LogRow, MailRow, RunRow
from flujo.state.backends._rowstore import RowTx
from flujo.state.backends._sidecar import Sidecar
from flujo.state.backends.file.format import KEY, RunFile


class FileTx(RowTx):
    """A transaction on one run's file. `found` is what it holds, or None where there is none; `changed` says so."""

    def __init__(
        self, found: RunFile | None, me: dict[str, Any] | None, sidecar: Sidecar, draw: Callable[[], int]
    ) -> None:
        super().__init__()
        self.found = found
        self.changed = False
        self.me = me["id"] if me else None
        self._process = me
        self._sidecar, self._draw = sidecar, draw
        if found is not None:
            found.run.key = KEY
            self.take(found.run, found.log, found.snapshot, found.mail)

    def put_run(self, run: RunRow) -> None:
        run.key = KEY
        super().put_run(run)
        self.changed = True

    def drop_run(self, key: int, *, mail: bool = True) -> None:
        super().drop_run(key, mail=mail)
        self.changed = True

    def put_mail(self, key: int, row: MailRow) -> None:
        super().put_mail(key, row)
        self.changed = True

    def set_due(self, key: int, due: int) -> None:
        super().set_due(key, due)
        self.changed = True

    def append(self, row: LogRow, fence: int) -> bool:
        done = super().append(row, fence)
        self.changed = self.changed or done
        return done

    def set_free(self, key: int, fence: int, status: str = "running") -> None:
        run = self._by_key.get(key)
        self.changed = self.changed or (run is not None and run.fence == fence)
        super().set_free(key, fence, status)

    def draw_fence(self) -> int:
        return self._draw()

    def owner_of(self, run: RunRow) -> str | None:
        who, alive = self.owner_facts(run)
        return who if alive else None

    def owner_facts(self, run: RunRow) -> tuple[str, bool]:
        owner = self.found.owner if self.found else None
        if owner is None or owner["id"] != run.owner:
            return "a process that is gone", False
        mine = owner["id"] == self.me  # never to be asked after
        return f"process {owner['pid']} on {owner['host']}", not mine and self._sidecar.alive(owner["id"])

    def result(self) -> RunFile | None:
        """Return what the file is to hold now, or None where it is to be deleted."""
        run = self._by_key.get(KEY)
        if run is None:
            return None
        file = self.found if self.found is not None and self.found.log is self._logs[KEY] else RunFile(run)
        file.run, file.log, file.snapshot = run, self._logs[KEY], self._snapshots.get(KEY)
        file.mail = self._mail.get(KEY, [])
        file.owner = self._process if run.owner == self.me else file.owner if run.owner is not None else None
        return file
