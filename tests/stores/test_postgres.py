"""PostgreSQL: what is peculiar to a store on a server, which can be away, be slow to notice, and be set up wrongly."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flujo import Flujo, Step, open_backend, step
from flujo.errors import (
    BackendClosedError,
    ConfigurationError,
    FencedError,
    FlujoError,
    RunInProgressError,
    StoreBusyError,
    StoreFormatError,
    StoreUnavailableError,
    UnreadMailError,
)
from flujo.state.backends.postgres import PostgresBackend
from flujo.state.backends.postgres import connection as connecting
from flujo.state.backends.postgres import schema as schemas
from flujo.state.mail import Message
from tests.support import postgres
from tests.support.pipelines import T0, abc, by_hand, new_run
from tests.support.postgres import query
from tests.support.postgres_proxy import Proxy
from tests.support.saves import plain, saved, take, wait

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dsn() -> str:
    return postgres.dsn()


class Schema:
    """A schema of its own, and backends on it."""

    def __init__(self, server: str, place: Path) -> None:
        self.server, self.name, self._opened = server, postgres.schema_of(place), list[PostgresBackend]()

    def open(self, server: str | None = None, **options: Any) -> PostgresBackend:
        options = {"schema": self.name, "durability": "process", **options}
        self._opened.append(PostgresBackend(server or self.server, **options))
        return self._opened[-1]

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return query(schemas.named(sql, self.name), *values, server=self.server)

    def close(self) -> None:
        for backend in self._opened:
            asyncio.run(backend.close())


@pytest.fixture
def schema(dsn: str, tmp_path: Path) -> Iterator[Schema]:
    found = Schema(dsn, tmp_path)
    yield found
    found.close()
    postgres.drop(found.name)


# The schema.


def definitions(name: str) -> list[tuple[Any, ...]]:
    """Return all that a schema consists of, as the server says it."""
    found = query(
        "SELECT c.relname, c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull"
        " FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0"
        " WHERE c.relnamespace = to_regnamespace($1) ORDER BY 1, 3", name,
    )  # fmt: skip
    found += query("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = $1 ORDER BY 1", name)
    found += query("SELECT viewname, definition FROM pg_views WHERE schemaname = $1 ORDER BY 1", name)
    found += query(
        "SELECT proname, prosrc, pg_get_function_arguments(oid) FROM pg_proc"
        " WHERE pronamespace = to_regnamespace($1) ORDER BY 1", name,
    )  # fmt: skip
    found += query(f"SELECT * FROM {name}.meta")
    return [tuple(str(part).replace(f"{name}.", "flujo.") for part in row) for row in found]


@pytest.mark.slow
def test_what_is_printed_for_a_dba_is_what_a_backend_makes(schema: Schema) -> None:
    """Run by hand, in one go, the migrations make the very same schema; one that is there is left as it is."""
    wait(schema.open().load_state("r"))
    printed = f"flujo_test_{uuid.uuid4().hex[:12]}"
    query(PostgresBackend.migrations_sql(printed))
    try:
        assert definitions(printed) == definitions(schema.name)
        before = definitions(printed)
        backend = PostgresBackend(schema.server, schema=printed)
        wait(backend.save_state("r", by_hand(run_id="r")))
        wait(backend.close())
        assert definitions(printed) == before
    finally:
        postgres.drop(printed)


@pytest.mark.slow
def test_first_opens_at_once(schema: Schema) -> None:
    """Several processes that find no schema make one together."""
    failed: list[BaseException] = []

    def bring() -> None:
        try:
            dialing = connecting.Dialing(schema.server, "x", "full", False)
            with connecting.connect(dialing) as connection:
                schemas.bring(connection, schema.name, "x")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=bring) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert schema.query("SELECT * FROM flujo.meta") == [("schema_version", str(schemas.SCHEMA_VERSION))]


def test_schemas_that_are_not_ours(schema: Schema) -> None:
    """A newer one, a foreign one and one that lost a table are each refused with what to do; nothing is changed."""
    query(f"CREATE SCHEMA {schema.name}")
    schema.query("CREATE TABLE flujo.run (id int)")
    with pytest.raises(StoreFormatError, match="no flujo store"):
        wait(schema.open().load_state("r"))
    schema.close()
    schema.query("DROP TABLE flujo.run")
    wait(schema.open().load_state("r"))
    schema.close()
    schema.query("UPDATE flujo.meta SET value = '99'")
    with pytest.raises(StoreFormatError, match="newer flujo") as caught:
        wait(schema.open().load_state("r"))
    assert caught.value.schema_version == 99
    schema.close()
    schema.query("UPDATE flujo.meta SET value = $1", str(schemas.SCHEMA_VERSION))
    schema.query("DROP TABLE flujo.start")
    with pytest.raises(StoreFormatError, match="not the one that flujo made"):
        take(schema.open())


@pytest.mark.parametrize("name", ["", "Flujo", "a-b", "pg_flujo", "a" * 41, 'a"b', "a.b"])
def test_names_that_no_schema_has(name: str) -> None:
    """They are refused before anything is connected to."""
    with pytest.raises(ConfigurationError):
        PostgresBackend("postgresql:///x", schema=name)
    with pytest.raises(ConfigurationError):
        PostgresBackend.migrations_sql(name)


@pytest.mark.slow
def test_a_user_without_rights(schema: Schema, dsn: str) -> None:
    """Is told what a DBA has to run; after that, with the tables alone granted, everything works."""
    role = schema.name.replace("test", "role")
    query(f"CREATE ROLE {role} LOGIN")
    theirs = dsn.replace("//postgres@", f"//{role}@")
    try:
        with pytest.raises(StoreUnavailableError, match="migrations_sql"):
            wait(schema.open(theirs).load_state("r"))
        schema.close()
        query(PostgresBackend.migrations_sql(schema.name))
        with pytest.raises(StoreUnavailableError, match="lacks a right"):
            wait(schema.open(theirs).load_state("r"))
        schema.close()
        query(f"GRANT USAGE ON SCHEMA {schema.name} TO {role}")
        query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema.name} TO {role}")
        query(f"GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA {schema.name} TO {role}")
        backend = schema.open(theirs)
        assert Flujo(abc([]), state_backend=backend).run([], run_id="r").status == "completed"
        schema.close()
    finally:
        query(f"DROP OWNED BY {role}")
        query(f"DROP ROLE {role}")


def test_a_backend_from_a_uri(dsn: str) -> None:
    """`open_backend` knows it, and asks the server nothing before it is used."""
    for uri in ("postgresql://app:x@db.example:5433/app", "postgres://app@db.example/app"):
        backend = open_backend(uri)
        assert isinstance(backend, PostgresBackend) and "app@db.example" in repr(backend) and ":x@" not in repr(backend)


# Errors.


@pytest.mark.slow
def test_servers_that_cannot_be_had(dsn: str) -> None:
    """Nobody listens, no such database, a server that only reads: errors of flujo's, and quickly where it is final."""
    nobody = PostgresBackend("postgresql://nobody@127.0.0.1:1/none", busy_timeout=0.3)
    with pytest.raises(StoreUnavailableError, match=r"cannot be reached.*127\.0\.0\.1:1/none"):
        wait(nobody.load_state("r"))
    wait(nobody.close())
    start = time.monotonic()
    wrong = PostgresBackend(dsn.rsplit("/", 1)[0] + "/no_such_database")
    with pytest.raises(StoreUnavailableError, match="does not exist"):
        wait(wrong.load_state("r"))
    wait(wrong.close())
    assert time.monotonic() - start < 3
    only = PostgresBackend(dsn + "?options=-cdefault_transaction_read_only%3Don", schema="no", busy_timeout=0.3)
    with pytest.raises(StoreUnavailableError, match="only reads"):
        wait(only.load_state("r"))
    wait(only.close())


def test_a_password_is_shown_nowhere() -> None:
    """Neither by the backend nor by its errors."""
    backend = PostgresBackend("postgresql://me:secret@127.0.0.1:1/db", busy_timeout=0)
    assert "secret" not in repr(backend) and "me@127.0.0.1:1/db" in repr(backend)
    with pytest.raises(FlujoError) as caught:
        wait(backend.load_state("r"))
    assert "secret" not in str(caught.value)
    wait(backend.close())
    with pytest.raises(BackendClosedError) as closed:
        wait(backend.load_state("r"))
    assert "secret" not in str(closed.value)
    with pytest.raises(ConfigurationError) as invalid:
        PostgresBackend("postgresql://me:secret@[")
    assert "secret" not in str(invalid.value)


@pytest.mark.slow
def test_a_statement_that_takes_too_long(schema: Schema, dsn: str) -> None:
    """The server's own time-out is an error of flujo's, and the run goes on where it was."""
    backend = schema.open(dsn + "?options=-cstatement_timeout%3D200")
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1)))
    with psycopg.connect(dsn) as other:
        other.execute(f"SELECT 1 FROM {schema.name}.run FOR UPDATE".encode())
        with pytest.raises(StoreBusyError, match="statement_timeout"):
            wait(backend.save_state("r", saved(claim, 2)))
    wait(backend.save_state("r", saved(claim, 2)))
    assert plain(wait(backend.load_state("r")))["rev"] == 2


# Payloads.


@pytest.mark.slow
def test_text_and_bytes_of_every_kind(schema: Schema) -> None:
    r"""\0 in outputs, contexts, errors, names of a pipeline and messages comes back; so does a payload of 1 MB."""
    odd = "a\0b \\0 \ufdd0 \ufdd00 ä \U0001f600"

    @step
    async def first(given: str, *, context: dict[str, Any]) -> dict[str, Any]:
        context["odd"] = given
        return {"odd": given, "big": "x" * 1_000_000}

    @step
    async def second(given: dict[str, Any], *, context: dict[str, Any]) -> None:
        context["big"] = given["big"]
        raise ValueError(odd)

    flujo = Flujo(first >> second, pipeline_name="p", state_backend=schema.open())
    assert flujo.run(odd, run_id="r").status == "failed"
    schema.close()
    backend = schema.open()
    state = wait(backend.load_state("r"))
    assert state is not None
    assert (state["input"], state["last_step_output"]) == (odd, {"odd": odd, "big": "x" * 1_000_000})
    assert state["pipeline_context"] == {"odd": odd}
    (run,) = wait(backend.list_runs({"status": "failed"}))
    assert run.error_message == f"ValueError: {odd}"
    assert [found.run_id for found in wait(backend.list_runs({"error": f"ValueError: {odd}"}))] == ["r"]
    ((output, context),) = schema.query("SELECT last_step_output, pipeline_context FROM flujo.workflow_state")
    assert json.loads(output)["odd"] == odd and json.loads(context) == {"odd": odd}


@pytest.mark.slow
def test_the_view_folds_what_a_load_does(schema: Schema) -> None:
    """Contexts of many deltas, snapshots and forks; and the columns are those of SQLite's view."""
    backend = schema.open()
    contexts: dict[str, Any] = {}
    claim = take(backend)
    context: dict[str, Any] = {"lines": ["ä"], "n": 0}
    for rev in range(1, 90):
        context = {"lines": [*context["lines"], "ö" * rev * 40][-3:], "n": rev, **({"more": 1} if rev % 7 else {})}
        wait(backend.save_state("r", saved(claim, rev, pipeline_context=context)))
        contexts[f"f{rev}"] = context
    wait(backend.release("r", claim.fence or 0))
    assert schema.query("SELECT count(*) > 0 FROM flujo.snapshot") == [(True,)]
    for rev in (1, 30, 58):
        wait(backend.fork("r", rev, f"f{rev}"))
    wait(backend.fork("f30", 12, "g", changes={"pipeline_context": {"other": 1}}))
    wait(backend.delete_state("r"))
    found = {name: (json.loads(text), json.loads(output)) for name, text, output in schema.query(
        "SELECT run_id, pipeline_context, last_step_output FROM flujo.workflow_state"
    )}  # fmt: skip
    expected = {f"f{rev}": (contexts[f"f{rev}"], {"rev": rev}) for rev in (1, 30, 58)}
    assert found == {**expected, "g": ({"other": 1}, {"rev": 12})}
    for run_id, (text, _) in found.items():
        state = wait(backend.load_state(run_id))
        assert state is not None and state["pipeline_context"] == text
    columns = schema.query("SELECT * FROM (SELECT 1) AS a LEFT JOIN flujo.workflow_state ON false")
    names = query(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 ORDER BY attnum",
        f"{schema.name}.workflow_state",
    )
    assert len(columns) == 1 and [name for (name,) in names] == [
        "run_id", "pipeline_id", "pipeline_name", "pipeline_version", "current_step_index", "total_steps",
        "pipeline_context", "last_step_output", "status", "error_message", "execution_time_ms", "created_at",
        "updated_at",
    ]  # fmt: skip


# Threads, loops and processes.


@pytest.mark.slow
def test_one_backend_in_several_loops(schema: Schema) -> None:
    """Each in a thread of its own; the saves of all go through one connection, and none is lost."""
    backend = schema.open()
    results: list[str] = []

    def work(name: int) -> None:
        async def main() -> None:
            flujo = Flujo(abc([]), state_backend=backend)
            found = await asyncio.gather(*[flujo.run_async([], run_id=f"{name}.{n}") for n in range(5)])
            results.extend(result.status for result in found)

        asyncio.run(main())

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["completed"] * 20
    assert schema.query("SELECT count(*) FROM flujo.log") == [(60,)]
    assert schema.query("SELECT count(*) FROM flujo.owner") == [(1,)]


FORKED = """
import asyncio, os, sys, warnings
from flujo import Flujo
from flujo.state.backends.postgres import PostgresBackend
from tests.support.pipelines import abc

warnings.simplefilter("ignore")
backend = PostgresBackend(sys.argv[1], schema=sys.argv[2])
def run(name):
    return Flujo(abc([]), state_backend=backend).run([], run_id=name).status
print(run("before"), flush=True)
child = os.fork()
print(run("child" if child == 0 else "parent"), flush=True)
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(run("after"), flush=True)
asyncio.run(backend.close())
"""


@pytest.mark.slow
def test_after_a_fork(schema: Schema) -> None:
    """Parent and child go on with the same object, each on connections of its own and as an owner of its own."""
    command = [sys.executable, "-c", FORKED, schema.server, schema.name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["completed"] * 4, "")
    assert schema.query("SELECT count(*) FROM flujo.owner") == [(2,)]


OWNER = """
import sys
from flujo.state.backends.postgres import PostgresBackend
from tests.support.saves import saved, take, wait

backend = PostgresBackend(sys.argv[1], schema=sys.argv[2], lease=float(sys.argv[3]), pooled=sys.argv[4] == "pooled")
claim = take(backend)
wait(backend.save_state("r", saved(claim, 1)))
print("owned", flush=True)
for line in sys.stdin:
    try:
        wait(backend.save_state("r", saved(claim, int(line))))
        print("saved", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture
def start(schema: Schema) -> Iterator[Any]:
    """Start a process that owns the run `r`, saved once, and saves it again as it is told."""
    children: list[subprocess.Popen[str]] = []

    def started(lease: float = 30, kind: str = "session") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OWNER, schema.server, schema.name, str(lease), kind]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        children.append(subprocess.Popen(command, cwd=ROOT, **pipes))
        assert hear(children[-1]) == "owned"
        return children[-1]

    yield started
    for child in children:
        child.kill()
        child.communicate()


def hear(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], rev: int) -> str:
    assert child.stdin is not None
    child.stdin.write(f"{rev}\n")
    child.stdin.flush()
    return hear(child)


@pytest.mark.slow
def test_an_owner_that_was_killed(schema: Schema, start: Any) -> None:
    """It is replaced at once, long before its lease is over; one that lives is not, and says where it is."""
    child = start()
    backend = schema.open()
    with pytest.raises(RunInProgressError, match=f"process {child.pid} on "):
        take(backend)
    child.kill()
    child.wait()
    killed = time.monotonic()
    claim = take(backend)
    assert time.monotonic() - killed < 1
    assert claim.crashes == 1 and claim.state is not None and claim.state["rev"] == 1


@pytest.mark.slow
def test_an_owner_that_hangs(schema: Schema, start: Any) -> None:
    """It is replaced when its lease is over, and when it wakes its saves are refused: nothing is there twice."""
    child = start(lease=1)
    backend = schema.open()
    os.kill(child.pid, 19)
    with pytest.raises(RunInProgressError):
        take(backend)
    time.sleep(1.2)
    claim = take(backend)
    assert claim.crashes == 1
    wait(backend.save_state("r", saved(claim, 2, last_step_output="another")))
    os.kill(child.pid, 18)
    assert tell(child, 2) == "FencedError"
    assert [row[0] & 0xFFFFFF for row in schema.query("SELECT seq FROM flujo.log ORDER BY 1")] == [1, 2]


@pytest.mark.slow
def test_behind_a_pooler(schema: Schema, start: Any) -> None:
    """No session is relied on: nothing is prepared, set, heard or locked in one. The lease alone says who lives."""
    backend = schema.open(pooled=True, lease=1.5)
    claim = take(backend)
    for rev in range(1, 12):
        wait(backend.save_state("r", saved(claim, rev)))
    woken = threading.Event()
    backend.watch("r", claim.fence or 0, woken.set)
    time.sleep(0.4)
    writer: Any = backend._current._writer
    for connection in (writer._connection, writer._pulse._connection):
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM pg_settings WHERE source = 'session'").fetchone() == (0,)
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert connection.execute(held).fetchone() == (0,)
    wait(backend.save_state("r", saved(claim, 12, status="completed")))
    time.sleep(1.5)
    assert schema.query("SELECT flujo.lives(o) FROM flujo.owner AS o") == [(True,)]  # it beats
    wait(backend.delete_state("r"))
    child = start(lease=1.5, kind="pooled")
    child.kill()
    child.wait()
    with pytest.raises(RunInProgressError):
        take(backend)
    time.sleep(1.6)
    assert take(backend).crashes == 1


# Mail.


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"listen": False}, {"pooled": True}])
def test_who_is_woken_by_mail(schema: Schema, options: dict[str, Any]) -> None:
    """An owner that watches is, within moments: by NOTIFY where it may listen, else by looking four times a second."""
    backend = schema.open(**options)
    child_dsn = schema.server
    poster = f"""
import sys
from datetime import UTC, datetime
from flujo.state.backends.postgres import PostgresBackend
from flujo.state.mail import Message
from tests.support.saves import wait
backend = PostgresBackend({child_dsn!r}, schema={schema.name!r})
for line in sys.stdin:
    print(wait(backend.post("r", Message(id=line.strip(), kind="signal", name="s", at=datetime.now(UTC)))), flush=True)
"""
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1)))
    woken = threading.Event()
    backend.watch("r", claim.fence or 0, woken.set)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", poster], cwd=ROOT, **pipes) as other:
        assert other.stdin is not None and other.stdout is not None
        took = []
        for number in range(4):
            time.sleep(0.3)
            woken.clear()
            other.stdin.write(f"m{number}\n")
            other.stdin.flush()
            other.stdout.readline()
            start = time.monotonic()
            assert woken.wait(5)
            took.append(time.monotonic() - start)
        other.stdin.close()
    assert max(took) < 1.5
    if not options:
        assert sorted(took)[1] < 0.1
    assert len(wait(backend.mail("r"))) == 4


# What fails on the way.


def test_backends_that_are_terminated(schema: Schema, dsn: str) -> None:
    """`pg_terminate_backend` on every connection in the middle of a run: it goes on, and nothing is done twice."""
    calls: list[str] = []
    name = f"flujo-{uuid.uuid4().hex[:8]}"

    def cut(n: int) -> Any:
        @step(name=f"s{n}")
        async def work(given: int) -> int:
            calls.append(f"s{n}")
            if n % 3 == 1:
                query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", name)
            return given + 1

        return work

    pipeline: Any = cut(0)
    for n in range(1, 9):
        pipeline = pipeline >> cut(n)
    backend = schema.open(f"{dsn}?application_name={name}")
    result = Flujo(pipeline, state_backend=backend).run(0, run_id="r")
    assert (result.status, result.output) == ("completed", 9)
    assert calls == [f"s{n}" for n in range(9)]
    assert schema.query("SELECT count(*) FROM flujo.log") == [(9,)]
    other = Flujo(pipeline, state_backend=backend)
    assert other.run(0, run_id="r").output == 9
    deadline = time.monotonic() + 5
    while schema.query("SELECT flujo.lives(o) FROM flujo.owner AS o") != [(True,)]:  # the session is there again
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_server_that_is_stopped_at_once() -> None:
    """Five times, and started again, while 30 runs go on: all complete, each step is saved once, no owner is robbed."""
    server = postgres.Server().start()
    try:
        backend = PostgresBackend(server.dsn, durability="full")
        calls: list[str] = []

        def slow(n: int) -> Any:
            @step(name=f"s{n}")
            async def work(given: int) -> int:
                await asyncio.sleep(0.05)
                calls.append(f"s{n}")
                return given + 1

            return work

        pipeline: Any = slow(0)
        for n in range(1, 12):
            pipeline = pipeline >> slow(n)

        async def main() -> list[str]:
            flujo = Flujo(pipeline, state_backend=backend)
            runs = [asyncio.ensure_future(flujo.run_async(0, run_id=f"r{n}")) for n in range(30)]
            for _ in range(5):
                await asyncio.sleep(0.15)
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
            return [(await run).status for run in runs]

        assert asyncio.run(main()) == ["completed"] * 30
        assert len(calls) == 360
        counted = query("SELECT count(*), count(DISTINCT seq >> 24) FROM flujo.log", server=server.dsn)
        assert counted == [(360, 30)]
        assert query("SELECT sum(crashes) FROM flujo.run", server=server.dsn) == [(0,)]
        asyncio.run(backend.close())
    finally:
        server.remove()


CUT = ("save", "last", "batch", "claim", "post", "by hand", "delete", "paused")


@pytest.mark.slow
@pytest.mark.parametrize("deliver", [False, True])
@pytest.mark.parametrize("what", CUT)
def test_a_commit_that_is_cut(schema: Schema, dsn: str, what: str, deliver: bool) -> None:
    """The connection is lost before or after the server has committed, which its client cannot tell: it is found out,
    and what was asked for is there once."""
    proxy = Proxy(dsn, int(dsn.rsplit(":", 1)[1].split("/")[0]))
    backend, direct = schema.open(proxy.dsn), schema.open(dsn)
    claim = take(backend)
    for rev in (1, 2, 3):
        wait(backend.save_state("r", saved(claim, rev)))
    wait(backend.post("r", signal("first")))
    word = b"COMMIT" if what in ("claim", "post", "by hand", "delete", "paused") else b""
    log = "SELECT count(*) FROM flujo.log"
    if what in ("save", "last", "paused"):
        changes = {"save": {}, "last": {"status": "completed"}, "paused": {"status": "paused", "mail_seen": 9}}[what]
        proxy.arm(word, deliver=deliver)
        wait(backend.save_state("r", saved(claim, 4, **changes)))
        state = wait(direct.load_state("r"))
        assert state is not None and state["rev"] == 4 and schema.query(log) == [(4,)]
        assert state["status"] == changes.get("status", "running")
    elif what == "batch":
        many = [take(backend, f"m{n}") for n in range(20)]
        proxy.arm(word, deliver=deliver)

        async def save() -> None:
            await asyncio.gather(*[backend.save_state(f"m{n}", saved(c, 1, f"m{n}")) for n, c in enumerate(many)])

        wait(save())
        assert schema.query(log) == [(23,)]
    elif what == "claim":
        proxy.arm(word, deliver=deliver)
        other = take(backend, "other")
        wait(backend.save_state("other", saved(other, 1, "other")))
        assert other.crashes == 0 and schema.query("SELECT count(*) FROM flujo.run") == [(2,)]
    elif what == "post":
        proxy.arm(word, deliver=deliver)
        seq = wait(backend.post("r", signal("second")))
        assert [(m.id, m.seq) for m in wait(direct.mail("r"))][1] == ("second", seq)
        assert schema.query("SELECT count(*) FROM flujo.mail") == [(2,)]
    elif what == "by hand":
        proxy.arm(word, deliver=deliver)
        wait(backend.save_state("h", by_hand(run_id="h")))
        state = wait(direct.load_state("h"))
        assert state is not None and state["rev"] == 1
    else:
        wait(backend.release("r", claim.fence or 0))
        proxy.arm(word, deliver=deliver)
        wait(backend.delete_state("r"))
        assert wait(direct.load_state("r")) is None
    assert proxy.cuts == 1
    wait(backend.close())
    proxy.close()


@pytest.mark.slow
@pytest.mark.parametrize("deliver", [False, True])
def test_an_answer_whose_commit_is_cut(schema: Schema, dsn: str, deliver: bool) -> None:
    """It counts once, and whoever gave it is not told that somebody has answered before."""
    proxy = Proxy(dsn, int(dsn.rsplit(":", 1)[1].split("/")[0]))
    asks = Step.human_in_the_loop("ask", "Ship it?", bool)
    flujo = Flujo(asks, pipeline_name="p", state_backend=schema.open(proxy.dsn))
    assert flujo.run(1, run_id="r").status == "paused"
    proxy.arm(b"COMMIT", deliver=deliver)  # the first that is written after this is the message's
    assert flujo.resume("r", True).output is True
    assert proxy.cuts == 1 and schema.query("SELECT count(*) FROM flujo.mail") == [(1,)]
    schema.close()
    proxy.close()


@pytest.mark.slow
def test_a_server_that_stays_away(schema: Schema, dsn: str) -> None:
    """What waits for it fails after the busy time-out, as an error of flujo's; the run goes on when it is back."""
    proxy = Proxy(dsn, int(dsn.rsplit(":", 1)[1].split("/")[0]))
    backend = schema.open(proxy.dsn, busy_timeout=0.5)
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1)))
    proxy.close()
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        wait(backend.save_state("r", saved(claim, 2)))
    assert 0.3 < time.monotonic() - start < 5
    again = take(schema.open(dsn))
    assert again.crashes == 1 and again.state is not None and again.state["rev"] == 1
    wait(backend.close())


# Races between processes.


@pytest.mark.slow
def test_a_claim_that_meets_a_save(schema: Schema) -> None:
    """Whoever is first counts: the claim sees the save, or the save is refused. Never both, and never neither."""
    old, new = schema.open(), PostgresBackend(schema.server, schema=schema.name, durability="process", listen=False)
    new._real += " as another process would"  # another store thread, connection and owner
    outcomes = set()

    async def meet(rev: int, run_id: str) -> None:
        first = await old.claim(run_id, new_run(), now=T0)
        await old.save_state(run_id, saved(first, 1, run_id))
        save = old.save_state(run_id, saved(first, 2, run_id))
        taking = new.claim(run_id, new_run(), now=T0, force=True)
        if rev % 2:
            taken = asyncio.ensure_future(taking)
            await asyncio.sleep(rev * 0.00005)
            done = asyncio.ensure_future(save)
        else:
            done = asyncio.ensure_future(save)
            await asyncio.sleep(rev * 0.00005)
            taken = asyncio.ensure_future(taking)
        second = await taken
        kept = True
        try:
            await done
        except FencedError:
            kept = False
        assert second.state is not None and second.state["rev"] == (2 if kept else 1)
        outcomes.add(kept)
        await new.save_state(run_id, saved(second, second.state["rev"] + 1, run_id, last_step_output="new"))

    async def main() -> None:
        for rev in range(60):
            await meet(rev, f"r{rev}")
        await new.close()

    asyncio.run(main())
    assert outcomes == {True, False}


@pytest.mark.slow
def test_a_pause_that_meets_a_message(schema: Schema) -> None:
    """No message is left lying: the pause is refused, or the run is due from then on."""
    owner, poster = schema.open(), PostgresBackend(schema.server, schema=schema.name, durability="process")
    poster._real += " as another process would"

    async def meet(run_id: str, after: float) -> None:
        claim = await owner.claim(run_id, new_run(), now=T0)
        await owner.save_state(run_id, saved(claim, 1, run_id))
        pause = asyncio.ensure_future(owner.save_state(run_id, saved(claim, 2, run_id, status="paused", mail_seen=0)))
        await asyncio.sleep(after)
        await poster.post(run_id, signal("s"))
        refused = (await asyncio.gather(pause, return_exceptions=True))[0]
        due = schema.query("SELECT due_at IS NOT NULL FROM flujo.run WHERE run_id = $1", run_id)
        assert isinstance(refused, UnreadMailError) or (refused is None and due == [(True,)])

    async def main() -> None:
        for n in range(40):
            await meet(f"r{n}", n * 0.00005)
        await poster.close()

    asyncio.run(main())


@pytest.mark.slow
def test_two_that_begin_the_same_run(schema: Schema) -> None:
    """One of them has it, the other is told so; the rows of one run are there."""
    one, other = schema.open(), PostgresBackend(schema.server, schema=schema.name, durability="process")
    other._real += " as another process would"

    async def main() -> None:
        for n in range(25):
            claims = [backend.claim(f"r{n}", new_run(), now=T0) for backend in (one, other)]
            found = await asyncio.gather(*claims, return_exceptions=True)
            assert sorted(isinstance(claim, RunInProgressError) for claim in found) == [False, True], found
        await other.close()

    asyncio.run(main())
    assert schema.query("SELECT count(*) FROM flujo.run") == [(25,)]


# The guide.


@pytest.mark.slow
def test_the_guide_runs(schema: Schema, capfd: pytest.CaptureFixture[str]) -> None:
    """Every block of it, in order, against a server and a schema of this test."""
    text = (ROOT / "docs/guides/postgres.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python no-run\n(.*?)```", text, flags=re.DOTALL)
    options = f"?options=-cdefault_transaction_isolation%3Dserializable&application_name={schema.name}"
    program = schemas.named("\n".join(blocks), schema.name).replace(f"from {schema.name}.", "from flujo.")
    program = program.replace("postgresql://app@db.example/app", schema.server + options)
    program = program.replace(f'{options}")\nrunner', f'{options}", schema="{schema.name}")\nrunner')
    program += "\nprint(found[0][:2], asyncio.run(backend.close()))"
    done = subprocess.run(
        [sys.executable, "-c", "import asyncio\n" + program], cwd=ROOT, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.stderr == "" and lines[0] == "Hello, world!" and "CREATE TABLE flujo.run (" in lines
    assert f", {os.getpid()}," not in lines[-2] and "True, 0" in lines[-2]
    assert lines[-1] == "('run1', 'Hello, world!') None"


# The queue of a worker.


@pytest.mark.slow
def test_what_is_due(schema: Schema, start: Any) -> None:
    """Runs that were given back, whose time has come, or whose owner died; of the pipelines and versions asked for."""
    backend, now = schema.open(), T0 + timedelta(hours=1)
    child = start()

    async def main() -> list[tuple[str, Any]]:
        for n, (name, changes) in enumerate({
            "given back": {}, "due": {"status": "paused", "due_at": now}, "not yet": {"status": "paused"},
            "later": {"status": "paused", "due_at": now + timedelta(seconds=1)}, "over": {"status": "completed"},
            "failed": {"status": "failed", "error": "no"}, "mine": {}, "another version": {"pipeline_version": "9"},
        }.items()):  # fmt: skip
            if name == "another version":
                await backend.save_state(name, by_hand(run_id=name, **changes))
                continue
            claim = await backend.claim(name, new_run(), now=T0)
            await backend.save_state(name, saved(claim, 1, name, **changes))
            if name in ("given back",):
                await backend.release(name, claim.fence or 0)
            assert n < 8
        serves = [("shop", "1.0.0"), (new_run().pipeline_name, new_run().pipeline_version)]
        alive = await backend.claim_due(serves, 10, now=now)
        child.kill()
        child.wait()
        await asyncio.sleep(0.1)
        dead = await backend.claim_due(serves, 10, now=now)
        assert await backend.claim_due(serves, 10, now=now) == []
        assert (await backend.claim_due([("none", "1")], 10, now=now), await backend.claim_due([], 1, now=now)) == (
            [],
            [],
        )
        return [*alive, *dead]

    found = asyncio.run(main())
    assert sorted(name for name, _ in found[:2]) == ["due", "given back"]
    assert [name for name, _ in found[2:]] == ["r"]
    assert [claim.crashes for _, claim in found] == [0, 0, 1]
    for name, claim in found:
        assert claim.state is not None and claim.state["status"] == "running"
        wait(backend.save_state(name, saved(claim, 2, name)))


@pytest.mark.slow
def test_workers_do_not_find_the_same(schema: Schema) -> None:
    """Four that ask at once share the runs among them: each is claimed once, and none is left."""
    backends = [PostgresBackend(schema.server, schema=schema.name, durability="process") for _ in range(4)]
    for n, backend in enumerate(backends):
        backend._real += f" {n}"
    found: list[str] = []

    async def work(backend: PostgresBackend) -> None:
        while claims := await backend.claim_due([(new_run().pipeline_name, new_run().pipeline_version)], 3, now=T0):
            found.extend(run_id for run_id, _ in claims)

    async def main() -> None:
        for n in range(60):
            claim = await backends[0].claim(f"r{n}", new_run(), now=T0)
            await backends[0].save_state(f"r{n}", saved(claim, 1, f"r{n}"))
            await backends[0].release(f"r{n}", claim.fence or 0)
        await asyncio.gather(*map(work, backends))
        for backend in backends:
            await backend.close()

    asyncio.run(main())
    assert sorted(found) == sorted(f"r{n}" for n in range(60))


# What it costs.


@pytest.mark.slow
def test_plans_use_indexes(schema: Schema) -> None:
    """Nothing that is asked often reads a whole table of many runs."""
    backend = schema.open()
    wait(backend.save_state("r", by_hand(run_id="r")))
    schema.query(
        "INSERT INTO flujo.run SELECT 10 + n, 'x' || n, 'p' || n % 7, 'p', '1', 3, n,"
        " (ARRAY['running', 'paused', 'completed', 'failed'])[1 + n % 4], 1, n, NULL, n, NULL, NULL, NULL, 0, 0, 0"
        " FROM generate_series(1, 20000) AS n"
    )
    schema.query(
        "INSERT INTO flujo.log SELECT (10 + n)::bigint << 24 | 1, 1, 'running', 1, 1, 1, 1, 0, NULL, NULL, NULL, '', "
        " NULL, '' FROM generate_series(1, 20000) AS n"
    )
    schema.query("INSERT INTO flujo.mail SELECT n, 10 + n, 'a', 'signal', 's', NULL, NULL, NULL, 1, ''"
                 " FROM generate_series(1, 20000) AS n")  # fmt: skip
    schema.query("SELECT setval('flujo.mail_seq', 30000)")
    for table in ("run", "log", "mail"):
        schema.query(f"ANALYZE flujo.{table}")
    plans = asyncio.run(_plans(backend))
    assert len(plans) > 10
    whole = [text for text, plan in plans if any(f"Seq Scan on {table}" in plan for table in ("run", "log", "mail"))]
    assert whole == []


async def _plans(backend: PostgresBackend) -> list[tuple[str, str]]:
    """Return what is asked of the server on the way of a run and of a listing, each with its plan."""
    found: list[tuple[str, str]] = []
    store: Any = backend._current
    connection = store._writer._connection
    plain_cursor = psycopg.RawCursor

    class Explaining(psycopg.RawCursor[Any]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            word = bytes(query).split(None, 1)[0]
            if word in (b"SELECT", b"INSERT", b"UPDATE", b"WITH", b"DELETE"):
                plan = plain_cursor(connection).execute(b"EXPLAIN " + bytes(query), params).fetchall()
                found.append((bytes(query).decode(), "\n".join(line for (line,) in plan)))
            return super().execute(query, params, **options)

    connection.cursor_factory = Explaining
    claim = await backend.claim("r", new_run(), now=T0, force=True)
    for rev in (2, 3):
        await backend.save_state("r", saved(claim, rev, "r"))
    await backend.post("r", signal("one"))
    await backend.mail("r")
    await backend.history("r", after=1)
    await backend.list_runs({"status": "failed"}, limit=50)
    await backend.list_runs({"pipeline_id": "p3", "status": "completed"}, limit=50, since=T0 - timedelta(days=1))
    await backend.list_runs(limit=50)
    await backend.claim_due([("p", "1"), ("q", "1")], 5, now=T0)
    await backend.save_state("r", saved(claim, 4, "r", status="completed"))
    await backend.delete_state("x5001")
    return found


def signal(id: str) -> Message:
    return Message(id=id, kind="signal", name="s", at=T0)
