"""Ending jobs before their time, whatever state they are in."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from service_support import Stage

from comfyproxy.core.errors import BadRequest, ConnectionRefused, DeliveryUnknown, UpstreamFailed
from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId, JobState
from comfyproxy.core.ports import StoreUnavailable


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b") as stage:
        yield stage


async def state_of(stage: Stage, prompt_id: str) -> JobState | None:
    job = await stage.store.get(prompt_id)
    return None if job is None else job.state


# What waits here


async def test_what_waits_is_cancelled_and_gone(stage: Stage) -> None:
    live = await stage.waits("p")
    assert await stage.control.cancel(["p", "unknown", "p"]) == {"p"}
    assert await state_of(stage, "p") is JobState.CANCELLED
    assert (stage.board.get("p"), stage.board.count, stage.board.waiting_count) == (None, 0, 0)
    assert [job.prompt_id for job in stage.observer.ended] == ["p"]
    assert (live.job.state, live.job.finished_s) == (JobState.CANCELLED, 5000.0)
    assert stage.client("a").calls == []
    assert stage.streams.told == []  # as in ComfyUI: it is just no longer there


async def test_it_is_cancelled_once(stage: Stage) -> None:
    await stage.waits("p")
    first, second = await asyncio.gather(stage.control.cancel(["p"]), stage.control.cancel(["p"]))
    assert sorted([*first, *second]) == ["p"]
    assert len(stage.observer.ended) == 1


async def test_a_store_that_fails_leaves_the_job_waiting(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.store.fails["cancel"] = 1
    with pytest.raises(StoreUnavailable):
        await stage.control.cancel(["p"])
    assert (live.job.state, live.moving, stage.board.waiting_count) == (JobState.QUEUED, None, 1)
    assert stage.board.get("p") is live
    assert stage.observer.ended == []
    stage.dispatch()
    await stage.quiet()
    assert live.job.state is JobState.ACCEPTED


async def test_nobody_takes_a_job_that_is_being_cancelled(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await stage.waits("p")
    stage.dispatch()
    stage.dispatcher.is_stopping = True
    cancelling = asyncio.create_task(stage.control.cancel(["p"]))
    await asyncio.sleep(0)
    stage.dispatcher.is_stopping = False
    stage.dispatcher.wake()
    assert await cancelling == {"p"}
    await stage.quiet()
    assert stage.client("a").called("submit") == []


# What is on its way


async def test_what_is_being_sent_is_cancelled_once_it_has_arrived(stage: Stage) -> None:
    live = await stage.waits("p")
    stage.client("a").gates["submit"] = asyncio.Event()
    stage.dispatch()
    stage.dispatcher.wake()
    await stage.quiet()
    assert live.job.state is JobState.DISPATCHING
    cancelling = asyncio.create_task(stage.control.cancel(["p"]))
    await stage.quiet()
    assert stage.client("a").called("delete") == []
    stage.client("a").gates["submit"].set()
    assert await cancelling == {"p"}
    assert stage.client("a").called("delete") == [["p"]]
    assert await state_of(stage, "p") is JobState.CANCELLED


# What waits on a backend


async def test_what_waits_on_a_backend_is_taken_back_first(stage: Stage) -> None:
    await stage.has("a", "p", backend_prompt_id="minted")
    assert await stage.control.cancel(["p"]) == {"p"}
    assert stage.client("a").pending == []
    assert stage.client("a").called("delete") == [["minted"]]
    assert await state_of(stage, "p") is JobState.CANCELLED
    assert stage.backend("a").in_flight == set()


async def test_many_cost_one_question(stage: Stage) -> None:
    for number in range(5):
        await stage.has("a", f"p{number}")
    assert len(await stage.control.cancel([f"p{number}" for number in range(5)])) == 5
    assert len(stage.client("a").called("delete")) == 1


async def test_a_backend_that_is_dead_has_it_no_longer(stage: Stage) -> None:
    await stage.has("a", "p")
    stage.client("a").errors["delete"] = [ConnectionRefused("nothing listens")]
    assert await stage.control.cancel(["p"]) == {"p"}
    assert await state_of(stage, "p") is JobState.CANCELLED


async def test_what_has_ended_there_meanwhile_ends_as_it_ended(stage: Stage) -> None:
    await stage.has("a", "p")
    stage.ends("a", "p")
    assert await stage.control.cancel(["p"]) == set()
    await stage.quiet()
    assert await state_of(stage, "p") is JobState.SUCCEEDED
    assert stage.streams.events("c") == ["execution_success", "executing"]


async def test_what_starts_meanwhile_is_interrupted(stage: Stage) -> None:
    live = await stage.has("a", "p")
    stage.client("a").gates["queue"] = asyncio.Event()
    stage.client("a").deletes = False
    cancelling = asyncio.create_task(stage.control.cancel(["p"]))
    await stage.quiet()
    stage.says("a", "execution_start", prompt_id="p")
    stage.client("a").gates["queue"].set()
    assert await cancelling == {"p"}
    assert stage.client("a").called("interrupt") == ["p"]
    assert (live.job.state, stage.board.get("p")) == (JobState.ACCEPTED, live)


async def test_what_has_started_unheard_is_interrupted_too(stage: Stage) -> None:
    await stage.has("a", "p")
    stage.client("a").deletes = False
    cancelled = await stage.control.cancel(["p"])
    assert (cancelled, stage.client("a").called("interrupt")) == ({"p"}, ["p"])


async def test_a_store_that_fails_after_it_was_taken_back_leaves_it_waiting(stage: Stage) -> None:
    live = await stage.has("a", "p")
    stage.store.fails["cancel"] = 1
    with pytest.raises(StoreUnavailable):
        await stage.control.cancel(["p"])
    assert (live.job.state, live.job.backend, stage.board.waiting_count) == (JobState.QUEUED, None, 1)


# What runs


async def test_what_runs_is_interrupted_by_its_id_there(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True, backend_prompt_id="minted")
    assert await stage.control.cancel(["p"]) == {"p"}
    assert stage.client("a").called("interrupt") == ["minted"]
    assert stage.client("a").called("delete") == []
    assert (stage.board.get("p"), live.job.state) == (live, JobState.ACCEPTED)  # its backend tells the end


async def test_what_settles_is_left_alone(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    live.is_settling = True
    assert await stage.control.cancel(["p"]) == set()
    await stage.control.interrupt("p")
    assert stage.client("a").called("delete") == []


async def test_a_backend_that_cannot_be_told_is_an_error(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    stage.client("a").errors["interrupt"] = [DeliveryUnknown("silence")]
    with pytest.raises(UpstreamFailed) as caught:
        await stage.control.cancel(["p"])
    assert "silence" in caught.value.details
    assert stage.backend("a").last_error == "silence"


# Who is known


async def test_a_job_is_known_from_its_acceptance_on_and_for_good(stage: Stage) -> None:
    assert not await stage.control.known("p")
    await stage.waits("p")
    assert await stage.control.known("p")
    await stage.control.cancel(["p"])
    assert await stage.control.known("p")


async def test_what_has_no_verdict_yet_cannot_be_cancelled(stage: Stage) -> None:
    stage.client("a").gates["submit"] = asyncio.Event()
    handing_in = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    assert await stage.control.cancel(["p"]) == set()
    stage.client("a").gates["submit"].set()
    assert (await handing_in).status == 200


# POST /queue


async def test_deletion_is_for_what_waits_only(stage: Stage) -> None:
    await stage.waits("here")
    await stage.has("a", "there")
    await stage.has("a", "runs", runs=True)
    await stage.control.delete_pending(["here", "there", "runs", "unknown"])
    assert (stage.board.get("here"), stage.board.get("there")) == (None, None)
    assert stage.board.get("runs") is not None
    assert stage.client("a").called("interrupt") == []


async def test_clearing_is_for_all_that_wait(stage: Stage) -> None:
    await stage.waits("p")
    await stage.waits("q", client_id="d")
    await stage.has("b", "r")
    await stage.has("b", "runs", runs=True)
    await stage.control.clear_pending()
    assert [job.prompt_id for job in stage.board.unfinished()] == ["runs"]
    assert stage.client("b").called("interrupt") == []


# POST /interrupt


async def test_an_interrupt_names_its_prompt(stage: Stage) -> None:
    await stage.has("a", "p", runs=True, backend_prompt_id="minted")
    await stage.has("b", "q", runs=True)
    await stage.control.interrupt("p")
    assert stage.client("a").called("interrupt") == ["minted"]
    assert stage.client("b").called("interrupt") == []


async def test_what_does_not_run_is_not_interrupted(stage: Stage) -> None:
    live = await stage.has("a", "p")
    await stage.waits("q")
    for prompt_id in ("p", "q", "unknown"):
        await stage.control.interrupt(prompt_id)
    assert stage.client("a").calls == []
    assert live.job.state is JobState.ACCEPTED


async def test_without_a_name_all_of_ours_that_run_are_interrupted_by_their_ids(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    await stage.has("a", "waits")
    await stage.has("b", "q", runs=True, client_id="d")
    stage.client("b").running.append("stranger")
    await stage.control.interrupt(None)
    assert stage.client("a").called("interrupt") == ["p"]
    assert stage.client("b").called("interrupt") == ["q"]


async def test_a_backend_that_runs_nothing_of_ours_is_not_interrupted(stage: Stage) -> None:
    stage.client("a").running.append("stranger")
    await stage.control.interrupt(None)
    assert stage.client("a").calls == []


async def test_of_two_backends_the_one_that_answers_is_interrupted(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    await stage.has("b", "q", runs=True)
    stage.client("a").errors["interrupt"] = [ConnectionRefused("nothing listens")]
    with pytest.raises(UpstreamFailed):
        await stage.control.interrupt(None)
    assert stage.client("b").called("interrupt") == ["q"]
    assert not stage.backend("a").health.healthy


async def test_in_a_shared_fleet_a_name_may_be_demanded() -> None:
    async with Stage("a", may_interrupt_all=False) as stage:
        await stage.has("a", "p", runs=True)
        with pytest.raises(BadRequest) as caught:
            await stage.control.interrupt(None)
        assert (caught.value.kind, stage.client("a").calls) == ("prompt_id_required", [])
        await stage.control.interrupt("p")
        assert stage.client("a").called("interrupt") == ["p"]


# POST /free


async def test_every_ready_backend_frees_memory(stage: Stage) -> None:
    await stage.control.free(b'{"unload_models": true}')
    assert [stage.client(name).called("free") for name in "ab"] == [[b'{"unload_models": true}']] * 2
    stage.backend("a").is_drained = True
    await stage.control.free(b"{}")
    assert [len(stage.client(name).called("free")) for name in "ab"] == [1, 2]


async def test_one_that_frees_memory_is_enough(stage: Stage) -> None:
    stage.client("a").errors["free"] = [DeliveryUnknown("silence"), DeliveryUnknown("silence")]
    await stage.control.free(b"{}")
    assert stage.backend("a").last_error == "silence"
    stage.client("b").errors["free"] = [ConnectionRefused("nothing listens")]
    with pytest.raises(UpstreamFailed) as caught:
        await stage.control.free(b"{}")
    assert caught.value.details == "silence; nothing listens"


async def test_where_all_are_drained_the_home_backend_frees_memory(stage: Stage) -> None:
    for backend in stage.fleet:
        backend.is_drained = True
    await stage.control.free(b"{}")
    assert [len(stage.client(name).called("free")) for name in "ab"] == [1, 0]
    stage.backend("a").health = Health(healthy=False)
    await stage.control.free(b"{}")
    assert stage.client("b").called("free") == [b"{}"]


async def test_a_visitor_can_be_cancelled_while_it_is_judged(stage: Stage) -> None:
    for name in "ab":
        for number in range(2):
            await stage.has(name, f"{name}{number}")
        stage.client(name).gates["delete"] = asyncio.Event()
    receipt = await stage.submit(prompt_id="p")
    judge = BackendId(str(receipt.backend))
    cancelling = asyncio.create_task(stage.control.cancel(["p"]))
    await stage.quiet()
    for name in "ab":
        stage.client(name).gates["delete"].set()
    assert await cancelling == {"p"}
    assert await state_of(stage, "p") is JobState.CANCELLED
    assert (stage.backend(judge).visitors, stage.board.waiting_count) == (set(), 0)
