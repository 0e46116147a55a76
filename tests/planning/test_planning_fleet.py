"""Fleets in files."""

from pathlib import Path

import pytest
from planning_support import job

from comfyproxy.core.needs import Needs
from comfyproxy.planning.fleet import BUILT_IN, Fleet, FleetBackend, FleetModel, read_fleet, write_fleet
from comfyproxy.planning.trace import BadPlan

FULL = FleetBackend(
    name="gpu-a", speed=2.0, load_speed=0.5, max_concurrent=1, weight=3.0, priority=2, models=("x", "y")
)


def read(tmp_path: Path, text: str) -> Fleet:
    (tmp_path / "f.yaml").write_text(text)
    return read_fleet(tmp_path / "f.yaml")


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    fleet = Fleet((FULL, FleetBackend(name="b")), {"x": FleetModel(load_s=12.5)})
    write_fleet(tmp_path / "f.yaml", fleet)
    assert read_fleet(tmp_path / "f.yaml") == fleet


def test_a_name_is_enough_for_a_backend(tmp_path: Path) -> None:
    assert read(tmp_path, "backends: [{name: a}]\nmodels:") == Fleet((FleetBackend(name="a"),))


def test_everything_that_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadPlan) as caught:
        read(
            tmp_path,
            "backends:\n"
            "  - {name: a, sped: 2}\n"
            "  - {name: a/b, speed: 0}\n"
            "  - {speed: 1}\n"
            "  - {name: c, models: x}\n"
            "  - {name: d, models: [x, 7]}\n"
            "  - {name: e}\n"
            "  - {name: e}\n"
            "models:\n"
            "  x: 14\n"
            "  y: {load_s: -1}\n"
            "model: {}\n",
        )
    where = str(tmp_path / "f.yaml")
    assert [line.removeprefix(f"{where}:") for line in str(caught.value).splitlines()] == [
        "2: backends[0].sped: unknown key; did you mean speed?",
        '3: backends[1].name: expected a name that can be a folder, found "a/b": / is not allowed',
        "3: backends[1].speed: expected a number above 0, found 0",
        "4: backends[2]: name is missing",
        '5: backends[3].models: expected a list; begin each entry with "- "',
        '6: backends[4].models[1]: expected a text, found 7; write "7", with quotes',
        '8: backends[6].name: the name "e" is taken by another backend',
        "10: models.x: expected a mapping with load_s",
        "11: models.y.load_s: expected a number of seconds from 0 up, found -1",
        "12: model: unknown key; did you mean models?",
    ]


@pytest.mark.parametrize("text", ["", "models: {x: {load_s: 1}}", "backends: []"])
def test_a_fleet_without_backends_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadPlan, match="there is no backend in it"):
        read(tmp_path, text)


def test_a_job_that_no_backend_can_run_is_told_before_anything_is_simulated() -> None:
    with pytest.raises(BadPlan, match="the trace has jobs for z, which is under `models` of no backend"):
        Fleet((FULL,)).check([job(0, 1, "x"), job(0, 1), job(0, 1, "z")])


def test_the_scheduler_is_told_what_is_on_the_disk_and_not_how_fast_it_is() -> None:
    spec = FULL.spec()
    assert (spec.backend, spec.max_concurrent, spec.weight, spec.priority) == ("gpu-a", 1, 3.0, 2)
    assert spec.can(Needs(models=frozenset({"x"})))
    assert not spec.can(Needs(models=frozenset({"x", "z"})))
    assert FleetBackend(name="b").spec().can(Needs(models=frozenset({"z"})))


def test_on_a_slowed_fleet_everything_takes_so_many_times_as_long() -> None:
    fleet = Fleet((FULL,), {"x": FleetModel(load_s=10)})
    slow = fleet.slowed(4)
    assert slow.capacity == fleet.capacity / 4
    assert slow.load_s("x", slow.backends[0]) == 4 * fleet.load_s("x", FULL) == 80


def test_what_a_fleet_says_of_a_model_comes_before_what_the_workload_says() -> None:
    fleet = Fleet((FULL,), {"x": FleetModel(load_s=1)}).knowing({"x": FleetModel(load_s=9), "y": FleetModel(load_s=9)})
    assert [fleet.models[name].load_s for name in "xy"] == [1, 9]


def test_the_built_in_fleets_have_eight_backends() -> None:
    assert {name: len(fleet.backends) for name, fleet in BUILT_IN.items()} == {"equal": 8, "unequal": 8}
