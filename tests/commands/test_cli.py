"""The command line: what it takes, what it explains, and what it says to what it does not take."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands_support import invoke

from comfyproxy import __version__
from comfyproxy.cli import main
from comfyproxy.settings.loading import variables

COMMANDS = ("serve", "check", "simulate", "demo", "plan")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the last line of what a meaningless command line is answered with."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    return errors.splitlines()[-1]


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 0
    return capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(capsys, "--version") == f"comfyproxy {__version__}\n"


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = invoke("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"comfyproxy {__version__}\n", "")


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(capsys, "--help")
    assert [name for name in COMMANDS if f"\n    {name} " not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_help_of_every_command_has_an_example(
    command: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = explained(capsys, command, "--help")
    assert f"\n  comfyproxy {command} " in text


def test_the_variables_that_the_help_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    words = explained(capsys, "serve", "--help").replace("=", " ").split()
    named = {word for word in words if word.startswith("COMFYPROXY_")}
    assert named
    assert named <= {"COMFYPROXY_CONFIG", "COMFYPROXY_BACKENDS", *variables()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "comfyproxy: error: the following arguments are required: COMMAND"),
        (("serve", "--prot", "9000"), "comfyproxy serve: error: there is no option --prot; did you mean --port?"),
        (("serve", "--data_dir=x"), "comfyproxy serve: error: there is no option --data_dir; did you mean --data-dir?"),
        (("serve", "--xyz"), "comfyproxy serve: error: there is no option --xyz"),
        (
            ("serve", "--back", "http://a"),
            "comfyproxy serve: error: there is no option --back; did you mean --backend?",
        ),
        (("check", "a.yaml", "b.yaml"), "comfyproxy check: error: there is no place for b.yaml"),
        (("check",), "comfyproxy check: error: the following arguments are required: FILE"),
        (
            ("demo", "--port", "70000"),
            "comfyproxy demo: error: argument --port: '70000' is no port: give a number from 0 to 65535",
        ),
        (
            ("serve", "--port", "x"),
            "comfyproxy serve: error: argument --port: 'x' is no port: give a number from 0 to 65535",
        ),
    ],
)
def test_a_command_line_that_means_nothing_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *arguments) == message


def test_an_unknown_command_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "serv")
    assert [name for name in COMMANDS if name not in message] == []


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_goes_away_is_no_error_to_complain_of(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    command = f"{sys.executable} -m comfyproxy check a.yaml 2>errors | true"
    subprocess.run(("sh", "-c", command), cwd=tmp_path, check=True, timeout=30)
    assert "Traceback" not in (tmp_path / "errors").read_text()
