"""Gives waiting jobs to backends that have room, and keeps account of what the backends made of them."""

import asyncio
import logging
from collections.abc import Callable

from comfyproxy.core.catalog import classes_of, outputs_to_execute
from comfyproxy.core.errors import NotDelivered
from comfyproxy.core.jobs import JobState, Payload
from comfyproxy.core.ports import JobStore, StoreUnavailable
from comfyproxy.core.prompts import execution_targets
from comfyproxy.service.board import Board
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ghosts import Ghosts
from comfyproxy.service.live import LiveJob
from comfyproxy.service.payloads import PayloadLost
from comfyproxy.service.placement import Placement
from comfyproxy.service.ports import Spawn, Verdict
from comfyproxy.service.sending import FoundThere, LostOnTheWay, Sender
from comfyproxy.service.settling import Settler
from comfyproxy.service.withdrawal import Fate, Withdrawals

log = logging.getLogger(__name__)

SOONEST_S = 0.01  # until the scheduler is asked again, however soon it wants to be
RETRY_S = 1.0  # until a backend that could not be reached with a job, or the store, is tried again


class Dispatcher:
    """The loop between the queue and the backends."""

    def __init__(
        self,
        board: Board,
        store: JobStore,
        fleet: Fleet,
        placement: Placement,
        sender: Sender,
        withdrawals: Withdrawals,
        settler: Settler,
        ghosts: Ghosts,
        spawn: Spawn,
    ) -> None:
        self._board, self._store, self._fleet = board, store, fleet
        self._placement, self._sender = placement, sender
        self._withdrawals, self._settler = withdrawals, settler
        self._ghosts, self._spawn = ghosts, spawn
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.is_stopping = False
        self.on_lost: Callable[[LiveJob, str], None] = lambda live, why: None
        self.on_accepted: Callable[[Backend, LiveJob], None] = lambda backend, live: None

    def wake(self) -> None:
        """Look again whether a waiting job can go out."""
        self._wanted.set()

    async def run(self) -> None:
        """Dispatch, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self.pump()
            self._move_misplaced()

    def pump(self) -> None:
        """Send out all that is to go to backends now.

        A job that whoever took it in wants to send itself is only bound to its backend.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while not self.is_stopping and (found := self._board.take()) is not None:
            live, backend_id, why = found
            if (backend := self._fleet.get(backend_id)) is None:
                raise LookupError(backend_id)
            live.why = why
            self._board.move(live, JobState.DISPATCHING, backend=backend_id)
            if not live.is_claimed:
                live.depart()
                self._spawn(self._dispatch(live, backend), name=f"dispatch of {live.prompt_id}")
        if (wake_in_s := self._placement.wake_in_s) is not None:
            self._timer = asyncio.get_running_loop().call_later(max(wake_in_s, SOONEST_S), self.wake)

    def _move_misplaced(self) -> None:
        """Take back jobs that are pending on one backend while another, which could run them, has nothing to do."""
        for prompt_id, backend_id in self._placement.misplaced():
            live, backend = self._board.get(prompt_id), self._fleet.get(backend_id)
            if live is not None and backend is not None and live.moving is None and _is_pending_on(live, backend):
                log.info("prompt %s is taken back from %s: another backend has nothing to do", prompt_id, backend_id)
                self.recall(live, backend)

    async def _dispatch(self, live: LiveJob, backend: Backend) -> None:
        try:
            await self._store.update(live.job)  # written before it is sent
            verdict = await self._sender.deliver(live, backend, number=live.job.number)
            if verdict.accepted:
                await self.accepted(live, backend, verdict)
            else:
                await self._refused(live, backend, verdict)
        except LostOnTheWay as exc:
            self.on_lost(live, f"Backend {backend.id} lost this prompt: {exc}")
        except NotDelivered:
            self._retry(live, backend)
        except StoreUnavailable as exc:
            log.error("prompt %s stays queued: %s", live.prompt_id, exc)
            self._queue_later(live)
        except PayloadLost:
            await self._settler.fail(live, "The proxy's store has lost this prompt", "PayloadLost")
        finally:
            live.rest()

    def resume(self, live: LiveJob, backend: Backend) -> None:
        """Go on with a job that was on its way to a backend when the proxy was stopped."""
        self._spawn(self._resume(live, backend), name=f"search for {live.prompt_id}")

    async def _resume(self, live: LiveJob, backend: Backend) -> None:
        async with live.transition():
            its_id = await self._sender.find(live, backend)
            if its_id is not None:
                await self.accepted(live, backend, FoundThere(prompt_id=its_id))
            else:
                self._retry(live, backend)

    async def accepted(self, live: LiveJob, backend: Backend, verdict: Verdict) -> None:
        """Take note that a backend has the job; one that was only to be judged is taken back from it.

        The job is in the store already, as on its way; should this write fail, a restart looks for it at the backend.
        """
        outputs = await self._outputs(live, backend, verdict)
        if not _is_on_its_way(live):
            return  # it has ended before its verdict came
        its_id = verdict.prompt_id if verdict.prompt_id != live.prompt_id else None
        live.unreachable = frozenset()
        self._board.move(
            live,
            JobState.ACCEPTED,
            backend_prompt_id=its_id,
            node_errors=verdict.node_errors,
            outputs_to_execute=outputs,
        )
        self._board.admit(live)
        if not live.is_visitor:
            self._board.count_run(live)
        if live.is_visitor:
            log.info("prompt %s is judged by %s, and waits for its turn", live.prompt_id, backend.id)
        else:
            log.info("prompt %s is on %s: %s", live.prompt_id, backend.id, live.why or "it was there already")
        self.on_accepted(backend, live)
        await self._write(live)
        if live.is_visitor:
            self.recall(live, backend)
        elif len(backend.in_flight) > 1:
            self._spawn(self._reconsider(live), name=f"second thoughts about {live.prompt_id}")

    async def _reconsider(self, live: LiveJob) -> None:
        """Look again whether jobs are misplaced, once this one can be moved: some strategies put it behind others."""
        await live.at_rest()
        self.wake()

    async def _outputs(self, live: LiveJob, backend: Backend, verdict: Verdict) -> tuple[str, ...]:
        """Return the output nodes that will run, as the queue shows them."""
        if backend.catalog is None:
            return ()
        try:
            payload = await self._board.payloads.get(live.prompt_id)
        except (StoreUnavailable, PayloadLost):
            payload = Payload(graph=b"{}")
        return outputs_to_execute(
            classes_of(payload.graph),
            backend.catalog.output_classes,
            targets=execution_targets(payload),
            node_errors=verdict.node_errors,
        )

    def recall(self, live: LiveJob, backend: Backend) -> None:
        """Take a job that waits on a backend back from it, to wait here."""
        self._spawn(self._recall(live, backend), name=f"recall of {live.prompt_id}")

    async def _recall(self, live: LiveJob, backend: Backend) -> None:
        """Take a job back; if it has started there, it stays, and a visit was its dispatch."""
        async with live.transition():
            if not _is_pending_on(live, backend):
                return
            whereabouts = await self._withdrawals.take_back(backend, live.job.id_on_backend)
            if not _is_pending_on(live, backend):
                return
            is_gone = whereabouts.fate is Fate.GONE
            if is_gone:
                if not whereabouts.is_certain:
                    self._ghosts.leave(live, backend.id)
                attempts = live.job.attempts - live.is_counted
                self._board.move(live, JobState.QUEUED, attempts=attempts)
                await self._write(live)
            else:
                self._board.stay(live)
        if is_gone:
            self._board.queue(live)
            self.wake()
        elif whereabouts.fate is Fate.ENDED:
            self._settler.begin(live, entry=whereabouts.entry)

    def _retry(self, live: LiveJob, backend: Backend) -> None:
        """Let a job that its backend does not have wait again; that backend is tried last."""
        if live.is_settling or not _is_on_its_way(live):
            return
        live.unreachable |= {backend.id}
        self._board.move(live, JobState.QUEUED)
        self._board.queue(live)
        self.wake()

        def reach_again() -> None:
            live.unreachable -= {backend.id}
            self._board.relist(live)
            self.wake()

        asyncio.get_running_loop().call_later(RETRY_S, reach_again)

    def _queue_later(self, live: LiveJob) -> None:
        """Let a job wait again after a while: what went wrong is no backend's doing, and would with any of them."""
        if live.is_settling or not _is_on_its_way(live):
            return
        self._board.move(live, JobState.QUEUED)
        self._spawn(self._queue_rested(live), name=f"rest of {live.prompt_id}")

    async def _queue_rested(self, live: LiveJob) -> None:
        await asyncio.sleep(RETRY_S)
        await live.at_rest()  # it may be about to be cancelled
        if self._board.get(live.prompt_id) is live and live.job.state is JobState.QUEUED:
            self._board.queue(live)
            self.wake()

    async def _refused(self, live: LiveJob, backend: Backend, verdict: Verdict) -> None:
        """Offer a promised job to others when a backend says no to it; end it when all have."""
        if live.is_settling or not _is_on_its_way(live):
            return
        live.refused[backend.id] = verdict.body.decode(errors="replace")
        log.warning("prompt %s was refused by %s with %d", live.prompt_id, backend.id, verdict.status)
        if await self.end_if_refused(live):
            return
        self._board.move(live, JobState.QUEUED)
        self._board.queue(live)
        self.wake()

    async def end_if_refused(self, live: LiveJob) -> bool:
        """End a job that no configured backend may have any more; return whether it is ended."""
        if live.is_settling or live.job.state.is_terminal or not self._placement.is_refused_everywhere(live):
            return False
        self._board.unqueue(live)
        reasons = [f"{name}: {text}" for name, text in live.refused.items()]
        if not reasons:
            reasons = [f"none is capable of: {', '.join(sorted(self._placement.needs(live).capabilities))}"]
        await self._settler.fail(live, f"No backend can run this prompt: {'; '.join(reasons)}", "PromptRefused")
        return True

    async def _write(self, live: LiveJob) -> None:
        try:
            await self._store.update(live.job)
        except StoreUnavailable as exc:
            log.error("the state of prompt %s could not be written: %s", live.prompt_id, exc)


def _is_on_its_way(live: LiveJob) -> bool:
    return live.job.state is JobState.DISPATCHING


def _is_pending_on(live: LiveJob, backend: Backend) -> bool:
    return (
        live.job.state is JobState.ACCEPTED
        and live.job.backend == backend.id
        and not live.is_running
        and not live.is_settling
    )
