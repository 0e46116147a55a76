"""What no event told: the jobs on a backend are held against its queue and its history."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from service_support import HEARTBEAT_TIMEOUT_S, FakeClient, Stage, entry_of, make_job

from comfyproxy.core.errors import DeliveryUnknown
from comfyproxy.core.jobs import BackendId, JobState
from comfyproxy.service.live import LiveJob


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b") as stage:
        for backend in stage.fleet:
            await stage.reconciler.check(backend)  # what was there before the start
            assert isinstance(backend.client, FakeClient)
            backend.client.calls.clear()
        yield stage


@pytest.fixture
def client(stage: Stage) -> FakeClient:
    return stage.client("a")


async def check(stage: Stage, name: str = "a") -> None:
    await stage.reconciler.check(stage.backend(name))
    await stage.quiet()


async def test_where_nothing_of_ours_is_nothing_is_asked(stage: Stage, client: FakeClient) -> None:
    await stage.has("b", "q")
    await stage.waits("p")
    stage.board.add(LiveJob(make_job("r", state=JobState.DISPATCHING, backend=BackendId("a"))))
    await check(stage)
    assert client.calls == []


async def test_what_waits_there_is_left_alone(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    await check(stage)
    assert [name for name, _ in client.calls] == ["queue"]
    assert (live.job.state, live.is_running, stage.streams.told) == (JobState.ACCEPTED, False, [])


async def test_a_start_that_was_missed_is_told(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p", backend_prompt_id="minted")
    client.running, client.pending = client.pending, []
    await check(stage)
    await check(stage)
    assert (live.is_running, live.job.started_s) == (True, 5000.0)
    assert stage.streams.told == [
        ("c", {"type": "execution_start", "data": {"prompt_id": "p", "timestamp": 5_000_000}})
    ]


async def test_a_start_that_was_heard_is_told_once(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    await check(stage)
    assert stage.streams.told == []


async def test_an_end_that_was_missed_is_told(stage: Stage, client: FakeClient) -> None:
    await stage.has("a", "p", runs=True)
    stage.ends("a", "p", outputs={"9": {"text": ["x"]}})
    await check(stage)
    assert stage.streams.events("c") == ["executed", "execution_success", "executing"]
    assert client.called("history") == ["p"]
    assert stage.board.get("p") is None


async def test_many_jobs_cost_one_look_at_the_queue(stage: Stage, client: FakeClient) -> None:
    for number in range(5):
        await stage.has("a", f"p{number}")
    stage.ends("a", "p3")
    await check(stage)
    assert len(client.called("queue")) == 1
    assert client.called("history") == ["p3"]


async def test_what_a_backend_has_forgotten_runs_again(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    client.pending.clear()
    await check(stage)
    assert (live.job.state, stage.board.waiting_count) == (JobState.QUEUED, 1)
    assert "forgotten" in live.losses[0]
    assert stage.streams.told == []


Change = Callable[[Stage, LiveJob], None]


def is_settling(stage: Stage, live: LiveJob) -> None:
    stage.settler.begin(live, entry=entry_of("p"))


def is_on_the_move(stage: Stage, live: LiveJob) -> None:
    live.depart()


def waits_again(stage: Stage, live: LiveJob) -> None:
    stage.board.move(live, JobState.QUEUED)


def is_elsewhere(stage: Stage, live: LiveJob) -> None:
    stage.board.move(live, JobState.QUEUED)
    stage.board.move(live, JobState.DISPATCHING, backend=BackendId("b"))
    stage.board.move(live, JobState.ACCEPTED)


@pytest.mark.parametrize("change", [is_settling, is_on_the_move, waits_again, is_elsewhere])
@pytest.mark.parametrize("asked", ["queue", "history"])
async def test_what_has_moved_on_while_the_backend_was_asked_is_left_alone(
    stage: Stage, client: FakeClient, asked: str, change: Change
) -> None:
    live = await stage.has("a", "p", runs=True)
    client.running.clear()
    client.gates[asked] = asyncio.Event()
    checking = asyncio.create_task(stage.reconciler.check(stage.backend("a")))
    await stage.quiet()
    assert client.calls[-1][0] == asked
    change(stage, live)
    expected = live.job
    client.gates[asked].set()
    await checking
    if change is not is_settling:
        assert live.job == expected
    assert client.calls[-1][0] == asked
    live.rest()
    await stage.quiet()
    assert live.losses == []


async def test_what_settles_is_not_started_anew(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    client.running, client.pending = ["p"], []
    client.gates["queue"] = asyncio.Event()
    checking = asyncio.create_task(stage.reconciler.check(stage.backend("a")))
    await stage.quiet()
    live.is_settling = True
    client.gates["queue"].set()
    await checking
    assert not live.is_running


async def test_a_backend_that_does_not_answer_is_the_probers_matter(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    client.errors["queue"] = [DeliveryUnknown("silence")]
    with pytest.raises(DeliveryUnknown):
        await check(stage)
    assert live.job.state is JobState.ACCEPTED


# Probes that fail


async def test_silence_is_no_proof_of_death(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    await asyncio.sleep(HEARTBEAT_TIMEOUT_S - 1)
    stage.reconciler.failed(stage.backend("a"), "timeout", is_dead=False)
    assert live.job.state is JobState.ACCEPTED


async def test_silence_for_too_long_is(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    other = await stage.has("b", "q")
    await asyncio.sleep(HEARTBEAT_TIMEOUT_S + 1)
    stage.reconciler.failed(stage.backend("a"), "timeout", is_dead=False)
    assert (live.job.state, live.is_running, other.job.state) == (JobState.QUEUED, False, JobState.ACCEPTED)
    assert live.losses == ["Backend a died while it had this prompt: no sign of life for 61 s: timeout"]
    assert live.ghosts == {"a"}


async def test_a_refused_connection_is_at_once(stage: Stage) -> None:
    live = await stage.has("a", "p")
    stage.reconciler.failed(stage.backend("a"), "nothing listens", is_dead=True)
    assert live.job.state is JobState.QUEUED
    assert live.losses == ["Backend a died while it had this prompt: nothing listens"]
    assert live.ghosts == set()


@pytest.mark.parametrize("change", [is_settling, is_on_the_move])
async def test_whoever_moves_or_ends_a_job_finds_out_by_himself(stage: Stage, change: Change) -> None:
    live = await stage.has("a", "p")
    change(stage, live)
    stage.reconciler.failed(stage.backend("a"), "nothing listens", is_dead=True)
    assert (live.job.state, live.losses) == (JobState.ACCEPTED, [])
    live.rest()
    await stage.quiet()
    assert live.losses == []


async def test_a_job_whose_backend_is_not_configured_any_more_is_lost(stage: Stage) -> None:
    live = LiveJob(make_job("p", state=JobState.ACCEPTED, backend=BackendId("gone"), attempts=1), is_admitted=True)
    stage.board.add(live)
    stage.reconciler.abandon(live)
    assert live.job.state is JobState.QUEUED
    assert live.losses == ["Backend gone is no longer configured"]
