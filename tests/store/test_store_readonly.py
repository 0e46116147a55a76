"""A store is read without disturbing the proxy that has it open."""

import sqlite3
from pathlib import Path

import pytest
from store_support import PAYLOAD, entry_of, make_job, settle

from comfyproxy.core.jobs import JobState
from comfyproxy.core.ports import StoreError, StoreUnavailable
from comfyproxy.store import readonly
from comfyproxy.store.readonly import settled_jobs
from comfyproxy.store.schema import APPLICATION_ID
from comfyproxy.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "comfyproxy.sqlite3"


async def fill(store: SqliteStore, *prompt_ids: str) -> None:
    for prompt_id in prompt_ids:
        await store.insert(make_job(prompt_id), PAYLOAD)
        await settle(store, prompt_id)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


async def test_what_has_ended_is_read_while_the_store_is_open_and_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readonly, "_PORTION", 2)
    store = SqliteStore(path)
    await store.open()
    await fill(store, "a", "b")
    await store.insert(make_job("waits"), PAYLOAD)
    reading = settled_jobs(path)
    job, entry = next(reading)
    assert (job.prompt_id, job.state, entry) == ("a", JobState.SUCCEEDED, entry_of("a"))
    await fill(store, "c")
    assert [job.prompt_id for job, _ in reading] == ["b", "c"]
    await store.close()


async def test_it_is_read_in_portions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readonly, "_PORTION", 2)
    store = SqliteStore(path)
    await store.open()
    await fill(store, *"abcde")
    assert [job.prompt_id for job, _ in settled_jobs(path)] == [*"abcde"]
    await store.close()


async def test_a_closed_store_is_read_without_a_trace_of_it(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    await fill(store, "a")
    await store.close()
    before = files(path.parent)
    assert len(list(settled_jobs(path))) == 1
    assert files(path.parent) == before


async def test_a_proxy_that_starts_meanwhile_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readonly, "_PORTION", 1)
    store = SqliteStore(path)
    await store.open()
    await fill(store, "a", "b")
    await store.close()
    reading = settled_jobs(path)
    next(reading)
    again = SqliteStore(path)
    await again.open()
    with pytest.raises(StoreError, match="in the meantime: try again"):
        next(reading)
    await again.close()


def test_what_is_no_store_is_told(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        list(settled_jobs(path))
    path.write_bytes(b"x" * 5000)
    with pytest.raises(StoreError, match="is not a database"):
        list(settled_jobs(path))


def test_one_of_an_earlier_version_is_told(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("CREATE TABLE jobs (x)")
    db.close()
    with pytest.raises(StoreError, match="is of an earlier version"):
        list(settled_jobs(path))


async def test_a_damaged_one_is_told(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    await fill(store, "a")
    await store.close()
    db = sqlite3.connect(path)
    db.execute("DROP TABLE documents")
    db.commit()
    db.close()
    with pytest.raises(StoreUnavailable, match="documents"):
        list(settled_jobs(path))
