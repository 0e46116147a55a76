"""POST /prompt."""

from aiohttp import web

from comfyproxy.web.bodies import read_body
from comfyproxy.web.keys import MAX_BODY_BYTES, SUBMISSIONS
from comfyproxy.web.passthrough import BACKEND_HEADER
from comfyproxy.web.twins import both


async def post_prompt(request: web.Request) -> web.Response:
    """POST /prompt: the job is durable and judged, and the answer is as one ComfyUI server would give it.

    A header X-Comfyproxy-Backend pins the prompt to one backend.
    """
    body = await read_body(request, request.app[MAX_BODY_BYTES])
    receipt = await request.app[SUBMISSIONS].submit(body, pinned=request.headers.get(BACKEND_HEADER))
    headers = {"Content-Type": receipt.content_type}
    if receipt.backend is not None:
        headers[BACKEND_HEADER] = receipt.backend
    return web.Response(status=receipt.status, body=receipt.body, headers=headers)


routes = both("POST", "/prompt", post_prompt)
