"""POST /queue, /interrupt and /free over HTTP."""

import io
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from comfyproxy.core.errors import BadRequest, UpstreamFailed
from comfyproxy.web import control, keys, middleware
from comfyproxy.web.bodies import MAX_CONTROL_BYTES
from comfyproxy.web.seams import Control

Client: TypeAlias = TestClient[web.Request, web.Application]
Start: TypeAlias = Callable[[TestServer], Awaitable[Client]]  # the fixture aiohttp_client


@dataclass
class FakeControl:
    asked: list[Any] = field(default_factory=list)
    error: Exception | None = None

    def _asked(self, what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def delete_pending(self, prompt_ids: Iterable[str]) -> None:
        self._asked(("delete", list(prompt_ids)))

    async def clear_pending(self) -> None:
        self._asked("clear")

    async def interrupt(self, prompt_id: str | None) -> None:
        self._asked(("interrupt", prompt_id))

    async def free(self, body: bytes) -> None:
        self._asked(("free", body))


@dataclass
class Stage:
    client: Client
    control: FakeControl

    async def post(self, path: str, body: bytes | None, **headers: str) -> tuple[int, bytes]:
        async with self.client.post(path, data=body, headers=headers) as response:
            return response.status, await response.read()


@pytest.fixture
async def stage(aiohttp_client: Start) -> Stage:
    fake = FakeControl()
    app = web.Application(client_max_size=0)
    app[keys.CONTROL] = cast(Control, fake)
    middleware.install(app)
    app.add_routes(control.routes)
    server = TestServer(app)
    await server.start_server(auto_decompress=False)
    return Stage(await aiohttp_client(server), fake)


OK = (200, b"")


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_every_route_exists_twice(stage: Stage, prefix: str) -> None:
    assert await stage.post(f"{prefix}/queue", b'{"clear": true}') == OK
    assert await stage.post(f"{prefix}/interrupt", b'{"prompt_id": "p"}') == OK
    assert await stage.post(f"{prefix}/free", b"{}") == OK
    assert stage.control.asked == ["clear", ("interrupt", "p"), ("free", b"{}")]


# POST /queue


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"delete": ["a", "b"]}, [("delete", ["a", "b"])]),
        ({"delete": []}, [("delete", [])]),
        ({"delete": ["a", 5, None, ["b"]]}, [("delete", ["a"])]),
        ({"clear": True, "delete": ["a"]}, ["clear", ("delete", ["a"])]),
        ({"clear": 1}, ["clear"]),
        ({"clear": False}, []),
        ({"unknown": 1}, []),
        ({}, []),
    ],
)
async def test_the_queue_is_cleared_or_some_are_deleted(stage: Stage, body: Any, asked: list[Any]) -> None:
    assert await stage.post("/queue", json.dumps(body).encode()) == OK
    assert stage.control.asked == asked


@pytest.mark.parametrize("wanted", ['"a"', "null", "5", "true", '{"a": 1}'])
async def test_what_is_to_be_deleted_must_be_a_list(stage: Stage, wanted: str) -> None:
    status, body = await stage.post("/queue", b'{"delete": ' + wanted.encode() + b"}")
    assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request")
    assert stage.control.asked == []


@pytest.mark.parametrize("body", [b"", b"{", b"clear=true", b"[]", b"null", b'"clear"', b"\xff"])
async def test_a_queue_request_must_be_an_object(stage: Stage, body: bytes) -> None:
    status, answer = await stage.post("/queue", body)
    assert (status, json.loads(answer)["error"]["type"]) == (400, "invalid_json")
    assert stage.control.asked == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "text/plain; charset=x"])
async def test_it_is_read_whatever_its_type(stage: Stage, content_type: str) -> None:
    is_known = not content_type.endswith("=x")
    status, _ = await stage.post("/queue", b'{"clear": true}', **{"Content-Type": content_type})
    assert (status, stage.control.asked) == ((200, ["clear"]) if is_known else (400, []))


@pytest.mark.parametrize("path", ["/queue", "/interrupt", "/free"])
async def test_a_body_that_is_too_long_is_413(stage: Stage, path: str) -> None:
    async with stage.client.post(path, data=io.BytesIO(b" " * (MAX_CONTROL_BYTES + 1))) as response:
        assert response.status == 413
    assert stage.control.asked == []


# POST /interrupt


@pytest.mark.parametrize(
    ("body", "prompt_id"),
    [
        (None, None),
        (b"", None),
        (b"{}", None),
        (b"{", None),
        (b"null", None),
        (b"[]", None),
        (b'"p"', None),
        (b"prompt_id=p", None),
        (b'{"prompt_id": null}', None),
        (b'{"prompt_id": ""}', None),
        (b'{"prompt_id": "p"}', "p"),
        (b'{"prompt_id": 5}', "5"),
    ],
)
async def test_an_interrupt_may_name_its_prompt(stage: Stage, body: bytes | None, prompt_id: str | None) -> None:
    assert await stage.post("/interrupt", body) == OK
    assert stage.control.asked == [("interrupt", prompt_id)]


async def test_errors_have_the_shape_of_comfyuis(stage: Stage) -> None:
    for error, expected in ((BadRequest("prompt_id_required", "no"), 400), (UpstreamFailed("no"), 502)):
        stage.control.error = error
        status, body = await stage.post("/interrupt", b"{}")
        assert (status, json.loads(body)["error"]["type"]) == (expected, error.kind)


# POST /free


@pytest.mark.parametrize("body", [b'{"unload_models": true}', b"", b"no json \xff"])
async def test_what_is_to_be_freed_is_the_backends_matter(stage: Stage, body: bytes) -> None:
    assert await stage.post("/free", body) == OK
    assert stage.control.asked == [("free", body)]
