"""Jobs that lose their backend, and what is left of them there."""

from collections.abc import AsyncIterator

import pytest
from service_support import Stage

from comfyproxy.core.jobs import BackendId, JobState

A = BackendId("a")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b") as stage:
        yield stage


async def test_a_lost_job_waits_again_and_nobody_is_told(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.failover.lose(live, "it died")
    await stage.quiet()
    assert (live.job.state, live.is_running, stage.board.waiting_count) == (JobState.QUEUED, False, 1)
    assert (live.losses, stage.streams.told) == (["it died"], [])
    assert stage.observer.counts["failed over", "a"] == 1


async def test_a_job_that_was_tried_often_enough_ends_with_its_story(stage: Stage) -> None:
    live = await stage.has("a", "p", attempts=1)
    for attempt in range(1, 5):
        assert stage.streams.told == []
        stage.failover.lose(live, f"death {attempt}")
        await stage.quiet()
        if attempt < 4:
            stage.board.move(live, JobState.DISPATCHING, backend=A, attempts=attempt + 1)
            stage.board.move(live, JobState.ACCEPTED)
    assert stage.streams.events("c") == ["execution_error", "executing"]
    told = stage.streams.to("c")[0]["data"]
    assert told["exception_type"] == "BackendLost"
    assert "4. death 4" in told["exception_message"]
    assert (stage.board.get("p"), stage.board.waiting_count) == (None, 0)


async def test_a_job_on_the_move_is_lost_once_it_is_at_rest(stage: Stage) -> None:
    live = await stage.has("a", "p")
    live.depart()
    stage.failover.lose(live, "it died")
    await stage.quiet()
    assert (live.job.state, live.losses) == (JobState.ACCEPTED, [])
    live.rest()
    await stage.quiet()
    assert (live.job.state, live.losses) == (JobState.QUEUED, ["it died"])


async def test_what_waits_here_cannot_be_lost(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.failover.lose(live, "it died")
    assert (live.losses, stage.board.waiting_count) == ([], 1)


# What is left on a backend


async def lay(stage: Stage) -> bool:
    backend = stage.backend("a")
    return await stage.ghosts.lay(backend, await backend.client.queue())


async def test_what_has_moved_on_is_deleted_or_interrupted_by_its_id(stage: Stage) -> None:
    waits = await stage.has("a", "waits", backend_prompt_id="minted-1")
    runs = await stage.has("a", "runs", runs=True, backend_prompt_id="minted-2")
    for live in (waits, runs):
        stage.failover.lose(live, "silence", may_run_on=True)
    assert await lay(stage)
    assert stage.client("a").called("delete") == [["minted-1"]]
    assert stage.client("a").called("interrupt") == ["minted-2"]
    assert runs.ghosts == waits.ghosts == {"a"}


async def test_a_backend_gets_a_job_again_only_when_it_is_rid_of_it(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.failover.lose(live, "silence", may_run_on=True)
    assert await lay(stage)
    assert await lay(stage)  # it ends at its next step
    await stage.has("b", "x")
    await stage.has("b", "y")
    assert stage.board.take() is None  # `a` has room
    stage.client("a").running.clear()
    assert not await lay(stage)
    assert live.ghosts == set()
    assert stage.client("a").called("interrupt") == ["p", "p"]
    found = stage.board.take()
    assert found is not None
    assert found[:2] == (live, A)


async def test_what_is_there_by_right_is_left_alone(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    await stage.has("a", "q")
    assert not await lay(stage)
    assert [name for name, _ in stage.client("a").calls] == ["queue"]


async def test_what_strangers_have_put_there_is_left_alone(stage: Stage) -> None:
    client = stage.client("a")
    client.running, client.pending = ["stranger"], ["another"]
    assert not await lay(stage)
    assert (client.called("delete"), client.called("interrupt")) == ([], [])


async def test_what_ended_or_runs_elsewhere_is_removed(stage: Stage) -> None:
    await stage.has("b", "elsewhere", runs=True)
    await stage.waits("cancelled")
    await stage.control.cancel(["cancelled"])
    stage.client("a").running, stage.client("a").pending = ["elsewhere"], ["cancelled"]
    assert await lay(stage)
    assert stage.client("a").called("interrupt") == ["elsewhere"]
    assert stage.client("a").called("delete") == [["cancelled"]]


async def test_what_is_on_its_way_is_no_ghost(stage: Stage) -> None:
    live = await stage.waits("p")
    live.depart()
    stage.client("a").pending = ["p"]
    assert not await lay(stage)
    assert stage.client("a").called("delete") == []
