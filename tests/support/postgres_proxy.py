"""Something between a client and its PostgreSQL that can cut the wire at a chosen word."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards connections to a port of this machine. `dsn` leads through it."""

    def __init__(self, dsn: str, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        ours = self._listener.getsockname()[1]
        self.dsn = dsn.replace(f":{port}/", f":{ours}/")
        self.cuts = 0
        self._armed: tuple[bytes, bool] | None = None
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, word: bytes, *, deliver: bool) -> None:
        """Cut the next connection whose client sends that word: before, or after the server has done what it says."""
        self._armed = (word, deliver)

    def close(self) -> None:
        """Cut everything, and take nothing new."""
        _shut(self._listener)
        for end in list(self._open):
            _shut(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open |= {client, server}
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(*ends, ends[0] is client), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                armed = self._armed
                if from_client and armed is not None and armed[0] in data:
                    self._armed = None
                    self.cuts += 1
                    _shut(source)
                    if armed[1]:
                        target.sendall(data)
                        time.sleep(0.1)  # it is done by then; and if not, the client has to find out all the same
                    break
                target.sendall(data)
        _shut(source)
        _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
