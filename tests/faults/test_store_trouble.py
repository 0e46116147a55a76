"""The store fails under a running proxy: nothing new is taken in, what runs goes to its end, and people are told."""

import asyncio
import logging
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from proxying import Fleet, Proxy, running_proxy
from simulator_support import sampling, text

from comfyproxy.app import DATABASE
from comfyproxy.core.ports import StoreError
from comfyproxy.store.sqlite import SqliteStore

Trouble = Callable[[Path], AbstractContextManager[None]]

ENDS = ("execution_success", "execution_error", "execution_interrupted")


@contextmanager
def full_disk(database: Path) -> Iterator[None]:
    """Let no file of this process grow beyond what a small picture needs."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def locked_by_another(database: Path) -> Iterator[None]:
    """Let another program hold the file."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def damaged(database: Path) -> Iterator[None]:
    """Let the file hold garbage, until a backup is put in its place."""
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = database.read_bytes()
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (len(whole) - 4096))
    try:
        yield
    finally:
        with database.open("r+b") as file:
            file.write(whole)


TROUBLES = [
    pytest.param(
        full_disk,
        "full",
        marks=pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits"),
        id="full disk",
    ),
    pytest.param(locked_by_another, "locked", id="locked"),
    pytest.param(damaged, "damaged", id="damaged"),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait but shortly for a lock."""
    defaults = SqliteStore.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "busy_timeout_s", 0.1)


async def refused(proxy: Proxy, prompt_id: str) -> None:
    status, answer = await proxy.post("/prompt", {"prompt": text(prompt_id), "prompt_id": prompt_id})
    assert status == 503, answer
    assert answer["error"]["type"]
    assert answer["error"]["message"]


@pytest.mark.parametrize(("trouble", "said"), TROUBLES)
async def test_new_prompts_are_refused_and_the_operator_is_told_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Trouble, said: str
) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        await proxy.ended(await proxy.submit(text("before"), "me"))
        prompt_id = str(uuid.uuid4())
        with trouble(tmp_path / DATABASE):
            await refused(proxy, prompt_id)
            await refused(proxy, prompt_id)
        assert fleet["a"].executed.count(prompt_id) == 0
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert any(DATABASE in error and said in error for error in errors), errors
        # As soon as the store works, so does everything; the refused one has left no trace.
        assert await proxy.get(f"/history/{prompt_id}") == {}
        _, answer = await proxy.post("/prompt", {"prompt": text(prompt_id), "prompt_id": prompt_id})
        assert answer["prompt_id"] == prompt_id
        await proxy.ended(prompt_id)
        assert fleet["a"].executed.count(prompt_id) == 1


@pytest.mark.parametrize(("trouble", "said"), TROUBLES[:2])
async def test_what_runs_is_told_to_have_ended_once_that_is_stored(tmp_path: Path, trouble: Trouble, said: str) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(sampling(steps=40, seconds=8), "me")
        await socket.until_event("progress")
        with trouble(tmp_path / DATABASE):
            fleet["a"].hurry(1000.0)
            async with asyncio.timeout(10):
                while fleet["a"].process.history.entry(prompt_id) == {}:
                    await asyncio.sleep(0.01)
            await refused(proxy, str(uuid.uuid4()))
            assert not [frame for frame in socket.frames if frame["type"] in ENDS]
            assert prompt_id in str(await proxy.queue())
        await socket.until_done(prompt_id)
        assert [frame["type"] for frame in socket.frames if frame["type"] in ENDS] == ["execution_success"]
        assert (await proxy.ended(prompt_id))["status"]["completed"]
        assert fleet["a"].executed == [prompt_id]


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 100, b""])
async def test_a_proxy_does_not_start_on_a_file_that_is_not_its_own(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DATABASE).write_bytes(content)
    async with Fleet("a") as fleet:
        if content:
            with pytest.raises(StoreError, match=rf"{DATABASE} is not a database; move it away"):
                async with running_proxy(fleet, tmp_path):
                    pass
        else:
            async with running_proxy(fleet, tmp_path) as proxy:
                await proxy.ended(await proxy.submit(text(), "me"))


async def test_a_proxy_does_not_start_on_a_damaged_file_and_says_what_to_do(tmp_path: Path) -> None:
    async with Fleet("a") as fleet:
        async with running_proxy(fleet, tmp_path) as proxy:
            await proxy.ended(await proxy.submit(text(), "me"))
        with (
            damaged(tmp_path / DATABASE),
            pytest.raises(StoreError, match="damaged; restore a backup, or move it away"),
        ):
            async with running_proxy(fleet, tmp_path):
                pass
        async with running_proxy(fleet, tmp_path) as proxy:
            assert len(await proxy.get("/history")) == 1
