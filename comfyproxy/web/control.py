"""POST /queue, /interrupt and /free: what stops jobs, and what frees memory."""

from aiohttp import web

from comfyproxy.core.errors import BadRequest
from comfyproxy.web.bodies import MAX_CONTROL_BYTES, read_body, read_json, read_object
from comfyproxy.web.keys import CONTROL
from comfyproxy.web.twins import both


async def post_queue(request: web.Request) -> web.Response:
    """POST /queue: cancel all that wait (`clear`) or some (`delete`); what runs goes on."""
    wanted = await read_object(request)
    control = request.app[CONTROL]
    if wanted.get("clear"):
        await control.clear_pending()
    if "delete" in wanted:
        prompt_ids = wanted["delete"]
        if not isinstance(prompt_ids, list):
            raise BadRequest("invalid_request", "`delete` must be a list of prompt ids")
        await control.delete_pending([prompt_id for prompt_id in prompt_ids if isinstance(prompt_id, str)])
    return web.Response()


async def post_interrupt(request: web.Request) -> web.Response:
    """POST /interrupt: stop one running prompt, or without a `prompt_id` all that run; the body may be missing."""
    try:
        wanted = await read_json(request)
    except BadRequest:
        wanted = None
    prompt_id = wanted.get("prompt_id") if isinstance(wanted, dict) else None
    await request.app[CONTROL].interrupt(str(prompt_id) if prompt_id else None)
    return web.Response()


async def post_free(request: web.Request) -> web.Response:
    """POST /free: every backend unloads its models, or frees its memory."""
    body = await read_body(request, MAX_CONTROL_BYTES)
    await request.app[CONTROL].free(body)
    return web.Response()


queue_routes = [*both("POST", "/queue", post_queue), *both("POST", "/interrupt", post_interrupt)]
free_routes = both("POST", "/free", post_free)
routes = [*queue_routes, *free_routes]
