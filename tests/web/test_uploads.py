"""POST /upload/image and /upload/mask through the proxy."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from proxy_support import Proxy, picture

MIB = 1024 * 1024


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy(tmp_path, "a", "b", "c") as proxy:
        yield proxy
        assert list((tmp_path / "spool").iterdir()) == []


async def post(proxy: Proxy, form: Any, path: str = "/upload/image") -> tuple[int, Any]:
    async with proxy.session.post(path, data=form) as answer:
        body = await answer.read()
        return answer.status, json.loads(body) if answer.content_type == "application/json" else body


@pytest.mark.parametrize("name", ["up.png", "写真 (1).png", 'it\'s "quoted".png'])
async def test_an_uploaded_file_is_on_every_backend(proxy: Proxy, name: str) -> None:
    sent = name.replace('"', "%22")  # as browsers write it
    status, body = await post(proxy, picture(sent, b"data", subfolder="sub", type="input"))
    assert (status, body["subfolder"], body["type"]) == (200, "sub", "input")
    for comfy in proxy.comfy.values():
        assert comfy.path(body["name"], "input", "sub").read_bytes() == b"data"


async def test_names_that_collide_end_as_one_unique_name(proxy: Proxy) -> None:
    proxy["b"].put("up.png", b"a stranger's")
    _, body = await post(proxy, picture("up.png", b"ours"))
    assert body["name"] != "up.png"
    for comfy in proxy.comfy.values():
        assert comfy.path(body["name"]).read_bytes() == b"ours"
    assert proxy["b"].path("up.png").read_bytes() == b"a stranger's"


async def test_overwrite_is_passed_on(proxy: Proxy) -> None:
    await post(proxy, picture("up.png", b"one"))
    assert (await post(proxy, picture("up.png", b"two", overwrite="true")))[1]["name"] == "up.png"
    assert [comfy.path("up.png").read_bytes() for comfy in proxy.comfy.values()] == [b"two"] * 3


async def test_a_mask_is_laid_over_the_output_of_another_backend(proxy: Proxy) -> None:
    proxy["b"].put("x.png", b"original+", type="output", subfolder="sub")
    original = json.dumps({"filename": "x.png", "subfolder": "b/sub", "type": "output"})
    status, body = await post(proxy, picture("mask.png", b"mask", original_ref=original), "/upload/mask")
    assert (status, body["name"]) == (200, "mask.png")
    assert [comfy.path("mask.png").read_bytes() for comfy in proxy.comfy.values()] == [b"original+mask"] * 3


async def test_a_form_without_a_file_is_a_bad_request(proxy: Proxy) -> None:
    with aiohttp.MultipartWriter("form-data") as form:
        form.append("y").set_content_disposition("form-data", name="x")
    assert await post(proxy, form) == (400, b"")
    assert await post(proxy, picture("m.png", b"mask"), "/upload/mask") == (400, b"")


async def test_what_home_refuses_reaches_the_client_unchanged(proxy: Proxy) -> None:
    async def refuse(request: web.Request) -> web.Response:
        await request.post()
        return web.Response(status=400)

    proxy["a"].answer_upload = refuse
    async with proxy.session.post("/upload/image", data=picture("up.png", b"x", subfolder="../..")) as answer:
        assert (answer.status, await answer.read()) == (400, b"")
        assert "Content-Type" not in answer.headers
    assert proxy["b"].seen == []


async def test_64_mib_are_uploaded_without_being_held(proxy: Proxy) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(MIB)

    async def swallow(request: web.Request) -> web.Response:
        size = 0
        async for part in await request.multipart():
            assert isinstance(part, aiohttp.BodyPartReader)
            while chunk := await part.read_chunk(MIB):
                size += len(chunk)
        sizes.append(size)
        return web.json_response({"name": "big.bin", "subfolder": "", "type": "input"})

    sizes: list[int] = []
    for comfy in proxy.comfy.values():
        comfy.answer_upload = swallow
    tracemalloc.start()
    try:
        status, _ = await post(proxy, picture("big.bin", blocks()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, sizes) == (200, [64 * MIB] * 3)
    assert peak < 24 * MIB


async def test_a_client_that_leaves_in_mid_upload_leaves_nothing_behind(proxy: Proxy, tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        await asyncio.Event().wait()

    async def spool_is(wanted: int) -> None:
        async with asyncio.timeout(10):
            while len(list((tmp_path / "spool").iterdir())) != wanted:
                await asyncio.sleep(0.01)

    upload = asyncio.create_task(post(proxy, picture("up.png", endless())))
    await spool_is(1)
    upload.cancel()
    await spool_is(0)
    assert proxy["a"].seen == []


async def test_with_one_backend_the_upload_goes_straight_through(tmp_path: Path) -> None:
    async with Proxy(tmp_path, "a") as proxy:
        status, body = await post(proxy, picture("up.png", b"data"))
        assert (status, body["name"]) == (200, "up.png")
        assert not list((tmp_path / "spool").iterdir())
