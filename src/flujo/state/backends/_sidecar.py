"""The file beside a store that holds flujo's locks, and what is known of the machine.

Byte 0 is held around every write and every checkpoint: SQLite 3.7.0 to 3.51.2 can lose a commit that meets a
checkpoint (the WAL-reset bug), and a queue at one lock is fairer than its busy time-out. Byte 64 + n is held by owner
n for as long as it lives; the kernel drops it at death, so that a dead owner is known at once.

Who lives, then:

* The lock is held: the owner lives. Its reach is one kernel, so it holds between containers too, although they may
  share a boot id, or (LXC, systemd-nspawn) have one each, and may have no machine id.
* It is free, and the owner was of this boot: it is dead. Nothing else under this kernel could have it.
* It is free, and the owner was of another boot of this machine: it is dead, the machine was switched off since.
* It is free, and the owner was of another machine, or of one that has no id: it is dead as soon as its lease is over.
  A store lies on a local disk (network file systems are refused), so this is a file system that was not recognised, a
  disk that moved, or a container without a machine id after a reboot. Only the last is worth waiting for less, and
  nothing tells it from the others. A wrong guess would cost repeated work, never a second commit.

A store without leases (a folder of files) has the lock's word alone.

POSIX locks belong to the process, and closing any descriptor of the file drops them all: hence one descriptor a
process and file, and never one of the database itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import sys
import uuid
from functools import cache
from hashlib import blake2b
from pathlib import Path

from flujo.errors import StateCorruptedError, StoreFormatError, StoreUnavailableError

_OWNERS = 64
_MADE = b"store"
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "fuse.sshfs",
    "virtiofs",
}


class Sidecar:
    """An open sidecar file, and the file or folder that it guards. One a process and store."""

    def __init__(self, path: str, guarded: str) -> None:
        self.path = path
        self._guarded = guarded
        self._guarded_inode = 0
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._inode = os.fstat(self._fd).st_ino

    def lock(self, *, wait: bool) -> bool:
        """Take the write lock; return False where somebody else has it and `wait` is false."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Give the write lock back."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 0)

    def draw_owner(self) -> int:
        """Return an owner number that was never used, for a store that keeps no table of owners; the lock is held."""
        text = os.pread(self._fd, 20, 0)
        if text and not (text.isdigit() and len(text) == 20):
            raise StoreFormatError(
                f"{self.path} holds something that flujo did not write.",
                hint="Delete it while no process uses the store.",
                path=self.path,
            )
        number = int(text or b"0") + 1
        os.pwrite(self._fd, b"%020d" % number, 0)
        os.fsync(self._fd)
        return number

    def hold(self, owner: int) -> None:
        """Hold the lock that says that owner lives."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _OWNERS + owner)

    def drop(self, owner: int) -> None:
        """Drop the lock of an owner number that was not committed."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _OWNERS + owner)

    def alive(self, owner: int) -> bool:
        """Return whether another process holds that owner's lock. Never ask it of this process's own number."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _OWNERS + owner)
        except OSError:
            return True
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _OWNERS + owner)
        return False

    def check_not_emptied(self) -> None:
        """Raise StateCorruptedError where the store's file is empty although there was a store in it."""
        with contextlib.suppress(OSError):
            if os.pread(self._fd, 5, 0) == _MADE and Path(self._guarded).stat().st_size <= 1:  # SQLite: 1 is 0
                raise StateCorruptedError(
                    f"{self._guarded} is empty, but there was a store in it.",
                    hint=f"Restore it from a backup; to begin anew, delete it and {self.path}.",
                    path=self._guarded,
                )

    def note_made(self) -> None:
        """Note that there is a store now."""
        if os.pread(self._fd, 5, 0) != _MADE:
            os.pwrite(self._fd, _MADE, 0)

    def note_guarded(self) -> None:
        """Remember which file or folder is guarded."""
        self._guarded_inode = Path(self._guarded).stat().st_ino

    def check_in_place(self) -> None:
        """Raise StoreUnavailableError where the store or this file is no longer the one that others would open."""
        for path, inode in ((self.path, self._inode), (self._guarded, self._guarded_inode)):
            try:
                there = os.stat(path).st_ino == inode  # noqa: PTH116  (on the way of every save)
            except FileNotFoundError:
                there = False
            if not there:
                raise StoreUnavailableError(
                    f"{path} was removed or replaced while it was in use; nothing more is written to it.",
                    hint="Put the file back, or end the process and start it again with the new one.",
                    path=path,
                )

    def close(self) -> None:
        """Close the file, which drops every lock on it."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


@cache
def boot_id() -> str:
    """Return what this machine is called since it was switched on."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return f"{uuid.getnode():x}"


@cache
def machine_id() -> str:
    """Return a name of this machine that it keeps when it is switched off, or "" where it has none."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError, ValueError):
            found = Path(path).read_text(encoding="ascii").strip()
            if re.fullmatch("[0-9a-f]{32}", found):  # an image may hold "", or "uninitialized"
                return blake2b(found.encode(), digest_size=16, person=b"flujo").hexdigest()  # it is not to be told
    return ""


@cache
def host_name() -> str:
    """Return what this machine calls itself."""
    return socket.gethostname()


def refuse_network(store: str) -> None:
    """Raise StoreUnavailableError where the file lies on a network file system, whose locks cannot be trusted."""
    if sys.platform != "linux":
        return
    folder = str(Path(store).parent)
    found, kind = "", ""
    with contextlib.suppress(OSError), Path("/proc/self/mountinfo").open(encoding="utf-8") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            mount = left.split()[4].replace("\\040", " ")
            inside = folder == mount or folder.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(found):
                found, kind = mount, right.split()[0]
    if kind in _NETWORK:
        raise StoreUnavailableError(
            f"{store} lies on a network file system ({kind} at {found}).",
            hint="Locks need a local disk; put the store on one, or use PostgreSQL.",
            path=store,
        )
