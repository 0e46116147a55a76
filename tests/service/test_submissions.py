"""Taking prompts in: the verdict, the client's own ids, and what is left of a prompt that was refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from service_support import Stage, entry_of

from comfyproxy.core.errors import BadAnswer, BadRequest, ConnectionRefused, DeliveryUnknown, NoBackend, ShuttingDown
from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId, Job, JobState, Payload
from comfyproxy.core.options import Options, options_of
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.core.prompts import BEHIND_ALL
from comfyproxy.service.submissions import Receipt


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b") as stage:
        yield stage


def answer(receipt: Receipt) -> Any:
    return json.loads(receipt.body)


def submitted(stage: Stage) -> list[str]:
    """Return the ids of all prompts that backends were sent."""
    return [each["prompt_id"] for name in "ab" for each in stage.client(name).called("submit")]


async def test_the_answer_is_that_of_a_server(stage: Stage) -> None:
    receipt = await stage.submit()
    assert (receipt.status, receipt.content_type) == (200, "application/json; charset=utf-8")
    assert answer(receipt) == {"prompt_id": "minted-1", "number": 0, "node_errors": {}}
    assert receipt.backend == "a"
    assert answer(await stage.submit())["number"] == 1
    assert stage.observer.counts["submitted", "accepted"] == 2


async def test_it_is_written_before_it_is_sent(stage: Stage) -> None:
    stage.client("a").gates["submit"] = asyncio.Event()
    handing_in = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    stored = await stage.store.get("p")
    assert stored is not None
    assert (stored.state, stored.backend) == (JobState.DISPATCHING, "a")
    assert (stage.board.job("p"), stage.board.count) == (None, 0)
    stage.client("a").gates["submit"].set()
    await handing_in
    stored = await stage.store.get("p")
    assert stored is not None
    assert (stored.state, stage.board.count) == (JobState.ACCEPTED, 1)
    assert (stored.outputs_to_execute, stored.attempts) == (("9",), 1)


async def test_nothing_is_sent_while_the_store_still_writes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    written, insert = asyncio.Event(), stage.store.insert

    async def insert_late(job: Job, payload: Payload) -> None:
        await written.wait()
        await insert(job, payload)

    monkeypatch.setattr(stage.store, "insert", insert_late)
    handing_in = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    assert submitted(stage) == []
    written.set()
    assert (await handing_in).status == 200
    assert submitted(stage) == ["p"]


async def test_to_whom_it_goes_next_is_written_before_it_is_sent_there(stage: Stage) -> None:
    stage.client("a").errors["submit"] = [ConnectionRefused("nothing listens")]
    stage.client("b").gates["submit"] = asyncio.Event()
    handing_in = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    assert submitted(stage) == ["p", "p"]
    stored = await stage.store.get("p")
    assert stored is not None
    assert (stored.state, stored.backend) == (JobState.DISPATCHING, "b")
    stage.client("b").gates["submit"].set()
    assert (await handing_in).status == 200


async def test_the_backend_gets_it_as_the_proxys_own_with_the_clients_words(stage: Stage) -> None:
    extra_data = {"extra_pnginfo": {"workflow": {"id": "w"}}, "api_key_comfy_org": "secret"}
    await stage.submit(prompt_id="p", number=3, front=True, extra_data=extra_data, more=1)
    (sent,) = stage.client("a").called("submit")
    assert (sent["client_id"], sent["prompt_id"], sent["number"], sent["more"]) == ("the-link", "p", 3, 1)
    assert sent["extra_data"].items() >= extra_data.items()
    assert "front" not in sent
    assert stage.live("p").job.workflow_id == "w"
    assert b"secret" not in (await stage.store.payloads(["p"]))["p"].extra_data


async def test_an_id_that_the_backend_mints_stays_between_the_two(stage: Stage) -> None:
    stage.client("a").mints = ["minted-there"]
    assert answer(await stage.submit(prompt_id="p"))["prompt_id"] == "p"
    assert stage.live("p").job.backend_prompt_id == "minted-there"
    assert stage.board.find(BackendId("a"), "minted-there") is stage.live("p")


# A prompt that is refused


@pytest.mark.parametrize("status", [400, 500])
async def test_a_refusal_is_passed_on_and_nothing_stays(stage: Stage, status: int) -> None:
    stage.client("a").refuse_with = status, b'{"error": "no"}'
    receipt = await stage.submit(prompt_id="p")
    assert receipt == Receipt(status=status, body=b'{"error": "no"}', content_type="application/json", backend="a")
    assert (await stage.store.get("p"), stage.board.get("p"), stage.backend("a").in_flight) == (None, None, set())
    assert stage.observer.counts["submitted", "refused"] == 1
    assert stage.streams.told == []


async def test_a_body_without_a_prompt_is_refused_by_the_home_backend(stage: Stage) -> None:
    stage.client("a").refuse_with = 400, b"no prompt"
    stage.client("a").pending.clear()
    # It is passed on as it came, so there is no number for the fake to answer with.
    receipt = await stage.submissions.submit(b'{"number": 1}')
    assert (receipt.status, receipt.body, receipt.backend) == (400, b"no prompt", "a")
    stage.client("a").errors["submit"] = [DeliveryUnknown("silence")]
    with pytest.raises(BadRequest) as caught:
        await stage.submissions.submit(b"{}")
    assert caught.value.kind == "no_prompt"


async def test_what_is_no_json_is_refused_here(stage: Stage) -> None:
    with pytest.raises(BadRequest):
        await stage.submissions.submit(b"{")
    assert stage.observer.counts["submitted", "invalid_json"] == 1
    assert submitted(stage) == []


# Backends that fail


async def test_a_backend_that_was_not_reached_leaves_it_to_the_next(stage: Stage) -> None:
    stage.client("a").errors["submit"] = [ConnectionRefused("nothing listens")]
    receipt = await stage.submit(prompt_id="p")
    assert (receipt.status, receipt.backend) == (200, "b")
    assert stage.live("p").unreachable == frozenset()
    assert (stage.backend("a").in_flight, stage.backend("a").health.healthy) == (set(), False)


async def test_where_none_is_reached_it_is_refused_and_forgotten(stage: Stage) -> None:
    for name in "ab":
        stage.client(name).errors["submit"] = [ConnectionRefused("nothing listens")]
    with pytest.raises(NoBackend):
        await stage.submit(prompt_id="p")
    assert (await stage.store.get("p"), stage.board.get("p")) == (None, None)
    assert stage.observer.counts["submitted", "no_backend_available"] == 1


async def test_where_none_is_ready_nothing_is_asked(stage: Stage) -> None:
    for backend in stage.fleet:
        backend.health = Health(healthy=False)
    with pytest.raises(NoBackend):
        await stage.submit(prompt_id="p")
    assert submitted(stage) == []
    assert stage.store.changes == []


@pytest.mark.parametrize("error", [DeliveryUnknown, BadAnswer])
async def test_a_lost_answer_is_looked_for_and_the_prompt_not_sent_again(stage: Stage, error: type[Exception]) -> None:
    client = stage.client("a")
    client.errors["submit"] = [error("lost")]
    client.pending.append("p")
    receipt = await stage.submit(prompt_id="p")
    assert (receipt.status, receipt.backend, answer(receipt)["prompt_id"]) == (200, "a", "p")
    assert submitted(stage) == ["p"]


async def test_only_a_second_look_is_proof_that_it_did_not_arrive(stage: Stage) -> None:
    client = stage.client("a")
    client.errors["submit"] = [DeliveryUnknown("lost")]
    receipt = await stage.submit(prompt_id="p")
    assert len(client.called("queue")) == 2
    assert receipt.backend == "b"


async def test_what_has_ended_already_did_arrive(stage: Stage) -> None:
    client = stage.client("a")
    client.errors["submit"] = [DeliveryUnknown("lost")]
    client.entries["p"] = entry_of("p")
    assert (await stage.submit(prompt_id="p")).backend == "a"
    assert submitted(stage) == ["p"]


async def test_one_that_has_ended_before_its_verdict_came_has_ended(stage: Stage) -> None:
    stage.client("a").gates["submit"] = asyncio.Event()
    handing_in = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    stage.says("a", "execution_start", prompt_id="p")
    stage.ends("a", "p")
    stage.says("a", "execution_success", prompt_id="p")
    stage.says("a", "executing", node=None, prompt_id="p")
    await stage.quiet()
    stage.client("a").gates["submit"].set()
    receipt = await handing_in
    assert (receipt.status, answer(receipt)["prompt_id"]) == (200, "p")
    assert stage.streams.events("c") == ["execution_start", "execution_success", "executing"]
    assert (stage.board.get("p"), stage.board.count) == (None, 0)
    stored = await stage.store.get("p")
    assert stored is not None
    assert stored.state is JobState.SUCCEEDED


# A store that fails


async def test_what_cannot_be_written_is_not_sent(stage: Stage) -> None:
    stage.store.fails["insert"] = 1
    with pytest.raises(StoreUnavailable):
        await stage.submit(prompt_id="p")
    assert submitted(stage) == []
    assert (stage.board.get("p"), stage.backend("a").in_flight) == (None, set())
    assert (await stage.submit(prompt_id="p")).status == 200


async def test_an_acceptance_that_cannot_be_written_is_one_all_the_same(stage: Stage) -> None:
    stage.store.fails["update"] = 1
    assert (await stage.submit(prompt_id="p")).status == 200
    stored = await stage.store.get("p")
    assert stored is not None
    assert (stored.state, stage.live("p").job.state) == (JobState.DISPATCHING, JobState.ACCEPTED)


async def test_a_refused_prompt_that_cannot_be_removed_is_refused_all_the_same(stage: Stage) -> None:
    stage.client("a").refuse_with = 400, b"no"
    stage.store.fails["discard"] = 1
    assert (await stage.submit(prompt_id="p")).status == 400


# The client's own id


async def test_the_same_prompt_under_way_is_sent_once(stage: Stage) -> None:
    stage.client("a").gates["submit"] = asyncio.Event()
    retries = [asyncio.create_task(stage.submit(prompt_id="p")) for _ in range(3)]
    await stage.quiet()
    stage.client("a").gates["submit"].set()
    receipts = await asyncio.gather(*retries)
    assert receipts[0] == receipts[1] == receipts[2]
    assert submitted(stage) == ["p"]
    assert stage.board.count == 1


async def test_whoever_hangs_up_does_not_take_the_prompt_along(stage: Stage) -> None:
    stage.client("a").gates["submit"] = asyncio.Event()
    first = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    first.cancel()
    await stage.quiet()
    again = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    stage.client("a").gates["submit"].set()
    assert (await again).status == 200
    assert submitted(stage) == ["p"]
    await stage.quiet()
    assert (stage.live("p").job.state, stage.board.count) == (JobState.ACCEPTED, 1)


async def test_another_prompt_under_an_id_under_way_is_refused(stage: Stage) -> None:
    stage.client("a").gates["submit"] = asyncio.Event()
    first = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    others: list[dict[str, Any]] = [{"client_id": "d"}, {"prompt": {}}, {"extra_data": {"x": 1}}, {"number": 5}]
    for other in others:
        with pytest.raises(BadRequest) as caught:
            await stage.submit(prompt_id="p", **other)
        assert caught.value.kind == "duplicate_prompt_id"
    stage.client("a").gates["submit"].set()
    assert (await first).status == 200
    assert submitted(stage) == ["p"]


async def test_a_retry_of_what_waits_or_runs_gets_the_same_answer(stage: Stage) -> None:
    first = await stage.submit(prompt_id="p", number=7)
    stage.says("a", "execution_start", prompt_id="p")
    again = await stage.submit(prompt_id="p", number=7)
    assert (again.status, answer(again)) == (200, answer(first))
    with pytest.raises(BadRequest):
        await stage.submit(prompt_id="p", number=8)
    assert submitted(stage) == ["p"]


@pytest.mark.parametrize("outcome", ["execution_success", "execution_error", "execution_interrupted"])
async def test_a_retry_of_what_has_ended_gets_the_same_answer(stage: Stage, outcome: str) -> None:
    first = await stage.submit(prompt_id="p")
    stage.ends("a", "p", outcome)
    stage.says("a", "executing", node=None, prompt_id="p")
    await stage.quiet()
    assert stage.board.get("p") is None
    again = await stage.submit(prompt_id="p")
    assert (again.status, answer(again)) == (200, answer(first))
    with pytest.raises(BadRequest):
        await stage.submit(prompt_id="p", client_id="d")
    assert submitted(stage) == ["p"]


async def test_after_a_refusal_the_id_is_free_again(stage: Stage) -> None:
    stage.client("a").refuse_with = 400, b"no"
    assert (await stage.submit(prompt_id="p")).status == 400
    stage.client("a").refuse_with = None
    assert (await stage.submit(prompt_id="p", more=1)).status == 200


async def test_a_retry_after_an_error_is_a_new_attempt(stage: Stage) -> None:
    stage.store.fails["insert"] = 1
    with pytest.raises(StoreUnavailable):
        await stage.submit(prompt_id="p")
    assert (await stage.submit(prompt_id="p", more=1)).status == 200


async def test_prompts_without_an_id_are_never_taken_for_retries(stage: Stage) -> None:
    receipts = [await stage.submit() for _ in range(3)]
    assert len({answer(receipt)["prompt_id"] for receipt in receipts}) == 3


# Where all are busy


async def full(stage: Stage) -> None:
    for name in "ab":
        for number in range(2):
            await stage.has(name, f"{name}{number}", runs=number == 0)


async def test_where_all_are_busy_it_is_judged_at_once_and_waits_here(stage: Stage) -> None:
    await full(stage)
    receipt = await stage.submit(prompt_id="p", number=3)
    assert (receipt.status, answer(receipt)["number"]) == (200, 3)
    judge = str(receipt.backend)
    assert stage.client(judge).called("submit")[0]["number"] == BEHIND_ALL
    await stage.quiet()
    live = stage.live("p")
    assert (live.job.state, live.job.backend, live.job.attempts) == (JobState.QUEUED, None, 0)
    assert stage.client(judge).called("delete") == [["p"]]
    assert (stage.board.waiting_count, stage.backend(judge).visitors) == (1, set())
    stored = await stage.store.get("p")
    assert stored is not None
    assert stored.state is JobState.QUEUED


async def test_an_invalid_prompt_is_refused_also_where_all_are_busy(stage: Stage) -> None:
    await full(stage)
    for name in "ab":
        stage.client(name).refuse_with = 400, b"no"
    assert (await stage.submit(prompt_id="p")).status == 400
    assert stage.board.get("p") is None
    assert all(not backend.visitors for backend in stage.fleet)


async def test_one_that_started_while_it_was_judged_is_dispatched(stage: Stage) -> None:
    await full(stage)
    for name in "ab":
        stage.client(name).deletes = False
    judge = str((await stage.submit(prompt_id="p")).backend)
    await stage.quiet()
    live = stage.live("p")
    assert (live.job.state, live.job.backend, live.is_visitor) == (JobState.ACCEPTED, judge, False)
    assert "p" in stage.backend(judge).in_flight
    assert live.why == "it began there while it was judged"


async def test_those_who_wait_go_out_before_whoever_comes(stage: Stage) -> None:
    await stage.waits("first", number=1.0)
    receipt = await stage.submit(prompt_id="later", number=2)
    await stage.quiet()
    assert receipt.backend == "b"
    assert [stage.client(name).called("submit")[0]["prompt_id"] for name in "ab"] == ["first", "later"]
    assert stage.client("b").called("submit")[0]["number"] == 2
    assert [stage.live(prompt_id).job.attempts for prompt_id in ("first", "later")] == [1, 1]


async def test_nobody_takes_the_last_place_of_those_who_wait() -> None:
    async with Stage("a", max_concurrent=1) as stage:
        await stage.waits("first", number=1.0)
        await stage.submit(prompt_id="later", number=2)
        await stage.quiet()
        numbers = {each["prompt_id"]: each["number"] for each in stage.client("a").called("submit")}
        assert numbers == {"first": 1, "later": BEHIND_ALL}
        assert (stage.live("first").job.state, stage.live("later").job.state) == (JobState.ACCEPTED, JobState.QUEUED)


async def test_a_smaller_number_goes_before_those_of_its_client_that_wait() -> None:
    async with Stage("a", max_concurrent=1) as stage:
        await stage.waits("first", number=1.0)
        receipt = await stage.submit(prompt_id="sooner", number=0)
        await stage.quiet()
        assert (receipt.backend, stage.client("a").called("submit")[0]["number"]) == ("a", 0)
        assert (stage.live("sooner").job.backend, stage.board.waiting_count) == ("a", 1)
        assert "first" in stage.placement


async def test_nobody_overtakes_one_that_is_being_judged() -> None:
    async with Stage("a", max_concurrent=1) as stage:
        await stage.has("a", "x", runs=True)
        stage.client("a").gates["delete"] = asyncio.Event()
        await stage.submit(prompt_id="first", number=1)
        stage.ends("a", "x")
        stage.says("a", "executing", node=None, prompt_id="x")
        await stage.quiet()
        later = asyncio.create_task(stage.submit(prompt_id="later", number=2))
        await stage.quiet()
        assert stage.client("a").called("submit")[1]["number"] == BEHIND_ALL
        stage.client("a").gates["delete"].set()
        assert (await later).status == 200
        stage.dispatch()
        await stage.quiet()
        assert (stage.live("first").job.backend, stage.live("later").job.backend) == ("a", None)


# Stopping


async def test_who_stops_takes_no_more_and_waits_for_the_verdicts(stage: Stage) -> None:
    stage.client("a").gates["submit"] = asyncio.Event()
    handing_in = asyncio.create_task(stage.submit(prompt_id="p"))
    await stage.quiet()
    finishing = asyncio.create_task(stage.submissions.finish())
    await stage.quiet()
    assert not finishing.done()
    with pytest.raises(ShuttingDown):
        await stage.submit()
    stage.client("a").gates["submit"].set()
    assert (await handing_in).status == 200
    await finishing


# Pinned


async def test_a_pinned_prompt_goes_to_its_backend(stage: Stage) -> None:
    receipt = await stage.submissions.submit(b'{"prompt": {}}', asked={"backend": "b"})
    assert (receipt.backend, stage.live("minted-1").job.pinned) == ("b", "b")


async def test_a_prompt_cannot_be_pinned_to_what_is_not_there(stage: Stage) -> None:
    with pytest.raises(BadRequest) as caught:
        await stage.submissions.submit(b'{"prompt": {}}', asked={"backend": "z"})
    assert caught.value.kind == "unknown_backend"


# Asked for


def declare(stage: Stage, name: str, *capabilities: str) -> None:
    backend = stage.backend(name)
    backend.settings = replace(backend.settings, capabilities=capabilities)


async def test_the_capabilities_and_the_priority_that_are_asked_for_are_known_of_the_job(stage: Stage) -> None:
    asked = b'{"prompt": {}, "extra_data": {"comfyproxy": {"capabilities": ["x"], "priority": 3}}}'
    await stage.submissions.submit(asked, asked={"priority": 4})
    live = stage.live("minted-1")
    assert live.needs is not None
    assert (live.needs.capabilities, live.priority, live.job.pinned) == (frozenset("x"), 4, None)
    (stored,) = (await stage.store.payloads(["minted-1"])).values()
    assert options_of(stored) == Options(capabilities=frozenset("x"), priority=4)


@pytest.mark.parametrize("wanted", [["x"], ["y"], ["y", "z"]])
async def test_a_backend_that_declares_nothing_is_good_for_everything(stage: Stage, wanted: list[str]) -> None:
    declare(stage, "a", "y")
    assert (await stage.submissions.submit(b'{"prompt": {}}', asked={"capabilities": wanted})).status == 200


async def test_capabilities_that_no_backend_has_together_are_refused(stage: Stage) -> None:
    declare(stage, "a", "x", "y")
    declare(stage, "b", "z")
    await stage.submissions.submit(b'{"prompt": {}}', asked={"capabilities": ["x", "y"]})
    with pytest.raises(BadRequest) as caught:
        await stage.submissions.submit(b'{"prompt": {}}', asked={"capabilities": ["z", "y"]})
    assert (caught.value.kind, caught.value.message, caught.value.details) == (
        "no_capable_backend",
        "No backend is capable of: y, z",
        "declared: x, y, z",
    )


async def test_a_prompt_cannot_ask_one_backend_for_what_it_does_not_declare(stage: Stage) -> None:
    declare(stage, "a", "x")
    asked = {"capabilities": ["y"], "backend": "a"}
    with pytest.raises(BadRequest, match=r"^Backend a is not capable of: y$"):
        await stage.submissions.submit(b'{"prompt": {}}', asked=asked)
