"""/status, /healthz and /readyz."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import jinja2
import pytest
from aiohttp import web
from aiohttp.pytest_plugin import AiohttpClient
from reading_support import Client

from comfyproxy.core.jobs import BackendId, Job, JobState
from comfyproxy.service.fleet import Fleet
from comfyproxy.service.queries import Queries
from comfyproxy.web import keys, status

TEMPLATES = Path(__file__).parents[2] / "templates"
HOSTILE = '<script>alert("1")</script>\'"&'


def make_job(prompt_id: str, number: float = 0, *, client_id: str | None = "c", created_s: float = 990.0) -> Job:
    return Job(prompt_id=prompt_id, number=float(number), client_id=client_id, fingerprint="", created_s=created_s)


@dataclass
class FakeSettings:
    host: str = "10.0.0.1"
    port: int = 8188
    max_concurrent: int = 2


@dataclass
class FakeBackend:
    id: BackendId
    state: str = "ready"
    in_flight: set[str] = field(default_factory=set)
    queue_remaining: int = 0
    version: str | None = "0.25.0"
    last_error: str | None = None
    settings: FakeSettings = field(default_factory=FakeSettings)


@dataclass
class FakeFleet:
    backends: list[FakeBackend] = field(default_factory=list)

    def __iter__(self) -> Iterable[FakeBackend]:
        return iter(self.backends)

    def ready(self) -> list[FakeBackend]:
        return [backend for backend in self.backends if backend.state in ("ready", "busy")]

    def describe_absence(self) -> str:
        return "; ".join(f"{backend.id}: {backend.last_error}" for backend in self.backends)


@dataclass
class FakeBoard:
    jobs: list[Job] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)

    @property
    def count(self) -> int:
        return len(self.jobs)

    @property
    def waiting_count(self) -> int:
        return sum(job.backend is None for job in self.jobs)

    def job(self, prompt_id: str) -> Job | None:
        return next((job for job in self.jobs if job.prompt_id == prompt_id), None)

    def unfinished(self) -> Iterable[Job]:
        return self.jobs

    def is_running(self, prompt_id: str) -> bool:
        return prompt_id in self.runs


@dataclass
class FakeQueries:
    last: list[Job] = field(default_factory=list)

    async def last_settled(self, count: int) -> list[Job]:
        return self.last[:count]


@dataclass
class Stage:
    client: Client
    fleet: FakeFleet
    board: FakeBoard
    queries: FakeQueries

    async def page(self, query: str = "") -> str:
        async with self.client.get(f"/status{query}") as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            return await response.text()


class Page(HTMLParser):
    """The text of a page, cell by cell, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self._row: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self._row = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._row is not None:
            self.rows.append(" ".join(self._row))
            self._row = None

    def handle_data(self, data: str) -> None:
        if self._row is not None and data.strip():
            self._row.append(" ".join(data.split()))


@pytest.fixture
async def stage(aiohttp_client: AiohttpClient) -> Stage:
    fleet, board, queries = FakeFleet(), FakeBoard(), FakeQueries()
    app = web.Application()
    app[keys.FLEET] = cast(Fleet, fleet)
    app[keys.BOARD] = board
    app[keys.QUERIES] = cast(Queries, queries)
    app[keys.WALL_CLOCK] = lambda: 1000.0
    status.install(app, jinja2.FileSystemLoader(TEMPLATES))
    app.add_routes(status.routes)
    return Stage(await aiohttp_client(app), fleet, board, queries)


async def test_an_idle_fleet_has_a_page(stage: Stage) -> None:
    text = await stage.page()
    assert "Nothing waits." in text
    assert "No prompt has ended yet." in text


async def test_every_backend_shows_its_state_its_load_and_what_it_runs(stage: Stage) -> None:
    stage.fleet.backends = [
        FakeBackend(BackendId("gpu-a"), state="busy", in_flight={"running-1", "behind-it"}, queue_remaining=5),
        FakeBackend(BackendId("gpu-b"), state="unhealthy", version=None, last_error="connection refused"),
    ]
    running, behind = make_job("running-1"), make_job("behind-it", 1)
    stage.board.jobs = [replace(job, backend=BackendId("gpu-a")) for job in (behind, running)]
    stage.board.runs = {"running-1"}
    text = await stage.page()
    rows = Page(text).rows
    assert "gpu-a 10.0.0.1:8188 busy 2 / 2 running- behind-i 5 0.25.0" in rows
    assert "gpu-b 10.0.0.1:8188 unhealthy 0 / 2 - 0 - connection refused" in rows
    assert "1 behind-i c gpu-a 10 s" in rows
    assert "<title>1/2 ready, 2 jobs · comfyproxy</title>" in text


async def test_the_queue_shows_who_is_next_and_how_many_there_are(stage: Stage) -> None:
    stage.board.jobs = [make_job(f"job-{number}", number, created_s=1000 - number) for number in range(80)]
    stage.board.jobs.append(make_job("first", -3.5, client_id=None, created_s=940.0))
    text = await stage.page()
    queue = [row for row in Page(text).rows if row.endswith((" s", " min", "d", "h"))]
    assert queue[:2] == ["-3.5 first - here 1 min", "0 job-0 c here 0.0 s"]
    assert len(queue) == 50
    assert "(first 50 of 81)" in text


async def test_the_last_prompts_show_how_they_ended(stage: Stage) -> None:
    done = make_job("done-done")
    stage.queries.last = [
        replace(done, state=state, backend=BackendId("gpu-a"), error=error, started_s=900.0, finished_s=965.0)
        for state, error in ((JobState.SUCCEEDED, None), (JobState.FAILED, "ValueError: no"))
    ]
    stage.queries.last.append(replace(done, state=JobState.CANCELLED))
    assert Page(await stage.page()).rows[-3:] == [
        "done-don succeeded gpu-a 1 min 5 s 35 s ago",
        "done-don failed gpu-a 1 min 5 s 35 s ago ValueError: no",
        "done-don cancelled - - -",
    ]


async def test_hostile_names_are_text_and_nothing_else(stage: Stage) -> None:
    backend = FakeBackend(BackendId(HOSTILE), state="ready", version=HOSTILE, last_error=HOSTILE)
    stage.fleet.backends = [backend]
    hostile = Job(
        prompt_id=HOSTILE,
        number=0.0,
        client_id=HOSTILE,
        fingerprint="",
        created_s=0.0,
        backend=BackendId(HOSTILE),
        error=HOSTILE,
        state=JobState.FAILED,
    )
    stage.board.jobs, stage.queries.last = [hostile], [hostile]
    text = await stage.page()
    assert "<script" not in text
    page = Page(text)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert HOSTILE in [attrs.get("title") for _, attrs in page.tags]
    assert any(HOSTILE in row for row in page.rows)
    known = {"class", "title", "href", "scope", "lang", "charset", "name", "content", "http-equiv"}
    assert {name for _, attrs in page.tags for name in attrs} <= known


async def test_a_page_long_error_is_cut(stage: Stage) -> None:
    stage.fleet.backends = [FakeBackend(BackendId("a"), last_error="x" * 5000)]
    assert "x" * 301 not in await stage.page()


@pytest.mark.parametrize(
    ("query", "seconds"),
    [("", "5"), ("?refresh=0", None), ("?refresh=30", "30"), ("?refresh=abc", "5"), ("?refresh=-1", "5")],
)
async def test_the_page_refreshes_itself_unless_told_not_to(stage: Stage, query: str, seconds: str | None) -> None:
    page = Page(await stage.page(query))
    found = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "refresh"]
    assert found == ([] if seconds is None else [seconds])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text


async def test_the_process_is_healthy_whatever_its_backends(stage: Stage) -> None:
    async with stage.client.get("/healthz") as response:
        assert (response.status, await response.text()) == (200, "ok")


async def test_the_proxy_is_ready_once_a_backend_is(stage: Stage) -> None:
    async with stage.client.get("/readyz") as response:
        assert (response.status, (await response.json())["reason"]) == (503, "no backend is configured")
    stage.fleet.backends = [FakeBackend(BackendId("a"), state="unhealthy", last_error="connection refused")]
    async with stage.client.get("/readyz") as response:
        assert response.status == 503
        assert await response.json() == {
            "ready": False,
            "reason": "a: connection refused",
            "backends": {"a": "unhealthy"},
        }
    stage.fleet.backends.append(FakeBackend(BackendId("b")))
    async with stage.client.get("/readyz") as response:
        assert response.status == 200
        assert await response.json() == {"ready": True, "backends": {"a": "unhealthy", "b": "ready"}}


@pytest.mark.parametrize("path", ["/status", "/healthz"])
async def test_head_is_answered(stage: Stage, path: str) -> None:
    async with stage.client.head(path) as response:
        assert response.status == 200
