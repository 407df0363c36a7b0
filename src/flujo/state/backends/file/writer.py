"""Reading and writing run files: a temporary file, synced, renamed over the old one, and the directory synced."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flujo.errors import FlujoError, SaveError, StoreUnavailableError
from flujo.state.backends._jobs import Job
from flujo.state.backends._ledger import REFUSALS, Held
from flujo.state.backends._loading import located
from flujo.state.backends._rowstore import RowTx
from flujo.state.backends._sidecar import Sidecar, host_name, refuse_network
from flujo.state.backends.file.format import RunFile, damaged, decoded, file_name
from flujo.state.backends.file.tx import FileTx

_LOCKS = ".flujo-locks"
Stamp = tuple[int, int, int]  # of a file: its inode, its time in ns, its size
_KEPT = 256  # files whose content is remembered, so that a save need not read what it wrote itself


class FileWriter:
    """See the module. Called by one thread at a time; other processes are kept out by the directory's write lock."""

    def __init__(self, directory: str, sync: bool) -> None:
        self.joined: int | None = None
        self._directory, self._sync = Path(directory), sync
        self._sidecar: Sidecar | None = None
        self._process: dict[str, Any] | None = None
        self._fences = itertools.count(1)
        self._known: dict[str, tuple[Stamp, RunFile]] = {}
        self._looked: dict[str, int | Stamp] = {}

    def process(self, batch: list[Job]) -> None:
        """Finish every job: each run's file is synced for itself, the directory once for all."""
        try:
            sidecar = self._opened()
            for job in batch:
                if job.reads or job.peek is not None:
                    self._read(job, sidecar)
            writes = [job for job in batch if not job.finished]
            if not writes:
                return
            sidecar.lock(wait=True)
            try:
                sidecar.check_in_place()
                self._join(sidecar)
                written = [job for job in writes if self._write(job, sidecar)]
                self._sync_directory(written)
            finally:
                sidecar.unlock()
        except Exception as error:
            for job in batch:
                if not job.finished and job.undo is not None:
                    job.undo()
                job.fail(self._mapped(error))
        for job in batch:
            job.finished = True

    def inline(self, job: Job) -> bool:
        """Do the job here and now: nobody in this process is writing, and other processes hold the lock for moments."""
        if self._sidecar is None or self.joined is None:
            return False
        self.process([job])
        return True

    def housekeeping(self) -> bool:
        """Return False: there is nothing that no job waits for."""
        return False

    def keep_house(self) -> None:
        """Do nothing."""

    def news(self, held: Mapping[str, Held]) -> dict[str, int]:
        """Return the runs that may have new mail since the last look, with the newest message that is known of.

        A file that this process has written or read last is known; of any other there is only its stamp to compare.
        """
        looked: dict[str, int | Stamp] = {}
        found = {}
        for run_id, claim in held.items():
            with contextlib.suppress(OSError):
                stamp = _stamp((self._directory / file_name(run_id)).stat())
                known = self._known.get(run_id)
                mail = known[1].mail if known is not None and known[0] == stamp else None
                newest = 0 if not mail else mail[-1].seq
                looked[run_id] = stamp if mail is None else newest
                new = newest > claim.newest if mail is not None else looked[run_id] != self._looked.get(run_id)
                if new:
                    found[run_id] = newest
        self._looked = looked
        return found

    def _read(self, job: Job, sidecar: Sidecar) -> None:
        work = job.work if job.reads else job.peek
        assert work is not None
        try:
            if job.run_id is None:
                answer = work(self._all())
            else:
                answer = work(FileTx(self._load(job.run_id), self._process, sidecar, self._draw))
        except Exception as error:
            job.fail(self._mapped(error))
            return
        if job.reads or answer is not None:
            job.succeed(answer)

    def _write(self, job: Job, sidecar: Sidecar) -> bool:
        """Run the job's work and replace the run's file; return whether anything was replaced."""
        try:
            if job.run_id is None:
                job.result = job.work(RowTx())
                return False
            tx = FileTx(self._load(job.run_id), self._process, sidecar, self._draw)
            try:
                job.result = job.work(tx)
            except REFUSALS as error:
                job.error = error
                return False
            if tx.changed:
                self._store(job.run_id, tx.result())
            return tx.changed
        except Exception as error:
            self._known.pop(job.run_id or "", None)
            if job.undo is not None:
                job.undo()
            job.fail(self._mapped(error))
            return False

    def _load(self, run_id: str) -> RunFile | None:
        path = self._directory / file_name(run_id)
        try:
            with path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                known = self._known.get(run_id)
                if known is not None and known[0] == stamp:
                    return known[1]
                found = decoded(file.read(), str(path))
        except FileNotFoundError:
            return None
        if found.run.run_id != run_id:
            raise damaged(str(path), f"it holds run {found.run.run_id!r}")
        return found

    def _store(self, run_id: str, content: RunFile | None) -> None:
        path = self._directory / file_name(run_id)
        self._known.pop(run_id, None)
        if content is None:
            path.unlink(missing_ok=True)
            return
        part = path.with_name(f".{path.name}.{self.joined}.part")
        try:
            with part.open("wb") as file:
                file.write(content.encoded())
                file.flush()
                if self._sync:
                    os.fsync(file.fileno())
                facts = os.fstat(file.fileno())
            part.rename(path)
        except OSError as error:
            error.filename = str(path)  # a failed write names none
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        if len(self._known) >= _KEPT:
            self._known.pop(next(iter(self._known)))
        self._known[run_id] = (_stamp(facts), content)

    def _sync_directory(self, written: list[Job]) -> None:
        """Make the renames durable; where that fails, none of them counts as saved."""
        if not written or not self._sync:
            return
        try:
            descriptor = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            for job in written:
                if job.undo is not None:
                    job.undo()
                job.fail(self._mapped(error))

    def _all(self) -> RowTx:
        """Return every run of the directory in one transaction that only reads."""
        tx = RowTx()
        found = []
        for path in sorted(self._directory.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
                found.append(decoded(path.read_bytes(), str(path)))
        for key, file in enumerate(sorted(found, key=lambda file: file.run.created_at), start=1):
            file.run.key = key
            tx.take(file.run, file.log, file.snapshot, file.mail)
        return tx

    def _opened(self) -> Sidecar:
        if self._sidecar is None:
            refuse_network(str(self._directory / _LOCKS))
            self._directory.mkdir(parents=True, exist_ok=True)
            self._sidecar = Sidecar(str(self._directory / _LOCKS), str(self._directory))
            self._sidecar.note_guarded()
        return self._sidecar

    def _join(self, sidecar: Sidecar) -> None:
        """Draw this process's owner number from the lock file, and hold its lock."""
        if self.joined is not None:
            return
        while True:
            owner = sidecar.draw_owner()
            with contextlib.suppress(BlockingIOError):  # somebody has it: the file was put back to an older state
                sidecar.hold(owner)
                break
        self.joined = owner
        self._process = {"id": owner, "host": host_name(), "pid": os.getpid()}
        for part in self._directory.glob(".*.part"):  # of processes that died in a save
            number = part.name.split(".")[-2]
            if number.isdigit() and int(number) != owner and not sidecar.alive(int(number)):
                part.unlink(missing_ok=True)

    def _draw(self) -> int:
        assert self.joined is not None
        return self.joined << 32 | next(self._fences)

    def _mapped(self, error: BaseException) -> BaseException:
        """Return the flujo error for an error of the operating system; others are returned as they are."""
        if isinstance(error, FlujoError):
            return located(error, str(self._directory))
        if not isinstance(error, OSError):
            return error
        where = error.filename or str(self._directory)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            result: FlujoError = SaveError(
                f"There is no room for {where} ({error.strerror}).",
                hint="Make room; the run goes on from its last saved step.",
                path=where,
            )
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            result = StoreUnavailableError(
                f"{where} cannot be used as a store ({error.strerror}).",
                hint="Give this user a directory that it may write to, with all files in it.",
                path=where,
            )
        elif isinstance(error, (NotADirectoryError, FileExistsError, IsADirectoryError)):
            result = StoreUnavailableError(
                f"{where} is in the way of the store ({error.strerror}).",
                hint="A store is a directory of files: move this away, or give another path.",
                path=where,
            )
        else:
            result = SaveError(
                f"{where} could not be read or written ({error.strerror or error}).",
                hint="See that the disk is sound; the run goes on from its last saved step.",
                path=where,
            )
        result.__cause__ = error
        return result

    def shut(self) -> None:
        """Drop every lock."""
        self._known.clear()
        self._looked.clear()
        if self._sidecar is not None:
            self._sidecar.close()
            self._sidecar = None

    def forsake(self) -> None:
        """In a forked child: close what was inherited."""
        self.shut()


def _stamp(facts: os.stat_result) -> Stamp:
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
