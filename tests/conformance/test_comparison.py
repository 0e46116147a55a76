"""The comparison sees what matters, and nothing else."""

import json
import re
import uuid
from typing import Any

import pytest
from conformance_comparison import differences
from conformance_driver import SCENARIOS
from conformance_recording import VERSIONS, Frame, Recording, Step, real

NEW, OLD = VERSIONS


def compared(recording: Recording, *versions: str, **options: Any) -> list[str]:
    return differences(recording, {version: real(version) for version in versions or (NEW,)}, **options)


def step(recording: Recording, scenario: str, label: str) -> Step:
    return next(step for step in recording["scenarios"][scenario] if label in (step.get("http"), step.get("ws")))


def frames(recording: Recording, scenario: str, label: str) -> list[Frame]:
    found: list[Frame] = step(recording, scenario, label)["frames"]
    return found


def entry(recording: Recording, scenario: str, label: str) -> dict[str, Any]:
    """Return the one entry of a history."""
    (found,) = step(recording, scenario, label)["json"].values()
    return dict(found)


def with_new_ids(recording: Recording) -> Recording:
    text = json.dumps(recording)
    ids = set(re.findall(r"\"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\"", text))
    for known in ids:
        text = text.replace(known, str(uuid.uuid4()))
    renamed: Recording = json.loads(text)
    return renamed


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recording_equals_itself(version: str) -> None:
    assert compared(real(version), version) == []


def test_the_versions_differ_in_all_scenarios_but_three() -> None:
    differing = {line.partition(":")[0] for line in compared(real(OLD), NEW)}
    assert set(SCENARIOS) - differing == {"interrupt_global", "user_data", "browser_origin"}


def test_other_ids_are_no_difference() -> None:
    assert compared(with_new_ids(real(NEW))) == []


def test_another_id_in_one_place_is_a_difference() -> None:
    recording = real(NEW)
    frames(recording, "run_simple", "submitter")[-1]["data"]["prompt_id"] = str(uuid.uuid4())
    (line,) = compared(recording)
    assert line.startswith("run_simple: ws submitter: frames[2:][17].data.prompt_id is '<id of submitter.frames[19]")
    assert line.endswith("recorded '<id of POST /prompt.json.prompt_id>'")


def test_events_of_another_client_are_a_difference() -> None:
    recording = real(NEW)
    first, second = (step for step in recording["scenarios"]["two_clients"] if "ws" in step)
    first["frames"], second["frames"] = second["frames"], first["frames"]
    told = compared(recording)
    assert any("frames[2:][0].data.prompt_id is '<id of POST /prompt.json.prompt_id #2>'" in line for line in told)


def test_times_numbers_counters_and_texts_do_not_count() -> None:
    recording = real(NEW)
    done = entry(recording, "run_simple", "GET /history/{id}")
    done["prompt"][0] = 99.5
    done["prompt"][3]["create_time"] = 7
    done["status"]["messages"][0][1]["timestamp"] = 7
    done["outputs"]["3"]["images"][0]["filename"] = "conf_00077_.png"
    node = step(recording, "handshake", "GET /object_info/SaveImage")["json"]["SaveImage"]
    node["description"] = node["input"]["required"]["images"][1]["tooltip"] = "Other words."
    for frame in frames(recording, "previews", "previews, legacy"):
        if "binary" in frame:
            frame["bytes"] = 7
    assert compared(recording) == []


def test_what_does_not_count_must_be_there_all_the_same() -> None:
    recording = real(NEW)
    del entry(recording, "run_simple", "GET /history/{id}")["prompt"][3]["create_time"]
    (line,) = compared(recording)
    assert line.endswith("prompt[3].create_time is nothing, recorded '<create_time>'")


def test_statuses_and_repeated_progress_states_do_not_count() -> None:
    recording = real(NEW)
    told = frames(recording, "run_simple", "submitter")
    states = [frame for frame in told if frame.get("text") == "progress_state"]
    position = told.index(states[-1])
    told[position:position] = [states[0], {"text": "status", "data": {"status": {}}}, states[1]]
    assert compared(recording) == []


def test_a_frame_too_many_is_told_in_one_line() -> None:
    recording = real(NEW)
    told = frames(recording, "run_simple", "submitter")
    told.insert(8, {"text": "executing", "data": {"node": "1"}})
    (line,) = compared(recording)
    assert line.endswith("frames[2:][4] is 'executing', recorded 'progress_state'; 19 items, recorded 18")


def test_a_missing_step_and_a_scenario_that_broke_off_are_told() -> None:
    recording = real(NEW)
    recording["scenarios"]["views"].pop()
    recording["errors"]["uploads"] = "TimeoutError: "
    del recording["scenarios"]["jobs"]
    missing, broken, absent = compared(recording)
    assert missing.startswith("views: steps[13] is nothing, recorded 'GET /view?filename=x.png&subfolder=../..'")
    assert (broken, absent) == ("uploads: broke off: TimeoutError: ", "jobs: not played")


def test_only_the_scenarios_asked_for_are_compared() -> None:
    recording = real(NEW)
    recording["errors"]["uploads"] = "TimeoutError: "
    assert compared(recording, only=set(SCENARIOS) - {"uploads"}) == []


def test_a_refusal_is_as_good_as_a_server_error() -> None:
    recording = real(NEW)
    refused = step(recording, "rejected", "POST /prompt not json")
    refused["status"] = 400
    assert compared(recording) == []
    refused["status"] = 200
    assert compared(recording) != []


def test_uploaded_bytes_come_back_as_they_were() -> None:
    recording = real(NEW)
    step(recording, "uploads", "GET /view?filename=up.png&type=input")["body_sha256"] = "0" * 64
    step(recording, "views", "GET /view saved image")["body_sha256"] = "0" * 64
    (line,) = compared(recording)
    assert line.startswith("uploads: GET /view?filename=up.png&type=input: answer.body[1] is")


def test_an_empty_body_is_told_from_a_picture() -> None:
    recording = real(NEW)
    step(recording, "views", "GET /view saved image")["body_bytes"] = 0
    assert [line.rpartition(": ")[2] for line in compared(recording)] == ["answer.body is 'none', recorded 'some'"]


def test_names_of_nodes_are_taken_off_subfolders_and_inputs() -> None:
    recording = real(NEW)
    output = entry(recording, "views", "GET /history/{id}")["outputs"]["3"]["images"][0]
    output["subfolder"] = f"gpu-a/{output['subfolder']}"
    entry(recording, "run_simple", "GET /history/{id}")["outputs"]["3"]["images"][0]["subfolder"] = "gpu-b"
    loading = entry(recording, "outputs_as_inputs", "GET /history/{second}")["prompt"][2]["1"]["inputs"]
    loading["image"] = f"gpu-a/{loading['image']}"
    assert len(compared(recording)) == 3
    assert compared(recording, nodes=("gpu-a", "gpu-b")) == []
    assert len(compared(recording, nodes=("gpu-a",))) == 1


def with_old_steps(scenario: str, *positions: int) -> Recording:
    """Return the recording of the new version, with some steps as the old version answered them to the same prompts."""
    recording = real(NEW)
    steps, old = recording["scenarios"][scenario], real(OLD)["scenarios"][scenario]
    text = json.dumps(old)
    for one, other in zip(submitted(old), submitted(steps), strict=True):
        text = text.replace(one, other)
    for position in positions:
        steps[position] = json.loads(text)[position]
    return recording


def submitted(steps: list[Step]) -> list[str]:
    return [step["json"]["prompt_id"] for step in steps if step.get("http") == "POST /prompt"]


@pytest.mark.parametrize("scenario", ["run_simple", "run_cached", "history_control"])
def test_each_step_may_be_of_either_version(scenario: str) -> None:
    differing = 0
    for position in range(len(real(NEW)["scenarios"][scenario])):
        recording = with_old_steps(scenario, position)
        differing += bool(compared(recording, NEW))
        assert compared(recording, NEW, OLD) == []
    assert differing >= 2


def test_a_proxys_own_frames_may_be_of_another_version_than_the_prompts() -> None:
    recording = with_old_steps("run_simple", 2)
    frames(recording, "run_simple", "submitter")[1] = frames(real(NEW), "run_simple", "submitter")[1]
    assert compared(recording, OLD) != []
    assert compared(recording, NEW, OLD) == []


def test_each_entry_of_a_history_may_be_of_either_version() -> None:
    recording = with_old_steps("history_control", 3)
    first = next(iter(step(recording, "history_control", "GET /history?max_items=2")["json"].values()))
    first["prompt"][3]["create_time"] = 7
    assert compared(recording, NEW, OLD) == []


def test_what_one_prompt_tells_is_of_one_version() -> None:
    recording = with_old_steps("run_simple", 2)
    told = frames(recording, "run_simple", "submitter")
    # The old version tells of steps 1 to 4, the new one of 1, 3 and 4.
    steps = [frame for frame in told if frame.get("text") == "progress"]
    told.remove(steps[2])
    (line,) = compared(recording, NEW, OLD)
    assert line == (
        "run_simple: ws submitter: frames[2:][8].data.nodes.2.value is 2, recorded 3 in 0.25.0; "
        "frames[2:][13] is 'executing', recorded 'progress'; 18 items, recorded 20 in 0.3.64"
    )


def test_an_answer_that_mixes_the_versions_is_a_difference() -> None:
    recording = with_old_steps("rejected", 0)
    error = step(recording, "rejected", "POST /prompt unknown class")["json"]["error"]
    assert compared(recording, NEW, OLD) == []
    error["type"] = "missing_node_type"
    (line,) = compared(recording, NEW, OLD)
    assert line == (
        "rejected: POST /prompt unknown class: "
        "answer.json.error.extra_info.class_type is nothing, recorded 'NoSuchNode' in 0.25.0; "
        "answer.json.error.type is 'missing_node_type', recorded 'invalid_prompt' in 0.3.64"
    )
