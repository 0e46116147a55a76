"""The jobs API's shapes, measured against a real server's."""

import json
from dataclasses import replace
from typing import Any

import pytest
from recorded import job_of, raw, recorded

from comfyproxy.core import jobs_api
from comfyproxy.core.job_outputs import normalise, summarise_outputs
from comfyproxy.core.jobs_api import BadQuery, JobsQuery, parse_query

IMAGE = {"filename": "a.png", "subfolder": "", "type": "output"}


def recorded_job() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (detail, history entry) of a recorded job; the entry is put together from the detail."""
    shown = recorded("job")
    prompt = [shown["priority"], shown["id"], shown["workflow"]["prompt"], shown["workflow"]["extra_data"], ["3"]]
    return shown, {"prompt": prompt, "outputs": shown["outputs"], "status": shown["execution_status"], "meta": {}}


def test_a_settled_job_is_listed_as_by_a_real_server() -> None:
    _, entry = recorded_job()
    summary = jobs_api.summarise(job_of(entry), raw(entry))
    [listed] = recorded("listed_job")["jobs"]
    assert json.loads(summary.item) == listed
    assert list(json.loads(summary.item)) == list(listed)
    assert (summary.status, summary.workflow_id) == ("completed", "wf-job")
    assert summary.created_ms == listed["create_time"]
    assert summary.duration_ms == listed["execution_end_time"] - listed["execution_start_time"]


def test_a_settled_job_is_shown_as_by_a_real_server() -> None:
    shown, entry = recorded_job()
    item = jobs_api.summarise(job_of(entry), raw(entry)).item
    detail = json.loads(jobs_api.detail(item, raw(entry)))
    assert detail == shown
    assert list(detail) == list(shown)


def test_a_running_job_is_listed_as_by_a_real_server() -> None:
    [listed] = recorded("running_jobs")["jobs"]
    entry = {"prompt": [listed["priority"], listed["id"], {}, {"create_time": listed["create_time"]}, []]}
    assert json.loads(jobs_api.unfinished_item(job_of(entry), is_running=True)) == listed
    pending = json.loads(jobs_api.unfinished_item(job_of(entry), is_running=False))
    assert pending == {**listed, "status": "pending"}


def test_a_failed_job_tells_its_error() -> None:
    entry = recorded("failed")
    summary = jobs_api.summarise(job_of(entry), raw(entry))
    item = json.loads(summary.item)
    assert (summary.status, item["status"], item["outputs_count"]) == ("failed", "failed", 0)
    assert item["execution_error"] == entry["status"]["messages"][-1][1]
    assert "workflow_id" not in item
    assert "preview_output" not in item


def test_an_interrupted_job_is_cancelled() -> None:
    entry = recorded("interrupted")
    assert jobs_api.summarise(job_of(entry), raw(entry)).status == "cancelled"


def test_an_entry_without_messages_has_no_times() -> None:
    entry = recorded("succeeded") | {"status": None}
    summary = jobs_api.summarise(job_of(entry), raw(entry))
    assert summary.duration_ms == 0
    assert "execution_start_time" not in json.loads(summary.item)
    assert json.loads(jobs_api.detail(summary.item, raw(entry)))["execution_status"] is None


def test_a_page_joins_items_and_says_whether_there_is_more() -> None:
    query = JobsQuery(limit=2, offset=1)
    assert json.loads(b"".join(jobs_api.page([b"1", b"2"], query=query, total=4))) == {
        "jobs": [1, 2],
        "pagination": {"offset": 1, "limit": 2, "total": 4, "has_more": True},
    }
    assert json.loads(b"".join(jobs_api.page([], query=JobsQuery(), total=0))) == {
        "jobs": [],
        "pagination": {"offset": 0, "limit": None, "total": 0, "has_more": False},
    }


# Parameters


def test_without_parameters_all_jobs_are_asked_for_newest_first() -> None:
    assert parse_query({}) == JobsQuery()


def test_parameters_are_read_as_a_real_server_reads_them() -> None:
    query = parse_query(
        {
            "status": " Completed, failed,",
            "workflow_id": "w",
            "sort_by": "EXECUTION_DURATION",
            "sort_order": "ASC",
            "limit": " 5",
            "offset": "-3",
        }
    )
    assert query == JobsQuery(
        statuses=frozenset({"completed", "failed"}),
        workflow_id="w",
        sort_by="execution_duration",
        descending=False,
        limit=5,
        offset=0,
    )


def test_a_status_of_commas_asks_for_nothing_and_an_empty_one_for_all() -> None:
    assert parse_query({"status": ","}).statuses == frozenset()
    assert parse_query({"status": ""}).statuses == frozenset(jobs_api.STATUSES)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (
            {"status": "nonsense,failed,Other"},
            "Invalid status value(s): nonsense, other. "
            "Valid values: pending, in_progress, completed, failed, cancelled",
        ),
        ({"sort_by": "name"}, "sort_by must be 'created_at' or 'execution_duration'"),
        ({"sort_order": "up"}, "sort_order must be 'asc' or 'desc'"),
        ({"limit": "0"}, "limit must be a positive integer"),
        ({"limit": "x"}, "limit must be an integer"),
        ({"limit": ""}, "limit must be an integer"),
        ({"offset": "x"}, "offset must be an integer"),
    ],
)
def test_wrong_parameters_are_refused_in_a_real_servers_words(query: dict[str, str], text: str) -> None:
    with pytest.raises(BadQuery) as caught:
        parse_query(query)
    assert str(caught.value) == text


# Outputs


def test_a_saved_file_previews_before_a_temporary_one() -> None:
    temp = {**IMAGE, "type": "temp"}
    count, preview = summarise_outputs({"1": {"images": [temp]}, "2": {"images": [IMAGE, IMAGE], "animated": [True]}})
    assert (count, preview) == (3, {**IMAGE, "nodeId": "2", "mediaType": "images"})
    assert summarise_outputs({"1": {"images": [temp]}}) == (1, {**temp, "nodeId": "1", "mediaType": "images"})


def test_text_previews_where_no_file_is_saved() -> None:
    count, preview = summarise_outputs(recorded("text")["outputs"])
    assert (count, preview) == (1, {"content": "hello ✓ 你好", "nodeId": "1", "mediaType": "text"})
    assert summarise_outputs({"1": {"text": ["x" * 1025]}})[1] == {
        "content": "x" * 1024,
        "truncated": True,
        "nodeId": "1",
        "mediaType": "text",
    }
    assert summarise_outputs({"1": {"text": [["a"]]}})[1] == {"content": "a", "nodeId": "1", "mediaType": "text"}


def test_files_of_custom_kinds_preview_by_their_mime_type_or_extension() -> None:
    video = {**IMAGE, "filename": "a.mp4", "format": "video/h264-mp4"}
    assert summarise_outputs({"1": {"gifs": [video]}})[1] == {**video, "nodeId": "1", "mediaType": "gifs"}
    model = {**IMAGE, "filename": "a.GLB"}
    assert summarise_outputs({"1": {"result": [model]}})[1] == {**model, "nodeId": "1", "mediaType": "result"}
    assert summarise_outputs({"1": {"latents": [{**IMAGE, "filename": "a.latent", "format": 3}]}}) == (1, None)


def test_the_bare_name_of_a_3d_file_is_a_file() -> None:
    entry = {"filename": "m.glb", "type": "output", "subfolder": "", "mediaType": "3d"}
    outputs = {"1": {"result": ["m.glb", None, "other", 5], "animated": ["m.glb"], "flag": True}, "2": "odd"}
    assert summarise_outputs(outputs) == (1, {**entry, "nodeId": "1"})
    assert normalise(outputs) == {
        "1": {"result": [entry, "other", 5], "animated": ["m.glb"], "flag": True},
        "2": "odd",
    }


@pytest.mark.parametrize("outputs", [None, [], {"1": None}, {"1": {"images": None}}])
def test_outputs_of_any_shape_do_not_break_the_list(outputs: Any) -> None:
    assert summarise_outputs(outputs) == (0, None)
    assert normalise(outputs) == outputs


def test_a_number_that_is_no_integer_is_kept() -> None:
    job = replace(job_of(recorded("succeeded")), number=1.5)
    assert json.loads(jobs_api.unfinished_item(job, is_running=False))["priority"] == 1.5
