"""One process at a time, and what is left when it is killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_support import remembered

from comfyproxy.core.ports import StoreInUse
from comfyproxy.store.sqlite import SqliteStore

SUPPORT = Path(__file__).parent

HOLDER = """
import asyncio, sys
from pathlib import Path
from comfyproxy.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    print(store.next_number(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

# Says what is durable only once it is; many at once, so that it is killed in the middle of groups.
WRITER = """
import asyncio, os, sys
from pathlib import Path
from comfyproxy.store.sqlite import SqliteStore
from store_support import PAYLOAD, make_job, settle

def say(text):
    os.write(1, (text + "\\n").encode())

async def work(store, who):
    index = 0
    while True:
        number = store.next_number()
        say(f"number {number}")
        prompt_id = f"{who}-{index}"
        await store.insert(make_job(prompt_id, number), PAYLOAD)
        say(f"inserted {prompt_id}")
        if index % 2:
            await settle(store, prompt_id)
            say(f"settled {prompt_id}")
        index += 1

async def main():
    store = SqliteStore(Path(sys.argv[1]), max_history=10**6)
    await store.open()
    await asyncio.gather(*(work(store, f"{sys.argv[2]}-{who}") for who in range(20)))

asyncio.run(main())
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run a script beside us; it is killed in the end."""
    running = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(SUPPORT), *filter(None, sys.path)])},
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        if running.stdout is not None:
            running.stdout.close()


def line(running: "subprocess.Popen[str]") -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


async def test_a_second_process_is_refused_and_told_who_holds_the_store(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with process(HOLDER, path) as holder:
        assert line(holder) == "0"
        store = SqliteStore(path)
        with pytest.raises(StoreInUse, match=rf"jobs\.db is in use by another process \(pid {holder.pid}\)"):
            await store.open()
        holder.kill()
        holder.wait()
        await store.open()  # the lock died with its holder
        await store.close()


async def test_a_second_store_in_one_process_is_refused(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path / "jobs.db"), SqliteStore(tmp_path / "." / "jobs.db")
    await first.open()
    with pytest.raises(StoreInUse, match="this process"):
        await second.open()
    with pytest.raises(StoreInUse, match="open already"):
        await first.open()
    await first.close()
    await second.open()
    await second.close()


async def test_an_opening_that_was_given_up_can_be_closed(tmp_path: Path) -> None:
    store, other = SqliteStore(tmp_path / "jobs.db"), SqliteStore(tmp_path / "jobs.db")
    opening = asyncio.create_task(store.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await store.close()
    await other.open()
    await other.close()


def test_a_number_that_no_job_shows_does_not_come_again_after_a_kill(tmp_path: Path) -> None:
    numbers = []
    for _ in range(3):
        with process(HOLDER, tmp_path / "jobs.db") as holder:
            numbers.append(int(line(holder)))
    assert numbers[0] < numbers[1] < numbers[2]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
async def test_what_was_acknowledged_is_there_after_a_kill_and_no_number_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    inserted: set[str] = set()
    settled: set[str] = set()
    numbers: list[int] = []
    for life in range(3):
        with process(WRITER, path, life) as writer:
            said = [line(writer) for _ in range(2000)]
            writer.send_signal(signal.SIGKILL)
            assert writer.stdout is not None
            said += writer.stdout.read().split("\n")[:-1]
        for what, _, who in (text.partition(" ") for text in said):
            if what == "number":
                numbers.append(int(who))
            else:
                (inserted if what == "inserted" else settled).add(who)

    assert len(numbers) == len(set(numbers))
    store = SqliteStore(path, max_history=10**6)
    await store.open()
    assert store.next_number() > max(numbers)
    history = await remembered(store)
    assert settled <= set(history)
    unfinished = {job.prompt_id for job in await store.unfinished()}
    assert inserted - set(history) <= unfinished
    assert not unfinished & set(history)
    assert len(await store.payloads(sorted(unfinished))) == len(unfinished)
    await store.close()
