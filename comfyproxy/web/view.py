"""GET /view: the file that the history named, from the backend that has it."""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote, unquote_plus

from aiohttp import web

from comfyproxy.core import outputs
from comfyproxy.core.errors import BackendUnavailable, NoBackend, UpstreamError
from comfyproxy.core.files import FileRef
from comfyproxy.core.jobs import BackendId
from comfyproxy.service.file_ports import client_of
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.web.connection import CLIENT_CLOSED_REQUEST, ClientGone, while_connected
from comfyproxy.web.keys import FILES, FLEET, KEEPER
from comfyproxy.web.passthrough import pass_through, relay, with_query

log = logging.getLogger(__name__)

# A backend that is out may still answer, and then its pictures are seen; but no page shall hang on it.
UNHEALTHY_ANSWER_WITHIN_S = 3.0


class Wanted(NamedTuple):
    """What a query asks for."""

    ref: FileRef | None  # None where the backend has to say what is wrong with it
    owner: BackendId | None  # the backend that it names
    query: str  # for that backend: without the backend's name


async def view(request: web.Request) -> web.StreamResponse:
    """GET and HEAD /view: range, conditions, preview and channel are the backend's own work."""
    fleet = request.app[FLEET]
    if len(fleet) == 1:
        return await _from_only(request, fleet)
    wanted = wanted_of(request, fleet.names)
    if wanted.owner is not None and fleet.prefixes:
        return await _from_owner(request, fleet, wanted)
    return await _from_anywhere(request, fleet, wanted)


def wanted_of(request: web.Request, names: frozenset[str]) -> Wanted:
    """Read a query of /view (ComfyUI 0.25.0, `server.py`, `view_image`)."""
    query = request.rel_url.query
    path, annotated = outputs.parse_annotated(query.get("filename", ""))
    file_type = annotated or str(query.get("type", "output"))
    subfolder = query.get("subfolder", "")
    owner, raw_query = None, request.rel_url.raw_query_string
    if file_type in outputs.PREFIXED_TYPES:
        owner, rest = outputs.split_subfolder(subfolder, names)
        if owner is not None:
            subfolder = rest
            raw_query = _with_value(raw_query, "subfolder", lambda _: rest)
        else:
            owner, path = outputs.split_path(path, names)
            if owner is not None:
                raw_query = _with_value(raw_query, "filename", lambda value: outputs.split_path(value, names)[1])
    # The server, too, looks at the last part of the name only.
    name = outputs.split_name(path)[1]
    is_plain = name and file_type in outputs.ANNOTATIONS and ".." not in path and ".." not in subfolder
    return Wanted(FileRef(name, subfolder, file_type) if is_plain else None, owner, raw_query)


async def _from_only(request: web.Request, fleet: Fleet) -> web.StreamResponse:
    """Ask the one backend that there is; while it is away, show what was kept of it."""
    (backend,) = fleet
    try:
        return await pass_through(request, fleet.home())
    except (NoBackend, BackendUnavailable):
        kept = await _kept(request, backend, wanted_of(request, frozenset()).ref)
        if kept is None:
            raise
        return kept


async def _kept(request: web.Request, backend: Backend, ref: FileRef | None) -> web.StreamResponse | None:
    """Return the copy of an output, as it is: a smaller preview of it nobody makes here."""
    path = await request.app[KEEPER].find(backend.id, ref) if ref is not None else None
    if path is None:
        return None
    log.info("%s is away: its %s is shown from the copy", backend.id, path.name)
    return web.FileResponse(path, headers={"X-Comfyproxy-Kept": backend.id})


async def _from_owner(request: web.Request, fleet: Fleet, wanted: Wanted) -> web.StreamResponse:
    """Ask the backend that made the file; where it is away, its files are not there."""
    backend = fleet.get(wanted.owner)
    if backend is None:
        return web.Response(status=404)
    target = with_query(request, wanted.query)
    answer_within_s = None if backend.health.healthy else UNHEALTHY_ANSWER_WITHIN_S
    answer = await _or_not_found(request, fleet, backend, target, answer_within_s=answer_within_s)
    if answer.status != 404 or answer.prepared:
        return answer
    return await _kept(request, backend, wanted.ref) or answer


async def _or_not_found(
    request: web.Request, fleet: Fleet, backend: Backend, target: str, *, answer_within_s: float | None
) -> web.StreamResponse:
    try:
        async with (
            while_connected(request),
            asyncio.timeout(answer_within_s) as patience,
            client_of(backend).request(request.method, target, headers=request.headers, data=None) as answer,
        ):
            patience.reschedule(None)
            return await relay(request, backend, answer)
    except ClientGone:
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    except TimeoutError as exc:
        log.warning("%s cannot be shown: %s is out and silent: %r", target, backend.id, exc)
    except UpstreamError as exc:
        fleet.note_failure(backend, exc)
        log.warning("%s cannot be shown: %s", target, exc)
    return web.Response(status=404)


async def _from_anywhere(request: web.Request, fleet: Fleet, wanted: Wanted) -> web.StreamResponse:
    """Ask home first and, where it has no such file, the backend that has."""
    home = fleet.home()
    target = with_query(request, request.rel_url.raw_query_string)
    other: Backend | None = None
    try:
        async with (
            while_connected(request),
            client_of(home).request(request.method, target, headers=request.headers, data=None) as answer,
        ):
            if answer.status == 404:
                other = await _elsewhere(request, fleet, wanted, home)
            if other is None:
                return await relay(request, home, answer)
    except ClientGone:
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    except UpstreamError as exc:
        fleet.note_failure(home, exc)
        other = await _elsewhere(request, fleet, wanted, home)
        if other is None:
            raise
    return await pass_through(request, other, target=with_query(request, wanted.query))


async def _elsewhere(request: web.Request, fleet: Fleet, wanted: Wanted, home: Backend) -> Backend | None:
    """Return who else may have the file.

    Where outputs are shared, the history may still hold names from before, with their backend's name in front.
    """
    if wanted.ref is None:
        return None
    if wanted.owner is not None:
        return fleet.get(wanted.owner)
    return await request.app[FILES].locate(wanted.ref, skip=home)


def _with_value(raw_query: str, key: str, change: Callable[[str], str]) -> str:
    """Return the encoded query with the value of its first `key` changed, and no other byte."""
    parts = raw_query.split("&")
    for index, part in enumerate(parts):
        name, _, value = part.partition("=")
        if unquote_plus(name) == key:
            parts[index] = f"{name}={quote(change(unquote_plus(value)), safe='/')}"
            break
    return "&".join(parts)
