"""Plain functions run in threads of flujo's own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from flujo import Flujo, current_step, step

VARIABLE: ContextVar[str] = ContextVar("variable", default="nothing")


def test_off_the_event_loop() -> None:
    """A plain step has no running loop, and does not hold up the one that waits for it."""
    go = threading.Event()

    @step
    def plain(n: int) -> str:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        assert go.wait(20)
        return threading.current_thread().name

    async def main() -> str:
        task = asyncio.create_task(Flujo(plain).run_async(1))
        await asyncio.sleep(0)
        go.set()  # reached, so the loop was free
        return (await task).output

    assert asyncio.run(main()) != threading.main_thread().name


def test_as_many_as_run_at_once() -> None:
    """Fifty plain steps that wait for each other all have a thread."""
    together = threading.Barrier(50)

    @step
    def meet(n: int) -> int:
        together.wait(20)
        return n

    async def main() -> list[Any]:
        runner = Flujo(meet)
        return await asyncio.gather(*(runner.run_async(n) for n in range(50)))

    assert sorted(result.output for result in asyncio.run(main())) == list(range(50))


def test_context_variables() -> None:
    """The caller's are seen in the thread; what the function sets stays there."""

    @step
    def read(n: int) -> str:
        value = VARIABLE.get()
        VARIABLE.set("changed")
        return value

    async def main() -> None:
        VARIABLE.set("the caller's")
        assert (await Flujo(read).run_async(1)).output == "the caller's"
        assert VARIABLE.get() == "the caller's"

    asyncio.run(main())


def test_current_step_in_a_plain_function() -> None:
    """It is the same as in an async one."""

    @step
    def plain(n: int) -> tuple[str, str, int]:
        me = current_step()
        return me.run_id, me.name, me.attempt

    assert Flujo(plain).run(1, run_id="r").output == ("r", "plain", 1)


def test_a_plain_wrapper_around_an_async_function() -> None:
    """A coroutine that a plain function returns is awaited."""

    async def real(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    @step
    def wrapper(n: int) -> Any:
        return real(n)

    assert Flujo(wrapper).run(1).output == 2


def test_a_run_within_a_plain_step() -> None:
    """`run` may be called there, as no event loop is running in its thread."""

    @step
    async def inner(n: int) -> int:
        return n * 2

    @step
    def outer(n: int) -> int:
        return Flujo(inner).run(n).output

    assert Flujo(outer).run(21).output == 42


@pytest.mark.slow
def test_an_abandoned_thread_does_not_keep_the_program() -> None:
    """A program whose step hangs in C code for ever still ends when its main thread does."""
    code = """
import threading
from flujo import Flujo, step

@step(timeout=0.01)
def hang(n: int) -> int:
    threading.Event().wait()
    return n

print(Flujo(hang).run(1).status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "failed\n"), done.stderr
