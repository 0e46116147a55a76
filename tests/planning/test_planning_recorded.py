"""Traces and fleets out of what a proxy has recorded."""

import json
from dataclasses import replace

import pytest
from planning_records import recorded
from planning_support import FirstComeFirstServed, fleet, job

from comfyproxy.core.jobs import Job, JobState
from comfyproxy.planning.engine import Run, simulate
from comfyproxy.planning.fleet import FleetBackend
from comfyproxy.planning.recorded import from_records
from comfyproxy.planning.trace import BadPlan, TraceJob
from comfyproxy.planning.workloads import make_workload


def records_of(run: Run) -> list[tuple[Job, bytes]]:
    return [(job, entry) for job, _, entry in recorded(run)]


@pytest.fixture(scope="module")
def run() -> Run:
    made = make_workload("interactive-few", seed=1, capacity=3.0)
    backends = FleetBackend(name="fast", speed=2.0), FleetBackend(name="middle"), FleetBackend(name="slow", speed=0.5)
    return simulate(made.jobs, fleet(*backends).knowing(made.models), FirstComeFirstServed())


def test_what_was_simulated_is_found_again(run: Run) -> None:
    found = from_records(records_of(run))
    assert len(found.jobs) == len(run.records)
    assert found.left_out == 0
    for again, record in zip(found.jobs, run.records, strict=True):
        assert again.at_s == pytest.approx(record.job.at_s - run.records[0].job.at_s, abs=1e-3)
        assert again.model == f"{record.job.model}.safetensors"
    work = sum(job.run_s for job in found.jobs), sum(record.job.run_s for record in run.records)
    assert work[0] == pytest.approx(work[1], rel=0.1)
    assert len({(job.kind, job.model) for job in found.jobs}) == len({(r.job.kind, r.job.model) for r in run.records})


def test_speeds_and_loads_are_estimated(run: Run) -> None:
    found = from_records(records_of(run)).fleet
    assert {backend.name: backend.speed for backend in found.backends} == pytest.approx(
        {"fast": 2.0, "middle": 1.0, "slow": 0.5}, rel=0.1
    )
    expected = {f"{name}.safetensors": model.load_s for name, model in run.fleet.models.items()}
    assert {name: model.load_s for name, model in found.models.items()} == pytest.approx(expected, rel=0.15)


def test_clients_are_numbered_in_the_order_in_which_they_came(run: Run) -> None:
    names = list(dict.fromkeys(job.client for job in from_records(records_of(run)).jobs))
    assert names == [f"client-{number}" for number in range(1, len(names) + 1)]
    assert {job.client for job in from_records(records_of(run), keep_clients=True).jobs} == {
        record.job.client for record in run.records
    }


def short_run(*jobs: TraceJob) -> Run:
    return simulate(jobs, fleet(x=20.0), FirstComeFirstServed())


def test_jobs_for_the_front_are_found_by_their_number() -> None:
    run = short_run(job(0, 5, "x", kind="draft"), job(0, 5, "x", kind="draft", front=True))
    assert [found.front for found in from_records(records_of(run)).jobs] == [True, False]


def test_a_load_about_which_nothing_can_be_learned_is_a_part_of_what_was_seen() -> None:
    found = from_records(records_of(short_run(job(0, 4, "x", kind="draft"))))
    assert found.fleet.models["x.safetensors"].load_s == pytest.approx(12, rel=0.01)
    assert found.jobs[0].run_s == pytest.approx(12, rel=0.01)


def test_jobs_that_did_not_end_well_and_odd_entries_are_left_out_and_counted() -> None:
    (good, entry) = records_of(short_run(job(0, 4, "x", kind="draft")))[0]
    silent = replace(good, started_s=None, finished_s=None)
    odd = [
        (replace(good, state=JobState.FAILED), entry),
        (good, b"no json"),
        (good, b"{}"),
        (silent, b'{"prompt": [1, "p", {}, {}, []], "status": {}}'),
    ]
    found = from_records([(good, entry), *odd])
    assert (len(found.jobs), found.left_out) == (1, 4)


def test_the_proxys_own_times_do_where_the_entry_tells_none() -> None:
    (good, _) = records_of(short_run(job(0, 4, "x", kind="draft")))[0]
    found = from_records([(good, b'{"prompt": [1, "p", {}, {}, []], "status": {}}')])
    assert found.jobs[0].model == ""
    assert found.jobs[0].run_s == pytest.approx(24.5)


def test_without_any_job_there_is_nothing_to_plan_with() -> None:
    with pytest.raises(BadPlan, match="no job in the store has run to its end"):
        from_records([])


def test_all_that_a_graph_loads_is_one_model() -> None:
    (good, _) = records_of(short_run(job(0, 4, "x", kind="draft")))[0]
    graph = {
        "1": {"class_type": "UnetLoaderGGUF", "inputs": {"unet_name": "b.gguf"}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "sub\\a.safetensors"}},
        "3": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
    }
    entry = b'{"prompt": [1, "p", %s, {}, []], "status": {}}' % json.dumps(graph).encode()
    assert from_records([(good, entry)]).jobs[0].model == "b.gguf + sub/a.safetensors"
