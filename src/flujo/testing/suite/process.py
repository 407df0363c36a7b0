"""Another process on the same store: how a test starts it and talks to it, and what it does.

Spoken to in lines of JSON: the first says which suite to make and what to do, each answer is one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from flujo.testing.suite import tasks
from flujo.testing.suite.base import PATIENCE_S, SuiteBase

_PROGRAM = "from flujo.testing.suite.process import main; main()"
_INSIDE = "FLUJO_SUITE_PROCESS"  # set in the other process, which must not start others


class Other:
    """Another process that does `task` with a backend of its own."""

    def __init__(self, suite: SuiteBase, place: Path, task: str, **args: Any) -> None:
        kind = type(suite)
        if "<locals>" in kind.__qualname__:
            raise AssertionError(
                f"{kind.__qualname__} must stand at the top of its module: another process imports it."
            )
        if os.environ.get(_INSIDE):
            raise AssertionError(
                f"The module of {kind.__qualname__} runs the suite when it is imported, as another process does: "
                "call it under `if __name__ == '__main__':`."
            )
        module = sys.modules[kind.__module__]
        self._task = task
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | {_INSIDE: "1", "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
        )
        self._rest = b""
        self.say(
            module=kind.__module__, file=getattr(module, "__file__", None), name=kind.__qualname__,
            place=str(place), task=task, args=args,
        )  # fmt: skip

    def say(self, **words: Any) -> None:
        """Send a line; whether the other is there to read it does not matter."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()

    def hear(self) -> Any:
        """Return the next answer; fails the test where none comes."""
        while b"\n" not in self._rest:
            if not self._read():
                self._fail("ended without an answer")
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def kill(self) -> list[Any]:
        """Kill it with SIGKILL and return the answers that it gave before."""
        self._process.send_signal(signal.SIGKILL)
        while self._read():
            pass
        self._process.wait(PATIENCE_S)
        return [json.loads(line) for line in self._rest.split(b"\n")[:-1]]

    def end(self) -> None:
        """Wait for its end; fails the test where that is not a good one."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        while self._read():
            pass
        if self._process.wait(PATIENCE_S) != 0:
            self._fail(f"ended with {self._process.returncode}")

    def close(self) -> None:
        """Make sure that nothing is left of it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> bool:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        if not ready:
            self._fail(f"gave no answer within {PATIENCE_S:g} s")
        more = os.read(self._process.stdout.fileno(), 65536)
        self._rest += more
        return bool(more)

    def _fail(self, what: str) -> None:
        self._process.kill()
        self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        raise AssertionError(f"another process on the same store ({self._task}) {what}: {said[-4000:]}")


@contextlib.contextmanager
def other_process(suite: SuiteBase, place: Path, task: str, **args: Any) -> Generator[Other, None, None]:
    """Start another process for as long as the block takes."""
    other = Other(suite, place, task, **args)
    try:
        yield other
    finally:
        other.close()


# --- in that process ---


def main() -> None:
    """Do what is asked for on the standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the backend prints is no answer
    asked = json.loads(sys.stdin.readline())
    suite: SuiteBase = attrgetter(asked["name"])(_module(asked["module"], asked["file"]))()
    backend = suite.make(Path(asked["place"]))
    work = getattr(tasks, asked["task"])(backend, functools.partial(_answer, answers), _hear, **asked["args"])
    asyncio.run(tasks.closing(backend, work))


def _answer(answers: TextIO, value: Any) -> None:
    answers.write(json.dumps(value) + "\n")


def _hear() -> Any:
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def _module(name: str, file: str | None) -> ModuleType:
    """Import a module by its name, or from its file where that name means nothing here, or something else."""
    with contextlib.suppress(ImportError):
        found = importlib.import_module(name)
        if file is None or getattr(found, "__file__", None) == file:
            return found
    spec = importlib.util.spec_from_file_location(f"{name}_again" if name == "__main__" else name, file or name)
    if spec is None or spec.loader is None:
        raise ImportError(f"The module {name!r} of the suite cannot be imported in another process.")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
