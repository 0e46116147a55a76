"""How jobs and their texts are written into columns, and read from them."""

import json
import math
import sqlite3
import zlib
from typing import Any, Final

from comfyproxy.core.jobs import BackendId, Job, JobState
from comfyproxy.core.ports import JobSummary

# Smaller entries hardly shrink. Level 1: three times as fast as the default, a tenth larger.
_PACK_FROM_BYTES: Final = 1024
_PACK_LEVEL: Final = 1

_MAX_INTEGER: Final = 2**63 - 1  # SQLite's

JOB_COLUMNS: Final = (
    "prompt_id",
    "number",
    "client_id",
    "fingerprint",
    "created_s",
    "state",
    "backend",
    "backend_prompt_id",
    "attempts",
    "node_errors",
    "outputs_to_execute",
    "workflow_id",
    "started_s",
    "finished_s",
    "error",
    "pinned",
)

Row = tuple[Any, ...]


def text(value: str | None) -> str | bytes | None:
    """Return a text as SQLite takes it.

    JSON can say lone surrogates and UTF-8 cannot; such a text becomes a blob, which equals no other text.
    """
    if value is None or value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="surrogatepass")
    return value


def from_text(value: Any) -> Any:
    """Return what `text` was given."""
    return value.decode(errors="surrogatepass") if isinstance(value, bytes) else value


def integer(value: int) -> int:
    """Return a number that SQLite can hold; clients may ask for the 10**30th entry."""
    return max(-_MAX_INTEGER, min(value, _MAX_INTEGER))


def from_job(job: Job) -> Row:
    """Return the values of JOB_COLUMNS."""
    number = float(job.number)
    return (
        text(job.prompt_id),
        None if math.isnan(number) else number,
        text(job.client_id),
        text(job.fingerprint),
        job.created_s,
        str(job.state),
        text(job.backend),
        text(job.backend_prompt_id),
        job.attempts,
        job.node_errors,
        json.dumps(job.outputs_to_execute),
        text(job.workflow_id),
        job.started_s,
        job.finished_s,
        text(job.error),
        text(job.pinned),
    )


def to_job(row: Row) -> Job:
    """Return the job whose JOB_COLUMNS these are."""
    return Job(
        prompt_id=from_text(row[0]),
        number=math.nan if row[1] is None else row[1],
        client_id=from_text(row[2]),
        fingerprint=from_text(row[3]),
        created_s=row[4],
        state=JobState(row[5]),
        backend=_backend_id(row[6]),
        backend_prompt_id=from_text(row[7]),
        attempts=row[8],
        node_errors=row[9],
        outputs_to_execute=tuple(json.loads(row[10])),
        workflow_id=from_text(row[11]),
        started_s=row[12],
        finished_s=row[13],
        error=from_text(row[14]),
        pinned=_backend_id(row[15]),
    )


def _backend_id(value: Any) -> BackendId | None:
    return None if value is None else BackendId(from_text(value))


def to_summary(row: Row) -> JobSummary:
    """Return the summary of (prompt_id, status, workflow_id, created_ms, duration_ms, item)."""
    return JobSummary(
        prompt_id=from_text(row[0]),
        status=row[1],
        workflow_id=from_text(row[2]),
        created_ms=row[3],
        duration_ms=row[4],
        item=row[5],
    )


def pack(entry: bytes) -> tuple[bool, bytes]:
    """Return whether an entry was packed, and its bytes; takes milliseconds for a large one."""
    if len(entry) < _PACK_FROM_BYTES:
        return False, entry
    return True, zlib.compress(entry, _PACK_LEVEL)


def unpack(packed: int, entry: bytes) -> bytes:
    """Return what `pack` was given. Raises sqlite3.DatabaseError if the bytes are damaged."""
    if not packed:
        return entry
    try:
        return zlib.decompress(entry)
    except zlib.error as exc:
        raise sqlite3.DatabaseError(f"an entry of the history is damaged: {exc}") from exc
