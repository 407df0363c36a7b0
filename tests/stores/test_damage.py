"""What is damaged is never read as if it were whole, and never taken for absent; restored, the run goes on.

Damage within a SQLite file is the subject of tests/state/test_sqlite_damage.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, FlujoError
from flujo.errors import SaveError, StateCorruptedError, StateError, StoreFormatError
from tests.support.disks import Disk, explains, flip, replace
from tests.support.pipelines import abc


@pytest.fixture
def files(tmp_path: Path) -> Any:
    disk = Disk("file", tmp_path)
    yield disk
    disk.close()


def refused(disk: Disk, run_id: str = "r", kind: type[FlujoError] = StateCorruptedError) -> FlujoError:
    """Return the error of looking at the run, which says where and what to do; a runner gets it as well."""
    with pytest.raises(kind) as looked:
        asyncio.run(disk.open().load_state(run_id))
    with pytest.raises(kind) as ran:
        disk.run(run_id)
    assert str(looked.value) == str(ran.value)
    assert explains(looked.value, disk.file(run_id)) and looked.value.path == str(disk.file(run_id))
    assert disk.calls == []
    return looked.value


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0xFF, 0x01])
def test_any_byte_of_a_state_file_altered(files: Disk, mask: int) -> None:
    """Every single byte counts, those of the part for people and of the checksum too."""
    path = files.half()
    whole = path.read_bytes()
    backend = files.open()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= mask
        replace(path, bytes(changed))
        with pytest.raises(StateCorruptedError) as caught:
            asyncio.run(backend.load_state("r"))
        assert explains(caught.value, path)
        assert path.read_bytes() == changed
    refused(files)
    replace(path, whole)
    files.goes_on()


@pytest.mark.slow
def test_a_state_file_cut_anywhere(files: Disk) -> None:
    """From the empty file to the one that lacks its last byte, also where the lack is filled with zeros."""
    path = files.half()
    whole = path.read_bytes()
    backend = files.open()
    for length in range(len(whole)):
        padded = whole[:length].ljust(len(whole), b"\0")
        for content in (whole[:length], padded) if length % 7 == 0 else (whole[:length],):
            replace(path, content)
            with pytest.raises(StateCorruptedError) as caught:
                asyncio.run(backend.load_state("r"))
            assert explains(caught.value, path) and ("it is empty" in str(caught.value)) == (content == b"")
    refused(files)
    replace(path, whole)
    files.goes_on()


def test_a_byte_altered_in_place(files: Disk) -> None:
    """A backend that has just read the file notices, although it remembers what it read."""
    path = files.half()
    backend = files.open()
    assert asyncio.run(backend.load_state("r"))["current_step_index"] == 1
    flip(path, 200)
    refused(files)
    flip(path, 200)
    files.goes_on()


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}", b"null", b"garbage", b"[]", b'{"flujo":1}', bytes(range(256)) * 20, b"\0" * 4096, b"{" * 4000],
    ids=repr,
)
def test_something_else_in_place_of_a_state_file(files: Disk, content: bytes) -> None:
    """It is refused, also where it is JSON, and it is left as it is."""
    path = files.half()
    whole = path.read_bytes()
    replace(path, content)
    refused(files)
    assert path.read_bytes() == content
    replace(path, whole)
    files.goes_on()


def sealed(text: bytes) -> bytes:
    """Return the text with the checksum that a flujo of another version would have given it."""
    return text + b',\n"checksum":"%s"}\n' % blake2b(text, digest_size=16).hexdigest().encode()


def body(whole: bytes) -> bytes:
    return whole[: whole.rindex(b',\n"checksum"')]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"run":{', b'"ran":{'),
        lambda text: text.replace(b'"log":[', b'"log":[7,'),
        lambda text: text.replace(b'"log":[', b'"log":{'),
        lambda text: text.replace(b'"fence":', b'"fens":'),
        lambda text: text.replace(b'"sum":"', b'"sum":"xx'),
        lambda text: text.replace(b'{"flujo":2,', b'{"flujo":"two",'),
        lambda text: text[: len(text) // 2],
        lambda text: b"",
    ],
)
def test_a_file_that_is_sealed_but_is_no_state(files: Disk, change: Callable[[bytes], bytes]) -> None:
    """Whatever the checksum says, what cannot be read is an error of flujo's."""
    path = files.half()
    whole = path.read_bytes()
    replace(path, sealed(change(body(whole))))
    refused(files)
    replace(path, whole)
    files.goes_on()


def test_rows_of_a_sealed_file_are_checked_all_the_same(files: Disk) -> None:
    """An output that was changed by somebody who can compute the file's checksum fails the run's own chain."""
    path = files.half()
    text = body(path.read_bytes())
    changed = text.replace(b'"output":"[\\"a\\"]"', b'"output":"[\\"x\\"]"')
    assert changed != text
    replace(path, sealed(changed))
    assert "checksum" in str(refused_somewhere(files))


def refused_somewhere(disk: Disk) -> FlujoError:
    """Return the error, which names the directory where the file itself is whole."""
    with pytest.raises(StateCorruptedError) as caught:
        asyncio.run(disk.open().load_state("r"))
    assert explains(caught.value, disk.path, "'r'")
    return caught.value


def test_a_state_file_of_a_newer_flujo(files: Disk) -> None:
    """It says to upgrade, and the file stays as it is."""
    path = files.half()
    whole = path.read_bytes()
    newer = sealed(body(whole).replace(b'{"flujo":2,', b'{"flujo":3,'))
    replace(path, newer)
    assert "newer flujo" in str(refused(files, kind=StoreFormatError))
    assert path.read_bytes() == newer
    replace(path, whole)
    files.goes_on()


def test_two_state_files_swapped(files: Disk) -> None:
    """A run's file in the place of another's is refused on both sides."""
    files.half("other")
    path, other = files.half("r"), files.file("other")
    mine, theirs = path.read_bytes(), other.read_bytes()
    replace(path, theirs)
    replace(other, mine)
    assert "it holds run 'other'" in str(refused(files, "r"))
    assert "it holds run 'r'" in str(refused(files, "other"))
    replace(path, mine)
    files.goes_on()


def test_a_damaged_file_does_no_harm_to_other_runs(files: Disk) -> None:
    """They start, go on and are read; a listing names the file, until it is deleted or put right."""
    path = files.half("r")
    files.half("other")
    whole = path.read_bytes()
    flip(path, 100)
    assert files.run("new").output == ["a", "b", "c"]
    files.calls.clear()
    files.goes_on("other")
    with pytest.raises(StateCorruptedError) as caught:
        asyncio.run(files.open().list_runs())
    assert explains(caught.value, path)
    replace(path, whole)
    assert {run.run_id for run in asyncio.run(files.open().list_runs())} == {"new", "other", "r"}


def test_a_run_that_is_deleted_while_all_are_listed(files: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process deletes it between the look into the directory and the look into the file."""
    path = files.half("r")
    files.run("other")
    read = Path.read_bytes

    def vanishing(file: Path) -> bytes:
        if file == path:
            file.unlink()
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", vanishing)
    assert [run.run_id for run in asyncio.run(files.open().list_runs())] == ["other"]


def test_a_deleted_state_file_is_no_run(files: Disk) -> None:
    """What the error says can be done: deleted, the run starts again."""
    path = files.half()
    flip(path, 100)
    refused(files)
    path.unlink()
    assert files.run().output == ["a", "b", "c"] and files.calls == ["a", "b", "c"]


def test_what_else_lies_in_the_directory_is_left_alone(files: Disk) -> None:
    """Temporary files of processes that are gone are removed, other people's files are not, and they are no runs."""
    files.half()
    (files.path / "README").write_text("mine")
    (files.path / ".r.json.999.part").write_text("torn")
    (files.path / ".mine.part").write_text("mine")
    (files.path / "folder").mkdir()
    files.goes_on()
    assert {run.run_id for run in asyncio.run(files.open().list_runs())} == {"r"}
    names = {path.name for path in files.path.iterdir()}
    assert names == {"r.json", ".flujo-locks", "README", ".mine.part", "folder"}


@pytest.mark.parametrize("content", [b"garbage", b"1", b"-0000000000000000001", b"0" * 19 + b"x"])
def test_a_lock_file_with_something_else_in_it(files: Disk, content: bytes) -> None:
    """It holds the number of the last owner; where it does not, nobody writes before it is deleted."""
    files.half()
    locks = files.path / ".flujo-locks"
    locks.write_bytes(content)
    with pytest.raises(StoreFormatError) as caught:
        files.run()
    assert explains(caught.value, locks) and files.calls == []
    files.close()
    locks.unlink()
    files.goes_on()


def test_any_json_tool_reads_a_state_file(files: Disk) -> None:
    """The part for people comes first: the fields of WorkflowState as they stand, context and output included."""
    data = json.loads(files.half().read_text(encoding="utf-8"))
    assert list(data)[:2] == ["flujo", "run_id"]
    shown = {name: data[name] for name in ("run_id", "pipeline_name", "status", "current_step_index", "total_steps")}
    assert shown == {
        "run_id": "r", "pipeline_name": "abc", "status": "failed", "current_step_index": 1, "total_steps": 3
    }  # fmt: skip
    assert data["last_step_output"] == ["a"] and data["pipeline_context"] == {}
    assert data["error_message"] == "ConnectionError: b is broken"
    assert {"pipeline_id", "pipeline_version", "created_at", "updated_at"} <= data.keys()


# --- a SQLite file as a whole ----------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Any:
    disk = Disk("sqlite", tmp_path)
    yield disk
    disk.close()


@pytest.mark.slow
def test_a_database_cut_anywhere(database: Disk) -> None:
    """Its beginning alone, of any length but none at all, is an error that names the file; whole, the run goes on."""
    path = database.half()
    whole = path.read_bytes()
    pages = len(whole) // 4096
    lengths = {page * 4096 + more for page in range(pages) for more in (0, 1, 100, 2048, 4095)} | {1, 15, 16, 99, 511}
    for length in sorted(lengths - {0}):
        replace(path, whole[:length])
        with pytest.raises(StateError) as caught:
            asyncio.run(database.open().load_state("r"))
        assert isinstance(caught.value, (StateCorruptedError, StoreFormatError)) and explains(caught.value, path)
        with pytest.raises(StateError):
            database.run()
        database.close()
    assert database.calls == []
    replace(path, whole)
    database.goes_on()


def test_a_database_that_was_emptied(database: Disk) -> None:
    """An empty file is a new database to SQLite, which would also delete the log beside it; flujo knows better."""
    path = database.half()
    whole = path.read_bytes()
    replace(path, b"")
    assert "there was a store in it" in str(refused(database))
    assert path.read_bytes() == b""
    database.close()
    replace(path, whole)
    database.goes_on()


def test_a_database_and_its_lock_file_deleted_on_purpose(database: Disk) -> None:
    """What the error says can be done: without both files a new store begins."""
    path = database.half()
    replace(path, b"")
    refused(database)
    database.close()
    for file in path.parent.iterdir():
        file.unlink()
    assert database.run().output == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["runs.db-wal", "runs.db-shm"])
def test_a_log_beside_the_database_that_is_not_its_own(database: Disk, name: str) -> None:
    """SQLite knows its own log by its salt; what else lies there is not read."""
    path = database.half()
    path.with_name(name).write_bytes(b"garbage" * 5000)
    database.goes_on()


def test_an_index_that_does_not_lead_to_the_run(database: Disk) -> None:
    """A run that is there but is not found by its run_id is not begun anew; the check of the store tells of it."""
    database.run("q")
    database.run("s")
    path = database.half("r")
    whole = path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        page = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_flujo_run_1'"
        ).fetchone()[0]
    start = (page - 1) * 4096
    places = [start + at for at, byte in enumerate(whole[start : start + 4096]) if byte == ord("r")]
    assert len(places) == 1
    for byte in (b"!", b"R", b"q", b"x", b"\x7f"):
        replace(path, whole[: places[0]] + byte + whole[places[0] + 1 :])
        error = refused(database)
        assert "index" in str(error) and "'r'" in str(error)
        problems = asyncio.run(database.open().check_integrity())
        assert any("index" in line and "'r'" in line for line in problems), problems
        database.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("REINDEX")
    database.goes_on()


def test_a_run_under_the_name_of_another(database: Disk) -> None:
    """Two rows by one run_id, of which the index knows one: the check of the store tells of the other."""
    database.run("first-q")
    path = database.half("first-r")
    whole = path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'flujo_run'").fetchone()
    table = slice((page - 1) * 4096, page * 4096)
    assert whole[table].count(b"first-q") == 1
    changed = bytearray(whole)
    changed[table] = whole[table].replace(b"first-q", b"first-r")
    replace(path, bytes(changed))
    problems = asyncio.run(database.open().check_integrity())
    assert any("'first-r'" in line and "an index" in line for line in problems), problems
    database.close()
    replace(path, whole)
    database.goes_on("first-r")


def test_a_store_taken_away_while_it_is_used(disk: Disk) -> None:
    """A run notices at its next save: it stops, and what it has saved goes on where the store is put back."""
    taken = disk.root / "taken"

    class Thief(list[str]):
        def append(self, name: str) -> None:
            disk.calls.append(name)
            if name == "b":
                taken.mkdir()
                for path in [disk.path] if disk.kind == "file" else list(disk.path.parent.iterdir()):
                    shutil.move(path, taken)

    with pytest.raises(StateError) as caught:
        Flujo(abc(Thief()), state_backend=disk.open()).run([], run_id="r")
    assert explains(caught.value, disk.path) and "removed or replaced" in str(caught.value)
    assert not isinstance(caught.value, SaveError) and disk.calls == ["a", "b"]
    disk.close()
    for path in list(taken.iterdir()):
        shutil.move(path, disk.path.parent)
    disk.calls.clear()
    disk.goes_on()
