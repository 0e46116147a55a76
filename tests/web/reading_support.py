"""An application of the read side over fakes."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from comfyproxy.core.jobs_api import JobsQuery
from comfyproxy.core.ports import JobStore
from comfyproxy.service.queries import Queries
from comfyproxy.web import history, jobs, keys, middleware, queue
from comfyproxy.web.seams import Control

Client: TypeAlias = TestClient[web.Request, web.Application]
Start: TypeAlias = Callable[[TestServer], Awaitable[Client]]  # the fixture aiohttp_client


@dataclass
class FakeQueries:
    """Answers what it was told to, and notes what it was asked."""

    asked: list[Any] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=lambda: [b"{", b"}"])

    def queue_remaining(self) -> int:
        return 7

    async def queue(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part

    async def history(self, *, max_items: int | None, offset: int) -> AsyncIterator[bytes]:
        self.asked.append((max_items, offset))
        for part in self.parts:
            yield part

    async def history_entry(self, prompt_id: str) -> bytes:
        return b'{"x": "' + prompt_id.encode() + b'"}'

    async def jobs(self, query: JobsQuery) -> Iterator[bytes]:
        self.asked.append(query)
        return iter(self.parts)

    async def job(self, prompt_id: str) -> bytes | None:
        return b'{"id": "a"}' if prompt_id == "a" else None


@dataclass
class FakeStore:
    deleted: list[str] = field(default_factory=list)
    was_cleared: bool = False

    async def delete_history(self, prompt_ids: Sequence[str]) -> None:
        self.deleted += prompt_ids

    async def clear_history(self) -> None:
        self.was_cleared = True


@dataclass
class FakeControl:
    live: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    async def cancel(self, prompt_ids: Sequence[str]) -> set[str]:
        self.asked += prompt_ids
        return self.live & set(prompt_ids)

    async def known(self, prompt_id: str) -> bool:
        return prompt_id in self.live


@dataclass
class Stage:
    """The application's fakes."""

    client: Client
    queries: FakeQueries
    store: FakeStore
    control: FakeControl
    cancel_routes: list[bool]

    @staticmethod
    async def start(start: Start) -> "Stage":
        queries, store, control, cancel_routes = FakeQueries(), FakeStore(), FakeControl(), [True]
        app = web.Application(client_max_size=0)
        app[keys.QUERIES] = cast(Queries, queries)
        app[keys.STORE] = cast(JobStore, store)
        app[keys.CONTROL] = cast(Control, control)
        app[keys.CANCEL_ROUTES_ENABLED] = lambda: cancel_routes[0]
        middleware.install(app)
        app.add_routes([*queue.routes, *history.routes, *jobs.routes])
        server = TestServer(app)
        await server.start_server(auto_decompress=False)
        return Stage(await start(server), queries, store, control, cancel_routes)
