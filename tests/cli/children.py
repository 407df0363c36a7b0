"""Processes that use a store while the command line looks at it: `python -m tests.cli.children WHAT STORE`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from examples.shop import Order, Shop, registry
from flujo import Flujo, SQLiteBackend, Step, step


def runner(store: str) -> Flujo[object, object]:
    """Return the shop's runner on that store."""
    return Flujo(
        registry=registry, pipeline_name="orders", context_model=Shop, state_backend=SQLiteBackend(Path(store))
    )


async def _orders(store: str, at_once: int) -> None:
    """Run orders without an end, some of them at once; every third waits for a person."""
    shop, number = runner(store), 0
    running: set[asyncio.Task[object]] = set()
    while True:
        while len(running) < at_once:
            number += 1
            order = Order(id="x", items=[100, 25_000] if number % 3 == 0 else [1, 2, 3])
            running.add(asyncio.ensure_future(shop.run_async(order, run_id=f"load-{number}")))
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if number == at_once * 2:
            print("ready", flush=True)


@step(name="first")
async def first(value: int) -> int:
    return value + 1


@step(name="hold")
async def hold(value: int) -> int:
    """Run until a line comes on stdin."""
    print("ready", flush=True)
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, came.set)  # not a thread that reads: it could not be cancelled
    try:
        await came.wait()
    finally:
        loop.remove_reader(sys.stdin)
    sys.stdin.readline()
    return value + 1


asks = Step.parallel("both", held=hold, asked=Step.human_in_the_loop("ask", "Well?", bool))
held = first >> asks
plain = first >> hold


def main(what: str, store: str, *args: str) -> None:
    """Do what is wanted."""
    if what == "orders":
        asyncio.run(_orders(store, 4))
    pipeline = {"held": held, "plain": plain}[what]
    result = Flujo(pipeline, pipeline_name=what, state_backend=SQLiteBackend(Path(store))).run(1, run_id=args[0])
    print(result.status, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
