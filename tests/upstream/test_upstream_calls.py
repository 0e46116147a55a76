"""The API of a backend: honest answers, and odd ones."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from upstream_support import LOAD, PROMPT_ID, answering, client_of, json_text, ok, raw_server, serving

from comfyproxy.core.errors import BadAnswer, DeliveryUnknown, UpstreamError
from comfyproxy.core.jobs import BackendId
from comfyproxy.simulator import SimulatedBackend
from comfyproxy.upstream import BackendClient, open_session

TEXT = {"1": {"class_type": "ConformanceText", "inputs": {"text": "a"}}}
ENDLESS = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {
        "class_type": "ConformanceSampler",
        "inputs": {"image": ["1", 0], "seed": 1, "steps": 400, "seconds": 20, "preview": False, "fail_at": 0},
    },
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}
Call = Callable[[BackendClient], Awaitable[Any]]


def prompt(graph: Any = TEXT, **more: Any) -> bytes:
    return json.dumps({"prompt": graph, "client_id": "proxy", **more}).encode()


async def test_a_prompt_goes_through_queue_and_history() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        assert await client.probe() == 0
        verdict = await client.submit(prompt(prompt_id=PROMPT_ID))
        assert verdict.accepted
        assert (verdict.status, verdict.prompt_id, verdict.node_errors) == (200, PROMPT_ID, b"{}")
        assert verdict.content_type == "application/json; charset=utf-8"
        assert json.loads(verdict.body)["prompt_id"] == PROMPT_ID
        entry = None
        while entry is None:
            entry = await client.history_entry(PROMPT_ID)
        assert json.loads(entry)["prompt"][1] == PROMPT_ID
        assert await client.history_entry("unknown") is None


async def test_an_invalid_prompt_gets_the_servers_own_words() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        broken = {"1": {"class_type": "SaveImage", "inputs": {}}}
        verdict = await client.submit(prompt(broken))
        assert (verdict.status, verdict.accepted, verdict.prompt_id) == (400, False, None)
        assert json.loads(verdict.node_errors)["1"]["class_type"] == "SaveImage"
        assert (await client.submit(b"no json")).status == 500


async def test_a_prompt_of_megabytes_is_sent_without_complaint() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        graph = {"1": {"class_type": "ConformanceText", "inputs": {"text": "x" * 5_000_000}}}
        assert (await client.submit(prompt(graph))).accepted


async def test_a_server_that_mints_its_ids_says_which() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        backend.faults.mint_prompt_ids = True
        verdict = await client.submit(prompt(prompt_id=PROMPT_ID))
        assert verdict.accepted
        assert verdict.prompt_id == backend.accepted[0] != PROMPT_ID


async def test_waiting_prompts_are_seen_and_taken_back() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        running = (await client.submit(prompt(ENDLESS))).prompt_id
        waiting = (await client.submit(prompt(number=-7.5))).prompt_id
        queue = await client.queue()
        while running not in queue.running:
            queue = await client.queue()
        assert dict(queue.running) == {running: 0}
        assert dict(queue.pending) == {waiting: -7.5}
        assert await client.probe() == 2
        await client.delete_pending([str(waiting), "unknown"])
        await client.delete_pending([])
        assert not (await client.queue()).pending
        await client.interrupt("another")
        assert (await client.queue()).running
        await client.interrupt(running)
        while (await client.queue()).running:
            pass
        await client.interrupt(None)


async def test_what_the_server_is_and_has() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        assert (await client.features())["supports_preview_metadata"] is True
        assert (await client.system_stats())["system"]["comfyui_version"] == "0.25.0"
        assert "SaveImage" in json.loads(await client.object_info())
        await client.free(b"")
        await client.free(b'{"unload_models": true}')


@pytest.mark.parametrize("status", [404, 405])
async def test_a_server_too_old_for_features_has_none(status: int) -> None:
    async with answering("/features", web.Response(status=status)) as url, client_of(url) as client:
        assert await client.features() == {}


async def test_all_paths_come_after_the_one_in_the_url() -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.Response(body=LOAD)

    async with answering("/{any:.*}", answer) as url, client_of(f"{url}/comfy/") as client:
        await client.probe()
        await client.history_entry("a/b c?#%ü")
        async with client.request("GET", "/x%2Fy", headers={}, data=None):
            pass
    assert seen == ["/comfy/prompt", "/comfy/history/a%2Fb%20c%3F%23%25%C3%BC", "/comfy/x%2Fy"]


@pytest.mark.parametrize("url", ["gpu:8188", "ftp://gpu", "http://", "http://gpu?x=1", "http://gpu#x", "/gpu"])
async def test_what_is_no_address_of_a_server_is_refused_at_once(url: str) -> None:
    async with open_session() as session:
        with pytest.raises(ValueError, match="gpu"):
            BackendClient(BackendId("gpu"), url, session, timeout_s=1)


async def test_credentials_in_the_url_are_sent_and_the_clients_own_are_not() -> None:
    seen: list[list[str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.getall("Authorization", []))
        return web.Response(body=LOAD)

    async with answering("/prompt", answer) as url:
        async with client_of(url.replace("//", "//me:secret@")) as client:
            await client.probe()
            async with client.request("GET", "/prompt", headers={"Authorization": "Bearer x"}, data=None):
                pass
        async with (
            client_of(url) as client,
            client.request("GET", "/prompt", headers={"Authorization": "Bearer x"}, data=None),
        ):
            pass
    assert seen == [["Basic bWU6c2VjcmV0"]] * 2 + [["Bearer x"]]


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", None)]
)
async def test_an_answer_that_a_gateway_compressed_is_read_all_the_same(
    encoding: str, compress: Callable[[bytes], bytes] | None
) -> None:
    nodes = json.dumps({"Node": {"filler": ["x" * 40_000_000, *range(100_000)]}}).encode()
    raw = zlib.compressobj(wbits=-15)
    packed = compress(nodes) if compress else raw.compress(nodes) + raw.flush()
    answer = web.Response(body=packed, headers={"Content-Encoding": encoding})
    async with answering("/object_info", answer) as url, client_of(url) as client:
        assert await client.object_info() == nodes


async def test_plain_answers_are_asked_for() -> None:
    async with raw_server(ok(LOAD)) as server, client_of(server.url) as client:
        await client.probe()
        assert b"\r\nAccept-Encoding: identity\r\n" in server.received[0]


async def test_what_is_not_json_in_a_graph_does_not_hide_the_queue() -> None:
    text = '{"queue_running": [[3, "a", {"1": {"x": NaN}}, {}, []]], "queue_pending": [[-0.5, "b", {"y": "\\ud800"}]]}'
    async with answering("/queue", json_text(text)) as url, client_of(url) as client:
        queue = await client.queue()
        assert (queue.running, queue.pending) == ({"a": 3}, {"b": -0.5})


async def test_what_is_not_json_in_a_history_entry_is_kept() -> None:
    text = '{"a": {"outputs": {"1": {"x": [NaN]}}}}'
    async with answering("/history/a", json_text(text)) as url, client_of(url) as client:
        assert await client.history_entry("a") == b'{"outputs": {"1": {"x": [NaN]}}}'


async def test_a_history_entry_of_megabytes_comes_as_it_is() -> None:
    entry = '{"outputs":  {"1": {"text": ["' + "x" * 20_000_000 + '"]}}}'
    async with answering("/history/a", json_text('{"a": ' + entry + "}")) as url, client_of(url) as client:
        assert await client.history_entry("a") == entry.encode()


async def test_headers_of_a_large_size_are_taken() -> None:
    large = ok(LOAD, headers=b"X-Large: " + b"x" * 60_000 + b"\r\n")
    async with raw_server(large) as server, client_of(server.url) as client:
        assert await client.probe() == 3


CALLS: dict[str, Call] = {
    "probe": lambda client: client.probe(),
    "queue": lambda client: client.queue(),
    "history_entry": lambda client: client.history_entry("a"),
    "features": lambda client: client.features(),
    "system_stats": lambda client: client.system_stats(),
    "object_info": lambda client: client.object_info(),
    "submit": lambda client: client.submit(b"{}"),
}
COMMANDS: dict[str, Call] = {
    "delete_pending": lambda client: client.delete_pending(["a"]),
    "interrupt": lambda client: client.interrupt(None),
    "free": lambda client: client.free(b""),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("text", ["<html><body>Welcome\n to nginx</body></html>", "", "[]", '{"', "null", '"x"'])
async def test_an_answer_that_is_not_comfyuis_is_a_bad_one(call: Call, text: str) -> None:
    async with answering("/{any:.*}", json_text(text)) as url, client_of(url) as client:
        with pytest.raises(BadAnswer) as caught:
            await call(client)
        assert " ".join(text.split()) in str(caught.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (CALLS["probe"], '{"exec_info": {}}'),
        (CALLS["probe"], '{"exec_info": {"queue_remaining": "many"}}'),
        (CALLS["queue"], '{"queue_running": []}'),
        (CALLS["queue"], '{"queue_running": [[1]], "queue_pending": []}'),
        (CALLS["queue"], '{"queue_running": NaN, "queue_pending": []}'),
        (CALLS["submit"], '{"number": 1}'),
        (CALLS["submit"], '{"prompt_id": 5}'),
    ],
)
async def test_an_answer_without_what_was_asked_for_is_a_bad_one(call: Call, text: str) -> None:
    async with answering("/{any:.*}", json_text(text)) as url, client_of(url) as client:
        with pytest.raises(BadAnswer):
            await call(client)


@pytest.mark.parametrize("call", [*list(CALLS.values())[:-1], *COMMANDS.values()], ids=[*list(CALLS)[:-1], *COMMANDS])
@pytest.mark.parametrize("status", [302, 401, 500, 502])
async def test_a_failure_is_told_with_its_status_and_how_it_begins(call: Call, status: int) -> None:
    answer = web.Response(status=status, text="it broke " * 100, headers={"Location": "/elsewhere"})
    async with answering("/{any:.*}", answer) as url, client_of(url) as client:
        with pytest.raises(BadAnswer) as caught:
            await call(client)
        assert str(caught.value).startswith("gpu: ")
        assert f"status {status}: it broke it broke" in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("status", [400, 401, 403, 413, 500])
async def test_every_refusal_of_a_prompt_is_a_verdict(status: int) -> None:
    async with answering("/prompt", web.Response(status=status, text="too much")) as url, client_of(url) as client:
        verdict = await client.submit(b"{}")
        assert (verdict.status, verdict.body, verdict.accepted) == (status, b"too much", False)
        assert verdict.content_type == "text/plain; charset=utf-8"
        assert verdict.node_errors == b"{}"


@pytest.mark.parametrize(("status", "error"), [(302, BadAnswer), (204, BadAnswer), (502, DeliveryUnknown)])
async def test_what_is_no_word_of_comfyui_is_no_verdict(status: int, error: type[UpstreamError]) -> None:
    async with answering("/prompt", web.Response(status=status)) as url, client_of(url) as client:
        with pytest.raises(error):
            await client.submit(b"{}")


async def test_one_session_serves_many_backends_without_a_limit() -> None:
    async with SimulatedBackend() as backend, open_session() as session:
        backend.faults.delay_s = 0.05
        clients = [BackendClient(BackendId(f"gpu-{n}"), backend.url, session, timeout_s=30) for n in range(300)]
        assert await asyncio.gather(*(client.probe() for client in clients)) == [0] * 300


async def test_cookies_of_a_backend_are_not_kept() -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        response = web.Response(body=LOAD)
        response.set_cookie("who", "me")
        return response

    app = web.Application()
    app.router.add_get("/prompt", answer)
    async with serving(app) as url, client_of(url) as client:
        await client.probe()
        await client.probe()
    assert seen == [None, None]
