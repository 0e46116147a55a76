"""Handing one job to one backend, and finding out what became of it where the answer got lost.

`POST /prompt` ends in one of three ways: the backend's verdict, the certainty that it has not got the job
(NotDelivered), or a doubt. A doubt is never resolved by sending again: the backend is looked at until it is known.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from comfyproxy.core import prompts, spelling
from comfyproxy.core.errors import BadAnswer, ConnectionRefused, DeliveryUnknown, NotDelivered, UpstreamError
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ghosts import Ghosts
from comfyproxy.service.live import LiveJob
from comfyproxy.service.payloads import PayloadCache
from comfyproxy.service.ports import FilePreparer, Observer, Verdict

log = logging.getLogger(__name__)

# A request that was cut off may still be in the backend's hands: it is asked again after this time, and only the
# second "no" counts.
LOOK_AGAIN_S = 1.0
NOT_THERE_AFTER = 2  # looks
MAX_BAD_ANSWERS = 10  # until a backend that answers with something else than its queue counts as silent
MARKS_LOOKED_AT = 50  # of the last prompts of a server that may call them by ids of its own


class LostOnTheWay(NotDelivered):
    """The backend got some of it, and has nothing of it now: perhaps the job itself is what killed it."""


@dataclass(frozen=True, slots=True)
class FoundThere:
    """The verdict on a job whose answer got lost, and which the backend has."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    prompt_id: str | None = None
    node_errors: bytes = b"{}"
    accepted: bool = True


@dataclass(frozen=True, slots=True)
class _InClientsWords:
    """A verdict with the models in it as the client has spelled them."""

    status: int
    body: bytes
    content_type: str
    prompt_id: str | None
    node_errors: bytes
    accepted: bool


class Sender:
    """Sends jobs.

    Args:
        client_id: the links' own, so that a job's events come over the link.
        now: seconds, monotonic.
        look_again_s: seconds between two looks for a job whose answer got lost.
    """

    def __init__(
        self,
        fleet: Fleet,
        payloads: PayloadCache,
        files: FilePreparer,
        ghosts: Ghosts,
        observer: Observer,
        *,
        client_id: str,
        now: Callable[[], float],
        heartbeat_timeout_s: float,
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self._fleet, self._payloads, self._files = fleet, payloads, files
        self._ghosts, self._observer = ghosts, observer
        self._client_id, self._now = client_id, now
        self.heartbeat_timeout_s = heartbeat_timeout_s
        self._look_again_s = look_again_s

    async def deliver(self, live: LiveJob, backend: Backend, *, number: float) -> Verdict:
        """Send a job and return the backend's verdict.

        The job must be in the store as on its way to this backend: after any doubt it is looked for there.

        Args:
            number: its place in the backend's queue.

        Raises NotDelivered (LostOnTheWay after a doubt) if the backend does not have it, StoreUnavailable, PayloadLost.
        """
        try:
            body = await self._body(live, backend, number)
        except NotDelivered as exc:
            self._failed(live, backend, exc, "not_delivered")
            raise
        live.sent_s = self._now()
        try:
            verdict = await backend.client.submit(body)
        except NotDelivered as exc:
            self._failed(live, backend, exc, "not_delivered")
            self._fleet.note_failure(backend, exc)
            raise
        except (DeliveryUnknown, BadAnswer) as exc:
            self._failed(live, backend, exc, "unknown")
            self._fleet.note_failure(backend, exc)
            its_id = await self.find(live, backend)
            if its_id is None:
                raise LostOnTheWay(f"{backend.id} does not have it: {exc}") from exc
            verdict = FoundThere(prompt_id=its_id)
        if verdict.accepted:
            backend.mints_ids = verdict.prompt_id != live.prompt_id
        self._fleet.note_alive(backend)
        self._observer.dispatched(backend.id, "accepted" if verdict.accepted else "refused")
        return _in_clients_words(verdict, live)

    async def find(self, live: LiveJob, backend: Backend) -> str | None:
        """Look until it is known whether a backend has a job; return the id that it has there, None if it has not.

        A dead backend has nothing.
        """
        looks = bad = 0
        while True:
            if _is_heard_of(live):
                return live.job.id_on_backend
            try:
                if (found := await self._look(live, backend)) is not None:
                    log.info("prompt %s did arrive at %s", live.prompt_id, backend.id)
                    return found
            except ConnectionRefused as exc:
                self._fleet.note_failure(backend, exc)
                return None
            except UpstreamError as exc:
                bad += isinstance(exc, BadAnswer)
                if bad >= MAX_BAD_ANSWERS or self._fleet.silent_for_s(backend) > self.heartbeat_timeout_s:
                    log.warning("prompt %s: %s cannot be asked for it any longer: %s", live.prompt_id, backend.id, exc)
                    self._ghosts.leave(live, backend.id)
                    return None
            else:
                looks += 1
                if looks >= NOT_THERE_AFTER and not _is_heard_of(live):
                    log.info("prompt %s did not arrive at %s", live.prompt_id, backend.id)
                    return None
            await asyncio.sleep(self._look_again_s)

    async def _look(self, live: LiveJob, backend: Backend) -> str | None:
        """Look into queue and history once. Raises UpstreamError."""
        prompt_id = live.job.id_on_backend
        view = await backend.client.queue()
        if prompt_id in view.running or prompt_id in view.pending:
            return prompt_id
        if (marked := view.marks.get(live.prompt_id)) is not None:
            return marked
        if await backend.client.history_entry(prompt_id) is not None:
            return prompt_id
        if backend.mints_ids is False:
            return None
        return (await backend.client.history_marks(max_items=MARKS_LOOKED_AT)).get(live.prompt_id)

    async def _body(self, live: LiveJob, backend: Backend, number: float) -> bytes:
        payload = await self._payloads.get(live.prompt_id)
        upload_inputs = backend.catalog.upload_inputs if backend.catalog is not None else frozenset[tuple[str, str]]()
        prepared = await self._files.prepare(live.prompt_id, payload.graph, backend, upload_inputs)
        graph, live.spellings = spelling.spelled(payload.graph if prepared is None else prepared, backend.catalog)
        if live.spellings:
            log.info("prompt %s: %d models spelled as %s does", live.prompt_id, len(live.spellings), backend.id)
        live.client_graph = prepared is not None or bool(live.spellings)
        return prompts.build(
            payload,
            prompt_id=live.prompt_id,
            client_id=self._client_id,
            secrets=live.secrets,
            graph=graph,
            number=number,
        )

    def _failed(self, live: LiveJob, backend: Backend, error: UpstreamError, outcome: str) -> None:
        log.warning("prompt %s to %s: %s: %s", live.prompt_id, backend.id, outcome, error)
        self._observer.dispatched(backend.id, outcome)


def _in_clients_words(verdict: Verdict, live: LiveJob) -> Verdict:
    if not live.spellings:
        return verdict
    return _InClientsWords(
        status=verdict.status,
        body=spelling.unspelled(verdict.body, live.spellings),
        content_type=verdict.content_type,
        prompt_id=verdict.prompt_id,
        node_errors=spelling.unspelled(verdict.node_errors, live.spellings),
        accepted=verdict.accepted,
    )


def _is_heard_of(live: LiveJob) -> bool:
    """Whether its backend has told of the job, whatever it answers when asked."""
    return live.is_running or live.is_settling or live.job.state.is_terminal
