"""After a start every job that had not ended goes on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from service_support import Stage

from comfyproxy.core.jobs import BackendId, Job, JobState, Payload
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.service.recovery import recover


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b") as stage:
        stage.dispatch()
        yield stage


async def keep(
    stage: Stage, prompt_id: str, state: JobState = JobState.QUEUED, name: str | None = None, **job: Any
) -> None:
    """Put a job into the store, as an earlier life of the proxy left it."""
    backend = None if name is None else BackendId(name)
    await stage.store.insert(
        Job(
            prompt_id=prompt_id,
            client_id="c",
            fingerprint="f",
            created_s=1.0,
            state=state,
            backend=backend,
            **{"number": 0.0, **job},
        ),
        Payload(graph=b"{}"),
    )


async def start(stage: Stage) -> None:
    await recover(stage.board, stage.store, stage.fleet, stage.placement, stage.dispatcher, stage.reconciler)


async def test_what_waited_goes_out_by_number(stage: Stage) -> None:
    stage.dispatcher.is_stopping = True
    for prompt_id, number in (("p", 3.0), ("q", 1.0), ("r", 2.0)):
        await keep(stage, prompt_id, number=number)
    await start(stage)
    assert (stage.board.count, stage.board.waiting_count) == (3, 3)
    stage.dispatcher.is_stopping = False
    stage.dispatcher.wake()
    await stage.quiet()
    sent = [*stage.client("a").called("submit"), *stage.client("b").called("submit")]
    assert sorted((each["number"], each["prompt_id"]) for each in sent) == [(1, "q"), (2, "r"), (3, "p")]


async def test_nothing_else_is_needed_for_it_to_go_out(stage: Stage) -> None:
    await keep(stage, "p")
    await stage.quiet()
    await start(stage)
    await stage.quiet()
    assert stage.live("p").job.state is JobState.ACCEPTED


async def test_what_was_on_its_way_and_arrived_is_found_and_not_sent_again(stage: Stage) -> None:
    await keep(stage, "p", JobState.DISPATCHING, "a", attempts=1)
    stage.client("a").pending.append("p")
    await start(stage)
    await stage.quiet()
    assert (stage.live("p").job.state, stage.live("p").job.backend) == (JobState.ACCEPTED, "a")
    assert stage.client("a").called("submit") == []
    assert stage.client("b").called("submit") == []


async def test_what_was_on_its_way_and_is_nowhere_is_sent(stage: Stage) -> None:
    await keep(stage, "p", JobState.DISPATCHING, "a", attempts=1)
    await start(stage)
    await stage.quiet()
    assert stage.live("p").job.state is JobState.DISPATCHING  # one look is no proof
    await asyncio.sleep(2)
    sent = [*stage.client("a").called("submit"), *stage.client("b").called("submit")]
    assert [each["prompt_id"] for each in sent] == ["p"]
    assert stage.live("p").job.state is JobState.ACCEPTED


async def test_what_a_backend_has_is_bound_to_it(stage: Stage) -> None:
    await keep(stage, "p", JobState.ACCEPTED, "a", backend_prompt_id="minted")
    await start(stage)
    await stage.quiet()
    assert stage.board.find(BackendId("a"), "minted") is stage.live("p")
    assert stage.backend("a").in_flight == {"p"}
    assert stage.client("a").calls == []


async def test_what_ended_meanwhile_is_settled_by_the_first_probe(stage: Stage) -> None:
    await keep(stage, "p", JobState.ACCEPTED, "a")
    stage.ends("a", "p")
    await start(stage)
    await stage.reconciler.check(stage.backend("a"))
    await stage.quiet()
    assert stage.streams.events("c") == ["execution_success", "executing"]


@pytest.mark.parametrize("state", [JobState.DISPATCHING, JobState.ACCEPTED])
async def test_what_a_backend_had_that_is_not_configured_any_more_goes_elsewhere(stage: Stage, state: JobState) -> None:
    await keep(stage, "p", state, "gone", attempts=1)
    await start(stage)
    await stage.quiet()
    assert stage.live("p").job.backend in ("a", "b")


async def test_a_store_that_cannot_be_read_is_no_empty_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> list[Job]:
        raise StoreUnavailable("the disk is gone")

    monkeypatch.setattr(stage.store, "unfinished", broken)
    with pytest.raises(StoreUnavailable):
        await start(stage)
