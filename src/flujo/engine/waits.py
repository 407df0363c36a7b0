"""What a run waits for, and what messages and the time make of it.

Functions of a state return a new one and leave the old one as it was; what they change is saved with whatever is saved
next. Applying one twice is applying it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flujo._clock import micros, moment
from flujo.engine.core import State, following
from flujo.engine.frames import Path
from flujo.state.mail import RECORDS, Message, Wait, token, waits_of

TIMERS = frozenset({"sleep", "retry"})


@dataclass(frozen=True, slots=True)
class Met:
    """A wait has come to its end: by `messages`, or by the time alone. `late`: nobody has answered in time."""

    messages: tuple[Message, ...] = ()
    late: bool = False


def met(wait: Wait, unused: Iterable[Message], now: int) -> Met | None:
    """Return how the wait has ended, or None where it goes on; what is stored counts for more than the time.

    Arguments: `unused`, messages in the store's order; `now`, in us since 1970.
    """
    if not wait.get("expired"):
        found = _answers(wait, unused)
        if found:
            return Met(found)
    until = wait.get("until")
    if wait.get("expired") or (until is not None and until <= now):
        return Met(late=wait["kind"] not in TIMERS)
    return None


def _answers(wait: Wait, unused: Iterable[Message]) -> tuple[Message, ...]:
    if wait["kind"] == "signal":
        return next(((m,) for m in unused if m.kind == "signal" and m.name == wait["signal"]), ())
    if wait["kind"] in TIMERS:
        return ()
    given = [message for message in unused if message.kind == "answer" and message.name == token(wait)]
    quorum = wait.get("quorum", 1)
    return tuple(given[:quorum]) if len(given) >= quorum else ()


def read(state: State, messages: Sequence[Message]) -> State:
    """Return the state after these messages were read: orders take effect, what else there is waits for its use."""
    new = [message for message in messages if message.seq > state["mail_seen"]]
    if not new:
        return state
    waiting = dict(state["waiting"] or {})
    kept = list(waiting.get("kept") or ())
    for message in new:
        if message.kind == "cancel":
            waiting.setdefault("cancel", message.author)
        elif message.kind == "pause":
            waiting["held"] = message.author
        elif message.kind == "resume":
            waiting.pop("held", None)
        elif message.kind not in RECORDS:
            kept.append(message.seq)
    return _with(state, waiting, kept=kept) | {"mail_seen": new[-1].seq}


def opened(state: State, wait: Wait) -> State:
    """Return the state in which the run waits for that too."""
    others = [other for other in waits_of(state["waiting"]) if other["path"] != wait["path"]]
    return _with(state, dict(state["waiting"] or {}), waits=[*others, wait])


def put_off(state: State, path: Path, now: datetime, delay: float, why: str, tries: int) -> Wait:
    """Return the wait for another attempt at `path`, in `delay` seconds, after `tries` of them."""
    return Wait(
        kind="retry", path=list(path), n=state["rev"], since=micros(now), until=micros(now + timedelta(seconds=delay)),
        message=why, tries=tries,
    )  # fmt: skip


def closed(state: State, path: Path, how: Met | None = None) -> State:
    """Return the state in which nothing is waited for at `path` any more; what it ended with is used."""
    waiting = dict(state["waiting"] or {})
    wait = wait_at(state, path)
    if wait is not None and how is not None and wait["kind"] in ("human", "crash"):
        by = how.messages[-1].by if how.messages else None
        waiting["last"] = {"wait": token(wait), "how": "expired" if how.late else "answered", "by": by}
    used = {message.seq for message in how.messages} if how is not None else set()
    waits = [other for other in waits_of(waiting) if tuple(other["path"]) != path]
    return _with(state, waiting, waits=waits, kept=[seq for seq in waiting.get("kept") or () if seq not in used])


def expired(state: State, path: Path) -> State:
    """Return the state in which no answer to the wait at `path` counts any more."""
    wait = wait_at(state, path)
    return state if wait is None else opened(state, {**wait, "expired": True})


def paused(state: State, now: datetime) -> State:
    """Return the state of a run in which nothing can go on before a message comes, or a time."""
    after = following(state, [], now)
    after["status"] = "paused"
    times = [wait["until"] for wait in waits_of(state["waiting"]) if wait.get("until") is not None]
    times += [until for _, until in (state["waiting"] or {}).get("limits") or ()]
    if state["deadline"] is not None:
        times.append(micros(state["deadline"]))
    held = is_held(state)
    after["due_at"] = moment(min(t for t in times if t is not None)) if times and not held else None
    return after


def limited(state: State, limits: Iterable[tuple[Path, int]]) -> State:
    """Return the state with the time limits that run at these paths, and when they run out."""
    return _with(state, dict(state["waiting"] or {}), limits=[[list(path), until] for path, until in limits])


def limit_at(state: State, path: Path) -> int | None:
    """Return when the time limit runs out that was running at `path` when the run was paused, or None."""
    limits = (state["waiting"] or {}).get("limits") or ()
    return next((int(until) for other, until in limits if tuple(other) == path), None)


def wait_at(state: State, path: Path) -> Wait | None:
    """Return what is waited for at `path`."""
    return next((wait for wait in waits_of(state["waiting"]) if tuple(wait["path"]) == path), None)


def is_held(state: State) -> bool:
    """Return whether somebody has paused the run from outside."""
    return bool((state["waiting"] or {}).get("held"))


def is_cancelled(state: State) -> bool:
    """Return whether somebody has cancelled the run."""
    return bool((state["waiting"] or {}).get("cancel"))


def wakes_at(state: State) -> datetime | None:
    """Return when a paused run goes on, where it waits for nothing but the time."""
    waits = waits_of(state["waiting"])
    if not waits or is_held(state) or any(wait["kind"] not in TIMERS for wait in waits):
        return None
    due: datetime | None = state["due_at"]
    return due


def begun(state: State, path: Path, crashes: int) -> State:
    """Return the state in which the step at `path` is about to be performed: if the process dies, it is in doubt.

    `crashes` is how often its process has died so far, which the store counts from the last save on.
    """
    position = dict(state["position"] or {})
    if crashes:
        position["crashes"] = crashes
    position["begun"] = [*(p for p in position.get("begun", ()) if tuple(p) != path), list(path)]
    return {**state, "position": position}


def over(state: State, path: Path) -> State:
    """Return the state in which it is known how the step at `path` came out."""
    position = dict(state["position"] or {})
    left = [p for p in position.pop("begun", ()) if tuple(p) != path]
    if left:
        position["begun"] = left
    return {**state, "position": position or None}


def known(state: State, path: Path) -> State:
    """Return the state in which it is known how the step at `path` came out, and nothing is waited for there."""
    return closed(over(state, path), path)


def in_doubt(state: State) -> frozenset[Path]:
    """Return the paths of the steps that were begun, and of which nothing more is known."""
    position = state["position"]
    return frozenset(tuple(path) for path in (position.get("begun", ()) if isinstance(position, dict) else ()))


def _with(state: State, waiting: dict[str, Any], **parts: list[Any]) -> State:
    waiting |= parts
    left = {name: value for name, value in waiting.items() if value}
    return {**state, "waiting": left or None}
