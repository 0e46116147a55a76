"""The store in memory: for tests, and for those who need nothing to last."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from comfyproxy.core.files import FileRecord, FileRef
from comfyproxy.core.jobs import BackendId, Job, Payload
from comfyproxy.core.ports import JobSummary
from comfyproxy.store.states import check_terminal, check_unfinished


@dataclass(slots=True)
class _Settled:
    """A job that has ended; one that was cancelled before it ran has neither entry nor summary."""

    job: Job
    entry: bytes | None = None
    summary: JobSummary | None = None


@dataclass(slots=True)
class _File:
    record: FileRecord | None
    copies: dict[BackendId, str]


class MemoryStore:
    """Implements JobStore and FileIndex. What it holds outlives `close`, so that a test can play a restart.

    Args:
        max_history: how many jobs that have ended are kept, the cancelled ones included.
        max_files: how many files are known to the index; those not mentioned for longest are forgotten.
    """

    def __init__(self, *, max_history: int = 10_000, max_files: int = 100_000) -> None:
        self._max_history, self._max_files = max_history, max_files
        self._meta: dict[str, str] = {}
        self._next = 0
        self._unfinished: dict[str, tuple[Job, Payload]] = {}  # in the order in which they came
        self._settled: dict[str, _Settled] = {}  # in the order in which they ended
        self._files: dict[FileRef, _File] = {}  # in the order in which they were mentioned

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def get_meta(self, key: str) -> str | None:
        return self._meta.get(key)

    async def set_meta(self, key: str, value: str) -> None:
        self._meta[key] = value

    def next_number(self) -> int:
        self._next += 1
        return self._next - 1

    # Unfinished jobs

    async def insert(self, job: Job, payload: Payload) -> None:
        check_unfinished(job)
        self._forget(job.prompt_id)
        self._unfinished[job.prompt_id] = job, payload

    async def update(self, job: Job) -> None:
        check_unfinished(job)
        if known := self._unfinished.get(job.prompt_id):
            self._unfinished[job.prompt_id] = job, known[1]

    async def discard(self, prompt_id: str) -> None:
        self._unfinished.pop(prompt_id, None)

    async def get(self, prompt_id: str) -> Job | None:
        if known := self._unfinished.get(prompt_id):
            return known[0]
        return self._settled[prompt_id].job if prompt_id in self._settled else None

    async def payloads(self, prompt_ids: Sequence[str]) -> dict[str, Payload]:
        return {prompt_id: self._unfinished[prompt_id][1] for prompt_id in prompt_ids if prompt_id in self._unfinished}

    async def unfinished(self) -> list[Job]:
        jobs = [job for job, _ in self._unfinished.values()]
        return sorted(jobs, key=lambda job: (0, 0.0) if math.isnan(job.number) else (1, job.number))

    # Settled jobs

    async def settle(self, job: Job, entry: bytes, summary: JobSummary) -> None:
        check_terminal(job)
        self._settle(_Settled(job, entry, summary))

    async def cancel(self, job: Job) -> None:
        check_terminal(job)
        self._settle(_Settled(job))

    def _settle(self, settled: _Settled) -> None:
        self._forget(settled.job.prompt_id)
        self._settled[settled.job.prompt_id] = settled
        while len(self._settled) > self._max_history:
            del self._settled[next(iter(self._settled))]

    def _forget(self, prompt_id: str) -> None:
        self._unfinished.pop(prompt_id, None)
        self._settled.pop(prompt_id, None)

    async def history_entry(self, prompt_id: str) -> bytes | None:
        return self._settled[prompt_id].entry if prompt_id in self._settled else None

    async def history(self, *, max_items: int | None, offset: int) -> list[tuple[str, bytes]]:
        entries = [(key, settled.entry) for key, settled in self._settled.items() if settled.entry is not None]
        if offset < 0:
            return entries if max_items is None else entries[max(0, len(entries) - max(0, max_items)) :]
        return entries[offset : None if max_items is None else offset + max(0, max_items)]

    async def delete_history(self, prompt_ids: Sequence[str]) -> None:
        for prompt_id in prompt_ids:
            self._settled.pop(prompt_id, None)

    async def clear_history(self) -> None:
        self._settled.clear()

    async def summary(self, prompt_id: str) -> JobSummary | None:
        return self._settled[prompt_id].summary if prompt_id in self._settled else None

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
        by_created = {"created_at": True, "execution_duration": False}[sort_by]
        found = [
            summary
            for settled in self._settled.values()
            if (summary := settled.summary) is not None
            and summary.status in statuses
            and workflow_id in (None, summary.workflow_id)
        ]
        found.sort(key=lambda summary: summary.created_ms if by_created else summary.duration_ms, reverse=descending)
        start = max(0, offset)
        return found[start : None if limit is None else start + max(0, limit)], len(found)

    # Files

    async def remember_file(self, record: FileRecord) -> None:
        known = self._mention(record.ref)
        known.record = record

    async def file(self, ref: FileRef) -> FileRecord | None:
        return self._files[ref].record if ref in self._files else None

    async def remember_copy(self, ref: FileRef, backend: BackendId, digest: str) -> None:
        self._mention(ref).copies[backend] = digest

    async def copies(self, ref: FileRef) -> dict[BackendId, str]:
        return dict(self._files[ref].copies) if ref in self._files else {}

    def _mention(self, ref: FileRef) -> _File:
        """Return what is known of a file, now the one mentioned last; the oldest make room."""
        self._files[ref] = known = self._files.pop(ref, None) or _File(None, {})
        for old in list(islice(self._files, max(0, len(self._files) - self._max_files))):
            del self._files[old]
        return known
