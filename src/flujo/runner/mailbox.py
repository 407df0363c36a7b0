"""One claimed run's view of its mailbox: what has come, and what of it is not used yet."""

from __future__ import annotations

from typing import Any

from flujo._clock import micros
from flujo.engine import Met, met, read
from flujo.runner.commits import Commits
from flujo.state.mail import Message, Wait


class Mailbox:
    """Reads messages into the state (which saves that they were read with whatever it saves next), and matches them."""

    def __init__(self, commits: Commits, *, unread: bool) -> None:
        self._commits = commits
        self._unused: dict[int, Message] = {}
        self._last: int | None = None
        self._seen: object = None  # the newest ring before the last look that has ended
        self._rung: object = None
        if unread or (commits.state["waiting"] or {}).get("kept"):
            self.ring()

    def ring(self) -> None:
        """Something may have come; called from any thread."""
        self._rung = object()

    @property
    def stale(self) -> bool:
        """Whether something may have come since a look that has ended."""
        return self._rung is not self._seen

    async def refresh(self) -> None:
        """Read what has come; at the first time, also what was kept."""
        rung = self._rung
        state = self._commits.state
        seen, kept = state["mail_seen"], set((state["waiting"] or {}).get("kept") or ())
        after = self._last if self._last is not None else min([seen, *(seq - 1 for seq in kept)])
        found = await self._commits.keeper.backend.mail(state["run_id"], after=after)
        first = self._last is None
        new = [m for m in found if m.seq > (self._last or 0)]  # another look may have come to its end meanwhile
        for message in new:
            if message.kind in ("answer", "signal") and (not first or message.seq > seen or message.seq in kept):
                self._unused[message.seq] = message
        self._last = max([self._last or 0, seen, *(message.seq for message in new)])
        if new:
            self._commits.change(lambda state: read(state, new))
        self._seen = rung

    def met(self, wait: Wait) -> Met | None:
        """Return how the wait has ended, if it has; messages that it ended with are used."""
        how = met(wait, [self._unused[seq] for seq in sorted(self._unused)], micros(self._commits.clock.now()))
        if how is not None:
            for message in how.messages:
                del self._unused[message.seq]
        return how

    def content(self, message: Message) -> Any:
        """Return what the message says."""
        return None if message.payload is None else self._commits.keeper.codec.decode(message.payload)
