"""What keeps `comfyproxy serve` from running, and what it says then."""

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands_support import DEAD, invoke, running, taken_port

from comfyproxy.cli import main
from comfyproxy.service.fleet import Backend
from comfyproxy.service.prober import Prober


@pytest.fixture
def quiet_root() -> Iterator[None]:
    """Give the log back what the command, run in this process, takes from it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_without_a_backend_it_says_so_and_how_to_name_one(tmp_path: Path) -> None:
    done = invoke("serve", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("comfyproxy serve: there is no backend to send prompts to; name one\n")
    assert "comfyproxy serve --backend http://" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_everything_that_is_wrong_with_the_settings_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("server:\n  prot: 1\n  host: 1\n")
    arguments = ("serve", "--config", "bad.yaml", "--backend", "ftp://x", "--log-level", "loud")
    done = invoke(*arguments, cwd=tmp_path, COMFYPROXY_SERVER_PROT="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [
        "bad.yaml:2",
        "bad.yaml:3",
        "COMFYPROXY_SERVER_PROT",
        "command line",
        "command line",
    ]


def test_a_taken_port_is_told_and_the_option_named(tmp_path: Path) -> None:
    with taken_port() as port:
        done = invoke("serve", "--backend", DEAD, "--port", str(port), "--log-level", "error", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        f"comfyproxy serve: port {port} on 127.0.0.1 is taken; choose another with --port or server.port\n",
    )


def test_an_address_of_another_machine_is_told(tmp_path: Path) -> None:
    done = invoke("serve", "--backend", DEAD, "--host", "192.0.2.1", "--log-level", "error", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("comfyproxy serve: cannot listen on 192.0.2.1:8188: ")
    assert done.stderr.count("\n") == 1


def test_a_data_directory_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = invoke("serve", "--backend", DEAD, "--port", "0", "--data-dir", "file", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"comfyproxy serve: the store {tmp_path / 'file'}")
    assert "--data-dir" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_store_that_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with sqlite3.connect(tmp_path / "data" / "comfyproxy.sqlite3") as other:
        other.execute("CREATE TABLE recipes (title TEXT)")
    other.close()
    done = invoke("serve", "--backend", DEAD, "--port", "0", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "comfyproxy.sqlite3" in done.stderr


async def test_a_second_proxy_on_the_same_data_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    arguments = ("serve", "--backend", DEAD, "--port", "0", "--data-dir", "data")
    async with running(*arguments, cwd=tmp_path) as first:
        await first.url()
        async with running(*arguments, cwd=tmp_path) as second:
            code, output, errors = await second.ended()
        assert (code, output) == (1, "")
        assert f"is in use by another process (pid {first.process.pid})" in errors
        assert "--data-dir" in errors
        assert errors.count("\n") == 1
        assert (await first.stopped())[0] == 0


async def test_errors_at_the_start_are_json_too_where_the_log_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = invoke("serve", "--backend", DEAD, "--data-dir", "file", cwd=tmp_path, COMFYPROXY_LOGGING_FORMAT="json")
    assert done.returncode == 1
    assert done.stderr.startswith('{"time": ')
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("quiet_root")
def test_a_background_task_that_dies_ends_the_process_with_a_traceback_and_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(self: Prober, backend: Backend) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("a bug of the prober")

    monkeypatch.setattr(Prober, "watch", die)
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--backend", DEAD, "--port", "0"]) == 1
    errors = capsys.readouterr().err
    assert "stopped by a bug" in errors
    assert "RuntimeError: a bug of the prober" in errors


@pytest.mark.usefixtures("quiet_root")
def test_an_error_of_the_system_that_comes_later_is_not_laid_to_the_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = asyncio.Event()

    async def die(self: Prober, backend: Backend) -> None:
        await listening.wait()
        raise OSError(24, "Too many open files")

    def heard(line: str, **_: object) -> None:
        listening.set()

    monkeypatch.setattr(Prober, "watch", die)
    monkeypatch.setattr("comfyproxy.commands.process.print", heard, raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--backend", DEAD, "--port", "0"]) == 1
    errors = capsys.readouterr().err
    assert "cannot listen" not in errors
    assert "Too many open files" in errors
