"""The store in an SQLite file: durable, on one machine, for one process at a time.

One thread writes. All changes that wait while it commits become the next transaction, so that a burst costs few waits
for the disk. Two threads read, one for single jobs and one for long lists: neither holds up the writer (write-ahead
log), nor a list the polling of single jobs. What a commit has acknowledged, all later reads see.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from sqlite3 import Error as SqliteError
from typing import Final, TypeVar

from comfyproxy.core.files import FileRecord, FileRef
from comfyproxy.core.jobs import BackendId, Job, Payload
from comfyproxy.core.ports import JobSummary, StoreError, StoreInUse, StoreUnavailable
from comfyproxy.store import file_rows, job_rows
from comfyproxy.store.database import Synchronous, connect, is_no_database, transaction, unavailable
from comfyproxy.store.lock import FileLock
from comfyproxy.store.numbers import BLOCK
from comfyproxy.store.rows import from_job
from comfyproxy.store.schema import check, migrate
from comfyproxy.store.states import check_terminal, check_unfinished
from comfyproxy.store.threads import NUMBER, Threads

T = TypeVar("T")

MAX_FILES: Final = 100_000


class SqliteStore:
    """Implements JobStore and FileIndex.

    Args:
        path: the database; its folder is made if it is not there. `<path>.lock` beside it keeps others out.
        max_history: how many jobs that have ended are kept, the cancelled ones included.
        synchronous: "full" waits for the disk on every commit; "normal" does not: what was acknowledged survives the
            death of the process, but the last changes may be lost when the machine loses its power.
        busy_timeout_s: how long to wait while another program has the file locked.
        max_files: how many files are known to the index, with their copies; those not mentioned for longest are
            forgotten, some hundreds late. A forgotten file is only looked for again on the backends.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_history: int = 10_000,
        synchronous: Synchronous = "full",
        busy_timeout_s: float = 5.0,
        max_files: int = MAX_FILES,
    ) -> None:
        if synchronous not in ("full", "normal"):
            raise ValueError(f"synchronous must be full or normal, not {synchronous!r}")
        if max_history < 0 or max_files < 0:
            raise ValueError("max_history and max_files must not be negative")
        self._path = path.resolve()  # one lock for all names of a file
        self._max_history, self._max_files = max_history, max_files
        self._connect = partial(connect, self._path, synchronous=synchronous, busy_timeout_s=busy_timeout_s)
        self._opening: asyncio.Future[int] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._lock: FileLock | None = None
        self._threads: Threads | None = None

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path} {'closed' if self._threads is None else 'open'}>"

    @property
    def commits(self) -> int:
        """How many transactions were committed since the store was opened."""
        return 0 if self._threads is None else self._threads.writer.commits

    # Opening and closing

    async def open(self) -> None:
        """Lock the file, bring its tables up to date, and start the threads.

        Raises StoreInUse if it is open already, here or in another process; StoreError, with what to do, if the file is
        not ours or newer than we are; StoreUnavailable if it cannot be read or written. Whoever cancels it must close.
        """
        if self._opening is not None:
            raise StoreInUse(f"the store {self._path} is open already")
        # Not a task: the end of a loop would cancel it, and nobody would know of the lock that it took.
        self._opening = asyncio.get_running_loop().run_in_executor(None, self._prepare)
        try:
            start = await asyncio.shield(self._opening)
        except StoreError:
            self._opening = None
            raise
        self._threads = Threads(self._path, self._connect, start)

    def _prepare(self) -> int:
        """Make the file ready, and return the first queue number, BLOCK of which are reserved then."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock.acquire(self._path)
            try:
                start = self._prepare_file()
            except BaseException:
                lock.release()
                raise
        except (SqliteError, OSError) as exc:
            if is_no_database(exc):
                raise StoreError(f"{self._path} is not a database; move it away, or choose another path") from exc
            raise unavailable(self._path, exc) from exc
        self._lock = lock
        return start

    def _prepare_file(self) -> int:
        if not self._path.exists():
            self._path.touch()
        with contextlib.closing(self._connect()) as db:
            check(db, self._path)  # before the next line changes a file that is not ours
            if (mode := db.execute("PRAGMA journal_mode = wal").fetchone()[0]) != "wal":
                raise StoreError(
                    f"{self._path}: its file system cannot hold a write-ahead log ({mode}); use a local disk"
                )
            migrate(db, self._path)
            with transaction(db):
                job_rows.trim(db, self._max_history)
                file_rows.trim_files(db, self._max_files)
                start = file_rows.counter(db, NUMBER)
                file_rows.set_counter(db, NUMBER, start + BLOCK)
        return start

    async def close(self) -> None:
        """Write what is outstanding, give unused queue numbers back, and let go of the file. Safe to call twice."""
        if self._opening is None:
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(self._opening))
        await asyncio.shield(self._closing)

    async def _close(self, opening: asyncio.Future[int]) -> None:
        try:
            await asyncio.wait([opening])  # it may have been given up half way
            opening.exception()  # whoever opened has seen it, or does not care
            if (threads := self._threads) is not None:
                self._threads = None
                await threads.stop()
        finally:
            if self._lock is not None:
                self._lock.release()
            self._lock = self._opening = self._closing = None

    # Small things

    async def get_meta(self, key: str) -> str | None:
        return await self._look_up(partial(file_rows.meta, key=key))

    async def set_meta(self, key: str, value: str) -> None:
        await self._write(partial(file_rows.set_meta, key=key, value=value))

    def next_number(self) -> int:
        """Return the next queue number.

        Numbers are reserved in blocks, so after a crash some are left out. Raises StoreUnavailable if the reserve is
        used up and the disk refuses to extend it.
        """
        return self._open_threads().numbers.take()

    # Unfinished jobs

    async def insert(self, job: Job, payload: Payload) -> None:
        """Write a new job; the latest wins where the id is known already."""
        check_unfinished(job)
        await self._write(partial(job_rows.insert, row=from_job(job), payload=payload))

    async def update(self, job: Job) -> None:
        """Write a job's new state; a job that has ended or is not known stays so."""
        check_unfinished(job)
        await self._write(partial(job_rows.update, row=from_job(job)))

    async def discard(self, prompt_id: str) -> None:
        """Remove a job that was never accepted; one that has ended stays."""
        await self._write(partial(job_rows.discard, prompt_id=prompt_id))

    async def get(self, prompt_id: str) -> Job | None:
        return await self._look_up(partial(job_rows.job, prompt_id=prompt_id))

    async def payloads(self, prompt_ids: Sequence[str]) -> dict[str, Payload]:
        read = self._look_up if len(prompt_ids) == 1 else self._list
        return await read(partial(job_rows.payloads, prompt_ids=tuple(prompt_ids)))

    async def unfinished(self) -> list[Job]:
        return await self._list(job_rows.unfinished)

    # Settled jobs

    async def settle(self, job: Job, entry: bytes, summary: JobSummary) -> None:
        """Write a job that has ended; the latest wins where it had ended before."""
        check_terminal(job)
        await self._settle(job, (entry, summary))

    async def cancel(self, job: Job) -> None:
        """Write a job that was cancelled before it ran; it counts as one that has ended."""
        check_terminal(job)
        await self._settle(job, None)

    async def _settle(self, job: Job, end: tuple[bytes, JobSummary] | None) -> None:
        await self._write(partial(job_rows.settle, row=from_job(job), end=end, max_history=self._max_history))

    async def history_entry(self, prompt_id: str) -> bytes | None:
        return await self._look_up(partial(job_rows.history_entry, prompt_id=prompt_id))

    async def history(self, *, max_items: int | None, offset: int) -> list[tuple[str, bytes]]:
        return await self._list(partial(job_rows.history, max_items=max_items, offset=offset))

    async def delete_history(self, prompt_ids: Sequence[str]) -> None:
        await self._write(partial(job_rows.delete_history, prompt_ids=tuple(prompt_ids)))

    async def clear_history(self) -> None:
        await self._write(job_rows.clear_history)

    async def summary(self, prompt_id: str) -> JobSummary | None:
        return await self._look_up(partial(job_rows.summary, prompt_id=prompt_id))

    async def summaries(
        self,
        *,
        statuses: frozenset[str],
        workflow_id: str | None,
        sort_by: str,
        descending: bool,
        limit: int | None,
        offset: int,
    ) -> tuple[list[JobSummary], int]:
        page = job_rows.Page(
            statuses=statuses,
            workflow_id=workflow_id,
            sort_by=sort_by,
            descending=descending,
            limit=limit,
            offset=offset,
        )
        return await self._list(partial(job_rows.summaries, page=page))

    # Files

    async def remember_file(self, record: FileRecord) -> None:
        await self._write(partial(file_rows.remember_file, record=record, max_files=self._max_files))

    async def file(self, ref: FileRef) -> FileRecord | None:
        return await self._look_up(partial(file_rows.file, ref=ref))

    async def remember_copy(self, ref: FileRef, backend: BackendId, digest: str) -> None:
        work = partial(file_rows.remember_copy, ref=ref, backend=backend, digest=digest, max_files=self._max_files)
        await self._write(work)

    async def copies(self, ref: FileRef) -> dict[BackendId, str]:
        return await self._look_up(partial(file_rows.copies, ref=ref))

    # Ways to the threads

    def _open_threads(self) -> Threads:
        if self._threads is None:
            raise StoreUnavailable(f"the store {self._path} is not open")
        return self._threads

    async def _write(self, work: Callable[[Connection], T]) -> T:
        return await self._open_threads().writer.do(work)

    async def _look_up(self, work: Callable[[Connection], T]) -> T:
        return await self._open_threads().lookups.do(work)

    async def _list(self, work: Callable[[Connection], T]) -> T:
        return await self._open_threads().lists.do(work)
