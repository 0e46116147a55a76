"""What the SQLite store makes of a disk that is full, locked, read-only or not there, and how it goes on after."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from store_support import PAYLOAD, entry_of, make_job, remembered, settle

from comfyproxy.core.jobs import Payload
from comfyproxy.core.ports import StoreError, StoreUnavailable
from comfyproxy.store import database, sqlite
from comfyproxy.store.sqlite import SqliteStore

HUGE = Payload(graph=b"x" * 8_000_000)
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits and permissions")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "jobs.db", busy_timeout_s=0.02)
    await store.open()
    yield store
    await store.close()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as a quota does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Forbid to write into a folder, also where the tests run as root."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


async def unfinished(store: SqliteStore) -> list[str]:
    return [job.prompt_id for job in await store.unfinished()]


@posix_only
async def test_when_the_disk_is_full_the_store_says_so_and_goes_on_when_there_is_room(store: SqliteStore) -> None:
    await store.insert(make_job("before"), PAYLOAD)
    with files_up_to(1_000_000):
        with pytest.raises(StoreUnavailable, match=r"jobs\.db failed: the disk .*full"):
            await store.insert(make_job("huge"), HUGE)
        assert await unfinished(store) == ["before"]
    await store.insert(make_job("huge"), HUGE)
    assert await store.payloads(["huge"]) == {"huge": HUGE}


@posix_only
async def test_on_a_full_disk_what_fits_is_written_though_its_neighbour_does_not(store: SqliteStore) -> None:
    with files_up_to(1_000_000):
        results = await asyncio.gather(
            store.insert(make_job("a"), PAYLOAD),
            store.insert(make_job("huge"), HUGE),
            store.insert(make_job("b"), PAYLOAD),
            return_exceptions=True,
        )
    assert [type(result) for result in results] == [type(None), StoreUnavailable, type(None)]
    assert await unfinished(store) == ["a", "b"]


@posix_only
async def test_numbers_go_on_after_a_full_disk(store: SqliteStore) -> None:
    numbers: list[int] = []

    def take_all() -> None:
        while True:
            numbers.append(store.next_number())

    with files_up_to(0), pytest.raises(StoreUnavailable, match="queue numbers"):
        take_all()
    assert numbers == list(range(len(numbers)))
    assert store.next_number() == len(numbers)


async def test_a_database_that_may_not_grow_is_unavailable_until_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full = False

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = database.connect(*args, **kwargs)
        if is_full:
            connection.execute("PRAGMA max_page_count = 1")  # SQLite takes it for the present size
        return connection

    monkeypatch.setattr(sqlite, "connect", connect)
    store = SqliteStore(tmp_path / "jobs.db")
    await store.open()
    await store.close()  # the tables are there
    is_full = True
    await store.open()
    results = await asyncio.gather(
        *(store.insert(make_job(f"{index}"), HUGE) for index in range(3)), return_exceptions=True
    )
    assert ["the disk is full" in str(result) for result in results] == [True] * 3
    is_full = False
    await store.insert(make_job("a"), HUGE)
    assert await unfinished(store) == ["a"]
    await store.close()


async def test_a_lock_of_another_program_is_waited_for_and_named(store: SqliteStore, tmp_path: Path) -> None:
    await settle(store, "before")
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(
            *(store.insert(make_job(prompt_id), PAYLOAD) for prompt_id in "ab"), return_exceptions=True
        )
        assert all("another program has it locked" in str(result) for result in results)
        assert await remembered(store) == ["before"]  # to read needs no lock
        other.execute("ROLLBACK")
    await store.insert(make_job("a"), PAYLOAD)
    assert await unfinished(store) == ["a"]


async def test_all_who_wait_for_a_lock_wait_for_it_together(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db", busy_timeout_s=0.1)
    await store.open()
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(10):  # one after the other would take 50 seconds
            writes = (store.insert(make_job(f"{index}"), PAYLOAD) for index in range(500))
            results = await asyncio.gather(*writes, return_exceptions=True)
        other.execute("ROLLBACK")
    assert {type(result) for result in results} == {StoreUnavailable}
    await store.close()


async def test_a_short_lock_of_another_program_is_not_noticed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db", busy_timeout_s=30)
    await store.open()
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(store.insert(make_job("a"), PAYLOAD))
        await asyncio.sleep(0)
        other.execute("COMMIT")
        await writing
    assert await unfinished(store) == ["a"]
    await store.close()


async def test_a_damaged_entry_is_unavailable_and_the_others_are_not(store: SqliteStore, tmp_path: Path) -> None:
    for prompt_id in ("a", "b"):
        await settle(store, prompt_id)
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("UPDATE documents SET packed = 1 WHERE settled = 1")
    with pytest.raises(StoreUnavailable, match="is damaged"):
        await store.history_entry("a")
    assert await store.history_entry("b") == entry_of("b")


# Places where no store can be


async def test_the_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "new" / "folder" / "jobs.db")
    await store.open()
    await store.close()
    assert (tmp_path / "new" / "folder" / "jobs.db").exists()


@posix_only
async def test_a_folder_that_may_not_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    store = SqliteStore(folder / "jobs.db")
    with read_only(folder), pytest.raises(StoreUnavailable, match=r"data/jobs\.db .*Permission denied"):
        await store.open()
    await store.open()  # it can be tried again
    await store.close()


async def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StoreUnavailable, match="data"):
        await SqliteStore(tmp_path / "data" / "jobs.db").open()


async def test_a_folder_in_the_place_of_the_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").mkdir()
    with pytest.raises(StoreUnavailable, match=r"jobs\.db failed: it cannot be opened"):
        await SqliteStore(tmp_path / "jobs.db").open()


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path, content = tmp_path / "jobs.db", b"my holiday pictures " * 500
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"jobs\.db is not a database; move it away"):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    content = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


def test_a_wrong_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="synchronous must be full or normal"):
        SqliteStore(tmp_path / "jobs.db", synchronous="off")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        SqliteStore(tmp_path / "jobs.db", max_history=-1)
