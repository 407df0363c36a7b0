"""A program of its own whose steps run in executors: what they do to signals, forks and the program's end.

python executor_program.py TASK
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from flujo import Flujo, current_step, step


@step(executor="cpu", retries=[0])
def killed(n: int) -> int:
    """Kill its worker in the first attempt."""
    if current_step().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return current_step().attempt


@step(executor="cpu")
def where(n: int) -> int:
    """Return the process that it runs in; a function of `__main__`."""
    return os.getpid()


def pools(method: str, workers: int) -> Any:
    """Return what makes pools whose processes are started like that."""
    context = multiprocessing.get_context(method)
    # The alarm ends a worker that was forgotten.
    return lambda: ProcessPoolExecutor(workers, mp_context=context, initializer=signal.alarm, initargs=(50,))


def fork_and_die() -> None:
    """Break a pool of forked workers: those that are left are sent SIGTERM, which is not meant for this process."""
    print(Flujo(killed, executors={"cpu": pools("fork", 3)}).run(1).output)


@step
async def fork(times: int) -> int:
    """Fork children that wait, send each SIGTERM at once, and return how many that has ended."""
    ended = 0
    for _ in range(times):
        child = os.fork()
        if not child:
            signal.alarm(30)  # where it is deaf to SIGTERM
            while True:
                signal.pause()
        os.kill(child, signal.SIGTERM)
        ended += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM  # noqa: ASYNC222  # at once
        await asyncio.sleep(0)  # the event loop may look what has come for it
    return ended


def of_main(method: str) -> None:
    """Run a function of this program's `__main__`; the end of the program finds the pool idle."""
    runner = Flujo(where, executors={"cpu": pools(method, 1)})
    print(runner.run(1).output not in (None, os.getpid()))


def forked() -> None:
    """Use a runner in a process that was forked after its threads were made, which are not there."""
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, from 3.12 on
    runner = Flujo(where, executors={"cpu": lambda: ThreadPoolExecutor(1)})
    print(runner.run(1).output == os.getpid(), flush=True)
    child = os.fork()
    if not child:
        print(runner.run(1).output == os.getpid(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    match sys.argv[1]:
        case "fork-and-die":
            fork_and_die()
        case "fork-and-terminate":
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, from 3.12 on
            print(Flujo(fork).run(40).output)
        case "forked":
            forked()
        case method:
            of_main(method)
