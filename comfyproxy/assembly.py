"""All parts of the service, put together: what `app.py` starts and stops."""

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import aiohttp
from prometheus_client import CollectorRegistry

from comfyproxy import plugins
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.ports import FileIndex, JobStore
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.types import MaxBypass
from comfyproxy.metrics import Metrics
from comfyproxy.service.announcer import Announcer
from comfyproxy.service.answering import Answering
from comfyproxy.service.awake import AwakeClock
from comfyproxy.service.board import Board
from comfyproxy.service.catalogs import Catalogs
from comfyproxy.service.control import Control
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.drain import Drains
from comfyproxy.service.failover import Failover
from comfyproxy.service.features import ServerFeatures
from comfyproxy.service.files import Files
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ghosts import Ghosts
from comfyproxy.service.hub import ClientHub
from comfyproxy.service.keeping import Keeper
from comfyproxy.service.linking import LinkKeeper
from comfyproxy.service.live import LiveJob
from comfyproxy.service.logs import LogSubscriptions
from comfyproxy.service.mailbox import Mailboxes
from comfyproxy.service.mirroring import Mirror
from comfyproxy.service.payloads import PayloadCache
from comfyproxy.service.placement import Placement
from comfyproxy.service.prober import Prober
from comfyproxy.service.queries import Queries
from comfyproxy.service.reconciler import Reconciler
from comfyproxy.service.relay import Relay
from comfyproxy.service.roster import Roster
from comfyproxy.service.sending import Sender
from comfyproxy.service.settling import Settler
from comfyproxy.service.sources import Sources
from comfyproxy.service.submissions import Submissions
from comfyproxy.service.tasks import Tasks
from comfyproxy.service.withdrawal import Withdrawals
from comfyproxy.settings import BadSettings, NodeSettings, Problem, SchedulingSettings, Settings
from comfyproxy.upstream import BackendClient, BackendLink

MEGABYTE = 1024 * 1024
GIGABYTE = 1024 * MEGABYTE
DAY_S = 86_400


class Store(JobStore, FileIndex, Protocol):
    """Where everything lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts that are started, stopped, or asked by the web."""

    settings: Settings
    awake: AwakeClock
    store: Store
    metrics: Metrics
    fleet: Fleet
    board: Board
    placement: Placement
    hub: ClientHub
    announcer: Announcer
    files: Files
    keeper: Keeper
    queries: Queries
    submissions: Submissions
    dispatcher: Dispatcher
    control: Control
    reconciler: Reconciler
    prober: Prober
    drains: Drains
    mirror: Mirror
    logs: LogSubscriptions
    features: ServerFeatures
    sources: Sources
    catalogs: Catalogs
    settler: Settler
    sender: Sender
    withdrawals: Withdrawals
    failover: Failover
    roster: Roster
    apply_scheduling: Callable[[Settings], None]


def assemble(
    settings: Settings,
    *,
    store: Store,
    session: aiohttp.ClientSession,
    tasks: Tasks,
    client_id: str,
    spool_dir: Path,
    kept_dir: Path,
) -> Parts:
    """Build everything; nothing runs yet.

    Args:
        client_id: of the links; the same in every life of this proxy, since running prompts report to it.
        spool_dir: where uploads rest on their way.
        kept_dir: where copies of outputs are kept, if that is configured.
    """
    check, balancing = settings.nodes.health_check, settings.nodes.load_balancing
    heartbeat_timeout_s = check.heartbeat_timeout
    awake = AwakeClock(time.monotonic)
    metrics = Metrics(CollectorRegistry())
    fleet = Fleet(
        [_backend(node, session, timeout_s=check.timeout) for node in settings.nodes.static_nodes],
        health_check=check,
        prefix_outputs=not settings.outputs.shared,
        now=awake.now,
        observer=metrics,
    )
    payloads = PayloadCache(store)
    placement = Placement(fleet, _scheduler(settings), now=awake.now)
    board = Board(fleet, payloads, placement)
    hub = _hub(settings, metrics)
    announcer = Announcer(hub, lambda: board.count)
    answering = Answering(hub)
    files = Files(fleet, store, spool_dir)
    kept = settings.outputs
    copies = Keeper(
        fleet,
        tasks.spawn,
        kept_dir if kept.keep else None,
        max_bytes=round(kept.keep_max_gb * GIGABYTE),
        max_age_s=kept.keep_max_days * DAY_S,
        wall_clock=time.time,
    )
    settler = Settler(
        board,
        store,
        fleet,
        answering,
        metrics,
        tasks.spawn,
        wall_clock=time.time,
        heartbeat_timeout_s=heartbeat_timeout_s,
    )
    ghosts = Ghosts(board, store)
    sender = Sender(
        fleet,
        payloads,
        files,
        ghosts,
        metrics,
        client_id=client_id,
        now=awake.now,
        heartbeat_timeout_s=heartbeat_timeout_s,
    )
    withdrawals = Withdrawals(fleet, tasks.spawn, heartbeat_timeout_s=heartbeat_timeout_s)
    dispatcher = Dispatcher(board, store, fleet, placement, sender, withdrawals, settler, ghosts, tasks.spawn)
    failover = Failover(
        board,
        fleet,
        placement,
        dispatcher,
        settler,
        ghosts,
        metrics,
        tasks.spawn,
        is_enabled=balancing.enable_failover,
        max_retries=balancing.max_retries,
        retry_on=balancing.retry_on,
    )
    reconciler = Reconciler(
        board,
        fleet,
        settler,
        failover,
        ghosts,
        answering,
        now=awake.now,
        wall_clock=time.time,
        heartbeat_timeout_s=heartbeat_timeout_s,
        stall_timeout_s=check.stall_timeout,
    )
    relay = Relay(board, fleet, answering, settler, metrics, now=awake.now, wall_clock=time.time)
    sources = Sources(fleet, now=time.monotonic, patience_s=check.timeout)
    features = ServerFeatures(fleet)
    prober = Prober(
        fleet, reconciler, sources, metrics, interval_s=check.interval, now=time.monotonic, jitter=random.uniform
    )
    keeper = LinkKeeper(relay, prober)
    for backend in fleet:
        backend.link = _link(backend, session, client_id, relay, keeper)

    def make(node: NodeSettings) -> Backend:
        backend = _backend(node, session, timeout_s=fleet.health_check.timeout)
        backend.link = _link(backend, session, client_id, relay, keeper)
        return backend

    submissions = Submissions(
        board,
        store,
        fleet,
        placement,
        sender,
        dispatcher,
        metrics,
        wall_clock=time.time,
        mint_id=lambda: str(uuid.uuid4()),
        max_jobs=settings.queue.max_jobs,
        wait_for_backend_s=settings.queue.wait_for_backend,
    )
    catalogs = Catalogs(fleet, sources, features, now=time.monotonic, max_age_s=settings.catalog.max_age)
    submissions.look_again = catalogs.look_again
    submissions.on_taken, submissions.on_answered = answering.hold, answering.release
    mirror = Mirror(fleet, tasks.spawn)
    logs = LogSubscriptions(fleet, hub, tasks.spawn, client_id=client_id)
    _connect(board, fleet, dispatcher, settler, failover, relay, prober, keeper, announcer)
    settler.on_ended = copies.keep
    _follow(board, fleet, placement, dispatcher, submissions, relay, keeper, mirror, logs, sources)
    metrics.watch(fleet, board, lambda: hub.connected)
    return Parts(
        settings=settings,
        awake=awake,
        store=store,
        metrics=metrics,
        fleet=fleet,
        board=board,
        placement=placement,
        hub=hub,
        announcer=announcer,
        files=files,
        keeper=copies,
        queries=Queries(board, store, fleet),
        submissions=submissions,
        dispatcher=dispatcher,
        control=Control(
            board,
            store,
            fleet,
            withdrawals,
            settler,
            dispatcher,
            metrics,
            wall_clock=time.time,
            may_interrupt_all=settings.interrupt_without_id == "all",
        ),
        reconciler=reconciler,
        prober=prober,
        drains=Drains(fleet, board, store, dispatcher),
        mirror=mirror,
        logs=logs,
        features=features,
        sources=sources,
        catalogs=catalogs,
        settler=settler,
        sender=sender,
        withdrawals=withdrawals,
        failover=failover,
        roster=Roster(fleet, board, placement, dispatcher, reconciler, prober, sources, mirror, tasks.loop, make=make),
        apply_scheduling=partial(_apply_scheduling, placement.scheduler, dispatcher),
    )


def _scheduler(settings: Settings) -> Scheduler:
    strategy = plugins.make_strategy(settings.nodes.load_balancing.strategy)
    scheduling = settings.scheduling
    return Scheduler(strategy, max_bypass=_max_bypass(scheduling), ageing_s=scheduling.priority_ageing)


def _apply_scheduling(scheduler: Scheduler, dispatcher: Dispatcher, settings: Settings) -> None:
    """Let another strategy, or other numbers of the scheduler, hold from now on.

    Raises BadSettings, and changes nothing, if the strategy cannot be had.
    """
    try:
        strategy = plugins.make_strategy(settings.nodes.load_balancing.strategy)
    except plugins.BadPlugin as exc:
        raise BadSettings([Problem("strategy", str(exc), "nodes.load_balancing.strategy")]) from exc
    scheduling = settings.scheduling
    scheduler.use(strategy, max_bypass=_max_bypass(scheduling), ageing_s=scheduling.priority_ageing)
    dispatcher.wake()  # it may send what the one before let wait


def _max_bypass(scheduling: SchedulingSettings) -> MaxBypass:
    return MaxBypass(count=scheduling.max_bypass.count, seconds=scheduling.max_bypass.seconds)


def _connect(
    board: Board,
    fleet: Fleet,
    dispatcher: Dispatcher,
    settler: Settler,
    failover: Failover,
    relay: Relay,
    prober: Prober,
    keeper: LinkKeeper,
    announcer: Announcer,
) -> None:
    """Let what happens in one part be heard by those whom it concerns."""
    board.on_change = announcer.changed
    fleet.on_suspicion = prober.suspect
    settler.on_settled = dispatcher.wake
    settler.runs_again = failover.runs_again
    settler.on_lost = dispatcher.on_lost = failover.lose
    relay.on_load = prober.on_load = dispatcher.wake

    def accepted(backend: Backend, live: LiveJob) -> None:
        relay.accepted(backend, live)
        keeper.expect_news(backend, live)

    dispatcher.on_accepted = accepted


def _follow(
    board: Board,
    fleet: Fleet,
    placement: Placement,
    dispatcher: Dispatcher,
    submissions: Submissions,
    relay: Relay,
    keeper: LinkKeeper,
    mirror: Mirror,
    logs: LogSubscriptions,
    sources: Sources,
) -> None:
    """Let those who hang on backends hear when one comes or goes."""

    def restored(backend: Backend) -> None:
        dispatcher.wake()
        submissions.backend_restored()
        mirror.restored(backend)
        logs.renew(backend)
        sources.changed()

    def ejected(backend: Backend) -> None:
        logs.renew(backend)
        sources.expire(backend)

    def disconnected(backend: Backend) -> None:
        for live in board.on(backend.id):
            live.is_gapless = False

    def left(backend: Backend) -> None:
        placement.left(backend)
        logs.renew(backend)

    fleet.on_restored, fleet.on_ejected, fleet.on_left = restored, ejected, left
    keeper.on_disconnected = disconnected
    keeper.on_connected = logs.renew
    relay.on_logs = logs.deliver


def _backend(node: NodeSettings, session: aiohttp.ClientSession, *, timeout_s: float) -> Backend:
    client = BackendClient(BackendId(node.node_id), node.url, session, timeout_s=timeout_s)
    return Backend(BackendId(node.node_id), node, client)


def _link(
    backend: Backend, session: aiohttp.ClientSession, client_id: str, relay: Relay, keeper: LinkKeeper
) -> BackendLink:
    return BackendLink(
        backend.id,
        backend.settings.url,
        session,
        client_id=client_id,
        on_text=partial(relay.text, backend),
        on_binary=partial(relay.binary, backend),
        on_connected=partial(keeper.connected, backend),
        on_disconnected=partial(keeper.disconnected, backend),
        random=random.uniform,
    )


def _hub(settings: Settings, metrics: Metrics) -> ClientHub:
    websocket = settings.websocket
    return ClientHub(
        client_buffer=round(websocket.client_buffer_mb * MEGABYTE),
        preview_buffer=round(websocket.preview_buffer_mb * MEGABYTE),
        mailbox=Mailboxes(clock=time.monotonic, max_bytes=round(websocket.mailbox_mb * MEGABYTE)),
        mint_sid=lambda: uuid.uuid4().hex,
        observer=metrics,
    )
