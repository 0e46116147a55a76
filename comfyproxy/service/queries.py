"""What clients ask about jobs, answered from the board and the store; no backend is asked.

Long answers are made and given away in parts, so that a queue of a hundred thousand graphs or a history of gigabytes is
never whole in memory.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from comfyproxy.core import jobs_api, rawjson
from comfyproxy.core.history import created_ms
from comfyproxy.core.jobs import Job
from comfyproxy.core.jobs_api import CREATED_AT, IN_PROGRESS, PENDING, SETTLED, JobsQuery
from comfyproxy.core.ports import JobStore, JobSummary
from comfyproxy.core.queue_items import in_queue_order, queue_item
from comfyproxy.service.rendered import Rendered

QUEUE_BATCH = 500  # jobs rendered at once
HISTORY_BATCH = 100  # entries read from the store at once
_OVERLAP = 20  # entries asked for again, in case the retention drops old ones meanwhile


class Board(Protocol):
    """The unfinished jobs."""

    version: int  # grows with every change that /queue shows

    @property
    def count(self) -> int: ...
    def job(self, prompt_id: str) -> Job | None: ...
    def is_running(self, prompt_id: str) -> bool: ...
    def unfinished(self) -> Iterable[Job]: ...  # in the order in which they came


class Backend(Protocol):
    """What matters of a backend here."""

    @property
    def shows_create_time(self) -> bool: ...


class Backends(Protocol):
    """All backends."""

    def get(self, backend_id: str | None) -> Backend | None: ...
    def ready(self) -> Sequence[Backend]: ...


@dataclass(frozen=True, slots=True)
class _View:
    """The unfinished jobs at one version of the board."""

    version: int
    running: Sequence[Job]  # in the order in which they started
    pending: Sequence[Job]  # in the order in which they came


# (sort key, whether it runs, the job)
_Unfinished = tuple[int, bool, Job]


class Queries:
    """Reads queue, history and jobs.

    A settled job must be in the store before it leaves the board, and must have left the board before its client is
    told: a job on the board is taken for unfinished without asking the store.

    Args:
        max_rendered_bytes: how much of the queue is kept rendered between polls.
        max_answer_bytes: an answer of GET /queue up to this size is kept until the queue changes.
    """

    def __init__(
        self,
        board: Board,
        store: JobStore,
        fleet: Backends,
        *,
        max_rendered_bytes: int = 32 * 1024 * 1024,
        max_answer_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._board, self._store, self._fleet = board, store, fleet
        self._rendered = Rendered(max_bytes=max_rendered_bytes)
        self._max_answer_bytes = max_answer_bytes
        self._view = _View(-1, (), ())
        self._answer: tuple[int, list[bytes]] | None = None  # version, parts

    def _now(self) -> _View:
        if self._view.version != self._board.version:
            running: list[Job] = []
            pending: list[Job] = []
            for job in self._board.unfinished():
                (running if self._board.is_running(job.prompt_id) else pending).append(job)
            running.sort(key=lambda job: job.started_s or 0.0)
            self._view = _View(self._board.version, running, pending)
        return self._view

    # Queue

    def queue_remaining(self) -> int:
        """Return how many jobs are unfinished."""
        return self._board.count

    async def queue(self) -> AsyncIterator[bytes]:
        """Yield the answer to GET /queue."""
        view = self._now()
        if self._answer is None or self._answer[0] != view.version:
            self._answer = None
            self._rendered.retain({job.prompt_id for job in (*view.running, *view.pending)})
            parts: list[bytes] = []
            size = 0
            async for part in self._queue_parts(view):
                size += len(part)
                if size <= self._max_answer_bytes:
                    parts.append(part)
                else:
                    parts.clear()
                yield part
            if size <= self._max_answer_bytes:
                self._answer = view.version, parts
        else:
            for part in self._answer[1]:
                yield part

    async def _queue_parts(self, view: _View) -> AsyncIterator[bytes]:
        yield b'{"queue_running": ['
        async for part in self._items(view.running):
            yield part
        yield b'], "queue_pending": ['
        async for part in self._items(in_queue_order(view.pending)):
            yield part
        yield b"]}"

    async def _items(self, jobs: Sequence[Job]) -> AsyncIterator[bytes]:
        """Yield the jobs' items, joined."""
        before = b""
        for start in range(0, len(jobs), QUEUE_BATCH):
            if items := await self._render(jobs[start : start + QUEUE_BATCH]):
                yield before + b", ".join(items)
                before = b", "
            await asyncio.sleep(0)  # a long queue must not hold up the events of others

    async def _render(self, jobs: Sequence[Job]) -> list[bytes]:
        ready = self._fleet.ready()
        default = ready[0].shows_create_time if ready else True
        shown = {}  # prompt id -> whether its create_time shows
        for job in jobs:
            backend = self._fleet.get(job.backend)
            shown[job.prompt_id] = default if backend is None else backend.shows_create_time
        kept = {job.prompt_id: self._rendered.get(job, create_time=shown[job.prompt_id]) for job in jobs}
        missing = [prompt_id for prompt_id, item in kept.items() if item is None]
        payloads = await self._store.payloads(missing) if missing else {}
        items = []
        for job in jobs:
            item, payload = kept[job.prompt_id], payloads.get(job.prompt_id)
            if item is None and payload is not None:  # without a payload it has ended since
                item = queue_item(job, payload, create_time=shown[job.prompt_id])
                self._rendered.put(job, item, create_time=shown[job.prompt_id])
            if item is not None:
                items.append(item)
        return items

    # History

    async def history(self, *, max_items: int | None, offset: int) -> AsyncIterator[bytes]:
        """Yield the answer to GET /history, oldest first.

        Args:
            max_items: at most so many; without an offset, the last ones.
            offset: how many of the oldest to leave out; negative where none is given. From an offset on, ComfyUI gives
                one entry even where none is asked for (0.25.0, `execution.py`, `get_history`).
        """
        if max_items is not None:
            max_items = max(max_items, 1 if offset >= 0 else 0)
            if offset < 0 and max_items:
                offset = (await self._settled(limit=1))[1] - max_items
        yield b"{"
        before = b""
        async for prompt_id, entry in self._entries(max_items, max(0, offset)):
            yield before + rawjson.encode(prompt_id) + b": " + entry
            before = b", "
        yield b"}"

    async def _entries(self, max_items: int | None, offset: int) -> AsyncIterator[tuple[str, bytes]]:
        """Yield (prompt_id, entry) batch by batch; what settles meanwhile may or may not be among them."""
        given: set[str] = set()  # those of the last batch
        while max_items is None or max_items > 0:
            overlap = min(len(given), _OVERLAP)
            wanted = overlap + (HISTORY_BATCH if max_items is None else min(HISTORY_BATCH, max_items))
            batch = await self._store.history(max_items=wanted, offset=offset - overlap)
            fresh = [found for found in batch if found[0] not in given][:max_items]
            for found in fresh:
                yield found
            if len(batch) < wanted:
                return
            given = {prompt_id for prompt_id, _ in fresh}
            offset += len(fresh)
            max_items = None if max_items is None else max_items - len(fresh)

    async def history_entry(self, prompt_id: str) -> bytes:
        """Return the answer to GET /history/{prompt_id}: `{}` for what is unknown and for what has not ended."""
        entry = None if self._board.job(prompt_id) is not None else await self._store.history_entry(prompt_id)
        return b"{}" if entry is None else rawjson.obj({prompt_id: entry})

    # Jobs API

    async def jobs(self, query: JobsQuery) -> Iterator[bytes]:
        """Return the answer to GET /api/jobs, in parts."""
        unfinished = self._unfinished(query)
        # So many of the settled ones come before the page for certain, wherever the unfinished ones fall.
        skipped = max(0, query.offset - len(unfinished))
        settled, total = await self._settled(
            query, limit=None if query.limit is None else query.offset + query.limit - skipped, offset=skipped
        )
        just_settled = {summary.prompt_id for summary in settled}
        unfinished = [row for row in unfinished if row[2].prompt_id not in just_settled]
        by_created = query.sort_by == CREATED_AT
        merged: Iterator[tuple[int, bool, Job | bytes]] = heapq.merge(
            unfinished,
            [(summary.created_ms if by_created else summary.duration_ms, False, summary.item) for summary in settled],
            key=lambda row: row[0],
            reverse=query.descending,
        )
        start = query.offset - skipped
        chosen = islice(merged, start, None if query.limit is None else start + query.limit)
        items = (
            job if isinstance(job, bytes) else jobs_api.unfinished_item(job, is_running=is_running)
            for _, is_running, job in chosen
        )
        return jobs_api.page(items, query=query, total=total + len(unfinished))

    def _unfinished(self, query: JobsQuery) -> list[_Unfinished]:
        """Return the unfinished jobs that fit, in the query's order."""
        view = self._now()
        by_created = query.sort_by == CREATED_AT
        rows: list[_Unfinished] = [
            (created_ms(job) if by_created else 0, is_running, job)
            for status, is_running, jobs in ((IN_PROGRESS, True, view.running), (PENDING, False, view.pending))
            if status in query.statuses
            for job in jobs
            if query.workflow_id is None or job.workflow_id == query.workflow_id
        ]
        rows.sort(key=lambda row: row[0], reverse=query.descending)
        return rows

    async def job(self, prompt_id: str) -> bytes | None:
        """Return the answer to GET /api/jobs/{prompt_id}; None if there is no such job."""
        if (job := self._board.job(prompt_id)) is not None:
            return jobs_api.unfinished_item(job, is_running=self._board.is_running(prompt_id))
        summary = await self._store.summary(prompt_id)
        entry = None if summary is None else await self._store.history_entry(prompt_id)
        return None if summary is None or entry is None else jobs_api.detail(summary.item, entry)

    # For operators

    async def last_settled(self, count: int) -> list[Job]:
        """Return the newest jobs that have ended, newest first."""
        summaries, _ = await self._settled(limit=count)
        jobs = [await self._store.get(summary.prompt_id) for summary in summaries]
        return [job for job in jobs if job is not None]

    async def _settled(
        self, query: JobsQuery | None = None, *, limit: int | None, offset: int = 0
    ) -> tuple[list[JobSummary], int]:
        query = query or JobsQuery()
        if not (statuses := query.statuses & SETTLED):
            return [], 0
        return await self._store.summaries(
            statuses=statuses,
            workflow_id=query.workflow_id,
            sort_by=query.sort_by,
            descending=query.descending,
            limit=limit,
            offset=offset,
        )
