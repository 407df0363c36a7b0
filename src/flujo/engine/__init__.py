"""The core: what is next, and what the state is after that. No I/O, no clock."""

from __future__ import annotations

from flujo.engine.core import Do, attempts_before, completed, decide, failed, finished, fresh
from flujo.engine.resume import check_resumable

__all__ = ["Do", "attempts_before", "check_resumable", "completed", "decide", "failed", "finished", "fresh"]
