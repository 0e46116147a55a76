"""Why a prompt goes where it goes, or nowhere."""

from pathlib import Path
from typing import Any

import pytest
from proxying import Fleet, Proxy, running_proxy
from simulator_support import endless, text, txt2img

from comfyproxy.settings import CatalogSettings

MODEL = "dreamshaper.safetensors"


async def explain(proxy: Proxy, graph: Any, **headers: str) -> dict[str, Any]:
    status, body = await proxy.post("/comfyproxy/v1/explain", {"prompt": graph}, headers=headers)
    assert status == 200, body
    return dict(body)


def of(explained: dict[str, Any], name: str) -> dict[str, Any]:
    return next(dict(backend) for backend in explained["backends"] if backend["name"] == name)


def with_model(name: str) -> dict[str, Any]:
    graph = txt2img()
    for node in graph.values():
        if "ckpt_name" in node["inputs"]:
            node["inputs"]["ckpt_name"] = name
    return graph


async def test_what_is_missing_is_told_of_each_backend(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        told = await explain(proxy, with_model(MODEL))
        assert told["can_run_somewhere"] is False
        assert told["needs"]["models"] == [MODEL]
        for name in "ab":
            assert of(told, name)["can_run"] is False
            assert MODEL in of(told, name)["missing"][0]
        assert all(not backend.accepted for backend in fleet.backends.values())  # nothing was run


async def test_where_a_prompt_would_go_is_told_and_where_it_may_not(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert (await explain(proxy, text()))["goes_to"] in ("a", "b")
        told = await explain(proxy, text(), **{"X-Comfyproxy-Backend": "b"})
        assert told["goes_to"] == "b"
        assert of(told, "a")["can_run"] is False
        assert of(told, "b")["can_run"] is True


async def test_an_unfinished_prompt_says_where_it_is_and_why(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        running = await proxy.submit(endless(), "me")
        told = await proxy.get(f"/comfyproxy/v1/explain/{running}")
        assert (told["prompt_id"], told["backend"]) == (running, "a")
        assert told["why"]
        waiting = await proxy.submit(text(), "you")
        told = await proxy.get(f"/comfyproxy/v1/explain/{waiting}")
        assert told["prompt_id"] == waiting
        assert told["strategy"] == "model_affinity"


@pytest.mark.parametrize("body", [{}, {"prompt": 1, "extra_data": {"comfyproxy": {"backend": "nobody"}}}])
async def test_a_bad_question_is_refused(tmp_path: Path, body: Any) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert (await proxy.post("/comfyproxy/v1/explain", body))[0] == 400
        assert (await proxy.post("/comfyproxy/v1/explain", {"prompt": {}}))[0] == 200


async def test_a_model_that_was_just_added_is_found(tmp_path: Path) -> None:
    fresh = CatalogSettings(max_age=0.0)
    async with (
        Fleet("a", "b", "c", checkpoints=("plain.safetensors",)) as fleet,
        running_proxy(fleet, tmp_path, catalog=fresh) as proxy,
    ):
        plain = fleet["c"].folders.models / "checkpoints" / "plain.safetensors"
        plain.with_name(MODEL).write_bytes(plain.read_bytes())
        for number in range(3):
            prompt_id = await proxy.submit(with_model(MODEL), f"client {number}")
            assert (await proxy.ended(prompt_id))["status"]["completed"]
        assert len(fleet["c"].executed) == 3
