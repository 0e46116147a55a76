"""User data on every backend, the terminal, one backend by name, and prompts pinned to one."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from proxying import EAGER, Fleet, Proxy, running_proxy
from simulator_support import endless, sampling, text

WORKFLOW = "/userdata/workflows%2Fmine.json"


async def _direct(fleet: Fleet, name: str) -> Proxy:
    return Proxy(fleet[name].url, asyncio.Event())


async def test_user_data_is_written_to_every_backend(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        status, answer = await proxy.post(WORKFLOW, {"a": 1})
        assert (status, answer) == (200, "workflows/mine.json")
        await proxy.post("/api/settings/some.key", 5)
        for name in fleet.backends:
            async with await _direct(fleet, name) as backend:
                assert await backend.get(WORKFLOW) == {"a": 1}
                assert await backend.get("/settings/some.key") == 5


async def test_moves_and_deletions_follow_in_order(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        await proxy.post(WORKFLOW, {"a": 1})
        await proxy.post(f"{WORKFLOW}/move/workflows%2Fother.json")
        await proxy.post(WORKFLOW, {"a": 2})
        assert (await proxy.call("DELETE", WORKFLOW))[0] == 204
        for name in fleet.backends:
            async with await _direct(fleet, name) as backend:
                assert await backend.get("/userdata?dir=workflows&recurse=true") == ["other.json"]


async def test_a_users_workflows_outlive_the_home_backend(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        await proxy.post(WORKFLOW, {"a": 1})
        await fleet["a"].kill()
        await proxy.state_is("a", "unhealthy")
        assert await proxy.get(WORKFLOW) == {"a": 1}


async def test_a_backend_that_was_away_gets_the_user_data_it_missed(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        await fleet["b"].kill()
        await proxy.state_is("b", "unhealthy")
        for number in range(3):
            await proxy.post(WORKFLOW, {"a": number})
        await fleet["b"].restart()
        async with await _direct(fleet, "b") as backend, asyncio.timeout(10):
            while (await backend.call("GET", WORKFLOW))[1] != {"a": 2}:
                await asyncio.sleep(0.01)


async def test_what_home_refuses_is_written_nowhere(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert (await proxy.post("/userdata/..%2F..%2Fx.json", {}))[0] == 403
        assert not [path for method, path in fleet["b"].requests if method == "POST" and "userdata" in path]


async def test_the_terminal_shows_the_home_backends_log_to_those_who_want_it(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        wants, other = await proxy.socket("wants"), await proxy.socket("other")
        status, _ = await proxy.call("PATCH", "/internal/logs/subscribe", json={"enabled": True, "clientId": "wants"})
        assert status == 200
        fleet["a"].process.log("a line\n")
        frame = await wants.until_event("logs")
        assert frame["data"]["entries"][0]["m"] == "a line\n"
        await proxy.call("PATCH", "/internal/logs/subscribe", json={"enabled": False, "clientId": "wants"})
        assert fleet["a"].process.log_subscribers == set()
        assert other.data("logs") == []


async def test_the_terminal_goes_on_after_the_home_backend_was_restarted(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        socket = await proxy.socket("wants")
        await proxy.call("PATCH", "/internal/logs/subscribe", json={"enabled": True, "clientId": "wants"})
        await fleet["a"].restart()
        async with asyncio.timeout(10):
            while not fleet["a"].process.log_subscribers:
                await asyncio.sleep(0.01)
        fleet["a"].process.log("after\n")
        await socket.until(lambda f: f["type"] == "logs" and f["data"]["entries"][0]["m"] == "after\n")


@pytest.mark.parametrize("body", [{}, {"clientId": 5, "enabled": True}, []])
async def test_a_log_subscription_for_nobody_is_refused(tmp_path: Path, body: object) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert (await proxy.call("PATCH", "/internal/logs/subscribe", json=body))[0] == 400


async def test_one_backend_can_be_reached_by_its_name(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        await fleet_data(fleet, "b", {"b": 1})
        direct = "/comfyproxy/backends/b"
        assert await proxy.get(f"{direct}{WORKFLOW}") == {"b": 1}
        assert (await proxy.get(f"{direct}/system_stats"))["devices"][0]["name"].split()[1] == "b"
        async with proxy.session.get(f"{proxy.url}{direct}/") as answer:
            assert answer.headers["X-Comfyproxy-Backend"] == "b"
            assert "Simulated ComfyUI: b" in await answer.text()
        async with proxy.session.get(f"{proxy.url}{direct}", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (301, f"{direct}/")
        status, body = await proxy.call("GET", "/comfyproxy/backends/nobody/prompt")
        assert (status, body["error"]["type"]) == (404, "unknown_backend")


async def test_one_backends_websocket_can_be_reached_by_its_name(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        async with proxy.session.ws_connect(f"{proxy.url}/comfyproxy/backends/b/ws?clientId=direct") as ws:
            assert (await ws.receive_json())["data"]["sid"] == "direct"
            await ws.send_json({"type": "feature_flags", "data": {}})
            assert (await ws.receive_json())["type"] == "feature_flags"
            async with await _direct(fleet, "b") as backend:
                prompt_id = await backend.submit(sampling(preview=True), "direct")
            kinds = set()
            async for message in ws:
                kinds.add(message.type)
                if message.type is aiohttp.WSMsgType.TEXT and message.json()["type"] == "execution_success":
                    assert message.json()["data"]["prompt_id"] == prompt_id
                    break
            assert aiohttp.WSMsgType.BINARY in kinds
        async with asyncio.timeout(5):
            while "direct" in fleet["b"].process.sockets:
                await asyncio.sleep(0.01)


async def test_a_websocket_that_the_backend_does_not_open_says_so(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await proxy.session.ws_connect(f"{proxy.url}/no/such/socket")
        assert refused.value.status == 404


async def test_a_client_hears_when_the_backend_behind_its_socket_dies(tmp_path: Path) -> None:
    async with (
        Fleet("a") as fleet,
        running_proxy(fleet, tmp_path) as proxy,
        proxy.session.ws_connect(f"{proxy.url}/comfyproxy/backends/a/ws") as ws,
    ):
        await ws.receive()
        await fleet["a"].kill()
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE


async def test_a_header_pins_a_prompt_to_one_backend(tmp_path: Path) -> None:
    pin = {"X-Comfyproxy-Backend": "b"}
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        running = await _pinned(proxy, endless(), pin)
        waiting = await _pinned(proxy, text(), pin)
        await proxy.ended(await proxy.submit(text("free")))
        assert fleet["b"].executed == [running]
        await proxy.post("/interrupt", {"prompt_id": running})
        await proxy.ended(waiting)
        assert fleet["b"].executed == [running, waiting]


async def test_a_pin_outlives_a_restart(tmp_path: Path) -> None:
    pin = {"X-Comfyproxy-Backend": "b"}
    async with Fleet("a", "b") as fleet:
        async with running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
            running = await _pinned(proxy, endless(), pin)
            waiting = await _pinned(proxy, text(), pin)
        async with running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
            await proxy.ended(await proxy.submit(text("free")))
            assert fleet["b"].executed == [running]
            async with asyncio.timeout(10):
                while (await proxy.queue())[0] != [running]:
                    await asyncio.sleep(0.01)
            await proxy.post("/interrupt", {"prompt_id": running})
            await proxy.ended(waiting)
            assert fleet["b"].executed == [running, waiting]


async def test_a_pin_to_nobody_or_to_the_dead_is_refused(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        body = {"prompt": text()}
        status, answer = await proxy.post("/prompt", body, headers={"X-Comfyproxy-Backend": "nobody"})
        assert (status, answer["error"]["type"]) == (400, "unknown_backend")
        await fleet["b"].kill()
        await proxy.state_is("b", "unhealthy")
        status, answer = await proxy.post("/prompt", body, headers={"X-Comfyproxy-Backend": "b"})
        assert (status, answer["error"]["type"]) == (503, "backend_unavailable")


async def _pinned(proxy: Proxy, graph: dict[str, object], pin: dict[str, str]) -> str:
    status, answer = await proxy.post("/prompt", {"prompt": graph}, headers=pin)
    assert status == 200, answer
    return str(answer["prompt_id"])


async def fleet_data(fleet: Fleet, name: str, value: object) -> None:
    """Store a workflow on one backend alone."""
    async with await _direct(fleet, name) as backend:
        assert (await backend.post(WORKFLOW, value))[0] == 200
