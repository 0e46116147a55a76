"""The command: its options, its errors, and how it ends."""

import argparse
import asyncio
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from comfyproxy.simulator.command import add_arguments, run


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_defaults_are_those_of_a_bare_server() -> None:
    args = parse()
    assert (args.host, args.port, args.version, args.checkpoints, args.speed) == ("127.0.0.1", 8188, "0.25.0", (), 1.0)


def test_checkpoints_are_separated_by_commas() -> None:
    assert parse("--checkpoints", "a.safetensors, b.safetensors,").checkpoints == ("a.safetensors", "b.safetensors")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "x"),
        ("--port", "70000"),
        ("--speed", "0"),
        ("--speed", "inf"),
        ("--load-seconds", "-1"),
        ("--load-seconds", "x"),
        ("--vram-models", "0"),
        ("--version", "1.0"),
    ],
)
def test_bad_options_are_errors_of_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(*arguments)
    assert exit_info.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "option"), [(("--port",), "--port"), (("--port", "0", "--control-port"), "--control-port")]
)
def test_a_taken_port_is_told_in_one_line(
    arguments: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(parse(*arguments, str(port))) == 1
    error = capsys.readouterr().err
    assert error == f"comfyproxy simulate: port {port} on 127.0.0.1 is taken; choose another with {option}\n"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(parse("--port", "0", "--base-dir", str(tmp_path / "file"))) == 1
    assert f"{tmp_path / 'file'}" in capsys.readouterr().err


def test_a_frontend_without_a_page_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parse("--frontend", str(tmp_path))) == 1
    assert "there is no index.html" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal_and_exits_with_0(number: signal.Signals) -> None:
    command = (sys.executable, "-m", "comfyproxy.simulator", "--port", "0", "--control-port", "0", "--speed", "10")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().split()[-1]
    control = (await process.stdout.readline()).decode().split()[-1]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/prompt") as response:
            assert response.status == 200
        async with session.get(control) as response:
            assert (await response.json())["frozen"] is False
        async with session.ws_connect(f"{url}/ws") as ws:
            await ws.receive_json()
            process.send_signal(number)
            assert (await ws.receive()).type is not aiohttp.WSMsgType.CLOSE
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
