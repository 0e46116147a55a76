"""A job: our durable record of one submitted prompt, and the table of its states."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NewType

BackendId = NewType("BackendId", str)


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"  # durable here, on no backend
    DISPATCHING = "dispatching"  # POST /prompt begun, outcome unknown
    ACCEPTED = "accepted"  # the backend acknowledged the prompt id
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can happen to the job any more."""
        return self not in _NEXT


_NEXT: dict[JobState, frozenset[JobState]] = {
    # A queued job fails where every backend has refused it.
    JobState.QUEUED: frozenset({JobState.DISPATCHING, JobState.FAILED, JobState.CANCELLED}),
    JobState.DISPATCHING: frozenset(
        # Back to QUEUED: it never arrived, was lost on the way, or refused by a backend that is not the only one.
        {JobState.ACCEPTED, JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    ),
    # Back to QUEUED: it had only come to be judged, is taken back, or its backend is lost and it runs again elsewhere.
    JobState.ACCEPTED: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
}


class InvalidTransition(Exception):
    """The state table forbids what was asked: a bug in the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What must be known of a job at all times; its graph is in its `Payload`.

    Times are seconds since the epoch on this proxy's clock; None means that it has not happened.
    """

    prompt_id: str
    number: float  # position in the queue; smaller runs first
    client_id: str | None
    fingerprint: str  # of the request body: tells a retry from another prompt under the same id
    created_s: float
    state: JobState = JobState.QUEUED
    backend: BackendId | None = None  # where it is or, once terminal, was
    backend_prompt_id: str | None = None  # the id the backend knows it by; differs only on servers that mint their own
    attempts: int = 0  # how often a backend took it on, to be run and not only judged
    node_errors: bytes = b"{}"  # JSON of the verdict: outputs that were left out
    outputs_to_execute: tuple[str, ...] = ()  # ids of the output nodes that will run
    workflow_id: str | None = None
    started_s: float | None = None
    finished_s: float | None = None
    error: str | None = None  # why it failed, for people
    pinned: BackendId | None = None  # the only backend that may run it

    @property
    def id_on_backend(self) -> str:
        """The id to name towards the backend."""
        return self.backend_prompt_id or self.prompt_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What a job asks for: raw JSON, as the client sent it, without secrets."""

    graph: bytes  # the value of `prompt`
    extra_data: bytes = b"{}"  # JSON object, secrets taken out, without client_id
    rest: bytes = b"{}"  # JSON object: all further keys of the request, passed on as they are


def advance(job: Job, to: JobState, **changes: Any) -> Job:
    """Return `job` moved to `to` with `changes`; raise InvalidTransition if the table forbids it."""
    if to not in _NEXT.get(job.state, frozenset()):
        raise InvalidTransition(f"{job.prompt_id}: {job.state} -> {to}")
    return replace(job, state=to, **changes)
