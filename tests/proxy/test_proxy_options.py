"""What a request may ask of the proxy itself, over HTTP."""

from pathlib import Path
from typing import Any

import pytest
from proxying import Fleet, running_proxy
from simulator_support import endless, text

DECLARED: dict[str, dict[str, Any]] = {"a": {"capabilities": ("text",)}, "b": {"capabilities": ("text", "video")}}


async def test_the_body_may_name_the_backend_and_a_header_comes_before_it(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        body = {"prompt": text("one"), "extra_data": {"comfyproxy": {"backend": "b"}}}
        _, answer = await proxy.post("/prompt", body)
        await proxy.ended(one := answer["prompt_id"])
        _, answer = await proxy.post("/prompt", body, headers={"X-Comfyproxy-Backend": "c"})
        await proxy.ended(two := answer["prompt_id"])
        assert fleet.executed == {"a": [], "b": [one], "c": [two]}


async def test_history_shows_what_the_client_wrote_and_no_more(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        asked = {"priority": 2, "capabilities": ["x"]}
        entry = await proxy.ended(await proxy.submit(text(), extra_data={"comfyproxy": asked}))
        assert entry["prompt"][3]["comfyproxy"] == asked
        _, answer = await proxy.post("/prompt", {"prompt": text()}, headers={"X-Comfyproxy-Priority": "1"})
        entry = await proxy.ended(answer["prompt_id"])
        assert not [key for key in entry["prompt"][3] if key.startswith("comfyproxy")]


async def test_a_backend_that_is_asked_for_in_the_body_outlives_a_restart(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"extra_data": {"comfyproxy": {"backend": "b"}}}
    async with Fleet("a", "b") as fleet:
        async with running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
            running = await proxy.submit(endless(), **asked)
            waiting = await proxy.submit(text(), **asked)
        async with running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
            await proxy.post("/queue", {"delete": [running]})
            await proxy.post("/interrupt", {"prompt_id": running})
            await proxy.ended(waiting)
        assert fleet.executed == {"a": [], "b": [running, waiting]}


async def test_prompts_go_only_where_what_they_ask_for_is_declared_also_after_a_restart(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"extra_data": {"comfyproxy": {"capabilities": ["video"]}}}
    async with Fleet("a", "b") as fleet:
        async with running_proxy(fleet, tmp_path, max_concurrent=1, each=DECLARED) as proxy:
            running = await proxy.submit(endless(), **asked)
            waiting = await proxy.submit(text("video"), **asked)
            free = await proxy.submit(text("text"))
            await proxy.ended(free)
        async with running_proxy(fleet, tmp_path, max_concurrent=1, each=DECLARED) as proxy:
            await proxy.ended(await proxy.submit(text("more text")))
            await proxy.post("/queue", {"delete": [running]})
            await proxy.post("/interrupt", {"prompt_id": running})
            await proxy.ended(waiting)
        assert fleet.executed["b"] == [running, waiting]


async def test_the_more_urgent_goes_first(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        running = await proxy.submit(endless(), "one")
        asked = {"usual": {}, "low": {"priority": -5}, "high": {"priority": 5}}
        ids = {
            name: await proxy.submit(text(name), name, extra_data={"comfyproxy": options})
            for name, options in asked.items()
        }
        await proxy.post("/interrupt", {"prompt_id": running})
        await proxy.ended(ids["low"])
        assert fleet["a"].executed == [running, ids["high"], ids["usual"], ids["low"]]


@pytest.mark.parametrize(
    ("asked", "headers", "kind", "message"),
    [
        ({"backend": "z"}, {}, "unknown_backend", "There is no backend called 'z'"),
        ({"capabilities": ["audio"]}, {}, "no_capable_backend", "No backend is capable of: audio"),
        (
            {},
            {"X-Comfyproxy-Capabilities": "video, audio"},
            "no_capable_backend",
            "No backend is capable of: audio, vide",
        ),
        ({"backend": "a"}, {"X-Comfyproxy-Capabilities": "video"}, "no_capable_backend", "Backend a is not capable of"),
        ({"priority": "high"}, {}, "invalid_option", "extra_data.comfyproxy.priority must be a whole number from -10"),
        ({}, {"X-Comfyproxy-Priority": "99"}, "invalid_option", "X-Comfyproxy-Priority must be a whole number from"),
    ],
)
async def test_what_cannot_be_had_is_refused_in_the_shape_of_comfyui(
    tmp_path: Path, asked: object, headers: dict[str, str], kind: str, message: str
) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, each=DECLARED) as proxy:
        body = {"prompt": text(), "extra_data": {"comfyproxy": asked}}
        status, answer = await proxy.post("/prompt", body, headers=headers)
        assert (status, answer["error"]["type"], answer["node_errors"]) == (400, kind, {})
        assert answer["error"]["message"].startswith(message)
        assert await proxy.queue() == ([], [])
