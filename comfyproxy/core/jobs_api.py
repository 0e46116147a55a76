"""The jobs API: how a job is listed, in the shapes of ComfyUI 0.25.0 (`comfy_execution/jobs.py`, `server.py`)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfyproxy.core import rawjson
from comfyproxy.core.history import created_ms, outcome
from comfyproxy.core.job_outputs import normalise, summarise_outputs
from comfyproxy.core.jobs import Job, JobState
from comfyproxy.core.ports import JobSummary

PENDING, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = STATUSES = (
    "pending",
    "in_progress",
    "completed",
    "failed",
    "cancelled",
)
SETTLED = frozenset({COMPLETED, FAILED, CANCELLED})
CREATED_AT, EXECUTION_DURATION = "created_at", "execution_duration"

_STATUS_OF = {JobState.SUCCEEDED: COMPLETED, JobState.FAILED: FAILED, JobState.CANCELLED: CANCELLED}


class BadQuery(ValueError):
    """A query parameter is wrong; the text is ComfyUI's own, for `{"error": ...}` with status 400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsQuery:
    """What GET /api/jobs asks for."""

    statuses: frozenset[str] = frozenset(STATUSES)
    workflow_id: str | None = None
    sort_by: str = CREATED_AT
    descending: bool = True
    limit: int | None = None  # None for all, else positive
    offset: int = 0


def parse_query(query: Mapping[str, str]) -> JobsQuery:
    """Read the query of GET /api/jobs. Raises BadQuery."""
    statuses = frozenset(STATUSES)
    if wanted := query.get("status"):
        named = [name for part in wanted.split(",") if (name := part.strip().lower())]
        if invalid := [name for name in named if name not in STATUSES]:
            raise BadQuery(f"Invalid status value(s): {', '.join(invalid)}. Valid values: {', '.join(STATUSES)}")
        statuses = frozenset(named)
    sort_by = query.get("sort_by", CREATED_AT).lower()
    if sort_by not in (CREATED_AT, EXECUTION_DURATION):
        raise BadQuery("sort_by must be 'created_at' or 'execution_duration'")
    sort_order = query.get("sort_order", "desc").lower()
    if sort_order not in ("asc", "desc"):
        raise BadQuery("sort_order must be 'asc' or 'desc'")
    limit = _integer(query, "limit")
    if limit is not None and limit <= 0:
        raise BadQuery("limit must be a positive integer")
    return JobsQuery(
        statuses=statuses,
        workflow_id=query.get("workflow_id") or None,
        sort_by=sort_by,
        descending=sort_order == "desc",
        limit=limit,
        offset=max(0, _integer(query, "offset") or 0),
    )


def summarise(job: Job, entry: bytes) -> JobSummary:
    """Return how a settled job is listed.

    Args:
        entry: its history entry, as the proxy keeps it.

    `create_time` is there whatever the backend's version: it is the proxy that took the job. Raises ValueError if the
    entry is no JSON.
    """
    found = outcome(entry)
    status = _STATUS_OF[found.state]
    outputs = rawjson.decode(rawjson.members(entry).get("outputs", b"{}"))
    count, preview = summarise_outputs(outputs)
    item = {
        "id": job.prompt_id,
        "status": status,
        "priority": _priority(job),
        "create_time": created_ms(job),
        "execution_start_time": found.started_ms,
        "execution_end_time": found.ended_ms,
        "execution_error": found.error,
        "outputs_count": count,
        "preview_output": preview,
        "workflow_id": job.workflow_id,
    }
    return JobSummary(
        prompt_id=job.prompt_id,
        status=status,
        workflow_id=job.workflow_id,
        created_ms=created_ms(job),
        duration_ms=found.ended_ms - found.started_ms if found.ended_ms and found.started_ms else 0,
        item=_encode(item),
    )


def unfinished_item(job: Job, *, is_running: bool) -> bytes:
    """Return how a job is listed, and shown alone, that has not ended."""
    return _encode(
        {
            "id": job.prompt_id,
            "status": IN_PROGRESS if is_running else PENDING,
            "priority": _priority(job),
            "create_time": created_ms(job),
            "outputs_count": 0,
            "workflow_id": job.workflow_id,
        }
    )


def detail(item: bytes, entry: bytes) -> bytes:
    """Return what GET /api/jobs/{id} shows of a settled job.

    Args:
        item: how it is listed.
        entry: its history entry.
    """
    whole, listed = rawjson.members(entry), rawjson.members(item)
    prompt = rawjson.items(whole["prompt"])
    # Current servers keep the time in the prompt; the backend may have been older.
    extra_data = rawjson.obj({**rawjson.members(prompt[3]), "create_time": listed["create_time"]})
    return rawjson.obj(
        {
            **listed,
            "outputs": rawjson.encode(normalise(rawjson.decode(whole.get("outputs", b"{}")))),
            "execution_status": whole.get("status", b"{}"),
            "workflow": rawjson.obj({"prompt": prompt[2], "extra_data": extra_data}),
        }
    )


def page(items: Iterable[bytes], *, query: JobsQuery, total: int) -> Iterator[bytes]:
    """Yield the answer to GET /api/jobs in parts.

    Args:
        items: those between the query's offset and limit.
        total: how many jobs there are that fit the query.
    """
    count = 0
    yield b'{"jobs": ['
    for item in items:
        yield b", " + item if count else item
        count += 1
    pagination = {
        "offset": query.offset,
        "limit": query.limit,
        "total": total,
        "has_more": query.offset + count < total,
    }
    yield b'], "pagination": ' + rawjson.encode(pagination) + b"}"


def _priority(job: Job) -> float:
    return int(job.number) if job.number.is_integer() else job.number


def _encode(item: dict[str, Any]) -> bytes:
    return rawjson.encode({key: value for key, value in item.items() if value is not None})


def _integer(query: Mapping[str, str], name: str) -> int | None:
    if name not in query:
        return None
    try:
        return int(query[name])
    except ValueError:
        raise BadQuery(f"{name} must be an integer") from None
