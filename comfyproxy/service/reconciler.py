"""Events are news, a backend's queue and history are the truth: the jobs on it are held against them at every probe."""

import logging
from collections.abc import Callable

from comfyproxy.core import messages
from comfyproxy.core.errors import BadAnswer
from comfyproxy.core.jobs import JobState
from comfyproxy.service.board import Board
from comfyproxy.service.failover import Failover
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ghosts import Ghosts
from comfyproxy.service.live import LiveJob
from comfyproxy.service.ports import Streams
from comfyproxy.service.settling import Settler

log = logging.getLogger(__name__)


class Reconciler:
    """Notices what no event told.

    Args:
        now: seconds, monotonic.
        wall_clock: seconds since the epoch.
        stall_timeout_s: how long a running job may show no progress; None for as long as it likes.
    """

    def __init__(
        self,
        board: Board,
        fleet: Fleet,
        settler: Settler,
        failover: Failover,
        ghosts: Ghosts,
        streams: Streams,
        *,
        now: Callable[[], float],
        wall_clock: Callable[[], float],
        heartbeat_timeout_s: float,
        stall_timeout_s: float | None,
    ) -> None:
        self._board, self._fleet, self._settler, self._streams = board, fleet, settler, streams
        self._failover, self._ghosts = failover, ghosts
        self._now, self._wall_clock = now, wall_clock
        self.heartbeat_timeout_s, self.stall_timeout_s = heartbeat_timeout_s, stall_timeout_s
        self._haunted = {backend.id for backend in fleet}  # may have prompts that have moved on

    def haunt(self, backend: Backend) -> None:
        """Let the next check look for prompts that have moved on: the backend was away, or is another process."""
        self._haunted.add(backend.id)

    def is_haunted(self, backend: Backend) -> bool:
        """Whether a backend may still have prompts that have moved on."""
        return backend.id in self._haunted

    async def check(self, backend: Backend) -> None:
        """Compare the jobs on a backend with what it says itself; ask nothing where there can be nothing.

        Raises UpstreamError, StoreUnavailable.
        """
        # With the time of sending: before the backend answers, a job may have come back and gone there once more, and
        # then the answer is not about it.
        jobs = [(live, live.sent_s) for live in self._board.on(backend.id) if _is_settled_there(live, backend)]
        if not jobs and backend.id not in self._haunted:
            return
        self._haunted.discard(backend.id)
        view = await backend.client.queue()
        if await self._ghosts.lay(backend, view):
            self.haunt(backend)
            self._fleet.on_suspicion(backend)  # they end at their next step
        for live, sent_s in jobs:
            if live.sent_s != sent_s or not _is_settled_there(live, backend):
                continue
            prompt_id = live.job.id_on_backend
            if prompt_id in view.running:
                self._runs(live)
                self._watch_for_stall(live, backend)
            elif prompt_id not in view.pending:
                await self._look_into_history(live, sent_s, backend)

    async def _look_into_history(self, live: LiveJob, sent_s: float, backend: Backend) -> None:
        """Find out what became of a job that has left the queue. Raises UpstreamError."""
        try:
            # A prompt goes from the queue to the history in one step, so one of the two had it all the time.
            entry = await backend.client.history_entry(live.job.id_on_backend)
        except BadAnswer as exc:
            log.warning("%s does not give the history of prompt %s: %s", backend.id, live.prompt_id, exc)
            self._settler.begin(live)  # which tries some more, and then ends it
            return
        if live.sent_s != sent_s or not _is_settled_there(live, backend):
            return
        if entry is not None:
            log.info("prompt %s has ended on %s unheard", live.prompt_id, backend.id)
            self._settler.begin(live, entry=entry)
        else:
            self._failover.lose(live, f"Backend {backend.id} has forgotten this prompt: it was restarted or cleared")

    def failed(self, backend: Backend, reason: str, *, is_dead: bool) -> None:
        """Note that a probe failed. Silence is no proof of death, unless it lasts for the heartbeat timeout."""
        silent_s = self._fleet.silent_for_s(backend)
        if not is_dead and silent_s <= self.heartbeat_timeout_s:
            return
        why = reason if is_dead else f"no sign of life for {silent_s:.0f} s: {reason}"
        self.haunt(backend)
        for live in self._board.on(backend.id):
            if _is_settled_there(live, backend):
                self._failover.lose(
                    live, f"Backend {backend.id} died while it had this prompt: {why}", may_run_on=not is_dead
                )

    def abandon(self, live: LiveJob) -> None:
        """Take a job from a backend that is not configured any more, or end it where only that one may run it."""
        if live.job.pinned is not None and self._fleet.get(live.job.pinned) is None:
            self._failover.give_up(
                live, f"Backend {live.job.pinned} is no longer configured, and no other may run this"
            )
        else:
            self._failover.lose(live, f"Backend {live.job.backend} is no longer configured")

    def _runs(self, live: LiveJob) -> None:
        if live.is_running or live.is_settling:
            return
        now_s = self._wall_clock()
        live.heard_s = self._now()
        self._board.started(live, now_s=now_s)
        start = messages.encode("execution_start", {"prompt_id": live.prompt_id, "timestamp": round(now_s * 1000)})
        self._streams.deliver_text(live.job.client_id, start, event="execution_start", prompt_id=live.prompt_id)

    def _watch_for_stall(self, live: LiveJob, backend: Backend) -> None:
        """Take a job away that shows no progress, and its backend out until it has let go of it."""
        silent_s = self._now() - live.heard_s
        if self.stall_timeout_s is None or silent_s <= self.stall_timeout_s or not _is_settled_there(live, backend):
            return
        why = f"Backend {backend.id} hangs: no progress of this prompt for {silent_s:.0f} s"
        self.haunt(backend)
        self._fleet.eject(backend, why)
        self._failover.lose(live, why, may_run_on=True)


def _is_settled_there(live: LiveJob, backend: Backend) -> bool:
    """Whether a job is on a backend for sure, and nobody is about to move or end it."""
    return (
        live.job.state is JobState.ACCEPTED
        and live.job.backend == backend.id
        and live.moving is None
        and not live.is_settling
    )
