"""Files on a backend."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from io import BytesIO

import pytest
from aiohttp import web
from PIL import Image
from upstream_support import Cut, answering, client_of, json_text, ok, raw_server, session_of, until_whole

from comfyproxy.core.errors import BadAnswer, ConnectionRefused, DeliveryUnknown
from comfyproxy.core.files import FileRef, FileStamp
from comfyproxy.simulator import SimulatedBackend
from comfyproxy.upstream import BackendClient
from comfyproxy.upstream.answers import UploadAnswer
from comfyproxy.upstream.files import OpenFile

STORED = '{"name": "x.png", "subfolder": "", "type": "input"}'
NAMES = [
    "plain.png",
    'say "cheese".png',
    "back\\slash.png",
    "ümläut 日本語 🙂.png",
    "100%25 of %20.png",
    "semi;colon='x'.png",
    " spaces .png",
    "UTF-8''x.png",
]


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def sent(client: BackendClient, source: AsyncIterator[bytes], name: str = "x.png") -> UploadAnswer:
    return await client.upload(source, name=name, type="input", subfolder="", overwrite=False, content_type="image/png")


@pytest.mark.parametrize("name", NAMES)
async def test_a_file_comes_back_under_the_name_it_was_sent_with(name: str) -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        answer = await client.upload(
            stream(b"one", b"two"),
            name=name,
            type="temp",
            subfolder="über/für's",
            overwrite=False,
            content_type="image/png",
        )
        assert answer.status == 200
        assert answer.ref == FileRef(name, "über/für's", "temp")
        stamp = await client.stat_file(answer.ref)
        assert stamp is not None
        assert stamp.size == 6
        assert stamp.etag
        async with client.open_file(answer.ref) as file:
            assert b"".join([chunk async for chunk in file.chunks()]) == b"onetwo"
            assert file.headers["ETag"] == stamp.etag


@pytest.mark.parametrize("name", NAMES)
async def test_every_field_of_a_form_arrives_intact(name: str) -> None:
    seen: list[dict[str, str | bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        form: dict[str, str | bytes] = {}
        for key, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                form |= {"filename": value.filename, "content_type": value.content_type, key: value.file.read()}
            else:
                form[key] = value if isinstance(value, str) else bytes(value)
        seen.append(form)
        return json_text(STORED)

    async with answering("/upload/mask", answer) as url, client_of(url) as client:
        original = json.dumps({"filename": name, "type": "output", "subfolder": ""}, ensure_ascii=False)
        await client.upload_mask(
            stream(b"mask"),
            name=name,
            type="input",
            subfolder=name,
            overwrite=True,
            content_type="image/webp",
            original_ref=original,
        )
    mask = {"image": b"mask", "filename": name, "content_type": "image/webp"}
    assert seen == [{"type": "input", "subfolder": name, "overwrite": "true", "original_ref": original, **mask}]


async def test_fields_that_are_not_given_are_not_sent() -> None:
    seen: list[list[str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(list(await request.post()))
        return json_text(STORED)

    async with answering("/upload/image", answer) as url, client_of(url) as client:
        await client.upload(stream(b"x"), name="x", type=None, subfolder=None, overwrite=False, content_type="a/b")
    assert seen == [["image"]]


async def test_a_name_cannot_break_out_of_its_header() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        answer = await sent(client, stream(b"x"), 'x"\r\nX-Evil: 1\r\n.png')
        assert answer.ref is not None
        assert answer.ref.name == 'x"%0D%0AX-Evil: 1%0D%0A.png'


async def test_the_server_says_under_which_name_it_keeps_a_file() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        assert (await sent(client, stream(b"one"))).ref == FileRef("x.png")
        assert (await sent(client, stream(b"two"))).ref == FileRef("x (1).png")


async def test_a_mask_is_put_over_its_original() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        assert (await sent(client, stream(_png("RGB", (10, 20, 30))))).ref == FileRef("x.png")
        answer = await client.upload_mask(
            stream(_png("RGBA", (0, 0, 0, 77))),
            name="m.png",
            type="input",
            subfolder="masks",
            overwrite=False,
            content_type="image/png",
            original_ref=json.dumps({"filename": "x.png", "type": "input", "subfolder": ""}),
        )
        assert answer.ref == FileRef("m.png", "masks")
        with Image.open(backend.folders.input / "masks" / "m.png") as image:
            assert image.getpixel((0, 0)) == (10, 20, 30, 77)


def _png(mode: str, color: tuple[int, ...]) -> bytes:
    buffer = BytesIO()
    Image.new(mode, (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_refused_upload_keeps_the_servers_answer() -> None:
    refusal = web.Response(status=413, text="Maximum request body size exceeded")
    async with answering("/upload/image", refusal) as url, client_of(url) as client:
        answer = await sent(client, stream(b"x"))
        assert (answer.status, answer.body, answer.ref) == (413, b"Maximum request body size exceeded", None)
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_an_answer_that_was_inflated_does_not_claim_to_be_compressed() -> None:
    body = b'{"name": "x.png"}'
    packed = ok(gzip.compress(body), headers=b"Content-Encoding: gzip\r\n")
    async with raw_server(packed) as server, client_of(server.url) as client:
        answer = await sent(client, stream(b"x"))
        assert answer.body == body
        assert answer.ref == FileRef("x.png")
        assert not {"Content-Encoding", "Content-Length"} & set(answer.headers)


async def test_an_upload_whose_answer_names_no_file_is_a_bad_answer() -> None:
    async with answering("/upload/image", json_text("<html>")) as url, client_of(url) as client:
        with pytest.raises(BadAnswer, match="<html>"):
            await sent(client, stream(b"x"))


async def test_what_is_not_there_has_no_stamp() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        assert await client.stat_file(FileRef("missing.png")) is None
        assert await client.stat_file(FileRef("../x.png")) is None
        assert await client.stat_file(FileRef("x.png", "../../etc")) is None
        assert await client.stat_file(FileRef("x.png", "", "nonsense")) is None
        with pytest.raises(BadAnswer, match="status 404"):
            async with client.open_file(FileRef("missing.png")):
                raise AssertionError


@pytest.mark.parametrize("status", [302, 401, 405, 500, 502])
async def test_a_server_that_cannot_tell_is_not_one_without_the_file(status: int) -> None:
    async with answering("/view", web.Response(status=status)) as url, client_of(url) as client:
        with pytest.raises(BadAnswer, match=f"status {status}"):
            await client.stat_file(FileRef("x.png"))


async def test_the_length_of_a_compressed_file_is_not_its_size() -> None:
    head = b"Content-Encoding: gzip\r\nETag: W/1\r\n"
    async with raw_server(ok(b"", headers=head, length=20)) as server, client_of(server.url) as client:
        assert await client.stat_file(FileRef("x.png")) == FileStamp(size=None, etag="W/1")


async def test_a_file_that_a_gateway_compressed_is_read_as_it_is() -> None:
    packed = web.Response(body=gzip.compress(b"x" * 1_000_000), headers={"Content-Encoding": "gzip"})
    async with answering("/view", packed) as url, client_of(url) as client, client.open_file(FileRef("x")) as file:
        assert b"".join([chunk async for chunk in file.chunks()]) == b"x" * 1_000_000


async def test_a_file_that_breaks_off_is_told_where_it_is_read() -> None:
    half = Cut(ok(b"half", length=100))
    async with (
        raw_server(half) as server,
        client_of(server.url) as client,
        client.open_file(FileRef("x.png")) as file,
    ):
        await _fails(file, "gpu: ")


async def test_a_file_that_stops_coming_is_given_up() -> None:
    timeouts = {"submit_timeout_s": 0.1, "answer_timeout_s": 0.1}
    async with (
        raw_server(ok(b"half", length=100)) as server,
        client_of(server.url, **timeouts) as client,
        client.open_file(FileRef("x.png")) as file,
    ):
        await _fails(file, "gpu: no answer in time")


async def _fails(file: OpenFile, said: str) -> None:
    with pytest.raises(DeliveryUnknown, match=said):
        async for _ in file.chunks():
            pass


async def test_an_upload_that_the_server_does_not_take_is_given_up() -> None:
    is_closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            is_closed.set()

    async def ignore(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    timeouts = {"submit_timeout_s": 0.2, "answer_timeout_s": 0.2}
    async with answering("/upload/image", ignore) as url, client_of(url, **timeouts) as client:
        with pytest.raises(DeliveryUnknown, match="gpu: no answer in time"):
            await sent(client, endless())
        assert is_closed.is_set()
        # The same where it takes all, and does not answer.
        with pytest.raises(DeliveryUnknown, match="gpu: no answer in time"):
            await sent(client, stream(b"x"))


async def test_a_source_may_be_slower_than_the_server_may() -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.15)
            yield b"x"

    timeouts = {"submit_timeout_s": 0.1, "answer_timeout_s": 0.1}
    async with answering("/upload/image", _stored) as url, client_of(url, **timeouts) as client:
        assert (await sent(client, slow())).ref == FileRef("x.png")


async def _stored(request: web.Request) -> web.Response:
    await request.post()
    return json_text(STORED)


async def test_a_source_that_fails_is_named_and_not_taken_for_the_end() -> None:
    forms: list[object] = []

    async def answer(request: web.Request) -> web.Response:
        forms.append(await request.post())
        return json_text(STORED)

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise BadAnswer("gpu-b: gone")

    async with answering("/upload/image", answer) as url, client_of(url) as client:
        with pytest.raises(DeliveryUnknown, match=r"gpu: the request's body broke off: gpu-b: gone"):
            await sent(client, broken())
        await until_whole(session_of(client))
    assert forms == []


async def test_an_upload_to_a_dead_server_leaves_its_source_untouched_and_closed() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        await backend.faults.refuse_connections()
        source = stream(b"x")
        with pytest.raises(ConnectionRefused):
            await sent(client, source)
        with pytest.raises(StopAsyncIteration):
            await anext(source)


async def test_a_file_goes_from_one_backend_to_another_without_being_whole_anywhere() -> None:
    async with SimulatedBackend() as one, SimulatedBackend() as two:
        (one.folders.output / "large.png").write_bytes(b"x" * 20_000_000)
        async with client_of(one.url) as source, client_of(two.url) as target:
            async with source.open_file(FileRef("large.png", "", "output")) as file:
                answer = await sent(target, file.chunks(), "large.png")
            assert answer.ref is not None
            assert await target.stat_file(answer.ref) is not None
            assert (two.folders.input / "large.png").stat().st_size == 20_000_000
