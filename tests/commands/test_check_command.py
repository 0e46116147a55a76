"""`comfyproxy check FILE`."""

from pathlib import Path

import pytest
import yaml

from comfyproxy.cli import main

EXAMPLE = Path(__file__).parents[2] / "config" / "example.yaml"


def test_what_was_understood_is_printed_with_all_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(EXAMPLE)]) == 0
    output, errors = capsys.readouterr()
    understood = yaml.safe_load(output)
    assert [node["node_id"] for node in understood["nodes"]["static_nodes"]] == [
        "comfyui-worker-1",
        "comfyui-worker-2",
        "comfyui-worker-3",
    ]
    assert understood["server"]["port"] == 8188
    assert errors == ""


def test_what_it_prints_is_a_configuration_that_means_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", str(EXAMPLE)])
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["check", str(tmp_path / "again.yaml")]) == 0
    assert capsys.readouterr().out == printed


def test_all_errors_are_told_at_once_with_line_path_and_nearest_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "nodes:\n"
        "  static_nodes:\n"
        "    - node_id: a\n"
        "      host: gpu-a\n"
        "      max_concurent: 4\n"
        "server:\n"
        "  port: 99999\n"
        "loging: {}\n"
    )
    assert main(["check", str(file)]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines() == [
        f"{file}:5: nodes.static_nodes[0].max_concurent: unknown key; did you mean max_concurrent?",
        f"{file}:7: server.port: expected a whole number from 0 to 65535, found 99999",
        f"{file}:8: loging: unknown key; did you mean logging?",
    ]


def test_a_file_that_is_not_there_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'none.yaml'}: No such file or directory\n"


def test_a_file_without_nodes_is_fine_and_yet_worth_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.yaml").touch()
    assert main(["check", str(tmp_path / "empty.yaml")]) == 0
    assert "names no node; `serve` then needs --backend" in capsys.readouterr().err


def test_the_environment_has_no_say_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYPROXY_SERVER_PORT", "1")
    monkeypatch.setenv("COMFYPROXY_NONSENSE", "1")
    assert main(["check", str(EXAMPLE)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["server"]["port"] == 8188
