"""/comfyproxy/v1/...: what operators and their scripts ask and tell the proxy itself, in JSON."""

from typing import Any

from aiohttp import web

from comfyproxy.core import prompts
from comfyproxy.core.errors import BadRequest, RequestError
from comfyproxy.core.jobs import Job
from comfyproxy.service.fleet import Backend
from comfyproxy.settings import BadSettings
from comfyproxy.web.bodies import read_body
from comfyproxy.web.direct import UnknownBackend
from comfyproxy.web.keys import BOARD, DRAINS, EXPLAINER, FLEET, MAX_BODY_BYTES, RELOADS, STORE
from comfyproxy.web.prompt import asked_by

PREFIX = "/comfyproxy/v1"


async def get_backends(request: web.Request) -> web.Response:
    """GET /comfyproxy/v1/backends: every backend with its state and load."""
    return web.json_response({"backends": [_backend(backend) for backend in request.app[FLEET]]})


async def get_backend(request: web.Request) -> web.Response:
    """GET /comfyproxy/v1/backends/{name}."""
    return web.json_response(_backend(_named(request)))


async def drain(request: web.Request) -> web.Response:
    """POST /comfyproxy/v1/backends/{name}/drain: `state` says `drained` once nothing runs there any more."""
    backend = _named(request)
    await request.app[DRAINS].drain(backend)
    return web.json_response(_backend(backend))


async def undrain(request: web.Request) -> web.Response:
    """POST /comfyproxy/v1/backends/{name}/undrain."""
    backend = _named(request)
    await request.app[DRAINS].undrain(backend)
    return web.json_response(_backend(backend))


async def get_job(request: web.Request) -> web.Response:
    """GET /comfyproxy/v1/jobs/{prompt_id}: where a job is, and why; 404 if it was never here or is forgotten."""
    prompt_id = request.match_info["prompt_id"]
    board = request.app[BOARD]
    job = board.job(prompt_id) or await request.app[STORE].get(prompt_id)
    if job is None:
        return web.json_response({"error": f"no such job: {prompt_id}"}, status=404)
    return web.json_response(_job(job, is_running=board.is_running(prompt_id)))


async def reload(request: web.Request) -> web.Response:
    """POST /comfyproxy/v1/reload: read the configuration again; 400 with all that is wrong, and nothing has changed."""
    try:
        reloaded = await request.app[RELOADS].reload()
    except BadSettings as exc:
        raise BadConfiguration(exc) from exc
    return web.json_response({"applied": reloaded.applied, "needs_restart": reloaded.needs_restart})


class BadConfiguration(RequestError):
    """The configuration cannot be used; `extra_info.problems` has each problem of it."""

    status = 400
    kind = "bad_configuration"

    def __init__(self, cause: BadSettings) -> None:
        problems = [
            {"where": problem.where, "path": problem.path, "line": problem.line, "message": problem.message}
            for problem in cause.problems
        ]
        message = "The configuration cannot be used; everything stays as it was"
        super().__init__(message, details=str(cause), extra_info={"problems": problems})


async def explain_job(request: web.Request) -> web.Response:
    """GET /comfyproxy/v1/explain/{prompt_id}: why an unfinished prompt is where it is, or waits."""
    prompt_id = request.match_info["prompt_id"]
    explained = request.app[EXPLAINER].of_job(prompt_id)
    if explained is None:
        return web.json_response({"error": f"no such unfinished job: {prompt_id}"}, status=404)
    return web.json_response(explained)


async def explain_prompt(request: web.Request) -> web.Response:
    """POST /comfyproxy/v1/explain: where the prompt in the body would go, and what is missing where; nothing is run.

    The body and the headers are those of POST /prompt.
    """
    body = await read_body(request, request.app[MAX_BODY_BYTES])
    envelope = prompts.parse(body, asked_by(request))
    if envelope is None:
        raise BadRequest("no_prompt", "No prompt provided", details="No prompt provided")
    return web.json_response(request.app[EXPLAINER].of_prompt(envelope))


def _named(request: web.Request) -> Backend:
    name = request.match_info["name"]
    backend = request.app[FLEET].get(name)
    if backend is None:
        raise UnknownBackend("unknown_backend", f"There is no backend called {name!r}")
    return backend


def _backend(backend: Backend) -> dict[str, Any]:
    return {
        "name": backend.id,
        "url": backend.settings.url,
        "state": backend.state,
        "in_flight": len(backend.in_flight),
        "max_concurrent": backend.settings.max_concurrent,
        "queue_remaining": backend.queue_remaining,
        "link_connected": backend.link is not None and backend.link.connected,
        "version": backend.version,
        "last_error": backend.last_error,
    }


def _job(job: Job, *, is_running: bool) -> dict[str, Any]:
    return {
        "prompt_id": job.prompt_id,
        "state": "running" if is_running else str(job.state),
        "number": job.number,
        "client_id": job.client_id,
        "backend": job.backend,
        "attempts": job.attempts,
        "created_s": job.created_s,
        "started_s": job.started_s,
        "finished_s": job.finished_s,
        "error": job.error,
    }


routes = [
    web.get(f"{PREFIX}/backends", get_backends),
    web.get(f"{PREFIX}/backends/{{name}}", get_backend),
    web.post(f"{PREFIX}/backends/{{name}}/drain", drain),
    web.post(f"{PREFIX}/backends/{{name}}/undrain", undrain),
    web.post(f"{PREFIX}/reload", reload),
    web.get(f"{PREFIX}/jobs/{{prompt_id}}", get_job),
    web.get(f"{PREFIX}/explain/{{prompt_id}}", explain_job),
    web.post(f"{PREFIX}/explain", explain_prompt),
]
