"""The seams: what the service needs of a store, as protocols."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from comfyproxy.core.errors import ComfyproxyError
from comfyproxy.core.files import FileRecord, FileRef
from comfyproxy.core.jobs import BackendId, Job, Payload


class StoreError(ComfyproxyError):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError):
    """Durability unknown (disk full, file locked, database broken): treat as not written."""


class StoreInUse(StoreError):
    """Another process holds the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """One terminal job as the jobs API lists it; written when the job is settled."""

    prompt_id: str
    status: str  # completed | failed | cancelled
    workflow_id: str | None
    created_ms: int
    duration_ms: int  # of the execution; 0 if it never ran
    item: bytes  # JSON object: the list item of GET /api/jobs


class JobStore(Protocol):
    """Where jobs last.

    Every method may raise StoreUnavailable. A method that changes something returns once the change is durable;
    changes of one store become durable in the order of the calls.
    """

    async def open(self) -> None:
        """Open and migrate. Raises StoreInUse if another process holds the store."""

    async def close(self) -> None:
        """Write what is outstanding and let go of the store. Safe to call twice."""

    async def get_meta(self, key: str) -> str | None:
        """Return a value kept with `set_meta`."""

    async def set_meta(self, key: str, value: str) -> None:
        """Keep a small value of the proxy's own (such as its instance id)."""

    def next_number(self) -> int:
        """Return the next queue number: 0, 1, 2, ... never the same twice in the life of the store."""

    async def insert(self, job: Job, payload: Payload) -> None:
        """Write a new job. The caller makes sure that the prompt_id is new."""

    async def update(self, job: Job) -> None:
        """Write a job's new state; the payload stays."""

    async def settle(self, job: Job, entry: bytes, summary: JobSummary) -> None:
        """Write a terminal job with its history entry, and forget its oldest fellows beyond the retention.

        Args:
            entry: JSON object, the value under the prompt_id in `GET /history`.
        """

    async def cancel(self, job: Job) -> None:
        """Write a job that was cancelled before it ran: terminal, without a history entry."""

    async def discard(self, prompt_id: str) -> None:
        """Remove a job that was never accepted."""

    async def get(self, prompt_id: str) -> Job | None:
        """Return a job in any state."""

    async def payloads(self, prompt_ids: Sequence[str]) -> dict[str, Payload]:
        """Return the payloads of unfinished jobs; unknown ids are left out."""

    async def unfinished(self) -> list[Job]:
        """Return every job that is not terminal, by number."""

    async def history_entry(self, prompt_id: str) -> bytes | None:
        """Return the history entry of a settled job."""

    async def history(self, *, max_items: int | None, offset: int) -> list[tuple[str, bytes]]:
        """Return (prompt_id, entry), oldest first.

        Args:
            max_items: at most so many; None for all.
            offset: how many of the oldest to leave out; negative (with max_items): the last `max_items`.
        """

    async def delete_history(self, prompt_ids: Sequence[str]) -> None:
        """Forget settled jobs; unknown ids are ignored."""

    async def clear_history(self) -> None:
        """Forget all settled jobs."""

    async def summary(self, prompt_id: str) -> JobSummary | None:
        """Return the summary of a settled job."""

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
        """Return one page of the settled jobs and how many there are in all.

        Args:
            statuses: only these of completed, failed, cancelled.
            sort_by: created_at or execution_duration.
            limit: at most so many; None for all.
        """


class FileIndex(Protocol):
    """Which files came through the proxy, and which backends have them.

    It says what should be; only a backend itself knows what is. Every method may raise StoreUnavailable.
    """

    async def remember_file(self, record: FileRecord) -> None:
        """Keep a record; it takes the place of an earlier one of the same ref, whose copies stay known as such."""

    async def file(self, ref: FileRef) -> FileRecord | None:
        """Return what a file should hold; None if it is not ours."""

    async def remember_copy(self, ref: FileRef, backend: BackendId, digest: str) -> None:
        """Keep that a backend has this content under this name; there may be no record of the ref."""

    async def copies(self, ref: FileRef) -> Mapping[BackendId, str]:
        """Return the digest of what each backend has been given under this name."""
