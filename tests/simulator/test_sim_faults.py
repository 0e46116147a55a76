"""Every fault, seen from the client it strikes."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from aiohttp.pytest_plugin import AiohttpServer
from simulator_support import Client, endless, sampling, text

from comfyproxy.simulator import SimulatedBackend


async def test_a_server_that_refuses_connections_can_be_reached_again_on_the_same_port() -> None:
    async with SimulatedBackend() as backend:
        await backend.faults.refuse_connections()
        async with Client(backend) as client:
            with pytest.raises(aiohttp.ClientConnectorError):
                await client.get("/prompt")
            await backend.faults.accept_connections()
            assert await client.get("/prompt") == {"exec_info": {"queue_remaining": 0}}


async def test_a_websocket_outlives_that_new_connections_are_refused() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        await backend.faults.refuse_connections()
        backend.process.sockets.send("custom", {}, "a")
        await socket.until_event("custom")


async def test_a_prompt_cut_off_before_it_was_read_is_not_accepted() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        backend.faults.cut_before_accepting = 1
        with pytest.raises(aiohttp.ClientOSError):
            await client.submit(text())
        assert backend.accepted == []
        await client.submit(text())
        assert len(backend.accepted) == 1


async def test_a_prompt_whose_answer_is_cut_off_runs_all_the_same() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        backend.faults.cut_after_accepting = 1
        with pytest.raises(aiohttp.ClientOSError):
            await client.submit(text(), "a", prompt_id="12345678-1234-1234-1234-123456789abc")
        await socket.until_done("12345678-1234-1234-1234-123456789abc")
        assert backend.accepted == backend.executed == ["12345678-1234-1234-1234-123456789abc"]


async def test_a_frozen_server_takes_connections_and_answers_after_the_thaw() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        backend.faults.freeze()
        request = asyncio.create_task(client.get("/prompt"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(request), 0.1)
        backend.faults.thaw()
        assert await request == {"exec_info": {"queue_remaining": 0}}


async def test_a_frozen_server_stops_in_mid_prompt_and_answers_no_ping() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        pinger = await client.session.ws_connect(f"{backend.url}/ws", autoping=False)
        await pinger.receive_json()
        prompt_id = await client.submit(endless(), "a")
        await socket.until_event("progress")
        backend.faults.freeze()
        # Whatever was on its way has arrived once two looks see the same.
        seen = -1
        while seen != (seen := len(socket.frames)):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.1)
        await pinger.ping()
        reading = asyncio.create_task(_until_pong(pinger))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), 0.1)
        assert len(socket.frames) == seen
        backend.faults.thaw()
        await reading
        await pinger.close()
        await client.post("/interrupt", {"prompt_id": prompt_id})
        await socket.until_done(prompt_id)


async def _until_pong(ws: aiohttp.ClientWebSocketResponse) -> None:
    while (await ws.receive()).type is not aiohttp.WSMsgType.PONG:
        pass


async def test_a_prompt_sent_to_a_frozen_server_is_accepted_after_the_thaw_though_its_sender_has_gone() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        listener = await client.socket("a")
        backend.faults.freeze()
        mine = "12345678-1234-1234-1234-123456789abc"
        body = {"prompt": text(), "client_id": "a", "prompt_id": mine}
        with pytest.raises(TimeoutError):
            await client.post("/prompt", body, timeout=aiohttp.ClientTimeout(total=0.1))
        backend.faults.thaw()
        await listener.until_done(mine)
        assert backend.accepted == [mine]


async def test_a_frozen_server_can_be_stopped() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        await client.submit(endless())
        backend.faults.freeze()
        request = asyncio.create_task(client.get("/prompt"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(request), 0.05)
        await backend.stop()
        await asyncio.gather(request, return_exceptions=True)


async def test_a_slow_server_answers_later() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        backend.faults.delay_s = 0.2
        begun = asyncio.get_running_loop().time()
        await client.get("/prompt")
        assert asyncio.get_running_loop().time() - begun >= 0.19


async def test_a_dropped_websocket_ends_without_a_close_frame() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        backend.faults.drop_websockets()
        assert await socket.ended() is not aiohttp.WSMsgType.CLOSE
        again = await client.socket("a")
        assert again.data("status")[0]["sid"] == "a"


async def test_a_killed_server_resets_every_connection_and_refuses_new_ones() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        await client.submit(endless(), "a")
        await socket.until_event("progress")
        backend.faults.delay_s = 60
        request = asyncio.create_task(client.get("/prompt"))
        while backend.requests[-1] != ("GET", "/prompt"):
            await asyncio.sleep(0)
        await backend.kill()
        assert await socket.ended() is not aiohttp.WSMsgType.CLOSE
        with pytest.raises(aiohttp.ClientError):
            await request
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get("/prompt")


async def test_a_server_comes_back_on_its_port_with_its_files_and_nothing_else() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        url = backend.url
        await client.run(sampling())
        await client.submit(endless())
        output = backend.folders.output / "kept.png"
        output.write_bytes(b"x")
        assert list(backend.folders.temp.iterdir())
        await backend.restart()
        assert backend.url == url
        assert output.exists()
        assert not backend.folders.temp.exists()
        assert await client.get("/history") == {}
        assert await client.get("/queue") == {"queue_running": [], "queue_pending": []}
        entry = await client.run(sampling())
        assert entry["status"]["messages"][1][1]["nodes"] == []  # nothing is cached any more
        assert len(backend.accepted) == 3


async def test_a_server_that_ignores_prompt_ids_mints_its_own() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        backend.faults.mint_prompt_ids = True
        mine = "12345678-1234-1234-1234-123456789abc"
        assert await client.submit(text(), prompt_id=mine) != mine


async def test_the_next_prompt_fails_at_run_time_and_the_one_after_does_not() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        backend.faults.fail_prompts = 1
        failed = await client.run(text("a"))
        assert failed["status"]["status_str"] == "error"
        event, error = failed["status"]["messages"][-1]
        assert event == "execution_error"
        assert (error["exception_type"], error["exception_message"]) == ("RuntimeError", "simulated failure\n")
        assert (await client.run(text("b")))["status"]["status_str"] == "success"


async def test_every_prompt_fails_until_told_otherwise() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        backend.faults.fail_prompts = True
        for words in "ab":
            assert (await client.run(text(words)))["status"]["status_str"] == "error"
        backend.faults.fail_prompts = False
        assert (await client.run(text("c")))["status"]["status_str"] == "success"


async def test_running_out_of_memory_looks_as_comfyui_tells_it() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        backend.faults.out_of_memory = 1
        error = (await client.run(sampling()))["status"]["messages"][-1][1]
        assert error["exception_type"] == "torch.OutOfMemoryError"
        assert "This error means you ran out of memory on your GPU." in error["exception_message"]
        assert error["node_id"] == "1"


async def test_the_link_goes_deaf_when_the_predecessor_of_a_reconnected_socket_ends() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        first = await client.socket("a")
        second = await client.socket("a")
        backend.process.sockets.send("one", {}, "a")
        await second.until_event("one")
        assert not first.data("one")
        await first.close()
        while "a" in backend.process.sockets:
            await asyncio.sleep(0)
        backend.process.sockets.send("two", {}, "a")
        prompt_id = await client.submit(text(), "a")
        listener = await client.socket("b")
        while not await client.get(f"/history/{prompt_id}"):
            await client.get("/prompt")
        backend.process.sockets.send("end", {}, "b")
        await listener.until_event("end")
        assert not second.data("two")
        assert not second.data("execution_success")
        assert second.closed_with is None


async def test_the_faults_can_be_set_over_a_port_of_their_own() -> None:
    async with SimulatedBackend(control=True) as backend, Client(backend) as client:
        control = backend.control_url

        async def tell(path: str, **body: Any) -> tuple[int, Any]:
            async with client.session.post(f"{control}{path}", json=body) as response:
                return response.status, await response.json()

        status, faults = await tell("/faults", name="cut_after_accepting", value=2)
        assert (status, faults["cut_after_accepting"], faults["frozen"]) == (200, 2, False)
        assert (await tell("/faults", name="freeze"))[1]["frozen"] is True
        assert (await tell("/faults", name="thaw"))[1]["frozen"] is False
        assert (await tell("/faults", name="refuse_connections"))[1]["refusing"] is True
        assert (await tell("/faults", name="accept_connections"))[1]["refusing"] is False
        assert (await tell("/faults", name="delay_s", value=0.001))[1]["delay_s"] == 0.001
        assert (await tell("/faults", name="mint_prompt_ids", value=True))[1]["mint_prompt_ids"] is True
        assert (await tell("/faults", name="drop_websockets"))[0] == 200
        assert (await tell("/faults", name="nonsense"))[0] == 400
        assert (await tell("/faults", name="delay_s", value="long"))[0] == 400
        await tell("/kill")
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get("/prompt")
        assert (await tell("/faults", name="refuse_connections"))[0] == 400
        assert (await tell("/restart"))[1] == {"url": backend.url}
        async with client.session.get(f"{control}/journal") as response:
            assert await response.json() == {"accepted": [], "executed": [], "loads": []}
        await client.get("/prompt")


async def test_the_app_runs_under_a_test_server(aiohttp_server: AiohttpServer) -> None:
    backend = SimulatedBackend()
    server = await aiohttp_server(backend.app())
    async with aiohttp.ClientSession() as session:
        async with session.post(server.make_url("/prompt"), json={"prompt": text()}) as response:
            prompt_id = (await response.json())["prompt_id"]
        assert backend.accepted == [prompt_id]
        with pytest.raises(RuntimeError):
            await backend.faults.refuse_connections()
        async with session.ws_connect(server.make_url("/ws?clientId=a")) as ws:
            assert (await ws.receive_json())["data"]["sid"] == "a"


def test_the_worst_of_it_works_under_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")
    stories: list[Callable[[], Coroutine[Any, Any, None]]] = [
        test_a_killed_server_resets_every_connection_and_refuses_new_ones,
        test_a_frozen_server_stops_in_mid_prompt_and_answers_no_ping,
        test_a_server_that_refuses_connections_can_be_reached_again_on_the_same_port,
        test_a_prompt_whose_answer_is_cut_off_runs_all_the_same,
        test_a_server_comes_back_on_its_port_with_its_files_and_nothing_else,
    ]
    for story in stories:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(story())
