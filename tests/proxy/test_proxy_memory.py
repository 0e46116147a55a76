"""Prompts that run out of memory, and get one more run on a backend with more of it where that is wanted."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from proxying import running_proxy
from simulator_support import sampling

from comfyproxy.settings import LoadBalancing
from comfyproxy.simulator import SimulatedBackend

WANTED = LoadBalancing(retry_on=("out_of_memory",))


@pytest.mark.parametrize(
    ("balancing", "sizes", "ran_on"),
    [
        (WANTED, {"small": 8, "large": 24}, ["small", "large"]),
        (WANTED, {"small": 8, "equal": 8}, ["small"]),
        (LoadBalancing(), {"small": 8, "large": 24}, ["small"]),
    ],
)
async def test_a_prompt_that_ran_out_of_memory_gets_a_larger_backend_if_that_is_wanted_and_there_is_one(
    tmp_path: Path, balancing: LoadBalancing, sizes: dict[str, float], ran_on: list[str]
) -> None:
    async with AsyncExitStack() as stack:
        backends = {
            name: await stack.enter_async_context(SimulatedBackend(name=name, speed=20.0, vram_gb=size))
            for name, size in sizes.items()
        }
        urls = {name: backend.url for name, backend in backends.items()}
        proxy = await stack.enter_async_context(running_proxy(urls, tmp_path, load_balancing=balancing))
        for name, backend in backends.items():
            backend.faults.out_of_memory = name != "large"
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(sampling(), "me")
        await socket.until_done(prompt_id)
        assert [name for name, backend in backends.items() if prompt_id in backend.executed] == ran_on
        failed = socket.data("execution_error")
        assert len(failed) == (0 if "large" in ran_on else 1)
        entry = (await proxy.get(f"/history/{prompt_id}"))[prompt_id]
        assert entry["status"]["completed"] is ("large" in ran_on)


async def test_it_gets_one_more_run_and_not_two(tmp_path: Path) -> None:
    async with (
        SimulatedBackend(name="small", speed=20.0, vram_gb=8) as small,
        SimulatedBackend(name="large", speed=20.0, vram_gb=24) as large,
        SimulatedBackend(name="huge", speed=20.0, vram_gb=80) as huge,
    ):
        urls = {"small": small.url, "large": large.url, "huge": huge.url}
        for backend in (small, large, huge):
            backend.faults.out_of_memory = True
        async with running_proxy(urls, tmp_path, load_balancing=WANTED) as proxy:
            socket = await proxy.socket("me")
            prompt_id = await proxy.submit(sampling(), "me")
            await socket.until_done(prompt_id)
            assert len(socket.data("execution_error")) == 1
            assert len(small.executed) == 1
            assert len(large.executed) + len(huge.executed) == 1
