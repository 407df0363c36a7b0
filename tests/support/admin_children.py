"""A child of the fork server that saves a run while the test does something else to its store."""

from __future__ import annotations

import asyncio
import json
import select
import time
from pathlib import Path

from flujo import SQLiteBackend
from tests.support.crash_forks import call
from tests.support.saves import saved, take


def saving(store: str, wire: str) -> int:
    """Save the run `child` over and over, from the first word until it is told to stop; tell what came of it."""
    line = call(wire)
    backend = SQLiteBackend(Path(store), durability="process")
    claim = take(backend, "child")
    asyncio.run(backend.save_state("child", saved(claim, 1, "child")))
    line.say("saving")
    longest, rev = 0.0, 1

    async def save() -> None:
        nonlocal longest, rev
        while not select.select([line.socket], [], [], 0)[0]:
            rev += 1
            start = time.monotonic()
            await backend.save_state("child", saved(claim, rev, "child"))
            longest = max(longest, time.monotonic() - start)
        await backend.close()

    asyncio.run(save())
    line.say(json.dumps({"saves": rev, "longest": longest}))
    line.close()
    return 0
