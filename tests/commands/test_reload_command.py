"""`comfyproxy serve` reads its configuration again: at SIGHUP, and when it is told to over HTTP."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from commands_support import COMMAND, COMMAND_WITHOUT_UVLOOP, DEAD, Running, environment, running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

FILE = "nodes: {{static_nodes: [{{node_id: a, url: '{url}', max_concurrent: {most}}}]}}\nserver: {{port: {port}}}\n"
# Makes the terminal that it was given its own, as a shell's child has it, and takes hangups as it is told to: whoever
# runs the tests may have been started by nohup.
IN_TERMINAL = (
    "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1])); "
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[2], sys.argv[2:])"
)


def write(folder: Path, *, most: int = 2, port: int = 0, more: str = "") -> None:
    (folder / "my.yaml").write_text(FILE.format(url=DEAD, most=most, port=port) + more)


async def call(method: str, url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
        return answer.status, await answer.json()


async def most(url: str) -> int:
    _, body = await call("GET", f"{url}/comfyproxy/v1/backends/a")
    return int(body["max_concurrent"])


async def logged(proxy: Running, words: str) -> str:
    """Wait for a line of the log."""
    assert proxy.process.stderr is not None
    async with asyncio.timeout(20):
        while words not in (line := (await proxy.process.stderr.readline()).decode()):
            assert line, "it has ended"
    return line


@pytest.mark.parametrize("command", [COMMAND, COMMAND_WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
async def test_a_hangup_lets_it_read_its_file_again(command: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, most=2)
    async with running("serve", "--config", "my.yaml", cwd=tmp_path, command=command) as proxy:
        url = await proxy.url()
        assert await most(url) == 2
        write(tmp_path, most=7, port=99)
        proxy.process.send_signal(signal.SIGHUP)
        await logged(proxy, "the configuration was read again: nodes.static_nodes[a].max_concurrent")
        assert "server.port" in await logged(proxy, "these changes need a restart")
        assert await most(url) == 7
        assert (await proxy.stopped())[0] == 0


async def test_a_bad_file_changes_nothing_and_the_log_says_why(tmp_path: Path) -> None:
    write(tmp_path, most=2)
    async with running("serve", "--config", "my.yaml", cwd=tmp_path) as proxy:
        url = await proxy.url()
        write(tmp_path, most=7, more="loging: {}\n")
        proxy.process.send_signal(signal.SIGHUP)
        line = await logged(proxy, "the configuration stays as it was")
        assert line.rstrip().endswith("my.yaml:3: loging: unknown key; did you mean logging?")
        assert await most(url) == 2
        status, body = await call("POST", f"{url}/comfyproxy/v1/reload")
        assert (status, body["error"]["type"]) == (400, "bad_configuration")
        assert body["error"]["extra_info"]["problems"] == [
            {"where": "my.yaml", "path": "loging", "line": 3, "message": "unknown key; did you mean logging?"}
        ]
        (tmp_path / "my.yaml").write_text("")
        status, body = await call("POST", f"{url}/comfyproxy/v1/reload")
        assert (status, body["error"]["details"]) == (
            400,
            "my.yaml: nodes.static_nodes: there would be no backend left",
        )
        write(tmp_path, most=7)
        assert await call("POST", f"{url}/comfyproxy/v1/reload") == (
            200,
            {"applied": ["nodes.static_nodes[a].max_concurrent"], "needs_restart": []},
        )
        assert await most(url) == 7


async def test_the_command_line_and_the_environment_still_come_before_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    arguments = ("serve", "--config", "my.yaml", "--log-level", "warning")
    async with running(*arguments, cwd=tmp_path, variables={"COMFYPROXY_QUEUE_MAX_JOBS": "9"}) as proxy:
        url = await proxy.url()
        write(tmp_path, more="logging: {level: debug}\nqueue: {max_jobs: 5, wait_for_backend: 1}\n")
        assert await call("POST", f"{url}/comfyproxy/v1/reload") == (
            200,
            {"applied": ["queue.wait_for_backend"], "needs_restart": []},
        )


@asynccontextmanager
async def in_terminal(folder: Path, *, hangups: str = "SIG_DFL") -> AsyncIterator[tuple[Running, int]]:
    """Run the proxy in a terminal of its own; yield it with our end of the terminal."""
    import pty  # there is none on Windows

    ours, its = pty.openpty()
    write(folder)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", IN_TERMINAL, hangups, sys.executable, *COMMAND, "serve", "--config", "my.yaml"),
        cwd=folder,
        env=environment(),
        stdin=its,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
    )
    os.close(its)
    try:
        yield Running(process), ours
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_terminal_that_is_closed_stops_it(tmp_path: Path) -> None:
    async with in_terminal(tmp_path) as (proxy, terminal):
        url = await proxy.url()
        write(tmp_path, most=7)
        proxy.process.send_signal(signal.SIGHUP)
        await logged(proxy, "the configuration was read again")
        assert await most(url) == 7
        os.close(terminal)
        code, _, errors = await proxy.ended()
        assert code == 0
        assert "stopping: no new prompts are taken" in errors


async def test_one_that_was_started_by_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    async with in_terminal(tmp_path, hangups="SIG_IGN") as (proxy, terminal):
        url = await proxy.url()
        os.close(terminal)
        assert await most(url) == 2
        write(tmp_path, most=7)
        proxy.process.send_signal(signal.SIGHUP)
        await logged(proxy, "nodes.static_nodes[a].max_concurrent")
        assert await most(url) == 7
