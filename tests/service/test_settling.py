"""The end of a job: stored first, told afterwards, and told whatever happens."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from service_support import HEARTBEAT_TIMEOUT_S, FakeClient, Stage, entry_of, make_job

from comfyproxy.core.errors import BadAnswer, ConnectionRefused, DeliveryUnknown
from comfyproxy.core.jobs import BackendId, JobState
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.service.live import LiveJob


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b") as stage:
        yield stage


@pytest.fixture
def client(stage: Stage) -> FakeClient:
    return stage.client("a")


async def state_of(stage: Stage, prompt_id: str = "p") -> JobState:
    job = await stage.store.get(prompt_id)
    assert job is not None
    return job.state


async def entry(stage: Stage, prompt_id: str = "p") -> Any:
    found = await stage.store.history_entry(prompt_id)
    assert found is not None
    return json.loads(found)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        ("execution_success", JobState.SUCCEEDED),
        ("execution_error", JobState.FAILED),
        ("execution_interrupted", JobState.CANCELLED),
    ],
)
async def test_a_job_ends_as_its_backend_says(stage: Stage, outcome: str, state: JobState) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.ends("a", "p", outcome, exception_type="E", exception_message="no")
    stage.settler.begin(live)
    await stage.quiet()
    assert await state_of(stage) is state
    assert stage.streams.events("c") == [outcome, "executing"]
    assert [(job.prompt_id, job.state, job.finished_s) for job in stage.observer.ended] == [("p", state, 5000.0)]
    assert (stage.board.get("p"), stage.board.count, stage.backend("a").in_flight) == (None, 0, set())
    assert live.job.error == ("E: no" if state is JobState.FAILED else None)


async def test_the_entry_is_the_proxys_own(stage: Stage) -> None:
    live = await stage.has("a", "p", number=4.0, backend_prompt_id="minted")
    images = {"9": {"images": [{"filename": "x.png", "subfolder": "s", "type": "output"}]}}
    stage.ends("a", "minted", outputs=images)
    stage.settler.begin(live)
    await stage.quiet()
    stored = await entry(stage)
    assert stored["prompt"][:2] == [4, "p"]
    assert stored["prompt"][3]["client_id"] == "c"
    assert stored["outputs"]["9"]["images"][0]["subfolder"] == "a/s"
    assert stored["status"]["messages"][1][1]["prompt_id"] == "p"
    assert live.job.started_s == 1.0


async def test_the_clients_own_graph_is_shown_where_another_was_sent(stage: Stage) -> None:
    live = await stage.has("a", "p")
    live.client_graph = True
    stage.ends("a", "p", graph={"1": "rewritten"})
    stage.settler.begin(live)
    await stage.quiet()
    assert set((await entry(stage))["prompt"][2]) == {"1", "9"}


async def test_an_entry_at_hand_is_not_fetched(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    stage.settler.begin(live, entry=entry_of("p"))
    await stage.quiet()
    assert client.calls == []
    assert await state_of(stage) is JobState.SUCCEEDED


async def test_a_job_is_settled_once(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    stage.ends("a", "p")
    stage.settler.begin(live)
    stage.settler.begin(live)
    await stage.settler.fail(live, "no", "E")
    await stage.quiet()
    stage.settler.begin(live)
    await stage.settler.fail(live, "no", "E")
    await stage.quiet()
    assert client.called("history") == ["p"]
    assert [change for change in stage.store.changes if change[0] == "settle"] == [("settle", "p", JobState.SUCCEEDED)]
    assert stage.streams.events("c") == ["execution_success", "executing"]


async def test_outputs_that_the_client_missed_are_told_before_the_end(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    live.executed.add("8")
    stage.ends("a", "p", outputs={"8": {"text": ["told"]}, "9": {"text": ["missed"]}})
    stage.settler.begin(live)
    await stage.quiet()
    assert stage.streams.events("c") == ["executed", "execution_success", "executing"]
    assert stage.streams.to("c")[0]["data"]["output"] == {"text": ["missed"]}


async def test_whoever_waits_for_a_slot_is_told_when_it_is_free(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.ends("a", "p")
    in_flight: list[int] = []
    stage.settler.on_settled = lambda: in_flight.append(len(stage.backend("a").in_flight))
    stage.settler.begin(live)
    await stage.quiet()
    assert in_flight == [0]


# A store that fails


async def test_nobody_is_told_before_it_is_stored(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.ends("a", "p")
    stage.store.fails["settle"] = 2
    stage.settler.begin(live)
    await asyncio.sleep(1.5)
    assert (stage.streams.told, stage.observer.ended) == ([], [])
    assert stage.board.get("p") is live
    assert stage.backend("a").in_flight == {"p"}
    await asyncio.sleep(1)
    assert await state_of(stage) is JobState.SUCCEEDED
    assert stage.streams.events("c") == ["execution_success", "executing"]
    assert len(stage.client("a").called("history")) == 1


async def test_a_payload_that_cannot_be_read_yet_is_waited_for(stage: Stage) -> None:
    live = await stage.has("a", "p")
    stage.store.fails["payloads"] = 2
    stage.settler.begin(live, entry=entry_of("p"))
    await asyncio.sleep(1.5)
    assert stage.streams.told == []
    await asyncio.sleep(1)
    assert await state_of(stage) is JobState.SUCCEEDED


async def test_a_payload_that_is_lost_does_not_keep_a_job_from_its_end(stage: Stage) -> None:
    live = await stage.has("a", "p")
    await stage.store.discard("p")
    stage.settler.begin(live, entry=entry_of("p"))
    await stage.quiet()
    assert await state_of(stage) is JobState.SUCCEEDED


async def test_a_failure_is_stored_before_it_is_told_too(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.store.fails["settle"] = 1
    failing = asyncio.create_task(stage.settler.fail(live, "It broke", "Broken"))
    await stage.quiet()
    assert stage.streams.told == []
    await failing
    assert stage.streams.events("c") == ["execution_error", "executing"]
    assert stage.streams.to("c")[0]["data"]["exception_message"] == "It broke"
    assert stage.streams.to("c")[0]["data"]["timestamp"] == 5_000_000
    stored = await entry(stage)
    assert stored["status"]["status_str"] == "error"
    assert stored["status"]["messages"][-1] == ["execution_error", stage.streams.to("c")[0]["data"]]
    assert (live.job.state, live.job.error) == (JobState.FAILED, "It broke")


async def test_a_waiting_job_can_fail(stage: Stage) -> None:
    live = await stage.waits("p")
    await stage.settler.fail(live, "It broke", "Broken")
    assert await state_of(stage) is JobState.FAILED
    assert stage.board.waiting_count == 0


# A backend that fails


async def test_an_entry_that_is_late_is_looked_for_again(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    stage.settler.begin(live)
    await stage.quiet()
    assert client.called("history") == ["p"]
    stage.ends("a", "p")
    await asyncio.sleep(1)
    assert client.called("history") == ["p", "p"]
    assert await state_of(stage) is JobState.SUCCEEDED


async def test_a_backend_that_has_forgotten_the_result_has_lost_the_job(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    lost: list[str] = []
    stage.settler.on_lost = lambda live, why: lost.append(f"{live.prompt_id}: {why}")
    stage.settler.begin(live)
    await asyncio.sleep(10)
    assert client.called("history") == ["p"] * 3
    assert len(lost) == 1
    assert "forgotten" in lost[0]
    assert stage.streams.told == []


async def test_a_backend_that_refuses_to_tell_the_result_has_lost_the_job(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    lost: list[str] = []
    stage.settler.on_lost = lambda live, why: lost.append(why)
    client.errors["history"] = [ConnectionRefused("nothing listens")]
    stage.settler.begin(live)
    await stage.quiet()
    assert lost == ["Backend a died before its result was fetched: nothing listens"]
    assert not stage.backend("a").health.healthy


@pytest.mark.parametrize("error", [DeliveryUnknown, BadAnswer])
async def test_a_backend_that_fails_to_answer_is_asked_again(
    stage: Stage, client: FakeClient, error: type[Exception]
) -> None:
    live = await stage.has("a", "p")
    stage.ends("a", "p")
    client.errors["history"] = [error("busy")] * 5
    stage.settler.begin(live)
    await asyncio.sleep(4.5)
    assert stage.streams.told == []
    await asyncio.sleep(1)
    assert await state_of(stage) is JobState.SUCCEEDED


async def test_a_backend_that_is_silent_for_too_long_has_lost_the_job(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p")
    lost: list[float] = []
    stage.settler.on_lost = lambda live, why: lost.append(stage.time())
    client.errors["history"] = [DeliveryUnknown("silence")] * 1000
    begun_s = stage.time()
    stage.settler.begin(live)
    await asyncio.sleep(2 * HEARTBEAT_TIMEOUT_S)
    assert len(lost) == 1
    assert HEARTBEAT_TIMEOUT_S < lost[0] - begun_s <= HEARTBEAT_TIMEOUT_S + 2


async def test_a_lost_job_runs_again_elsewhere(stage: Stage, client: FakeClient) -> None:
    live = await stage.has("a", "p", runs=True)
    client.errors["history"] = [ConnectionRefused("nothing listens")]
    client.running.clear()
    stage.dispatch()
    stage.settler.begin(live)
    await stage.quiet()
    assert (live.job.state, live.job.backend, live.is_settling) == (JobState.ACCEPTED, "b", False)
    stage.ends("b", "p")
    stage.says("b", "executing", node=None, prompt_id="p")
    await stage.quiet()
    assert stage.streams.events("c")[-2:] == ["execution_success", "executing"]


@pytest.mark.parametrize(
    "raw", [b"{}", b"[]", b"null", b"<html>", b'{"prompt": [1, 2]}', b"[" * 5000, b'{"status": ' + b"[" * 5000]
)
async def test_an_entry_that_cannot_be_read_is_the_end_with_an_error(stage: Stage, raw: bytes) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.settler.begin(live, entry=raw)
    await stage.quiet()
    assert await state_of(stage) is JobState.FAILED
    assert stage.streams.events("c") == ["execution_error", "executing"]
    assert stage.streams.to("c")[0]["data"]["exception_type"] == "BadHistory"
    assert (await entry(stage))["prompt"][1] == "p"


async def test_a_job_of_a_backend_that_is_not_configured_any_more_is_lost(stage: Stage) -> None:
    live = LiveJob(make_job("p", state=JobState.ACCEPTED, backend=BackendId("gone")), is_admitted=True)
    stage.board.add(live)
    lost: list[str] = []
    stage.settler.on_lost = lambda live, why: lost.append(why)
    stage.settler.begin(live)
    await stage.quiet()
    assert len(lost) == 1


async def test_only_the_stores_own_failure_is_waited_out(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    live = await stage.has("a", "p")

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(stage.store, "settle", broken)
    with pytest.raises(ZeroDivisionError):
        await stage.settler.fail(live, "no", "E")
    assert not issubclass(ZeroDivisionError, StoreUnavailable)
