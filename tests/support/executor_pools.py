"""Pools of worker processes, and runs in them, for the tests of executors."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from flujo import Flujo, Pipeline, Step
from flujo.testing import VirtualClock
from tests.support import executor_steps as steps

# The server has imported what its workers need, so that they are there at once.
multiprocessing.set_forkserver_preload([steps.__name__])


def processes(workers: int = 1, method: str = "forkserver") -> ProcessPoolExecutor:
    """Make a pool."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))


def run(made: Step[Any, Any] | Pipeline[Any, Any], given: Any, pool: Any, **options: Any) -> Any:
    """Run the step or pipeline with the pool as its executor `cpu`."""
    return Flujo(made, executors={"cpu": pool}, clock=VirtualClock(), **options).run(given, run_id="r")
