"""The proxy as one process: started, kept going, and stopped without losing anything."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import jinja2
from aiohttp import web

from comfyproxy.applying import appliers
from comfyproxy.assembly import MEGABYTE, Parts, Store, assemble
from comfyproxy.service.explaining import Explainer
from comfyproxy.service.recovery import recover
from comfyproxy.service.reloading import Reloads
from comfyproxy.service.tasks import Tasks
from comfyproxy.settings import Settings
from comfyproxy.store.memory import MemoryStore
from comfyproxy.store.sqlite import SqliteStore
from comfyproxy.upstream import open_session
from comfyproxy.web import application, keys
from comfyproxy.web.ws import LIVE, Live

log = logging.getLogger(__name__)

DATABASE = "comfyproxy.sqlite3"
SPOOL = "uploads"
KEPT = "outputs"
# Names the proxy towards its backends; running prompts report to it, so it is the same in its next life.
CLIENT_ID_KEY = "client_id"

HANG_UP_EVERY_S = 0.1

_MAX_HEADER_BYTES = 64 * 1024


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    *,
    on_listening: Callable[[str], None],
    read: Callable[[], Settings] | None = None,
    reload_wanted: asyncio.Event | None = None,
) -> None:
    """Run the proxy until `stop` is set.

    Args:
        on_listening: called with the proxy's URL once it takes requests.
        read: reads the settings again, from wherever they came; may raise BadSettings. None: they stay as they are.
        reload_wanted: set by whoever wants them to be read again, such as a signal.

    Raises StoreError if the store cannot be opened, OSError if the address cannot be had, and in an ExceptionGroup
    whatever a background task died of.
    """
    async with _open_store(settings) as store, open_session() as session, asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        client_id = await store.get_meta(CLIENT_ID_KEY)
        if client_id is None:
            client_id = f"comfyproxy-{uuid.uuid4().hex}"
            await store.set_meta(CLIENT_ID_KEY, client_id)
        parts = assemble(
            settings,
            store=store,
            session=session,
            tasks=tasks,
            client_id=client_id,
            spool_dir=settings.store.data_dir / SPOOL,
            kept_dir=settings.store.data_dir / KEPT,
        )
        reloads = Reloads(settings, read or (lambda: settings), appliers(parts), wanted=reload_wanted)
        runner = web.AppRunner(
            build_application(parts, reloads),
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=75.0,
            shutdown_timeout=settings.server.shutdown_timeout,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )
        try:
            await _start(parts, reloads, tasks, runner, on_listening)
            await stop.wait()
        finally:
            await _stop(parts, tasks, runner)


def build_application(parts: Parts, reloads: Reloads) -> web.Application:
    """Return the web application in front of the parts."""
    settings, hub = parts.settings, parts.hub
    app = application.build(
        templates=jinja2.PackageLoader("comfyproxy.templates", ""),
        counted_in=parts.metrics,
        cors_origin=settings.server.cors_origin,
    )
    app[keys.FLEET], app[keys.FILES], app[keys.QUERIES] = parts.fleet, parts.files, parts.queries
    app[keys.STORE], app[keys.CONTROL], app[keys.BOARD] = parts.store, parts.control, parts.board
    app[keys.DRAINS], app[keys.KEEPER] = parts.drains, parts.keeper
    app[keys.EXPLAINER] = Explainer(parts.fleet, parts.board, parts.placement)
    app[keys.MIRROR], app[keys.LOGS], app[keys.CATALOGS] = parts.mirror, parts.logs, parts.catalogs
    app[keys.SUBMISSIONS], app[keys.METRICS], app[keys.RELOADS] = parts.submissions, parts.metrics, reloads
    app[keys.MAX_BODY_BYTES] = round(settings.server.max_body_mb * MEGABYTE)
    app[keys.CANCEL_ROUTES_ENABLED] = lambda: any(backend.has_cancel_routes for backend in parts.fleet)
    app[keys.WALL_CLOCK] = time.time
    app[LIVE] = Live(
        hub=hub,
        queue_remaining=lambda: parts.board.count,
        features=parts.features,
        running_node=parts.board.running_node,
        max_sockets=settings.websocket.max_sockets,
        heartbeat_s=settings.websocket.heartbeat,
    )
    return app


@asynccontextmanager
async def _open_store(settings: Settings) -> AsyncIterator[Store]:
    keep = settings.store
    store: Store
    if keep.type == "memory":
        store = MemoryStore(max_history=settings.history.max_items)
    else:
        path = Path(keep.data_dir) / DATABASE
        store = SqliteStore(path, max_history=settings.history.max_items, synchronous=keep.synchronous)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def _start(
    parts: Parts, reloads: Reloads, tasks: Tasks, runner: web.AppRunner, on_listening: Callable[[str], None]
) -> None:
    await parts.files.open()
    await parts.keeper.open()
    await parts.drains.restore()
    await recover(parts.board, parts.store, parts.fleet, parts.placement, parts.dispatcher, parts.reconciler)
    tasks.loop(parts.awake.run(), name="awake clock")
    tasks.loop(parts.dispatcher.run(), name="dispatcher")
    parts.roster.open()
    tasks.loop(reloads.run(), name="reloads")
    await runner.setup()
    server = parts.settings.server
    await web.TCPSite(runner, server.host, server.port).start()
    port = runner.addresses[0][1]
    on_listening(f"http://{f'[{server.host}]' if ':' in server.host else server.host}:{port}")


async def _stop(parts: Parts, tasks: Tasks, runner: web.AppRunner) -> None:
    """Take no new prompts, finish what is being sent or settled, say goodbye, and let go.

    Jobs on backends run on; the next start finds them.
    """
    log.info("stopping: no new prompts are taken")
    parts.dispatcher.is_stopping = True
    patience_s = parts.settings.server.shutdown_timeout
    try:
        async with asyncio.timeout(patience_s):
            await parts.submissions.finish()
    except TimeoutError:
        log.warning("some prompts have no verdict yet: they are looked for at the next start")
    if unfinished := await tasks.finish(patience_s):
        log.warning("not finished in time, to be taken up at the next start: %s", ", ".join(unfinished))
    parts.announcer.close()
    parts.hub.close_all()
    await _close(runner)
    await parts.submissions.close()
    await parts.files.close()
    await parts.sources.close()
    parts.mirror.close()
    tasks.cancel()


async def _close(runner: web.AppRunner) -> None:
    """Close the server: answer what was begun, and hang up on everybody who is idle.

    aiohttp hangs up on idle connections once; one that was accepted in that moment would hold it up for the whole
    shutdown_timeout.
    """
    cleanup = asyncio.ensure_future(runner.cleanup())
    while not cleanup.done():
        if runner.server is not None:
            runner.server.pre_shutdown()
        await asyncio.wait({cleanup}, timeout=HANG_UP_EVERY_S)
    await cleanup
