"""A running proxy is given another configuration."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from proxying import EAGER, Fleet, Proxy, running_proxy
from simulator_support import endless, sampling, text

from comfyproxy.settings import (
    CatalogSettings,
    HealthCheck,
    LoggingSettings,
    NodeSettings,
    QueueSettings,
    SchedulingSettings,
    ServerSettings,
    Settings,
)


def with_nodes(settings: Settings, *nodes: NodeSettings, **changes: Any) -> Settings:
    """Return the settings with other nodes; `changes` are those of all of them."""
    changed = tuple(replace(node, **changes) for node in nodes)
    return replace(settings, nodes=replace(settings.nodes, static_nodes=changed))


def node(fleet: Fleet, name: str, *, of: str | None = None) -> NodeSettings:
    """Return the settings of a server; `of`: under another's name."""
    return NodeSettings(node_id=name, url=fleet[of or name].url)


async def running(proxy: Proxy, count: int) -> list[str]:
    async with asyncio.timeout(10):
        while len(ids := (await proxy.queue())[0]) != count:
            await asyncio.sleep(0.01)
    return ids


async def gone(proxy: Proxy, name: str) -> None:
    async with asyncio.timeout(10):
        while name in await proxy.states():
            await asyncio.sleep(0.01)


@pytest.fixture
def root_level() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


async def test_a_reload_of_the_same_changes_nothing(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert await proxy.reload(proxy.settings) == {"applied": [], "needs_restart": []}


@pytest.mark.usefixtures("root_level")
async def test_what_can_be_applied_is_and_what_needs_a_restart_is_named(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        changed = replace(
            proxy.settings,
            queue=QueueSettings(max_jobs=5),
            catalog=CatalogSettings(max_age=0.0),
            scheduling=SchedulingSettings(priority_ageing=1.0),
            server=ServerSettings(port=1, shutdown_timeout=5.0),
            logging=LoggingSettings(level="error", format="json"),
            interrupt_without_id="reject",
        )
        assert await proxy.reload(changed) == {
            "applied": [
                "scheduling.priority_ageing",
                "queue.max_jobs",
                "catalog.max_age",
                "logging.level",
                "interrupt_without_id",
            ],
            "needs_restart": ["server.port", "logging.format"],
        }
        assert logging.getLogger().level == logging.ERROR
        status, answer = await proxy.post("/interrupt")
        assert (status, answer["error"]["type"]) == (400, "prompt_id_required")


async def test_a_full_queue_takes_more_after_a_reload(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, queue=QueueSettings(max_jobs=1)) as proxy:
        await proxy.submit(endless())
        assert (await proxy.post("/prompt", {"prompt": text()}))[0] == 429
        await proxy.reload(replace(proxy.settings, queue=QueueSettings(max_jobs=2)))
        await proxy.submit(text())


async def test_waiting_prompts_go_out_when_a_backend_may_take_more(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        await proxy.submit(endless(1))
        waiting = await proxy.submit(text())
        await running(proxy, 1)
        (before,) = proxy.settings.nodes.static_nodes
        assert await proxy.reload(with_nodes(proxy.settings, before, max_concurrent=2, capabilities=("x",))) == {
            "applied": ["nodes.static_nodes[a].max_concurrent", "nodes.static_nodes[a].capabilities"],
            "needs_restart": [],
        }
        async with asyncio.timeout(10):
            while waiting not in fleet["a"].accepted[1:]:
                await asyncio.sleep(0.01)
        asked = {"comfyproxy": {"capabilities": ["y"]}}
        assert (await proxy.post("/prompt", {"prompt": text(), "extra_data": asked}))[0] == 400


async def test_checks_are_made_by_the_new_interval_at_once(tmp_path: Path) -> None:
    slow = HealthCheck(interval=500.0, timeout=5.0, heartbeat_timeout=600.0, rise=1, fall=3)
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, health_check=slow) as proxy:
        fleet["a"].faults.freeze()
        await proxy.reload(replace(proxy.settings, nodes=replace(proxy.settings.nodes, health_check=EAGER)))
        await proxy.state_is("a", "unhealthy")
        fleet["a"].faults.thaw()


async def test_another_strategy_chooses_for_the_next_prompt(tmp_path: Path) -> None:
    better = {"b": {"metadata": {"priority": 1}}, "a": {"metadata": {"priority": 2}}}
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, each=better) as proxy:
        balancing = replace(proxy.settings.nodes.load_balancing, strategy="priority_based")
        reloaded = await proxy.reload(
            replace(proxy.settings, nodes=replace(proxy.settings.nodes, load_balancing=balancing))
        )
        assert reloaded["applied"] == ["nodes.load_balancing.strategy"]
        for number in range(4):
            await proxy.ended(await proxy.submit(text(f"{number}"), f"client {number}"))
        assert [len(ran) for ran in fleet.executed.values()] == [0, 4]
        a, b = proxy.settings.nodes.static_nodes
        swapped = with_nodes(proxy.settings, replace(a, metadata={}), replace(b, metadata={"priority": 7}))
        await proxy.reload(with_nodes(swapped, replace(a, metadata={"priority": 3}), swapped.nodes.static_nodes[1]))
        await proxy.ended(await proxy.submit(text("last"), "another client"))
        assert [len(ran) for ran in fleet.executed.values()] == [1, 4]


async def test_a_strategy_that_cannot_be_had_changes_nothing(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, queue=QueueSettings(max_jobs=1)) as proxy:
        balancing = replace(proxy.settings.nodes.load_balancing, strategy="gone")
        nodes = replace(proxy.settings.nodes, load_balancing=balancing)
        with pytest.raises(AssertionError, match="bad_configuration"):
            await proxy.reload(replace(proxy.settings, nodes=nodes, queue=QueueSettings(max_jobs=5)))
        await proxy.submit(endless())
        assert (await proxy.post("/prompt", {"prompt": text()}))[0] == 429


async def test_failover_can_be_turned_off(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        balancing = replace(proxy.settings.nodes.load_balancing, enable_failover=False)
        await proxy.reload(replace(proxy.settings, nodes=replace(proxy.settings.nodes, load_balancing=balancing)))
        prompt_id = await proxy.submit(endless(), extra_data={"comfyproxy": {"backend": "a"}})
        await running(proxy, 1)
        await fleet["a"].kill()
        assert (await proxy.ended(prompt_id))["status"]["status_str"] == "error"


# Backends come


async def test_a_backend_that_is_added_takes_prompts_and_tells_of_them(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy({"a": fleet["a"].url}, tmp_path, max_concurrent=1) as proxy:
        await proxy.submit(endless())
        waiting = await proxy.submit(sampling(), "me")
        socket = await proxy.socket("me")
        (first,) = proxy.settings.nodes.static_nodes
        reloaded = await proxy.reload(with_nodes(proxy.settings, first, node(fleet, "b")))
        assert reloaded == {"applied": ["nodes.static_nodes[b]"], "needs_restart": []}
        await socket.until_done(waiting)
        assert fleet["b"].executed == [waiting]
        entry = await proxy.ended(waiting)
        assert entry["outputs"]["3"]["images"][0]["subfolder"] == "b"


async def test_a_saved_workflow_goes_to_a_backend_that_is_added(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy({"a": fleet["a"].url}, tmp_path) as proxy:
        await proxy.reload(with_nodes(proxy.settings, node(fleet, "a"), node(fleet, "b"), max_concurrent=2))
        await proxy.ready("b")
        await proxy.post("/userdata/workflows%2Fx.json", {"x": 1})
        assert await proxy.get("/comfyproxy/backends/b/userdata/workflows%2Fx.json") == {"x": 1}


async def test_the_order_of_the_backends_is_that_of_the_configuration(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        a, b, c = proxy.settings.nodes.static_nodes
        assert (await proxy.reload(with_nodes(proxy.settings, c, a, b)))["applied"] == ["nodes.static_nodes"]
        assert list(await proxy.states()) == ["c", "a", "b"]


# Backends go


async def test_a_backend_that_is_removed_finishes_what_runs_and_gives_back_what_waits(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        pin = {"X-Comfyproxy-Backend": "b"}
        _, answer = await proxy.post("/prompt", {"prompt": sampling(1, steps=20, seconds=10)}, headers=pin)
        await running(proxy, 1)
        free = await proxy.submit(endless(3), "me")  # to a
        waiting = await proxy.submit(text("waits on b"), "me")
        a, _ = proxy.settings.nodes.static_nodes
        reloaded = await proxy.reload(with_nodes(proxy.settings, a))
        assert reloaded == {"applied": ["nodes.static_nodes[b]"], "needs_restart": []}
        assert (await proxy.states())["b"] == "draining"
        assert (await proxy.post("/prompt", {"prompt": text()}, headers=pin))[0] == 503
        await proxy.ended(answer["prompt_id"])
        await gone(proxy, "b")
        assert fleet["b"].executed == [answer["prompt_id"]]
        await proxy.post("/interrupt", {"prompt_id": free})
        await socket.until_done(waiting)
        assert (await proxy.post("/prompt", {"prompt": text()}, headers=pin))[0] == 400
        async with asyncio.timeout(5):
            while len(fleet["b"].process.sockets):
                await asyncio.sleep(0.01)


async def test_prompts_that_only_a_removed_backend_may_run_end_with_an_error(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        asked: dict[str, Any] = {"extra_data": {"comfyproxy": {"backend": "b"}}}
        runs = await proxy.submit(endless(), **asked)
        waits = await proxy.submit(text(), **asked)
        await running(proxy, 1)
        a, _ = proxy.settings.nodes.static_nodes
        await proxy.reload(with_nodes(proxy.settings, a))
        await proxy.post("/interrupt", {"prompt_id": runs})
        entry = await proxy.ended(waits)
        assert "Backend b is no longer configured" in entry["status"]["messages"][-1][1]["exception_message"]
        await gone(proxy, "b")


@pytest.mark.parametrize("stays", [True, False])
async def test_prompts_end_with_an_error_that_ask_for_what_nobody_declares_any_more(
    tmp_path: Path, stays: bool
) -> None:
    declared = {"a": {"capabilities": ("image",)}, "b": {"capabilities": ("video",)}}
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1, each=declared) as proxy:
        asked: dict[str, Any] = {"extra_data": {"comfyproxy": {"capabilities": ["video"]}}}
        runs = await proxy.submit(endless(), **asked)
        waits = await proxy.submit(text(), **asked)
        await running(proxy, 1)
        a, b = proxy.settings.nodes.static_nodes
        others = [replace(b, capabilities=("image",))] if stays else []
        await proxy.reload(with_nodes(proxy.settings, a, *others))
        if not stays:
            await proxy.post("/interrupt", {"prompt_id": runs})
        entry = await proxy.ended(waits)
        assert "none is capable of: video" in entry["status"]["messages"][-1][1]["exception_message"]
        await proxy.post("/interrupt", {"prompt_id": runs})


async def test_a_backend_that_is_configured_again_before_it_has_left_stays(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        both, (a, _) = proxy.settings, proxy.settings.nodes.static_nodes
        runs = await proxy.submit(endless(), extra_data={"comfyproxy": {"backend": "b"}})
        await running(proxy, 1)
        for _ in range(3):
            await proxy.reload(with_nodes(both, a))
            await proxy.reload(both)
        await proxy.post("/interrupt", {"prompt_id": runs})
        await proxy.ended(runs)
        await proxy.ended(await proxy.submit(text(), extra_data={"comfyproxy": {"backend": "b"}}))
        assert await proxy.states() == {"a": "ready", "b": "ready"}


async def test_a_dead_backend_that_is_removed_leaves_at_once(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        await fleet["b"].kill()
        await proxy.state_is("b", "unhealthy")
        await proxy.reload(with_nodes(proxy.settings, proxy.settings.nodes.static_nodes[0]))
        await gone(proxy, "b")
        await proxy.ended(await proxy.submit(text()))


async def test_a_backend_that_has_moved_is_drained_there_and_comes_back_here(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet:
        urls = {name: fleet[name].url for name in "ab"}
        async with running_proxy(urls, tmp_path, max_concurrent=1) as proxy:
            old = await proxy.submit(endless(), extra_data={"comfyproxy": {"backend": "b"}})
            await running(proxy, 1)
            a, _ = proxy.settings.nodes.static_nodes
            reloaded = await proxy.reload(with_nodes(proxy.settings, a, node(fleet, "b", of="c")))
            assert "nodes.static_nodes[b].url" in reloaded["applied"]
            assert (await proxy.states())["b"] == "draining"
            await proxy.post("/interrupt", {"prompt_id": old})
            await proxy.ended(old)
            async with asyncio.timeout(10):
                while (await proxy.states()).get("b") != "ready":
                    await asyncio.sleep(0.01)
            new = await proxy.submit(text(), extra_data={"comfyproxy": {"backend": "b"}})
            await proxy.ended(new)
            assert fleet.executed == {"a": [], "b": [old], "c": [new]}


async def test_a_backend_that_gets_another_name_joins_once_it_has_left_under_the_old_one(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        runs = await proxy.submit(endless(), extra_data={"comfyproxy": {"backend": "b"}})
        await running(proxy, 1)
        a, _ = proxy.settings.nodes.static_nodes
        await proxy.reload(with_nodes(proxy.settings, a, node(fleet, "z", of="b")))
        assert list(await proxy.states()) == ["a", "b"]
        await proxy.post("/interrupt", {"prompt_id": runs})
        await gone(proxy, "b")
        async with asyncio.timeout(10):
            while (await proxy.states()).get("z") != "ready":
                await asyncio.sleep(0.01)
        prompt_id = await proxy.submit(sampling(), "me", extra_data={"comfyproxy": {"backend": "z"}})
        assert (await proxy.ended(prompt_id))["outputs"]["3"]["images"][0]["subfolder"] == "z"


async def test_a_proxy_stops_while_a_backend_is_about_to_leave(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet:
        async with running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
            await proxy.submit(endless(), extra_data={"comfyproxy": {"backend": "b"}})
            await running(proxy, 1)
            await proxy.reload(with_nodes(proxy.settings, proxy.settings.nodes.static_nodes[0]))
        assert len(fleet["b"].executed) == 1
