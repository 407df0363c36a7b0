"""The session that says that this process lives: a thread and a connection of their own.

It holds an advisory lock for as long as the session lasts, renews the lease, and hears of messages by LISTEN. So a
process that dies is known to be dead as soon as the server has noticed, and one that hangs when its lease is over.
Behind a pooler that gives out connections by the transaction there are no sessions: there the lease is all.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Mapping

import psycopg

from flujo.state.backends._sidecar import host_name
from flujo.state.backends.postgres.connection import Connection, Dialing, connect, is_lost

_RETRY_S = (0.05, 0.5)  # before a lost session is opened anew: at first, and at most
_ATTACH_S = 1.0  # between attempts to take the lock, which the server may still give to the session that was lost
_STOP_S = 5.0


class Pulse:
    """See the module.

    Arguments: `lease` in seconds; `listen`, whether to hear of messages at all; `heard`, called with a run's key and
    the number of a message to it; `listening`, called with whether messages are heard of now: both on the thread.
    """

    def __init__(
        self,
        dialing: Dialing,
        sql: Mapping[str, bytes],
        lease: float,
        listen: bool,
        heard: Callable[[int, int], None],
        listening: Callable[[bool], None],
    ) -> None:
        self._dialing, self._sql, self._lease = dialing, sql, lease
        self._may_listen = listen and not dialing.pooled
        self._heard, self._listening = heard, listening
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._attached = False
        self._listens, self._wanted = False, False
        self._ended = False
        self._beat_at = 0.0
        self._wake: tuple[int, int] | None = None
        self.me: int | None = None

    def join(self) -> int:
        """Enter this process as an owner, unless it is one, and return its number; raises psycopg.Error."""
        if self.me is None:
            connection = connect(self._dialing)
            try:
                (me,) = connection.execute(self._sql["draw_owner"]).fetchone() or (0,)
                self._attach(connection, me)
                self._beat(connection, me)
                connection.execute(self._sql["forget_dead"], (me,))
            except BaseException:
                connection.close()
                raise
            self._connection, self.me = connection, me
            self._wake = os.pipe()
            os.set_blocking(self._wake[1], False)
            self._thread = threading.Thread(target=self._serve, name="flujo-pulse", daemon=True)
            self._thread.start()
        return self.me

    def listen(self, wanted: bool) -> None:
        """Say whether messages are to be heard of, from some moment soon."""
        if wanted != self._wanted and self._may_listen:
            self._wanted = wanted
            self._ring()

    def stop(self) -> None:
        """Give the owner's number up and close the session."""
        self._ended = True
        self._ring()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_S)

    def _ring(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(OSError):
                os.write(self._wake[1], b"x")

    def _serve(self) -> None:
        assert self._wake is not None
        pause = _RETRY_S[0]
        while not self._ended:
            try:
                self._turn(self._wake[0])
                pause = _RETRY_S[0]
            except Exception as error:  # it goes on as long as the process does
                self._lose()
                if not is_lost(error):
                    pause = _RETRY_S[1]
                self._sleep(self._wake[0], pause)
                pause = min(pause * 2, _RETRY_S[1])
        with contextlib.suppress(Exception):
            if self._connection is not None:
                self._connection.execute(self._sql["resign"], (self.me,))
        self._lose()
        reading, writing = self._wake
        self._wake = None
        os.close(reading)
        os.close(writing)

    def _turn(self, wake: int) -> None:
        """Do what is due, then wait for what comes next."""
        assert self.me is not None
        if self._connection is None:
            self._connection = connect(self._dialing)
            self._beat_at = 0.0
        connection, now = self._connection, time.monotonic()
        if not self._attached and not self._dialing.pooled:
            self._attach(connection, self.me)
        if now >= self._beat_at:
            self._beat(connection, self.me)
        if self._wanted != self._listens:
            self._set_listening(connection, self._wanted)
        until = self._beat_at - now
        if not self._attached and not self._dialing.pooled:
            until = min(until, _ATTACH_S)
        self._sleep(wake, until, connection.fileno())
        for notice in connection.notifies(timeout=0):
            self._notified(notice)

    @staticmethod
    def _sleep(wake: int, seconds: float, *more: int) -> None:
        poll = select.poll()
        for descriptor in (wake, *more):
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(max(0.0, seconds) * 1000):
            if descriptor == wake:
                os.read(wake, 4096)

    def _attach(self, connection: Connection, me: int) -> None:
        if not self._dialing.pooled:
            found = connection.execute(self._sql["attach"], (me,)).fetchone()
            self._attached = bool(found and found[0])

    def _beat(self, connection: Connection, me: int) -> None:
        self._beat_at = time.monotonic() + self._lease / 3
        facts = (me, host_name(), os.getpid(), not self._dialing.pooled, int(self._lease * 1e6))
        connection.execute(self._sql["beat"], facts)

    def _set_listening(self, connection: Connection, wanted: bool) -> None:
        connection.execute(self._sql["listen" if wanted else "unlisten"])
        self._listens = wanted
        self._listening(wanted)

    def _notified(self, notice: psycopg.Notify) -> None:
        with contextlib.suppress(ValueError):  # anybody may notify anything
            key, seq = map(int, notice.payload.split())
            self._heard(key, seq)

    def _lose(self) -> None:
        connection, self._connection = self._connection, None
        self._attached = self._listens = False
        with contextlib.suppress(Exception):
            self._listening(False)
            if connection is not None:
                connection.close()
