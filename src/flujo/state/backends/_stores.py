"""The stores that are open in this process: one a place, however many backend objects there are.

`SharedBackend` is what the backends on such a store share; a `StoredBackend`'s lies at a path.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flujo.errors import BackendClosedError, ConfigurationError, StoreUnavailableError
from flujo.state.backends._log import LogBackend, Store, give_back
from flujo.state.backends._service import Service
from flujo.state.codec import Codec


class Stores:
    """The stores of this process, by their real path."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()  # a finalizer may run in the middle of anything
        self.open: dict[str, Service] = {}
        self.closing: dict[str, Service] = {}
        self.inherited: list[Service] = []  # the parent's: kept, so that nothing of theirs is finalized here
        self.torn: set[str] = set()  # where the parent was in a transaction: what is open there cannot be closed

    def enter(self, place: str, options: tuple[Any, ...], make: Callable[[], Service]) -> Service:
        """Return the store at that place for one more user; raises ConfigurationError where the options differ."""
        while True:
            with self.lock:
                closing = self.closing.get(place)
                if closing is None or closing.ended.is_set():
                    return self._entered(place, options, make)
            closing.ended.wait()  # its end drops this process's locks on the place, so nobody may have new ones yet

    def _entered(self, place: str, options: tuple[Any, ...], make: Callable[[], Service]) -> Service:
        if place in self.torn:
            raise StoreUnavailableError(
                f"This process was forked in the middle of a transaction on {place}, so it cannot use it.",
                hint="Fork before the store is used, or start a new process instead.",
                path=place,
            )
        store = self.open.get(place)
        if store is None:
            store = self.open[place] = make()
        elif store.options != options:
            raise ConfigurationError(
                f"{place} is already open in this process with other options.",
                hint="Give every backend on one store the same options.",
            )
        store.users += 1
        return store

    def leave(self, store: Service) -> None:
        """Close the store when its last user is gone."""
        if store.pid != self.pid:
            return
        with self.lock:
            store.users -= 1
            if store.users or self.open.get(store.place) is not store:
                return
            del self.open[store.place]
            self.closing[store.place] = store
        try:
            store.close()
        finally:
            with self.lock:
                if self.closing.get(store.place) is store:
                    del self.closing[store.place]

    def _all(self) -> list[Service]:
        return [*self.open.values(), *self.closing.values()]

    def before_fork(self) -> None:
        self.lock.acquire()
        for store in self._all():
            store.before_fork()

    def after_fork_in_parent(self) -> None:
        for store in self._all():
            store.after_fork_in_parent()
        self.lock.release()

    def after_fork_in_child(self) -> None:
        stores = self._all()
        self.inherited += stores
        self.pid, self.lock, self.open, self.closing = os.getpid(), threading.RLock(), {}, {}
        self.torn |= {store.place for store in stores if not store.after_fork_in_child()}


stores = Stores()
os.register_at_fork(
    before=stores.before_fork,
    after_in_parent=stores.after_fork_in_parent,
    after_in_child=stores.after_fork_in_child,
)


class SharedBackend(LogBackend):
    """A backend on a store that all backends of this process on the same place share. It is opened at its first use.

    Arguments: `place`, what the store is known by; `options`, what all backends on that place must agree on; `shown`,
    what errors call it; `codec`, None for the default one.
    """

    def __init__(self, place: str, options: tuple[Any, ...], shown: str, codec: Codec | None) -> None:
        super().__init__(codec)
        self._real, self._options, self._shown = place, options, shown
        self._current: Service | None = None
        self._closed = False
        self._entering: dict[int, threading.Lock] = {}  # by process: a forked one may find the other's locked
        self._finalizer: weakref.finalize[[Service], SharedBackend] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r})"

    def _make(self) -> Service:
        raise NotImplementedError

    def _store(self) -> Store:
        store = self._current
        if store is not None and store.pid == stores.pid:
            return store
        if self._closed:
            raise BackendClosedError(
                f"The backend on {self._shown} is closed.", hint="Make a new one.", path=self._shown
            )
        with self._entering.setdefault(stores.pid, threading.Lock()):
            if self._current is None or self._current.pid != stores.pid:
                self._current = stores.enter(self._real, self._options, self._make)
                self._finalizer = weakref.finalize(self, stores.leave, self._current)
            return self._current

    async def close(self) -> None:
        """Finish what waits and close the store; using the backend afterwards is an error. Closing twice is fine.

        What this backend claimed is given back.
        """
        store, self._current = self._current, None
        self._closed = True
        if store is not None and store.pid == stores.pid:
            for held in list(store.held.values()):
                if held.by == id(self):
                    give_back(store, held)
        if self._finalizer is not None and self._finalizer.alive:
            await asyncio.to_thread(self._finalizer)


class StoredBackend(SharedBackend):
    """A backend on a store that lies at a path.

    Arguments: `path`; `options`, what all backends on that path must agree on; `codec`, None for the default one.
    """

    def __init__(self, path: str | os.PathLike[str], options: tuple[Any, ...], codec: Codec | None) -> None:
        self.path = Path(path)
        try:
            place = os.path.realpath(path)
        except ValueError as error:
            raise ConfigurationError(f"{path!r} is no path ({error}).", hint="Give another one.") from error
        super().__init__(place, options, str(self.path), codec)
