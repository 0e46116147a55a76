"""What becomes of a job whose backend is lost to it: it runs again elsewhere, until it has been tried often enough."""

import logging
from collections.abc import Collection

from comfyproxy.core.history import Outcome
from comfyproxy.core.jobs import JobState
from comfyproxy.service.board import Board
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.fleet import Fleet
from comfyproxy.service.ghosts import Ghosts
from comfyproxy.service.live import LiveJob
from comfyproxy.service.placement import Placement
from comfyproxy.service.ports import Observer, Spawn
from comfyproxy.service.settling import Settler

log = logging.getLogger(__name__)


class Failover:
    """Gives lost jobs another backend, or an end.

    Args:
        is_enabled: whether a job is run again at all.
        max_retries: runs besides the first; a job that kills whatever runs it must stop some time.
        retry_on: errors after which a job runs once more; `out_of_memory` is known.
    """

    def __init__(
        self,
        board: Board,
        fleet: Fleet,
        placement: Placement,
        dispatcher: Dispatcher,
        settler: Settler,
        ghosts: Ghosts,
        observer: Observer,
        spawn: Spawn,
        *,
        is_enabled: bool,
        max_retries: int,
        retry_on: Collection[str],
    ) -> None:
        self._board, self._fleet, self._placement = board, fleet, placement
        self._dispatcher, self._settler = dispatcher, settler
        self._ghosts, self._observer, self._spawn = ghosts, observer, spawn
        self.is_enabled, self.max_retries, self.retry_on = is_enabled, max_retries, retry_on

    def lose(self, live: LiveJob, why: str, *, may_run_on: bool = False) -> None:
        """Take a job from a backend that is dead, has forgotten it, or hangs.

        Args:
            may_run_on: the backend may still have it, and must be rid of it before it can have it again.

        The store still says that the backend has it: a restart of the proxy comes to the same conclusion, or finds the
        job running there after all.
        """
        backend = live.job.backend
        if live.moving is not None:
            self._spawn(self._lose_later(live, why, may_run_on), name=f"loss of {live.prompt_id}")
            return
        if live.job.state not in (JobState.DISPATCHING, JobState.ACCEPTED):
            return
        live.is_settling = False
        live.losses.append(why)
        if backend is not None and may_run_on:
            self._ghosts.leave(live, backend)
        # Losses on the way are no attempts of a backend's, but they may be the job's doing all the same.
        tried = max(live.job.attempts, len(live.losses))
        if not self.is_enabled or tried > self.max_retries:
            self.give_up(live)
            return
        log.warning("prompt %s runs again elsewhere (attempt %d): %s", live.prompt_id, tried + 1, why)
        if backend is not None:
            self._observer.failed_over(backend)
        self._board.move(live, JobState.QUEUED)
        self._board.queue(live)
        self._dispatcher.wake()

    def runs_again(self, live: LiveJob, outcome: Outcome) -> bool:
        """Give a job that ran out of memory one more run, on a backend with more of it, if that is wanted and possible.

        Its client has not heard of the error yet, and does not. Returns whether it runs again. The job is at rest.
        """
        if "out_of_memory" not in self.retry_on or not outcome.is_out_of_memory:
            return False
        backend = self._fleet.get(live.job.backend)
        if backend is None or live.was_moved_for_memory or live.moving is not None:
            return False
        why = f"it has no more memory than {backend.id}, where the prompt ran out of it"
        before = dict(live.refused)
        live.refused.update({each.id: why for each in self._fleet if each.vram <= backend.vram})
        if not self._placement.has_able(live):
            live.refused = before
            return False
        log.warning("prompt %s ran out of memory on %s and gets a larger backend", live.prompt_id, backend.id)
        live.was_moved_for_memory = True
        self._observer.failed_over(backend.id)
        self._board.move(live, JobState.QUEUED)
        self._board.queue(live)
        self._dispatcher.wake()
        return True

    async def _lose_later(self, live: LiveJob, why: str, may_run_on: bool) -> None:
        await live.at_rest()
        self.lose(live, why, may_run_on=may_run_on)

    def give_up(self, live: LiveJob, why: str | None = None) -> None:
        """End a job with an error that names what it went through."""
        losses = live.losses if why is None else [*live.losses, why]
        message = losses[0]
        if len(losses) > 1:
            attempts = "; ".join(f"{number}. {loss}" for number, loss in enumerate(losses, start=1))
            message = f"Given up after {len(losses)} attempts: {attempts}"
        self._spawn(self._settler.fail(live, message, "BackendLost"), name=f"loss of {live.prompt_id}")
