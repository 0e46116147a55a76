"""From the queue to the backends: who gets what, and what becomes of it where that fails."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from service_support import Stage

from comfyproxy.core.errors import ConnectionRefused, DeliveryUnknown, NotDelivered
from comfyproxy.core.jobs import JobState
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.strategies import make_strategy


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b", max_concurrent=1) as stage:
        stage.dispatch()
        yield stage


async def go(stage: Stage) -> None:
    stage.dispatcher.wake()
    await stage.quiet()


def sent(stage: Stage, name: str) -> list[str]:
    return [each["prompt_id"] for each in stage.client(name).called("submit")]


async def test_every_backend_gets_as_many_as_it_takes_and_the_rest_waits(stage: Stage) -> None:
    for number in range(4):
        await stage.waits(f"p{number}", number=float(number))
    await go(stage)
    assert sorted(sent(stage, "a") + sent(stage, "b")) == ["p0", "p1"]
    assert stage.board.waiting_count == 2
    stage.ends("a", sent(stage, "a")[0])
    stage.says("a", "executing", node=None, prompt_id=sent(stage, "a")[0])
    await stage.quiet()
    assert sent(stage, "a")[1:] == ["p2"]


async def test_it_is_written_before_it_is_sent(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.client("a").gates["submit"] = asyncio.Event()
    await go(stage)
    stored = await stage.store.get("p")
    assert stored is not None
    assert (stored.state, stored.backend, live.moving is not None) == (JobState.DISPATCHING, "a", True)
    assert live.sent_s == pytest.approx(stage.time(), abs=0.001)
    stage.client("a").gates["submit"].set()
    await stage.quiet()
    assert (live.job.state, live.job.attempts, live.moving) == (JobState.ACCEPTED, 1, None)


async def test_what_cannot_be_written_is_not_sent_and_tried_again(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.store.fails["update"] = 2
    await go(stage)
    assert (sent(stage, "a"), sent(stage, "b"), live.job.state) == ([], [], JobState.QUEUED)
    await asyncio.sleep(2)
    assert live.job.state is JobState.ACCEPTED
    assert len(sent(stage, "a") + sent(stage, "b")) == 1


async def test_what_cannot_be_written_blames_no_backend_and_is_not_tried_on_all_of_them(stage: Stage) -> None:
    await stage.waits("p")
    stage.store.fails["update"] = 1
    await go(stage)
    failed = [change for change in stage.store.changes if change[0] == "update"]
    assert (failed, sent(stage, "a"), sent(stage, "b")) == ([], [], [])  # one try, and then a rest


async def test_one_that_rests_after_store_trouble_is_not_sent_while_it_is_being_cancelled(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.store.fails["update"] = 1
    await go(stage)
    async with live.transition():  # as a cancellation that the store takes long for
        await asyncio.sleep(5)
        assert (sent(stage, "a"), sent(stage, "b")) == ([], [])
        stage.board.move(live, JobState.CANCELLED)
        stage.board.remove(live)
    await asyncio.sleep(5)
    assert (sent(stage, "a"), sent(stage, "b")) == ([], [])


@pytest.mark.parametrize("error", [ConnectionRefused, NotDelivered])
async def test_what_did_not_reach_a_backend_goes_to_another(stage: Stage, error: type[Exception]) -> None:
    live = await stage.waits("p")
    stage.client("a").errors["submit"] = [error("no")]
    await go(stage)
    assert (live.job.state, live.job.backend, live.losses) == (JobState.ACCEPTED, "b", [])
    assert (sent(stage, "a"), sent(stage, "b")) == (["p"], ["p"])


async def test_one_that_was_not_reached_is_tried_again_after_a_rest() -> None:
    async with Stage("a") as stage:
        stage.dispatch()
        live = await stage.waits("p")
        stage.client("a").errors["submit"] = [NotDelivered("busy")]
        await go(stage)
        assert (live.job.state, sent(stage, "a")) == (JobState.QUEUED, ["p"])
        await asyncio.sleep(0.9)
        assert sent(stage, "a") == ["p"]
        await asyncio.sleep(0.2)
        assert (live.job.state, live.unreachable) == (JobState.ACCEPTED, frozenset())


async def test_an_answer_that_is_lost_is_not_sent_again(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.client("a").errors["submit"] = [DeliveryUnknown("lost")]
    stage.client("a").pending.append("p")
    await go(stage)
    await asyncio.sleep(5)
    assert (live.job.state, live.job.backend) == (JobState.ACCEPTED, "a")
    assert (sent(stage, "a"), sent(stage, "b")) == (["p"], [])


async def test_what_one_backend_refuses_is_offered_to_the_others(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.client("a").refuse_with = 400, b"no such model"
    await go(stage)
    assert (live.job.state, live.job.backend, live.refused) == (JobState.ACCEPTED, "b", {"a": "no such model"})


async def test_what_all_refuse_fails_in_their_words(stage: Stage) -> None:
    await stage.waits("p")
    for name in "ab":
        stage.client(name).refuse_with = 400, f"{name} says no".encode()
    await go(stage)
    assert stage.streams.events("c") == ["execution_error", "executing"]
    assert "a: a says no; b: b says no" in stage.streams.to("c")[0]["data"]["exception_message"]
    assert (len(sent(stage, "a")), len(sent(stage, "b")), stage.board.count) == (1, 1, 0)


async def test_a_prompt_that_the_store_has_lost_fails(stage: Stage) -> None:
    await stage.waits("p")
    await stage.store.discard("p")
    await go(stage)
    assert stage.streams.events("c") == ["execution_error", "executing"]
    assert stage.streams.to("c")[0]["data"]["exception_type"] == "PayloadLost"


async def test_who_stops_sends_no_more(stage: Stage) -> None:
    await stage.waits("p")
    stage.dispatcher.is_stopping = True
    await go(stage)
    assert (sent(stage, "a"), sent(stage, "b"), stage.board.waiting_count) == ([], [], 1)


async def test_a_rewritten_graph_is_sent_and_the_clients_own_is_shown(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.files.rewritten = b'{"9": {"class_type": "Other"}}'
    await go(stage)
    assert stage.client("a").called("submit")[0]["prompt"] == {"9": {"class_type": "Other"}}
    assert live.client_graph
    assert live.job.outputs_to_execute == ("9",)


# Taking back what waits on a backend


async def test_a_job_that_is_recalled_waits_here_again(stage: Stage) -> None:
    live = await stage.has("a", "p")
    live.is_counted, live.why = True, "it is expected to finish there first"
    stage.dispatcher.is_stopping = True
    stage.dispatcher.recall(live, stage.backend("a"))
    await stage.quiet()
    assert live.why == ""
    assert (live.job.state, live.job.attempts, stage.board.waiting_count) == (JobState.QUEUED, 0, 1)
    assert stage.client("a").pending == []


async def test_one_that_was_put_behind_another_goes_to_a_backend_that_has_nothing_to_do() -> None:
    async with Stage("a", "b", max_concurrent=2) as stage:
        stage.dispatch()
        stage.placement.scheduler.use(make_strategy("round_robin"))
        await stage.submit(prompt_id="long")
        stage.says("a", "execution_start", prompt_id="long")
        await stage.submit(prompt_id="short")
        stage.ends("b", "short")
        stage.says("b", "executing", node=None, prompt_id="short")
        await stage.quiet()
        receipt = await stage.submit(prompt_id="p")
        await stage.quiet()
        assert receipt.backend == "a"
        assert (stage.live("p").job.state, stage.live("p").job.backend) == (JobState.ACCEPTED, "b")


async def test_one_that_runs_is_not_recalled(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.dispatcher.recall(live, stage.backend("a"))
    await stage.quiet()
    assert (live.job.state, stage.client("a").calls) == (JobState.ACCEPTED, [])


async def test_one_that_has_ended_meanwhile_settles(stage: Stage) -> None:
    live = await stage.has("a", "p")
    stage.ends("a", "p")
    stage.dispatcher.recall(live, stage.backend("a"))
    await stage.quiet()
    assert stage.streams.events("c") == ["execution_success", "executing"]


async def test_one_that_a_silent_backend_may_still_have_is_not_sent_there_again(stage: Stage) -> None:
    live = await stage.has("a", "p")
    stage.client("a").errors["delete"] = [DeliveryUnknown("silence")] * 1000
    stage.dispatcher.recall(live, stage.backend("a"))
    await asyncio.sleep(70)
    assert live.ghosts == {"a"}
    assert live.job.backend == "b"


async def test_a_job_ends_when_all_have_refused_it_that_have_what_it_asks_for(stage: Stage) -> None:
    backend = stage.backend("a")
    backend.settings = replace(backend.settings, capabilities=("video",))
    backend = stage.backend("b")
    backend.settings = replace(backend.settings, capabilities=("image",))
    live = await stage.waits("p")
    live.needs = Needs(capabilities=frozenset({"video"}))
    stage.board.relist(live)
    stage.client("a").refuse_with = 400, b"no such model"
    await go(stage)
    assert stage.streams.events("c") == ["execution_error", "executing"]
    assert "a: no such model" in stage.streams.to("c")[0]["data"]["exception_message"]
    assert (sent(stage, "a"), sent(stage, "b"), stage.board.count) == (["p"], [], 0)
