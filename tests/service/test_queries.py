"""Queue, history and jobs, read from the board and the store."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from queries_support import PAYLOAD, FakeBackend, FakeFleet, Stage, make_job

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.jobs_api import JobsQuery
from comfyproxy.service import queries as module
from comfyproxy.service.queries import Queries
from comfyproxy.service.rendered import Rendered


async def read(parts: AsyncIterator[bytes]) -> Any:
    return json.loads(b"".join([part async for part in parts]))


@pytest.fixture
def stage() -> Stage:
    return Stage()


# Queue


async def test_an_empty_queue_is_two_empty_lists(stage: Stage) -> None:
    assert await read(stage.queries().queue()) == {"queue_running": [], "queue_pending": []}


async def test_the_queue_shows_what_runs_and_what_waits(stage: Stage) -> None:
    stage.runs(make_job("a", 0))
    stage.waits(make_job("b", 1.5))
    stage.waits(make_job("c", -2))
    queries = stage.queries()
    assert await read(queries.queue()) == {
        "queue_running": [[0, "a", json.loads(PAYLOAD.graph), {"client_id": "c", "create_time": 1000_000}, ["1"]]],
        "queue_pending": [
            [-2, "c", json.loads(PAYLOAD.graph), {"client_id": "c", "create_time": 998_000}, ["1"]],
            [1.5, "b", json.loads(PAYLOAD.graph), {"client_id": "c", "create_time": 1001_500}, ["1"]],
        ],
    }
    assert queries.queue_remaining() == 3


async def test_running_jobs_come_in_the_order_of_their_start(stage: Stage) -> None:
    stage.runs(replace(make_job("a"), started_s=7.0))
    stage.runs(replace(make_job("b"), started_s=5.0))
    assert [item[1] for item in (await read(stage.queries().queue()))["queue_running"]] == ["b", "a"]


async def test_an_older_backends_jobs_show_no_create_time(stage: Stage) -> None:
    stage.fleet = FakeFleet(new=FakeBackend(), old=FakeBackend(shows_create_time=False))
    stage.waits(replace(make_job("a", 0), backend=BackendId("old")))
    stage.waits(replace(make_job("b", 1), backend=BackendId("new")))
    stage.waits(make_job("c", 2))
    shown = (await read(stage.queries().queue()))["queue_pending"]
    assert ["create_time" in item[3] for item in shown] == [False, True, True]


async def test_a_poll_renders_only_what_is_new(stage: Stage) -> None:
    queries = stage.queries()
    for number in range(5):
        stage.waits(make_job(f"j{number}", number))
        await read(queries.queue())
    assert stage.store.payloads_read == 5


async def test_the_outputs_shown_are_those_of_the_verdict(stage: Stage) -> None:
    queries = stage.queries()
    stage.waits(make_job("a"))
    await read(queries.queue())
    stage.waits(replace(make_job("a"), outputs_to_execute=("9",)))
    assert (await read(queries.queue()))["queue_pending"][0][4] == ["9"]


async def test_a_queue_longer_than_the_memory_for_it_is_shown_whole(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_BATCH", 3)
    queries = stage.queries(max_rendered_bytes=250)
    for number in range(10):
        stage.waits(make_job(f"j{number}", number))
    for _ in range(2):
        shown = (await read(queries.queue()))["queue_pending"]
        assert [item[0] for item in shown] == list(range(10))
    assert stage.store.payloads_read < 20


async def test_an_answer_is_kept_until_the_queue_changes(stage: Stage) -> None:
    queries = stage.queries(max_answer_bytes=10_000)
    stage.waits(make_job("a"))
    first = await read(queries.queue())
    stage.store.waiting.clear()
    assert await read(queries.queue()) == first
    assert stage.board.looked == 1
    stage.waits(make_job("b", 1))
    assert len((await read(queries.queue()))["queue_pending"]) == 2


async def test_a_job_that_ends_while_the_queue_is_read_is_left_out(stage: Stage) -> None:
    for prompt_id in ("a", "b", "c"):
        stage.waits(make_job(prompt_id))
    del stage.store.waiting["b"]
    shown = (await read(stage.queries().queue()))["queue_pending"]
    assert [item[1] for item in shown] == ["a", "c"]


def test_rendered_items_go_with_their_jobs() -> None:
    rendered = Rendered(max_bytes=10)
    a, b = make_job("a"), make_job("b")
    rendered.put(a, b"12345678", create_time=True)
    rendered.put(b, b"123", create_time=True)
    assert (rendered.get(a, create_time=True), rendered.get(b, create_time=True)) == (b"12345678", None)
    assert rendered.get(a, create_time=False) is None
    rendered.retain({"b"})
    assert rendered.size == 0


# History


@pytest.fixture
def settled(stage: Stage) -> Queries:
    for number in range(7):
        stage.settles(make_job(f"j{number}", number))
    return stage.queries()


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("max_items", "offset", "numbers"),
    [
        (None, -1, [0, 1, 2, 3, 4, 5, 6]),
        (None, 5, [5, 6]),
        (None, 9, []),
        (2, -1, [5, 6]),
        (9, -1, [0, 1, 2, 3, 4, 5, 6]),
        (0, -1, []),
        (-1, -1, []),
        (3, 1, [1, 2, 3]),
        (3, 5, [5, 6]),
        (0, 2, [2]),
    ],
)
async def test_history_gives_the_entries_that_a_real_server_would(
    settled: Queries,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    max_items: int | None,
    offset: int,
    numbers: list[int],
) -> None:
    monkeypatch.setattr(module, "HISTORY_BATCH", batch)
    shown = await read(settled.history(max_items=max_items, offset=offset))
    assert [entry["prompt"][0] for entry in shown.values()] == numbers
    assert list(shown) == [f"j{number}" for number in numbers]


async def test_what_the_retention_drops_meanwhile_costs_no_other_entry(
    stage: Stage, settled: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HISTORY_BATCH", 3)
    parts = settled.history(max_items=None, offset=-1)
    text = b""
    for count in range(100):
        if (part := await anext(parts, None)) is None:
            break
        text += part
        if count == 2:  # two of three entries of the first batch are out
            del stage.store.entries["j0"], stage.store.entries["j1"]
    assert list(json.loads(text)) == [f"j{number}" for number in range(7)]


async def test_one_entry_is_found_by_its_id(settled: Queries, stage: Stage) -> None:
    assert json.loads(await settled.history_entry("j3")) == {"j3": json.loads(stage.store.entries["j3"])}


async def test_unknown_and_unfinished_jobs_have_no_entry(settled: Queries, stage: Stage) -> None:
    stage.waits(make_job("w"))
    assert await settled.history_entry("w") == await settled.history_entry("unknown") == b"{}"


# Jobs


async def listed(queries: Queries, **query: Any) -> tuple[list[str], dict[str, Any]]:
    answer = json.loads(b"".join(await queries.jobs(JobsQuery(**query))))
    return [job["id"] for job in answer["jobs"]], answer["pagination"]


@pytest.fixture
def mixed(stage: Stage) -> Queries:
    """Three settled, one running and two waiting jobs; `late` came before the last of the settled."""
    for number, ran_s in ((0, 3.0), (1, 1.0), (4, 2.0)):
        stage.settles(make_job(f"s{number}", number, workflow_id="w" if number else None), ran_s=ran_s)
    stage.runs(make_job("r3", 3, workflow_id="w"))
    stage.waits(make_job("late", 2))
    stage.waits(make_job("p5", 5))
    return stage.queries()


NEWEST_FIRST = ["p5", "s4", "r3", "late", "s1", "s0"]


async def test_jobs_of_all_kinds_are_listed_newest_first(mixed: Queries) -> None:
    assert await listed(mixed) == (NEWEST_FIRST, {"offset": 0, "limit": None, "total": 6, "has_more": False})
    assert (await listed(mixed, descending=False))[0] == NEWEST_FIRST[::-1]


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("offset", range(8))
@pytest.mark.parametrize("limit", [1, 2, 4, 9])
async def test_pages_are_cut_from_the_whole_list(mixed: Queries, descending: bool, offset: int, limit: int) -> None:
    whole = NEWEST_FIRST if descending else NEWEST_FIRST[::-1]
    ids, pagination = await listed(mixed, descending=descending, offset=offset, limit=limit)
    assert ids == whole[offset : offset + limit]
    assert pagination == {
        "offset": offset,
        "limit": limit,
        "total": 6,
        "has_more": offset + len(ids) < 6,
    }


async def test_jobs_are_sorted_by_how_long_they_ran(mixed: Queries) -> None:
    # As in ComfyUI, equals stay in its order: running, waiting, history.
    assert (await listed(mixed, sort_by="execution_duration"))[0] == ["s0", "s4", "s1", "r3", "late", "p5"]
    shortest_first = (await listed(mixed, sort_by="execution_duration", descending=False))[0]
    assert shortest_first == ["r3", "late", "p5", "s1", "s4", "s0"]


async def test_jobs_are_filtered_by_status_and_workflow(mixed: Queries) -> None:
    assert (await listed(mixed, statuses=frozenset({"pending"})))[0] == ["p5", "late"]
    assert (await listed(mixed, statuses=frozenset({"in_progress", "failed"})))[0] == ["s4", "r3", "s1", "s0"]
    assert (await listed(mixed, statuses=frozenset({"completed"}))) == (
        [],
        {"offset": 0, "limit": None, "total": 0, "has_more": False},
    )
    assert (await listed(mixed, statuses=frozenset()))[0] == []
    assert (await listed(mixed, workflow_id="w"))[0] == ["s4", "r3", "s1"]


async def test_a_job_that_settles_just_now_is_listed_once(mixed: Queries, stage: Stage) -> None:
    stage.settles(make_job("r3", 3))
    ids, pagination = await listed(mixed)
    assert (ids, pagination["total"]) == (NEWEST_FIRST, 6)


async def test_one_job_is_shown_in_each_state(mixed: Queries) -> None:
    shown = {prompt_id: await mixed.job(prompt_id) for prompt_id in ("p5", "r3", "s1", "unknown")}
    statuses = {prompt_id: json.loads(job)["status"] for prompt_id, job in shown.items() if job is not None}
    assert statuses == {"p5": "pending", "r3": "in_progress", "s1": "failed"}
    assert "workflow" in json.loads(shown["s1"] or b"")


async def test_the_last_jobs_come_newest_first(mixed: Queries) -> None:
    assert [job.prompt_id for job in await mixed.last_settled(2)] == ["s4", "s1"]
