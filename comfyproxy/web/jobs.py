"""The jobs API: GET /api/jobs, GET /api/jobs/{id}, and the two ways to cancel.

Listing is as in ComfyUI 0.25.0, cancelling as in 0.26 (`server.py`); there is no bare twin of these routes.
"""

import uuid
from typing import Any

from aiohttp import web

from comfyproxy.core.errors import BadRequest
from comfyproxy.core.jobs_api import BadQuery, parse_query
from comfyproxy.web.answers import json_bytes, send_parts, stepwise
from comfyproxy.web.bodies import read_json
from comfyproxy.web.keys import CANCEL_ROUTES_ENABLED, CONTROL, QUERIES


async def get_jobs(request: web.Request) -> web.StreamResponse:
    """GET /api/jobs: a page of all jobs, whatever their state."""
    try:
        query = parse_query(request.query)
    except BadQuery as exc:
        return _refuse(400, str(exc))
    return await send_parts(request, stepwise(await request.app[QUERIES].jobs(query)))


async def get_job(request: web.Request) -> web.Response:
    """GET /api/jobs/{job_id}: with outputs and workflow once it has ended."""
    job = await request.app[QUERIES].job(request.match_info["job_id"])
    return _refuse(404, "Job not found") if job is None else json_bytes(job)


async def cancel_job(request: web.Request) -> web.Response:
    """POST /api/jobs/{job_id}/cancel: never an error, also for what is unknown or has ended."""
    _require_cancel_routes(request)
    cancelled = await request.app[CONTROL].cancel([request.match_info["job_id"]])
    return web.json_response({"cancelled": bool(cancelled)})


async def cancel_jobs(request: web.Request) -> web.Response:
    """POST /api/jobs/cancel: those of `job_ids` that wait or run; the others do not matter, unless they are no ids."""
    _require_cancel_routes(request)
    try:
        body = await read_json(request)
    except BadRequest:
        return _refuse(400, "Request body must be valid JSON")
    job_ids = body.get("job_ids") if isinstance(body, dict) else None
    if not isinstance(job_ids, list):
        return _refuse(400, "job_ids must be a list")
    if invalid := [job_id for job_id in job_ids if not await _is_id(request, job_id)]:
        shown = [job_id if isinstance(job_id, str) else repr(job_id) for job_id in invalid]
        return _refuse(400, "job_ids contains invalid id(s)", invalid_ids=shown)
    cancelled = await request.app[CONTROL].cancel(job_ids)
    return web.json_response({"cancelled": bool(cancelled)})


async def _is_id(request: web.Request, value: Any) -> bool:
    """Whether a value may name a job: a canonical UUID, or the id of one that an older server let its client choose."""
    if not isinstance(value, str):
        return False
    try:
        if str(uuid.UUID(value)) == value:
            return True
    except ValueError:
        pass
    return await request.app[CONTROL].known(value)


def _require_cancel_routes(request: web.Request) -> None:
    """Answer as a server without these routes does, where the fleet has none that knows them."""
    if not request.app[CANCEL_ROUTES_ENABLED]():
        raise web.HTTPMethodNotAllowed("POST", ["GET", "HEAD"])


def _refuse(status: int, error: str, **more: Any) -> web.Response:
    return web.json_response({"error": error, **more}, status=status)


list_routes = [web.get("/api/jobs", get_jobs), web.get("/api/jobs/{job_id}", get_job)]
cancel_routes = [web.post("/api/jobs/cancel", cancel_jobs), web.post("/api/jobs/{job_id}/cancel", cancel_job)]
routes = [*list_routes, *cancel_routes]
