"""The service on a stage: real parts in front of backends, clients and a store that do as they are told."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from virtual_time import VirtualTime, all_quiet

from comfyproxy.core import catalog
from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId, Job, JobState, Payload
from comfyproxy.core.ports import JobSummary, StoreUnavailable
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.strategies import make_strategy
from comfyproxy.service.board import Board
from comfyproxy.service.control import Control
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.failover import Failover
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ghosts import Ghosts
from comfyproxy.service.live import LiveJob
from comfyproxy.service.payloads import PayloadCache
from comfyproxy.service.placement import Placement
from comfyproxy.service.reconciler import Reconciler
from comfyproxy.service.relay import Relay
from comfyproxy.service.sending import Sender
from comfyproxy.service.settling import Settler
from comfyproxy.service.submissions import Receipt, Submissions
from comfyproxy.service.withdrawal import Withdrawals
from comfyproxy.settings import HealthCheck, NodeSettings
from comfyproxy.store.memory import MemoryStore
from comfyproxy.upstream.answers import QueueView, Verdict

GRAPH = {"1": {"class_type": "Load", "inputs": {}}, "9": {"class_type": "Save", "inputs": {"x": ["1", 0]}}}
HEARTBEAT_TIMEOUT_S = 60.0
WALL_S = 5000.0  # the wall clock stands still
LINK_ID = "the-link"


def entry_of(
    prompt_id: str, outcome: str = "execution_success", *, outputs: Any = None, graph: Any = None, **data: Any
) -> bytes:
    """Return the history entry of a backend."""
    status = {
        "status_str": "success" if outcome == "execution_success" else "error",
        "completed": outcome == "execution_success",
        "messages": [
            ["execution_start", {"prompt_id": prompt_id, "timestamp": 1000}],
            [outcome, {"prompt_id": prompt_id, "timestamp": 3000, **data}],
        ],
    }
    prompt = [7, prompt_id, graph or GRAPH, {"client_id": LINK_ID, "create_time": 1}, ["9"]]
    return json.dumps({"prompt": prompt, "outputs": outputs or {}, "status": status, "meta": {}}).encode()


class FakeClient:
    """One ComfyUI server: a queue and a history, and what is to go wrong."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.pending: list[str] = []
        self.entries: dict[str, bytes] = {}
        self.calls: list[tuple[str, Any]] = []
        self.errors: dict[str, list[Exception]] = defaultdict(list)  # by method, the next ones
        self.gates: dict[str, asyncio.Event] = {}  # by method: its answers wait
        self.refuse_with: tuple[int, bytes] | None = None
        self.mints: list[str] = []  # ids that it gives instead of the caller's
        self.runs_at_once = False
        self.deletes = True  # else what was to be deleted begins to run just before

    def called(self, method: str) -> list[Any]:
        """Return the arguments of all calls of a method."""
        return [argument for name, argument in self.calls if name == method]

    async def _called(self, method: str, argument: Any = None) -> None:
        self.calls.append((method, argument))
        if (gate := self.gates.get(method)) is not None:
            await gate.wait()
        await asyncio.sleep(0)
        if self.errors[method]:
            raise self.errors[method].pop(0)

    async def probe(self) -> int:
        await self._called("probe")
        return len(self.running) + len(self.pending)

    async def submit(self, body: bytes) -> Verdict:
        said = json.loads(body)
        await self._called("submit", said)
        if self.refuse_with is not None:
            return Verdict(self.refuse_with[0], self.refuse_with[1], "application/json")
        prompt_id = self.mints.pop(0) if self.mints else said["prompt_id"]
        (self.running if self.runs_at_once else self.pending).append(prompt_id)
        answer = {"prompt_id": prompt_id, "number": said["number"], "node_errors": {}}
        return Verdict(200, json.dumps(answer).encode(), "application/json", prompt_id)

    async def queue(self) -> QueueView:
        await self._called("queue")
        return QueueView(running=dict.fromkeys(self.running, 0), pending=dict.fromkeys(self.pending, 0))

    async def history_entry(self, prompt_id: str) -> bytes | None:
        await self._called("history", prompt_id)
        return self.entries.get(prompt_id)

    async def history_marks(self, *, max_items: int) -> dict[str, str]:
        await self._called("history_marks")
        return {}

    async def delete_pending(self, prompt_ids: Sequence[str]) -> None:
        await self._called("delete", list(prompt_ids))
        if not self.deletes:
            self.running += [prompt_id for prompt_id in self.pending if prompt_id in prompt_ids]
        self.pending = [prompt_id for prompt_id in self.pending if prompt_id not in prompt_ids]

    async def interrupt(self, prompt_id: str | None) -> None:
        await self._called("interrupt", prompt_id)

    async def free(self, body: bytes) -> None:
        await self._called("free", body)

    async def features(self) -> dict[str, Any]:
        await self._called("features")
        return {}

    async def system_stats(self) -> dict[str, Any]:
        await self._called("system_stats")
        return {"system": {"comfyui_version": "0.25.0"}}

    async def object_info(self) -> bytes:
        await self._called("object_info")
        return b"{}"


class FakeStreams:
    """Notes who is told what, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str | None, Any]] = []  # client, message; `*` for all of them
        self.on_told: Callable[[], None] = lambda: None

    def to(self, client_id: str | None) -> list[Any]:
        """Return all that a client was told; `*` for what everybody was."""
        return [message for client, message in self.told if client == client_id]

    def events(self, client_id: str | None) -> list[str]:
        """Return the kinds of messages that a client was told."""
        return [message["type"] for message in self.to(client_id) if isinstance(message, dict)]

    def _tell(self, client_id: str | None, message: Any) -> None:
        self.told.append((client_id, message))
        self.on_told()

    def deliver_text(self, client_id: str | None, message: str, *, event: str, prompt_id: str | None) -> None:
        said = json.loads(message)
        assert said["type"] == event
        self._tell(client_id, said)

    def deliver_binary(self, client_id: str | None, frame: bytes, *, prompt_id: str | None = None) -> None:
        self._tell(client_id, frame)

    def deliver_preview(self, client_id: str | None, frame: bytes, progress: str, *, prompt_id: str) -> None:
        self._tell(client_id, (frame, json.loads(progress)))

    def broadcast_text(self, message: str, *, coalesce_key: str | None = None) -> None:
        self._tell("*", json.loads(message))

    def broadcast_binary(self, frame: bytes) -> None:
        self._tell("*", frame)


class FakeObserver:
    """Counts."""

    def __init__(self) -> None:
        self.ended: list[Job] = []
        self.counts: Counter[tuple[str, ...]] = Counter()

    def submitted(self, outcome: str) -> None:
        self.counts["submitted", outcome] += 1

    def dispatched(self, backend: BackendId, outcome: str) -> None:
        self.counts["dispatched", backend, outcome] += 1

    def finished(self, job: Job) -> None:
        self.ended.append(job)

    def failed_over(self, backend: BackendId) -> None:
        self.counts["failed over", backend] += 1

    def upstream_error(self, backend: BackendId, kind: str) -> None:
        self.counts["error", backend, kind] += 1

    def relayed(self, backend: BackendId) -> None:
        self.counts["relayed", backend] += 1

    def probed(self, backend: BackendId, ok: bool, seconds: float) -> None:
        self.counts["probed", backend, str(ok)] += 1


class FailingStore(MemoryStore):
    """A store that fails as often as it is told to, and notes its changes in order."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Counter[str] = Counter()
        self.changes: list[tuple[str, str, JobState | None]] = []  # method, prompt id, state

    def _change(self, method: str, prompt_id: str, state: JobState | None) -> None:
        if self.fails[method]:
            self.fails[method] -= 1
            raise StoreUnavailable("the disk is full")
        self.changes.append((method, prompt_id, state))

    async def insert(self, job: Job, payload: Payload) -> None:
        await asyncio.sleep(0)
        self._change("insert", job.prompt_id, job.state)
        await super().insert(job, payload)

    async def update(self, job: Job) -> None:
        await asyncio.sleep(0)
        self._change("update", job.prompt_id, job.state)
        await super().update(job)

    async def settle(self, job: Job, entry: bytes, summary: JobSummary) -> None:
        await asyncio.sleep(0)
        self._change("settle", job.prompt_id, job.state)
        await super().settle(job, entry, summary)

    async def cancel(self, job: Job) -> None:
        await asyncio.sleep(0)
        self._change("cancel", job.prompt_id, job.state)
        await super().cancel(job)

    async def discard(self, prompt_id: str) -> None:
        await asyncio.sleep(0)
        self._change("discard", prompt_id, None)
        await super().discard(prompt_id)

    async def payloads(self, prompt_ids: Sequence[str]) -> dict[str, Payload]:
        self._change("payloads", ",".join(prompt_ids), None)
        return await super().payloads(prompt_ids)


class FakeFiles:
    """Has every file everywhere; rewrites graphs if it is told how."""

    def __init__(self) -> None:
        self.rewritten: bytes | None = None

    async def prepare(
        self, prompt_id: str, graph: bytes, backend: Backend, upload_inputs: Container[tuple[str, str]]
    ) -> bytes | None:
        await asyncio.sleep(0)
        return self.rewritten


@dataclass
class Works:
    """The tasks that the parts start."""

    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        return task

    async def close(self) -> None:
        """Stop all; raise what one of them died of."""
        for task in self.tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


def classes(*names: str, outputs: Iterable[str] = ("Save",)) -> catalog.Catalog:
    """Return the catalog of a backend with these node classes."""
    return catalog.parse(json.dumps({name: {"output_node": name in outputs} for name in names}).encode())


def make_backend(name: str, *, max_concurrent: int = 2) -> Backend:
    """Return a backend that is up."""
    settings = NodeSettings(node_id=name, host="127.0.0.1", max_concurrent=max_concurrent)
    backend = Backend(BackendId(name), settings, FakeClient())
    backend.health, backend.epoch = Health(healthy=True), 1
    backend.catalog = classes("Load", "Save")
    return backend


def make_fleet(*names: str, max_concurrent: int = 2, now: Callable[[], float] = lambda: 0.0) -> Fleet:
    """Return a fleet whose clock stands still, unless it is given one."""
    return Fleet(
        [make_backend(name, max_concurrent=max_concurrent) for name in names],
        health_check=HealthCheck(),
        prefix_outputs=True,
        now=now,
        observer=FakeObserver(),
    )


def make_placement(
    fleet: Fleet, *, strategy: str = "least_loaded", now: Callable[[], float] = lambda: 0.0
) -> Placement:
    """Return the scheduler's place in the service."""
    return Placement(fleet, Scheduler(make_strategy(strategy)), now=now)


def make_job(prompt_id: str, *, number: float = 0.0, client_id: str | None = "c", **changes: Any) -> Job:
    job = Job(prompt_id=prompt_id, number=number, client_id=client_id, fingerprint="f", created_s=1.0)
    return replace(job, **changes)


class Stage:
    """All parts between the web and the backends. Its time is virtual; nothing of it waits for a real clock."""

    def __init__(self, *names: str, max_concurrent: int = 2, may_interrupt_all: bool = True) -> None:
        self.time = VirtualTime(asyncio.get_running_loop())
        self.works, self.streams, self.observer = Works(), FakeStreams(), FakeObserver()
        self.store, self.files = FailingStore(), FakeFiles()
        spawn = self.works.spawn
        self.fleet = Fleet(
            [make_backend(name, max_concurrent=max_concurrent) for name in names],
            health_check=HealthCheck(),
            prefix_outputs=True,
            now=self.time,
            observer=self.observer,
        )
        self.payloads = PayloadCache(self.store)
        self.placement = make_placement(self.fleet, now=self.time)
        self.board = Board(self.fleet, self.payloads, self.placement)
        self.ghosts = Ghosts(self.board, self.store)
        self.settler = Settler(
            self.board,
            self.store,
            self.fleet,
            self.streams,
            self.observer,
            spawn,
            wall_clock=lambda: WALL_S,
            heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
        )
        self.sender = Sender(
            self.fleet,
            self.payloads,
            self.files,
            self.ghosts,
            self.observer,
            client_id=LINK_ID,
            now=self.time,
            heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
        )
        self.withdrawals = Withdrawals(self.fleet, spawn, heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S)
        self.dispatcher = Dispatcher(
            self.board,
            self.store,
            self.fleet,
            self.placement,
            self.sender,
            self.withdrawals,
            self.settler,
            self.ghosts,
            spawn,
        )
        self.failover = Failover(
            self.board,
            self.fleet,
            self.placement,
            self.dispatcher,
            self.settler,
            self.ghosts,
            self.observer,
            spawn,
            is_enabled=True,
            max_retries=3,
            retry_on=(),
        )
        self.reconciler = Reconciler(
            self.board,
            self.fleet,
            self.settler,
            self.failover,
            self.ghosts,
            self.streams,
            now=self.time,
            wall_clock=lambda: WALL_S,
            heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
            stall_timeout_s=None,
        )
        self.relay = Relay(
            self.board,
            self.fleet,
            self.streams,
            self.settler,
            self.observer,
            now=self.time,
            wall_clock=lambda: WALL_S,
        )
        self._minted = 0
        self.submissions = Submissions(
            self.board,
            self.store,
            self.fleet,
            self.placement,
            self.sender,
            self.dispatcher,
            self.observer,
            wall_clock=lambda: WALL_S,
            mint_id=self._mint,
            max_jobs=1_000,
            wait_for_backend_s=0.0,
        )
        self.control = Control(
            self.board,
            self.store,
            self.fleet,
            self.withdrawals,
            self.settler,
            self.dispatcher,
            self.observer,
            wall_clock=lambda: WALL_S,
            may_interrupt_all=may_interrupt_all,
        )
        self.settler.runs_again = self.failover.runs_again
        self.settler.on_lost = self.dispatcher.on_lost = self.failover.lose
        self.settler.on_settled = self.dispatcher.wake
        self.dispatcher.on_accepted = self.relay.accepted

    def _mint(self) -> str:
        self._minted += 1
        return f"minted-{self._minted}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.works.close()

    def dispatch(self) -> None:
        """Let the dispatcher work from now on."""
        self.works.spawn(self.dispatcher.run(), name="dispatcher")

    def backend(self, name: str) -> Backend:
        backend = self.fleet.get(name)
        assert backend is not None
        return backend

    def client(self, name: str) -> FakeClient:
        client = self.backend(name).client
        assert isinstance(client, FakeClient)
        return client

    def live(self, prompt_id: str) -> LiveJob:
        live = self.board.get(prompt_id)
        assert live is not None
        return live

    async def waits(self, prompt_id: str, *, number: float = 0.0, client_id: str | None = "c") -> LiveJob:
        """Put a job into store and queue."""
        live = LiveJob(make_job(prompt_id, number=number, client_id=client_id), is_admitted=True)
        await self._keep(live)
        self.board.queue(live)
        return live

    async def has(
        self, name: str, prompt_id: str, *, runs: bool = False, client_id: str | None = "c", **changes: Any
    ) -> LiveJob:
        """Let a backend have a job, pending or running."""
        job = make_job(prompt_id, client_id=client_id, state=JobState.ACCEPTED, backend=BackendId(name), attempts=1)
        live = LiveJob(replace(job, **changes), is_admitted=True)
        await self._keep(live)
        client = self.client(name)
        (client.running if runs else client.pending).append(live.job.id_on_backend)
        if runs:
            self.board.started(live, now_s=WALL_S)
        return live

    async def _keep(self, live: LiveJob) -> None:
        await self.store.insert(live.job, Payload(graph=json.dumps(GRAPH).encode()))
        self.board.add(live)

    def ends(self, name: str, prompt_id: str, outcome: str = "execution_success", **entry: Any) -> None:
        """Let a backend end a prompt; nobody hears of it."""
        client = self.client(name)
        client.running = [running for running in client.running if running != prompt_id]
        client.pending = [pending for pending in client.pending if pending != prompt_id]
        client.entries[prompt_id] = entry_of(prompt_id, outcome, **entry)

    def says(self, name: str, event: str, data: Any = None, **members: Any) -> None:
        """Let a backend's link receive a message."""
        self.relay.text(self.backend(name), json.dumps({"type": event, "data": members if data is None else data}))

    async def submit(self, **members: Any) -> Receipt:
        """Hand in a prompt, as a client does."""
        return await self.submissions.submit(json.dumps({"prompt": GRAPH, "client_id": "c", **members}).encode())

    async def quiet(self) -> None:
        """Let everything happen that needs no time."""
        await all_quiet()
