"""What the fleet has, as clients of the whole proxy see it."""

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDictProxy
from proxying import EAGER, Fleet, Proxy, running_proxy
from simulator_support import text

from comfyproxy.settings import CatalogSettings
from comfyproxy.simulator import SimulatedBackend

QUICK = CatalogSettings(max_age=0.2)
WITHOUT = {"a": ("ImageScale",), "b": ("ConformanceText", "ImageScale"), "c": ()}
PATHS = (
    "/object_info",
    "/object_info/CheckpointLoaderSimple",
    "/object_info/NoSuchNode",
    "/models",
    "/models/checkpoints",
    "/models/nonsense",
    "/embeddings",
    "/experiment/models",
    "/experiment/models/checkpoints",
    "/experiment/models/nonsense",
    "/experiment/models/preview/checkpoints/0/all.webp",
    "/view_metadata/checkpoints?filename=all.safetensors",
    "/system_stats",
    "/features",
)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    """Three servers with a checkpoint in common and one each of their own, and without some of the node classes."""
    fleet = Fleet()
    for name, without in WITHOUT.items():
        checkpoints = ("all.safetensors", f"{name}.safetensors")
        fleet.backends[name] = SimulatedBackend(name=name, speed=20.0, checkpoints=checkpoints, without_nodes=without)
    async with fleet:
        yield fleet


async def checkpoints(proxy: Proxy) -> list[str]:
    found: list[str] = await proxy.get("/models/checkpoints")
    return found


async def offered(proxy: Proxy, path: str = "/object_info") -> list[str]:
    """Return the checkpoints that a loader offers."""
    info = await proxy.get(path)
    names: list[str] = info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    return names


async def raw(url: str, path: str, **headers: str) -> tuple[int, CIMultiDictProxy[str], bytes]:
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(url + path, headers={name.replace("_", "-"): value for name, value in headers.items()}) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


@pytest.mark.parametrize("version", ["0.25.0", "0.3.64"])
async def test_one_backend_is_quoted_byte_for_byte(tmp_path: Path, version: str) -> None:
    async with (
        Fleet("a", version=version, checkpoints=("all.safetensors", "x/y.ckpt")) as fleet,
        running_proxy(fleet, tmp_path) as proxy,
    ):
        for path in PATHS:
            for prefix in ("", "/api"):
                status, headers, body = await raw(proxy.url, prefix + path, Accept_Encoding="identity")
                of_backend = await raw(fleet["a"].url, prefix + path, Accept_Encoding="identity")
                assert (status, body) == (of_backend[0], of_backend[2]), path
                assert headers.get("Content-Type") == of_backend[1].get("Content-Type"), path


async def test_the_union_of_all_backends_is_seen(tmp_path: Path, fleet: Fleet) -> None:
    everything = ["all.safetensors", "a.safetensors", "b.safetensors", "c.safetensors"]
    async with running_proxy(fleet, tmp_path) as proxy:
        assert sorted(await checkpoints(proxy)) == sorted(everything)
        assert await offered(proxy) == await offered(proxy, "/object_info/CheckpointLoaderSimple")
        assert await offered(proxy) == await checkpoints(proxy)
        info = await proxy.get("/object_info")
        assert {"ImageScale", "ConformanceText", "KSampler"} <= set(info)
        assert await proxy.get("/object_info/ImageScale") == {"ImageScale": info["ImageScale"]}
        assert await proxy.get("/object_info/NoSuchNode") == {}
        files = await proxy.get("/experiment/models/checkpoints")
        assert sorted(item["name"] for item in files) == sorted(everything)
        stats = await proxy.get("/api/system_stats")
        assert sorted(device["name"].split()[1] for device in stats["devices"]) == ["a", "b", "c"]
        status, _, body = await raw(proxy.url, "/view_metadata/checkpoints?filename=c.safetensors")
        assert (status, json.loads(body)["modelspec.title"]) == (200, "c")


async def test_a_model_that_is_added_is_seen_as_soon_as_the_catalog_is_too_old(tmp_path: Path, fleet: Fleet) -> None:
    async with running_proxy(fleet, tmp_path, catalog=QUICK) as proxy:
        assert "new.safetensors" not in await offered(proxy) + await checkpoints(proxy)
        added = fleet["b"].folders.models / "checkpoints" / "new.safetensors"
        added.write_bytes((added.parent / "all.safetensors").read_bytes())
        await asyncio.sleep(QUICK.max_age)
        for _ in range(2):
            assert "new.safetensors" in await offered(proxy)
            assert "new.safetensors" in await checkpoints(proxy)


async def test_what_is_young_is_answered_without_asking_each_time(tmp_path: Path, fleet: Fleet) -> None:
    async with running_proxy(fleet, tmp_path, catalog=CatalogSettings(max_age=60.0)) as proxy:

        async def ask() -> None:
            for path in ("/object_info", "/object_info/KSampler", "/models/checkpoints", "/system_stats", "/features"):
                await proxy.get(path)

        await ask()
        for backend in fleet.backends.values():
            backend.requests.clear()
        await asyncio.gather(*(ask() for _ in range(20)))
        for backend in fleet.backends.values():
            asked = Counter(
                path for _, path in backend.requests if path.startswith(("/object_info", "/models", "/sys"))
            )
            assert all(count <= 2 for count in asked.values()), "one is for the link that has come up meanwhile"


async def test_a_backend_that_dies_takes_what_it_had_and_brings_it_back(tmp_path: Path, fleet: Fleet) -> None:
    async with running_proxy(fleet, tmp_path, catalog=QUICK, health_check=EAGER) as proxy:
        assert "ImageScale" in await proxy.get("/object_info")
        await fleet["c"].kill()
        await proxy.state_is("c", "unhealthy")
        assert "c.safetensors" not in await offered(proxy) + await checkpoints(proxy)
        info = await proxy.get("/object_info")
        assert "ImageScale" not in info
        assert "ConformanceText" in info
        assert len((await proxy.get("/system_stats"))["devices"]) == 2
        await fleet["c"].restart()
        await proxy.state_is("c", "ready")
        assert "c.safetensors" in await offered(proxy)
        assert "c.safetensors" in await checkpoints(proxy)
        assert "ImageScale" in await proxy.get("/object_info")


async def test_another_home_backend_says_its_own(tmp_path: Path, fleet: Fleet) -> None:
    async with running_proxy(fleet, tmp_path, catalog=QUICK, health_check=EAGER) as proxy:
        await fleet["a"].kill()
        await proxy.state_is("a", "unhealthy")
        assert sorted(await checkpoints(proxy)) == ["all.safetensors", "b.safetensors", "c.safetensors"]
        await fleet["b"].kill()
        await fleet["c"].kill()
        await proxy.state_is("b", "unhealthy")
        await proxy.state_is("c", "unhealthy")
        for path in ("/object_info", "/object_info/KSampler", "/models", "/features", "/system_stats"):
            status, body = await proxy.call("GET", path)
            assert (status, body["error"]["type"]) == (503, "no_backend_available")


async def test_a_frozen_backend_delays_the_answer_by_the_timeout_of_a_check_at_most(
    tmp_path: Path, fleet: Fleet
) -> None:
    async with running_proxy(fleet, tmp_path, catalog=QUICK, health_check=EAGER) as proxy:
        known = sorted(await checkpoints(proxy))
        fleet["c"].faults.freeze()
        await asyncio.sleep(QUICK.max_age)
        begun_s = asyncio.get_running_loop().time()
        assert sorted(await checkpoints(proxy)) in (known, [name for name in known if name != "c.safetensors"])
        assert asyncio.get_running_loop().time() - begun_s < 10 * EAGER.timeout


async def test_what_a_backend_can_run_is_as_new_as_the_catalog(tmp_path: Path) -> None:
    async with (
        Fleet("a", without_nodes=("ConformanceText",)) as old,
        Fleet("b") as new,
        running_proxy({"a": old["a"].url, "b": new["b"].url}, tmp_path) as proxy,
    ):
        assert "ConformanceText" in await proxy.get("/object_info")
        for number in range(3):
            await proxy.ended(await proxy.submit(text(str(number)), f"client {number}"))
        assert (len(old["a"].executed), len(new["b"].executed)) == (0, 3)


async def test_a_page_that_has_the_catalog_already_gets_none(tmp_path: Path, fleet: Fleet) -> None:
    async with running_proxy(fleet, tmp_path, catalog=QUICK) as proxy:
        status, headers, body = await raw(proxy.url, "/api/object_info", Accept_Encoding="gzip")
        info: Any = json.loads(gzip.decompress(body))
        assert (status, "KSampler" in info) == (200, True)
        await asyncio.sleep(QUICK.max_age)
        again = await raw(proxy.url, "/api/object_info", Accept_Encoding="gzip", If_None_Match=headers["ETag"])
        assert (again[0], again[2]) == (304, b"")
