"""What a forked child must not share with its parent: the way in which SIGTERM reaches the parent's event loop.

An event loop that handles a signal is told of it through a pipe. A forked child (a worker of a process pool, say) has
the same handler and the same pipe: a SIGTERM for the child would not end it, and would be taken for the parent's.
"""

from __future__ import annotations

import os
import signal
import threading

listening = threading.Event()  # set while SIGTERM goes to an event loop of this process
_forking: set[int] = set()  # the threads that fork now and hold SIGTERM back for it


def _before() -> None:
    if listening.is_set() and signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}):
        _forking.add(threading.get_ident())


def _after() -> None:
    if threading.get_ident() in _forking:
        _forking.remove(threading.get_ident())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _after_in_child() -> None:
    if listening.is_set():
        listening.clear()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after()  # only now, so that one that came meanwhile ends the child


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
