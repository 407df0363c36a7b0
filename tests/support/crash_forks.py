"""The test's end of the fork server, and a wire between a test and a child. Every wait here has a bound."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # how long a test waits for anything before it says that it hangs


class Forks:
    """Children of a fork server. `code` and `seconds` of a child are known after `wait`."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._living: set[int] = set()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crash_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def fork(self, target: str, **args: Any) -> int:
        """Start a child that calls `target` ("module:function" of tests.support) and return its pid."""
        pid: int = self._ask({"do": "fork", "target": f"tests.support.{target}", "args": args})["pid"]
        self._living.add(pid)
        return pid

    def wait(self, pid: int) -> tuple[int, float]:
        """Return the exit code of a child (a negative one is a signal) and its life in seconds."""
        answer = self._ask({"do": "wait", "pid": pid})
        self._living.discard(pid)
        return answer["code"], answer["seconds"]

    def join(self, *pids: int) -> None:
        """Wait for children that are to end well."""
        codes = {pid: self.wait(pid)[0] for pid in pids}
        assert not any(codes.values()), f"children ended with {codes}:\n{self.errors()}"

    def kill(self, pid: int, number: int = signal.SIGKILL) -> int:
        """Send a signal to a child and return its exit code."""
        os.kill(pid, number)
        return self.wait(pid)[0]

    def errors(self) -> str:
        """Return what children wrote to their standard error so far."""
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        return text[-8000:]

    def close(self) -> None:
        """End the server and whatever children nobody has waited for, with what they have forked."""
        for pid in self._living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        try:
            self._server.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._errors.close()

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question).encode() + b"\n")
        self._server.stdin.flush()
        ready, _, _ = select.select([self._server.stdout], [], [], PATIENCE_S)
        assert ready, f"no answer to {question} within {PATIENCE_S} s:\n{self.errors()}"
        line = self._server.stdout.readline()
        assert line, f"the fork server has ended:\n{self.errors()}"
        return json.loads(line)


class Wire:
    """Words between a test and one child, a line each."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.socket = connection
        self._lines = connection.makefile("rb")

    def say(self, word: str) -> None:
        """Send a word; whether anybody is left to hear it does not matter."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(word.encode() + b"\n")

    def hear(self) -> str:
        """Return the next word; '' where the other end is gone."""
        with contextlib.suppress(ConnectionResetError):
            return self._lines.readline().decode().rstrip("\n")
        return ""

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self.socket.close()


class Switchboard:
    """Where children call in: `answer` gives the wire of the next one that does."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="flujo-")  # short: a socket's path has 100 characters or so
        self.path = f"{self._folder}/wire"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.bind(self.path)
        self._socket.listen(64)
        self._wires: list[Wire] = []

    def answer(self) -> Wire:
        """Wait for the next call."""
        wire = Wire(self._socket.accept()[0])
        self._wires.append(wire)
        return wire

    def close(self) -> None:
        """Hang up on everybody."""
        for wire in self._wires:
            wire.close()
        self._socket.close()
        shutil.rmtree(self._folder)


def call(path: str) -> Wire:
    """In a child: call the test."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    connection.connect(path)
    return Wire(connection)


@contextlib.contextmanager
def switchboard() -> Generator[Switchboard, None, None]:
    """Open a switchboard for one test."""
    board = Switchboard()
    try:
        yield board
    finally:
        board.close()


class Journal:
    """A file to which any number of processes append lines of JSON, each whole and in the order of the writes.

    Every line has the pid of its writer and what is given as `always`.
    """

    def __init__(self, path: str | os.PathLike[str], **always: Any) -> None:
        self.path = os.fspath(path)
        self._always = {"pid": os.getpid(), **always}
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, what: str, **facts: Any) -> None:
        """Append a line, in one write."""
        os.write(self._file, json.dumps({"what": what, **self._always, **facts}).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all lines."""
        return [json.loads(line) for line in Path(self.path).read_bytes().splitlines()]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
