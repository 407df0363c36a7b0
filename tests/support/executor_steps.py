"""Steps for the tests of executors: in a module of their own, which a worker process can import."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flujo import NonRetryableError, current_step, step

ANSWER = 42


class Shop(BaseModel):
    """A context."""

    sold: int = 0
    log: list[str] = []
    extra: Any = None


@dataclass
class Point:
    """A value of a class of the user's."""

    x: int
    y: tuple[int, ...]


class TwoParts(Exception):
    """Its `__init__` does not take what `pickle` gives it."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} because of {why}")
        self.why = why


class Prefixed(Exception):
    """What `pickle` gives its `__init__` is what that has made of it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class Locked(Exception):
    """It cannot be pickled at all."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class LockedForGood(NonRetryableError):
    """It cannot be pickled either, and is not to be retried."""

    def __init__(self) -> None:
        super().__init__("never again")
        self.lock = threading.Lock()


class Unloadable:
    """What can be pickled, but not be made again of that."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@dataclass
class Fragile:
    """Can be sent, but does not arrive."""

    x: int

    def __setstate__(self, state: Any) -> None:
        raise ValueError("broken on the way")


def raising(error: BaseException) -> None:
    """Raise it."""
    raise error


def scaled(n: int, by: int) -> int:
    """Multiply."""
    return n * by


@step(executor="cpu")
def where(n: int) -> int:
    """Return the process that it runs in."""
    return os.getpid()


@step(executor="cpu")
def move(point: Point) -> Point:
    """Return a moved point."""
    return Point(point.x + 1, (*point.y, point.x))


@step(executor="cpu")
def myself(n: int) -> dict[str, Any]:
    """Return what a running step can know of itself."""
    me = current_step()
    me.progress(1, 2)
    me.logger.debug("here")
    names = ("run_id", "path", "name", "attempt", "generation", "idempotency_key", "cancelled")
    return {name: getattr(me, name) for name in names}


@step(executor="cpu", retries=[0])
def sell(n: int, *, context: Shop) -> int:
    """Change the context; the first attempt fails after that."""
    context.sold += n
    context.log.append(f"attempt {current_step().attempt}")
    if current_step().attempt == 1:
        raise ValueError("sold out")
    return context.sold


@step(executor="cpu")
def count(n: int, *, context: dict[str, Any]) -> int:
    """Change a context without a model: a value inside, a new one, one that goes."""
    context["seen"].append(n)
    context["new"] = Point(n, ())
    del context["old"]
    return n


@step(executor="cpu", retries=[0])
def spoil(n: int, *, context: Shop) -> int:
    """Put into the context what cannot be sent."""
    context.extra = threading.Lock()
    return n


@step(executor="cpu", retries=[0])
def fail(how: str) -> Any:
    """Fail, in the way that is asked for; `attempt` is the only one that succeeds at the second attempt."""
    ways: dict[str, Any] = {
        "value": lambda: raising(ValueError("wrong", 7)),
        "noted": lambda: raising(_noted()),
        "two parts": lambda: raising(TwoParts("no delivery", "snow")),
        "prefixed": lambda: raising(Prefixed("stock")),
        "locked": lambda: raising(Locked()),
        "locked for good": lambda: raising(LockedForGood()),
        "exit": lambda: sys.exit(3),
        "interrupt": lambda: raising(KeyboardInterrupt()),
        "attempt": lambda: raising(ValueError("the first")) if current_step().attempt == 1 else ANSWER,
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "kill once": lambda: os.kill(os.getpid(), signal.SIGKILL) if current_step().attempt == 1 else ANSWER,
        "lock": threading.Lock,
        "lambda": lambda: lambda: 1,
        "unloadable": Unloadable,
        "coroutine": _coroutine,
    }
    return ways[how]()


def _noted() -> Exception:
    error = KeyError("k")
    error.add_note("look there")
    return error


async def _coroutine() -> int:
    return 1


@step(executor="cpu")
def fine(n: Any) -> int:
    """Return 42."""
    return ANSWER


class Scaler:
    """Has a method."""

    def __init__(self, by: int) -> None:
        self.by = by

    def scale(self, n: int) -> int:
        """Multiply."""
        return n * self.by


by_four = step(executor="cpu")(partial(scaled, by=4))
by_five = step(executor="cpu")(Scaler(5).scale)
again = where.named("again").with_timeout(60)


@step(executor="cpu")
@dataclass
class Parsed:
    """A class as a step; its instances are the output."""

    text: str


class Steps:
    """A step may also stand in a class."""

    @step(executor="cpu")
    @staticmethod
    def double(n: int) -> int:
        """Double it."""
        return n * 2


@step(executor="cpu")
def hidden(n: int) -> int:
    """Lose its name to the next one."""
    return n


first_hidden = hidden


@step(executor="cpu", name="hidden")
def hidden(n: int) -> int:  # type: ignore[no-redef]  # that is the point
    """Take the name of the one above."""
    return n


@step(executor="cpu", timeout=0.5, retries=[0] * 20)
def late(gates: tuple[str, str]) -> int:
    """Say that it has begun, and wait in the first attempt until somebody opens the gate."""
    started, gate = gates
    if current_step().attempt == 1:
        pass_on(started)
        wait_at(gate)
    return current_step().attempt


@step(executor="cpu", retries=[0])
def doomed(gate: str) -> int:
    """Wait in the first attempt until somebody opens the gate, and then kill the worker."""
    if current_step().attempt == 1 and gate:
        wait_at(gate)
        os.kill(os.getpid(), signal.SIGKILL)
    return ANSWER


@step(executor="cpu")
def meet(gates: tuple[str, str]) -> int:
    """Meet another one that is at work at the same time, and has the same gates the other way round."""
    pass_on(gates[0])
    wait_at(gates[1])
    return os.getpid()


def wait_at(gate: str) -> None:
    """Wait until somebody, in whatever process, has passed on."""
    pipe = os.open(gate, os.O_RDONLY)
    try:
        if not select.select([pipe], [], [], 60)[0]:
            raise TimeoutError(gate)
        os.read(pipe, 1)
    finally:
        os.close(pipe)


def pass_on(gate: str) -> None:
    """Let one who waits go on, now or later."""
    Path(gate).write_bytes(b".")


@contextlib.contextmanager
def two_gates(folder: Path) -> Iterator[tuple[str, str]]:
    """Make two gates; what is passed on lasts while this is open."""
    with contextlib.ExitStack() as open_ones:
        for name in ("started", "gate"):
            os.mkfifo(folder / name)
            open_ones.callback(os.close, os.open(folder / name, os.O_RDWR))
        yield str(folder / "started"), str(folder / "gate")
