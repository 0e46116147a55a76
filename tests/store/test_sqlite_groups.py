"""How the SQLite store writes: in groups, in order, and each failure for itself."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from store_support import PAYLOAD, ended, make_job, make_summary, remembered, settle

from comfyproxy.core.jobs import Payload
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.store import job_rows
from comfyproxy.store.sqlite import SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "jobs.db")
    await store.open()
    yield store
    await store.close()


def held_up(monkeypatch: pytest.MonkeyPatch, function: str) -> tuple[threading.Event, threading.Event]:
    """Hold up every call of one of `job_rows`: returns what says that it has begun, and what lets it go on."""
    begun, go_on = threading.Event(), threading.Event()
    original: Callable[..., Any] = getattr(job_rows, function)

    def slow(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return original(*args, **kwargs)

    monkeypatch.setattr(job_rows, function, slow)
    return begun, go_on


async def test_what_waits_together_is_committed_together(store: SqliteStore) -> None:
    await asyncio.gather(*(store.insert(make_job(f"{index}", index), PAYLOAD) for index in range(500)))
    assert store.commits < 50
    assert len(await store.unfinished()) == 500


async def test_changes_are_made_in_the_order_of_the_calls(store: SqliteStore) -> None:
    await asyncio.gather(
        store.insert(make_job("p", 1), PAYLOAD),
        store.discard("p"),
        store.insert(make_job("p", 2), PAYLOAD),
        store.update(make_job("p", 3)),
        settle(store, "q"),
        store.clear_history(),
        settle(store, "r"),
    )
    assert await store.get("p") == make_job("p", 3)
    assert await remembered(store) == ["r"]


async def test_a_read_sees_every_write_that_was_awaited(store: SqliteStore) -> None:
    async def write_and_read(prompt_id: str) -> None:
        await store.insert(make_job(prompt_id), PAYLOAD)
        assert await store.get(prompt_id) == make_job(prompt_id)
        await settle(store, prompt_id)
        assert prompt_id in await remembered(store)

    await asyncio.gather(*(write_and_read(f"{index}") for index in range(50)))


async def test_one_bad_change_does_not_spoil_its_neighbours(store: SqliteStore) -> None:
    bad = Payload(graph=None)  # type: ignore[arg-type]
    results = await asyncio.gather(
        store.insert(make_job("a"), PAYLOAD),
        store.insert(make_job("bad"), bad),
        store.insert(make_job("b"), PAYLOAD),
        return_exceptions=True,
    )
    assert results[0] is None
    assert isinstance(results[1], StoreUnavailable)
    assert "jobs.db" in str(results[1])
    assert "NOT NULL" in str(results[1])
    assert results[2] is None
    assert [job.prompt_id for job in await store.unfinished()] == ["a", "b"]


async def test_a_change_that_fails_half_way_leaves_nothing_of_itself(store: SqliteStore) -> None:
    await store.insert(make_job("p"), PAYLOAD)
    with pytest.raises(StoreUnavailable):
        await store.settle(ended(make_job("p")), b"{}", make_summary("p", item=None))
    assert await store.get("p") == make_job("p")
    assert await store.payloads(["p"]) == {"p": PAYLOAD}
    assert await remembered(store) == []


async def test_a_bug_reaches_its_caller_as_it_is(store: SqliteStore) -> None:
    with pytest.raises(KeyError):
        await store.summaries(
            statuses=frozenset(), workflow_id=None, sort_by="colour", descending=True, limit=None, offset=0
        )
    with pytest.raises(TypeError):
        await store.settle(ended(make_job("p")), 5, make_summary("p"))  # type: ignore[arg-type]
    await settle(store, "q")
    assert await remembered(store) == ["q"]


async def test_what_was_called_is_written_though_its_caller_is_gone(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = held_up(monkeypatch, "insert")
    first = asyncio.create_task(store.insert(make_job("a"), PAYLOAD))
    await asyncio.to_thread(begun.wait)
    second = asyncio.create_task(store.insert(make_job("b"), PAYLOAD))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await asyncio.wait([first, second])
    go_on.set()
    await store.set_meta("later", "1")
    assert [job.prompt_id for job in await store.unfinished()] == ["a", "b"]


async def test_closing_writes_what_is_outstanding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    await store.open()
    begun, go_on = held_up(monkeypatch, "insert")
    first = asyncio.create_task(store.insert(make_job("a"), PAYLOAD))
    await asyncio.to_thread(begun.wait)
    others = [asyncio.create_task(store.insert(make_job(prompt_id), PAYLOAD)) for prompt_id in "bc"]
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(closing, first, *others)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.get("a")
    await store.open()
    assert [job.prompt_id for job in await store.unfinished()] == ["a", "b", "c"]
    await store.close()


async def test_a_long_list_holds_up_neither_writes_nor_single_jobs(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settle(store, "old")
    begun, go_on = held_up(monkeypatch, "history")
    long_list = asyncio.create_task(store.history(max_items=None, offset=0))
    await asyncio.to_thread(begun.wait)
    await settle(store, "new")
    assert await store.history_entry("new") is not None
    assert not long_list.done()
    go_on.set()
    assert [prompt_id for prompt_id, _ in await long_list] in (["old"], ["old", "new"])


async def test_large_entries_are_packed_and_small_ones_are_not(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    await store.open()
    large = b'{"x": "' + b"y" * 1_000_000 + b'"}'
    await store.settle(ended(make_job("small")), b"{}", make_summary("small"))
    await store.settle(ended(make_job("large")), large, make_summary("large"))
    await store.close()
    with sqlite3.connect(tmp_path / "jobs.db") as db:
        sizes = db.execute("SELECT packed, length(entry) FROM documents ORDER BY settled").fetchall()
    db.close()
    assert sizes[0] == (0, 2)
    assert sizes[1][0] == 1
    assert sizes[1][1] < 20_000
