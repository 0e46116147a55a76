"""One life of a simulated server: all that a restart of ComfyUI forgets."""

import asyncio
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .executor import Executor
from .faults import Faults
from .folders import Folders
from .history import History
from .nodes import stock_nodes
from .options import SimulatorOptions
from .profile import SECRETS, Profile
from .queue import Queue
from .sockets import Sockets
from .validation import Verdict, validate
from .world import ModelMemory, Pace, World

_log = logging.getLogger(__name__)

_LOG_LINES = 300
_REQUESTS_KEPT = 10_000


@dataclass(slots=True)
class Journal:
    """What happened to a server over all its lives, for tests to look at."""

    accepted: list[str] = field(default_factory=list)  # prompt ids, in order of acceptance
    executed: list[str] = field(default_factory=list)  # prompt ids, in order of beginning
    loads: list[str] = field(default_factory=list)  # checkpoints, each time that one had to be loaded
    requests: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_REQUESTS_KEPT))  # method, raw path


class Process:
    """Queue, history, sockets, node cache and the tasks that work on them."""

    def __init__(
        self, options: SimulatorOptions, profile: Profile, folders: Folders, faults: Faults, journal: Journal
    ) -> None:
        self.options, self.profile, self.folders, self.faults = options, profile, folders, faults
        pace = Pace(options.speed, faults)
        memory = ModelMemory(options.vram_models, options.load_seconds, pace, journal.loads)
        self.world = World(options, profile, folders, memory, pace, random.Random(options.seed))
        self.nodes = {name: node for name, node in stock_nodes().items() if name not in options.without_nodes}
        self.sockets = Sockets(faults)
        self.queue = Queue(self._announce)
        self.history = History()
        self.journal = journal
        self.executor = Executor(
            self.world, self.nodes, self.queue, self.history, self.sockets, faults, journal.executed
        )
        self.logs: deque[dict[str, str]] = deque(maxlen=_LOG_LINES)
        self.log_subscribers: set[str] = set()
        self._number = 0
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish and execute in the background; at the end, raise what a task died of."""
        self.log(f"simulated ComfyUI {self.profile.version}\n")
        self._tasks = [
            asyncio.create_task(self.executor.work(), name="simulator executor"),
            asyncio.create_task(self.sockets.publish(), name="simulator publisher"),
        ]
        for task in self._tasks:
            task.add_done_callback(_report)
        try:
            yield
        finally:
            self.halt()
            ends = await asyncio.gather(*self._tasks, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    def halt(self) -> None:
        """Stop executing and publishing at once."""
        for task in self._tasks:
            task.cancel()

    def exec_info(self) -> dict[str, Any]:
        """Return the body of GET /prompt."""
        return {"exec_info": {"queue_remaining": self.queue.remaining()}}

    def features(self) -> dict[str, Any]:
        """Return what the server says it supports."""
        flags = dict(self.profile.features)
        size = self.options.max_upload_mb * 1024 * 1024
        return {"supports_preview_metadata": True, "max_upload_size": int(size) if size == int(size) else size} | flags

    def greeting(self, sid: str) -> list[tuple[str, Any]]:
        """Return what a new socket hears first: the status with its id, and the node that runs for it, if one does."""
        words: list[tuple[str, Any]] = [("status", {"status": self.exec_info(), "sid": sid})]
        if self.executor.client_id == sid and self.executor.last_node_id is not None:
            words.append(("executing", {"node": self.executor.last_node_id}))
        return words

    def next_number(self, body: Any) -> float:
        """Return the place in the queue a request asks for; counts up unless it names a number."""
        if "number" in body:
            return float(body["number"])
        number = self._number
        self._number += 1
        # Not `get`: the body may be a list, which ComfyUI takes for a prompt without a graph.
        return -number if "front" in body and body["front"] else number  # noqa: RUF019

    def judge(self, graph: Any, targets: Any) -> Verdict:
        return validate(graph, targets, self.nodes, self.world)

    def accept(self, number: float, prompt_id: str, graph: Any, extra_data: Any, outputs: list[str]) -> None:
        """Put a valid prompt into the queue.

        Raises TypeError for `extra_data` that is no object, which ComfyUI 0.3.64 takes, and then its worker dies.
        """
        if not isinstance(extra_data, dict):
            raise TypeError(f"extra_data must be an object, not {type(extra_data).__name__}")
        secrets: dict[str, Any] = {}
        if self.profile.hides_secrets_in_queue:
            secrets = {name: extra_data.pop(name) for name in SECRETS if name in extra_data}
        if self.profile.stamps_create_time:
            extra_data["create_time"] = int(time.time() * 1000)
        self.queue.put((number, prompt_id, graph, extra_data, outputs, secrets))
        self.journal.accepted.append(prompt_id)
        self.log("got prompt\n")

    def mint_id(self) -> str:
        return str(uuid.uuid4())

    def log(self, line: str) -> None:
        """Add a line to the terminal that the web page shows."""
        entry = {"t": datetime.now().isoformat(), "m": line}
        self.logs.append(entry)
        for sid in list(self.log_subscribers):
            if sid in self.sockets:
                self.sockets.send("logs", {"entries": [entry], "size": None}, sid)
            else:
                self.log_subscribers.discard(sid)

    def _announce(self) -> None:
        self.sockets.send("status", {"status": self.exec_info()})


def _report(task: asyncio.Task[None]) -> None:
    """Tell of a task's death when it happens: until the end of the process the server merely seems to hang."""
    if not task.cancelled() and (error := task.exception()):
        _log.critical("%s died", task.get_name(), exc_info=error)
