"""One process of the demo: runs the census on a store, and says on standard output what happens, a line of JSON each.

    python -m examples.worker FILE RUN_ID FOLDER SOURCE [--hold STEP]

With `--hold` the process stops in the middle of that step, for somebody to kill it there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from examples.census import WATCHERS, Census, pipeline
from flujo import CurrentStep, Flujo, SQLiteBackend
from flujo.execution.events import Event, RunEnded, RunStarted, StepFailed, StepProgress, StepSaved

STARTED = time.perf_counter()


def say(what: str, **facts: Any) -> None:
    line = {"what": what, "pid": os.getpid(), "after_s": time.perf_counter() - STARTED, **facts}
    print(json.dumps(line), flush=True)


def called(current: CurrentStep) -> None:
    """Say that a step's function was called: this comes from the function, not from the runner."""
    say("called", step=current.name, attempt=current.attempt, key=current.idempotency_key)


def reporter(hold: str | None) -> Callable[[Event], None]:
    """Return a hook that says what the runner does."""

    def hook(event: Event) -> None:
        match event:
            case RunStarted():
                say("run", index=event.index)
            case StepSaved() | StepFailed():
                say("saved" if event.result.success else "failed", step=event.result.name,
                    latency_s=event.result.latency_s, error=event.result.feedback)  # fmt: skip
            case StepProgress() if event.path[-1] == hold and event.done * 2 >= (event.total or 0):
                say("middle", step=hold, done=event.done, total=event.total)
                sys.stdin.read()  # until somebody kills this process, or is gone
                os._exit(3)
            case RunEnded():
                say("end", status=event.status)

    return hook


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("file", "run_id", "folder", "source"):
        parser.add_argument(name)
    parser.add_argument("--hold")
    options = parser.parse_args()
    WATCHERS.append(called)
    runner = Flujo(
        pipeline,
        state_backend=SQLiteBackend(options.file),
        context_model=Census,
        initial_context_data={"folder": options.folder},
        hooks=[reporter(options.hold)],
    )
    result = runner.run(options.source, run_id=options.run_id)
    context: Census = result.final_pipeline_context
    say(
        "result",
        status=result.status,
        history=[record.name for record in result.step_history],
        output=result.output if result.status == "completed" else None,
        files=context.files,
        lines=context.lines,
    )
    return 0 if result.status == "completed" else 1


if __name__ == "__main__":
    sys.exit(main())
