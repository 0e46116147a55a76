"""A thousand prompts of fifty clients over four equal backends."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from load_support import all_is_told, crowd
from proxying import Fleet, running_proxy

from comfyproxy.settings import LoadBalancing

NAMES = ("a", "b", "c", "d")
CLIENTS, PROMPTS_EACH = 50, 20
EVEN = CLIENTS * PROMPTS_EACH // len(NAMES)
# Backends are equal by the time that a prompt takes. It must outweigh what the whole of them cost one event loop, else
# the loop decides who is the faster.
SECONDS, SPEED = 1.2, 20.0
HANGS_AFTER_S = 300


# Affinity may leave a backend idle in the beginning, as long as it takes the loading of a model for dear.
@pytest.mark.parametrize(("strategy", "tolerance"), [("least_loaded", 0.05), ("model_affinity", 0.2)])
async def test_a_thousand_prompts_of_fifty_clients_come_out_right_and_evenly_spread(
    tmp_path: Path, strategy: str, tolerance: float
) -> None:
    async with (
        asyncio.timeout(HANGS_AFTER_S),
        Fleet(*NAMES, speed=SPEED) as fleet,
        running_proxy(fleet, tmp_path, load_balancing=LoadBalancing(strategy=strategy)) as proxy,
        crowd(proxy, CLIENTS, seconds=SECONDS) as clients,
    ):
        async with asyncio.TaskGroup() as group:
            for client in clients:
                colors = [(client.number * PROMPTS_EACH + turn) * 16_411 for turn in range(PROMPTS_EACH)]
                # A script that queues all it has, or a person who looks at each picture first.
                work = client.all_at_once(colors) if client.number % 4 < 2 else client.one_by_one(colors)
                group.create_task(work, name=client.client_id)
        everything = await proxy.get("/history")
        assert await proxy.queue() == ([], [])
        await all_is_told(clients, fleet)
        for client in clients:
            client.check_events()
            for prompt_id, file in client.files.items():
                assert client.checked(prompt_id, everything.pop(prompt_id)) == file
    assert everything == {}
    files = {prompt_id: file for client in clients for prompt_id, file in client.files.items()}
    saved_by = {prompt_id: (file["subfolder"], file["filename"]) for prompt_id, file in files.items()}
    assert len(set(saved_by.values())) == CLIENTS * PROMPTS_EACH
    names = Counter(filename for _, filename in saved_by.values())
    assert names["same_00001_.png"] == len(NAMES)  # so they did collide
    assert {prompt_id: name for name, ran in fleet.executed.items() for prompt_id in ran} == {
        prompt_id: subfolder for prompt_id, (subfolder, _) in saved_by.items()
    }
    shares = {name: len(ran) for name, ran in fleet.executed.items()}
    assert sum(shares.values()) == CLIENTS * PROMPTS_EACH
    assert all(abs(share - EVEN) <= EVEN * tolerance for share in shares.values()), shares
