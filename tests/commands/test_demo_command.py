"""`comfyproxy demo`."""

import signal
import sys
from pathlib import Path

import aiohttp
import pytest
from commands_support import invoke, running, taken_port

from comfyproxy.commands import demo

NOTICE = "There is no real ComfyUI here: the servers are simulated, and their pictures are patterns."


def left_behind(folder: Path) -> list[str]:
    """Return what the demonstration has not cleared away."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_it_sends_a_prompt_through_and_tells_where_to_look(tmp_path: Path) -> None:
    async with running("demo", "--port", "0", cwd=tmp_path, variables={"TMPDIR": str(tmp_path)}) as shown:
        assert await shown.line() == NOTICE
        servers = [(await shown.line()).split(":")[0].strip() for _ in demo.NAMES]
        assert servers == list(demo.NAMES)
        url = await shown.url()
        while not (line := await shown.line()).startswith("prompt "):
            assert line.startswith("  sending one prompt"), await shown.ended()
        assert line.rpartition(" ")[2] in servers
        assert await shown.line() == ""
        places = {}
        while "  " in (line := (await shown.line()).strip()):
            what, where = line.split("   ")
            places[what] = where.strip()
        async with aiohttp.ClientSession() as session:
            for what in ("its picture", "its history", "the fleet", "the metrics"):
                assert places[what].startswith(url)
                async with session.get(places[what]) as answer:
                    assert answer.status == 200
                    if what == "its picture":
                        assert answer.content_type == "image/png"
        assert (await shown.line()).startswith(f"Point any ComfyUI client at {url}")
        code, _, errors = await shown.stopped(signal.SIGINT)
        assert (code, errors) == (0, "")
    assert left_behind(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_can_be_stopped_before_its_prompt_is_done(number: signal.Signals, tmp_path: Path) -> None:
    async with running("demo", "--port", "0", cwd=tmp_path, variables={"TMPDIR": str(tmp_path)}) as shown:
        await shown.url()
        assert (await shown.line()).startswith("  sending one prompt")
        assert await shown.stopped(number) == (0, "", "")
    assert left_behind(tmp_path) == []


def test_a_taken_port_is_told_in_one_line_and_nothing_stays_behind(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    with taken_port() as port:
        done = invoke("demo", "--port", str(port), cwd=tmp_path, TMPDIR=str(folder))
    assert (done.returncode, done.stderr) == (
        1,
        f"comfyproxy demo: port {port} on 127.0.0.1 is taken; choose another with --port or server.port\n",
    )
    assert left_behind(folder) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_its_data_can_be_kept(tmp_path: Path) -> None:
    async with running("demo", "--port", "0", "--data-dir", "kept", cwd=tmp_path) as shown:
        await shown.url()
        await shown.stopped()
    assert (tmp_path / "kept" / "comfyproxy.sqlite3").exists()
