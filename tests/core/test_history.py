"""History entries: the backend's made the proxy's, and those the proxy writes itself."""

import json
from dataclasses import replace
from typing import Any

import pytest
from recorded import job_of, payload_of, raw, recorded

from comfyproxy.core import history
from comfyproxy.core.jobs import Job, JobState, Payload

PAYLOAD = Payload(graph=b'{"1": {"class_type": "X", "inputs": {}}}')


def build(entry: Any, job: Job, **options: Any) -> Any:
    known: dict[str, Any] = {"payload": PAYLOAD, "client_graph": False, "spellings": {}, "backend_prefix": None}
    return json.loads(history.build_entry(raw(entry), job=job, **{**known, **options}))


@pytest.mark.parametrize("name", ["succeeded", "failed", "interrupted", "text"])
def test_the_entry_of_a_job_that_was_not_changed_on_its_way_is_the_backends(name: str) -> None:
    entry = recorded(name)
    assert build(entry, job_of(entry)) == entry


def test_the_entry_shows_the_clients_number_id_and_client_id() -> None:
    entry = recorded("succeeded")
    built = build(entry, job_of(entry, number=-7.0, prompt_id="mine", client_id="me", created_s=1.5))
    assert built["prompt"][:2] == [-7, "mine"]
    assert built["prompt"][3] == {**entry["prompt"][3], "client_id": "me", "create_time": 1500}
    assert list(built["prompt"][3]) == list(entry["prompt"][3])
    assert {data["prompt_id"] for _, data in built["status"]["messages"]} == {"mine"}


def test_a_number_that_is_no_integer_is_kept() -> None:
    entry = recorded("succeeded")
    assert build(entry, job_of(entry, number=2.5))["prompt"][0] == 2.5


def test_without_a_client_the_links_id_does_not_show() -> None:
    entry = recorded("succeeded")
    assert "client_id" not in build(entry, job_of(entry, client_id=None))["prompt"][3]


def test_an_older_servers_entry_gets_no_create_time() -> None:
    entry = recorded("succeeded")
    job = job_of(entry)
    del entry["prompt"][3]["create_time"]
    assert "create_time" not in build(entry, job)["prompt"][3]


def test_secrets_and_the_proxys_own_additions_do_not_show() -> None:
    entry = recorded("succeeded")
    shown = dict(entry["prompt"][3])
    entry["prompt"][3] |= {"auth_token_comfy_org": "t", "api_key_comfy_org": "k", "comfyproxy_job": 1}
    entry["prompt"].append({"api_key_comfy_org": "k"})
    built = build(entry, job_of(entry))
    assert built["prompt"][3] == shown
    assert len(built["prompt"]) == 5


def test_the_clients_graph_shows_only_where_the_dispatched_one_was_rewritten() -> None:
    entry = recorded("succeeded")
    assert build(entry, job_of(entry))["prompt"][2] == entry["prompt"][2]
    assert build(entry, job_of(entry), client_graph=True)["prompt"][2] == json.loads(PAYLOAD.graph)


def test_outputs_get_the_backends_name_in_front() -> None:
    entry = recorded("succeeded")
    built = build(entry, job_of(entry), backend_prefix="gpu-a")
    assert [image["subfolder"] for image in built["outputs"]["3"]["images"]] == ["gpu-a"]
    assert build(recorded("text"), job_of(entry), backend_prefix="gpu-a")["outputs"] == recorded("text")["outputs"]


def test_parts_nobody_knows_stay() -> None:
    entry = recorded("succeeded") | {"custom": {"a": [1.50]}, "meta": {"x": None}}
    entry["status"]["messages"].append(["custom", "no object"])
    entry["status"]["messages"].append("no message")
    built = build(entry, job_of(entry, prompt_id="mine"))
    assert (built["custom"], built["meta"]) == (entry["custom"], entry["meta"])
    assert built["status"]["messages"][-2:] == entry["status"]["messages"][-2:]


def test_an_entry_with_values_that_are_not_json_is_still_read() -> None:
    entry = recorded("succeeded")
    entry["outputs"]["3"]["loss"] = [float("nan"), "\ud800"]
    built = build(entry, job_of(entry, prompt_id="mine"), backend_prefix="a")
    assert built["prompt"][1] == "mine"
    assert built["outputs"]["3"]["loss"][0] != built["outputs"]["3"]["loss"][0]
    assert built["outputs"]["3"]["loss"][1] == "\ud800"


@pytest.mark.parametrize("value", [[], {}, {"prompt": [1, 2]}, {"prompt": {}}])
def test_what_is_not_an_entry_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a history entry"):
        build(value, job_of(recorded("succeeded")))


@pytest.mark.parametrize(
    ("name", "state"),
    [("succeeded", JobState.SUCCEEDED), ("failed", JobState.FAILED), ("interrupted", JobState.CANCELLED)],
)
def test_the_outcome_and_its_times_are_read_from_the_messages(name: str, state: JobState) -> None:
    entry = recorded(name)
    messages = entry["status"]["messages"]
    found = history.outcome(raw(entry))
    assert found[:3] == (state, messages[0][1]["timestamp"], messages[-1][1]["timestamp"])


def test_the_reason_of_a_failure_is_one_line() -> None:
    assert history.outcome(raw(recorded("failed"))).message == "ValueError: conformance failure at step 2"
    assert history.outcome(raw(recorded("succeeded"))).message is None


@pytest.mark.parametrize("status", [None, {}, {"status_str": "success", "messages": None}])
def test_without_an_error_it_succeeded(status: Any) -> None:
    found = history.outcome(raw({"status": status}))
    assert found == history.Outcome(JobState.SUCCEEDED, None, None, None)


def test_a_job_that_died_with_its_backend_reads_like_any_failure() -> None:
    real = recorded("failed")
    job = replace(job_of(real), started_s=2.0)
    own = json.loads(
        history.failed_entry(job, payload_of(real), message="gone", exception_type="BackendLost", timestamp_ms=3000)
    )
    assert own["prompt"] == real["prompt"]
    assert own.keys() == real.keys()
    real_data, own_data = real["status"]["messages"][-1][1], own["status"]["messages"][-1][1]
    assert list(own_data) == list(real_data)
    assert [name for name, _ in own["status"]["messages"]] == ["execution_start", "execution_error"]
    assert history.outcome(raw(own))[:3] == (JobState.FAILED, 2000, 3000)
    assert history.outcome(raw(own)).message == "BackendLost: gone"


def test_a_job_that_failed_before_it_started_has_no_start() -> None:
    job = job_of(recorded("failed"))
    own = history.failed_entry(job, PAYLOAD, message="gone", exception_type="E", timestamp_ms=1)
    assert [name for name, _ in json.loads(own)["status"]["messages"]] == ["execution_error"]


def test_an_interruption_nobody_told_of_reads_like_any_other() -> None:
    real = recorded("interrupted")
    own = json.loads(history.cancelled_entry(job_of(real), payload_of(real), timestamp_ms=5))
    assert own["prompt"] == real["prompt"]
    assert list(own["status"]["messages"][-1][1]) == list(real["status"]["messages"][-1][1])
    assert history.outcome(raw(own)).state is JobState.CANCELLED
