"""From the links to the clients: each message to the client whose job it is about."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from service_support import Stage, entry_of, make_job

from comfyproxy.core import frames
from comfyproxy.core.frames import ImageFormat
from comfyproxy.core.jobs import BackendId, JobState
from comfyproxy.service import relay
from comfyproxy.service.live import LiveJob

OUTCOMES = ("execution_success", "execution_error", "execution_interrupted")
OF_A_PROMPT = (*OUTCOMES, "execution_start", "execution_cached", "executing", "executed", "progress", "progress_state")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b") as stage:
        yield stage


def message(event: str, **data: Any) -> dict[str, Any]:
    return {"type": event, "data": data}


def preview(**metadata: Any) -> bytes:
    return frames.preview_with_metadata({"image_type": "image/jpeg", **metadata}, b"img")


async def test_a_message_goes_to_the_client_of_its_prompt_alone(stage: Stage) -> None:
    await stage.has("a", "p", client_id="c")
    await stage.has("a", "q", client_id="d")
    stage.says("a", "progress", value=1, prompt_id="q")
    assert stage.streams.told == [("d", message("progress", value=1, prompt_id="q"))]


async def test_the_bytes_of_a_message_stay_where_nothing_changes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await stage.has("a", "p")
    told: list[str] = []
    monkeypatch.setattr(stage.streams, "deliver_text", lambda client_id, text, **_: told.append(text))
    raw = '{"type":"progress" , "data": {"value": 1.0, "prompt_id":"p", "x": NaN}}'
    stage.relay.text(stage.backend("a"), raw)
    assert told == [raw]


@pytest.mark.parametrize("event", [*OF_A_PROMPT, "custom.event"])
async def test_what_is_about_another_prompt_is_told_to_nobody(stage: Stage, event: str) -> None:
    await stage.has("a", "p", runs=True)
    await stage.has("b", "elsewhere")
    for prompt_id in ("stranger", "elsewhere"):
        stage.says("a", event, node="1", prompt_id=prompt_id)
    await stage.quiet()
    assert stage.streams.told == []
    assert stage.live("elsewhere").is_running is False


async def test_what_names_no_prompt_is_of_the_one_that_runs_there(stage: Stage) -> None:
    await stage.has("a", "p", runs=True, client_id="c")
    await stage.has("a", "q", client_id="d")
    stage.says("a", "custom.event", text="x")
    stage.says("a", "progress", value=1)
    assert stage.streams.told == [("c", message("custom.event", text="x")), ("c", message("progress", value=1))]


async def test_custom_events_are_for_all_only_where_nothing_of_ours_runs(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    await stage.has("b", "q")
    stage.says("b", "crystools.monitor", data=[1, 2])
    assert stage.streams.told == [("*", {"type": "crystools.monitor", "data": [1, 2]})]


@pytest.mark.parametrize("event", OF_A_PROMPT)
async def test_what_is_of_a_prompt_is_never_for_all(stage: Stage, event: str) -> None:
    stage.says("a", event, node="1")
    assert stage.streams.told == []


async def test_the_links_own_messages_end_here(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    looks: list[int] = []
    stage.relay.on_load = lambda: looks.append(stage.backend("a").queue_remaining)
    for count in (3, 3, 4):
        stage.says("a", "status", status={"exec_info": {"queue_remaining": count}})
    stage.says("a", "status", sid="x")
    stage.says("a", "feature_flags", supports_preview_metadata=True)
    assert stage.streams.told == []
    assert looks == [3, 4]


async def test_log_lines_go_to_who_wants_them(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    lines: list[tuple[str, str]] = []
    stage.relay.on_logs = lambda backend, raw: lines.append((backend.id, raw))
    stage.says("a", "logs", entries=[])
    assert [name for name, _ in lines] == ["a"]
    assert stage.streams.told == []


@pytest.mark.parametrize("raw", ["", "[]", "null", "\x00\x01", '{"type": 5', '{"data": {}}'])
async def test_what_is_no_message_is_dropped(stage: Stage, raw: str) -> None:
    await stage.has("a", "p", runs=True)
    stage.relay.text(stage.backend("a"), raw)
    assert stage.streams.told == []


async def test_every_word_is_a_sign_of_life(stage: Stage) -> None:
    a, b = stage.backend("a"), stage.backend("b")
    assert stage.relay.heard_s(a.id) == float("-inf")
    await asyncio.sleep(10)
    stage.relay.text(a, "no message")
    assert (stage.relay.heard_s(a.id), stage.fleet.silent_for_s(a)) == (stage.time(), 0)
    await asyncio.sleep(1)
    stage.relay.binary(b, b"")
    assert (stage.fleet.silent_for_s(a), stage.fleet.silent_for_s(b)) == (1, 0)


# What a message says of the job


async def test_a_job_runs_from_its_start(stage: Stage) -> None:
    live = await stage.has("a", "p")
    stage.says("a", "execution_start", prompt_id="p")
    assert (live.is_running, live.job.started_s, live.node) == (True, 5000.0, None)
    stage.says("a", "executing", node="3", prompt_id="p")
    assert (live.node, stage.board.running_node("c")) == ("3", "3")
    assert stage.streams.events("c") == ["execution_start", "executing"]


async def test_a_job_whose_start_was_missed_runs_from_its_first_node(stage: Stage) -> None:
    live = await stage.has("a", "p")
    stage.says("a", "executing", node="3", prompt_id="p")
    assert live.is_running


async def test_the_notice_of_a_new_link_is_known_already(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.says("a", "executing", node="3")
    assert live.node == "3"
    assert stage.streams.told == []


async def test_outputs_get_the_name_of_their_backend(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    images = [{"filename": "x.png", "subfolder": "", "type": "output"}]
    stage.says("a", "executed", node="9", output={"images": images}, prompt_id="p")
    (told,) = stage.streams.to("c")
    assert told["data"]["output"] == {"images": [{"filename": "x.png", "subfolder": "a", "type": "output"}]}
    assert live.executed == {"9"}


async def test_outputs_keep_their_names_where_there_is_one_backend() -> None:
    async with Stage("a") as stage:
        await stage.has("a", "p", runs=True)
        output = {"images": [{"filename": "x.png", "subfolder": "", "type": "output"}]}
        stage.says("a", "executed", node="9", output=output, prompt_id="p")
        assert stage.streams.to("c") == [message("executed", node="9", output=output, prompt_id="p")]


@pytest.mark.parametrize("data", [None, [], "output", 5, {"output": None}, {"node": 5, "output": []}])
async def test_an_odd_executed_does_no_harm(stage: Stage, data: Any) -> None:
    await stage.has("a", "p", runs=True)
    stage.relay.text(stage.backend("a"), json.dumps({"type": "executed", "data": data}))
    assert stage.streams.to("c") == [{"type": "executed", "data": data}]


# Ids that backends mint


async def test_messages_name_the_prompt_as_its_client_does(stage: Stage) -> None:
    await stage.has("a", "p", runs=True, backend_prompt_id="minted")
    stage.says("a", "progress_state", prompt_id="minted", nodes={"1": {"prompt_id": "minted"}})
    stage.says("a", "progress", prompt_id="p", value=1)
    assert stage.streams.to("c") == [message("progress_state", prompt_id="p", nodes={"1": {"prompt_id": "p"}})]


def on_its_way(stage: Stage, prompt_id: str, name: str = "a") -> LiveJob:
    live = LiveJob(make_job(prompt_id, state=JobState.DISPATCHING, backend=BackendId(name)))
    stage.board.add(live)
    return live


def accepted(stage: Stage, live: LiveJob, its_id: str | None) -> None:
    stage.board.move(live, JobState.ACCEPTED, backend_prompt_id=its_id)
    stage.relay.accepted(stage.backend(str(live.job.backend)), live)


async def test_what_comes_before_the_verdict_is_kept_until_the_id_is_known(stage: Stage) -> None:
    live, other = on_its_way(stage, "p"), on_its_way(stage, "q")
    stage.says("a", "execution_start", prompt_id="minted")
    stage.says("a", "execution_start", prompt_id="stranger")
    stage.says("a", "executing", node="1", prompt_id="minted")
    assert stage.streams.told == []
    accepted(stage, live, "minted")
    assert stage.streams.told == [
        ("c", message("execution_start", prompt_id="p")),
        ("c", message("executing", node="1", prompt_id="p")),
    ]
    assert live.is_running
    accepted(stage, other, "stranger")
    assert stage.streams.events("c") == ["execution_start", "executing", "execution_start"]


async def test_what_was_kept_in_vain_is_forgotten(stage: Stage) -> None:
    live = on_its_way(stage, "p")
    stage.says("a", "execution_start", prompt_id="stranger")
    accepted(stage, live, None)
    late = on_its_way(stage, "q")
    accepted(stage, late, "stranger")
    assert stage.streams.told == []


async def test_only_so_much_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_MAX_EARLY", 3)
    live = on_its_way(stage, "p")
    for value in range(5):
        stage.says("a", "progress", value=value, prompt_id="minted" if value != 1 else "stranger")
    accepted(stage, live, "minted")
    assert [told["data"]["value"] for told in stage.streams.to("c")] == [0, 2]


async def test_what_strangers_said_before_takes_no_room(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_MAX_EARLY", 3)
    for _ in range(5):
        stage.says("a", "progress", value=0, prompt_id="stranger")
    live = on_its_way(stage, "p")
    stage.says("a", "execution_start", prompt_id="minted")
    accepted(stage, live, "minted")
    assert stage.streams.events("c") == ["execution_start"]


async def test_nothing_is_kept_of_another_backend(stage: Stage) -> None:
    live = on_its_way(stage, "p", "b")
    stage.says("a", "execution_start", prompt_id="minted")
    accepted(stage, live, "minted")
    assert stage.streams.told == []


# The end


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_the_end_is_held_until_its_history_is_stored(stage: Stage, outcome: str) -> None:
    live = await stage.has("a", "p", runs=True)
    stage.ends("a", "p", outcome)
    stage.says("a", outcome, prompt_id="p", timestamp=3)
    stage.says("a", "custom.event", prompt_id="p")
    await stage.quiet()
    assert stage.streams.told == []
    stage.says("a", "executing", node=None, prompt_id="p")
    assert stage.streams.told == []
    assert live.is_settling
    at_the_end: list[bytes | None] = []
    entries: list[asyncio.Task[bytes | None]] = []
    stage.streams.on_told = lambda: entries.append(asyncio.ensure_future(stage.store.history_entry("p")))
    await stage.quiet()
    at_the_end = [await entry for entry in entries]
    assert len(at_the_end) == 3
    assert None not in at_the_end
    assert stage.streams.to("c") == [
        message(outcome, prompt_id="p", timestamp=3),
        message("custom.event", prompt_id="p"),
        message("executing", node=None, prompt_id="p"),
    ]


async def test_whatever_comes_after_the_end_is_dropped(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    stage.client("a").gates["history"] = asyncio.Event()
    stage.ends("a", "p")
    stage.says("a", "executing", node=None, prompt_id="p")
    stage.says("a", "progress", value=1, prompt_id="p")
    stage.says("a", "custom.event", value=1)
    stage.relay.binary(stage.backend("a"), preview(prompt_id="p"))
    stage.relay.binary(stage.backend("a"), frames.preview(ImageFormat.JPEG, b"img"))
    await asyncio.sleep(1)
    assert stage.streams.told == []
    stage.client("a").gates["history"].set()
    await stage.quiet()
    assert stage.streams.events("c") == ["execution_success", "executing"]


async def test_an_end_without_an_outcome_settles(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    stage.client("a").entries["p"] = entry_of("p")
    stage.says("a", "executing", node=None, prompt_id="p")
    await stage.quiet()
    assert stage.board.get("p") is None
    assert stage.streams.events("c")[-1] == "executing"


# Frames


async def test_a_frame_is_of_the_prompt_that_runs(stage: Stage) -> None:
    await stage.has("a", "p", runs=True, client_id="c")
    await stage.has("a", "q", client_id="d")
    old = frames.preview(ImageFormat.JPEG, b"img")
    custom = b"\0\0\1\0custom"
    for frame in (old, custom, b"", b"\0\0\0\4\0"):
        stage.relay.binary(stage.backend("a"), frame)
    assert stage.streams.told == [("c", old), ("c", custom), ("c", b""), ("c", b"\0\0\0\4\0")]


async def test_frames_of_strangers_are_dropped(stage: Stage) -> None:
    await stage.has("b", "q", runs=True)
    await stage.has("a", "p")
    stage.relay.binary(stage.backend("a"), frames.preview(ImageFormat.JPEG, b"img"))
    stage.relay.binary(stage.backend("a"), preview(prompt_id="stranger"))
    stage.relay.binary(stage.backend("a"), preview(prompt_id="q"))
    await asyncio.sleep(1)
    assert stage.streams.told == []


async def test_a_preview_that_names_a_stranger_is_not_of_the_one_that_runs(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    stage.relay.binary(stage.backend("a"), preview(prompt_id="stranger"))
    await asyncio.sleep(1)
    assert stage.streams.told == []


async def test_a_preview_goes_to_the_client_of_its_prompt_under_the_clients_name(stage: Stage) -> None:
    await stage.has("a", "p", client_id="c", backend_prompt_id="minted")
    await stage.has("a", "q", runs=True, client_id="d")
    stage.relay.binary(stage.backend("a"), preview(prompt_id="minted", node_id="3"))
    await asyncio.sleep(1)
    ((client_id, frame),) = stage.streams.told
    assert client_id == "c"
    assert frames.split_metadata(frame) == (
        {"image_type": "image/jpeg", "prompt_id": "p", "node_id": "3"},
        b"img",
    )


async def test_a_preview_goes_together_with_the_progress_behind_it(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    frame = preview(prompt_id="p")
    stage.relay.binary(stage.backend("a"), frame)
    assert stage.streams.told == []
    stage.says("a", "progress", value=1, prompt_id="p")
    await asyncio.sleep(1)
    assert stage.streams.told == [("c", (frame, message("progress", value=1, prompt_id="p")))]


async def test_a_preview_that_no_progress_follows_goes_alone_after_a_moment(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    frame = preview(prompt_id="p")
    stage.relay.binary(stage.backend("a"), frame)
    await asyncio.sleep(relay.PAIR_WITHIN_S - 0.01)
    assert stage.streams.told == []
    await asyncio.sleep(0.02)
    assert stage.streams.told == [("c", frame)]
    stage.says("a", "progress", value=1, prompt_id="p")
    assert stage.streams.told[1:] == [("c", message("progress", value=1, prompt_id="p"))]


async def test_whatever_follows_a_preview_comes_behind_it(stage: Stage) -> None:
    await stage.has("a", "p", runs=True)
    first, second, other = preview(n=1), preview(n=2), frames.preview(ImageFormat.PNG, b"img")
    stage.relay.binary(stage.backend("a"), first)
    stage.relay.binary(stage.backend("a"), second)
    stage.says("a", "executing", node="5", prompt_id="p")
    stage.relay.binary(stage.backend("a"), first)
    stage.relay.binary(stage.backend("a"), other)
    stage.relay.binary(stage.backend("a"), first)
    stage.relay.text(stage.backend("a"), "no message")
    await asyncio.sleep(1)
    assert stage.streams.told == [
        ("c", first),
        ("c", second),
        ("c", message("executing", node="5", prompt_id="p")),
        ("c", first),
        ("c", other),
        ("c", first),
    ]


async def test_a_preview_and_the_progress_of_another_are_no_pair(stage: Stage) -> None:
    await stage.has("a", "p", runs=True, client_id="c")
    await stage.has("a", "q", client_id="d")
    frame = preview(prompt_id="p")
    stage.relay.binary(stage.backend("a"), frame)
    stage.says("a", "progress", value=1, prompt_id="q")
    assert stage.streams.told == [("c", frame), ("d", message("progress", value=1, prompt_id="q"))]


async def test_previews_of_two_backends_are_held_apart(stage: Stage) -> None:
    await stage.has("a", "p", runs=True, client_id="c")
    await stage.has("b", "q", runs=True, client_id="d")
    frame_p, frame_q = preview(prompt_id="p"), preview(prompt_id="q")
    stage.relay.binary(stage.backend("a"), frame_p)
    stage.relay.binary(stage.backend("b"), frame_q)
    stage.says("a", "progress", value=1, prompt_id="p")
    stage.says("b", "progress", value=2, prompt_id="q")
    assert stage.streams.told == [
        ("c", (frame_p, message("progress", value=1, prompt_id="p"))),
        ("d", (frame_q, message("progress", value=2, prompt_id="q"))),
    ]
