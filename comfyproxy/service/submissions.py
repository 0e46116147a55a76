"""POST /prompt: a prompt is taken apart, made durable, judged by a backend, and its client is answered."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comfyproxy.core import prompts, rawjson
from comfyproxy.core.errors import (
    BackendUnavailable,
    BadRequest,
    NoBackend,
    NotDelivered,
    QueueFull,
    RequestError,
    ShuttingDown,
    UpstreamError,
    UpstreamFailed,
)
from comfyproxy.core.jobs import BackendId, Job, JobState
from comfyproxy.core.options import Options
from comfyproxy.core.ports import JobStore, StoreUnavailable
from comfyproxy.core.prompts import BEHIND_ALL, Envelope
from comfyproxy.service.board import Board
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.flights import Flights
from comfyproxy.service.live import LiveJob
from comfyproxy.service.payloads import PayloadLost
from comfyproxy.service.placement import Placement
from comfyproxy.service.ports import Observer, Verdict
from comfyproxy.service.sending import LostOnTheWay, Sender

log = logging.getLogger(__name__)

# A prompt that breaks the connection to so many backends and one more is not tried on the rest of the fleet.
MAX_LOSSES = 2
JSON = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The answer to POST /prompt."""

    status: int
    body: bytes
    content_type: str
    backend: str | None = None  # who gave the verdict


class Submissions:
    """Takes prompts in.

    Args:
        wall_clock: seconds since the epoch.
        max_jobs: how many may be unfinished.
        wait_for_backend_s: how long a prompt waits for a backend where none is ready.
        mint_id: makes a prompt id: a canonical lowercase UUID, as newer servers demand.
    """

    def __init__(
        self,
        board: Board,
        store: JobStore,
        fleet: Fleet,
        placement: Placement,
        sender: Sender,
        dispatcher: Dispatcher,
        observer: Observer,
        *,
        wall_clock: Callable[[], float],
        mint_id: Callable[[], str],
        max_jobs: int,
        wait_for_backend_s: float,
    ) -> None:
        self._board, self._store, self._fleet = board, store, fleet
        self._placement, self._sender, self._dispatcher = placement, sender, dispatcher
        self._observer = observer
        self._wall_clock, self._mint_id = wall_clock, mint_id
        self._own_ids: Flights[Receipt] = Flights("submission of")
        self._fingerprints: dict[str, str] = {}  # of the submissions under way, by the client's own id
        self.max_jobs, self.wait_for_backend_s = max_jobs, wait_for_backend_s
        self._restored = asyncio.Event()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_stopping = False
        self.look_again: Callable[[], Awaitable[None]] = _nothing  # asks the backends anew what they can run
        self.on_taken: Callable[[str], None] = lambda prompt_id: None
        self.on_answered: Callable[[str], None] = lambda prompt_id: None

    async def finish(self) -> None:
        """Take no more prompts, and wait until those that are being taken in have their verdict."""
        self.is_stopping = True
        self._restored.set()
        await self._idle.wait()

    async def close(self) -> None:
        """Stop what `finish` was not given the time for; a restart looks for those prompts."""
        await self._own_ids.close()

    async def submit(self, body: bytes, *, asked: Mapping[str, Any] | None = None) -> Receipt:
        """Take a prompt in and return the answer for its client.

        Args:
            asked: options from the request's headers, which come before those in its body.

        Raises BadRequest, NoBackend, BackendUnavailable, QueueFull, UpstreamFailed, ShuttingDown, StoreUnavailable.
        """
        if self.is_stopping:
            self._observer.submitted(ShuttingDown.kind)
            raise ShuttingDown("The proxy is stopping and takes no new prompts")
        self._under_way += 1
        self._idle.clear()
        try:
            receipt = await self._submit(body, asked)
        except Exception as exc:
            outcome = (
                "store_unavailable" if isinstance(exc, StoreUnavailable) else getattr(exc, "kind", "internal_error")
            )
            self._observer.submitted(outcome)
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        self._observer.submitted("accepted" if receipt.status == 200 else "refused")
        return receipt

    def _pinned(self, options: Options) -> BackendId | None:
        """Return the only backend that may run it, if there is to be one. Raises BadRequest, BackendUnavailable."""
        name = options.backend
        if name is None:
            _require_capable(self._fleet, options.capabilities, "No backend is")
            return None
        backend = self._fleet.get(name)
        if backend is None:
            raise BadRequest("unknown_backend", f"There is no backend called {name!r}")
        _require_capable([backend], options.capabilities, f"Backend {name} is not")
        if not backend.is_ready:
            raise BackendUnavailable(f"Backend {name} is {backend.state}", details=backend.last_error or "")
        return backend.id

    async def _submit(self, body: bytes, asked: Mapping[str, Any] | None) -> Receipt:
        envelope = prompts.parse(body, asked)
        if envelope is None:
            return await self._let_refuse(body)
        pinned = self._pinned(envelope.options)
        prompt_id = self._mint_id() if envelope.prompt_id is None else envelope.prompt_id
        self.on_taken(prompt_id)
        try:
            if envelope.prompt_id is None:
                return await self._new(envelope, prompt_id, pinned)
            return await self._under_own_id(envelope, prompt_id, pinned)
        finally:
            # Whoever waits for us writes the answer in this very step of the event loop.
            asyncio.get_running_loop().call_soon(self.on_answered, prompt_id)

    async def _let_refuse(self, body: bytes) -> Receipt:
        """Let a backend say in its own words what is wrong with a request that holds no prompt."""
        home = self._fleet.home()
        try:
            return _receipt(await home.client.submit(body), home)
        except UpstreamError as exc:
            self._fleet.note_failure(home, exc)
            raise BadRequest("no_prompt", "No prompt provided", details="No prompt provided") from exc

    async def _under_own_id(self, envelope: Envelope, prompt_id: str, pinned: BackendId | None) -> Receipt:
        """Take in a prompt under the client's own id; the same prompt again is a retry and gets the same answer."""
        known = self._fingerprints.get(prompt_id)
        if known is not None and known != envelope.fingerprint:
            raise _taken(prompt_id)

        async def work() -> Receipt:
            try:
                return await self._once(envelope, prompt_id, pinned)
            finally:
                del self._fingerprints[prompt_id]

        self._fingerprints[prompt_id] = envelope.fingerprint
        return await self._own_ids.run(prompt_id, work)

    async def _once(self, envelope: Envelope, prompt_id: str, pinned: BackendId | None) -> Receipt:
        live = self._board.get(prompt_id)
        job = live.job if live is not None else await self._store.get(prompt_id)
        if live is None and job is not None and not job.state.is_terminal:
            job = None  # left behind by a write that failed: nobody was told 200, and nobody runs it
        if job is None:
            return await self._new(envelope, prompt_id, pinned)
        if job.fingerprint != envelope.fingerprint:
            raise _taken(prompt_id)
        log.info("prompt %s was sent again by its client", prompt_id)
        return _accepted(job)

    async def _new(self, envelope: Envelope, prompt_id: str, pinned: BackendId | None) -> Receipt:
        if self._board.count + self._under_way > self.max_jobs:
            raise QueueFull(
                "The queue is full",
                details=f"{self._board.count} prompts are unfinished, and {self.max_jobs} may be",
            )
        await self._wait_for_backend()
        job = Job(
            prompt_id=prompt_id,
            number=prompts.queue_number(envelope, self._store.next_number() if envelope.number is None else 0),
            client_id=envelope.client_id,
            fingerprint=envelope.fingerprint,
            created_s=self._wall_clock(),
            workflow_id=envelope.workflow_id,
            pinned=pinned,
        )
        live = LiveJob(job, secrets=envelope.secrets)
        self._placement.describe(live, envelope.payload, envelope.options)
        if self._placement.is_impossible(live):
            # Somebody may have just now put its model on a disk.
            await self.look_again()
            self._placement.describe(live, envelope.payload, envelope.options)
        self._board.payloads.remember(prompt_id, envelope.payload)
        self._board.add(live)
        async with live.transition():
            backend, verdict = await self._judge(live, envelope)
            if verdict.accepted:
                await self._dispatcher.accepted(live, backend, verdict)
                return _accepted(live.job, verdict, backend)
        await self._forget(live)
        log.info("prompt %s was refused by %s with %d", prompt_id, backend.id, verdict.status)
        if self._placement.is_impossible(live):
            log.info("prompt %s can run nowhere: %s", prompt_id, self._placement.lacks(live))
        return _receipt(verdict, backend)

    async def _judge(self, live: LiveJob, envelope: Envelope) -> tuple[Backend, Verdict]:
        """Write the job and send it, to one backend after the other, until one has given its verdict."""
        is_written = False
        lost, last = 0, ""
        try:
            while True:
                # Bound in the same step in which it was chosen, so that nobody else gets the slot; written before sent.
                backend = self._bind(live, last)
                if is_written:
                    await self._store.update(live.job)
                else:
                    await self._store.insert(live.job, envelope.payload)
                    is_written = True
                number = BEHIND_ALL if live.is_visitor else live.job.number
                try:
                    return backend, await self._sender.deliver(live, backend, number=number)
                except NotDelivered as exc:
                    live.unreachable |= {backend.id}
                    self._board.move(live, JobState.QUEUED)
                    self._dispatcher.wake()
                    lost += isinstance(exc, LostOnTheWay)
                    if lost > MAX_LOSSES:
                        raise UpstreamFailed("Several backends failed over this prompt", details=str(exc)) from exc
                    last = str(exc)
        except (RequestError, StoreUnavailable, PayloadLost):
            # Only where it is certain that no backend has it. Whatever else ends us, a restart looks for it.
            await self._forget(live)
            raise

    async def _forget(self, live: LiveJob) -> None:
        """Forget a job that was never accepted."""
        self._board.remove(live)
        self._dispatcher.wake()
        try:
            await self._store.discard(live.prompt_id)
        except StoreUnavailable as exc:
            log.error("prompt %s could not be removed from the store: %s", live.prompt_id, exc)

    def _bind(self, live: LiveJob, last_failure: str) -> Backend:
        """Bind a job to the backend that runs it or, where none has room, to the one that shall judge it.

        Args:
            last_failure: why the backend before did not take it, for people.

        Raises NoBackend.
        """
        if self._go_out(live) is not None:
            live.is_visitor = False
            bound = self._fleet.get(live.job.backend)
            if bound is None:
                raise LookupError(live.job.backend)
            return bound
        live.is_visitor, live.why = True, ""
        backend = self._placement.pick_validator(live)
        if backend is None:
            self._require_backend()
            raise NoBackend(
                "No ComfyUI backend could be reached", details=last_failure or self._fleet.describe_absence()
            )
        self._board.move(live, JobState.DISPATCHING, backend=backend.id)
        return backend

    def _go_out(self, live: LiveJob) -> BackendId | None:
        """Bind a job to the backend that runs it, if the scheduler lets it go to one now."""
        if self._board.is_anybody_before(live.job.number):
            return None
        live.is_visitor, live.is_claimed = False, True
        self._board.queue(live)
        try:
            self._dispatcher.pump()
        finally:  # nobody else would send what is claimed
            live.is_claimed = False
            self._board.unqueue(live)
        return live.job.backend

    def backend_restored(self) -> None:
        """Note that a backend has become ready."""
        self._restored.set()

    async def _wait_for_backend(self) -> None:
        """Wait until some backend is ready, if that is configured. Raises NoBackend, ShuttingDown."""
        try:
            async with asyncio.timeout(self.wait_for_backend_s):
                while not self._fleet.ready() and not self.is_stopping:
                    self._restored.clear()
                    await self._restored.wait()
        except TimeoutError:
            self._require_backend()
        if self.is_stopping:
            raise ShuttingDown("The proxy is stopping and takes no new prompts")

    def _require_backend(self) -> None:
        if not self._fleet.ready():
            raise NoBackend("No ComfyUI backend is available", details=self._fleet.describe_absence())


def _require_capable(backends: Iterable[Backend], capabilities: frozenset[str], who: str) -> None:
    """Raise BadRequest unless one of the backends declares all of the capabilities."""
    if capabilities and not any(backend.declares(capabilities) for backend in backends):
        declared = sorted({name for backend in backends for name in backend.settings.capabilities})
        message = f"{who} capable of: {', '.join(sorted(capabilities))}"
        raise BadRequest("no_capable_backend", message, details=f"declared: {', '.join(declared)}")


async def _nothing() -> None:
    """Ask nobody."""


def _receipt(verdict: Verdict, backend: Backend) -> Receipt:
    return Receipt(status=verdict.status, body=verdict.body, content_type=verdict.content_type, backend=backend.id)


def _accepted(job: Job, verdict: Verdict | None = None, backend: Backend | None = None) -> Receipt:
    node_errors = verdict.node_errors if verdict is not None else job.node_errors
    body = rawjson.obj(
        {
            "prompt_id": rawjson.encode(job.prompt_id),
            "number": rawjson.number(job.number),
            "node_errors": node_errors,
        }
    )
    return Receipt(status=200, body=body, content_type=JSON, backend=backend.id if backend is not None else None)


def _taken(prompt_id: str) -> BadRequest:
    return BadRequest(
        "duplicate_prompt_id",
        "prompt_id belongs to another prompt",
        details=f"{prompt_id} was used for a prompt with another content; omit it to let the server generate one",
    )
