"""What makes a prompt invalid, in ComfyUI's words."""

from pathlib import Path
from typing import Any

import pytest
from simulator_support import Client, endless, png, sampling, text, txt2img

from comfyproxy.simulator import SimulatedBackend, SimulatorOptions
from comfyproxy.simulator.faults import Faults
from comfyproxy.simulator.folders import Folders
from comfyproxy.simulator.process import Journal, Process
from comfyproxy.simulator.profile import profile_of
from comfyproxy.simulator.validation import Verdict

Judge = Any


def judge(tmp_path: Path, graph: Any, targets: Any = None, version: str = "0.25.0") -> Verdict:
    options = SimulatorOptions(version=version)
    profile = profile_of(version)
    folders = Folders(tmp_path, profile)
    folders.prepare(["a.safetensors"])
    return Process(options, profile, folders, Faults(), Journal()).judge(graph, targets)


def only_error(verdict: Verdict, node_id: str) -> dict[str, Any]:
    assert verdict.error is not None
    assert verdict.error["type"] == "prompt_outputs_failed_validation"
    (error,) = verdict.node_errors[node_id]["errors"]
    assert isinstance(error, dict)
    return error


def test_a_sound_prompt_is_valid_and_names_its_outputs(tmp_path: Path) -> None:
    assert judge(tmp_path, sampling()) == Verdict(["3"], None, {})


def test_a_missing_class_is_named_in_the_words_of_the_version(tmp_path: Path) -> None:
    graph = text() | {"2": {"class_type": "Gone", "inputs": {}, "_meta": {"title": "My node"}}}
    newer, older = judge(tmp_path, graph).error, judge(tmp_path, graph, version="0.3.64").error
    assert newer is not None
    assert older is not None
    assert (newer["type"], newer["message"]) == (
        "missing_node_type",
        "Node 'My node' not found. The custom node may not be installed.",
    )
    assert (older["type"], older["message"]) == ("invalid_prompt", "Cannot execute because node Gone does not exist.")
    assert older["extra_info"] == {}


def test_a_node_without_a_class_is_an_error(tmp_path: Path) -> None:
    error = judge(tmp_path, {"7": {"inputs": {}}}).error
    assert error is not None
    assert error["message"].startswith("Node 'ID #7' has no class_type.")


def test_a_prompt_without_outputs_is_refused(tmp_path: Path) -> None:
    for graph in ({}, {"1": sampling()["1"]}):
        error = judge(tmp_path, graph).error
        assert error is not None
        assert error["type"] == "prompt_no_outputs"


def test_only_the_targets_of_a_partial_execution_count_as_outputs(tmp_path: Path) -> None:
    graph = text() | {"2": {"class_type": "ConformanceText", "inputs": {"text": "b"}}}
    assert judge(tmp_path, graph, ["2"]).outputs == ["2"]
    error = judge(tmp_path, graph, []).error
    assert error is not None
    assert error["type"] == "prompt_no_outputs"


@pytest.mark.parametrize(
    ("value", "kind", "details"),
    [
        (0, "value_smaller_than_min", "steps"),
        (10_001, "value_bigger_than_max", "steps"),
        ("many", "invalid_input_type", "steps, many, invalid literal for int() with base 10: 'many'"),
        (["1", 0, 0], "bad_linked_input", "steps"),
        (["1", 0], "return_type_mismatch", "steps, received_type(IMAGE) mismatch input_type(INT)"),
    ],
)
def test_a_bad_value_is_told_with_what_was_expected(tmp_path: Path, value: Any, kind: str, details: str) -> None:
    graph = sampling()
    graph["2"]["inputs"]["steps"] = value
    error = only_error(judge(tmp_path, graph), "2")
    assert (error["type"], error["details"]) == (kind, details)
    assert error["extra_info"]["input_config"][0] == "INT"
    assert error["extra_info"].get("received_value", error["extra_info"].get("linked_node")) == value


def test_a_missing_input_is_an_error_of_its_node_and_names_the_outputs_that_fail(tmp_path: Path) -> None:
    graph = sampling()
    del graph["2"]["inputs"]["seed"]
    verdict = judge(tmp_path, graph)
    assert only_error(verdict, "2")["type"] == "required_input_missing"
    assert verdict.node_errors["2"]["dependent_outputs"] == ["3"]
    assert "3" not in verdict.node_errors


def test_an_unknown_choice_is_told_with_the_choices_unless_they_are_many(tmp_path: Path) -> None:
    error = only_error(judge(tmp_path, txt2img("b.safetensors")), "4")
    assert error["details"] == "ckpt_name: 'b.safetensors' not in ['a.safetensors']"
    graph = txt2img()
    graph["3"]["inputs"]["sampler_name"] = "none"
    error = only_error(judge(tmp_path, graph), "3")
    assert error["details"] == "sampler_name: 'none' not in (list of length 44)"
    assert error["extra_info"]["input_config"] is None


def test_an_input_file_that_is_not_there_fails_the_nodes_own_check(tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    error = only_error(judge(tmp_path, graph), "1")
    assert (error["type"], error["details"]) == ("custom_validation_failed", "image - Invalid image file: x.png")
    (tmp_path / "input" / "x.png").write_bytes(png())
    assert judge(tmp_path, graph).error is None


def test_the_rest_runs_where_one_of_two_outputs_is_invalid(tmp_path: Path) -> None:
    graph = sampling() | {"4": {"class_type": "ConformanceText", "inputs": {}}}
    verdict = judge(tmp_path, graph)
    assert (verdict.outputs, verdict.error) == (["3"], None)
    assert verdict.node_errors["4"]["errors"][0]["type"] == "required_input_missing"


def test_values_are_converted_in_the_graph_that_is_queued(tmp_path: Path) -> None:
    graph = sampling()
    graph["2"]["inputs"] |= {"steps": "3", "seconds": 1, "preview": 1, "seed": {"__value__": 5}}
    assert judge(tmp_path, graph).error is None
    inputs = graph["2"]["inputs"]
    assert (inputs["steps"], inputs["seconds"], inputs["preview"], inputs["seed"]) == (3, 1.0, True, 5)


def test_a_cycle_is_found_and_told(tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    error = only_error(judge(tmp_path, graph), "1")
    assert error["type"] == "dependency_cycle"
    assert error["details"] == "1 (ImageInvert) -> 2 (ImageInvert) -> 1 (ImageInvert)"
    older = judge(tmp_path, graph, version="0.3.64")
    assert older.error is not None
    assert "exception_during" in str(older.node_errors)


def test_a_link_to_a_node_that_is_not_there_is_an_exception_while_validating(tmp_path: Path) -> None:
    graph = sampling()
    graph["3"]["inputs"]["images"] = ["99", 0]
    assert only_error(judge(tmp_path, graph), "3")["type"] == "exception_during_validation"
    graph = sampling()
    graph["2"]["inputs"]["image"] = ["99", 0]
    inner = only_error(judge(tmp_path, graph), "2")
    assert (inner["type"], inner["details"]) == ("exception_during_inner_validation", "'99'")


async def test_a_verdict_does_not_wait_for_the_running_prompt() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        await client.submit(endless())
        status, answer = await client.post("/prompt", {"prompt": {}})
        assert (status, answer["error"]["type"]) == (400, "prompt_no_outputs")


async def test_a_prompt_id_must_be_a_canonical_uuid_where_the_version_says_so() -> None:
    upper = "12345678-1234-1234-1234-123456789ABC"
    async with SimulatedBackend() as backend, Client(backend) as client:
        for bad in ("abc", upper, 5):
            status, answer = await client.post("/prompt", {"prompt": text(), "prompt_id": bad})
            assert (status, answer["error"]["type"]) == (400, "invalid_prompt_id")
        assert await client.submit(text(), prompt_id=upper.lower()) == upper.lower()
        assert len(await client.submit(text(), prompt_id=None)) == 36
    async with SimulatedBackend(version="0.3.64") as backend, Client(backend) as client:
        assert await client.submit(text(), prompt_id=upper) == upper
        assert await client.submit(text(), prompt_id="abc") == "abc"


async def test_bodies_that_are_no_prompt_are_refused_as_comfyui_refuses_them() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        assert (await client.call("POST", "/prompt", data=b"{"))[0] == 500
        assert (await client.post("/prompt", [1]))[1]["error"]["type"] == "no_prompt"
        assert (await client.post("/prompt", {}))[0] == 400
        assert (await client.post("/prompt", {"prompt": [1]}))[0] == 500
        headers = {"Content-Type": "text/plain"}
        assert (await client.call("POST", "/prompt", data=b'{"prompt": {}}', headers=headers))[0] == 400
