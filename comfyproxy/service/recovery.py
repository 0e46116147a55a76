"""After a start: every job that had not ended is known again and goes on."""

import logging

from comfyproxy.core.jobs import JobState
from comfyproxy.core.ports import JobStore
from comfyproxy.service.board import Board
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.fleet import Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.reconciler import Reconciler

log = logging.getLogger(__name__)


async def recover(board: Board, store: JobStore, fleet: Fleet, dispatcher: Dispatcher, reconciler: Reconciler) -> None:
    """Put the unfinished jobs on the board.

    Those that wait go out again; those that were on their way are looked for; those that a backend has are held
    against its queue and history by the first probe that it answers. Raises StoreUnavailable.
    """
    jobs = await store.unfinished()
    for job in jobs:
        live = LiveJob(job, is_admitted=True, is_gapless=False)
        board.add(live)
        backend = fleet.get(job.backend)
        if job.state is JobState.QUEUED:
            if job.pinned is not None and fleet.get(job.pinned) is None:
                reconciler.abandon(live)
                continue
            board.queue(live)
        elif backend is None:
            reconciler.abandon(live)
        elif job.state is JobState.DISPATCHING:
            dispatcher.resume(live, backend)
    if jobs:
        log.info("%d unfinished prompts are known from before", len(jobs))
    dispatcher.wake()
