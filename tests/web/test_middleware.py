"""Foreign origins are refused, and errors have the shape that clients know."""

import logging
from pathlib import Path

import pytest
from aiohttp import ClientError, web
from proxy_support import Proxy
from pytest_aiohttp import AiohttpClient

from comfyproxy.core.errors import BadRequest, DeliveryUnknown, QueueFull
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.web import middleware

ERRORS = {
    "/bad": BadRequest("invalid_json", "not JSON", details="at 1"),
    "/full": QueueFull("too many"),
    "/upstream": DeliveryUnknown("gpu-a: gone"),
    "/store": StoreUnavailable("disk full"),
    "/bug": ValueError("a bug"),
}


def failing() -> web.Application:
    async def fail(request: web.Request) -> web.Response:
        raise ERRORS[request.path]

    async def fail_late(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"half")
        raise ValueError("a bug")

    app = web.Application()
    middleware.install(app)
    for path in ERRORS:
        app.router.add_get(path, fail)
    app.router.add_get("/late", fail_late)
    return app


async def test_a_foreign_origin_is_refused_with_an_empty_403(tmp_path: Path) -> None:
    async with Proxy(tmp_path, "a") as proxy:
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            async with proxy.session.post("/prompt", data=b"{}", headers=headers) as answer:
                assert (answer.status, await answer.read()) == (403, b"")
        own = str(proxy.url.origin())
        async with proxy.session.get("/view?filename=x.png", headers={"Origin": own}) as answer:
            assert answer.status == 404
        assert proxy["a"].seen == ["GET /view?filename=x.png"]


async def test_options_is_answered_without_a_backend(tmp_path: Path) -> None:
    async with Proxy(tmp_path, "a") as proxy:
        await proxy.dies("a")
        async with proxy.session.options("/prompt") as answer:
            assert (answer.status, await answer.read()) == (200, b"")
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_with_cors_switched_on_every_answer_carries_the_headers(tmp_path: Path) -> None:
    async with Proxy(tmp_path, "a", cors_origin="*") as proxy:
        proxy["a"].put("x.png", b"x", type="output")
        headers = {"Origin": "http://other.example"}
        async with proxy.session.get("/view?filename=x.png", headers=headers) as answer:
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
        async with proxy.session.options("/prompt", headers=headers) as answer:
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/bad", 400, "invalid_json"),
        ("/full", 429, "queue_full"),
        ("/upstream", 502, "backend_failed"),
        ("/store", 503, "store_unavailable"),
    ],
)
async def test_an_error_becomes_json(aiohttp_client: AiohttpClient, path: str, status: int, kind: str) -> None:
    client = await aiohttp_client(failing())
    async with client.get(path) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["type"] == kind
        assert ("Retry-After" in answer.headers) == (status in (429, 503))


async def test_a_bug_is_logged_and_answered_as_comfyui_answers(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = await aiohttp_client(failing())
    with caplog.at_level(logging.ERROR):
        async with client.get("/bug") as answer:
            assert answer.status == 500
            assert await answer.text() == "500 Internal Server Error\n\nServer got itself in trouble"
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "a bug" in caplog.text


async def test_a_bug_in_mid_answer_breaks_the_connection(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(failing())
    async with client.get("/late") as answer:
        with pytest.raises(ClientError):
            await answer.read()


async def test_what_does_not_exist_stays_aiohttps_own_answer(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(failing())
    async with client.get("/nothing") as answer:
        assert answer.status == 404
