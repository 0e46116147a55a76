"""/status for people, /healthz and /readyz for machines that watch the proxy."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp_jinja2
import jinja2
from aiohttp import web

from comfyproxy import __version__
from comfyproxy.core.jobs import Job
from comfyproxy.service.fleet import Backend
from comfyproxy.web.keys import BOARD, FLEET, QUERIES, WALL_CLOCK
from comfyproxy.web.seams import Board

TEMPLATE = "status.html"
REFRESH_S = 5
SHOWN_PENDING = 50
SHOWN_LAST = 20
_MAX_TEXT = 300  # characters of an error

# The page has no scripts and loads nothing; whatever got into it could not either.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


def install(app: web.Application, loader: jinja2.BaseLoader) -> None:
    """Prepare the templates; what comes from outside is escaped."""
    aiohttp_jinja2.setup(
        app, loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@dataclass(frozen=True, slots=True)
class _JobRow:
    prompt_id: str
    number: str
    client: str | None
    backend: str | None
    state: str
    is_running: bool
    waited: str
    ran: str
    ended: str
    error: str | None

    @property
    def short_id(self) -> str:
        return self.prompt_id[:8]


@dataclass(frozen=True, slots=True)
class _BackendRow:
    name: str
    address: str
    state: str
    in_flight: int
    max_in_flight: int
    queue_remaining: int
    version: str | None
    last_error: str | None
    jobs: list[_JobRow]


async def get_status(request: web.Request) -> web.Response:
    """GET /status: every backend, the queue, and the last prompts; `?refresh=0` keeps the page as it is."""
    app = request.app
    fleet, board, now_s = app[FLEET], app[BOARD], app[WALL_CLOCK]()
    by_backend: dict[str, list[_JobRow]] = {}
    pending: list[Job] = []
    running = 0
    for job in board.unfinished():
        if is_running := board.is_running(job.prompt_id):
            running += 1
        else:
            pending.append(job)
        if job.backend is not None:
            by_backend.setdefault(job.backend, []).append(_job_row(job, now_s, is_running=is_running))
    backends = [_backend_row(backend, by_backend.get(backend.id, [])) for backend in fleet]
    context: dict[str, Any] = {
        "version": __version__,
        "refresh_s": _refresh_s(request),
        "backends": backends,
        "ready": len(fleet.ready()),
        "running": running,
        "in_flight": sum(backend.in_flight for backend in backends),
        "pending": len(pending),
        "queue": [_job_row(job, now_s) for job in heapq.nsmallest(SHOWN_PENDING, pending, key=lambda job: job.number)],
        "last": [_job_row(job, now_s) for job in await app[QUERIES].last_settled(SHOWN_LAST)],
        **_counts(board),
    }
    response = aiohttp_jinja2.render_template(TEMPLATE, request, context)
    response.headers.update(_HEADERS)
    return response


async def get_healthz(request: web.Request) -> web.Response:
    """GET /healthz: this process answers."""
    return web.Response(text="ok")


async def get_readyz(request: web.Request) -> web.Response:
    """GET /readyz: 200 while some backend takes new jobs, else 503 and why none does."""
    fleet = request.app[FLEET]
    backends = {str(backend.id): backend.state for backend in fleet}
    if fleet.ready():
        return web.json_response({"ready": True, "backends": backends})
    reason = fleet.describe_absence() or "no backend is configured"
    return web.json_response({"ready": False, "reason": reason, "backends": backends}, status=503)


def duration(seconds: float) -> str:
    """Say a duration as people do, in two units at most."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def _counts(board: Board) -> dict[str, int]:
    return {"unfinished": board.count, "waiting": board.waiting_count}


def _backend_row(backend: Backend, jobs: Iterable[_JobRow]) -> _BackendRow:
    return _BackendRow(
        name=backend.id,
        address=f"{backend.settings.host}:{backend.settings.port}",
        state=backend.state,
        in_flight=len(backend.in_flight),
        max_in_flight=backend.settings.max_concurrent,
        queue_remaining=backend.queue_remaining,
        version=backend.version,
        last_error=_shortened(backend.last_error),
        jobs=sorted(jobs, key=lambda job: not job.is_running),
    )


def _job_row(job: Job, now_s: float, *, is_running: bool = False) -> _JobRow:
    has_run = job.started_s is not None and job.finished_s is not None
    return _JobRow(
        prompt_id=job.prompt_id,
        number=f"{job.number:g}" if abs(job.number) < 1e6 else f"{job.number:.0f}",
        client=job.client_id,
        backend=job.backend,
        state=job.state,
        is_running=is_running,
        waited=duration(now_s - job.created_s),
        ran=duration((job.finished_s or 0) - (job.started_s or 0)) if has_run else "-",
        ended=f"{duration(now_s - job.finished_s)} ago" if job.finished_s is not None else "-",
        error=_shortened(job.error),
    )


def _shortened(text: str | None) -> str | None:
    return text if text is None or len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _refresh_s(request: web.Request) -> int:
    value = request.query.get("refresh", "")
    return min(int(value), 3600) if value.isascii() and value.isdigit() else REFRESH_S


routes = [web.get("/status", get_status), web.get("/healthz", get_healthz), web.get("/readyz", get_readyz)]
