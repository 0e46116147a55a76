"""`comfyproxy plan`."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from planning_records import store_with

from comfyproxy.app import DATABASE
from comfyproxy.cli import main
from comfyproxy.planning.engine import simulate
from comfyproxy.planning.fleet import read_fleet
from comfyproxy.planning.strategies import NAMES, make_scheduler
from comfyproxy.planning.trace import read_trace
from comfyproxy.planning.workloads import make_workload

FLEET = """
backends:
  - {name: big, speed: 2}
  - {name: small}
models:
  x: {load_s: 5}
"""
TRACE = "".join(
    f'{{"at_s": {index // 4}, "client": "c{index % 2}", "model": "{"xy"[index % 2]}", "run_s": 2}}\n'
    for index in range(40)
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with fleet.yaml and trace.jsonl, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "trace.jsonl").write_text(TRACE)
    return tmp_path


SMALL = ("plan", "--fleet", "fleet.yaml", "--trace", "trace.jsonl")


def test_without_arguments_all_strategies_are_compared_on_a_made_up_workload(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan"]) == 0
    output, errors = capsys.readouterr()
    head, _, columns, *rows = output.splitlines()
    assert "jobs of the workload mixed-many (seed 1) on 8 backends of the fleet unequal" in head
    assert columns.split()[0] == "makespan"
    assert [row.split()[0] for row in rows[: len(NAMES)]] == list(NAMES)
    assert rows[len(NAMES)].startswith("no schedule ")
    assert errors == ""


@pytest.mark.usefixtures("files")
def test_files_are_compared_and_the_same_arguments_give_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == main([*SMALL, "--json"]) == 0
    output = capsys.readouterr().out
    assert output[: len(output) // 2] == output[len(output) // 2 :]
    found = json.loads(output[: len(output) // 2])
    assert (found["jobs"], found["trace"], found["fleet"]) == (40, "the trace trace.jsonl", "the fleet fleet.yaml")
    assert list(found["strategies"]) == list(NAMES)
    for figures in found["strategies"].values():
        assert figures["makespan_s"] >= found["makespan_bound_s"]
        assert figures["mean_completion_s"] >= found["completion_bound_s"]


@pytest.mark.usefixtures("files")
def test_strategies_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--strategy", "weighted", "--strategy", "least_loaded", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["strategies"]) == ["weighted", "least_loaded"]


def test_the_picture_has_a_panel_for_each_strategy(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--svg", "plan.svg", "--strategy", "weighted", "--strategy", "round_robin"]) == 0
    texts = [found.text for found in ElementTree.parse(files / "plan.svg").getroot().iter() if found.text]
    assert {"weighted", "round_robin", "big", "small"} <= set(texts)
    assert capsys.readouterr().err == "wrote the picture to plan.svg\n"


def test_a_made_up_workload_can_be_written_and_planned_again(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["plan", "--workload", "bursts-few-equal", "--seed", "7", "--strategy", "least_loaded", "--json"]
    assert main([*made, "--export-trace", "made.jsonl", "--export-fleet", "made.yaml"]) == 0
    first = json.loads(capsys.readouterr().out)
    again = ["plan", "--trace", "made.jsonl", "--fleet", "made.yaml", "--strategy", "least_loaded", "--json"]
    assert main(again) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["jobs"] == first["jobs"]
    assert second["makespan_bound_s"] == pytest.approx(first["makespan_bound_s"], rel=1e-3)
    assert yaml.safe_load((files / "made.yaml").read_text())["models"]["model-01"]["load_s"] > 0


async def test_a_store_is_planned_with_while_its_proxy_runs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = read_fleet(files / "fleet.yaml")
    made = make_workload("bursts-few", seed=1, capacity=1.0)
    run = simulate(made.jobs, fleet.knowing(made.models), make_scheduler("least_loaded"))
    store = await store_with(files / "data" / DATABASE, run)
    export = ("--export-trace", "out.jsonl", "--export-fleet", "out.yaml")
    assert main(["plan", "--from-store", "data", *export, "--strategy", "least_loaded"]) == 0
    await store.close()
    output, errors = capsys.readouterr()
    assert f"{len(made.jobs)} jobs of the store data on 2 backends of the store" in output
    assert errors.splitlines() == [f"wrote {len(made.jobs)} jobs to out.jsonl", "wrote the fleet to out.yaml"]
    assert {job.client.partition("-")[0] for job in read_trace(files / "out.jsonl")} == {"client"}
    found = read_fleet(files / "out.yaml")
    assert set(found.models) == {f"{name}.safetensors" for name in made.models}
    big, small = found.backends
    assert big.speed / small.speed == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fleet", "none.yaml"), "none.yaml: No such file or directory"),
        (("--trace", "none.jsonl"), "none.jsonl: No such file or directory"),
        (("--from-store", "none"), "there is no store at "),
        (("--svg", "none/plan.svg", *SMALL[1:]), "none/plan.svg: No such file or directory"),
        (
            ("--workload", "batch-few-equal", "--fleet", "fleet.yaml"),
            "the workload batch-few-equal is for the fleet equal",
        ),
    ],
)
@pytest.mark.usefixtures("files")
def test_what_cannot_be_used_is_told_in_a_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"comfyproxy plan: {message}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workload", "batch-meny"), "there is no workload batch-meny; did you mean batch-many?"),
        (("--strategy", "best"), "invalid choice: 'best'"),
        (("--workload", "batch-few", "--trace", "t.jsonl"), "not allowed with argument"),
    ],
)
def test_a_command_line_that_means_nothing_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
