"""Taking prompts back from a backend."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from service_support import HEARTBEAT_TIMEOUT_S, FakeClient, Stage, entry_of

from comfyproxy.core.errors import BadAnswer, ConnectionRefused, DeliveryUnknown, NotDelivered
from comfyproxy.service.withdrawal import Fate, Whereabouts


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b") as stage:
        yield stage


@pytest.fixture
def client(stage: Stage) -> FakeClient:
    return stage.client("a")


async def take_back(stage: Stage, *prompt_ids: str, name: str = "a") -> list[Whereabouts]:
    backend = stage.backend(name)
    return await asyncio.gather(*(stage.withdrawals.take_back(backend, prompt_id) for prompt_id in prompt_ids))


async def test_what_waits_there_is_deleted_and_gone(stage: Stage, client: FakeClient) -> None:
    client.pending = ["p", "other"]
    (found,) = await take_back(stage, "p")
    assert (found.fate, found.entry, found.is_certain) == (Fate.GONE, None, True)
    assert client.pending == ["other"]


async def test_what_has_started_or_ended_is_told_apart(stage: Stage, client: FakeClient) -> None:
    client.running, client.entries = ["runs"], {"ended": entry_of("ended")}
    runs, ended, unknown = await take_back(stage, "runs", "ended", "unknown")
    assert (runs.fate, ended.fate, unknown.fate) == (Fate.STARTED, Fate.ENDED, Fate.GONE)
    assert (runs.entry, ended.entry) == (None, entry_of("ended"))


async def test_what_starts_just_before_it_is_deleted_has_started(stage: Stage, client: FakeClient) -> None:
    client.pending, client.deletes = ["p"], False
    (found,) = await take_back(stage, "p")
    assert found.fate is Fate.STARTED


async def test_what_cannot_be_deleted_stays_there(
    stage: Stage, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ignore(prompt_ids: Sequence[str]) -> None:
        await asyncio.sleep(0)

    client.pending = ["p"]
    monkeypatch.setattr(client, "delete_pending", ignore)
    (found,) = await take_back(stage, "p")
    assert found.fate is Fate.STARTED


async def test_an_answer_is_a_sign_of_life(stage: Stage, client: FakeClient) -> None:
    await asyncio.sleep(HEARTBEAT_TIMEOUT_S - 1)
    client.errors["history"] = [DeliveryUnknown("busy")] * 5
    (found,) = await take_back(stage, "p")
    assert found.is_certain
    assert stage.fleet.silent_for_s(stage.backend("a")) < 1


async def test_those_asked_for_at_the_same_time_share_the_questions(stage: Stage, client: FakeClient) -> None:
    client.pending = ["p", "q", "r"]
    found = await take_back(stage, "p", "q", "r")
    assert [each.fate for each in found] == [Fate.GONE] * 3
    assert client.called("delete") == [["p", "q", "r"]]
    assert len(client.called("queue")) == 1


async def test_one_prompt_asked_for_twice_is_asked_about_once(stage: Stage, client: FakeClient) -> None:
    client.pending = ["p"]
    assert [each.fate for each in await take_back(stage, "p", "p")] == [Fate.GONE] * 2
    assert client.called("delete") == [["p"]]
    assert client.called("history") == ["p"]


async def test_those_that_come_meanwhile_are_the_next_batch(stage: Stage, client: FakeClient) -> None:
    client.pending = ["p", "q", "r"]
    client.gates["delete"] = asyncio.Event()
    first = asyncio.create_task(take_back(stage, "p"))
    await stage.quiet()
    others = asyncio.create_task(take_back(stage, "q", "r", "p"))
    await stage.quiet()
    assert client.called("delete") == [["p"]]
    client.gates["delete"].set()
    assert [each.fate for each in [*await first, *await others]] == [Fate.GONE] * 4
    assert client.called("delete") == [["p"], ["q", "r", "p"]]
    await stage.quiet()
    await take_back(stage, "s")
    assert client.called("delete")[2:] == [["s"]]


async def test_each_backend_is_asked_by_itself(stage: Stage, client: FakeClient) -> None:
    client.gates["delete"] = asyncio.Event()
    held = asyncio.create_task(take_back(stage, "p"))
    (found,) = await take_back(stage, "q", name="b")
    assert found.fate is Fate.GONE
    assert not held.done()
    client.gates["delete"].set()
    await held


async def test_who_gives_up_waiting_does_not_take_the_others_along(stage: Stage, client: FakeClient) -> None:
    client.pending = ["p"]
    client.gates["delete"] = asyncio.Event()
    impatient, patient = (asyncio.create_task(take_back(stage, "p")) for _ in range(2))
    await stage.quiet()
    impatient.cancel()
    await stage.quiet()
    client.gates["delete"].set()
    (found,) = await patient
    assert found.fate is Fate.GONE


async def test_a_dead_backend_has_nothing(stage: Stage, client: FakeClient) -> None:
    client.pending = ["p"]
    client.errors["delete"] = [ConnectionRefused("nothing listens")]
    (found,) = await take_back(stage, "p")
    assert (found.fate, found.is_certain) == (Fate.GONE, True)
    assert not stage.backend("a").health.healthy


@pytest.mark.parametrize("method", ["delete", "queue", "history"])
@pytest.mark.parametrize("error", [DeliveryUnknown, NotDelivered, BadAnswer])
async def test_who_fails_to_answer_is_asked_again_after_a_rest(
    stage: Stage, client: FakeClient, method: str, error: type[Exception]
) -> None:
    client.entries = {"p": entry_of("p")}
    client.errors[method] = [error("busy"), error("busy")]
    begun_s = stage.time()
    (found,) = await take_back(stage, "p")
    assert found.fate is Fate.ENDED
    assert len(client.called("delete")) == 3
    assert stage.time() - begun_s == pytest.approx(2.0, abs=0.01)
    assert stage.backend("a").health.healthy


async def test_who_is_silent_for_too_long_is_given_up(stage: Stage, client: FakeClient) -> None:
    client.errors["delete"] = [DeliveryUnknown("silence")] * 1000
    begun_s = stage.time()
    (found,) = await take_back(stage, "p")
    assert (found.fate, found.is_certain) == (Fate.GONE, False)
    assert HEARTBEAT_TIMEOUT_S < stage.time() - begun_s <= HEARTBEAT_TIMEOUT_S + 2


async def test_a_sign_of_life_keeps_the_question_open(stage: Stage, client: FakeClient) -> None:
    client.errors["delete"] = [DeliveryUnknown("silence")] * 100
    asked = asyncio.create_task(take_back(stage, "p"))
    await asyncio.sleep(50)
    stage.fleet.note_alive(stage.backend("a"))
    await asyncio.sleep(40)
    assert not asked.done()
    client.errors["delete"].clear()
    (found,) = await asked
    assert found.is_certain
