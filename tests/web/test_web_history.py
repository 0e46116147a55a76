"""GET and POST /history."""

import gzip
import io
import json
import zlib
from typing import Any

import pytest
from reading_support import Stage, Start

from comfyproxy.web import bodies


@pytest.fixture
async def stage(aiohttp_client: Start) -> Stage:
    return await Stage.start(aiohttp_client)


@pytest.mark.parametrize(
    ("query", "asked"),
    [("", (None, -1)), ("?max_items=2", (2, -1)), ("?max_items=1&offset=0", (1, 0)), ("?offset=-5", (None, -5))],
)
async def test_history_is_asked_for_as_the_query_says(stage: Stage, query: str, asked: Any) -> None:
    async with stage.client.get(f"/api/history{query}") as response:
        assert (response.status, await response.json()) == (200, {})
    assert stage.queries.asked == [asked]


@pytest.mark.parametrize("query", ["max_items=abc", "offset="])
async def test_a_number_that_is_none_is_refused(stage: Stage, query: str) -> None:
    async with stage.client.get(f"/history?{query}") as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request"


async def test_one_entry_is_found_by_its_id(stage: Stage) -> None:
    async with stage.client.get("/history/some-id") as response:
        assert await response.json() == {"x": "some-id"}


async def test_history_is_cleared(stage: Stage) -> None:
    async with stage.client.post("/history", json={"clear": False}) as response:
        assert response.status == 200
    assert not stage.store.was_cleared
    async with stage.client.post("/api/history", json={"clear": True}) as response:
        assert (response.status, await response.read()) == (200, b"")
        assert "Content-Type" not in response.headers
    assert stage.store.was_cleared


async def test_entries_are_deleted_and_unknown_ids_do_not_matter(stage: Stage) -> None:
    async with stage.client.post("/history", json={"delete": ["a", 5, None, "b"]}) as response:
        assert response.status == 200
    assert stage.store.deleted == ["a", "b"]


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b"5", b'{"delete": 5}', b'{"delete": "abc"}', b"\xff", b"[" * 99999]
)
async def test_a_body_of_another_kind_is_refused_in_comfyuis_shape(stage: Stage, body: bytes) -> None:
    async with stage.client.post("/history", data=body, headers={"Content-Type": "application/json"}) as response:
        answer = await response.json()
        assert response.status == 400
        assert answer["error"].keys() == {"type", "message", "details", "extra_info"}
        assert answer["node_errors"] == {}


# Bodies in all the ways in which clients send them


WANTED = json.dumps({"delete": ["é"]}, ensure_ascii=False)
RAW = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (WANTED.encode(), {"Content-Type": "text/plain"}),
        (WANTED.encode(), {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"\xef\xbb\xbf" + WANTED.encode(), {"Content-Type": "application/json"}),
        (WANTED.encode("latin-1"), {"Content-Type": "application/json; charset=ISO-8859-1"}),
        (gzip.compress(WANTED.encode(), mtime=0), {"Content-Encoding": "gzip"}),
        (zlib.compress(WANTED.encode()), {"Content-Encoding": "deflate"}),
        (RAW.compress(WANTED.encode()) + RAW.flush(), {"Content-Encoding": "deflate"}),
    ],
)
async def test_a_body_is_read_however_it_comes(stage: Stage, body: bytes, headers: dict[str, str]) -> None:
    async with stage.client.post("/history", data=body, headers=headers) as response:
        assert response.status == 200
    assert stage.store.deleted == ["é"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"no gzip", {"Content-Encoding": "gzip"}),
        (gzip.compress(WANTED.encode(), mtime=0)[:-9], {"Content-Encoding": "gzip"}),
        (WANTED.encode(), {"Content-Encoding": "br"}),
        (WANTED.encode(), {"Content-Type": "application/json; charset=klingon"}),
    ],
)
async def test_a_body_that_cannot_be_decoded_is_refused(stage: Stage, body: bytes, headers: dict[str, str]) -> None:
    async with stage.client.post("/history", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] in ("invalid_encoding", "invalid_json")


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_body_over_the_limit_is_refused_in_plain_text(stage: Stage, encoding: str) -> None:
    body = b" " * (bodies.MAX_CONTROL_BYTES + 1)
    data = io.BytesIO(gzip.compress(body) if encoding == "gzip" else body)
    async with stage.client.post("/history", data=data, headers={"Content-Encoding": encoding}) as response:
        assert (response.status, response.content_type) == (413, "text/plain")
        assert (await response.text()).startswith(f"Maximum request body size {bodies.MAX_CONTROL_BYTES} exceeded")
