"""A job's models on their way to a backend that spells them differently, and back."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from service_support import Stage, make_backend, make_fleet

from comfyproxy.core import catalog
from comfyproxy.core.jobs import JobState
from comfyproxy.upstream.answers import Verdict

CLIENTS, BACKENDS = "x/a.safetensors", "x\\a.safetensors"
GRAPH = {"1": {"class_type": "Load", "inputs": {"name": CLIENTS}}, "9": {"class_type": "Save", "inputs": {}}}
# As of a node with one good model and another input that is wrong.
ERRORS = {"1": {"errors": [{"extra_info": {"received_value": BACKENDS}}], "dependent_outputs": []}}


def catalog_of(*names: str) -> catalog.Catalog:
    info = {"Load": {"input": {"required": {"name": [list(names), {}]}}}, "Save": {"output_node": True}}
    return catalog.parse(json.dumps(info).encode())


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage("a", "b", max_concurrent=1) as stage:
        stage.dispatch()
        stage.fleet.note_catalog(stage.backend("a"), catalog_of(BACKENDS))
        stage.fleet.note_catalog(stage.backend("b"), catalog_of(CLIENTS))
        yield stage


def names_sent(stage: Stage, name: str) -> list[str]:
    return [body["prompt"]["1"]["inputs"]["name"] for body in stage.client(name).called("submit")]


async def test_every_backend_gets_the_model_in_its_own_spelling(stage: Stage) -> None:
    for _ in range(2):
        receipt = await stage.submit(prompt=GRAPH)
        assert receipt.status == 200
    assert (names_sent(stage, "a"), names_sent(stage, "b")) == ([BACKENDS], [CLIENTS])
    by_backend = {live.job.backend: live for name in "ab" for live in stage.board.on(stage.backend(name).id)}
    assert {name: dict(live.spellings) for name, live in by_backend.items()} == {"a": {CLIENTS: BACKENDS}, "b": {}}
    assert {name: live.client_graph for name, live in by_backend.items()} == {"a": True, "b": False}


async def test_a_graph_with_other_file_names_is_spelled_as_well(stage: Stage) -> None:
    stage.files.rewritten = json.dumps(
        {"1": {**GRAPH["1"], "inputs": {"name": CLIENTS, "image": "x (1).png"}}}
    ).encode()
    stage.backend("b").is_drained = True
    await stage.submit(prompt=GRAPH)
    assert stage.client("a").called("submit")[0]["prompt"]["1"]["inputs"] == {"name": BACKENDS, "image": "x (1).png"}


async def test_a_refusal_names_the_model_as_the_client_did(stage: Stage) -> None:
    stage.backend("b").is_drained = True
    stage.client("a").refuse_with = 400, json.dumps({"error": {}, "node_errors": ERRORS}).encode()
    receipt = await stage.submit(prompt=GRAPH)
    assert receipt.status == 400
    assert json.loads(receipt.body)["node_errors"]["1"]["errors"][0]["extra_info"]["received_value"] == CLIENTS


async def test_the_errors_of_an_accepted_prompt_name_the_model_as_the_client_did(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit(body: bytes) -> Verdict:
        prompt_id = json.loads(body)["prompt_id"]
        return Verdict(200, b"{}", "application/json", prompt_id, json.dumps(ERRORS).encode())

    stage.backend("b").is_drained = True
    monkeypatch.setattr(stage.client("a"), "submit", submit)
    receipt = await stage.submit(prompt=GRAPH)
    told = json.loads(receipt.body)["node_errors"]
    assert told["1"]["errors"][0]["extra_info"]["received_value"] == CLIENTS
    (live,) = stage.board.on(stage.backend("a").id)
    assert json.loads(live.job.node_errors) == told


async def test_an_error_and_its_history_name_the_model_as_the_client_did(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    live.spellings, live.client_graph = {CLIENTS: BACKENDS}, True
    error: dict[str, Any] = {"current_inputs": {"name": [BACKENDS]}, "exception_message": f"no {BACKENDS}"}
    stage.says("a", "execution_error", **error, prompt_id="p")
    outputs = {"9": {"text": [BACKENDS]}}
    stage.ends("a", "p", "execution_error", **error, outputs=outputs)
    stage.says("a", "executing", node=None, prompt_id="p")
    await stage.quiet()
    told = {**error, "current_inputs": {"name": [CLIENTS]}}
    assert stage.streams.to("c")[0]["data"] == {**told, "prompt_id": "p"}
    raw = await stage.store.history_entry("p")
    assert raw is not None
    entry = json.loads(raw)
    assert told.items() <= entry["status"]["messages"][-1][1].items()
    assert entry["outputs"] == outputs, "what a node makes of its input is its own"


async def test_an_error_without_the_backends_spelling_keeps_its_bytes(stage: Stage) -> None:
    live = await stage.has("a", "p", runs=True)
    live.spellings = {CLIENTS: BACKENDS}
    raw = '{"type":"execution_error" , "data": {"prompt_id":"p", "current_inputs": {"x":[1.50, NaN]}}}'
    stage.relay.text(stage.backend("a"), raw)
    assert live.tail == [raw]


async def test_a_job_that_moves_on_is_spelled_anew(stage: Stage) -> None:
    stage.backend("b").is_drained = True
    await stage.submit(prompt=GRAPH, prompt_id="p")
    live = stage.live("p")
    assert live.spellings
    stage.backend("b").is_drained, stage.backend("a").is_drained = False, True
    stage.dispatcher.recall(live, stage.backend("a"))
    await stage.quiet()
    assert (live.job.state, live.job.backend) == (JobState.ACCEPTED, "b")
    assert (live.spellings, live.client_graph, names_sent(stage, "b")) == ({}, False, [CLIENTS])


# What a backend offers


def test_an_offer_is_one_object_until_there_is_another() -> None:
    backend = make_backend("a")
    first = backend.offer
    assert backend.offer is first
    assert (first.backend, first.catalog, first.capabilities) == ("a", backend.catalog, frozenset())
    backend.catalog = catalog_of(CLIENTS)
    second = backend.offer
    assert second is not first
    assert second.catalog is backend.catalog
    backend.settings = replace(backend.settings, capabilities=("video",))
    assert backend.offer.capabilities == {"video"}


def test_the_lists_of_a_fleet_follow_its_catalogs() -> None:
    fleet = make_fleet("a", "b")
    assert not fleet.combos
    backend = fleet.get("a")
    assert backend is not None
    fleet.note_catalog(backend, catalog_of(CLIENTS))
    assert fleet.combos == {"Load": {"name"}}
    fleet.note_catalog(backend, None)
    assert (backend.catalog, len(fleet.combos)) == (None, 0)
