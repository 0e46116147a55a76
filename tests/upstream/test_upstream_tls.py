"""Backends behind TLS, where a connection is not closed by closing it."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from upstream_support import LOAD

from comfyproxy.core.errors import NotDelivered
from comfyproxy.core.jobs import BackendId
from comfyproxy.upstream import BackendClient, BackendLink, open_session
from comfyproxy.upstream.errors import tracing

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")


@dataclass
class Certificate:
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return Certificate(_server_context(key, cert), ssl.create_default_context(cafile=cert))


def _server_context(key: Path, cert: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


class Relay:
    """Stands between client and server, and can let nothing through, so that neither hears of the other any more."""

    def __init__(self) -> None:
        self.is_frozen = False
        self.client_gone = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, of_client: bool) -> None:
        try:
            while data := await reader.read(65536):
                if not self.is_frozen:
                    writer.write(data)
        except ConnectionError:
            pass
        finally:
            if of_client:
                self.client_gone.set()
            writer.close()


@asynccontextmanager
async def relayed(app: web.Application, context: ssl.SSLContext) -> AsyncIterator[tuple[Relay, str]]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    host, port = runner.addresses[0][:2]
    relay = Relay()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, port)
        relay.tasks.append(asyncio.create_task(relay.pipe(up_reader, writer, of_client=False)))
        await relay.pipe(reader, up_writer, of_client=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield relay, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await runner.cleanup()
        await asyncio.gather(*relay.tasks)


@asynccontextmanager
async def trusting(certificate: Certificate) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=certificate.client)
    async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing()]) as session:
        yield session


def application() -> web.Application:
    async def prompt(request: web.Request) -> web.Response:
        return web.Response(body=LOAD)

    async def ws(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            await socket.send_str("heard")
        return socket

    app = web.Application()
    app.router.add_get("/prompt", prompt)
    app.router.add_get("/ws", ws)
    return app


async def test_a_backend_behind_tls_answers(certificate: Certificate) -> None:
    async with relayed(application(), certificate.server) as (_, url), trusting(certificate) as session:
        assert await BackendClient(BackendId("gpu"), url, session, timeout_s=5).probe() == 3


async def test_a_certificate_that_nobody_vouches_for_is_not_delivered_to(certificate: Certificate) -> None:
    async with relayed(application(), certificate.server) as (_, url), open_session() as session:
        with pytest.raises(NotDelivered, match="certificate") as caught:
            await BackendClient(BackendId("gpu"), url, session, timeout_s=5).submit(b"{}")
        assert type(caught.value) is NotDelivered


@pytest.mark.parametrize("how", ["dropped", "unanswered ping", "cancelled"])
async def test_a_link_through_tls_is_torn_down_though_the_server_is_frozen(certificate: Certificate, how: str) -> None:
    heard = asyncio.Event()
    async with relayed(application(), certificate.server) as (relay, url), trusting(certificate) as session:
        link = BackendLink(
            BackendId("gpu"),
            url,
            session,
            client_id="proxy",
            on_text=lambda _: heard.set(),
            on_binary=lambda _: None,
            on_connected=lambda: None,
            on_disconnected=lambda _: None,
            random=lambda low, high: 3600,
            heartbeat_s=0.1 if how == "unanswered ping" else 60,
        )
        task = asyncio.create_task(link.run())
        await heard.wait()
        relay.is_frozen = True
        if how == "dropped":
            link.drop("deaf")
        elif how == "cancelled":
            task.cancel()
        # The end of the connection itself, which no answer of the server has allowed.
        async with asyncio.timeout(5):
            await relay.client_gone.wait()
        assert not link.connected
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
