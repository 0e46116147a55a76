"""Copies of outputs: shown while their backend is gone, bounded by size and age."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from proxying import EAGER, Fleet, Proxy, running_proxy
from simulator_support import txt2img

from comfyproxy.settings import OutputSettings

KEEP = OutputSettings(keep=True)


def _query(image: dict[str, Any]) -> str:
    return "&".join(f"{key}={value}" for key, value in image.items())


async def _picture(proxy: Proxy, seed: int = 1) -> tuple[str, bytes]:
    """Make a picture; return the query that shows it, and its bytes."""
    entry = await proxy.ended(await proxy.submit(txt2img(seed=seed), "me"))
    (image,) = entry["outputs"]["9"]["images"]
    return _query(image), await proxy.get(f"/view?{_query(image)}")


async def _kept(directory: Path, count: int) -> list[Path]:
    async with asyncio.timeout(10):
        while len(found := [path for path in directory.iterdir() if path.suffix == ".png"]) != count:
            await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
async def test_an_output_is_shown_while_its_backend_is_gone(tmp_path: Path, names: tuple[str, ...]) -> None:
    async with (
        Fleet(*names, checkpoints=("a.safetensors",)) as fleet,
        running_proxy(fleet, tmp_path, health_check=EAGER, outputs=KEEP) as proxy,
    ):
        query, picture = await _picture(proxy)
        await _kept(tmp_path / "outputs", 1)
        (name,) = (name for name, ran in fleet.executed.items() if ran)
        await fleet[name].kill()
        await proxy.state_is(name, "unhealthy")
        async with proxy.session.get(f"{proxy.url}/view?{query}") as answer:
            assert (answer.status, answer.headers["X-Comfyproxy-Kept"]) == (200, name)
            assert answer.content_type == "image/png"
            assert await answer.read() == picture
        async with proxy.session.get(f"{proxy.url}/view?{query}", headers={"Range": "bytes=1-3"}) as answer:
            assert (answer.status, await answer.read()) == (206, b"PNG")


async def test_a_copy_outlives_a_restart_of_the_proxy(tmp_path: Path) -> None:
    async with Fleet("a", "b", checkpoints=("a.safetensors",)) as fleet:
        async with running_proxy(fleet, tmp_path, outputs=KEEP) as proxy:
            query, picture = await _picture(proxy)
        (name,) = (name for name, ran in fleet.executed.items() if ran)
        await fleet[name].kill()
        async with running_proxy(fleet, tmp_path, outputs=KEEP, wait_ready=False) as proxy:
            assert await proxy.get(f"/view?{query}") == picture


async def test_without_keeping_an_output_is_gone_with_its_backend(tmp_path: Path) -> None:
    async with (
        Fleet("a", "b", checkpoints=("a.safetensors",)) as fleet,
        running_proxy(fleet, tmp_path, health_check=EAGER) as proxy,
    ):
        query, _ = await _picture(proxy)
        (name,) = (name for name, ran in fleet.executed.items() if ran)
        await fleet[name].kill()
        await proxy.state_is(name, "unhealthy")
        assert (await proxy.call("GET", f"/view?{query}"))[0] == 404
        assert not (tmp_path / "outputs").exists()


async def test_the_oldest_copies_go_when_there_are_too_many_bytes(tmp_path: Path) -> None:
    async with Fleet("a", checkpoints=("a.safetensors",)) as fleet:
        async with running_proxy(fleet, tmp_path, outputs=KEEP) as proxy:
            _, picture = await _picture(proxy)
            await _kept(tmp_path / "outputs", 1)
        small = OutputSettings(keep=True, keep_max_gb=2.5 * len(picture) / 1024**3)
        async with running_proxy(fleet, tmp_path, outputs=small) as proxy:
            for seed in range(2, 6):
                await _picture(proxy, seed)
        assert len(await _kept(tmp_path / "outputs", 2)) == 2


async def test_what_is_too_old_or_half_written_is_removed_at_the_start(tmp_path: Path) -> None:
    async with Fleet("a", checkpoints=("a.safetensors",)) as fleet:
        async with running_proxy(fleet, tmp_path, outputs=KEEP) as proxy:
            await _picture(proxy)
            (old,) = await _kept(tmp_path / "outputs", 1)
        long_ago = old.stat().st_mtime - 31 * 86_400
        os.utime(old, (long_ago, long_ago))
        (tmp_path / "outputs" / "x.partial").touch()
        async with running_proxy(fleet, tmp_path, outputs=KEEP):
            assert list((tmp_path / "outputs").iterdir()) == []
