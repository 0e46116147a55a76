"""POST /prompt over HTTP: what is read of the request, and what of the receipt is answered."""

import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from comfyproxy.core.errors import BadRequest, NoBackend, QueueFull
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.service.submissions import Receipt
from comfyproxy.web import keys, middleware, prompt

Client: TypeAlias = TestClient[web.Request, web.Application]
Start: TypeAlias = Callable[[TestServer], Awaitable[Client]]  # the fixture aiohttp_client

JSON = "application/json; charset=utf-8"
BODY = b'{"prompt": {"1": {}}}'


@dataclass
class FakeSubmissions:
    """Answers what it was told to, and notes what it was handed."""

    receipt: Receipt = field(
        default_factory=lambda: Receipt(status=200, body=b'{"prompt_id": "p"}', content_type=JSON, backend="gpu-a")
    )
    error: Exception | None = None
    handed: list[tuple[bytes, Mapping[str, Any]]] = field(default_factory=list)

    async def submit(self, body: bytes, *, asked: Mapping[str, Any] | None = None) -> Receipt:
        self.handed.append((body, asked or {}))
        if self.error is not None:
            raise self.error
        return self.receipt


@dataclass
class Stage:
    client: Client
    submissions: FakeSubmissions

    @property
    def bodies(self) -> list[bytes]:
        return [body for body, _ in self.submissions.handed]


@pytest.fixture
async def stage(aiohttp_client: Start) -> Stage:
    submissions = FakeSubmissions()
    app = web.Application(client_max_size=0)
    app[keys.SUBMISSIONS] = submissions
    app[keys.MAX_BODY_BYTES] = 1000
    middleware.install(app)
    app.add_routes(prompt.routes)
    server = TestServer(app)
    await server.start_server(auto_decompress=False)
    return Stage(await aiohttp_client(server), submissions)


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt"])
async def test_the_receipt_is_the_answer(stage: Stage, path: str) -> None:
    async with stage.client.post(path, data=BODY) as response:
        assert (response.status, await response.read()) == (200, b'{"prompt_id": "p"}')
        assert response.headers["Content-Type"] == JSON
        assert response.headers["X-Comfyproxy-Backend"] == "gpu-a"
    assert stage.submissions.handed == [(BODY, {})]


async def test_a_refusal_keeps_its_status_its_body_and_its_type(stage: Stage) -> None:
    stage.submissions.receipt = Receipt(status=500, body=b"500 \xff", content_type="text/plain; charset=utf-8")
    async with stage.client.post("/prompt", data=BODY) as response:
        assert (response.status, await response.read()) == (500, b"500 \xff")
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert "X-Comfyproxy-Backend" not in response.headers


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "text/plain", "application/x-www-form-urlencoded", "x/y", "multipart/form-data"],
)
async def test_the_body_is_read_whatever_its_type(stage: Stage, content_type: str) -> None:
    async with stage.client.post("/prompt", data=BODY, headers={"Content-Type": content_type}) as response:
        assert response.status == 200
    assert stage.bodies == [BODY]


async def test_the_body_may_come_in_chunks_or_compressed(stage: Stage) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(BODY), 5):
            yield BODY[start : start + 5]

    async with stage.client.post("/prompt", data=chunks()) as response:
        assert response.status == 200
    headers = {"Content-Encoding": "gzip"}
    async with stage.client.post("/prompt", data=gzip.compress(BODY), headers=headers) as response:
        assert response.status == 200
    assert stage.bodies == [BODY, BODY]


async def test_a_body_that_is_empty_or_no_json_is_the_services_matter(stage: Stage) -> None:
    for body in (b"", b"\xff{"):
        async with stage.client.post("/prompt", data=body) as response:
            assert response.status == 200
    assert stage.bodies == [b"", b"\xff{"]


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_that_is_too_long_is_413(stage: Stage, is_chunked: bool) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield b"x" * size

    for size, status in ((1000, 200), (1001, 413)):
        data: Any = chunks(size) if is_chunked else b"x" * size
        async with stage.client.post("/prompt", data=data) as response:
            assert response.status == status
    assert stage.bodies == [b"x" * 1000]


async def test_what_inflates_to_too_much_is_413(stage: Stage) -> None:
    bomb = gzip.compress(b"x" * 1_000_000)
    assert len(bomb) < 1200
    async with stage.client.post("/prompt", data=bomb, headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 413
    assert stage.bodies == []


async def test_what_cannot_be_inflated_is_400(stage: Stage) -> None:
    for encoding in ("gzip", "br"):
        async with stage.client.post("/prompt", data=BODY, headers={"Content-Encoding": encoding}) as response:
            assert response.status == 400
            assert (await response.json())["error"]["type"] == "invalid_encoding"
    assert stage.bodies == []


async def test_a_header_pins_the_prompt_to_a_backend(stage: Stage) -> None:
    async with stage.client.post("/prompt", data=BODY, headers={"X-Comfyproxy-Backend": "gpu-b"}) as response:
        assert response.status == 200
    assert stage.submissions.handed == [(BODY, {"backend": "gpu-b"})]


async def test_headers_ask_for_capabilities_and_a_priority(stage: Stage) -> None:
    headers = [
        ("X-Comfyproxy-Capabilities", "a, b"),
        ("X-Comfyproxy-Capabilities", "c"),
        ("X-Comfyproxy-Priority", "-5"),
    ]
    async with stage.client.post("/prompt", data=BODY, headers=headers) as response:
        assert response.status == 200
    assert stage.submissions.handed == [(BODY, {"capabilities": ["a", "b", "c"], "priority": -5})]


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (BadRequest("invalid_json", "no"), 400, None),
        (QueueFull("full"), 429, "10"),
        (NoBackend("none"), 503, "5"),
        (StoreUnavailable("disk"), 503, "5"),
    ],
)
async def test_errors_have_the_shape_of_comfyuis(
    stage: Stage, error: Exception, status: int, retry_after: str | None
) -> None:
    stage.submissions.error = error
    async with stage.client.post("/prompt", data=BODY) as response:
        assert (response.status, response.headers.get("Retry-After")) == (status, retry_after)
        answer = json.loads(await response.read())
    assert set(answer) == {"error", "node_errors"}
    assert set(answer["error"]) == {"type", "message", "details", "extra_info"}
