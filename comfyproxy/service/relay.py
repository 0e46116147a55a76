"""From the links to the clients: every message goes to the client whose job it is about, and to nobody else.

Nothing here waits. The last messages of a job are held until its history entry is stored (`settling.py`).
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from comfyproxy.core import frames, messages, spelling
from comfyproxy.core.jobs import BackendId, JobState
from comfyproxy.core.messages import OUTCOMES, Message
from comfyproxy.core.outputs import prefix_outputs
from comfyproxy.service import logs
from comfyproxy.service.board import Board
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.ports import Observer, Streams
from comfyproxy.service.settling import Settler

log = logging.getLogger(__name__)

# About one prompt, but without its id only in the notice that a reconnecting socket gets: never for all.
_OF_A_PROMPT = OUTCOMES | {"execution_start", "execution_cached", "executing", "executed", "progress", "progress_state"}
# Answers to what the link itself said, and what only the proxy can count.
_OF_THE_LINK = frozenset({"status", "feature_flags"})
# Messages of prompts whose ids we have yet to learn, kept per backend.
_MAX_EARLY = 2_000


# A preview with metadata comes right before its progress; it is held for so long at the most.
PAIR_WITHIN_S = 0.05


class _Held(NamedTuple):
    """A preview that waits for its progress."""

    live: LiveJob
    frame: bytes
    timer: asyncio.TimerHandle


class Relay:
    """Takes in what the links receive.

    Args:
        now: seconds, monotonic.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        board: Board,
        fleet: Fleet,
        streams: Streams,
        settler: Settler,
        observer: Observer,
        *,
        now: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._board, self._fleet, self._streams = board, fleet, streams
        self._settler, self._observer = settler, observer
        self._now, self._wall_clock = now, wall_clock
        self._heard_s: dict[BackendId, float] = {}
        self._early: dict[BackendId, dict[str, list[Message]]] = {}
        self._held: dict[BackendId, _Held] = {}
        self.on_load: Callable[[], None] = lambda: None
        self.on_logs: Callable[[Backend, str], None] = lambda backend, raw: None

    def heard_s(self, backend: BackendId) -> float:
        """Return when the link of a backend last said anything; monotonic, minus infinity for never."""
        return self._heard_s.get(backend, float("-inf"))

    def text(self, backend: Backend, raw: str) -> None:
        """Pass on a text message."""
        self._heard(backend)
        message = messages.parse(raw)
        if message is None or message.event != "progress":
            self._release(backend)
        if message is None:
            log.debug("%s sent what is no message: %.100r", backend.id, raw)
        elif message.event == logs.EVENT:
            self.on_logs(backend, raw)
        elif message.event in _OF_THE_LINK:
            self._about_the_link(backend, message)
        elif message.prompt_id is not None:
            live = self._board.find(backend.id, message.prompt_id)
            if live is not None:
                self._about(live, message)
            else:
                self._of_an_unknown(backend, message.prompt_id, message)
        elif (live := self._board.running_on(backend.id)) is not None:
            self._about(live, message)
        elif message.event not in _OF_A_PROMPT:
            self._streams.broadcast_text(raw)

    def binary(self, backend: Backend, frame: bytes) -> None:
        """Pass on a binary message. One that names no prompt is of the one that runs; if none of ours does, of none."""
        self._heard(backend)
        self._release(backend)
        live = self._board.running_on(backend.id)
        is_pair = False
        try:
            if frames.kind(frame) == frames.FrameKind.PREVIEW_WITH_METADATA:
                metadata, image = frames.split_metadata(frame)
                named, is_pair = metadata.get("prompt_id"), True
                if isinstance(named, str):
                    live = self._board.find(backend.id, named)
                    if live is not None and live.prompt_id != named:
                        frame = frames.preview_with_metadata({**metadata, "prompt_id": live.prompt_id}, image)
        except frames.BadFrame:
            pass  # a custom node's own
        if live is None or live.is_settling:
            return
        live.heard_s = self._now()
        if is_pair:
            timer = asyncio.get_running_loop().call_later(PAIR_WITHIN_S, self._release, backend)
            self._held[backend.id] = _Held(live, frame, timer)
        else:
            self._streams.deliver_binary(live.job.client_id, frame, prompt_id=live.prompt_id)

    def _release(self, backend: Backend) -> None:
        """Pass on a preview that no progress followed."""
        if (held := self._held.pop(backend.id, None)) is not None:
            held.timer.cancel()
            self._streams.deliver_binary(held.live.job.client_id, held.frame, prompt_id=held.live.prompt_id)

    def accepted(self, backend: Backend, live: LiveJob) -> None:
        """Pass on what came of a job before it was known by which id its backend calls it."""
        early = self._early.get(backend.id, {}).pop(live.job.id_on_backend, [])
        for message in early:
            self._about(live, message)
        if not self._is_id_awaited(backend):
            self._early.pop(backend.id, None)

    def _heard(self, backend: Backend) -> None:
        self._heard_s[backend.id] = self._now()
        self._fleet.note_alive(backend)
        self._observer.relayed(backend.id)

    def _about_the_link(self, backend: Backend, message: Message) -> None:
        count = messages.queue_remaining(message) if message.event == "status" else None
        if count is not None and count != backend.queue_remaining:
            backend.queue_remaining = count
            self.on_load()

    def _of_an_unknown(self, backend: Backend, prompt_id: str, message: Message) -> None:
        """Keep a message that may be of a job whose verdict is still under way; all others are of strangers."""
        if not self._is_id_awaited(backend):
            self._early.pop(backend.id, None)
            return
        early = self._early.setdefault(backend.id, {})
        if sum(map(len, early.values())) < _MAX_EARLY:
            early.setdefault(prompt_id, []).append(message)

    def _is_id_awaited(self, backend: Backend) -> bool:
        if backend.mints_ids is False:
            return False
        return any(live.job.state is JobState.DISPATCHING for live in self._board.on(backend.id))

    def _about(self, live: LiveJob, message: Message) -> None:
        if live.is_settling:
            return
        live.heard_s = self._now()
        if message.event == "execution_start":
            self._board.started(live, now_s=self._wall_clock())
        elif message.event == "executing":
            live.node = message.node
            if message.prompt_id is None:
                return  # a reconnected link is told what its client knows already
            if message.node is not None:
                self._board.started(live, now_s=self._wall_clock())
        elif message.event == "executed" and (node := messages.executed_node(message)) is not None:
            live.executed.add(node)
        try:
            text = self._rewritten(live, message)
        except (ValueError, ArithmeticError, RecursionError) as exc:
            log.warning("a %s message of prompt %s is unreadable: %s", message.event, live.prompt_id, exc)
            return
        if live.tail or message.is_final or message.event in OUTCOMES:
            live.tail.append(text)
            if message.is_final:
                self._settler.begin(live)
            return
        if message.event == "progress" and live.job.backend in self._held:
            held = self._held.pop(live.job.backend)
            held.timer.cancel()
            if held.live is live:
                self._streams.deliver_preview(live.job.client_id, held.frame, text, prompt_id=live.prompt_id)
                return
            self._streams.deliver_binary(held.live.job.client_id, held.frame, prompt_id=held.live.prompt_id)
        self._streams.deliver_text(live.job.client_id, text, event=message.event, prompt_id=live.prompt_id)

    def _rewritten(self, live: LiveJob, message: Message) -> str:
        """Return the message in the client's words: mostly the bytes it came as.

        Those are its prompt id, the proxy's names of outputs, and in an error the client's spelling of models.
        """
        prompt_id = None
        if message.prompt_id is not None and message.prompt_id != live.prompt_id:
            prompt_id = live.prompt_id
        output = None
        if message.event == "executed" and self._fleet.prefixes and live.job.backend is not None:
            output = partial(prefix_outputs, backend=live.job.backend)
        text = message.raw
        if prompt_id is not None or output is not None:
            text = messages.rewrite(message, prompt_id=prompt_id, output=output)
        if live.spellings and message.event == "execution_error":
            text = spelling.unspelled(text.encode(), live.spellings).decode()
        return text
