"""The mailbox on disk: damage, older stores, several processes, and a poster that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal as signals
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, SQLiteBackend, StateBackend
from flujo.errors import FlujoError, RunNotFoundError, StateCorruptedError
from flujo.state.backends import _service
from flujo.state.backends.file.format import decoded
from flujo.state.backends.sqlite import connection as opening
from tests.state.test_mail import ids, posts, signal
from tests.support.backends import Place, dump, query
from tests.support.pipelines import T0, abc, by_hand, new_run
from tests.support.saves import saved, take, wait

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


@pytest.fixture(params=["sqlite", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    found = Place(request.param, tmp_path)
    yield found
    found.close()


# Damage.


def a_store(file: Path, **changes: Any) -> None:
    """Make a store with two runs that have three messages each, and close it."""
    backend = SQLiteBackend(file, durability="process")
    for run_id in ("r", "other"):
        wait(backend.save_state(run_id, by_hand(run_id=run_id, **changes)))
        posts(backend, *(signal(f"{n}", reason="x") for n in "abc"), run_id=run_id)
    wait(backend.close())


def reads(file: Path, work: Callable[[Any], Any]) -> Any:
    backend = SQLiteBackend(file, durability="process")
    try:
        return wait(work(backend))
    except FlujoError as error:
        return type(error)
    finally:
        wait(backend.close())


VALUES = {
    "id": "z", "kind": "cancel", "name": "stop", "body": b"{}", "author": None, "reason": "y", "at": 7,
    "sum": b"x" * 16,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("column", VALUES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_message_altered(tmp_path: Path, column: str, number: int) -> None:
    """Any column of any message: reading it is refused, and the integrity check says so."""
    file = tmp_path / "runs.db"
    a_store(file)
    seqs = [seq for (seq,) in query(file, "SELECT seq FROM flujo_mail ORDER BY seq LIMIT 3")]
    query(file, f"UPDATE flujo_mail SET {column} = ? WHERE seq = ?", VALUES[column], seqs[number])
    assert reads(file, lambda backend: backend.mail("r")) is StateCorruptedError
    assert reads(file, lambda backend: backend.mail("r", after=seqs[number] - 1, limit=1)) is StateCorruptedError
    assert len(reads(file, lambda backend: backend.mail("other"))) == 3
    (problem,) = reads(file, lambda backend: backend.check_integrity())
    assert "'r'" in problem and "message" in problem


@pytest.mark.parametrize(
    ("statement", "bad"),
    [
        ("DELETE FROM flujo_mail WHERE seq = 1", {"r"}),
        ("DELETE FROM flujo_mail WHERE seq = 2", {"r"}),
        ("UPDATE flujo_mail SET seq = 9 WHERE seq = 2", {"r"}),
        ("UPDATE flujo_mail SET run = 2, id = 'z' WHERE seq = 2", {"r", "other"}),
        ("UPDATE flujo_mail SET run = 3 - run, id = id || run", {"r", "other"}),
        ("UPDATE flujo_mail SET body = CAST(replace(body, '1', '3') AS BLOB) WHERE seq = 5", {"other"}),
    ],
)
def test_messages_gone_or_moved(tmp_path: Path, statement: str, bad: set[str]) -> None:
    """The chain of checksums shows it, of each run's for itself."""
    file = tmp_path / "runs.db"
    a_store(file)
    query(file, statement)
    for run_id in ("r", "other"):
        found = reads(file, lambda backend, run_id=run_id: backend.mail(run_id))
        assert (found is StateCorruptedError) == (run_id in bad), found
    assert len(reads(file, lambda backend: backend.check_integrity())) == len(bad)


def test_the_message_that_made_a_run_due_is_gone(tmp_path: Path) -> None:
    """The run's time then is not the one that was saved, and there is nothing to say why."""
    file = tmp_path / "runs.db"
    a_store(file, status="paused")
    query(file, "DELETE FROM flujo_mail WHERE run = 1")
    for work in (lambda backend: backend.load_state("r"), lambda backend: backend.post("r", signal("z"))):
        assert reads(file, work) is StateCorruptedError


def test_messages_to_no_run(tmp_path: Path) -> None:
    """The integrity check finds them."""
    file = tmp_path / "runs.db"
    a_store(file)
    query(file, "UPDATE flujo_mail SET run = 77 WHERE run = 2")
    found = reads(file, lambda backend: backend.check_integrity())
    assert len(found) == 1 and "messages to a run number 77" in found[0]


def test_a_message_in_a_file_altered(tmp_path: Path) -> None:
    """The file's checksum shows it; without that, the message's own does."""
    place = Place("file", tmp_path)
    place.put(by_hand())
    posts(place.open(), signal("a"), signal("b"))
    place.close()
    (path,) = place.file.glob("*.json")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"by"', b'"yb"').replace(b'"author":"ann"', b'"author":"bob"', 1))
    with pytest.raises(StateCorruptedError, match="checksum"):
        place.load()
    file = decoded(whole, str(path))
    file.mail[0] = file.mail[0]._replace(author="bob")
    path.write_bytes(file.encoded())
    assert place.load()["status"] == "running"
    with pytest.raises(StateCorruptedError, match="message 1"):
        wait(place.open().mail("r"))
    place.close()


def test_copies_hold_the_mail(tmp_path: Path) -> None:
    """A backup is the store with its messages; a number that was given is not given again."""
    file, copy = tmp_path / "runs.db", tmp_path / "copy.db"
    a_store(file)
    reads(file, lambda backend: backend.backup(copy))
    assert dump(copy) == dump(file)
    reads(copy, lambda backend: backend.delete_state("other"))
    assert reads(copy, lambda backend: backend.post("r", signal("d"))) == 7


# Older stores.


def as_version_1(file: Path) -> None:
    """Make an empty store as version 1 did."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    opening._run_script(connection, opening._script("schema.sql"))
    connection.executemany(
        "INSERT INTO flujo_meta VALUES (?, ?)",
        [("schema_version", "1"), ("schema_digest", opening._digest(connection))],
    )
    connection.close()


def test_a_store_of_version_1(tmp_path: Path) -> None:
    """It is brought to this version, its run goes on after its last saved step; its schema is then a new store's."""
    file, new = tmp_path / "runs.db", tmp_path / "new.db"
    as_version_1(file)
    backend = SQLiteBackend(new, durability="process")
    wait(backend.save_state("r", by_hand()))
    wait(backend.close())
    for table in ("flujo_owner", "flujo_run", "flujo_start", "flujo_log"):  # as they were in version 1
        for row in query(new, f"SELECT * FROM {table}"):
            query(file, f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
    calls: list[str] = []
    backend = SQLiteBackend(file, durability="process")
    assert posts(backend, signal("a")) == [1]
    result = Flujo(abc(calls), state_backend=backend).run([], run_id="r")
    assert (result.output, calls) == (["a", "b", "c"], ["b", "c"])
    assert ids(backend) == ["a"]
    wait(backend.close())
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2"
    assert query(file, schema) == query(new, schema)
    facts = "SELECT * FROM flujo_meta WHERE name LIKE 'schema%' ORDER BY 1"
    assert query(file, facts) == query(new, facts)
    assert query(file, "PRAGMA integrity_check") == [("ok",)]


def test_a_state_file_of_version_1(tmp_path: Path) -> None:
    """It has no messages, and takes some."""
    place = Place("file", tmp_path)
    place.put(by_hand())
    place.close()
    (path,) = place.file.glob("*.json")
    old = path.read_bytes().replace(b'{"flujo":2,', b'{"flujo":1,').replace(b',\n"mail":[]', b"")
    assert b"mail" not in old
    body = old[: old.rindex(b',\n"checksum"')]
    path.write_bytes(body + b',\n"checksum":"%s"}\n' % blake2b(body, digest_size=16).hexdigest().encode())
    backend = place.open()
    assert ids(backend) == []
    assert posts(backend, signal("a")) == [1]
    assert place.load()["last_step_output"] == ["a"]
    place.close()


# Other processes.

PROGRAM = """
import asyncio, json, os, sys
from datetime import UTC, datetime
from flujo import FileBackend, SQLiteBackend
from flujo.state.mail import Message
from tests.support.crash_pipeline import Points, Traced

def message(id):
    at = datetime(2026, 1, 2, tzinfo=UTC)
    return Message(id=id, kind="signal", name="go", payload=b"[]", by=str(os.getpid()), at=at)

kind, path, kill = json.loads(sys.argv[1])
points = Points(None)
if kind == "sqlite":
    import sqlite3
    def connect(path):
        factory = type("Connection", (Traced,), {"points": points})
        return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, factory=factory)
    backend = SQLiteBackend(path, durability="process", connect=connect)
else:
    from tests.support.file_crash import watch
    backend = FileBackend(path, durability="process")
    watch(points)

async def main():
    print("ready", flush=True)
    for line in sys.stdin:
        run_id, id = line.split()
        points.phase = id
        points._kill = tuple(kill) if kill else None
        points.tell = lambda name: print("point", name, flush=True) if id == "traced" else None
        print("posted", await backend.post(run_id, message(id)), flush=True)
    await backend.close()

asyncio.run(main())
"""


class Poster:
    """Another process that posts what it is told to; `kill` names the point at which it dies."""

    def __init__(self, place: Place, kill: tuple[str, int] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([place.kind, str(place.file), kill])],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.hear() == "ready"

    def say(self, id: str, run_id: str = "r") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run_id} {id}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> tuple[str, int]:
        """Return what it said last, and its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        code = self.process.wait(PATIENCE_S)
        self.process.stdout.close()
        return said, code


@contextlib.contextmanager
def posters(place: Place, number: int, kill: tuple[str, int] | None = None) -> Iterator[list[Poster]]:
    found: list[Poster] = []
    try:
        for _ in range(number):
            found.append(Poster(place, kill))
        yield found
    finally:
        for poster in found:
            poster.process.kill()
            poster.process.wait()
            for pipe in (poster.process.stdin, poster.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


@pytest.mark.slow
def test_two_processes_post_the_same_message(place: Place) -> None:
    """One of them has stored it, and both have its number."""
    place.put(by_hand())
    with posters(place, 3) as found:
        for n in range(20):
            for poster in found:
                poster.say(f"m{n}")
            assert len({poster.hear() for poster in found}) == 1
    assert ids(place.open()) == [f"m{n}" for n in range(20)]
    assert len({m.by for m in wait(place.open().mail("r"))}) >= 1


@pytest.mark.slow
def test_a_poster_that_is_killed(place: Place) -> None:
    """At any point of its post: the message is there whole, or not at all; posted again, it is there once."""
    place.put(by_hand(status="paused"))
    with posters(place, 1) as (tracer,):
        tracer.say("warm")
        assert tracer.hear().startswith("posted")
        tracer.say("traced")
        points = []
        while (said := tracer.hear()).startswith("point"):
            points.append(said.removeprefix("point traced "))
        assert said.startswith("posted")
    found = {}
    for name in dict.fromkeys(points):
        id = f"killed{len(found)}"
        with posters(place, 1, (f"{id} {name}", 1)) as (poster,):
            poster.say("warm")  # the store is open when it dies
            poster.say(id)
            said, code = poster.end()
        assert code == -signals.SIGKILL, (name, said)
        backend = place.open()
        found[name] = ids(backend).count(id)
        assert place.load()["status"] == "paused"
        posts(backend, signal(id))
        assert ids(backend).count(id) == 1
        wait(backend.close())
    landed = list(found.values())
    assert 0 in landed and landed == sorted(landed), found
    assert landed[-1] == 1 and len(landed) > 5, found
    if place.kind == "sqlite":
        assert reads(place.file, lambda backend: backend.check_integrity()) == []


@pytest.mark.slow
def test_another_process_wakes_the_holder(place: Place) -> None:
    """Within a second of the post; also one that was posted between the claim and the watching, and after a pause."""
    with posters(place, 1) as (poster,):
        wait(_woken(place.open(), poster))


async def _woken(backend: StateBackend, poster: Poster) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    async def within(id: str) -> None:
        start = time.monotonic()
        await asyncio.wait_for(event.wait(), 5.0)
        assert time.monotonic() - start < 1.0
        event.clear()
        assert id in [m.id for m in await backend.mail("r")]

    claim = await backend.claim("r", new_run(), now=T0, inline=True)
    poster.say("early")
    await asyncio.to_thread(poster.hear)
    backend.watch("r", claim.fence or 0, lambda: loop.call_soon_threadsafe(event.set))
    await within("early")
    for rev, id in enumerate(("first", "second"), start=1):
        await backend.save_state("r", saved(claim, rev))
        await asyncio.sleep(2 * _service._LOOK_S)  # what is known already wakes nobody for long
        event.clear()
        poster.say(id)
        if id == "second":  # a save in between, that has read the file
            await asyncio.to_thread(poster.hear)
            await backend.save_state("r", saved(claim, rev + 1))
        await within(id)
    await asyncio.sleep(2 * _service._LOOK_S)
    event.clear()
    await asyncio.sleep(3 * _service._LOOK_S)
    assert not event.is_set()


@pytest.mark.slow
def test_looking_ends_with_the_watching(place: Place) -> None:
    """The thread looks while somebody watches, and beats in its own time all the while."""
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(_service, "_BEAT_S", 0.2)
        quick.setattr(_service, "_LOOK_S", 0.05)
        backend: Any = place.open()
        claim = take(backend)
        store = backend._store()
        beats: list[float] = []
        real = store._beat
        store._beat = lambda: [beats.append(time.monotonic()) or job for job in real()]
        assert not store._looking
        backend.watch("r", claim.fence, lambda: None)
        time.sleep(0.9)
        assert store._looking and 2 <= len(beats) <= 6, beats
        wait(backend.release("r", claim.fence))
        time.sleep(0.2)
        assert not store._looking
        again = take(backend)
        backend.watch("r", again.fence, lambda: None)
        assert store._looking


def test_nobody_to_write_to_in_another_run(place: Place) -> None:
    """A post that is refused takes nothing from what is committed with it."""
    backend = place.open()
    place.put(by_hand())

    async def main() -> list[Any]:
        return await asyncio.gather(
            *(backend.post(run_id, signal("a")) for run_id in ("no", "r", "none")), return_exceptions=True
        )

    first, number, last = wait(main())
    assert isinstance(first, RunNotFoundError) and isinstance(last, RunNotFoundError)
    assert number == 1 and ids(backend) == ["a"]
