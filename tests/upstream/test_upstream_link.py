"""The link: always there again, and never two of them."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from upstream_support import answering, serving, until_whole

from comfyproxy.core.jobs import BackendId
from comfyproxy.simulator import SimulatedBackend
from comfyproxy.upstream import BackendLink, open_session


class Listener:
    """A link, what it told, and what it waited for."""

    def __init__(self, url: str, session: aiohttp.ClientSession, **options: Any) -> None:
        self.told: list[Any] = []
        self.delays: list[float] = []
        self.is_patient = False  # pauses are real, and so long that a test would not see their end
        self._changed = asyncio.Event()
        self.link = BackendLink(
            BackendId("gpu"),
            url,
            session,
            client_id=options.pop("client_id", "proxy"),
            on_text=options.pop("on_text", lambda text: self._tell(json.loads(text))),
            on_binary=self._tell,
            on_connected=lambda: self._tell("connected"),
            on_disconnected=lambda reason: self._tell(("disconnected", reason)),
            random=self._random,
            **options,
        )

    def _random(self, low: float, high: float) -> float:
        self.delays.append(high)
        self._changed.set()
        assert low == high / 2
        return 3600 if self.is_patient else 0

    def _tell(self, what: Any) -> None:
        self.told.append(what)
        self._changed.set()

    async def until(self, is_so: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                self._changed.clear()
                await self._changed.wait()

    async def until_connected(self, times: int = 1) -> None:
        await self.until(lambda: self.told.count("connected") >= times)

    async def until_event(self, event: str) -> Any:
        await self.until(lambda: self.events(event))
        return self.events(event)[-1]

    def events(self, event: str) -> list[Any]:
        return [one["data"] for one in self.told if isinstance(one, dict) and one["type"] == event]

    @property
    def losses(self) -> list[str]:
        return [one[1] for one in self.told if isinstance(one, tuple)]


@asynccontextmanager
async def listening(url: str, **options: Any) -> AsyncIterator[Listener]:
    """Run a link, and see in the end that nothing of it is left."""
    async with open_session() as session:
        listener = Listener(url, session, **options)
        before = asyncio.all_tasks()
        task = asyncio.create_task(listener.link.run(), name="link")
        try:
            yield listener
        finally:
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError)
        await until_whole(session)
        assert not listener.link.connected
        left = {one for one in asyncio.all_tasks() - before if "link" in one.get_name() or "ws" in repr(one)}
        assert not left


async def test_it_says_what_it_understands_and_hears_what_is_said() -> None:
    async with SimulatedBackend() as backend, listening(backend.url) as listener:
        assert (await listener.until_event("feature_flags"))["supports_preview_metadata"] is True
        assert listener.told[0] == "connected"
        assert listener.events("status")[0]["sid"] == "proxy"
        assert listener.link.connected
        backend.emit("custom", {"x": 1}, "proxy")
        assert await listener.until_event("custom") == {"x": 1}
        assert listener.delays == []


async def test_its_first_message_is_its_only_one() -> None:
    received: list[Any] = []
    proceed = asyncio.Event()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        received.append((await socket.receive()).data)
        await proceed.wait()
        await socket.send_str("{}")
        await socket.close()
        received.append((await socket.receive()).type)
        return socket

    async with answering("/ws", handler) as url, listening(url) as listener:
        proceed.set()
        await listener.until(lambda: listener.losses)
        assert received[0] == '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'
        assert all(one is not aiohttp.WSMsgType.TEXT for one in received[1:])
        assert listener.losses[0] == "closed by the server with code 1000"


async def test_the_id_reaches_the_server_as_it_is_and_the_path_of_the_url_comes_first() -> None:
    seen: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def handler(request: web.Request) -> web.Response:
        seen.put_nowait((request.path, request.query["clientId"]))
        return web.Response(status=403)

    async with answering("/{any:.*}", handler) as url, listening(f"{url}/comfy/", client_id="a b&c=ü/+"):
        assert await seen.get() == ("/comfy/ws", "a b&c=ü/+")


async def test_frames_of_any_size_come_in_order() -> None:
    frames = [b"x" * 30_000_000, b"", b"y" * 5]

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for frame in frames:
            await socket.send_bytes(frame)
            await socket.send_str('{"type": "after", "data": null}')
        await socket.receive()
        await socket.receive()
        return socket

    async with answering("/ws", handler) as url, listening(url) as listener:
        await listener.until(lambda: len(listener.told) == 7)
        assert listener.told[1::2] == frames
        assert len(listener.events("after")) == 3


async def test_a_lost_socket_is_told_once_and_made_again() -> None:
    async with SimulatedBackend() as backend, listening(backend.url) as listener:
        await listener.until_event("feature_flags")
        backend.faults.drop_websockets()
        await listener.until_connected(2)
        await listener.until(lambda: len(listener.events("feature_flags")) == 2)
        assert listener.losses == ["the connection broke off"]
        assert listener.delays == [0.1]
        backend.emit("custom", {}, "proxy")
        await listener.until_event("custom")


async def test_a_server_that_comes_back_is_found_again() -> None:
    async with SimulatedBackend() as backend, listening(backend.url) as listener:
        await listener.until_connected()
        await backend.kill()
        await listener.until(lambda: len(listener.delays) > 2)
        assert not listener.link.connected
        assert "refused" in str(listener.link.last_error)
        await backend.restart()
        await listener.until_connected(2)
        assert listener.link.last_error is None
        assert len(listener.losses) == 1


async def test_pauses_grow_to_five_seconds() -> None:
    async with SimulatedBackend() as backend:
        await backend.faults.refuse_connections()
        async with listening(backend.url) as listener:
            await listener.until(lambda: len(listener.delays) == 9)
            assert listener.delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]


async def test_a_server_that_takes_the_socket_and_drops_it_is_not_pressed() -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    async with answering("/ws", handler) as url, listening(url) as listener:
        await listener.until(lambda: len(listener.delays) >= 4)
        assert listener.delays[:4] == [0.1, 0.2, 0.4, 0.8]


async def test_it_is_woken_from_a_pause() -> None:
    async with SimulatedBackend() as backend:
        await backend.faults.refuse_connections()
        async with listening(backend.url) as listener:
            listener.is_patient = True
            await listener.until(lambda: listener.delays)
            await backend.faults.accept_connections()
            listener.link.wake()
            await listener.until_connected()


async def test_a_wake_that_came_while_all_was_well_does_not_cut_the_next_pause() -> None:
    async with SimulatedBackend() as backend, listening(backend.url) as listener:
        listener.is_patient = True
        await listener.until_event("feature_flags")
        listener.link.wake()
        backend.faults.drop_websockets()
        await listener.until(lambda: listener.delays)
        for _ in range(100):
            await asyncio.sleep(0)
        assert listener.told.count("connected") == 1
        listener.link.wake()
        await listener.until_connected(2)


@pytest.mark.parametrize(
    ("status", "said"), [(403, "HTTP 403"), (404, "HTTP 404"), (502, "HTTP 502"), (200, "HTTP 200")]
)
async def test_a_server_that_refuses_the_socket_is_asked_again_later(status: int, said: str) -> None:
    async with answering("/ws", web.Response(status=status)) as url, listening(url) as listener:
        listener.is_patient = True
        await listener.until(lambda: listener.delays)
        assert listener.told == []
        assert said in str(listener.link.last_error)
        assert "gpu" in repr(listener.link)


async def test_a_dropped_link_is_back_at_once_and_hears() -> None:
    async with SimulatedBackend() as backend, listening(backend.url) as listener:
        listener.is_patient = True
        await listener.until_event("feature_flags")
        listener.link.drop("silent for too long")
        listener.link.drop("again")
        await listener.until_connected(2)
        assert listener.losses == ["silent for too long"]
        assert listener.delays == []
        await listener.until(lambda: len(listener.events("feature_flags")) == 2)
        backend.emit("custom", {}, "proxy")
        await listener.until_event("custom")


async def test_a_dropped_link_does_not_wait_for_a_frozen_server() -> None:
    async with SimulatedBackend() as backend, listening(backend.url) as listener:
        listener.is_patient = True
        await listener.until_event("feature_flags")
        backend.faults.freeze()
        listener.link.drop("frozen")
        await listener.until(lambda: listener.losses)
        assert not listener.link.connected
        while backend.requests.count(("GET", "/ws")) < 2:
            await asyncio.sleep(0)
        backend.faults.thaw()
        await listener.until_connected(2)


async def test_it_can_be_dropped_from_within_a_callback() -> None:
    async with open_session() as session, SimulatedBackend() as backend:
        texts: list[str] = []

        def on_text(text: str) -> None:
            texts.append(text)
            if len(texts) == 1:
                listener.link.drop("at the first word")

        listener = Listener(backend.url, session, on_text=on_text)
        task = asyncio.create_task(listener.link.run())
        await listener.until_connected(2)
        assert listener.told == ["connected", ("disconnected", "at the first word"), "connected"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_server_hears_of_the_end_before_it_hears_of_the_next_socket() -> None:
    story: list[str] = []

    async def handler(request: web.Request) -> web.WebSocketResponse:
        assert request.transport is not None
        socket = web.WebSocketResponse(autoclose=False)
        await socket.prepare(request)
        story.append("begun")
        await socket.receive()
        await socket.send_str("{}")
        await socket.receive()
        story.append("ended")
        return socket

    async with answering("/ws", handler) as url, listening(url, on_text=lambda _: None) as listener:
        for times in range(1, 4):
            await listener.until_connected(times)
            while len(story) < 2 * times - 1:
                await asyncio.sleep(0)
            listener.link.drop()
        await listener.until_connected(4)
        while len(story) < 7:
            await asyncio.sleep(0)
        assert story == ["begun", "ended"] * 3 + ["begun"]


async def test_a_peer_that_answers_no_ping_is_given_up_and_its_connection_torn_down() -> None:
    async with SimulatedBackend() as backend, listening(backend.url, heartbeat_s=0.1) as listener:
        listener.is_patient = True
        await listener.until_event("feature_flags")
        backend.faults.freeze()
        await listener.until(lambda: listener.losses)
        assert "proxy" in backend.process.sockets
        assert not listener.link.connected
        await listener.until(lambda: listener.delays)
        backend.faults.thaw()
        while "proxy" in backend.process.sockets:
            await asyncio.sleep(0)


async def test_an_error_in_a_callback_ends_it() -> None:
    def on_text(text: str) -> None:
        raise ZeroDivisionError

    async with open_session() as session, SimulatedBackend() as backend:
        listener = Listener(backend.url, session, on_text=on_text)
        with pytest.raises(ZeroDivisionError):
            await listener.link.run()
        assert not listener.link.connected
        assert listener.told == ["connected"]
        await until_whole(session)


async def test_it_is_cancelled_in_the_middle_of_the_handshake() -> None:
    asked = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with answering("/ws", handler) as url, listening(url):
        await asked.wait()


async def test_it_is_cancelled_in_front_of_a_frozen_server() -> None:
    async with SimulatedBackend() as backend:
        async with listening(backend.url) as listener:
            await listener.until_event("feature_flags")
            backend.faults.freeze()
        backend.faults.thaw()
        while "proxy" in backend.process.sockets:
            await asyncio.sleep(0)


async def test_many_losses_leave_nothing_behind() -> None:
    async with SimulatedBackend() as backend, listening(backend.url) as listener:
        for times in range(1, 20):
            await listener.until_connected(times)
            if times % 2:
                listener.link.drop()
            else:
                backend.faults.drop_websockets()
            while len(listener.losses) < times:
                await asyncio.sleep(0)
        await listener.until_connected(20)
        assert len(listener.losses) == 19


async def test_the_real_pause_has_jitter() -> None:
    app = web.Application()
    async with serving(app) as url, open_session() as session:
        asked: list[tuple[float, float]] = []

        def between(low: float, high: float) -> float:
            asked.append((low, high))
            return random.uniform(low, high) / 100

        link = BackendLink(
            BackendId("gpu"),
            url,
            session,
            client_id="x",
            on_text=lambda _: None,
            on_binary=lambda _: None,
            on_connected=lambda: None,
            on_disconnected=lambda _: None,
            random=between,
        )
        task = asyncio.create_task(link.run())
        while len(asked) < 3:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asked == [(0.05, 0.1), (0.1, 0.2), (0.2, 0.4)]


def test_all_of_it_holds_under_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")
    stories: list[Callable[[], Coroutine[Any, Any, None]]] = [
        test_a_lost_socket_is_told_once_and_made_again,
        test_a_server_that_comes_back_is_found_again,
        test_a_dropped_link_is_back_at_once_and_hears,
        test_a_dropped_link_does_not_wait_for_a_frozen_server,
        test_the_server_hears_of_the_end_before_it_hears_of_the_next_socket,
        test_a_peer_that_answers_no_ping_is_given_up_and_its_connection_torn_down,
        test_it_is_cancelled_in_front_of_a_frozen_server,
        test_many_losses_leave_nothing_behind,
    ]
    for story in stories:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(story())
