"""Backends for a model of the whole: what they do, and when it is heard, is decided by whoever plays them."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import service_path  # noqa: F401
from service_support import entry_of

from comfyproxy.core.errors import ConnectionRefused, DeliveryUnknown, NotDelivered
from comfyproxy.upstream.answers import QueueView, Verdict

T = TypeVar("T")

TIMEOUT_S = 5.0  # of every request
# A backend that answers nothing for so long may be given up: its last sign of life may lie a probe's interval back.
GIVEN_UP_S = 25.0


@dataclass
class Request:
    """One that lies in a backend's socket."""

    effect: Callable[[], Any]
    answer: asyncio.Future[Any]


@dataclass
class Server:
    """One ComfyUI server; it outlives the proxies in front of it.

    Attributes:
        is_given_up: prompts that it may have although the proxy need not know.
        faults: what becomes of the next requests: `request` or `answer` is lost.
        heard: messages on their way to the link.
    """

    name: str
    now: Callable[[], float]
    check_submit: Callable[["Server", str], None]
    pending: list[tuple[float, str]] = field(default_factory=list)
    running: str | None = None
    is_interrupted: bool = False
    entries: dict[str, bytes] = field(default_factory=dict)
    is_alive: bool = True
    frozen_s: float | None = None  # since when
    faults: list[str] = field(default_factory=list)
    inbox: list[Request] = field(default_factory=list)
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    visits: set[str] = field(default_factory=set)  # came to be judged
    excused: set[str] = field(default_factory=set)
    is_late: bool = False  # what is being done is not waited for any more

    @property
    def is_frozen(self) -> bool:
        return self.frozen_s is not None

    @property
    def has(self) -> set[str]:
        """The prompts that wait, run, or have ended here."""
        running = set() if self.running is None else {self.running}
        return {prompt_id for _, prompt_id in self.pending} | set(self.entries) | running

    def is_excused(self, prompt_id: str) -> bool:
        """Whether the proxy may have given up that this prompt is here."""
        is_silent = self.frozen_s is not None and self.now() - self.frozen_s > GIVEN_UP_S
        return not self.is_alive or is_silent or prompt_id in self.excused

    def handle(self) -> None:
        """Do what was asked."""
        while self.inbox and not self.is_frozen:
            request = self.inbox.pop(0)
            self.is_late = request.answer.done()
            result = request.effect()
            if not request.answer.done():
                request.answer.set_result(result)

    def start(self) -> None:
        """Begin to run the next prompt."""
        if self.is_alive and not self.is_frozen and self.running is None and self.pending:
            _, self.running = self.pending.pop(0)
            self.is_interrupted = False
            self.say("execution_start")
            self.say("executing", node="1")

    def end(self, outcome: str) -> None:
        """End the one that runs."""
        if not self.is_alive or self.is_frozen or self.running is None:
            return
        if self.is_interrupted:
            outcome = "execution_interrupted"
        self.entries[self.running] = entry_of(self.running, outcome)
        self.say(outcome)
        self.say("executing", node=None)
        self.running = None

    def say(self, event: str, **data: Any) -> None:
        self.heard.append((event, {"prompt_id": self.running, **data}))

    def kill(self) -> None:
        """Die, with all that is in memory."""
        self.is_alive, self.frozen_s, self.running = False, None, None
        self.pending, self.entries, self.heard = [], {}, []
        # Who came to be judged stays known: the proxy counts him until it has noticed the death.
        self.excused, self.faults = set(), []
        inbox, self.inbox = self.inbox, []
        for request in inbox:
            if not request.answer.done():
                request.answer.set_exception(DeliveryUnknown(f"{self.name}: connection reset"))

    def restart(self) -> None:
        """Come back, empty."""
        if self.is_alive:
            self.kill()
        self.is_alive = True

    def freeze(self) -> None:
        if self.is_alive and self.frozen_s is None:
            self.frozen_s = self.now()

    def thaw(self) -> None:
        """Go on, first with what was asked meanwhile."""
        if self.frozen_s is None:
            return
        was_long = self.now() - self.frozen_s > GIVEN_UP_S
        self.frozen_s = None
        self.handle()
        if was_long:
            self.excused |= self.has

    def link_cut(self) -> None:
        """Lose what was said and not yet heard."""
        self.heard.clear()


class Calls:
    """One proxy's client of one server; when that proxy has died nothing it asked for goes on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.is_severed = False

    async def _ask(self, effect: Callable[[], T]) -> T:
        server = self._server
        await self._travel()
        if not server.is_alive:
            raise ConnectionRefused(f"{server.name}: refused")
        fault = server.faults.pop(0) if server.faults else ""
        if fault == "unread":
            raise NotDelivered(f"{server.name}: the idle connection was closed")
        if fault == "request":
            raise DeliveryUnknown(f"{server.name}: the request was lost")
        request = Request(effect, asyncio.get_running_loop().create_future())
        server.inbox.append(request)
        server.handle()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer: T = await request.answer
        except TimeoutError:
            raise DeliveryUnknown(f"{server.name}: no answer in time") from None
        await self._travel()
        if fault == "answer":
            raise DeliveryUnknown(f"{server.name}: the answer was lost")
        return answer

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if self.is_severed:
            await asyncio.get_running_loop().create_future()

    async def probe(self) -> int:
        return await self._ask(lambda: len(self._server.pending) + (self._server.running is not None))

    async def submit(self, body: bytes) -> Verdict:
        said = json.loads(body)
        prompt_id, number = said["prompt_id"], said["number"]

        def take() -> Verdict:
            server = self._server
            if server.is_late:
                server.excused.add(prompt_id)  # whoever sent it has given it up, and may have sent it elsewhere
            else:
                server.check_submit(server, prompt_id)
                server.excused.discard(prompt_id)
            server.pending = sorted([*server.pending, (number, prompt_id)])
            if number >= 2**52:
                server.visits.add(prompt_id)
            else:
                server.visits.discard(prompt_id)
            answer = {"prompt_id": prompt_id, "number": number, "node_errors": {}}
            return Verdict(200, json.dumps(answer).encode(), "application/json", prompt_id)

        return await self._ask(take)

    async def queue(self) -> QueueView:
        def view() -> QueueView:
            server = self._server
            running = {server.running: 0.0} if server.running is not None else {}
            return QueueView(running=running, pending={prompt_id: number for number, prompt_id in server.pending})

        return await self._ask(view)

    async def history_entry(self, prompt_id: str) -> bytes | None:
        return await self._ask(lambda: self._server.entries.get(prompt_id))

    async def history_marks(self, *, max_items: int) -> dict[str, str]:
        return await self._ask(dict)

    async def delete_pending(self, prompt_ids: Sequence[str]) -> None:
        def delete() -> None:
            self._server.pending = [item for item in self._server.pending if item[1] not in prompt_ids]

        await self._ask(delete)

    async def interrupt(self, prompt_id: str | None) -> None:
        def interrupt() -> None:
            if prompt_id in (None, self._server.running):
                self._server.is_interrupted = True

        await self._ask(interrupt)

    async def free(self, body: bytes) -> None:
        await self._ask(lambda: None)

    async def features(self) -> dict[str, Any]:
        return await self._ask(dict)

    async def system_stats(self) -> dict[str, Any]:
        return await self._ask(dict)

    async def object_info(self) -> bytes:
        return await self._ask(lambda: b"{}")
