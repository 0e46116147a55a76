"""A board, a store and a fleet, small enough to see through."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from comfyproxy.core import history, jobs_api
from comfyproxy.core.jobs import BackendId, Job, JobState, Payload
from comfyproxy.core.ports import JobStore, JobSummary
from comfyproxy.service.queries import Queries

PAYLOAD = Payload(graph=b'{"1":{"class_type":"X","inputs":{}}}')


def make_job(
    prompt_id: str, number: float = 0, *, created_s: float | None = None, workflow_id: str | None = None
) -> Job:
    return Job(
        prompt_id=prompt_id,
        number=float(number),
        client_id="c",
        fingerprint="",
        created_s=1000.0 + number if created_s is None else created_s,
        outputs_to_execute=("1",),
        workflow_id=workflow_id,
    )


@dataclass
class FakeBoard:
    version: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)
    looked: int = 0

    @property
    def count(self) -> int:
        return len(self.jobs)

    def job(self, prompt_id: str) -> Job | None:
        return self.jobs.get(prompt_id)

    def is_running(self, prompt_id: str) -> bool:
        return prompt_id in self.runs

    def unfinished(self) -> Iterable[Job]:
        self.looked += 1
        return iter(self.jobs.values())


@dataclass
class FakeStore:
    """What is read of a store; counts the payloads it had to give."""

    waiting: dict[str, Payload] = field(default_factory=dict)
    entries: dict[str, bytes] = field(default_factory=dict)
    settled: dict[str, JobSummary] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    payloads_read: int = 0

    async def payloads(self, prompt_ids: Sequence[str]) -> dict[str, Payload]:
        self.payloads_read += len(prompt_ids)
        return {prompt_id: self.waiting[prompt_id] for prompt_id in prompt_ids if prompt_id in self.waiting}

    async def history(self, *, max_items: int | None, offset: int) -> list[tuple[str, bytes]]:
        assert offset >= 0
        return list(self.entries.items())[offset : None if max_items is None else offset + max_items]

    async def history_entry(self, prompt_id: str) -> bytes | None:
        return self.entries.get(prompt_id)

    async def summary(self, prompt_id: str) -> JobSummary | None:
        return self.settled.get(prompt_id)

    async def get(self, prompt_id: str) -> Job | None:
        return self.jobs.get(prompt_id)

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
        found = [
            summary
            for summary in self.settled.values()
            if summary.status in statuses and workflow_id in (None, summary.workflow_id)
        ]
        found.sort(
            key=lambda summary: summary.created_ms if sort_by == "created_at" else summary.duration_ms,
            reverse=descending,
        )
        return found[offset : None if limit is None else offset + limit], len(found)


@dataclass
class FakeBackend:
    shows_create_time: bool = True


class FakeFleet:
    def __init__(self, **backends: FakeBackend) -> None:
        self.backends = backends

    def get(self, backend_id: str | None) -> FakeBackend | None:
        return None if backend_id is None else self.backends.get(backend_id)

    def ready(self) -> list[FakeBackend]:
        return list(self.backends.values())


@dataclass
class Stage:
    """All that Queries read, and ways to fill it."""

    board: FakeBoard = field(default_factory=FakeBoard)
    store: FakeStore = field(default_factory=FakeStore)
    fleet: FakeFleet = field(default_factory=FakeFleet)

    def queries(self, *, max_rendered_bytes: int = 10_000, max_answer_bytes: int = 0) -> Queries:
        return Queries(
            self.board,
            cast(JobStore, self.store),
            self.fleet,
            max_rendered_bytes=max_rendered_bytes,
            max_answer_bytes=max_answer_bytes,
        )

    def waits(self, job: Job) -> None:
        self.board.jobs[job.prompt_id] = job
        self.store.waiting[job.prompt_id] = PAYLOAD
        self.board.version += 1

    def runs(self, job: Job) -> None:
        self.waits(job)
        self.board.runs.add(job.prompt_id)

    def leaves(self, prompt_id: str) -> None:
        del self.board.jobs[prompt_id], self.store.waiting[prompt_id]
        self.board.runs.discard(prompt_id)
        self.board.version += 1

    def settles(self, job: Job, *, ran_s: float = 1.0) -> None:
        """Put a failed job into the store."""
        started = replace(job, started_s=job.created_s, state=JobState.FAILED, backend=BackendId("a"))
        ended_ms = int((job.created_s + ran_s) * 1000)
        entry = history.failed_entry(started, PAYLOAD, message="m", exception_type="E", timestamp_ms=ended_ms)
        self.store.entries[job.prompt_id] = entry
        self.store.settled[job.prompt_id] = jobs_api.summarise(started, entry)
        self.store.jobs[job.prompt_id] = started
