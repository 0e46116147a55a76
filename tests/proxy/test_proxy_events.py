"""Every client hears of its own prompts, wherever they run and whenever it listens, and of nobody else's."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from load_support import all_is_told, ceaseless, client_of_preview, coloured, crowd, interrupted, running
from proxying import Fleet, Proxy, running_proxy
from simulator_support import Frame, Socket, sampling, text

from comfyproxy.core import frames
from comfyproxy.core.frames import FrameKind
from comfyproxy.settings import LoadBalancing, WebsocketSettings

FLAGS = {"supports_preview_metadata": True}


def story(listener: Socket, prompt_id: str) -> list[str]:
    """Return what was told of one prompt, without its progress."""
    return [
        frame["type"]
        for frame in listener.frames
        if isinstance(frame["data"], dict)
        and frame["data"].get("prompt_id") == prompt_id
        and frame["type"] not in ("progress", "progress_state")
    ]


# Whose events


async def test_clients_hear_of_their_own_prompts_and_see_their_own_previews_only(tmp_path: Path) -> None:
    async with (
        Fleet("a", "b") as fleet,
        running_proxy(fleet, tmp_path) as proxy,
        crowd(proxy, 4, seconds=0.2) as clients,
    ):
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.all_at_once(client.number * 10 + turn for turn in range(3)))
        await all_is_told(clients, fleet)
        assert all(fleet.executed.values())
        for client in clients:
            client.check_events()


async def test_two_prompts_that_wait_on_one_backend_are_told_apart(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        one, other = await proxy.socket("one"), await proxy.socket("other", FLAGS)
        first = await proxy.submit(ceaseless(), "one")
        second = await proxy.submit(coloured(1, 7), "other")
        await _progressed(one, first)
        assert story(other, second) == []
        await interrupted(proxy, first)
        await one.until_done(first)
        await other.until_done(second)
        assert story(one, first)[-2:] == ["execution_interrupted", "executing"]
        assert story(other, second)[0] == "execution_start"
        assert story(one, second) == story(other, first) == []
        assert [client_of_preview(preview) for preview in other.data("binary")] == [7]
        assert one.data("binary") == []


async def test_both_forms_of_preview_go_to_two_sockets_of_one_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The order is kept only for so long, and this machine may be busy.
    monkeypatch.setattr("comfyproxy.service.relay.PAIR_WITHIN_S", 10.0)
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        newer, older = await proxy.socket("me", FLAGS), await proxy.socket("me")
        prompt_id = await proxy.submit(sampling(3, steps=5, seconds=0.1, preview=True), "me")
        await newer.until_done(prompt_id)
        await older.until_done(prompt_id)
        split = [frames.split_metadata(preview) for preview in newer.data("binary")]
        assert [(metadata["prompt_id"], metadata["node_id"]) for metadata, _ in split] == [(prompt_id, "2")] * 5
        assert [frames.kind(preview) for preview in older.data("binary")] == [FrameKind.PREVIEW] * 5
        assert [preview[8:] for preview in older.data("binary")] == [image for _, image in split]
        # And each at the place where a server would have sent it.
        assert _steps(newer) == ["binary", "progress"] * 5
        assert _steps(older) == ["progress", "binary"] * 5


async def test_two_sockets_of_one_client_both_get_all_and_one_goes_on_when_the_other_has_gone(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        first, second = await proxy.socket("me", FLAGS), await proxy.socket("me", FLAGS)
        prompt_id = await proxy.submit(sampling(preview=True), "me")
        await first.until_done(prompt_id)
        await second.until_done(prompt_id)
        assert _told(first) == _told(second)
        await first.close()
        prompt_id = await proxy.submit(sampling(2, preview=True), "me")
        await second.until_done(prompt_id)
        third = await proxy.socket("me")
        await second.close()
        prompt_id = await proxy.submit(text("three"), "me")
        await third.until_done(prompt_id)
        assert {"executed", "execution_success"} <= set(story(third, prompt_id))


async def test_a_socket_without_a_client_id_is_given_one_that_is_good_for_ever(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        first, stranger = await proxy.socket(None), await proxy.socket(None)
        sid = first.frames[0]["data"]["sid"]
        assert re.fullmatch("[0-9a-f]{32}", sid)
        assert sid != stranger.frames[0]["data"]["sid"]
        prompt_id = await proxy.submit(text(), sid)
        await first.until_done(prompt_id)
        assert (await proxy.ended(prompt_id))["prompt"][3]["client_id"] == sid
        await first.close()
        again = await proxy.socket(sid)
        assert again.frames[0]["data"]["sid"] == sid
        prompt_id = await proxy.submit(text("two"), sid)
        await again.until_done(prompt_id)
        assert stranger.names() == []


# Clients that are away


async def test_a_client_that_comes_while_its_prompt_runs_is_told_where_it_is(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        prompt_id = await proxy.submit(ceaseless(), "me")
        await running(proxy, prompt_id)
        listener = await proxy.socket("me")
        await listener.until(lambda frame: frame["type"] == "executing" and frame["data"]["node"] == "2")
        await _progressed(listener, prompt_id)
        await interrupted(proxy, prompt_id)
        await listener.until_done(prompt_id)
        assert story(listener, prompt_id)[0] == "execution_start"
        assert story(listener, prompt_id)[-2:] == ["execution_interrupted", "executing"]


async def test_a_client_that_comes_back_while_its_prompt_runs_is_told_the_node_again(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        before = await proxy.socket("me")
        prompt_id = await proxy.submit(ceaseless(), "me")
        await _progressed(before, prompt_id)
        await before.close()
        after = await proxy.socket("me")
        # As ComfyUI does on reconnect: without a prompt id.
        await after.until(lambda frame: frame == {"type": "executing", "data": {"node": "2"}})
        await _progressed(after, prompt_id)
        other = await proxy.socket("other")
        await interrupted(proxy, prompt_id)
        await after.until_done(prompt_id)
        assert other.names() == []


async def test_a_client_that_was_away_until_the_end_finds_its_results(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        before = await proxy.socket("me")
        await before.close()
        prompt_ids = [await proxy.submit(coloured(color), "me") for color in range(3)]
        entries = [await proxy.ended(prompt_id) for prompt_id in prompt_ids]
        after, other = await proxy.socket("me"), await proxy.socket("other")
        for prompt_id, entry in zip(prompt_ids, entries, strict=True):
            await after.until_done(prompt_id)
            told = story(after, prompt_id)
            assert (told[0], told[-2:]) == ("execution_start", ["execution_success", "executing"])
            executed = [data for data in after.data("executed") if data["prompt_id"] == prompt_id]
            assert {data["node"]: data["output"] for data in executed} == entry["outputs"]
        assert other.names() == []
        # Once told, it is not told again.
        await after.close()
        assert story(await proxy.socket("me"), prompt_ids[0]) == []


# Events of custom nodes


async def test_an_event_that_names_no_prompt_goes_to_the_client_whose_prompt_runs_there(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        listeners = {client: await proxy.socket(client) for client in ("one", "other", "idle")}
        ids = {client: await proxy.submit(ceaseless(), client) for client in ("one", "other")}
        await running(proxy, *ids.values())
        for client, prompt_id in ids.items():
            await _progressed(listeners[client], prompt_id)
            backend = next(b for b in fleet.backends.values() if b.executed == [prompt_id])
            backend.emit("my.node", {"for": client}, backend.process.executor.client_id)
            backend.emit("my.node", ["to", "all", "and", "for", client])
        await interrupted(proxy, *ids.values())
        await _all_told(fleet, *listeners.values())
        for client in ids:
            assert listeners[client].data("my.node") == [{"for": client}, ["to", "all", "and", "for", client]]
        assert listeners["idle"].data("my.node") == []


async def test_an_event_that_names_a_prompt_goes_to_its_client(tmp_path: Path) -> None:
    early = LoadBalancing(strategy="least_loaded")  # the second one waits on the backend
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, load_balancing=early) as proxy:
        one, other = await proxy.socket("one"), await proxy.socket("other")
        runs, waits = await proxy.submit(ceaseless(), "one"), await proxy.submit(text(), "other")
        await _progressed(one, runs)
        fleet["a"].emit("my.node", {"prompt_id": waits, "say": "soon"})
        fleet["a"].emit("my.node", {"prompt_id": runs, "say": "now"})
        fleet["a"].emit("my.node", {"prompt_id": "a stranger's", "say": "never"})
        await interrupted(proxy, runs)
        await other.until_done(waits)
        await _all_told(fleet, one, other)
        assert [data["say"] for data in one.data("my.node")] == ["now"]
        assert [data["say"] for data in other.data("my.node")] == ["soon"]


async def test_an_event_of_a_backend_that_runs_nothing_goes_to_all(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        listeners = [await proxy.socket("one"), await proxy.socket("other"), await proxy.socket(None)]
        prompt_id = await proxy.submit(ceaseless(), "one")
        await running(proxy, prompt_id)
        idle = next(backend for backend in fleet.backends.values() if not backend.executed)
        idle.emit("my.news", {"models": 3})
        for listener in listeners:
            assert await listener.until_event("my.news") == {"type": "my.news", "data": {"models": 3}}
        await interrupted(proxy, prompt_id)


# The count of what waits


async def test_status_counts_the_whole_fleet(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        one, other = await proxy.socket("one"), await proxy.socket("other")
        assert _counts(one) == _counts(other) == [0]
        ids = [await proxy.submit(ceaseless(seed), "one") for seed in range(4)]
        for listener in (one, other):
            await _counted(listener, 4)
        assert (await proxy.get("/prompt"))["exec_info"]["queue_remaining"] == 4
        late = await proxy.socket("late")
        assert _counts(late)[0] == 4
        await interrupted(proxy, *ids)
        for listener in (one, other, late):
            await _counted(listener, 0)
            # Some clients take a 0 for the end of their prompt, so there is none before the last one's.
            since = _counts(listener)[next(i for i, count in enumerate(_counts(listener)) if count) :]
            assert (max(since), since.index(0)) == (4, len(since) - 1)
            assert ["sid" in data for data in listener.data("status")] == [True] + [False] * (
                len(_counts(listener)) - 1
            )


# Slow clients


@asynccontextmanager
async def deaf_client(proxy: Proxy, client_id: str) -> AsyncIterator[socket.socket]:
    """Open a websocket that reads nothing after its handshake."""
    address = urlsplit(proxy.url)
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, (address.hostname, address.port))
        await loop.sock_sendall(
            sock,
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode(),
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await loop.sock_recv(sock, 1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        yield sock


async def ended(sock: socket.socket) -> None:
    """Read until the connection is gone."""
    async with asyncio.timeout(20):
        with suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(sock, 65536):
                pass


async def test_a_client_that_does_not_read_delays_nobody_and_loses_its_connection(tmp_path: Path) -> None:
    small = WebsocketSettings(client_buffer_mb=0.5, preview_buffer_mb=0.1)
    async with (
        Fleet("a", "b") as fleet,
        running_proxy(fleet, tmp_path, websocket=small) as proxy,
        deaf_client(proxy, "deaf") as deaf,
    ):
        quick = await proxy.socket("quick")
        blocking = await proxy.submit(ceaseless(), "deaf")
        await running(proxy, blocking)
        busy = next(backend for backend in fleet.backends.values() if backend.executed)
        turn = 0
        while b"comfyproxy_slow_clients_closed_total 1.0" not in await proxy.get("/metrics"):
            turn += 1
            assert turn < 100
            busy.emit("my.node", {"turn": turn, "much": "x" * 200_000})
            prompt_id = await proxy.submit(text(str(turn)), "quick")
            await quick.until_done(prompt_id)
            assert story(quick, prompt_id)[-2:] == ["execution_success", "executing"]
        assert quick.data("my.node") == []
        assert b"comfyproxy_websocket_clients 1.0" in await proxy.get("/metrics")
        await ended(deaf)
        # Its prompt runs on, and it is welcome back.
        back = await proxy.socket("deaf")
        await _progressed(back, blocking)
        await interrupted(proxy, blocking)
        await back.until_done(blocking)


async def _all_told(fleet: Fleet, *listeners: Socket) -> None:
    """Wait until all that the backends have sent has arrived; nothing may run."""
    for backend in fleet.backends.values():
        backend.emit("the.end", {})
    for listener in listeners:
        await _heard(listener, "the.end", len(fleet.backends))


async def _heard(listener: Socket, event: str, times: int) -> None:
    await listener.until(lambda _: len(listener.data(event)) == times)


async def _progressed(listener: Socket, prompt_id: str) -> None:
    """Wait until progress of a prompt is told."""
    await listener.until(lambda f: bool(f["type"] == "progress" and f["data"]["prompt_id"] == prompt_id))


async def _counted(listener: Socket, count: int) -> None:
    """Wait until a status says so many."""
    await listener.until(lambda _: _counts(listener)[-1] == count)


def _counts(listener: Socket) -> list[int]:
    """Return what each status said of the queue."""
    return [data["status"]["exec_info"]["queue_remaining"] for data in listener.data("status")]


def _steps(listener: Socket) -> list[str]:
    return [name for name in listener.names() if name in ("binary", "progress")]


def _told(listener: Socket) -> list[Frame]:
    """Return all that was told of prompts."""
    return [frame for frame in listener.frames if frame["type"] not in ("status", "feature_flags")]
