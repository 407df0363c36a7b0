"""A fork server: it imports flujo once, stays on one thread, opens no store, and forks children that do.

Spoken to in lines of JSON: ``{"do": "fork", "target": "module:function", "args": {...}}`` answers ``{"pid": n}``;
``{"do": "wait", "pid": n}`` answers ``{"code": n, "seconds": s}`` when that child has ended (a negative code is the
signal that it died of). It ends with its standard input.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

# What children use, imported before the fork. None of it opens a store.
PRELOAD = ("asyncio", "sqlite3", "flujo", "tests.support.crash_forks", "tests.support.crash_pipeline")


def main() -> None:
    for name in PRELOAD:
        importlib.import_module(name)
    gc.freeze()
    started: dict[int, float] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "fork":
            pid = os.fork()
            if pid == 0:
                _child(asked["target"], asked["args"])
            started[pid] = time.monotonic()
            answer: dict[str, Any] = {"pid": pid}
        else:
            pid = asked["pid"]
            status = _ended(pid)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "seconds": time.monotonic() - started.pop(pid),
            }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _ended(pid: int) -> int:
    """Wait for a child, and end what it left behind while its number is still its own."""
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _child(target: str, args: dict[str, Any]) -> None:
    """Call the function and exit: with what it returns, with 1 where it raises."""
    code = 1
    try:
        os.setpgid(0, 0)  # so that what it forks can be ended with it
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(2, 1)
        module, _, name = target.partition(":")
        code = getattr(importlib.import_module(module), name)(**args) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
