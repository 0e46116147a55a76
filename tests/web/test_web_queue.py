"""GET /queue and /prompt."""

import json

import pytest
from reading_support import Stage, Start

from comfyproxy.web import answers

JSON = "application/json; charset=utf-8"


@pytest.fixture
async def stage(aiohttp_client: Start) -> Stage:
    return await Stage.start(aiohttp_client)


@pytest.mark.parametrize("path", ["/queue", "/api/queue"])
async def test_the_queue_is_json(stage: Stage, path: str) -> None:
    stage.queries.parts = [b'{"queue_running": [', b"], ", b'"queue_pending": []}']
    async with stage.client.get(path) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, JSON)
        assert response.content_length == len(b"".join(stage.queries.parts))
        assert await response.json() == {"queue_running": [], "queue_pending": []}


async def test_a_long_queue_is_sent_as_it_is_made(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WHOLE_BYTES", 5)
    stage.queries.parts = [b"[", b"1234567", b", 8", b"]"]
    async with stage.client.get("/queue") as response:
        assert response.headers["Content-Type"] == JSON
        assert "Content-Length" not in response.headers
        assert await response.json() == [1234567, 8]


@pytest.mark.parametrize("path", ["/queue", "/prompt", "/history", "/history/x", "/api/jobs", "/api/jobs/a"])
@pytest.mark.parametrize("whole_bytes", [1, 1000])
async def test_head_has_the_headers_of_get(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, path: str, whole_bytes: int
) -> None:
    monkeypatch.setattr(answers, "WHOLE_BYTES", whole_bytes)
    async with stage.client.get(path) as response:
        body = await response.read()
    async with stage.client.head(path) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, JSON)
        assert response.headers["Content-Length"] == str(len(body))
        assert await response.read() == b""


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt"])
async def test_prompt_tells_how_many_are_unfinished(stage: Stage, path: str) -> None:
    async with stage.client.get(path) as response:
        assert json.loads(await response.read()) == {"exec_info": {"queue_remaining": 7}}
