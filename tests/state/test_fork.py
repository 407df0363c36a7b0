"""Forks in the stores that share a log: what they refer to, and what becomes of it when runs are deleted."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flujo import SQLiteBackend
from flujo.errors import (
    ConfigurationError,
    NotSerializableError,
    RunExistsError,
    RunNotFoundError,
    StateCorruptedError,
)  # fmt: skip
from flujo.state.backends.base import Reading
from flujo.state.backends.sqlite import connection as opening
from flujo.state.mail import Message
from tests.support.backends import SERVED, Place, query
from tests.support.reference_backends import Readable
from tests.support.saves import saved, take, wait

TABLES = ("flujo_run", "flujo_log", "flujo_start", "flujo_fork", "flujo_snapshot", "flujo_mail")


@pytest.fixture(params=SERVED)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A store of each kind that has forks."""
    found = Place(request.param, tmp_path)
    yield found
    found.close()


def record(text: str = "why not") -> Message:
    return Message(id="fork", kind="fork", by="ada", reason=text, at=datetime.now(UTC))


def extend(backend: Any, run_id: str, count: int, *, size: int = 10, then: str = "running") -> None:
    """Go on with a run for so many saves; each appends to its context, and the last one leaves it in that status."""
    claim = take(backend, run_id, given={"big": "x" * 100})
    first = (claim.state or {}).get("rev", 0) + 1
    context = dict((claim.state or {}).get("pipeline_context") or {})
    for rev in range(first, first + count):
        context = {"lines": [*context.get("lines", []), f"{run_id}{rev}" + "." * size], "n": rev}
        status = then if rev == first + count - 1 else "running"
        carried = {name: (claim.state or {}).get(name) for name in ("forked_from", "inherited", "mail_seen")}
        facts = {
            "pipeline_context": context,
            "status": status,
            "run_id": run_id,
            "mail_seen": carried["mail_seen"] or 0,
        }
        wait(backend.save_state(run_id, {**saved(claim, rev, run_id), **carried, **facts}))
    if then == "running":
        wait(backend.release(run_id, claim.fence))


def whole(backend: Any, run_id: str) -> dict[str, Any]:
    """Return what is loaded of a run, to be compared."""
    state = wait(backend.load_state(run_id))
    assert state is not None, run_id
    return state


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_forks_of_forks_and_deletions_in_any_order(place: Place, seed: int) -> None:
    """Every run that is there reads as it was written, whatever was deleted; at the end nothing is left."""
    rng = random.Random(seed)
    backend = place.open()
    expected: dict[str, list[dict[str, Any]]] = {}  # the states of a run, by rev - 1
    for number in range(30):
        what = rng.choice(["begin", "extend", "fork", "fork", "fork", "delete"]) if expected else "begin"
        run_id = rng.choice(list(expected)) if expected else ""
        if what == "fork":
            rev = rng.randint(0, len(expected[run_id]))
            changes = {"pipeline_context": {"lines": ["other"]}} if rng.random() < 0.3 else {}
            wait(backend.fork(run_id, rev, f"f{number}", changes=changes, message=rng.choice([None, record()])))
            base = expected[run_id][:rev]
            state = whole(backend, f"f{number}")
            before = base[-1] if base else {"pipeline_context": {}, "last_step_output": None, "step_history": []}
            assert state["pipeline_context"] == changes.get("pipeline_context", before["pipeline_context"])
            assert state["last_step_output"] == before["last_step_output"]
            assert state["step_history"] == before["step_history"] and state["rev"] == rev + 1
            assert state["input"] == {"big": "x" * 100}
            expected[f"f{number}"] = [*base, state]
        elif what == "delete":
            wait(backend.delete_state(run_id))
            del expected[run_id]
            assert wait(backend.load_state(run_id)) is None
        else:
            run_id = f"r{number}" if what == "begin" else run_id
            states = expected.setdefault(run_id, [])
            extend(backend, run_id, rng.randint(1, 8), size=rng.choice([10, 5000]))
            newest = whole(backend, run_id)
            for rev in range(len(states) + 1, newest["rev"] + 1):
                states.append(wait(backend.load_at(run_id, rev, head=False)))
        if rng.random() < 0.3:
            place.close()
            backend = place.open()
        _check(place, backend, expected, rng)
    for run_id in rng.sample(list(expected), len(expected)):
        wait(backend.delete_state(run_id))
        del expected[run_id]
        _check(place, backend, expected, rng)
    if place.kind == "sqlite":
        assert [query(place.file, f"SELECT count(*) FROM {table}") for table in TABLES] == [[(0,)]] * len(TABLES)


def _check(place: Place, backend: Any, expected: dict[str, list[dict[str, Any]]], rng: random.Random) -> None:
    for run_id, states in expected.items():
        state = whole(backend, run_id)
        for name in ("pipeline_context", "last_step_output", "step_history", "rev", "run_id", "forked_from"):
            assert state[name] == states[-1][name], (run_id, name)
        rev = rng.randint(1, len(states))
        older = wait(backend.load_at(run_id, rev, head=False))
        for name in ("pipeline_context", "last_step_output", "step_history"):
            assert older[name] == states[rev - 1][name], (run_id, rev, name)
        after = rng.randint(0, len(state["step_history"]))
        assert wait(backend.history(run_id, after=after)) == state["step_history"][after:]
    assert {run.run_id for run in wait(backend.list_runs())} == set(expected)
    if place.kind == "sqlite":
        assert wait(backend.check_integrity()) == []
        rows = query(place.file, "SELECT run_id, pipeline_context, last_step_output FROM workflow_state")
        shown = {run_id: (json.loads(context), json.loads(output)) for run_id, context, output in rows}
        assert shown == {
            run_id: (states[-1]["pipeline_context"], states[-1]["last_step_output"])
            for run_id, states in expected.items()
        }


def test_a_fork_refers_to_rows_and_copies_none(tmp_path: Path) -> None:
    """It has one row of its own, however long and large the run is; what the run began with is stored once."""
    place = Place("sqlite", tmp_path)
    backend = place.open()
    extend(backend, "r", 30, size=3000)
    wait(backend.fork("r", 20, "f"))
    assert query(place.file, "SELECT count(*) FROM flujo_log") == [(31,)]
    assert query(place.file, "SELECT count(*) FROM flujo_start") == [(1,)]
    own = query(place.file, "SELECT records, output, delta FROM flujo_log ORDER BY seq DESC LIMIT 1")
    assert own == [(None, None, None)]
    place.close()


def test_a_fork_copies_no_context_whose_snapshot_is_gone(tmp_path: Path) -> None:
    """The store keeps the newest snapshot of a run: a fork of an older save is put together from the deltas."""
    place = Place("sqlite", tmp_path)
    backend = place.open()
    claim = take(backend)
    text = [random.Random(rev).randbytes(10_000).hex() for rev in range(20)]
    for rev in range(1, 20):
        wait(backend.save_state("r", {**saved(claim, rev), "pipeline_context": {"text": text[rev]}}))
    snapshots = query(place.file, "SELECT seq & 16777215 FROM flujo_snapshot")
    assert len(snapshots) == 1 and snapshots[0][0] > 10
    wait(backend.fork("r", 10, "f"))
    assert whole(backend, "f")["pipeline_context"] == {"text": text[10]}
    assert query(place.file, "SELECT seq & 16777215 FROM flujo_snapshot") == snapshots
    assert query(place.file, "SELECT max(snap_rev) FROM flujo_log WHERE seq >> 24 = 2")[0][0] <= 10
    shown = query(place.file, "SELECT pipeline_context FROM workflow_state WHERE run_id = 'f'")
    assert json.loads(shown[0][0]) == {"text": text[10]}
    extend(backend, "f", 3)
    assert whole(backend, "f")["pipeline_context"]["n"] == 14
    place.close()


def test_rows_stay_while_a_fork_refers_to_them(tmp_path: Path) -> None:
    """Of a run that is deleted the rows beyond its last fork go; the rest goes with the last that refers to them."""
    place = Place("sqlite", tmp_path)
    backend = place.open()
    extend(backend, "r", 9)
    wait(backend.fork("r", 6, "f"))
    wait(backend.fork("r", 3, "g"))
    wait(backend.fork("f", 7, "h"))

    def rows() -> int:
        return int(query(place.file, "SELECT count(*) FROM flujo_log")[0][0])

    assert rows() == 12
    for gone, left in (("r", 9), ("f", 9), ("h", 4), ("g", 0)):
        wait(backend.delete_state(gone))
        assert rows() == left, gone
        assert wait(backend.check_integrity()) == []
    place.close()


def test_a_run_is_deleted_and_begun_anew_while_a_fork_refers_to_it(place: Place) -> None:
    """The new run of that run_id is another; the fork is still of the old one."""
    backend = place.open()
    extend(backend, "r", 5)
    wait(backend.fork("r", 4, "f"))
    before = whole(backend, "f")
    wait(backend.delete_state("r"))
    extend(backend, "r", 2, size=1)
    assert whole(backend, "f") == before
    assert len(whole(backend, "r")["step_history"]) == 2


def test_old_runs_are_cleaned_up_and_their_forks_stay(tmp_path: Path) -> None:
    """`cleanup_old_workflows` deletes a run as `delete_state` does."""
    place = Place("sqlite", tmp_path)
    backend = place.open()
    assert isinstance(backend, SQLiteBackend)
    extend(backend, "r", 5, then="completed")
    wait(backend.fork("r", 3, "f"))
    before = whole(backend, "f")
    query(place.file, "UPDATE flujo_run SET updated_at = 1 WHERE run_id = 'r'")
    assert wait(backend.cleanup_old_workflows(1)) == 1
    assert whole(backend, "f") == before
    assert wait(backend.check_integrity()) == []
    place.close()


def test_what_a_fork_is_refused_for(place: Place) -> None:
    """No such run, no such save, a run_id that is taken, a value that cannot be saved: nothing is written."""
    backend = place.open()
    extend(backend, "r", 3)
    before = place.contents()
    with pytest.raises(RunNotFoundError):
        wait(backend.fork("never", 1, "f"))
    with pytest.raises(RunNotFoundError, match="no save 4"):
        wait(backend.fork("r", 4, "f"))
    with pytest.raises(ConfigurationError):
        wait(backend.fork("r", -1, "f"))
    with pytest.raises(RunExistsError):
        wait(backend.fork("r", 1, "r"))
    with pytest.raises(NotSerializableError):
        wait(backend.fork("r", 1, "f", changes={"pipeline_context": {"x": object()}}, message=record()))
    assert place.contents() == before
    claim = take(backend, "claimed")
    with pytest.raises(RunExistsError):
        wait(backend.fork("r", 1, "claimed"))
    wait(backend.release("claimed", claim.fence))
    wait(backend.fork("r", 1, "claimed"))  # of which nothing was ever saved
    assert whole(backend, "claimed")["current_step_index"] == 1


def test_the_save_at_which_a_run_came_to_a_step(place: Place) -> None:
    """`rev_at_index` finds it, whatever was saved in between, and in a fork what the fork has changed."""
    backend = place.open()
    claim = take(backend)
    for rev, index in enumerate([0, 1, 1, 2, 2, 2, 5], start=1):
        wait(backend.save_state("r", {**saved(claim, rev), "current_step_index": index}))
    found = {index: wait(backend.rev_at_index("r", index)) for index in range(-1, 7)}
    assert found == {-1: None, 0: 0, 1: 2, 2: 4, 3: None, 4: None, 5: 7, 6: None}
    assert wait(backend.rev_at_index("never", 0)) is None
    wait(backend.fork("r", 4, "f"))
    assert {index: wait(backend.rev_at_index("f", index)) for index in range(4)} == {0: 0, 1: 2, 2: 5, 3: None}


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM flujo_fork",
        "UPDATE flujo_fork SET rev = rev - 1",
        "UPDATE flujo_fork SET rev = rev + 1",
        "UPDATE flujo_fork SET parent = (SELECT key FROM flujo_run WHERE run_id = 'other')",
        "UPDATE flujo_fork SET parent = key",
        "UPDATE flujo_fork SET identity = x'00'",
        "DELETE FROM flujo_log WHERE seq & 16777215 = 3 AND seq >> 24 = 1",
        "UPDATE flujo_log SET output = CAST('1' AS BLOB) WHERE seq & 16777215 = 4 AND seq >> 24 = 1",
        "UPDATE flujo_log SET records = NULL WHERE seq & 16777215 = 2 AND seq >> 24 = 1",
    ],
)
def test_damage_is_found_across_a_fork(tmp_path: Path, damage: str) -> None:
    """The rows of the parent are verified as the parent's, and the chain goes on across the fork."""
    place = Place("sqlite", tmp_path)
    backend = place.open()
    extend(backend, "r", 6)
    extend(backend, "other", 6)
    wait(backend.fork("r", 4, "f"))
    extend(backend, "f", 2)
    place.close()
    query(place.file, damage)
    backend = place.open()
    with pytest.raises(StateCorruptedError):
        wait(backend.load_state("f"))
    assert isinstance(backend, SQLiteBackend) and wait(backend.check_integrity()) != []
    place.close()


def test_a_store_of_version_2(tmp_path: Path) -> None:
    """It is brought to this version with its runs, which can be forked; its schema is then a new store's."""
    file, new = tmp_path / "runs.db", tmp_path / "new.db"
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    for script in ("schema.sql", "mail.sql"):
        opening._run_script(connection, opening._script(script))
    connection.executemany(
        "INSERT INTO flujo_meta VALUES (?, ?)",
        [("schema_version", "2"), ("schema_digest", opening._digest(connection))],
    )
    connection.close()
    fresh = SQLiteBackend(new, durability="process")
    extend(fresh, "r", 3)
    wait(fresh.close())
    for table in ("flujo_owner", "flujo_run", "flujo_start", "flujo_log"):
        for row in query(new, f"SELECT * FROM {table}"):
            query(file, f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
    backend = SQLiteBackend(file, durability="process")
    wait(backend.fork("r", 2, "f"))
    assert whole(backend, "f")["pipeline_context"]["n"] == 2
    wait(backend.close())
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2"
    assert query(file, schema) == query(new, schema)
    facts = "SELECT * FROM flujo_meta WHERE name LIKE 'schema%' ORDER BY 1"
    assert query(file, facts) == query(new, facts)


def test_a_backend_that_cannot_fork_says_so() -> None:
    """A backend of somebody else's with Reading need not have forks."""
    backend = Readable()
    assert isinstance(backend, Reading)
    with pytest.raises(ConfigurationError, match="Readable cannot fork"):
        asyncio.run(backend.fork("r", 1, "f"))


@pytest.mark.slow
def test_a_process_that_dies_in_a_fork(tmp_path: Path) -> None:
    """The fork is there as a whole, or not at all, wherever in the transaction the process was killed."""
    place = Place("sqlite", tmp_path)
    backend = place.open()
    extend(backend, "r", 5)
    place.close()
    whole_ones = 0
    for at in (0, 1, 2, 3, 5, 6, 9):
        program = f"""
            import asyncio, os, signal, sqlite3
            from pathlib import Path
            from flujo import SQLiteBackend
            from tests.state.test_fork import record
            left = {at}

            class Dying(sqlite3.Connection):
                def execute(self, sql, *values):
                    global left
                    found = super().execute(sql, *values)
                    if armed and sql.split()[0] in ("INSERT", "BEGIN", "COMMIT"):
                        left -= 1
                        if left < 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                    return found

            armed = False

            def connect(path):
                return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, factory=Dying)

            async def main():
                global armed
                backend = SQLiteBackend(Path({str(place.file)!r}), connect=connect)
                await backend.list_runs()
                armed = True
                await backend.fork("r", 3, "f{at}", changes={{"pipeline_context": {{"x": {at}}}}}, message=record())
                os.kill(os.getpid(), signal.SIGKILL)

            asyncio.run(main())
        """
        died = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True)
        assert died.returncode == -9, died.stderr.decode()
        backend = place.open()
        state = wait(backend.load_state(f"f{at}"))
        if state is not None:
            whole_ones += 1
            assert (state["pipeline_context"], len(state["step_history"])) == ({"x": at}, 3)
            assert [message.reason for message in wait(backend.mail(f"f{at}"))] == ["why not"]
        assert isinstance(backend, SQLiteBackend) and wait(backend.check_integrity()) == []
        place.close()
    assert 0 < whole_ones < 7
