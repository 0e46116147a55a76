"""The picture of a run."""

from typing import Any
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from planning_support import FirstComeFirstServed, fleet, job

from comfyproxy.planning.drawing import clock, draw
from comfyproxy.planning.engine import Run, simulate
from comfyproxy.planning.fleet import FleetBackend
from comfyproxy.planning.trace import TraceJob

SVG = "{http://www.w3.org/2000/svg}"


def run_of(*jobs: TraceJob, **load_s: float) -> Run:
    return simulate(jobs, fleet(FleetBackend(name="a"), FleetBackend(name="b"), **load_s), FirstComeFirstServed())


def told(svg: str) -> list[str]:
    """Return what the bars say."""
    return [found.text or "" for found in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def test_loads_and_jobs_are_told_apart_and_jobs_of_one_model_are_one_bar() -> None:
    run = run_of(job(0, 100, "x"), job(0, 100, "y"), job(0, 100, "x"), job(0, 100, "y"), x=60, y=0)
    assert told(draw({"fifo": run})) == [
        "loads x, 0:00 to 1:00",
        "x, 2 jobs, 1:00 to 4:20",
        "y, 2 jobs, 0:00 to 3:20",
    ]


def test_there_is_a_panel_for_each_run_and_an_entry_for_each_model() -> None:
    run = run_of(job(0, 10, "x"), job(0, 10), x=5)
    texts = [found.text for found in ElementTree.fromstring(draw({"one": run, "two": run})).iter(f"{SVG}text")]
    assert texts.count("a") == texts.count("b") == 2
    assert [text for text in texts if text in ("one", "two", "x", "no model")] == ["one", "two", "no model", "x"]


@given(st.text(min_size=1), st.text())
def test_whatever_things_are_called_it_is_xml(model: str, title: str) -> None:
    svg = draw({title: run_of(job(0, 10, model))})
    ElementTree.fromstring(svg.encode())
    assert "<script" not in draw({"<script>": run_of(job(0, 10, '"><script>'))})


def test_a_picture_of_very_many_jobs_has_no_more_bars_than_can_be_seen() -> None:
    jobs: list[Any] = [job(index * 5.0, 4, f"m{index % 7}") for index in range(20_000)]
    run = run_of(*jobs, **{f"m{index}": 1.0 for index in range(7)})
    assert len(told(draw({"fifo": run}))) < 2 * 2 * 1400


def test_times_are_told_as_people_say_them() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 600, 3900)] == ["0:00", "1:00", "10:00", "1:05:00"]
