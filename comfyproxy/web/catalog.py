"""What there is (node classes, models, features, devices) as if all backends were one server."""

import logging
from collections.abc import Sequence

from aiohttp import ETag, hdrs, web

from comfyproxy.core.errors import UpstreamError, UpstreamFailed
from comfyproxy.service.catalogs import Document
from comfyproxy.service.file_ports import client_of
from comfyproxy.service.fleet import Backend
from comfyproxy.service.sources import Refusal
from comfyproxy.web.connection import CLIENT_CLOSED_REQUEST, ClientGone, is_gone, while_connected
from comfyproxy.web.keys import CATALOGS, FLEET
from comfyproxy.web.passthrough import pass_through, relay, target_of
from comfyproxy.web.twins import both

log = logging.getLogger(__name__)

# An answer is written in pieces of this size, so that what waits for a slow client is one copy for all of them.
PIECE_BYTES = 256 * 1024
# A model that many backends have is asked of so many of them: where these know no preview of it, there is hardly any.
MAX_ASKED = 4
MAX_REFUSAL_BYTES = 64 * 1024

_JSON = "application/json; charset=utf-8"
_GZIP_SUFFIX = "-gzip"  # of the ETag: what is compressed is another representation


async def object_info(request: web.Request) -> web.StreamResponse:
    """GET /object_info: every class that any backend has, with all their choices."""
    return await send(request, await request.app[CATALOGS].object_info())


async def object_info_of(request: web.Request) -> web.StreamResponse:
    """GET /object_info/{node_class}: `{}` where no backend has it."""
    return await send(request, await request.app[CATALOGS].object_info_of(request.match_info["node_class"]))


async def model_kinds(request: web.Request) -> web.StreamResponse:
    """GET /models: the kinds of models."""
    return await send(request, await request.app[CATALOGS].model_kinds())


async def models(request: web.Request) -> web.StreamResponse:
    """GET /models/{folder}: the names of models of a kind."""
    return await send(request, await request.app[CATALOGS].models(request.match_info["folder"]))


async def embeddings(request: web.Request) -> web.StreamResponse:
    """GET /embeddings: their names."""
    return await send(request, await request.app[CATALOGS].embeddings())


async def model_folders(request: web.Request) -> web.StreamResponse:
    """GET /experiment/models: the kinds of models with their folders."""
    return await send(request, await request.app[CATALOGS].model_folders())


async def model_files(request: web.Request) -> web.StreamResponse:
    """GET /experiment/models/{folder}: the models of a kind as files."""
    return await send(request, await request.app[CATALOGS].model_files(request.match_info["folder"]))


async def system_stats(request: web.Request) -> web.StreamResponse:
    """GET /system_stats: the home backend's system, and all devices."""
    return await send(request, await request.app[CATALOGS].system_stats())


async def features(request: web.Request) -> web.StreamResponse:
    """GET /features: what a websocket's feature flags are answered with."""
    return await send(request, await request.app[CATALOGS].features())


async def preview(request: web.Request) -> web.StreamResponse:
    """GET /experiment/models/preview/{folder}/{path_index}/{filename}: a picture, from a backend that has the model."""
    kind, index, name = (request.match_info[key] for key in ("folder", "path_index", "filename"))
    if len(request.app[FLEET]) == 1 or not (index.isascii() and index.isdecimal()):
        return await pass_through(request, request.app[FLEET].home())
    return await _first_of(request, await request.app[CATALOGS].holders_of_file(kind, name, int(index)))


async def view_metadata(request: web.Request) -> web.StreamResponse:
    """GET /view_metadata/{folder}?filename=: what a model says of itself, from a backend that has it."""
    kind, name = request.match_info["folder"], request.query.get("filename")
    if len(request.app[FLEET]) == 1 or name is None:
        return await pass_through(request, request.app[FLEET].home())
    return await _first_of(request, await request.app[CATALOGS].holders_of_model(kind, name))


async def send(request: web.Request, found: Document | Refusal) -> web.StreamResponse:
    """Answer with a document in the form that the client takes, or with 304 if it has that already."""
    if isinstance(found, Refusal):
        headers = {} if found.content_type is None else {hdrs.CONTENT_TYPE: found.content_type}
        return web.Response(status=found.status, body=found.body, headers=headers)
    is_gzipped = found.is_compressible and accepts_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
    etag = found.etag + (_GZIP_SUFFIX if is_gzipped else "")
    headers = {hdrs.ETAG: f'"{etag}"', hdrs.VARY: hdrs.ACCEPT_ENCODING}
    if _is_known(request.if_none_match, found.etag):
        return web.Response(status=304, headers=headers)
    body = await found.gzipped() if is_gzipped else found.body
    headers |= {hdrs.CONTENT_TYPE: _JSON, hdrs.CONTENT_LENGTH: str(len(body))}
    if is_gzipped:
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    if request.method == hdrs.METH_HEAD:
        return web.Response(headers=headers)
    if len(body) <= PIECE_BYTES:
        return web.Response(body=body, headers=headers)
    response = web.StreamResponse(headers=headers)
    try:
        await response.prepare(request)
        pieces = memoryview(body)
        for start in range(0, len(body), PIECE_BYTES):
            await response.write(pieces[start : start + PIECE_BYTES])
        await response.write_eof()
    except ConnectionError:
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    return response


def accepts_gzip(accepted: str) -> bool:
    """Whether a client takes gzip, by its Accept-Encoding (RFC 9110, 12.5.3); one that says nothing gets it plain."""
    by_name: dict[str, bool] = {}
    for item in accepted.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weights = [parameter.partition("=")[2] for parameter in parameters if parameter.startswith("q=")]
        by_name[name] = not any(_is_zero(weight) for weight in weights)
    return by_name.get("gzip", by_name.get("x-gzip", by_name.get("*", False)))


def _is_zero(weight: str) -> bool:
    try:
        return float(weight) <= 0
    except ValueError:
        return False


def _is_known(conditions: Sequence[ETag] | None, etag: str) -> bool:
    """Whether a client has the content, in whichever form."""
    return any(tag.value == "*" or tag.value.removesuffix(_GZIP_SUFFIX) == etag for tag in conditions or ())


async def _first_of(request: web.Request, backends: Sequence[Backend]) -> web.StreamResponse:
    """Let the first backend answer that has what is asked for; if none has, the first one's refusal is the answer."""
    refusal: web.Response | None = None
    failure: UpstreamError | None = None
    for backend in backends[:MAX_ASKED]:
        try:
            async with (
                while_connected(request),
                client_of(backend).request(
                    request.method, target_of(request), headers=request.headers, data=None
                ) as answer,
            ):
                if answer.status < 400:
                    return await relay(request, backend, answer)
                if refusal is None:
                    body = await answer.content.read(MAX_REFUSAL_BYTES)
                    kept = {
                        name: answer.headers[name]
                        for name in (hdrs.CONTENT_TYPE, hdrs.CONTENT_ENCODING, hdrs.CACHE_CONTROL)
                        if name in answer.headers
                    }
                    refusal = web.Response(status=answer.status, body=body, headers=kept)
        except ClientGone:
            return web.Response(status=CLIENT_CLOSED_REQUEST)
        except UpstreamError as exc:
            if is_gone(request):
                return web.Response(status=CLIENT_CLOSED_REQUEST)
            request.app[FLEET].note_failure(backend, exc)
            log.warning("%s did not answer %s: %s", backend.id, request.path, exc)
            failure = exc
    if refusal is None:
        raise UpstreamFailed("No backend answered", details=str(failure)) from failure
    return refusal


merged_routes = [
    *both("GET", "/object_info", object_info),
    *both("GET", "/object_info/{node_class}", object_info_of),
    *both("GET", "/models", model_kinds),
    *both("GET", "/models/{folder}", models),
    *both("GET", "/embeddings", embeddings),
    *both("GET", "/experiment/models", model_folders),
    *both("GET", "/experiment/models/{folder}", model_files),
    *both("GET", "/system_stats", system_stats),
    *both("GET", "/features", features),
]
owner_routes = [
    *both("GET", "/experiment/models/preview/{folder}/{path_index}/{filename:.*}", preview),
    *both("GET", "/view_metadata/{folder}", view_metadata),
]
routes = [*merged_routes, *owner_routes]
