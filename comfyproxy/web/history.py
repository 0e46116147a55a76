"""GET and POST /history: what has ended, from the store; no backend is asked, nor told."""

from aiohttp import web

from comfyproxy.core.errors import BadRequest
from comfyproxy.web.answers import json_bytes, send_parts
from comfyproxy.web.bodies import read_object
from comfyproxy.web.keys import QUERIES, STORE
from comfyproxy.web.twins import both


async def get_history(request: web.Request) -> web.StreamResponse:
    """GET /history: with `max_items` the last ones, with `offset` from there on."""
    max_items, offset = _integer(request, "max_items"), _integer(request, "offset")
    parts = request.app[QUERIES].history(max_items=max_items, offset=-1 if offset is None else offset)
    return await send_parts(request, parts)


async def get_history_entry(request: web.Request) -> web.Response:
    """GET /history/{prompt_id}: `{}` for what is unknown or has not ended."""
    return json_bytes(await request.app[QUERIES].history_entry(request.match_info["prompt_id"]))


async def post_history(request: web.Request) -> web.Response:
    """POST /history: forget all (`clear`) or some (`delete`); unknown ids do not matter."""
    wanted = await read_object(request)
    store = request.app[STORE]
    if wanted.get("clear"):
        await store.clear_history()
    if "delete" in wanted:
        prompt_ids = wanted["delete"]
        if not isinstance(prompt_ids, list):
            raise BadRequest("invalid_request", "`delete` must be a list of prompt ids")
        await store.delete_history([prompt_id for prompt_id in prompt_ids if isinstance(prompt_id, str)])
    return web.Response()


def _integer(request: web.Request, name: str) -> int | None:
    value = request.query.get(name)
    try:
        return None if value is None else int(value)
    except ValueError:
        raise BadRequest("invalid_request", f"`{name}` must be an integer", details=value or "") from None


routes = [
    *both("GET", "/history", get_history),
    *both("GET", "/history/{prompt_id}", get_history_entry),
    *both("POST", "/history", post_history),
]
