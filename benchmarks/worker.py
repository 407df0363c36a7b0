"""One of several processes that share a store: `python -m benchmarks.worker FILE JOB`. See `benchmarks.processes`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Iterator

from benchmarks.concurrent import at_once
from flujo import Flujo, Pipeline, SQLiteBackend, Step, current_step, step

_last: dict[str, float] = {}
_longest = [0.0]


def _timed(name: str) -> Step[int, int]:
    """Return a step that only notes when it is called: since the end of the one before, its save was waited for."""

    async def note(value: int) -> int:
        now = time.perf_counter()
        run_id = current_step().run_id
        before = _last.get(run_id)
        if before is not None and now - before > _longest[0]:
            _longest[0] = now - before
        _last[run_id] = time.perf_counter()
        return value

    return step(name=name)(note)


def main(path: str, job: dict[str, int]) -> None:
    pipeline = Pipeline.of(*[_timed(f"s{number}") for number in range(job["steps"])])
    backend = SQLiteBackend(path)
    runner = Flujo(pipeline, state_backend=backend)
    runner.run(0)  # opens the file, enters this process as an owner
    _last.clear()
    _longest[0] = 0.0
    names: Iterator[str] = iter([uuid.uuid4().hex for _ in range(job["runs"])])
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.time()
    if job["at_once"] == 1:
        for name in names:
            runner.run(0, run_id=name)
    else:
        asyncio.run(at_once(runner, names, job["at_once"]))
    end = time.time()
    asyncio.run(backend.close())
    print(json.dumps({"start": start, "end": end, "longest_ms": _longest[0] * 1000}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
