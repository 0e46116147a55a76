"""Jobs to store, and stores to put them into."""

from dataclasses import replace
from typing import Any, Protocol

from comfyproxy.core.jobs import BackendId, Job, JobState, Payload
from comfyproxy.core.ports import FileIndex, JobStore, JobSummary

PAYLOAD = Payload(graph=b'{"1":{}}', extra_data=b'{"x":1}', rest=b'{"y":2}')
ALL_STATUSES = frozenset({"completed", "failed", "cancelled"})


class Store(JobStore, FileIndex, Protocol):
    """What both stores are."""


def make_job(prompt_id: str, number: float = 0.0, **changes: Any) -> Job:
    job = Job(prompt_id=prompt_id, number=number, client_id="c", fingerprint="f", created_s=1000.25)
    return replace(job, **changes)


def ended(job: Job, state: JobState = JobState.SUCCEEDED) -> Job:
    return replace(job, state=state, backend=BackendId("a"), finished_s=1234.5)


def make_summary(prompt_id: str, **changes: Any) -> JobSummary:
    summary = JobSummary(
        prompt_id=prompt_id, status="completed", workflow_id=None, created_ms=1, duration_ms=1, item=b'{"id":1}'
    )
    return replace(summary, **changes)


def entry_of(prompt_id: str) -> bytes:
    return b'{"prompt": "%s"}' % prompt_id.encode(errors="replace")


async def settle(store: JobStore, prompt_id: str, **changes: Any) -> None:
    """Have a job end well; `changes` are to its summary."""
    await store.settle(ended(make_job(prompt_id)), entry_of(prompt_id), make_summary(prompt_id, **changes))


async def listed(store: JobStore, **query: Any) -> list[str]:
    """Return the ids of the jobs that the query lists."""
    found, _ = await page(store, **query)
    return [summary.prompt_id for summary in found]


async def page(store: JobStore, **query: Any) -> tuple[list[JobSummary], int]:
    defaults: dict[str, Any] = {
        "statuses": ALL_STATUSES,
        "workflow_id": None,
        "sort_by": "created_at",
        "descending": False,
        "limit": None,
        "offset": 0,
    }
    return await store.summaries(**defaults | query)


async def remembered(store: JobStore) -> list[str]:
    """Return the ids in the history, oldest first."""
    return [prompt_id for prompt_id, _ in await store.history(max_items=None, offset=-1)]
