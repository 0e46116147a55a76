"""The end of a job: its history entry is fetched and stored, and only then its client hears of it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from comfyproxy.core import history, jobs_api, messages, missed
from comfyproxy.core.errors import BadAnswer, ConnectionRefused, UpstreamError
from comfyproxy.core.jobs import Job, JobState, Payload
from comfyproxy.core.ports import JobStore, JobSummary, StoreUnavailable
from comfyproxy.service.board import Board
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.payloads import PayloadLost
from comfyproxy.service.ports import Observer, Spawn, Streams

log = logging.getLogger(__name__)

RETRY_S = 1.0
# ComfyUI writes the entry before it says that the prompt has ended; more than one look is for servers that lag.
LOOKS = 3
LOOK_AGAIN_S = 0.2
MAX_BAD_ANSWERS = 10  # until a backend that answers with something else than its history is believed to have none

# What a server's answer may make of our reading: custom nodes put anything into it, numbers of any size, to any depth.
ODD = (ValueError, ArithmeticError, RecursionError)


class Settler:
    """Ends jobs.

    Args:
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        board: Board,
        store: JobStore,
        fleet: Fleet,
        streams: Streams,
        observer: Observer,
        spawn: Spawn,
        *,
        wall_clock: Callable[[], float],
        heartbeat_timeout_s: float,
        retry_s: float = RETRY_S,
    ) -> None:
        self._board, self._store, self._fleet = board, store, fleet
        self._streams, self._observer, self._spawn = streams, observer, spawn
        self._wall_clock = wall_clock
        self.heartbeat_timeout_s, self._retry_s = heartbeat_timeout_s, retry_s
        self.on_lost: Callable[[LiveJob, str], None] = lambda live, why: None
        self.runs_again: Callable[[LiveJob, history.Outcome], bool] = lambda live, outcome: False
        self.on_ended: Callable[[Job, bytes], None] = lambda job, entry: None
        self.on_settled: Callable[[], None] = lambda: None

    def begin(self, live: LiveJob, *, entry: bytes | None = None) -> None:
        """Settle a job that has ended on its backend; a second time is nothing.

        Args:
            entry: the backend's history entry, if it is at hand.
        """
        if live.is_settling or live.job.state.is_terminal:
            return
        live.is_settling = True
        self._spawn(self._settle(live, entry), name=f"settling of {live.prompt_id}")

    async def fail(self, live: LiveJob, message: str, exception_type: str) -> None:
        """End a job that no backend will tell the end of."""
        if live.is_settling or live.job.state.is_terminal:
            return
        live.is_settling = True
        await self._fail(live, message, exception_type)

    async def _settle(self, live: LiveJob, raw: bytes | None) -> None:
        backend = self._fleet.get(live.job.backend)
        if raw is None and backend is not None:
            try:
                raw = await self._fetch(live, backend)
            except BadAnswer as exc:
                await self._fail(
                    live, f"Backend {backend.id} does not give the history of this prompt: {exc}", "BadHistory"
                )
                return
            except UpstreamError as exc:
                # Silent, it has the result, and nothing that still runs.
                self.on_lost(live, f"Backend {backend.id} died before its result was fetched: {exc}")
                return
        if raw is None:
            self.on_lost(live, f"Backend {live.job.backend} has forgotten the result: it was restarted or cleared")
            return
        payload = await self._payload(live)
        try:
            await live.at_rest()  # a prompt may fail before its verdict has been written down
            if self.runs_again(live, history.outcome(raw)):
                return
            job, entry, ending = self._read(live, raw, payload, backend)
            summary = jobs_api.summarise(job, entry)
        except ODD as exc:
            await self._fail(live, f"The history of this prompt on {live.job.backend} is unusable: {exc}", "BadHistory")
            return
        await self._finish(live, job, entry, summary, ending)

    def _read(
        self, live: LiveJob, raw: bytes, payload: Payload, backend: Backend | None
    ) -> tuple[Job, bytes, list[str]]:
        """Return the ended job, its entry for clients, and what its client is still to be told. Raises ODD errors."""
        prefix = str(backend.id) if backend is not None and self._fleet.prefixes else None
        found = history.outcome(raw)
        job = replace(
            live.job,
            state=found.state,
            finished_s=self._wall_clock(),
            started_s=live.job.started_s or _seconds(found.started_ms),
            error=found.message,
        )
        entry = history.build_entry(
            raw,
            job=job,
            payload=payload,
            client_graph=live.client_graph,
            spellings=live.spellings,
            backend_prefix=prefix,
        )
        return (
            job,
            entry,
            missed.ending(job, entry, heard=live.tail, executed=live.executed, is_gapless=live.is_gapless),
        )

    async def _fail(self, live: LiveJob, message: str, exception_type: str) -> None:
        payload = await self._payload(live)
        now_s = self._wall_clock()
        job = replace(live.job, state=JobState.FAILED, finished_s=now_s, error=message)
        now_ms = round(now_s * 1000)
        entry = history.failed_entry(job, payload, message=message, exception_type=exception_type, timestamp_ms=now_ms)
        event = history.failed_event(job, message=message, exception_type=exception_type, timestamp_ms=now_ms)
        log.warning("prompt %s has failed: %s", live.prompt_id, message)
        ending = [messages.encode("execution_error", event), messages.final(job.prompt_id)]
        await self._finish(live, job, entry, jobs_api.summarise(job, entry), ending)

    async def _finish(self, live: LiveJob, job: Job, entry: bytes, summary: JobSummary, ending: list[str]) -> None:
        while True:
            try:
                await self._store.settle(job, entry, summary)
                break
            except StoreUnavailable as exc:
                log.error("the end of prompt %s cannot be stored yet: %s", live.prompt_id, exc)
                await asyncio.sleep(self._retry_s)
        self._board.move(live, job.state)
        self._board.remove(live)
        live.job = job
        log.info("prompt %s has %s on %s", job.prompt_id, job.state, job.backend)
        for text in ending:
            event = messages.parse(text)
            name = event.event if event is not None else ""
            self._streams.deliver_text(job.client_id, text, event=name, prompt_id=job.prompt_id)
        self._observer.finished(job)
        self.on_ended(job, entry)
        self.on_settled()

    async def _fetch(self, live: LiveJob, backend: Backend) -> bytes | None:
        """Return the backend's entry; None if it has none.

        Raises UpstreamError if the backend is dead, silent too long, or has no answer of ComfyUI's.
        """
        looks = bad = 0
        while True:
            try:
                entry = await backend.client.history_entry(live.job.id_on_backend)
                self._fleet.note_alive(backend)
            except BadAnswer:
                bad += 1
                if bad >= MAX_BAD_ANSWERS:
                    raise
                await asyncio.sleep(self._retry_s)
                continue
            except UpstreamError as exc:
                self._fleet.note_failure(backend, exc)
                is_silent = self._fleet.silent_for_s(backend) > self.heartbeat_timeout_s
                if isinstance(exc, ConnectionRefused) or is_silent:
                    raise
                await asyncio.sleep(self._retry_s)
                continue
            looks += 1
            if entry is not None or looks >= LOOKS:
                return entry
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _payload(self, live: LiveJob) -> Payload:
        while True:
            try:
                return await self._board.payloads.get(live.prompt_id)
            except PayloadLost:
                return Payload(graph=b"{}")
            except StoreUnavailable as exc:
                log.error("prompt %s cannot be settled yet: %s", live.prompt_id, exc)
                await asyncio.sleep(self._retry_s)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
