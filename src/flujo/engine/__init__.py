"""The core: what is next, and what the state is after that. No I/O, no clock."""

from __future__ import annotations

from flujo.engine.core import (
    Do,
    attempts_before,
    completed,
    decide,
    failed,
    finished,
    first_record,
    fresh,
    progressed,
    records_so_far,
    void_records,
)  # fmt: skip
from flujo.engine.frames import HIDDEN, ROOT, UNDO, Act, Failure, Frame, Path, Scope
from flujo.engine.resume import check_resumable
from flujo.engine.tree import Saved, Tree, sort_out
from flujo.engine.undo import Undo, can_undo, undid, undo_failed, undoing, undone, undos

__all__ = [
    "HIDDEN",
    "ROOT",
    "UNDO",
    "Act",
    "Do",
    "Failure",
    "Frame",
    "Path",
    "Saved",
    "Scope",
    "Tree",
    "Undo",
    "attempts_before",
    "can_undo",
    "check_resumable",
    "completed",
    "decide",
    "failed",
    "finished",
    "first_record",
    "fresh",
    "progressed",
    "records_so_far",
    "sort_out",
    "undid",
    "undo_failed",
    "undoing",
    "undone",
    "undos",
    "void_records",
]
