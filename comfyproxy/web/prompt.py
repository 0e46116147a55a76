"""POST /prompt."""

from typing import Any

from aiohttp import web

from comfyproxy.core import options
from comfyproxy.core.options import BACKEND_HEADER
from comfyproxy.web.bodies import read_body
from comfyproxy.web.keys import MAX_BODY_BYTES, SUBMISSIONS
from comfyproxy.web.twins import both


async def post_prompt(request: web.Request) -> web.Response:
    """POST /prompt: the job is durable and judged, and the answer is as one ComfyUI server would give it.

    Headers may ask for capabilities, one backend, or a priority: see `core/options.py`.
    """
    body = await read_body(request, request.app[MAX_BODY_BYTES])
    receipt = await request.app[SUBMISSIONS].submit(body, asked=asked_by(request))
    headers = {"Content-Type": receipt.content_type}
    if receipt.backend is not None:
        headers[BACKEND_HEADER] = receipt.backend
    return web.Response(status=receipt.status, body=receipt.body, headers=headers)


def asked_by(request: web.Request) -> dict[str, Any]:
    """Return the options that a request's headers name. Raises BadRequest."""
    # A header that is there twice is a list that was cut in two.
    asked = {name: ", ".join(texts) for name in options.HEADERS if (texts := request.headers.getall(name, []))}
    return options.of_headers(asked)


routes = both("POST", "/prompt", post_prompt)
