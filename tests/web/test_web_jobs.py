"""The jobs API."""

from typing import Any
from uuid import UUID

import pytest
from reading_support import Stage, Start

from comfyproxy.core.jobs_api import JobsQuery

A, B, UNKNOWN = (str(UUID(int=number)) for number in (1, 2, 3))


@pytest.fixture
async def stage(aiohttp_client: Start) -> Stage:
    stage = await Stage.start(aiohttp_client)
    stage.control.live = {A, B, "chosen by the client"}
    return stage


async def test_jobs_are_asked_for_as_the_query_says(stage: Stage) -> None:
    async with stage.client.get("/api/jobs?limit=3&status=failed") as response:
        assert (response.status, await response.json()) == (200, {})
    assert stage.queries.asked == [JobsQuery(limit=3, statuses=frozenset({"failed"}))]


async def test_a_wrong_parameter_is_refused_as_by_a_real_server(stage: Stage) -> None:
    async with stage.client.get("/api/jobs?sort_by=name") as response:
        assert response.status == 400
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        assert await response.json() == {"error": "sort_by must be 'created_at' or 'execution_duration'"}


async def test_a_job_is_shown_and_an_unknown_one_is_not_found(stage: Stage) -> None:
    async with stage.client.get("/api/jobs/a") as response:
        assert (response.status, await response.json()) == (200, {"id": "a"})
    async with stage.client.get("/api/jobs/b") as response:
        assert (response.status, await response.json()) == (404, {"error": "Job not found"})


@pytest.mark.parametrize(("job_id", "cancelled"), [(A, True), (UNKNOWN, False), ("no-uuid", False)])
async def test_cancelling_one_job_tells_whether_there_was_anything_to_cancel(
    stage: Stage, job_id: str, cancelled: bool
) -> None:
    async with stage.client.post(f"/api/jobs/{job_id}/cancel") as response:
        assert (response.status, await response.json()) == (200, {"cancelled": cancelled})
    assert stage.control.asked == [job_id]


async def test_several_jobs_are_cancelled_at_once_and_those_that_have_ended_do_not_matter(stage: Stage) -> None:
    async with stage.client.post(
        "/api/jobs/cancel", json={"job_ids": [A, UNKNOWN, "chosen by the client"]}
    ) as response:
        assert (response.status, await response.json()) == (200, {"cancelled": True})
    assert stage.control.asked == [A, UNKNOWN, "chosen by the client"]
    async with stage.client.post("/api/jobs/cancel", json={"job_ids": [UNKNOWN]}) as response:
        assert await response.json() == {"cancelled": False}
    async with stage.client.post("/api/jobs/cancel", json={"job_ids": []}) as response:
        assert await response.json() == {"cancelled": False}


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("{", {"error": "Request body must be valid JSON"}),
        ("[]", {"error": "job_ids must be a list"}),
        ('{"job_ids": "a"}', {"error": "job_ids must be a list"}),
        (
            f'{{"job_ids": ["{A}", "x", 5, {{"a": 1}}, "{A.upper()[:-1]}A"]}}',
            {"error": "job_ids contains invalid id(s)", "invalid_ids": ["x", "5", "{'a': 1}", A[:-1] + "A"]},
        ),
    ],
)
async def test_a_malformed_batch_cancels_nothing(stage: Stage, body: str, answer: Any) -> None:
    async with stage.client.post("/api/jobs/cancel", data=body) as response:
        assert (response.status, await response.json()) == (400, answer)
    assert stage.control.asked == []


@pytest.mark.parametrize("path", [f"/api/jobs/{A}/cancel", "/api/jobs/cancel"])
async def test_where_no_backend_has_the_cancel_routes_neither_has_the_proxy(stage: Stage, path: str) -> None:
    stage.cancel_routes[0] = False
    async with stage.client.post(path, json={"job_ids": [A]}) as response:
        assert (response.status, await response.text()) == (405, "405: Method Not Allowed")
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert stage.control.asked == []


@pytest.mark.parametrize("path", ["/jobs", "/jobs/a"])
async def test_the_jobs_api_has_no_bare_twin(stage: Stage, path: str) -> None:
    async with stage.client.get(path) as response:
        assert response.status == 404
