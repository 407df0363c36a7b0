"""Names of runs, steps and attempts."""

from __future__ import annotations

import unicodedata
import uuid

from flujo.errors import InvalidRunIdError

MAX_RUN_ID = 200
_NAMESPACE = uuid.UUID("6f1c3d0e-8d57-5b0e-9a52-2f6a1d4f7c11")
_HINT = f"Use 1 to {MAX_RUN_ID} printable characters; an order number, a UUID or 'daily/2026-01-31' are good ones."


def check_run_id(run_id: object) -> str:
    """Return `run_id` if every store can keep it apart from all others.

    Raises InvalidRunIdError: not a str, empty, over 200 characters, control characters, lone surrogates,
    or white space at either end.
    """
    if not isinstance(run_id, str):
        raise InvalidRunIdError(f"A run_id is a str, not {type(run_id).__name__}.", hint=_HINT, run_id=run_id)
    if run_id.isascii() and run_id.isprintable() and 0 < len(run_id) <= MAX_RUN_ID and " " not in run_id:
        return str(run_id)
    problem = _problem(run_id)
    if problem:
        raise InvalidRunIdError(f"The run_id {run_id[:80]!a} {problem}.", hint=_HINT, run_id=run_id)
    return str(run_id)


def _problem(run_id: str) -> str | None:
    if not run_id:
        return "is empty"
    if len(run_id) > MAX_RUN_ID:
        return f"has {len(run_id)} characters, the limit is {MAX_RUN_ID}"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in run_id):
        return "holds a control character, a line break or a lone surrogate"
    if run_id != run_id.strip():
        return "begins or ends with white space"
    return None


def new_run_id() -> str:
    """Return a run_id that nobody has used."""
    return uuid.uuid4().hex


def path_text(path: tuple[str, ...]) -> str:
    """Print a path: ``("enrich", "[17]", "fetch")`` is ``enrich[17].fetch``, ``("pay", ">undo")`` is ``pay>undo``."""
    text = path[0]
    for part in path[1:]:
        text += part if part[0] in "[#>" else "." + part
    return text


def own_name(path: tuple[str, ...]) -> str:
    """Return the last part of a path, with what it belongs to where it begins with ">": `pay>undo>call`."""
    start = len(path) - 1
    while start and path[start][0] == ">":
        start -= 1
    return path[start] if start == len(path) - 1 else "".join(path[start:])


def idempotency_key(run_id: str, path: tuple[str, ...], generation: int) -> str:
    """Return the key that every attempt of this step of this run shares: uuid5 of run_id, path, generation."""
    return str(uuid.uuid5(_NAMESPACE, f"{run_id}\x1f{path_text(path)}\x1f{generation}"))
