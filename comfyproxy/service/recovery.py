"""After a start: every job that had not ended is known again and goes on."""

import logging
from collections.abc import Sequence

from comfyproxy.core.jobs import Job, JobState
from comfyproxy.core.options import options_of
from comfyproxy.core.ports import JobStore
from comfyproxy.service.board import Board
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.fleet import Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.placement import Placement
from comfyproxy.service.reconciler import Reconciler

log = logging.getLogger(__name__)


# Payloads that are read at a time: what a job needs is in its graph.
BATCH = 200


async def recover(
    board: Board,
    store: JobStore,
    fleet: Fleet,
    placement: Placement,
    dispatcher: Dispatcher,
    reconciler: Reconciler,
) -> None:
    """Put the unfinished jobs on the board.

    Those that wait go out again; those that were on their way are looked for; those that a backend has are held
    against its queue and history by the first probe that it answers. Raises StoreUnavailable.
    """
    jobs = await store.unfinished()
    for live in await _read(jobs, store, placement):
        job = live.job
        board.add(live)
        backend = fleet.get(job.backend)
        if job.state is JobState.QUEUED:
            if job.pinned is not None and fleet.get(job.pinned) is None:
                reconciler.abandon(live)
                continue
            board.queue(live)
            await dispatcher.end_if_refused(live)  # what it asks for may not be configured any more
        elif backend is None:
            reconciler.abandon(live)
        elif job.state is JobState.DISPATCHING:
            dispatcher.resume(live, backend)
    if jobs:
        log.info("%d unfinished prompts are known from before", len(jobs))
    dispatcher.wake()


async def _read(jobs: Sequence[Job], store: JobStore, placement: Placement) -> list[LiveJob]:
    """Return the jobs with what they need; of one whose payload is lost nobody knows that."""
    found = []
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        payloads = await store.payloads([job.prompt_id for job in batch])
        for job in batch:
            live = LiveJob(job, is_admitted=True, is_gapless=False)
            if (payload := payloads.get(job.prompt_id)) is not None:
                placement.describe(live, payload, options_of(payload))
            found.append(live)
    return found
