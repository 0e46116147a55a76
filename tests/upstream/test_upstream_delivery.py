"""Was it sent? Asked of real sockets."""

import asyncio
import json
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from upstream_support import LOAD, PROMPT_ID, Cut, client_of, idle_connections, ok, raw_server, session_of, until_whole

from comfyproxy.core.errors import BadAnswer, ConnectionRefused, DeliveryUnknown, NotDelivered
from comfyproxy.simulator import SimulatedBackend

GRAPH = {
    "1": {"class_type": "ConformanceText", "inputs": {"text": "a"}},
}
PROMPT = json.dumps({"prompt": GRAPH, "client_id": "proxy", "prompt_id": PROMPT_ID}).encode()


@contextmanager
def listening_but_full() -> Iterator[str]:
    """A port whose queue of connections is full: more of them get no answer at all."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for one in waiting:
            one.close()


async def test_a_port_where_nothing_listens_refuses() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        await backend.faults.refuse_connections()
        with pytest.raises(ConnectionRefused, match=r"gpu: connection to 127\.0\.0\.1:\d+ refused"):
            await client.submit(PROMPT)
        await backend.faults.accept_connections()
        assert (await client.submit(PROMPT)).accepted


async def test_a_name_with_addresses_of_both_kinds_refuses_too() -> None:
    async with SimulatedBackend() as backend:
        port = int(backend.url.rpartition(":")[2])
        await backend.faults.refuse_connections()
        async with client_of(f"http://localhost:{port}") as client:
            with pytest.raises(ConnectionRefused):
                await client.probe()


async def test_a_name_that_does_not_resolve_is_not_delivered_and_no_proof_of_death() -> None:
    async with client_of("http://no-such-host.invalid:8188", timeout_s=2.0) as client:
        with pytest.raises(NotDelivered) as caught:
            await client.submit(PROMPT)
        assert type(caught.value) is NotDelivered


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep longer queues")
async def test_time_that_runs_out_before_the_connection_stands_is_not_delivered() -> None:
    with listening_but_full() as url:
        async with client_of(url, timeout_s=0.2) as client:
            for call in (client.submit(PROMPT), client.probe(), client.interrupt(PROMPT_ID)):
                with pytest.raises(NotDelivered) as caught:
                    await call
                assert type(caught.value) is NotDelivered


async def test_a_server_that_speaks_no_tls_got_nothing() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url.replace("http", "https")) as client:
        with pytest.raises(NotDelivered) as caught:
            await client.submit(PROMPT)
        assert type(caught.value) is NotDelivered
        assert not backend.requests


async def test_a_prompt_cut_off_before_it_was_accepted_may_have_been_read() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        backend.faults.cut_before_accepting = 1
        with pytest.raises(DeliveryUnknown):
            await client.submit(PROMPT)
        assert backend.accepted == []


async def test_a_reply_lost_after_acceptance_is_not_called_undelivered() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        backend.faults.cut_after_accepting = 1
        with pytest.raises(DeliveryUnknown):
            await client.submit(PROMPT)
        assert backend.accepted == [PROMPT_ID]


async def test_a_prompt_is_sent_once_even_where_a_pooled_connection_turns_out_to_be_dead() -> None:
    async with raw_server(ok(LOAD), Cut(), ok(LOAD)) as server, client_of(server.url) as client:
        assert await client.probe() == 3
        assert idle_connections(client) == 1
        with pytest.raises(DeliveryUnknown, match="closed the connection without an answer"):
            await client.submit(PROMPT)
        assert [request.split(b" ")[0] for request in server.received] == [b"GET", b"POST"]


async def test_a_question_on_a_dead_pooled_connection_is_asked_again() -> None:
    async with raw_server(ok(LOAD), Cut(), ok(LOAD)) as server, client_of(server.url) as client:
        assert await client.probe() == 3
        assert await client.probe() == 3
        assert server.connections == 2


async def test_a_server_killed_and_back_is_served_on_new_connections() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        await client.probe()
        await backend.kill()
        with pytest.raises(ConnectionRefused):
            await client.probe()
        await backend.restart()
        assert (await client.submit(PROMPT)).accepted


async def test_a_server_killed_while_it_was_asked_leaves_it_open() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        backend.faults.freeze()
        sending = asyncio.create_task(client.submit(PROMPT))
        while not backend.requests:
            await asyncio.sleep(0)
        await backend.kill()
        with pytest.raises(DeliveryUnknown):
            await sending


async def test_a_frozen_server_may_have_read_it() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url, timeout_s=0.2, submit_timeout_s=0.3) as client:
        backend.faults.freeze()
        with pytest.raises(DeliveryUnknown, match="gpu: no answer in time"):
            await client.probe()
        with pytest.raises(DeliveryUnknown, match="gpu: no answer in time"):
            await client.submit(PROMPT)
        backend.faults.thaw()
        assert await client.probe() >= 0


async def test_a_stalled_server_is_waited_for_with_a_prompt_longer_than_with_a_probe() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url, timeout_s=0.1) as client:
        backend.faults.delay_s = 0.3
        with pytest.raises(DeliveryUnknown):
            await client.probe()
        assert (await client.submit(PROMPT)).accepted


async def test_half_an_answer_leaves_it_open() -> None:
    async with raw_server(Cut(ok(b'{"prompt_id": "', length=100))) as server, client_of(server.url) as client:
        with pytest.raises(DeliveryUnknown, match="gpu: "):
            await client.submit(PROMPT)


async def test_what_is_no_http_is_a_bad_answer() -> None:
    async with raw_server(b"SSH-2.0-OpenSSH_9.6\r\n\r\n") as server, client_of(server.url) as client:
        with pytest.raises(BadAnswer, match="no proper HTTP answer"):
            await client.submit(PROMPT)


async def test_a_call_that_is_cancelled_closes_its_connection() -> None:
    async with SimulatedBackend() as backend, client_of(backend.url) as client:
        backend.faults.freeze()
        calls = [client.submit(PROMPT), client.probe(), client.history_entry("x"), client.submit(b"x" * 30_000_000)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        while len(backend.requests) < 4:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until_whole(session_of(client))
        assert idle_connections(client) == 0
        backend.faults.thaw()
        await client.probe()
        assert idle_connections(client) == 1


async def test_a_call_that_is_cancelled_while_it_connects_leaves_nothing() -> None:
    with listening_but_full() as url:
        async with client_of(url) as client:
            connector = session_of(client).connector
            assert connector is not None
            task = asyncio.create_task(client.probe())
            while not connector._acquired:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


def test_all_of_it_holds_under_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")
    stories: list[Callable[[], Coroutine[Any, Any, None]]] = [
        test_a_port_where_nothing_listens_refuses,
        test_a_name_with_addresses_of_both_kinds_refuses_too,
        test_a_server_that_speaks_no_tls_got_nothing,
        test_a_reply_lost_after_acceptance_is_not_called_undelivered,
        test_a_prompt_is_sent_once_even_where_a_pooled_connection_turns_out_to_be_dead,
        test_a_server_killed_while_it_was_asked_leaves_it_open,
        test_a_frozen_server_may_have_read_it,
        test_a_call_that_is_cancelled_closes_its_connection,
    ]
    for story in stories:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(story())
